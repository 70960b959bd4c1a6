"""A dry run: the first proposals, the submission commands and their scripts, without creating anything."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from hpo_cluster.driver.code_snapshot import current_code
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.driver.submit import command
from hpo_cluster.launchers.base import Submission
from hpo_cluster.record.campaign_state import Record, asked_rows
from hpo_cluster.record.climb import room_for
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.history import to_frame
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.space import Configuration
from hpo_cluster.trial import Ask, trial_label


def preview(spec: CampaignSpec) -> Iterator[tuple[list[tuple[str, Configuration]], str]]:
    """Yield the jobs that would be submitted first: labels and parameters of their trials, command and script.

    The token in a script ends in ``preview``; a real token ends in random digits.
    """
    layout = CampaignLayout(spec.dir.absolute())
    record = Record.read(layout.events)
    if record.created is None:  # apply what will be the first event
        rows = asked_rows(Ask(settled=spec.warm_start.rows), 0, spec.seed)
        record.apply({"seq": 0, "at": utc_now(), "event": "created", "trials": rows, **spec.fidelity.identity()})
    slots = spec.operation.slots // spec.launcher.trials_per_node * spec.launcher.trials_per_node
    free = min(slots - len(record.in_flight), room_for(record, spec.operation.budget))
    if free <= 0:
        return
    code = record.code if record.code and spec.code == "recorded" else current_code()
    maximize, goals = spec.objective.direction == "maximize", spec.objective.goals
    history = to_frame(record, spec.space.names, maximize=maximize, goals=goals)
    proposals = list(enumerate(spec.optimizer.ask(history, free).proposals, record.next_trial))
    size = spec.launcher.trials_per_node
    for first in range(0, len(proposals), size):
        group = proposals[first : first + size]
        labels = [trial_label(number) for number, _ in group]
        folders = [layout.attempt(number, 0) for number, _ in group]
        line = command(spec, layout, code, [files.dir for files in folders])
        token = f"hpo-{layout.dir.name}-{labels[0]}-a0-preview"
        job = Submission(token, line, folders[0].dir, folders[0].job_dir, trials=len(group))
        trials = [(label, proposal.parameters) for label, (_, proposal) in zip(labels, group, strict=True)]
        yield trials, f"$ {shlex.join(spec.launcher.command(job))}\n{spec.launcher.script(job)}"
