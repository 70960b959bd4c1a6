"""Launchers, which run jobs: the only part of the package that knows submitit and schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpo_cluster.launchers.base import Launcher, LauncherSettings
from hpo_cluster.launchers.local import LocalLauncher, LocalSettings
from hpo_cluster.launchers.oar import OarLauncher, OarSettings
from hpo_cluster.launchers.slurm import SlurmLauncher, SlurmSettings

#: Kind -> (settings, launcher).
LAUNCHERS: Mapping[str, tuple[type[LauncherSettings], Callable[[Any], Launcher]]] = {
    "local": (LocalSettings, LocalLauncher),
    "oar": (OarSettings, OarLauncher),
    "slurm": (SlurmSettings, SlurmLauncher),
}


def make_launcher(settings: LauncherSettings) -> Launcher:
    """Return the launcher that the settings describe."""
    return LAUNCHERS[settings.kind][1](settings)
