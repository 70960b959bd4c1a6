"""The calls to Hydra: the search path of configuration files, reading one override, composing the files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

#: The exceptions that parsing and composing raise.
ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError, AttributeError, KeyError)


class UserFolders(SearchPathPlugin):
    """Adds the user's folders of configuration files behind the package's."""

    dirs: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in self.dirs:
            search_path.append("user", f"file://{folder}")


@contextlib.contextmanager
def searching(dirs: Sequence[Path]) -> Iterator[None]:
    """Let Hydra search `dirs` within the context, the first one first."""
    Plugins.instance().register(UserFolders)
    UserFolders.dirs = dirs[1:]
    try:
        with initialize_config_dir(str(dirs[0]), version_base="1.3"):
            yield
    finally:
        UserFolders.dirs = ()


def parse_override(text: str) -> Override:
    """Return one override, parsed with Hydra's grammar; ``glob`` finds the options that exist."""
    override = OverridesParser.create().parse_override(text)
    override.config_loader = GlobalHydra.instance().config_loader()
    return override


def compose_files(name: str, overrides: Sequence[str]) -> DictConfig:
    """Return the composed file of that name, with its interpolations unresolved."""
    return compose(name, list(overrides))


def defaults_of(name: str, overrides: Sequence[str]) -> Sequence[ResultDefault]:
    """Return the files that are composed, in the order in which the later ones win."""
    loader = GlobalHydra.instance().config_loader()
    found: Sequence[ResultDefault] = loader.compute_defaults_list(name, list(overrides), RunMode.RUN).defaults
    return found


def store_space(space: Mapping[str, Any]) -> str:
    """Keep a space in memory and return the override that chooses it."""
    ConfigStore.instance().store("own", escaped(space), group="in_memory", package="space")
    return "+in_memory@space=own"


def store_recorded(raw: Mapping[str, Any], choices: Mapping[str, str]) -> str:
    """Keep the recorded configuration of a campaign in memory, with new choices, and return its name."""
    defaults = ["_self_", *({group: name} for group, name in choices.items())]
    ConfigStore.instance().store("recorded_in_memory", {"defaults": defaults, **escaped(raw)})
    return "recorded_in_memory"


def escaped(data: Any) -> Any:
    """Return plain data in which OmegaConf sees no interpolation: what is recorded stays as it is."""
    if isinstance(data, Mapping):
        return {key: escaped(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [escaped(value) for value in data]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", data) if isinstance(data, str) else data


def reason_of(error: BaseException) -> str:
    """Return the message of an error on one line; if the error has none, that of its cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type="))]
    if error.__cause__ is not None and (not kept or kept[0].startswith("Error merging override")):
        return reason_of(error.__cause__)
    return " ".join(kept) or type(error).__name__
