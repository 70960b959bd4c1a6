"""Campaign folders as a driver leaves them, written without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpo_cluster.record.files import dumps
from hpo_cluster.record.journal import Journal
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.space import Space


def stamp(minutes: float) -> str:
    seconds = round(minutes * 60)
    days, rest = divmod(seconds, 86400)
    return f"2026-01-{1 + days:02d}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}.000000Z"


def make_campaign(
    directory: Path, objective: Mapping[str, Any], space: Space, trials: Sequence[Mapping[str, Any]], direction: str
) -> Path:
    """A campaign directory as a driver leaves it; each trial is `number`, `parameters` and, if it ended, `end`."""
    layout = CampaignLayout(directory)
    directory.mkdir(parents=True)
    identity = {
        "space": space.to_json(),
        "objective": dict(objective),
        "optimizer": {"name": "random"},
        "direction": direction,
        "seed": 0,
    }
    layout.identity.write_text(yaml.safe_dump(identity, sort_keys=False))
    with Journal(layout.events) as journal:
        journal.append("created", campaign=directory.name, code="c")
        for trial in trials:
            number = trial["number"]
            at = number if number >= -1 else -number
            origin = "baseline" if number == -1 else "confirmation" if number < 0 else "evaluated"
            row = {"trial": number, "parameters": trial["parameters"], "seed": 1, "origin": origin}
            row["info"] = trial.get("info", {})
            journal.append("asked", trials=[row], decision={})
            journal.append("intent", trial=number, attempt=0, token=f"t{number}", code="c")
            job = {"backend": "l", "job_id": "1", "token": f"t{number}", "submitted_at": stamp(at + 1), "host": "h"}
            journal.append("submitted", trial=number, attempt=0, job=job, gpus=trial.get("gpus", 0))
            if "gpus" in trial:
                journal.append("running", trial=number, attempt=0, started_at=stamp(0))
            if "end" in trial:
                end = dict(trial["end"])
                sems = end.pop("sems", None)
                if sems:
                    layout.attempt(number, 0).dir.mkdir(parents=True)
                    layout.attempt(number, 0).result.write_text(dumps({"metrics": end["metrics"], "sems": sems}))
                journal.append("ended", trial=number, attempt=0, **{"ended_at": stamp(3 * at + 5), **end})
    return directory
