"""The table of optimizers: the name that a user types, the settings and the class of each.

A new optimizer is one file next to the others and one row here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
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
from hpo_cluster.optimizers.rungs.asha import ASHA, ASHASettings
from hpo_cluster.optimizers.rungs.bohb import BOHB, BOHBSettings
from hpo_cluster.optimizers.rungs.hyperband import Hyperband, HyperbandSettings
from hpo_cluster.optimizers.starting_points import Started
from hpo_cluster.settings import faults_of
from hpo_cluster.space import Space
from hpo_cluster.text import did_you_mean, instead_of


class Entry(NamedTuple):
    """One row of the table.

    Args:
        settings: class of the settings.
        optimizer: class of the optimizer, made with (space, settings, seed).
        several_objectives: whether it can optimise several objectives at once, and keep constraints on measured values.
        needs_fidelity: whether it makes sense with rungs only (``fidelity=steps``).
    """

    settings: type[OptimizerSettings]
    optimizer: Any
    several_objectives: bool = False
    needs_fidelity: bool = False


OPTIMIZERS: Mapping[str, Entry] = {
    "random": Entry(RandomSettings, RandomSearch, several_objectives=True),
    "lhs": Entry(LHSSettings, LatinHypercube, several_objectives=True),
    "sobol": Entry(SobolSettings, Sobol, several_objectives=True),
    "grid": Entry(GridSettings, Grid, several_objectives=True),
    "bo": Entry(BOSettings, BO, several_objectives=True),
    "soo": Entry(SOOSettings, SOO),
    "bamsoo": Entry(BaMSOOSettings, BaMSOO),
    "direct": Entry(DirectSettings, Direct),
    "direct_l": Entry(DirectSettings, DirectL),
    "fda": Entry(FDASettings, FDA),
    "turbo": Entry(TurboSettings, Turbo),
    "mosaic": Entry(MosaicSettings, Mosaic),
    "asha": Entry(ASHASettings, ASHA, needs_fidelity=True),
    "hyperband": Entry(HyperbandSettings, Hyperband, needs_fidelity=True),
    "bohb": Entry(BOHBSettings, BOHB, needs_fidelity=True),
    "optuna": Entry(OptunaSettings, Optuna, several_objectives=True),
    "nevergrad": Entry(NevergradSettings, Nevergrad),
    "nomad": Entry(NomadSettings, Nomad),
}


def make_optimizer(name: str, space: Space | Mapping[str, Any], seed: int = 0, **settings: Any) -> Optimizer:
    """Return the optimizer of that name; if the space has starting points, it proposes them first.

    Args:
        name: a key of `OPTIMIZERS`.
        space: what to search, or its JSON form: ``{"lr": {"low": 1e-5, "high": 1e-1, "log": True}}``.
        seed: every random number that the optimizer uses comes from it; a whole number, at least 0.
        settings: fields of the optimizer's settings class.

    Raises:
        ConfigError: with every fault: of the name, the settings, the space and the seed.

    Example:
        >>> import pandas as pd
        >>> optimizer = make_optimizer("sobol", {"x": {"low": 0.0, "high": 1.0}}, seed=0)
        >>> len(optimizer.ask(pd.DataFrame(), n=3).proposals)
        3
    """
    typed, space = read_arguments(name, space, seed, settings, ("name", "space", "seed"))
    return build_optimizer(name, space, typed, int(seed))


def read_arguments(
    name: str,
    space: Space | Mapping[str, Any],
    seed: int,
    settings: Mapping[str, Any],
    own: Collection[str],
    faults: Sequence[str] = (),
) -> tuple[OptimizerSettings, Space]:
    """Return the typed settings of an optimizer and the space, as a Python program gave them.

    Args:
        name: of the optimizer.
        space: a space, or its JSON form.
        seed: what everything random follows from.
        settings: fields of the optimizer's settings class.
        own: names of the function's other arguments, of which a setting that does not exist may be a misspelt one.
        faults: those of the other arguments.

    Raises:
        ConfigError: with `faults`, and every fault of these arguments.
    """
    found = list(faults)
    if not isinstance(seed, Integral) or isinstance(seed, bool) or seed < 0:
        found.append(f"seed={seed!r}: must be an integer, at least 0")
    typed, made = OptimizerSettings(), None
    try:
        typed = make_settings(name, settings, own)
    except ConfigError as error:
        found += [fault.removeprefix("optimizer.") for fault in error.faults]
    try:
        made = Space.of(space)
    except ConfigError as error:
        found += error.faults
    if found or made is None:
        raise ConfigError(found)
    return typed, made


def build_optimizer(name: str, space: Space, settings: OptimizerSettings, seed: int) -> Optimizer:
    """Return the optimizer of that name, made with typed settings; it proposes the space's starting points first.

    Raises:
        ConfigError: with every reason why it cannot search that space with these settings.
    """
    optimizer: Optimizer = OPTIMIZERS[name].optimizer(space, settings, seed)
    return Started(optimizer) if space.start else optimizer


def several_faults(name: str, settings: OptimizerSettings) -> list[str]:
    """Return why an optimizer with these settings cannot have several objectives; empty if it can."""
    if OPTIMIZERS[name].several_objectives:
        return settings.several_faults
    return [f"optimizer={name}: has one objective only, and objective.metrics names several; {_those_of_several()}"]


def constraint_faults(name: str, settings: OptimizerSettings) -> list[str]:
    """Return why an optimizer with these settings cannot have constraints on what is measured; empty if it can."""
    if OPTIMIZERS[name].several_objectives:
        return settings.constraint_faults
    return [f"optimizer={name}: cannot keep objective.constraints; {_those_of_several()}"]


def _those_of_several() -> str:
    return "accepted: " + ", ".join(name for name, entry in OPTIMIZERS.items() if entry.several_objectives)


def make_settings(name: str, settings: Mapping[str, Any], own: Collection[str] = ()) -> OptimizerSettings:
    """Return the typed settings of the optimizer of that name; `own` are names that may be meant instead of a setting.

    Raises:
        ConfigError: with every fault.
    """
    if name not in list(OPTIMIZERS):  # a list: what a program passes as the name may not be hashable
        raise ConfigError([f"optimizer: {name!r} is unknown; {instead_of(str(name), OPTIMIZERS)}"])
    cls = OPTIMIZERS[name].settings
    try:
        return cls(**settings)
    except ValidationError as error:
        accepted = list(cls.model_fields)
        faults = []
        for fault in faults_of(error, cls, "optimizer"):
            if fault.kind == "extra_forbidden":
                word = fault.loc[-1]
                some = instead_of(word, accepted) if accepted else "it has none"
                if not did_you_mean(word, accepted) and (close := did_you_mean(word, own)):
                    some = close.strip()
                faults.append(f"{fault.key}: is not a setting of {name}; {some}")
            else:
                faults.append(str(fault))
        raise ConfigError(faults) from None
