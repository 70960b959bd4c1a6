"""Free points of a space, and the remaining configurations of a finite space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.space import Space

#: Identity of a configuration: two configurations with equal keys are the same evaluation.
Key: TypeAlias = tuple[float, ...]


#: With constraints, number of random points to draw for each allowed point that is wanted.
DRAWS_PER_ALLOWED = 100


#: Largest size of a finite space that is enumerated when random draws no longer find a free configuration.
ENUMERABLE = 100_000


def key_of(space: Space, point: NDArray[np.float64]) -> Key:
    """Return the key of the configuration at a *canonical* point (``d``). Reals are rounded to 1e-6 of their range."""
    return tuple(
        round(float(u), 6 if parameter.cardinality is None else 12)
        for (_, parameter), u in zip(space, point, strict=True)
    )


def free_point(space: Space, taken: set[Key], rng: np.random.Generator, draws: int = 200) -> NDArray[np.float64] | None:
    """Return a random canonical point whose configuration is allowed and not taken; None if there is none left.

    The point is uniform, or distributed as the priors. Up to `draws` allowed points are drawn; if all are taken, what
    remains of the space is listed, if the space is finite and small enough.
    """
    if len(taken) >= space.size and not any(True for _ in _remaining(space, taken)):
        return None
    tries = draws * (DRAWS_PER_ALLOWED if space.constraints else 1)
    for _ in range(tries):
        configuration = space.decode(space.warp(rng.random((1, space.dim)))[0])
        if not space.allows(configuration):
            continue
        point = space.encode(configuration)
        if key_of(space, point) not in taken:
            return point
        draws -= 1
        if draws == 0:
            break
    if space.size > ENUMERABLE:
        return None
    remaining = list(_remaining(space, taken))
    return remaining[int(rng.integers(len(remaining)))] if remaining else None


def remaining_points(space: Space, taken: set[Key]) -> NDArray[np.float64]:
    """Return the canonical points (``m x d``) of a finite space's allowed, untaken configurations, in order."""
    return np.array(list(_remaining(space, taken)), dtype=np.float64).reshape(-1, space.dim)


def _remaining(space: Space, taken: set[Key]) -> Iterator[NDArray[np.float64]]:
    for configuration in space.combinations(space.order):
        if space.allows(configuration):
            point = space.encode(configuration)
            if key_of(space, point) not in taken:
                yield point


def axis_values(space: Space, name: str) -> NDArray[np.float64]:
    """Return the canonical coordinates (``k``, increasing) of a parameter with finitely many values."""
    parameter = space.parameters[name]
    if parameter.cardinality is None:
        raise ValueError(f"{name} is real: it has no list of values")
    return np.array([parameter.encode(value) for value in parameter.values])
