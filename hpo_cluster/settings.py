"""The base class of all typed settings, and pydantic's validation errors in plain sentences: one for each key."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError


class Settings(BaseModel):
    """Base class of typed settings: unknown keys are faults, and values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


#: What is required, by pydantic's kind of error. For any other kind, pydantic's own message is used.
REQUIREMENTS = {
    "missing": "has no value",
    "extra_forbidden": "is not a setting",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list, such as [a,b]",
    "list_type": "must be a list, such as [a,b]",
    "dict_type": "must be a mapping, such as {{a: 1}}",
    "string_too_short": "must not be empty",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "accepted: {expected}",
}


@dataclass(frozen=True)
class Fault:
    """One key that is wrong, and why.

    Args:
        loc: the parts of the key, outermost first.
        kind: pydantic's name for the error, such as ``missing`` or ``extra_forbidden``.
        value: the value seen.
        message: what is required.
    """

    loc: tuple[str, ...]
    kind: str
    value: Any
    message: str

    @property
    def key(self) -> str:
        """The key as it is typed on a command line."""
        return ".".join(self.loc)

    def __str__(self) -> str:
        if not self.loc:
            return self.message
        bare = self.kind in ("missing", "extra_forbidden") or isinstance(self.value, Mapping)
        return f"{self.key}: {self.message}" if bare else f"{self.key}={self.value!r}: {self.message}"


def faults_of(error: ValidationError, cls: type[BaseModel], *section: str) -> list[Fault]:
    """Return the faults in order, one for each key.

    If a value may have one of several types, pydantic reports one error for each type, with the type's name in the
    key: these become one fault of the key. If something inside the value is wrong, only that is returned.

    Args:
        error: the exception that pydantic raised.
        cls: class of the settings.
        section: parts to put before each key.
    """
    found: dict[tuple[str, ...], Fault] = {}
    for entry in error.errors():
        requirement = REQUIREMENTS.get(entry["type"])
        reason = entry["msg"].removeprefix("Value error, ")
        message = requirement.format(**entry.get("ctx", {})) if requirement else reason[:1].lower() + reason[1:]
        loc = (*section, *_key(cls, entry["loc"]))
        if loc not in found:
            found[loc] = Fault(loc, entry["type"], entry["input"], message)
        elif message not in found[loc].message:
            found[loc] = replace(found[loc], message=f"{found[loc].message}, or {message}")
    return [fault for loc, fault in found.items() if not any(_inside(other, loc) for other in found)]


def _inside(loc: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _key(cls: type[BaseModel] | None, loc: tuple[int | str, ...]) -> list[str]:
    """Return the parts of a key, without the names of types that pydantic puts between them."""
    parts, left = list[str](), [str(part) for part in loc]
    while left:
        parts.append(left.pop(0))
        fields = {field.alias or name: field for name, field in cls.model_fields.items()} if cls is not None else {}
        accepted = _types(fields[parts[-1]].annotation) if parts[-1] in fields else []
        if len(accepted) > 1 and left:
            left.pop(0)
        cls = accepted[0] if len(accepted) == 1 and _is_settings(accepted[0]) else None
    return parts


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _types(annotation: Any) -> list[Any]:
    """Return the types that a value may have, except None."""
    if get_origin(annotation) is Annotated:
        return _types(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for option in get_args(annotation) if option is not type(None) for kind in _types(option)]
    return [annotation]
