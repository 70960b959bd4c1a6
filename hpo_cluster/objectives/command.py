"""Any black box that can be started by a command and prints its result.

The last line that the command prints on standard output is a JSON object, such as ``{"value": 0.81}``. Each
``{name}`` in the command stands for the parameter of that name, ``{seed}`` for the trial's seed, and braces of the
shell's own are doubled: ``${{HOME}}``. Values are quoted for the shell, so no quotes belong around a placeholder; a
boolean is written ``true`` or ``false``, and an inactive parameter is an empty text. The program is
``jobs/command.py``.
"""

from __future__ import annotations

import decimal
import shlex
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from hpo_cluster.objectives.base import Objective, PathResolver
from hpo_cluster.space import Space, Value
from hpo_cluster.text import did_you_mean

SEED = "seed"


class CommandObjective(Objective):
    """Run a command; the last line of its output is the result."""

    # The field `metric` has another name in Python because `Objective.metric` is a property.
    model_config = ConfigDict(serialize_by_alias=True)

    OPERATIONAL = ("cwd",)

    kind: Literal["command"] = "command"
    command: str = Field(min_length=1, description="command line for bash; {name} stands for the parameter's value")
    metric_name: str = Field("value", alias="metric", min_length=1, description="field of the output that is optimised")
    timeout_s: float | None = Field(None, gt=0, description="seconds after which the command is stopped: a failure")
    cwd: str | None = Field(None, validate_default=True, description="where to run; null: where the campaign is made")

    @field_validator("cwd")
    @classmethod
    def _absolute(cls, cwd: str | None) -> str:
        return str(Path(cwd or ".").expanduser().absolute())

    @property
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""
        return "command"

    @property
    def program(self) -> str:
        """File name of the program in ``jobs/``."""
        return "command.py"

    @property
    def metric(self) -> str:
        """Name of the metric that is optimised."""
        return self.metric_name

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """The ``settings`` of ``params.json``: plain JSON, every path absolute."""
        return self.model_dump(mode="json", by_alias=True)

    def space_faults(self, space: Space) -> list[str]:
        """Placeholders that are no parameter, parameters that the command never uses, and malformed placeholders."""
        try:
            fields = placeholders(self.command)
        except ValueError as error:
            return [f"objective.command: {error}; write the shell's own braces twice: {{{{ and }}}}"]
        faults = []
        for name, extra in fields.items():
            if name not in space.names and name != SEED:
                accepted = f"accepted: {', '.join((*space.names, SEED))}"
                hint = did_you_mean(f"{{{name}}}", [f"{{{known}}}" for known in space.names]).strip() or accepted
                own = f"; for the shell's own braces write {{{{{name}}}}}"
                faults.append(f"objective.command: {{{name}}} is no parameter of the space; {hint}{own}")
            elif extra:
                faults.append(f"objective.command: write {{{name}}}, without {extra!r}: values are given in full")
        for name in space.names:
            if name not in fields:
                faults.append(f"space.{name}: objective.command never uses it; put {{{name}}} in the command")
        return faults

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Which files the jobs would miss, each with what to do about it."""
        if self.cwd is not None and not Path(self.cwd).is_dir():
            how = "give objective.cwd=DIR, the one where the command runs"
            return [f"objective.cwd: {self.cwd} is no directory; if it has moved, {how}"]
        return []


def placeholders(command: str) -> dict[str, str]:
    """Names in braces in order of first use, each with the conversion or format that follows the name, if any.

    Raises:
        ValueError: where the braces do not match.
    """
    names: dict[str, str] = {}
    for _, name, form, conversion in string.Formatter().parse(command):
        if name is not None:
            extra = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            names[name] = names.get(name) or extra
    return names


def render(command: str, parameters: Mapping[str, Value], seed: int) -> str:
    """The command line of one configuration: every placeholder filled in, quoted for the shell."""
    values = {SEED: seed, **parameters}
    parts = []
    for text, name, _, _ in string.Formatter().parse(command):
        parts.append(text)
        if name is not None:
            parts.append(shlex.quote(_text(values.get(name, ""))))
    return "".join(parts)


def _text(value: Value) -> str:
    """Return a value as commands read it: plain decimals, since argparse takes -1e-05 for an option."""
    if isinstance(value, bool):
        return str(value).lower()
    return format(decimal.Decimal(repr(float(value))), "f") if isinstance(value, float) else str(value)
