"""The libraries that compute an optimizer's proposals: with another version of one, the proposals may be others."""

from __future__ import annotations

from collections.abc import Mapping

_MODEL = ("botorch", "gpytorch", "torch", "scipy", "numpy")

#: By optimizer: names of packages, the ones that matter most first. The others compute with numpy alone.
LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "bo": _MODEL,
    "turbo": _MODEL,
    "mosaic": _MODEL,
    "bamsoo": _MODEL,
    "sobol": ("scipy", "numpy"),
    "optuna": ("optuna", "cmaes", "torch", "scipy", "numpy"),
    "nevergrad": ("nevergrad", "numpy"),
    "nomad": ("PyNomadBBO", "numpy"),
}


def libraries_of(optimizer: str) -> tuple[str, ...]:
    """Return the packages that an optimizer computes with."""
    return LIBRARIES.get(optimizer, ("numpy",))
