"""A Python function that a job imports by name. The program is ``jobs/function.py``.

With rungs it is called once for each, with ``fidelity``, the share of a whole evaluation, and, if it has an argument of
that name, with ``checkpoint``: a folder that all calls of a trial share, on every node, until the evaluation is whole.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, field_validator

from hpo_cluster.errors import AttemptError, ConfigError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives.base import MetricByName, PathResolver
from hpo_cluster.objectives.black_box import CHECKPOINT, FIDELITY
from hpo_cluster.space import Space
from hpo_cluster.trial import ErrorKind


class FunctionObjective(MetricByName):
    """A call of ``fn(**parameters)``, which returns the value, or a dictionary like the output of a command."""

    OPERATIONAL = ("search_path",)
    FIDELITIES = ("share",)

    kind: Literal["function"] = "function"
    function: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", description="package.module:name"
    )
    metric_name: str = Field("value", alias="metric", min_length=1, description="field of the result that is optimised")
    search_path: str | None = Field(
        None,
        validate_default=True,
        description="directory of the top-level module; null: the one where the campaign is created",
    )

    @field_validator("search_path")
    @classmethod
    def _absolute(cls, search_path: str | None) -> str:
        return str(Path(search_path or ".").expanduser().absolute())

    @classmethod
    def of(cls, fn: Callable[..., Any], **settings: Any) -> FunctionObjective:
        """Return the objective that calls `fn`, with the directory of its module as search path.

        Raises:
            ConfigError: if a job could not import `fn` by name: a lambda, a local function, a method of an object, or
                a function of the script that was started.
        """
        module_name, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
        hint = "Put it at the top level of a module, import it from there, or leave `campaign` out."
        if not module_name or not name:
            raise ConfigError([f"{fn!r} has no name; a job must be able to import the function"], hint)
        if module_name == "__main__":
            fault = f"{name} is defined in the script that was started (__main__), which a job cannot import"
            raise ConfigError([fault], hint)
        if "<" in name:
            what = "a lambda" if name.endswith("<lambda>") else "defined inside another function"
            raise ConfigError([f"{module_name}:{name} is {what}; a job must be able to import the function"], hint)
        try:
            module = importlib.import_module(module_name)
            found = operator.attrgetter(name)(module)
        except (ImportError, AttributeError) as error:
            raise ConfigError([f"{module_name}:{name} cannot be imported: {error}"], hint) from error
        if found is not fn:
            fault = f"{module_name}:{name} is another object than the function given ({fn!r}), such as a bound method"
            raise ConfigError([fault], hint)
        return cls(function=f"{module_name}:{name}", search_path=str(_top_level_dir(module)), **settings)

    @property
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""
        return self.function.rpartition(":")[2].rpartition(".")[2]

    @property
    def program(self) -> str:
        """File name of the program in ``jobs/``."""
        return "function.py"

    def fidelity_faults(self, ladder: Ladder, space: Space | None = None) -> list[str]:
        """Return the fault if a parameter has the name of the argument that says the share."""
        if not (faults := super().fidelity_faults(ladder, space)) and space is not None and FIDELITY in space.names:
            return [
                f"space.{FIDELITY}: with fidelity=share, the argument {FIDELITY} is the share; rename the parameter"
            ]
        return faults

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return the fault if jobs would not find the module. The module is not imported, since that may be slow."""
        top_level = self.function.partition(":")[0].partition(".")[0]
        if top_level in sys.builtin_module_names:
            return []
        if importlib.machinery.PathFinder.find_spec(top_level, [str(self.search_path), *sys.path]) is None:
            how = "give objective.search_path=DIR, the directory that contains it"
            return [
                f"objective.function: no module {top_level!r} in {self.search_path} or among the installed ones; {how}"
            ]
        return []


def load(function: str, search_path: str) -> Callable[..., Any]:
    """Import the function named ``package.module:name``, looking in `search_path` first."""
    sys.path.insert(0, search_path)
    module, _, name = function.partition(":")
    found: Callable[..., Any] = operator.attrgetter(name)(importlib.import_module(module))
    return found


def more_arguments(
    function: Callable[..., Any], parameters: Mapping[str, Any], share: float | None, checkpoint: Callable[[], Path]
) -> dict[str, Any]:
    """Return what a function is called with besides its parameters: ``fidelity`` and ``checkpoint``, if it names them.

    Without rungs an argument that has a default is left alone: it may mean something else.

    Args:
        function: the function.
        parameters: the configuration; an argument of the same name is a parameter.
        share: of a whole evaluation; None without rungs.
        checkpoint: returns the folder that all calls of the trial share.

    Raises:
        AttemptError: of kind ``bad_config``, if there are rungs and the function does not take the share.
    """
    try:
        arguments = inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function in C
        arguments = {}  # type: ignore[assignment]
    named = [
        name
        for name in (FIDELITY, CHECKPOINT)
        if name in arguments
        and name not in parameters
        and arguments[name].kind is not inspect.Parameter.POSITIONAL_ONLY
        and (share is not None or arguments[name].default is inspect.Parameter.empty)
    ]
    if share is not None and FIDELITY not in named:
        if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in arguments.values()):
            message = f"fidelity=share: {function!r} does the same at each rung: give it an argument {FIDELITY}"
            raise AttemptError(ErrorKind.BAD_CONFIG, message)
        named.append(FIDELITY)
    made: dict[str, Callable[[], Any]] = {FIDELITY: lambda: 1.0 if share is None else share, CHECKPOINT: checkpoint}
    return {name: made[name]() for name in named}


def _top_level_dir(module: ModuleType) -> Path:
    """Return the directory that contains the top-level package of `module`."""
    file = getattr(module, "__file__", None)
    if file is None:
        return Path.cwd()
    path = Path(file).absolute()
    if path.name == "__init__.py":
        path = path.parent
    return path.parents[module.__name__.count(".")]
