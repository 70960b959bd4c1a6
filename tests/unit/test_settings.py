"""Faults of settings name the key as it is typed, once, whatever types its value may have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpo_cluster.settings import REQUIREMENTS, faults_of


class Inner(BaseModel):
    size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    levels: int | dict[str, int] = 3
    inner: Inner = Inner()
    names: list[str] = []
    rate: float | None = None


def said(**data: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    return [str(fault) for fault in faults_of(caught.value, Outer, "outer")]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"levels": "foo"}, "outer.levels='foo': must be an integer, or must be a mapping, such as {a: 1}"),
        ({"levels": {"x": "foo"}}, "outer.levels.x='foo': must be an integer"),
        ({"inner": {"size": 0}}, "outer.inner.size=0: must be at least 1, or accepted: 'auto'"),
        ({"names": ["a", 1]}, "outer.names.1=1: must be text"),
        ({"rate": "x"}, "outer.rate='x': must be a number"),
        ({"rates": 1.0}, "outer.rates: is not a setting"),
        ({"inner": 3}, "outer.inner=3: input should be a valid dictionary or instance of Inner"),
    ],
)
def test_a_fault_is_of_a_key(data: dict[str, Any], expected: str) -> None:
    assert said(**data) == [expected]


def test_all_are_named() -> None:
    assert len(said(levels="foo", rate="x", names=3, inner={"size": "y"})) == 4


@pytest.mark.parametrize("requirement", REQUIREMENTS.values())
def test_every_requirement_can_be_told(requirement: str) -> None:
    assert requirement.format(gt=1, ge=1, lt=1, le=1, expected="'a'")
