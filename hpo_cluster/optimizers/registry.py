"""The table of optimizers: the name that a user types, the settings and the class of each.

A new optimizer is one file next to the others and one row here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.base import Optimizer, OptimizerSettings
from hpo_cluster.optimizers.bayesian.bo import BO, BOSettings
from hpo_cluster.optimizers.bayesian.mosaic import Mosaic, MosaicSettings
from hpo_cluster.optimizers.bayesian.turbo import Turbo, TurboSettings
from hpo_cluster.optimizers.designs.grid import Grid, GridSettings
from hpo_cluster.optimizers.designs.lhs import LatinHypercube, LHSSettings
from hpo_cluster.optimizers.designs.random_search import RandomSearch, RandomSettings
from hpo_cluster.optimizers.designs.sobol import Sobol, SobolSettings
from hpo_cluster.optimizers.external.nevergrad import Nevergrad, NevergradSettings
from hpo_cluster.optimizers.external.nomad import Nomad, NomadSettings
from hpo_cluster.optimizers.external.optuna import Optuna, OptunaSettings
from hpo_cluster.optimizers.partition.bamsoo import BaMSOO, BaMSOOSettings
from hpo_cluster.optimizers.partition.direct import Direct, DirectL, DirectSettings
from hpo_cluster.optimizers.partition.fda import FDA, FDASettings
from hpo_cluster.optimizers.partition.soo import SOO, SOOSettings
from hpo_cluster.optimizers.starting_points import Started
from hpo_cluster.settings import faults_of
from hpo_cluster.space import Space


class Entry(NamedTuple):
    """One row of the table: the class of the settings, and that of the optimizer, made with (space, settings, seed)."""

    settings: type[OptimizerSettings]
    optimizer: Any


OPTIMIZERS: Mapping[str, Entry] = {
    "random": Entry(RandomSettings, RandomSearch),
    "lhs": Entry(LHSSettings, LatinHypercube),
    "sobol": Entry(SobolSettings, Sobol),
    "grid": Entry(GridSettings, Grid),
    "bo": Entry(BOSettings, BO),
    "soo": Entry(SOOSettings, SOO),
    "bamsoo": Entry(BaMSOOSettings, BaMSOO),
    "direct": Entry(DirectSettings, Direct),
    "direct_l": Entry(DirectSettings, DirectL),
    "fda": Entry(FDASettings, FDA),
    "turbo": Entry(TurboSettings, Turbo),
    "mosaic": Entry(MosaicSettings, Mosaic),
    "optuna": Entry(OptunaSettings, Optuna),
    "nevergrad": Entry(NevergradSettings, Nevergrad),
    "nomad": Entry(NomadSettings, Nomad),
}


def make_optimizer(name: str, space: Space | Mapping[str, Any], seed: int = 0, **settings: Any) -> Optimizer:
    """Return the optimizer of that name; if the space has starting points, it proposes them first.

    Args:
        name: a key of `OPTIMIZERS`.
        space: what to search, or its JSON form: ``{"lr": {"low": 1e-5, "high": 1e-1, "log": True}}``.
        seed: every random number that the optimizer uses comes from it.
        settings: fields of the optimizer's settings class.

    Raises:
        ConfigError: an unknown name; or every fault of the settings, or of the space.
    """
    entry = _entry(name)
    if not isinstance(space, Space):
        space = Space.from_json(space)
    optimizer: Optimizer = entry.optimizer(space, make_settings(name, settings), seed)
    return Started(optimizer) if space.start else optimizer


def make_settings(name: str, settings: Mapping[str, Any]) -> OptimizerSettings:
    """Return the typed settings of the optimizer of that name. Raises ConfigError with every fault."""
    entry = _entry(name)
    try:
        return entry.settings(**settings)
    except ValidationError as error:
        accepted = list(entry.settings.model_fields)
        some = f"accepted: {', '.join(accepted)}" if accepted else "it has none"
        faults = []
        for fault in faults_of(error, entry.settings, "optimizer"):
            if fault.kind == "extra_forbidden":
                faults.append(f"{fault.key}: is no setting of {name}{_meant(fault.loc[-1], accepted)} ({some})")
            else:
                faults.append(str(fault))
        raise ConfigError(faults) from None


def _entry(name: str) -> Entry:
    if name not in OPTIMIZERS:
        meant = _meant(name, list(OPTIMIZERS))
        raise ConfigError([f"optimizer: {name!r} is unknown{meant}; accepted: {', '.join(OPTIMIZERS)}"])
    return OPTIMIZERS[name]


def _meant(name: str, accepted: list[str]) -> str:
    close = difflib.get_close_matches(name, accepted, 1)
    return f"; did you mean {close[0]}?" if close else ""
