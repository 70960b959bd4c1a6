"""Asks of the optimizers whose arithmetic is the same on every machine, kept in `tests/contract/recorded_asks.json`.

To record them again, after a change that is meant to change proposals: ``cd tests && python -m support.recorded_asks``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.space import Configuration, Space
from hpo_cluster.trial import derive_seed
from support.simulated import TROUBLE, Simulation
from support.spaces import SPACES

RECORDED = Path(__file__).resolve().parents[1] / "contract" / "recorded_asks.json"

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "lhs": ("lhs", {"points": 8}),
    "sobol": ("sobol", {}),
    "grid": ("grid", {"levels": 3}),
    "soo paper": ("soo", {"preset": "paper"}),
    "soo reference": ("soo", {"preset": "reference"}),
    "soo greedy": ("soo", {"preset": "greedy"}),
    "direct": ("direct", {}),
    "direct_l": ("direct_l", {}),
    "fda": ("fda", {}),
}
NAMES = ("mixed", "conditional", "constrained")


def outcome(number: int, configuration: Configuration) -> tuple[str, float | None]:
    """Return how a trial ends: a value that follows from its number alone, so that it is the same on every machine."""
    if number % 5 == 4:
        return TROUBLE[number // 5 % len(TROUBLE)], None
    return "completed", float(derive_seed("value", number) % 1000)


def asked(optimizer: str, space: Space) -> dict[str, list[list[Any]]]:
    """Return what an optimizer asks for alone, and with three workers after two imported trials."""
    name, settings = OPTIMIZERS[optimizer]
    alone = Simulation(space, outcome).run(make_optimizer(name, space, 3, **settings), 8)
    crowd = Simulation(space, outcome)
    imported = [
        {"trial": i, "seed": 0, "origin": "imported", "parameters": configuration, "value": float(i)}
        for i, configuration in enumerate(alone.evaluated[2:4])
    ]
    crowd.append("created", trials=imported)
    crowd.run(make_optimizer(name, space, 3, **settings), 14, workers=3)
    return {
        "alone": [values(space, configuration) for configuration in alone.evaluated],
        "crowd": [values(space, configuration) for configuration in crowd.evaluated],
    }


def values(space: Space, configuration: Configuration) -> list[Any]:
    """Return the values in the order of the space, None for inactive ones, without the last digits of logarithms."""
    found = [configuration.get(name) for name in space.names]
    return [float(f"{value:.9g}") if isinstance(value, float) else value for value in found]


def main() -> None:
    """Write the file again."""
    cases = {f"{optimizer} {name}": asked(optimizer, SPACES[name]) for optimizer in OPTIMIZERS for name in NAMES}
    lines = (f"{json.dumps(case)}: {json.dumps(found, separators=(',', ':'))}" for case, found in cases.items())
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
