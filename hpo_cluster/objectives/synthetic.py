"""Test functions whose optimum is known: the whole path of a campaign in seconds, for tests, demos and benchmarks.

Noise and injected failures depend on the trial's seed and nothing else (failures also on the attempt, so that a retry
may succeed): the same campaign gives the same values again. The program is ``jobs/synthetic.py``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.space import Space
from hpo_cluster.trial import derive_seed


class SyntheticObjective(Objective):
    """Evaluate a test function."""

    kind: Literal["synthetic"] = "synthetic"
    direction: Literal["maximize", "minimize"] = "minimize"
    function: str = Field(
        "himmelblau", description="test function: himmelblau, branin, hartmann6, ackley, rosenbrock, levy…"
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of the Gaussian noise added to the value")
    duration_s: float = Field(0.0, ge=0, description="seconds that an evaluation takes")
    failure_rate: float = Field(0.0, ge=0, le=1, description="share of the attempts that fail")

    @field_validator("function")
    @classmethod
    def _known(cls, function: str) -> str:
        from hpo_cluster.objectives.benchmark_functions import FUNCTIONS

        if function not in FUNCTIONS:
            raise ValueError(f"is no test function; accepted: {', '.join(sorted(FUNCTIONS))}")
        return function

    @property
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""
        return self.function

    @property
    def program(self) -> str:
        """File name of the program in ``jobs/``."""
        return "synthetic.py"

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised."""
        return "value"

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """The ``settings`` of ``params.json``."""
        return self.model_dump(mode="json")

    def own_space(self) -> Space:
        """The function's usual domain."""
        from hpo_cluster.objectives.benchmark_functions import FUNCTIONS

        return FUNCTIONS[self.function].space

    def space_faults(self, space: Space) -> list[str]:
        """Parameters that the function does not have, and those of its own that are missing."""
        own = self.own_space()
        accepted = f"the parameters of {self.function} are {', '.join(own.names)}"
        faults = [f"space.{name}: is missing; {accepted}" for name in own.names if name not in space.names]
        for name, parameter in space.parameters.items():
            if name not in own.names:
                faults.append(f"space.{name}: is no parameter of {self.function}; {accepted}")
                continue
            if parameter.when:
                faults.append(f"space.{name}.when: {self.function} always needs all its parameters; leave it out")
            for u in (0.0, 1.0):
                try:
                    own.parameters[name].encode(parameter.decode(u))
                except ValueError as error:
                    faults.append(f"space.{name}: {self.function} is not defined there: {error}")
        return faults


def noise_of(seed: int) -> float:
    """The standard normal draw that belongs to a seed."""
    return float(np.random.default_rng(derive_seed(seed, "noise")).standard_normal())


def fails(seed: int, attempt: int, rate: float) -> bool:
    """Whether this attempt is one of those that fail."""
    return derive_seed(seed, "failure", attempt) / 2**31 < rate
