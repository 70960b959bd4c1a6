"""NOMAD behind our protocol. It knows no trials in flight: until their values are there, they are failed ones.

Reference: C. Audet, S. Le Digabel, V. Rochon Montplaisir and C. Tribes, "Algorithm 1027: NOMAD version 4: Nonlinear
optimization with the MADS algorithm", ACM Transactions on Mathematical Software 48(3), 2022.

Symbols: none; the library's own documentation has its algorithms.

Deviations from the paper: those of `hpo_cluster.optimizers.external.base`; NOMAD is run anew for each proposal, its
blackbox answering from the history until it wants a point that is not there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from hpo_cluster.optimizers.ask import Points
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.dataset import Row
from hpo_cluster.optimizers.external.base import External, Library
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key, key_of
from hpo_cluster.trial import derive_seed

#: What NOMAD is told of a point without a value: worse than any.
UNKNOWN = b"1e20"

#: Finite spaces up to this size are drawn from at random: NOMAD goes round in them and does not end.
SMALL = 200

#: NOMAD's generator takes as many steps as its seed says before it begins: seeds are kept small.
SEEDS = 10_000


class NomadSettings(OptimizerSettings):
    """Settings of NOMAD."""

    initial: int = Field(default=10, ge=1, le=100_000, description="points of the Latin hypercube that it starts from")


class Nomad(External):
    """Mesh adaptive direct search."""

    name, module = "nomad", "PyNomad"

    def library(self) -> Library:
        """A search that has seen nothing."""
        return _Search(self.space, self.settings, self.seed)


class _Search:
    """What is known of the blackbox, by configuration; NOMAD itself is run when a point is wanted."""

    def __init__(self, space: Space, settings: NomadSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.values: dict[Key, float] = {}  # NaN: in flight, or failed

    def begin(self, row: Row) -> None:
        """In flight: as if it had failed."""
        self.values.setdefault(key_of(self.space, row.point), math.nan)

    def end(self, row: Row, target: float) -> None:
        """Its value is known from now on."""
        if not math.isnan(target):
            self.values[key_of(self.space, row.point)] = target

    def draw(self, trial: int, attempt: int) -> Points:
        """The first point that NOMAD wants to know and that is not known."""
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
        for _ in range(4):  # values that round to one configuration, and what is not allowed, take calls too
            PyNomad.setSeed(seed + 1)  # SEED does nothing where it is what the process had before
            PyNomad.optimize(
                blackbox,
                [],
                [0.0] * self.space.dim,
                high,
                [
                    "BB_OUTPUT_TYPE OBJ",
                    f"BB_INPUT_TYPE ({' '.join(kinds)})",
                    f"MAX_BB_EVAL {calls}",
                    f"MAX_EVAL {10 * calls + 200}",  # with those from its cache, of which there is no end otherwise
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
        """Whether NOMAD sees the index of a value instead of the coordinate."""
        return self.space.parameters[self.space.axes[axis]].cardinality is not None

    def _last(self, axis: int) -> int:
        return (self.space.parameters[self.space.axes[axis]].cardinality or 2) - 1

    def _coordinate(self, axis: int, x: float) -> float:
        """Coordinate in the unit cube of what NOMAD calls `x`."""
        parameter = self.space.parameters[self.space.axes[axis]]
        if not self._indexed(axis):
            return float(x)
        index = int(min(max(round(x), 0), self._last(axis)))
        return float(parameter.encode(parameter.value(index)))
