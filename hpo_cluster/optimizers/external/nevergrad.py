"""Nevergrad's algorithms behind our protocol. Trials in flight are candidates without a loss.

Reference: J. Rapin and O. Teytaud, "Nevergrad: A gradient-free optimization platform", 2018.

Symbols: see the documentation of the library, which describes the algorithms.

Deviations from the papers: those of `hpo_cluster.optimizers.external.base`.
"""

from __future__ import annotations

import contextlib
import gc
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Points
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.optimizers.external.base import External, Library, quiet
from hpo_cluster.space import Space
from hpo_cluster.text import did_you_mean
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd


class NevergradSettings(OptimizerSettings):
    """Settings of Nevergrad."""

    algorithm: str = Field(
        default="CMA", description="a name of Nevergrad's registry: CMA, OnePlusOne, TwoPointsDE, PSO…"
    )
    budget: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="evaluations that the algorithm plans for; empty: the campaign's budget (100 if it has none)",
    )
    workers: int = Field(
        default=4,
        ge=2,
        le=100_000,
        description="parallel evaluations that the algorithm plans for; at least 2, since what is made for one at a "
        "time waits for ever if a trial fails",
    )


class Nevergrad(External):
    """Proposes the candidates of an algorithm of Nevergrad's registry."""

    name = module = "nevergrad"

    def __init__(self, space: Space, settings: NevergradSettings, seed: int) -> None:
        super().__init__(space, settings, seed)
        with quiet(0):
            import nevergrad

            known = sorted(nevergrad.optimizers.registry)
        if settings.algorithm not in known:
            close = did_you_mean(settings.algorithm, known).strip() or "some are: CMA, OnePlusOne, TwoPointsDE, PSO"
            fault = f"optimizer.algorithm: {settings.algorithm!r} is not one of Nevergrad's {len(known)} algorithms"
            raise ConfigError([f"{fault}; {close}"])
        if nevergrad.optimizers.registry[settings.algorithm].no_parallelization:
            fault = f"optimizer.algorithm: {settings.algorithm} cannot have several trials in flight, nor lose one"
            raise ConfigError([f"{fault}; CMA, TwoPointsDE and PSO can"])

    def library(self, data: Dataset) -> Library:
        """Return the algorithm before the first event."""
        return _Algorithm(self.space, self.settings, self.seed)

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        threads = threading.active_count()
        try:
            return super().ask(history, n)
        finally:
            if threading.active_count() > threads:
                gc.collect()  # some algorithms hold threads, which would keep Python from ending


class _Algorithm:
    """An optimizer of Nevergrad on the unit cube; asking it again in the same order gives the same candidates."""

    def __init__(self, space: Space, settings: NevergradSettings, seed: int) -> None:
        import nevergrad

        self.space = space
        cube = nevergrad.p.Array(init=np.full(space.dim, 0.5)).set_bounds(0.0, 1.0)
        cube.random_state = np.random.RandomState(derive_seed(seed, "nevergrad"))
        make = nevergrad.optimizers.registry[settings.algorithm]
        self.optimizer = make(parametrization=cube, budget=settings.budget or 100, num_workers=settings.workers)
        self.candidates: dict[int, Any] = {}

    def begin(self, row: Row) -> None:
        """Ask for the candidate again; if the history has another configuration, make a candidate of that one."""
        candidate = self.optimizer.ask()
        if self.space.decode(np.clip(candidate.value, 0.0, 1.0)) != row.configuration:
            candidate = self.optimizer.parametrization.spawn_child(new_value=np.array(row.point))
        self.candidates[row.trial] = candidate

    def end(self, row: Row, target: float) -> None:
        """Tell the algorithm the loss."""
        import nevergrad

        if not math.isnan(target):
            with contextlib.suppress(nevergrad.errors.TellNotAskedNotSupportedError):
                self.optimizer.tell(self.candidates[row.trial], -target)

    def draw(self, trial: int, attempt: int) -> Points:
        """Return the point of the next candidate."""
        return np.asarray(self.optimizer.ask().value, dtype=np.float64)
