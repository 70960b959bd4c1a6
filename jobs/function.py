"""Evaluate one attempt of ``objective=function``: import the function by its name and call it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this directory: a user's module may have the same name as a program here
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.black_box import needed_metrics, read_output
from hpo_cluster.objectives.climbing import at_each_rung
from hpo_cluster.objectives.function import load, more_arguments


def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
    """Call the function with this attempt's configuration, at one rung after another; return the last metrics."""
    settings = attempt.settings
    attempt.phase("import")
    function = load(settings["function"], settings["search_path"])
    attempt.phase("call")
    needed = needed_metrics(settings)

    def call(share: float) -> dict[str, Any]:
        known = None if attempt.climb is None else share
        more = more_arguments(function, attempt.parameters, known, attempt.trial_checkpoint)
        output = function(**attempt.parameters, **more)
        return read_output(output if isinstance(output, Mapping) else {needed[0]: output}, *needed)

    return at_each_rung(attempt, call)


if __name__ == "__main__":
    sys.exit(worker.main(evaluate))
