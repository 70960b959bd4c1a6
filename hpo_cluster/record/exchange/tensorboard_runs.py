"""Log a campaign for TensorBoard: a folder of events for each trial, with its parameters in the HPARAMS tab."""

from __future__ import annotations

from pathlib import Path

from hpo_cluster.record.exchange.facts import Outline, TrialFacts

#: The file that says which state of the trial was logged.
DIGEST = "hpo_cluster.digest"


class TensorboardTracker:
    """The folders of one campaign's trials.

    Args:
        outline: the campaign.
        folder: where they are written.
    """

    def __init__(self, outline: Outline, folder: Path) -> None:
        self.outline, self.folder, self.place = outline, folder, str(folder)

    def log(self, facts: TrialFacts) -> bool:
        """Write the events of a trial; return False if they are there already."""
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = self.folder / facts.label
        mark = folder / DIGEST
        folder.mkdir(parents=True, exist_ok=True)
        if mark.is_file() and mark.read_text(encoding="utf-8") == facts.digest:
            return False
        for path in folder.glob("events.out.tfevents.*"):
            path.unlink()
        whole = facts.measured
        at = None if facts.ended_at is None else facts.ended_at.timestamp()
        with SummaryWriter(str(folder)) as writer:
            for name, points in facts.series.items():
                for step, value in points:
                    writer.add_scalar(f"curve/{name}", value, step, walltime=at)
            writer.add_text("state", f"{facts.state} {facts.notes.get('error', '')}".strip(), walltime=at)
            writer.add_hparams(dict(facts.parameters), {f"hparam/{name}": value for name, value in whole.items()},
                               run_name=".")  # fmt: skip
        mark.write_text(facts.digest)
        return True

    def close(self, *, ended: bool) -> None:
        """Do nothing: each trial is complete."""
