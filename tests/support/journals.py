"""Campaign folders that hold a journal of simulated trials, as a driver would have written it, and no files of jobs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.journal import Event
from hpo_cluster.space import Space
from hpo_cluster.trial import derive_seed
from support.simulated import Outcome, Simulation

BEGAN = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)


class Recorded(Simulation):
    """A simulation that keeps its events as a journal has them."""

    events: list[Event]

    def append(self, event: str, at: str = "", **fields: Any) -> None:
        """Add an event; each one is a minute later than the one before."""
        self.events = getattr(self, "events", [])
        for row in fields.get("trials", ()):
            row["seed"] = derive_seed(self.seed_of_campaign, "trial", row["trial"])
        moment = BEGAN + datetime.timedelta(minutes=len(self.events))
        kept = {"seq": len(self.events), "at": moment.isoformat(), "epoch": 1, "event": event, **fields}
        self.events.append(json.loads(json.dumps(kept)))
        super().append(event, kept["at"], **fields)

    seed_of_campaign = 0


def simulated_campaign(
    directory: Path,
    optimizer: str,
    space: Space,
    outcome: Callable[[int, Mapping[str, Any]], Outcome],
    *,
    evaluations: int,
    workers: int = 1,
    seed: int = 0,
    versions: Mapping[str, str] | None = None,
    objective: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write the folder of a campaign that an optimizer has driven with simulated workers."""
    made = make_optimizer(optimizer, space, seed, **settings)
    recorded = Recorded(space, outcome, seed)
    recorded.seed_of_campaign = seed
    recorded.append("created", schema=1, campaign=directory.name, code="")
    start = {"host": "front", "pid": 1, "operation": {"budget": evaluations, "workers": workers}, "settings": {}}
    recorded.append("started", **start, code="", versions=dict(versions or {}))
    recorded.run(made, evaluations, workers)
    recorded.append("stopped", reason="finished")
    write_campaign(directory, recorded.events, space, {"name": optimizer, **settings}, objective, seed=seed)
    return directory


def write_campaign(
    directory: Path,
    events: list[Event],
    space: Space,
    optimizer: Mapping[str, Any],
    objective: Mapping[str, Any] | None = None,
    *,
    direction: str = "maximize",
    seed: int = 0,
) -> None:
    """Write journal and identity of a campaign."""
    directory.mkdir(parents=True)
    identity = {
        "space": space.to_json(),
        "objective": dict(objective or {"kind": "synthetic", "direction": direction}),
        "optimizer": dict(optimizer),
        "direction": direction,
        "seed": seed,
    }
    (directory / "campaign.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(identity)), sort_keys=False))
    (directory / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
