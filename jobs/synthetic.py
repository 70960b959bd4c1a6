"""Evaluate one attempt of ``objective=synthetic``: a test function with the configured duration, noise and failures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.climbing import at_each_rung_in
from hpo_cluster.objectives.synthetic import SyntheticObjective


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Return the function's value at this attempt's configuration, of one rung after another."""
    attempt.phase("evaluate")
    objective = SyntheticObjective.model_validate(attempt.settings)
    return at_each_rung_in(
        objective.duration_s,
        attempt,
        lambda number, share: objective.measure(attempt.parameters, attempt.seed, number, share),
    )


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
