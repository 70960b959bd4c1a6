"""Evaluate one attempt of ``objective=synthetic``: a test function with the configured duration, noise and failures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, SEVERAL
from hpo_cluster.objectives.climbing import at_each_rung
from hpo_cluster.objectives.synthetic import fails, moved, noise_of
from hpo_cluster.trial import ErrorKind


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Return the function's value at this attempt's configuration, of one rung after another."""
    attempt.phase("evaluate")
    climb = attempt.climb
    done = 0.0 if climb is None or climb.start == 0 else climb.share(climb.start - 1)

    def work(share: float) -> dict[str, Any]:
        nonlocal done
        time.sleep(attempt.settings["duration_s"] * max(0.0, share - done))
        done = share
        return value(attempt, share)

    return at_each_rung(attempt, work)


def value(attempt: worker.Attempt, share: float) -> dict[str, Any]:
    """Return the function's value for a share of an evaluation."""
    settings = attempt.settings
    if fails(attempt.seed, int(attempt.params.get("attempt") or 0), settings["failure_rate"]):
        raise AttemptError(ErrorKind.CODE, "injected failure")
    noise, function = settings["noise"], settings["function"]
    space = FUNCTIONS[function].space if function in FUNCTIONS else SEVERAL[function].space
    parameters = moved(space, attempt.parameters, share)
    if function in SEVERAL:
        values = SEVERAL[function].evaluate(parameters)
        noisy = {name: value + noise * noise_of(attempt.seed, name) for name, value in values.items()}
        return {"metrics": noisy, "sems": dict.fromkeys(values, noise)}
    exact = FUNCTIONS[function].evaluate(parameters)
    if not noise:
        return {"metrics": {"value": exact}}
    return {"metrics": {"value": exact + noise * noise_of(attempt.seed), "exact": exact}, "sems": {"value": noise}}


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
