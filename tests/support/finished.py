"""Finished campaigns, written without a driver: a journal of trials with a known dependence on their parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import yaml

from hpo_cluster.fidelity import Ladder
from hpo_cluster.space import Categorical, Float, Integer, Space

SPACE = Space(
    {
        "rate": Float(1e-5, 1e-1, log=True),
        "kind": Categorical(("plain", "deep")),
        "depth": Integer(1, 8, when={"kind": ("deep",)}),
    }
)


#: Part of the seconds of an attempt that its job takes to start.
START_S = 4.0


def score(parameters: dict) -> float:
    """A peak at rate 1e-3, higher for the deep kind, and higher with depth."""
    return 1 - 0.1 * (math.log10(parameters["rate"]) + 3) ** 2 + 0.05 * parameters.get("depth", 0)


def campaign(
    folder: Path, trials: int = 60, *, fails_above: float = 1.0, sem: float = 0.01, ladder: Ladder | None = None
) -> Path:
    """Write a finished campaign: trials above a rate diverge within a second, others take as long as they are deep."""
    folder.mkdir(parents=True)
    identity = {
        **({} if ladder is None else {"fidelity": ladder.to_json()}),
        "space": SPACE.to_json(),
        "objective": {
            "kind": "command",
            "direction": "maximize",
            "metric": "acc",
            "command": "x {rate} {kind} {depth}",
        },
        "optimizer": {"name": "random"},
        "direction": "maximize",
        "seed": 0,
    }
    (folder / "campaign.yaml").write_text(yaml.safe_dump(identity, sort_keys=False))
    rng, events = np.random.default_rng(0), []

    def append(event: str, second: float, **fields: object) -> None:
        at = f"2026-01-01T00:{int(second) // 60:02d}:{second % 60:09.6f}+00:00"
        events.append({"seq": len(events), "at": at, "event": event, **fields})

    more = {} if ladder is None else {"fidelity": ladder.to_json()}
    append("created", 0, schema=1, campaign=folder.name, code="c", **more)
    for number in range(trials):
        parameters = SPACE.decode(rng.random(3))
        row = {"trial": number, "parameters": parameters, "seed": number, "origin": "evaluated"}
        append("asked", 0, trials=[row], decision={})
        append("intent", 0, trial=number, attempt=0, token=f"t{number}", code="c")
        job = {"backend": "local", "job_id": "1", "token": f"t{number}", "submitted_at": events[0]["at"], "host": "h"}
        append("submitted", 0, trial=number, attempt=0, job=job)
        append("running", 3, trial=number, attempt=0, started_at="2026-01-01T00:00:03+00:00")
        seconds = 10.0 + 5 * parameters.get("depth", 0)
        for rung, share in enumerate(() if ladder is None else ladder.shares[:-1]):
            until = START_S + share * (seconds - START_S)
            scored = {"value": share * score(parameters), "metrics": {}, "seconds": until}
            append("rung", 4, trial=number, attempt=0, rung=rung, **scored)
        if parameters["rate"] > fails_above:
            error = {"kind": "diverged", "message": "NaN"}
            append("ended", 4, trial=number, attempt=0, state="diverged", error=error)
        else:
            value = score(parameters)
            measured = {"value": value, "value_sem": sem, "metrics": {"acc": value, "size": 7.0}}
            append("ended", 3 + seconds, trial=number, attempt=0, state="completed", **measured)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder
