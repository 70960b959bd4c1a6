"""What a start would do first: the proposals and the exact submission scripts, with nothing created."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from hpo_cluster.code import current_code
from hpo_cluster.history import to_frame
from hpo_cluster.launchers.base import Submission
from hpo_cluster.layout import CampaignLayout
from hpo_cluster.record import Record
from hpo_cluster.space import Configuration
from hpo_cluster.spec import CampaignSpec
from hpo_cluster.trial import trial_label


def preview(spec: CampaignSpec) -> Iterator[tuple[str, Configuration, str]]:
    """The trials that would be submitted first, as (label, parameters, text of the submission script).

    The token in a script ends in ``preview``; a real one ends in random digits.
    """
    layout = CampaignLayout(spec.dir.absolute())
    record = Record.read(layout.events)
    free = min(spec.operation.slots - len(record.in_flight), spec.operation.budget - record.spent)
    if free <= 0:
        return
    code = record.code if record.code and spec.code == "recorded" else current_code()
    history = to_frame(record, spec.space.names, maximize=spec.objective.direction == "maximize")
    for number, proposal in enumerate(spec.optimizer.ask(history, free).proposals, record.next_trial):
        label, files = trial_label(number), layout.attempt(number, 0)
        program: Path = layout.code_dir / code / "jobs" / spec.objective.program
        command = (sys.executable, str(program), str(files.dir))
        token = f"hpo-{layout.dir.name}-{label}-a0-preview"
        yield label, proposal.parameters, spec.launcher.script(Submission(token, command, files.dir, files.job_dir))
