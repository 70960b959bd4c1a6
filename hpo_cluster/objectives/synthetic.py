"""Test functions with a known optimum: a whole campaign in seconds, for tests, demonstrations and benchmarks.

Noise depends on the trial's seed only, and an injected failure on the seed and the attempt, so that a retry may
succeed. The same campaign therefore gives the same values again. The program is ``jobs/synthetic.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from hpo_cluster.errors import AttemptError
from hpo_cluster.goals import Direction
from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.space import Space, Value
from hpo_cluster.text import instead_of
from hpo_cluster.trial import ErrorKind, derive_seed

#: Share of a parameter's range by which the function would be moved if nothing of an evaluation were done.
MOVED = 0.1


class SyntheticObjective(Objective):
    """A test function, with optional noise, delay and failures."""

    FIDELITIES = ("share",)

    kind: Literal["synthetic"] = "synthetic"
    direction: Direction = "minimize"
    function: str = Field(
        "himmelblau",
        description="test function: himmelblau, branin, hartmann6, ackley, rosenbrock, levy…; zdt1, dtlz2 and bnh have "
        "several objectives",
    )
    noise: float = Field(0.0, ge=0, description="standard deviation of the Gaussian noise added to each value")
    duration_s: float = Field(0.0, ge=0, description="seconds that an evaluation takes")
    failure_rate: float = Field(0.0, ge=0, le=1, description="share of the attempts that fail")

    @field_validator("function")
    @classmethod
    def _known(cls, function: str) -> str:
        from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, SEVERAL

        if function not in FUNCTIONS and function not in SEVERAL:
            raise ValueError(f"is not a test function; {instead_of(function, sorted((*FUNCTIONS, *SEVERAL)))}")
        return function

    @classmethod
    def known_direction(cls, name: str) -> Direction | None:
        """Return which values of a metric are better: all test functions are minimised."""
        return "minimize"

    @model_validator(mode="before")
    @classmethod
    def _own_goals(cls, data: Any) -> Any:
        """Take over the objectives and constraints of the test function, if none are given."""
        from hpo_cluster.objectives.benchmark_functions import SEVERAL

        if not isinstance(data, Mapping) or data.get("metrics") or str(data.get("function")) not in SEVERAL:
            return data
        own = SEVERAL[str(data["function"])]
        return {**data, "metrics": own.metrics, "constraints": data.get("constraints") or own.constraints}

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
        """Name of the metric that is optimised; the first one of several."""
        return self.metrics[0].name if self.metrics else "value"

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """Return the ``settings`` of ``params.json``."""
        return self.model_dump(mode="json")

    def measure(self, parameters: Mapping[str, Value], seed: int, attempt: int, share: float = 1.0) -> dict[str, Any]:
        """Return the function's value for a share of an evaluation. Raise AttemptError if this attempt fails."""
        from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, SEVERAL

        if fails(seed, attempt, self.failure_rate):
            raise AttemptError(ErrorKind.CODE, "injected failure")
        there = moved(self.own_space(), parameters, share)
        if self.function in SEVERAL:
            values = SEVERAL[self.function].evaluate(there)
            noisy = {name: value + self.noise * noise_of(seed, name) for name, value in values.items()}
            return {"metrics": noisy, "sems": dict.fromkeys(values, self.noise)}
        exact = FUNCTIONS[self.function].evaluate(there)
        if not self.noise:
            return {"metrics": {"value": exact}}
        metrics = {"value": exact + self.noise * noise_of(seed), "exact": exact}
        return {"metrics": metrics, "sems": {"value": self.noise}}

    def seconds(self, parameters: Mapping[str, Value]) -> float | None:
        """Return the configured duration, if there is one."""
        return self.duration_s or None

    def own_space(self) -> Space:
        """Return the usual domain of the function."""
        from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, SEVERAL

        return (FUNCTIONS if self.function in FUNCTIONS else SEVERAL)[self.function].space

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


def noise_of(seed: int, *more: str) -> float:
    """Return the standard normal draw of a seed, and of further words."""
    return float(np.random.default_rng(derive_seed(seed, "noise", *more)).standard_normal())


def moved(space: Space, parameters: Mapping[str, Value], share: float) -> Mapping[str, Value]:
    """Return where the function is looked up for a share of an evaluation: the configuration itself if it is whole.

    Below, it is moved by `MOVED` times the missing share of each parameter's range, so that an early look is biased:
    the optimum is not quite where it seems to be.
    """
    if share == 1:
        return parameters
    return space.decode(np.clip(space.encode(dict(parameters)) + MOVED * (1 - share), 0, 1))


def fails(seed: int, attempt: int, rate: float) -> bool:
    """Return whether this attempt fails, at a failure rate of `rate`."""
    return derive_seed(seed, "failure", attempt) / 2**31 < rate
