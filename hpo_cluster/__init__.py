"""Hyperparameter optimization of LLM fine-tuning on Slurm and OAR clusters.

These are the names that your own program needs. Each is loaded when it is first used, so importing the package takes
almost no time::

    history = hpo_cluster.load_history("campaigns/first")
    proposals = hpo_cluster.make_optimizer("bo", space, seed=0).ask(history, n=4).proposals
    result = hpo_cluster.optimize(fn, space, optimizer="bo", budget=30, workers=4)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpo_cluster.driver.in_process import optimize
    from hpo_cluster.optimizers.registry import make_optimizer
    from hpo_cluster.record.curves import load_curves
    from hpo_cluster.record.history import load_history
    from hpo_cluster.record.items import load_items
    from hpo_cluster.space import Categorical, Float, Integer, Prior, Space

__version__ = "0.1.0"

__all__ = [
    "Categorical",
    "Float",
    "Integer",
    "Prior",
    "Space",
    "load_curves",
    "load_history",
    "load_items",
    "make_optimizer",
    "optimize",
]

_HOMES = {
    "Categorical": "space",
    "Float": "space",
    "Integer": "space",
    "Prior": "space",
    "Space": "space",
    "load_curves": "record.curves",
    "load_history": "record.history",
    "load_items": "record.items",
    "make_optimizer": "optimizers.registry",
    "optimize": "driver.in_process",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
