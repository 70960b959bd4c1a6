"""The optional libraries of other tools: one message with the command to type if one is missing."""

from __future__ import annotations

import importlib.util

from hpo_cluster.errors import ConfigError

#: By the name that users type: the modules that are needed.
MODULES = {
    "optuna": ("optuna",),
    "mlflow": ("mlflow",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}


def library_fault(name: str) -> str:
    """Return what to type if a library is not installed; empty if it is, or if none is needed."""
    missing = [module for module in MODULES.get(name, ()) if not _is_installed(module)]
    return f"{name}: {', '.join(missing)} is not installed; type: pip install 'hpo_cluster[{name}]'" if missing else ""


def _is_installed(module: str) -> bool:
    """Return whether a module can be imported; a folder of that name, as wandb writes them, is none."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def need(name: str) -> None:
    """Raise ConfigError with the command to type if a library is not installed."""
    if fault := library_fault(name):
        raise ConfigError([fault])
