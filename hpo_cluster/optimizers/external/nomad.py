"""NOMAD behind our protocol. It does not know trials in flight: they count as failed until they have a value.

Reference: C. Audet, S. Le Digabel, V. Rochon Montplaisir and C. Tribes, "Algorithm 1027: NOMAD version 4: Nonlinear
optimization with the MADS algorithm", ACM Transactions on Mathematical Software 48(3), 2022.

Symbols: see the documentation of the library, which describes the algorithm.

Deviations from the paper: those of `hpo_cluster.optimizers.external.base`; NOMAD is run again for each proposal, and
its blackbox answers from the history until it wants a point that is not in it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Points
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.optimizers.external.base import External, Library
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import derive_seed

#: Output of the blackbox at a point without a value: worse than any value.
UNKNOWN = b"1e20"

#: Points of finite spaces up to this size are drawn at random: NOMAD would go round in circles and not end.
SMALL = 200

#: Seeds are below this: NOMAD's generator takes as many steps as its seed says before it begins.
SEEDS = 10_000


class NomadSettings(OptimizerSettings):
    """Settings of NOMAD."""

    initial: int = Field(default=10, ge=1, le=100_000, description="points of the Latin hypercube that it starts from")


class Nomad(External):
    """Proposes the points of mesh adaptive direct search."""

    name, module = "nomad", "PyNomad"

    def library(self, data: Dataset) -> Library:
        """Return a search that has seen nothing."""
        return _Search(self.space, self.settings, self.seed)


class _Search:
    """The values of the blackbox, by configuration; NOMAD itself is run when a point is wanted."""

    def __init__(self, space: Space, settings: NomadSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.values: dict[Key, float] = {}  # NaN: in flight, or failed

    def begin(self, row: Row) -> None:
        """Record that a trial was proposed: it counts as failed."""
        self.values.setdefault(key_of(self.space, row.point), math.nan)

    def end(self, row: Row, target: float) -> None:
        """Record the value of a trial."""
        if not math.isnan(target):
            self.values[key_of(self.space, row.point)] = target

    def draw(self, trial: int, attempt: int) -> Points:
        """Return the first point that NOMAD wants and that is not known."""
        import PyNomad

        if attempt or self.space.size <= SMALL:
            raise StopIteration  # it gives a point that is free, or none
        wanted: list[Points] = []

        def blackbox(x: Any) -> int:
            x.setBBO(UNKNOWN)
            if wanted:
                return 1  # until its calls are used up: an evaluation that fails can keep it from ending
            point = np.clip([self._coordinate(i, x.get_coord(i)) for i in range(x.size())], 0.0, 1.0)
            configuration = self.space.decode(point)
            if not self.space.allows(configuration):
                return 1
            target = self.values.get(key_of(self.space, self.space.encode(configuration)))
            if target is None:
                wanted.append(point)
            elif not math.isnan(target):
                x.setBBO(f"{-target!r}".encode())
            return 1

        kinds = ["I" if self._indexed(i) else "R" for i in range(self.space.dim)]
        high = [float(self._last(i)) if self._indexed(i) else 1.0 for i in range(self.space.dim)]
        calls = len(self.values) + 1
        seed = derive_seed(self.seed, "nomad") % SEEDS
        for _ in range(4):  # points that round to a known configuration or are not allowed use up calls too
            PyNomad.setSeed(seed + 1)  # SEED has no effect if it equals the process's last seed
            PyNomad.optimize(
                blackbox,
                [],
                [0.0] * self.space.dim,
                high,
                [
                    "BB_OUTPUT_TYPE OBJ",
                    f"BB_INPUT_TYPE ({' '.join(kinds)})",
                    f"MAX_BB_EVAL {calls}",
                    f"MAX_EVAL {10 * calls + 200}",  # counts answers from its cache too, which else never end
                    f"LH_SEARCH {self.settings.initial} 0",
                    f"SEED {seed}",
                    "DISPLAY_DEGREE 0",
                ],
            )
            if wanted:
                return wanted[0]
            calls *= 2
        raise StopIteration

    def _indexed(self, axis: int) -> bool:
        """Return whether NOMAD sees the index of a value instead of the coordinate."""
        return self.space.parameters[self.space.axes[axis]].cardinality is not None

    def _last(self, axis: int) -> int:
        return (self.space.parameters[self.space.axes[axis]].cardinality or 2) - 1

    def _coordinate(self, axis: int, x: float) -> float:
        """Return the coordinate in the unit cube of a coordinate of NOMAD."""
        parameter = self.space.parameters[self.space.axes[axis]]
        if not self._indexed(axis):
            return float(x)
        index = int(min(max(round(x), 0), self._last(axis)))
        return float(parameter.encode(parameter.value(index)))
