"""Test functions with a known optimum: a whole campaign in seconds, for tests, demonstrations and benchmarks.

Noise depends on the trial's seed only, and an injected failure on the seed and the attempt, so that a retry may
succeed. The same campaign therefore gives the same values again. The program is ``jobs/synthetic.py``.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.space import Space
from hpo_cluster.trial import derive_seed


class SyntheticObjective(Objective):
    """A test function, with optional noise, delay and failures."""

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
            raise ValueError(f"is not a test function; accepted: {', '.join(sorted(FUNCTIONS))}")
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
        """Return the ``settings`` of ``params.json``."""
        return self.model_dump(mode="json")

    def own_space(self) -> Space:
        """Return the usual domain of the function."""
        from hpo_cluster.objectives.benchmark_functions import FUNCTIONS

        return FUNCTIONS[self.function].space

    def space_faults(self, space: Space) -> list[str]:
        """Return the faults of a space: unknown, missing or conditional parameters, and values outside the domain."""
        own = self.own_space()
        accepted = f"the parameters of {self.function} are {', '.join(own.names)}"
        faults = [f"space.{name}: is missing; {accepted}" for name in own.names if name not in space.names]
        for name, parameter in space.parameters.items():
            if name not in own.names:
                faults.append(f"space.{name}: is not a parameter of {self.function}; {accepted}")
                continue
            if parameter.when:
                faults.append(
                    f"space.{name}.when: {self.function} always needs all its parameters; remove this condition"
                )
            for u in (0.0, 1.0):
                try:
                    own.parameters[name].encode(parameter.decode(u))
                except ValueError as error:
                    faults.append(f"space.{name}: {self.function} is not defined there: {error}")
        return faults


def noise_of(seed: int) -> float:
    """Return the standard normal draw of a seed."""
    return float(np.random.default_rng(derive_seed(seed, "noise")).standard_normal())


def fails(seed: int, attempt: int, rate: float) -> bool:
    """Return whether this attempt fails, at a failure rate of `rate`."""
    return derive_seed(seed, "failure", attempt) / 2**31 < rate
