"""Hand out a fixed sequence of points: what the Latin hypercube, Sobol and initial designs have in common.

A *design* is an endless sequence of points of the unit cube, cut into blocks. What is proposed next is the first point
of the sequence whose configuration the history does not hold. In an ordinary campaign that is point number t for
trial t; imported trials take nothing from the design, a cancelled trial's point is handed out again, and points that
round to a configuration already seen are passed over, and so are those that the constraints do not allow. If the
space has priors, the points are warped, so that they are denser where the priors are high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.batch import Batch, Found
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key, free_point, key_of
from hpo_cluster.trial import Ask, derive_seed

#: A function that returns the points (``m x d``, unit cube) of the block with a given number.
Block = Callable[[int], NDArray[np.float64]]

#: Blocks in a row without a new configuration before points are drawn from the rest of a finite space, and the points
#: that these blocks must have at least if there are constraints, which may allow only few of them.
PATIENCE, PATIENCE_CONSTRAINED = 8, 4096


class Design:
    """Hands out the points of a sequence.

    Args:
        space: the space that the points are decoded in.
        block: returns each block of the sequence; a pure function of the block's number.
        seed: of the campaign; only for points drawn from what is left of a nearly exhausted finite space.
    """

    def __init__(self, space: Space, block: Block, seed: int) -> None:
        self.space, self.block, self.seed = space, block, seed
        self._blocks: list[_Read] = []  # a cache, as the next one
        self._seen: set[Key] = set()

    def ask(self, data: Dataset, n: int, decision: Mapping[str, Any]) -> Ask:
        """Propose the next `n` points."""
        batch = Batch(data, n)
        for trial in batch.trials:
            found = self.next(batch.taken, trial)
            if found is None:
                break
            batch.add(found)
        return batch.ask(decision)

    def next(self, taken: set[Key], trial: int, **info: Any) -> Found | None:
        """Return the first canonical point that is not taken; None if nothing is left.

        Its information is `info` and ``point``, the index in the sequence: None for a point drawn from the rest of a
        finite space.
        """
        nothing_left = len(taken) >= self.space.size
        for index, point, key in self._points():
            if key not in taken:
                return Found(point, {**info, "point": index})
            if nothing_left:
                break
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        rest = free_point(self.space, taken, rng)
        return None if rest is None else Found(rest, {**info, "point": None})

    def _points(self) -> Iterator[tuple[int, NDArray[np.float64], Key]]:
        """Yield the canonical points that are allowed, in order, with their indices in the sequence and their keys.

        Stops after `PATIENCE` blocks in a row without a new configuration.
        """
        number, stale, passed = 0, 0, 0
        least = PATIENCE_CONSTRAINED if self.space.constraints else 0
        while stale < PATIENCE or passed < least:
            if number == len(self._blocks):
                self._blocks.append(self._read(number))
            block = self._blocks[number]
            yield from block.allowed
            stale, passed = (0, 0) if block.new else (stale + 1, passed + block.size)
            number += 1

    def _read(self, number: int) -> _Read:
        """Read the block of this number; those before it have been read."""
        points = self.space.snap(self.space.warp(self.block(number)))
        first, before = sum(block.size for block in self._blocks), len(self._seen)
        numbered = enumerate(zip(points, self.space.allowed(points), strict=True), first)
        allowed = [(index, point, key_of(self.space, point)) for index, (point, good) in numbered if good]
        self._seen.update(key for _, _, key in allowed)
        return _Read(allowed, len(points), len(self._seen) > before)


class _Read(NamedTuple):
    """A block: its allowed points, the number of all its points, and whether some are not in an earlier block."""

    allowed: list[tuple[int, NDArray[np.float64], Key]]
    size: int
    new: bool


def latin_hypercube(points: int, dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a Latin hypercube (``points x dim``): one point in each of `points` equal intervals of each axis."""
    strata = np.stack([rng.permutation(points) for _ in range(dim)], axis=1)
    return np.asarray((strata + rng.random((points, dim))) / points, dtype=np.float64)


def lhs_block(points: int, dim: int, seed: int, optimization: str = "none") -> Block:
    """Return blocks that are independent Latin hypercubes of `points` points each."""

    def block(number: int) -> NDArray[np.float64]:
        rng = np.random.default_rng(derive_seed(seed, "design", number))
        if optimization == "none":
            return latin_hypercube(points, dim, rng)
        from scipy.stats import qmc

        return np.asarray(qmc.LatinHypercube(dim, optimization=optimization, rng=rng).random(points), dtype=np.float64)

    return block


def sobol_block(dim: int, seed: int) -> Block:
    """Return the blocks of one scrambled Sobol sequence: points 0..63, 64..127, 128..255 and so on."""

    def block(number: int) -> NDArray[np.float64]:
        from scipy.stats import qmc

        engine = qmc.Sobol(dim, scramble=True, rng=np.random.default_rng(derive_seed(seed, "design")))
        points = np.asarray(engine.random_base2(6 + number), dtype=np.float64)
        return points if number == 0 else points[len(points) // 2 :]

    return block
