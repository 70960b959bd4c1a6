"""Handing out a fixed sequence of points: what the Latin hypercube, Sobol and `bo`'s initial design have in common.

A *design* is an endless sequence of points of the unit cube, cut into blocks. What is proposed next is the first point
of the sequence whose configuration the history does not hold. In an ordinary campaign that is point number t for
trial t; imported trials take nothing from the design, a cancelled trial's point is handed out again, and points that
round to a configuration already seen are passed over, and so are those that the constraints do not allow. Where the
space has priors, the points are warped, so that they lie denser where good values are believed to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.ask import EMPTY, Asking, Found
from hpo_cluster.optimizers.dataset import Memory, Rows
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key, free_point, key_of
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: Block number -> points (``m x d``, unit cube) of that block.
Block = Callable[[int], NDArray[np.float64]]

#: Blocks in a row without a new configuration before the rest of a finite space is drawn from directly, and how many
#: points they must have where most may be not allowed.
PATIENCE, PATIENCE_CONSTRAINED = 8, 4096


class Design:
    """The sequence of an optimizer.

    Args:
        space: the space that its points are decoded in.
        block: gives each block of the sequence; a pure function of the block's number.
        seed: of the campaign; only for drawing from what is left of a nearly exhausted finite space.
    """

    def __init__(self, space: Space, block: Block, seed: int) -> None:
        self.space, self.block, self.seed = space, block, seed
        self._blocks: list[_Read] = []  # a cache, as the next two
        self._seen: set[Key] = set()
        self._memory: Memory = {}

    def ask(
        self, history: pd.DataFrame, n: int, decision: Mapping[str, Any], unspent: Mapping[str, Any] = EMPTY
    ) -> Ask:
        """The next `n` points as proposals, with `decision`, and `unspent` beside it while points are left."""
        asking = Asking(Rows.read(self.space, history, self._memory))
        return asking.answer(n, lambda trial: self.proposed(asking.taken, trial, {}), lambda: decision, unspent)

    def proposed(self, taken: set[Key], trial: int, info: Mapping[str, Any]) -> Found | None:
        """The first point that is not taken, as a proposal's: `info`, and its index in the sequence."""
        found = self.next(taken, trial)
        return None if found is None else (found[0], {**info, "point": found[1]})

    def next(self, taken: set[Key], trial: int) -> tuple[NDArray[np.float64], int | None] | None:
        """First canonical point (``d``) that is not taken, with its index in the sequence.

        The index is None for a point drawn from the rest of a finite space; the whole is None when nothing is left.
        """
        nothing_left = len(taken) >= self.space.size
        for index, point, key in self._points():
            if key not in taken:
                return point, index
            if nothing_left:
                break
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        rest = free_point(self.space, taken, rng)
        return None if rest is None else (rest, None)

    def _points(self) -> Iterator[tuple[int, NDArray[np.float64], Key]]:
        """Canonical points that are allowed, in order, with their indices in the sequence and their keys.

        Ends where `PATIENCE` blocks in a row have nothing new.
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
        """The next block, once those before it have been read."""
        points = self.space.snap(self.space.warp(self.block(number)))
        first, before = sum(block.size for block in self._blocks), len(self._seen)
        numbered = enumerate(zip(points, self.space.allowed(points), strict=True), first)
        allowed = [(index, point, key_of(self.space, point)) for index, (point, good) in numbered if good]
        self._seen.update(key for _, _, key in allowed)
        return _Read(allowed, len(points), len(self._seen) > before)


class _Read(NamedTuple):
    """A block: its points that are allowed, how many it has in all, and whether earlier ones lack some of them."""

    allowed: list[tuple[int, NDArray[np.float64], Key]]
    size: int
    new: bool


def latin_hypercube(points: int, dim: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A Latin hypercube (``points x dim``): each axis has exactly one point in each of `points` equal intervals."""
    strata = np.stack([rng.permutation(points) for _ in range(dim)], axis=1)
    return np.asarray((strata + rng.random((points, dim))) / points, dtype=np.float64)


def lhs_block(points: int, dim: int, seed: int, optimization: str = "none") -> Block:
    """Blocks that are Latin hypercubes of `points` points each, with seeds of their own."""

    def block(number: int) -> NDArray[np.float64]:
        rng = np.random.default_rng(derive_seed(seed, "design", number))
        if optimization == "none":
            return latin_hypercube(points, dim, rng)
        from scipy.stats import qmc

        return np.asarray(qmc.LatinHypercube(dim, optimization=optimization, rng=rng).random(points), dtype=np.float64)

    return block


def sobol_block(dim: int, seed: int) -> Block:
    """Blocks of one scrambled Sobol sequence: 0..63, 64..127, 128..255 and so on; each ends at a power of two."""

    def block(number: int) -> NDArray[np.float64]:
        from scipy.stats import qmc

        engine = qmc.Sobol(dim, scramble=True, rng=np.random.default_rng(derive_seed(seed, "design")))
        points = np.asarray(engine.random_base2(6 + number), dtype=np.float64)
        return points if number == 0 else points[len(points) // 2 :]

    return block
