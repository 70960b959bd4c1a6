"""Several campaigns from one command line, as with Hydra's multirun; all are checked before the first starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob

from hpo_cluster.cli.config.compose import compose, parsed
from hpo_cluster.cli.config.groups import GROUPS, search_dirs
from hpo_cluster.cli.config.schema import DISCRIMINATORS, HINT, Config
from hpo_cluster.cli.config.with_hydra import searching
from hpo_cluster.errors import ConfigError


def expand(overrides: Sequence[str], *, config_dir: Path | None = None, faults: Sequence[str] = ()) -> list[list[str]]:
    """Return all combinations of overrides that list several values, as Hydra's multirun does: one list for each.

    Raises:
        ConfigError: with every override that is malformed.
    """
    known, faults = faults, []
    axes: list[list[str]] = []
    with searching(search_dirs(Path.cwd(), config_dir)):
        for text in overrides:
            override = parsed(text, faults)
            if override is None or not override.is_sweep_override():
                axes.append([text])
            elif not override.is_discrete_sweep():
                faults.append(
                    f"{text}: has infinitely many values, and a campaign needs one; accepted: a,b  choice(a,b)  "
                    "range(1,4)  glob(*); an interval that is searched is a parameter: +space.NAME={low: 0, high: 1}"
                )
            elif "glob(" in text and any(isinstance(value, Glob) for value in override.sweep_iterator()):
                faults.append(f"{text}: glob cannot be mixed with other values; several patterns: glob([so*,d*])")
            elif values := [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]:
                axes.append(values)
            else:
                faults.append(f"{text}: lists nothing; glob(PATTERN) lists options of a group: {', '.join(GROUPS)}")
    if faults:
        raise ConfigError([*known, *faults], HINT)
    return [list(combination) for combination in itertools.product(*axes)]


def compose_all(combinations: Sequence[Sequence[str]], *, apart: bool = True, **options: Any) -> list[Config]:
    """Return the configurations of several campaigns, all checked before the first starts.

    Args:
        combinations: overrides of each campaign.
        apart: whether two campaigns in one folder are a fault.
        options: as `compose` takes them.

    Raises:
        ConfigError: with all faults of all combinations, each once.
    """
    configs: list[Config] = []
    found: dict[str, list[str]] = {}
    hint = HINT
    for combination in combinations:
        try:
            configs.append(compose(combination, **options))
        except ConfigError as error:
            hint = error.hint or hint
            for fault in error.faults:
                found.setdefault(fault, []).append(" ".join(combination))
    faults = [fault if len(who) == len(combinations) else f"[{who[0]}] {fault}" for fault, who in found.items()]
    folders = [config.campaign_dir for config in configs]
    for folder in dict.fromkeys(folders):
        if apart and (count := folders.count(folder)) > 1:
            faults.append(f"campaign={folder.name}: {count} combinations would share {folder}; {_apart(combinations)}")
    if faults:
        raise ConfigError(faults, hint)
    return configs


def _apart(combinations: Sequence[Sequence[str]]) -> str:
    """Return what to type so that combinations that share a folder get one each."""
    if any(word.startswith("campaign=") for word in combinations[0]):
        return "leave campaign= out, or put into it what differs: 'campaign=NAME-${seed}'"
    differ = [word.partition("=")[0] for word in combinations[0] if any(word not in other for other in combinations)]
    return f"put into the name what differs: 'campaign=NAME-{'-'.join(f'${{{_valued(key)}}}' for key in differ)}'"


def _valued(key: str) -> str:
    """Return the key whose value names the choice of a group; any other key as it is."""
    return f"{key}.{DISCRIMINATORS.get(key, 'name')}" if key in GROUPS else key
