"""Evaluate one attempt of ``objective=surrogate``: what a regression on a finished campaign predicts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.climbing import at_each_rung_in
from hpo_cluster.objectives.surrogate import SurrogateObjective


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Return the prediction for this attempt's configuration, of one rung after another."""
    attempt.phase("evaluate")
    objective = SurrogateObjective.model_validate(attempt.settings)
    return at_each_rung_in(
        objective.wait_share * (objective.seconds(attempt.parameters) or 0.0),
        attempt,
        lambda number, share: objective.measure(attempt.parameters, attempt.seed, number, share),
    )


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
