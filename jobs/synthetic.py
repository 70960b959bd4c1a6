"""Evaluate one attempt of ``objective=synthetic``: a test function with the configured duration, noise and failures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.climbing import at_each_rung
from hpo_cluster.objectives.synthetic import SyntheticObjective


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Return the function's value at this attempt's configuration, of one rung after another."""
    attempt.phase("evaluate")
    objective = SyntheticObjective.model_validate(attempt.settings)
    climb = attempt.climb
    done = 0.0 if climb is None or climb.start == 0 else climb.share(climb.start - 1)

    def work(share: float) -> dict[str, Any]:
        nonlocal done
        time.sleep(objective.duration_s * max(0.0, share - done))
        done = share
        number = int(attempt.params.get("attempt") or 0)
        return objective.measure(attempt.parameters, attempt.seed, number, share)

    return at_each_rung(attempt, work)


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
