"""The command line of ``objective=command``: its placeholders, and the values that replace them.

It imports little, because each job of such a campaign begins with it.
"""

from __future__ import annotations

import decimal
import shlex
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_cluster.objectives.black_box import CHECKPOINT, FIDELITY

if TYPE_CHECKING:
    from hpo_cluster.space import Value

#: The placeholder that stands for the trial's seed.
SEED = "seed"


def placeholders(command: str) -> dict[str, str]:
    """Return the names in braces in order of first use, each with the conversion or format that follows it, if any.

    Raises:
        ValueError: if the braces do not match.
    """
    names: dict[str, str] = {}
    for _, name, form, conversion in string.Formatter().parse(command):
        if name is not None:
            extra = (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            names[name] = names.get(name) or extra
    return names


def render(
    command: str, parameters: Mapping[str, Value], seed: int, share: float = 1.0, checkpoint: str | Path = ""
) -> str:
    """Return the command line of one configuration: all placeholders replaced by values, quoted for the shell.

    Args:
        command: with placeholders.
        parameters: the configuration.
        seed: of the trial.
        share: of a whole evaluation.
        checkpoint: folder that all runs of the trial share.
    """
    own: dict[str, Value] = {SEED: seed, FIDELITY: 1 if share == 1 else share, CHECKPOINT: str(checkpoint)}
    values = {**own, **parameters}
    parts = []
    for text, name, _, _ in string.Formatter().parse(command):
        parts.append(text)
        if name is not None:
            parts.append(shlex.quote(_text(values.get(name, ""))))
    return "".join(parts)


def _text(value: Value) -> str:
    """Return a value as text for a command: plain decimals, since argparse would read -1e-05 as an option."""
    if isinstance(value, bool):
        return str(value).lower()
    return format(decimal.Decimal(repr(float(value))), "f") if isinstance(value, float) else str(value)
