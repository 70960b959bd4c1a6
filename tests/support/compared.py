"""Folders of small campaigns to compare, with journals written by hand: an evaluation a minute on one GPU."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.record.journal import Event
from hpo_cluster.space import Float, Space
from support.journals import BEGAN, write_campaign

SPACE = Space({"x": Float(0.0, 1.0)})
#: Fine-tunings of a model that nobody has, with a task to optimise and one that is only recorded.
LORA = {
    "kind": "lora",
    "direction": "maximize",
    "model": {"name": "m", "checkpoint_dir": "bundle:m"},
    "data": {"name": "d", "path": "bundle:d"},
    "tasks": {"name": "t", "validation": "val", "test": ["test"], "datasets": []},
    "train": {},
}


def campaign(
    folder: Path,
    values: Sequence[float | None],
    *,
    optimizer: str | Mapping[str, Any] = "random",
    seed: int = 0,
    drawn: int | None = None,
    budget: int | None = None,
    workers: int = 1,
    gpus: int = 1,
    tests: Sequence[float] = (),
    metrics: Sequence[Mapping[str, float] | None] = (),
    imported: Sequence[float] = (),
    objective: Mapping[str, Any] | None = None,
    space: Space = SPACE,
    direction: str = "maximize",
) -> Path:
    """Write a campaign with these values, in order; None is a failed evaluation.

    The configurations follow from `drawn`, which is the campaign's seed if it is not given. Each evaluation begins when
    the one before it has ended, and takes a minute. The values of a test task are `tests`;
    `imported` are values of an earlier campaign, with which this one began. `metrics` replaces those of results.
    """
    events: list[Event] = []
    drawn = seed if drawn is None else drawn

    def append(event: str, minute: float, **fields: Any) -> None:
        at = (BEGAN + datetime.timedelta(minutes=minute)).isoformat()
        events.append({"seq": len(events), "at": at, "epoch": 1, "event": event, **fields})

    earlier = {"seed": 1, "origin": "imported"}
    rows = [
        {"trial": number, "parameters": _configuration(space, number, 7), "value": value, **earlier}
        for number, value in enumerate(imported)
    ]
    append("created", 0, schema=1, campaign=folder.name, code="", **({"trials": rows} if rows else {}))
    operation = {"budget": len(values) if budget is None else budget, "workers": workers}
    append("started", 0, host="front", pid=1, operation=operation, settings={}, code="", versions={})
    for number, value in enumerate(values, len(imported)):
        row = {"trial": number, "parameters": _configuration(space, number, drawn), "seed": 1, "origin": "evaluated"}
        append("asked", number, trials=[row], decision={})
        append("intent", number, trial=number, attempt=0, token=f"t{number}", code="")
        since = (BEGAN + datetime.timedelta(minutes=number)).isoformat()
        job = {"backend": "l", "job_id": "1", "token": f"t{number}", "submitted_at": since, "host": "h"}
        append("submitted", number, trial=number, attempt=0, job=job, gpus=gpus)
        append("running", number, trial=number, attempt=0, started_at=since)
        end: dict[str, Any] = {"state": "failed", "error": {"kind": "code", "message": "no luck"}}
        if value is not None:
            index = number - len(imported)
            shown = {"val/acc": value, **({"test/acc": tests[index]} if tests else {})}
            end = {"state": "completed", "value": value, "metrics": metrics[index] if metrics else shown}
        append("ended", number + 1, trial=number, attempt=0, **end)
    chosen = {"name": optimizer} if isinstance(optimizer, str) else optimizer
    write_campaign(folder, events, space, chosen, objective, direction=direction, seed=seed)
    return folder


def _configuration(space: Space, number: int, seed: int) -> dict[str, float]:
    return dict.fromkeys(space.names, (0.137 * (number + 1) + 0.01 * seed) % 1.0)


#: Two objectives of which more quality and less cost are better.
GOALS = [{"name": "quality", "direction": "maximize"}, {"name": "cost", "direction": "minimize"}]


def several(
    folder: Path,
    points: Sequence[tuple[float, ...] | None],
    *,
    goals: Sequence[Mapping[str, Any]] = GOALS,
    constraints: Sequence[Mapping[str, Any]] = (),
    **options: Any,
) -> Path:
    """Write a campaign of several objectives with these values of its metrics, in order; None is a failed evaluation.

    Values beyond those of the objectives are those of the constraints.
    """
    names = [entry["name"] for entry in (*goals, *constraints)]
    metrics = [None if point is None else dict(zip(names, point, strict=True)) for point in points]
    objective = {"kind": "command", "command": "run {x}", "metrics": [*goals], "constraints": [*constraints]}
    values = [None if point is None else point[0] for point in points]
    direction = goals[0]["direction"]
    return campaign(folder, values, metrics=metrics, objective=objective, direction=direction, **options)
