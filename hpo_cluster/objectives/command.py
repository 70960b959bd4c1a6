"""A black box that a command starts and that prints its result.

The last line that the command prints on standard output is a JSON object, such as ``{"value": 0.81}``. In the
command, ``{name}`` stands for the parameter of that name and ``{seed}`` for the trial's seed; braces meant for the
shell are doubled: ``${{HOME}}``. Values are quoted for the shell, so put no quotes around a placeholder. A boolean is
written as ``true`` or ``false``, and an inactive parameter as an empty string. The program is ``jobs/command.py``.

With rungs the command runs once for each: ``{fidelity}`` stands for the share of a whole evaluation, such as 0.1, and
is 1 at the top and without rungs. ``{checkpoint}`` stands for a folder that all runs of a trial share, on every node,
until the evaluation is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives.base import MetricByName, PathResolver
from hpo_cluster.objectives.black_box import CHECKPOINT, FIDELITY
from hpo_cluster.objectives.command_line import SEED, placeholders
from hpo_cluster.space import Space
from hpo_cluster.text import instead_of

#: Placeholders that are not parameters; a parameter of the same name wins.
OWN = (SEED, FIDELITY, CHECKPOINT)


class CommandObjective(MetricByName):
    """A command whose last line of output is the result."""

    OPERATIONAL = ("cwd",)
    FIDELITIES = ("share",)

    kind: Literal["command"] = "command"
    command: str = Field(min_length=1, description="command line for bash; {name} stands for the parameter's value")
    metric_name: str = Field("value", alias="metric", min_length=1, description="field of the output that is optimised")
    timeout_s: float | None = Field(None, gt=0, description="seconds after which the command is stopped and has failed")
    cwd: str | None = Field(
        None, validate_default=True, description="directory to run in; null: the one where the campaign is created"
    )

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

    def fidelity_faults(self, ladder: Ladder, space: Space | None = None) -> list[str]:
        """Return the fault if the command would do the same at each rung."""
        if faults := super().fidelity_faults(ladder, space):
            return faults
        if space is not None and FIDELITY in space.names:
            return [f"space.{FIDELITY}: with fidelity=share, {{{FIDELITY}}} is the share; rename the parameter"]
        with contextlib.suppress(ValueError):  # `space_faults` says what is wrong with the braces
            if FIDELITY not in placeholders(self.command):
                how = f"put {{{FIDELITY}}} in it: the share of a whole evaluation to do, such as 0.1 or 1"
                return [f"fidelity=share: objective.command never uses the share; {how}"]
        return []

    def name_faults(self, names: Sequence[str]) -> list[str]:
        """Return placeholders that match no parameter or are malformed, and parameters that the command never uses."""
        try:
            fields = placeholders(self.command)
        except ValueError as error:
            return [f"objective.command: {error}; double the braces meant for the shell: {{{{ and }}}}"]
        faults = []
        for name, extra in fields.items():
            if name not in names and name not in OWN:
                hint = instead_of(f"{{{name}}}", [f"{{{known}}}" for known in (*names, *OWN)])
                own = f"; for braces meant for the shell, write {{{{{name}}}}}"
                faults.append(f"objective.command: {{{name}}} is not a parameter of the space; {hint}{own}")
            elif extra:
                faults.append(
                    f"objective.command: write {{{name}}} without {extra!r}: values are always written in full"
                )
        for name in names:
            if name not in fields:
                faults.append(f"space.{name}: objective.command never uses it; put {{{name}}} in the command")
        return faults

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return the fault if the working directory does not exist."""
        if self.cwd is not None and not Path(self.cwd).is_dir():
            how = "give objective.cwd=DIR, the directory where the command runs"
            return [f"objective.cwd: {self.cwd} is not a directory; if it has moved, {how}"]
        return []
