"""The versions that a driver records when it starts, and a job with its result."""

from __future__ import annotations

import importlib.metadata
import sys

#: Packages whose versions are recorded, if they are installed.
RECORDED_PACKAGES = (
    *("torch", "litgpt", "lm_eval", "transformers", "tokenizers", "datasets", "numpy", "hpo_cluster"),
    *("botorch", "gpytorch", "scipy"),  # of the driver: the models that propose
    *("optuna", "cmaes", "nevergrad", "PyNomadBBO"),  # of the driver: the optimizers of other libraries
)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a result."""
    versions = {"python": sys.version.split()[0]}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
