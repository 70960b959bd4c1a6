"""Points of a space that are free, and the configurations that remain of a finite one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.space import Space

#: Identity of a configuration: equal keys mean "the same evaluation".
Key: TypeAlias = tuple[float, ...]


#: Random points drawn, where there are constraints, for each allowed one that is wanted.
DRAWS_PER_ALLOWED = 100


#: Finite spaces up to this size are enumerated when drawing no longer finds a free configuration.
ENUMERABLE = 100_000


def key_of(space: Space, point: NDArray[np.float64]) -> Key:
    """Identity of the configuration at a *canonical* point (``d``). Reals closer than 1e-6 of their range are one."""
    return tuple(
        round(float(u), 6 if parameter.cardinality is None else 12)
        for (_, parameter), u in zip(space, point, strict=True)
    )


def free_point(space: Space, taken: set[Key], rng: np.random.Generator, draws: int = 200) -> NDArray[np.float64] | None:
    """A canonical point, uniform or as the priors have it, whose configuration is allowed and not taken.

    Draws up to `draws` allowed points, then lists what remains of the space where it is finite and small enough.
    None when there is none left.
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
    """Canonical points (``m x d``) of all allowed configurations of a finite space that are not taken, in order."""
    return np.array(list(_remaining(space, taken)), dtype=np.float64).reshape(-1, space.dim)


def _remaining(space: Space, taken: set[Key]) -> Iterator[NDArray[np.float64]]:
    for configuration in space.combinations(space.order):
        if space.allows(configuration):
            point = space.encode(configuration)
            if key_of(space, point) not in taken:
                yield point


def axis_values(space: Space, name: str) -> NDArray[np.float64]:
    """Canonical coordinates (``k``, increasing) of a parameter that has finitely many values."""
    parameter = space.parameters[name]
    if parameter.cardinality is None:
        raise ValueError(f"{name} is real: it has no list of values")
    return np.array([parameter.encode(value) for value in parameter.values])
