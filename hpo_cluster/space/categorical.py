"""Parameters with choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpo_cluster.space.conditional import Conditional, Value, bin_of, is_number, same


@dataclass(frozen=True)
class Categorical(Conditional):
    """A parameter with several choices.

    Args:
        choices: the values; one alone makes a fixed parameter.
        ordered: whether neighbours in the list are similar, as powers of two are.
        prior: one weight above zero for each choice; only their ratios count.

    Example:
        >>> Categorical(("linear", "cosine")).decode(0.7)
        'cosine'
        >>> Categorical((4, 8, 16), ordered=True).cardinality
        3
    """

    choices: tuple[Value, ...]
    ordered: bool = False
    prior: tuple[float, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("choices", "prior"):
            if isinstance(entries := getattr(self, name), Sequence) and not isinstance(entries, str):
                object.__setattr__(self, name, tuple(entries))

    @property
    def cardinality(self) -> int:
        """Number of choices."""
        return len(self.choices)

    @property
    def values(self) -> Sequence[Value]:
        """All values, in order."""
        return self.choices

    @property
    def fixed(self) -> bool:
        """Whether there is only one value."""
        return len(self.choices) == 1

    @property
    def unordered(self) -> bool:
        """Whether the choices have no order, so that none is nearer to one than to another."""
        return not self.ordered

    def value(self, index: int) -> Value:
        """Return the choice with this index."""
        return self.choices[index]

    def faults(self) -> list[str]:
        """Return the faults of the choices and the prior; empty if there are none."""
        if found := _type_faults(self):
            return found
        if not self.choices:
            return ["needs at least one choice, has none"]
        if faults := [fault for choice in self.choices if (fault := _choice_fault(choice))]:
            return list(dict.fromkeys(faults))
        booleans = [choice for choice in self.choices if isinstance(choice, bool)]
        if booleans and len(booleans) < len(self.choices):
            seen = ", ".join("true" if choice else "false" for choice in booleans)
            return [
                f"choices {list(self.choices)}: {seen} stands among other values; YAML reads on, off, yes and no as "
                "booleans unless they are quoted: ['on', 'off']"
            ]
        seen_as: dict[Value, Value] = {}
        for choice in self.choices:
            looks = {str(choice), choice}  # 1 and 1.0 are equal, and have one hash
            if other := [seen_as[look] for look in looks if look in seen_as]:
                return [f"has a choice twice: {other[0]!r} and {choice!r} cannot be distinguished in a table"]
            seen_as.update(dict.fromkeys(looks, choice))
        if self.prior is not None:
            if len(self.prior) != len(self.choices):
                return [f"prior has {len(self.prior)} weights for {len(self.choices)} choices"]
            if not all(math.isfinite(weight) and weight > 0 for weight in self.prior):
                return [f"prior={list(self.prior)}: weights must be above 0; leave out a choice that is never wanted"]
        return []

    def decode(self, u: float) -> Value:
        """Return the choice whose bin holds position `u` of the unit interval."""
        return self.choices[self.index(u)]

    def encode(self, value: Value) -> float:
        """Return the middle of the bin of `value`. Raise ValueError if it is not one of the choices."""
        for index, choice in enumerate(self.choices):
            if same(choice, value):
                return (index + 0.5) / len(self.choices)
        raise ValueError(f"{value!r} is not one of {list(self.choices)}")

    def warp(self, u: float) -> float:
        """Return a position distributed as the prior, for a uniform position `u`."""
        if self.prior is None:
            return u
        shares = np.cumsum(self.prior) / sum(self.prior)
        index = int(np.searchsorted(shares, u, side="right"))
        return (min(index, len(self.choices) - 1) + 0.5) / len(self.choices)

    def log_prior(self, u: float) -> float:
        """Return the logarithm of the prior's density at a position, relative to a uniform density."""
        if self.prior is None:
            return 0.0
        return math.log(self.prior[self.index(u)] * len(self.choices) / sum(self.prior))

    def index(self, u: float) -> int:
        """Return the index of the choice at position `u` of the unit interval."""
        return bin_of(u, len(self.choices))


def _type_faults(parameter: Categorical) -> list[str]:
    """Return what is wrong with the types of a categorical's fields; empty if nothing is."""
    prior, found = parameter.prior, parameter.condition_faults()
    if not isinstance(parameter.choices, tuple):
        found.append(f"choices={parameter.choices!r}: must be a list, such as ['adamw', 'sgd']")
    if not isinstance(parameter.ordered, bool):
        found.append(f"ordered={parameter.ordered!r}: must be true or false; the choices are one list")
    if prior is not None and not (isinstance(prior, tuple) and all(map(is_number, prior))):
        found.append(f"prior={prior!r}: a choice's prior is a list of weights, one number for each choice")
    return found


def _choice_fault(choice: Any) -> str:
    """Return why a value cannot be a choice; empty if it can."""
    if choice is None:
        return "choices: null would mean that the parameter is not active; write it as a text: 'none' (in quotes)"
    if isinstance(choice, (list, tuple, dict, set)):
        name = "-".join(map(str, choice))
        return f"choices: {choice!r} is a {type(choice).__name__}; name it by a text, such as '{name}', and look it up"
    if not isinstance(choice, (str, bool, int, float, np.integer, np.floating)):
        return f"choices: {choice!r} is a {type(choice).__name__}; accepted: texts, numbers, true and false"
    if isinstance(choice, (float, np.floating)) and not math.isfinite(choice):
        return f"choices: {choice!r} is not a finite number; accepted: texts, finite numbers, true and false"
    if choice == "":
        return "choices: '' would mean that the parameter is not active; write it as a text: 'none'"
    return ""
