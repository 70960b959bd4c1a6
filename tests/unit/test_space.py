"""Search spaces: decoding and encoding, bins, faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Categorical, Float, Integer, Space

UNIT = st.floats(0.0, 1.0)


@st.composite
def floats(draw: st.DrawFn) -> Float:
    log = draw(st.booleans())
    low = draw(st.floats(1e-12, 1e3)) if log else draw(st.floats(-1e6, 1e6))
    factor = draw(st.floats(1.01, 1e6))
    return Float(low, low * factor, True) if log else Float(low, low + factor)


@st.composite
def integers(draw: st.DrawFn) -> Integer:
    log = draw(st.booleans())
    low = draw(st.integers(1, 500)) if log else draw(st.integers(-500, 500))
    return Integer(low, low + draw(st.integers(1, 3000)), log)


@given(floats(), UNIT)
def test_real_round_trip(parameter: Float, u: float) -> None:
    value = parameter.decode(u)
    assert parameter.low <= value <= parameter.high
    assert parameter.encode(value) == pytest.approx(u, abs=1e-6)
    assert parameter.decode(parameter.encode(value)) == pytest.approx(value, rel=1e-9, abs=1e-9)


@given(floats())
def test_real_ends_are_exact(parameter: Float) -> None:
    assert parameter.decode(0.0) == parameter.low
    assert parameter.decode(1.0) == parameter.high


@given(integers(), st.data())
def test_integer_round_trip(parameter: Integer, data: st.DataObject) -> None:
    value = data.draw(st.integers(parameter.low, parameter.high))
    decoded = parameter.decode(parameter.encode(value))
    assert decoded == value
    assert type(decoded) is int


@given(integers(), UNIT)
def test_integer_bins_hold_their_point(parameter: Integer, u: float) -> None:
    value = parameter.decode(u)
    assert parameter.low <= value <= parameter.high
    if not parameter.log:
        assert abs(parameter.encode(value) - u) <= 0.5 / parameter.cardinality + 1e-9


@given(st.integers(2, 9), UNIT)
def test_choice_round_trip(count: int, u: float) -> None:
    parameter = Categorical(tuple(f"c{i}" for i in range(count)))
    assert parameter.decode(parameter.encode(parameter.decode(u))) == parameter.decode(u)


@pytest.mark.parametrize("parameter", [Integer(2, 64), Integer(-3, 3), Categorical(("a", "b", "c", "d", "e"))])
def test_bins_are_of_equal_width(parameter: Integer | Categorical) -> None:
    values = [parameter.decode((i + 0.5) / 6300) for i in range(6300)]
    counts = [values.count(value) for value in dict.fromkeys(values)]
    assert len(counts) == parameter.cardinality
    assert max(counts) - min(counts) <= 1


def test_integers_on_a_logarithmic_scale_have_bins_of_their_width_there() -> None:
    parameter = Integer(1, 64, log=True)
    rng = np.random.default_rng(0)
    ones = np.mean([parameter.decode(u) == 1 for u in rng.random(4000)])
    assert ones == pytest.approx(np.log(3) / np.log(129), abs=0.02)


def test_integers_are_rounded_not_truncated() -> None:
    parameter = Integer(0, 10)
    assert [parameter.decode(u / 11) for u in (0.0, 0.99, 1.01, 5.5, 10.99, 11.0)] == [0, 0, 1, 5, 10, 10]
    assert parameter.encode(5) == 0.5


def test_bool_and_number_are_different_choices() -> None:
    parameter = Categorical((False, 1))
    assert parameter.encode(False) == 0.25
    assert parameter.encode(1) == 0.75
    with pytest.raises(ValueError, match="none of"):
        parameter.encode(True)


def test_space_decodes_and_snaps() -> None:
    space = Space.from_json(
        {"lr": {"low": 1e-4, "high": 1.0, "log": True}, "n": {"low": 1, "high": 4}, "b": {"type": "bool"}}
    )
    assert space.decode([0.5, 0.99, 0.2]) == {"lr": pytest.approx(1e-2), "n": 4, "b": False}
    assert space.snap(np.array([[0.5, 0.99, 0.2]])) == pytest.approx(np.array([[0.5, 0.875, 0.25]]))
    assert space.dim == 3
    assert Space.from_json(space.to_json()) == space
    with pytest.raises(ValueError, match="coordinates"):
        space.decode([0.5])


def test_size() -> None:
    assert Space({"n": Integer(1, 4), "b": Categorical((False, True))}).size == 8
    assert Space({"n": Integer(1, 4), "x": Float(0, 1)}).size == float("inf")


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"low": 2.0, "high": 1.0}, "empty range"),
        ({"low": 1.0, "high": 1.0}, "empty range"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low above 0"),
        ({"low": float("nan"), "high": 1.0}, "finite"),
        ({"low": 1.0}, "needs high"),
        ({"low": "a", "high": 1.0}, "no number"),
        ({"low": 1.5, "high": 3, "type": "int"}, "integer ends"),
        ({"low": 1, "high": 3, "type": "real"}, "unknown; accepted"),
        ({"low": 1, "high": 3, "lgo": True}, "lgo: unknown"),
        ({"low": 1, "high": 3, "log": "yes"}, "true or false"),
        ({"choices": ["a"]}, "at least two"),
        ({"choices": ["a", "a"]}, "twice"),
        ({"choices": "ab"}, "must be a list"),
    ],
)
def test_faults_of_a_parameter(entry: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as error:
        Space.from_json({"good": {"low": 0.0, "high": 1.0}, "bad": entry})
    assert "space.bad" in str(error.value)


def test_all_faults_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Space({"value": Float(0, 1), "target": Float(0, 1), "a b": Float(2, 1)})
    assert len(error.value.faults) == 4
    with pytest.raises(ConfigError, match="no parameter"):
        Space({})


def test_faults_of_a_configuration() -> None:
    space = Space({"x": Float(0, 1), "n": Integer(1, 4), "c": Categorical(("a", "b"))})
    with pytest.raises(ConfigError) as error:
        space.encode({"x": 2.0, "n": 1.5, "d": 1})
    assert len(error.value.faults) == 4
