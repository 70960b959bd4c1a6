"""Grid search: every combination of a few values of each parameter.

Use it for small spaces and for pictures; in more than three dimensions random search covers the parameters that matter
better. Of the history it uses only the configurations that are taken, so any number of trials can run at once,
and it ends by itself when every point was evaluated.

Reference: the full factorial design; J. Bergstra and Y. Bengio, "Random Search for Hyper-Parameter Optimization",
Journal of Machine Learning Research 13, 281-305, 2012, section 1, discuss when it is a bad choice.

Symbols: ``k_q`` number of values of parameter q; ``N = prod k_q`` points; point i has the digits of i in the mixed
radix (k_1, ..., k_d), the last parameter changing fastest.

Deviations from the paper: the points are handed out in a random order (`shuffle`), so that an interrupted grid still
covers the whole space; points that the constraints do not allow are left out, and so are all but the first of those
that differ in inactive parameters only. A prior moves the levels to its quantiles.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.batch import Batch, Found
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key, axis_values, key_of
from hpo_cluster.text import instead_of
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: Most points of a grid: each ask walks it from its start, and a larger one is a mistake anyway.
MAX_POINTS = 1_000_000

#: Most points if constraints or conditions make it necessary to check each point before the first ask.
MAX_CHECKED = 100_000

#: Levels of a parameter that a mapping does not name.
DEFAULT_LEVELS = 3


class GridSettings(OptimizerSettings):
    """Settings of grid search."""

    levels: int | dict[str, int] = Field(
        default=DEFAULT_LEVELS,
        description="values of each parameter, its ends included; or a mapping from parameter to number of values "
        f"({DEFAULT_LEVELS} if none is given). An unordered choice keeps all its values unless it is named",
    )
    shuffle: bool = Field(default=True, description="hand the points out in a random order instead of row by row")


class Grid:
    """Proposes all combinations of a few values of each parameter.

    Args:
        space: what to search.
        settings: number of levels, order.
        seed: of the campaign; only the order of the points depends on it.

    Raises:
        ConfigError: levels below 1, levels of unknown parameters, more than `MAX_POINTS` points (`MAX_CHECKED` if the
            points have to be checked), or no allowed point.
    """

    def __init__(self, space: Space, settings: GridSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        named = settings.levels if isinstance(settings.levels, dict) else {}
        default = settings.levels if isinstance(settings.levels, int) else DEFAULT_LEVELS
        faults = []
        for name in named:
            if name not in space.parameters:
                faults.append(
                    f"optimizer.levels.{name}: is not a parameter of the space; {instead_of(name, space.names)}"
                )
        for name, levels in [("", default), *named.items()]:
            if levels < 1:
                faults.append(f"optimizer.levels{'.' if name else ''}{name}: must be at least 1, not {levels}")
        if faults:
            raise ConfigError(faults)
        self.axes = [_levels(space, name, named.get(name), default) for name in space.axes]
        self.size = math.prod(len(axis) for axis in self.axes)
        most = MAX_POINTS if not space.constraints and not space.parents else MAX_CHECKED
        if self.size > most:
            sizes = " x ".join(str(len(axis)) for axis in self.axes)
            raise ConfigError(
                [f"optimizer.levels: the grid has {sizes} = {self.size} points; at most {most} are accepted"],
                hint="lower optimizer.levels, or use optimizer=sobol",
            )
        self.indices = self._indices()
        if not len(self.indices):
            raise ConfigError(
                [f"optimizer=grid: the constraints allow none of the grid's {self.size} points"],
                hint="raise optimizer.levels, or use optimizer=sobol",
            )
        self._order: NDArray[np.int64] | None = None  # a cache, as the next one
        self._data: Dataset | None = None

    def point(self, index: int) -> NDArray[np.float64]:
        """Return the point (``d``) of a number in the mixed radix; it is canonical if all parameters are active."""
        digits = np.unravel_index(index, [len(axis) for axis in self.axes])
        return np.array([axis[int(digit)] for axis, digit in zip(self.axes, digits, strict=True)], dtype=np.float64)

    def _indices(self) -> NDArray[np.int64]:
        """Return the numbers of the allowed points, each configuration once."""
        if not self.space.constraints and not self.space.parents:
            return np.arange(self.size)
        seen, found = set[Key](), list[int]()
        for index in range(self.size):
            configuration = self.space.decode(self.point(index))
            key = key_of(self.space, self.space.encode(configuration))
            if key not in seen and self.space.allows(configuration):
                seen.add(key)
                found.append(index)
        return np.array(found, dtype=np.int64)

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        batch = Batch(data, n)
        if self._order is None:
            rng = np.random.default_rng(derive_seed(self.seed, "design"))
            self._order = rng.permutation(self.indices) if self.settings.shuffle else self.indices
        for index in self._order:
            if len(batch.rows) == n:
                break
            point = self.point(int(index))
            if self.space.parents:
                point = self.space.snap(point[None])[0]
            if key_of(self.space, point) not in batch.taken:
                batch.add(Found(point, {"point": int(index)}))
        return batch.ask({"optimizer": "grid", "points": len(self.indices)})


def _levels(space: Space, name: str, named: int | None, default: int) -> NDArray[np.float64]:
    """Return the canonical coordinates of the levels of a parameter."""
    parameter = space.parameters[name]
    levels = named or default
    whole = parameter.unordered and named is None
    if parameter.cardinality is not None and (whole or parameter.cardinality <= levels):
        return axis_values(space, name)
    ends = np.linspace(0.0, 1.0, levels) if levels > 1 else np.array([0.5])
    return np.array(
        list(dict.fromkeys(parameter.encode(parameter.decode(parameter.warp(float(u)))) for u in ends)),
        dtype=np.float64,
    )
