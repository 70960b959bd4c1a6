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
from hpo_cluster.objectives.synthetic import fails, noise_of
from hpo_cluster.trial import ErrorKind


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Return the function's value at this attempt's configuration."""
    settings = attempt.settings
    attempt.phase("evaluate")
    time.sleep(settings["duration_s"])
    if fails(attempt.seed, int(attempt.params.get("attempt") or 0), settings["failure_rate"]):
        raise AttemptError(ErrorKind.CODE, "injected failure")
    noise = settings["noise"]
    if settings["function"] in SEVERAL:
        values = SEVERAL[settings["function"]].evaluate(attempt.parameters)
        noisy = {name: value + noise * noise_of(attempt.seed, name) for name, value in values.items()}
        return {"metrics": noisy, "sems": dict.fromkeys(values, noise)}
    exact = FUNCTIONS[settings["function"]].evaluate(attempt.parameters)
    if not noise:
        return {"metrics": {"value": exact}}
    return {"metrics": {"value": exact + noise * noise_of(attempt.seed), "exact": exact}, "sems": {"value": noise}}


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
