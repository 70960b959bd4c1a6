"""Whatever a user types as a space is a space or a fault that says what is accepted, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Categorical, Space

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["low", "1e400", "x", "off"]),
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
KINDS = st.sampled_from(["int", "float", "bool", "categorical"])
ENTRIES = st.one_of(
    NESTED,
    st.fixed_dictionaries(
        {"low": SCALARS, "high": SCALARS},
        optional={"log": SCALARS, "step": SCALARS, "type": KINDS, "prior": NESTED, "when": NESTED},
    ),
    st.fixed_dictionaries(  # mostly whole
        {"low": st.integers(-3, 3), "high": st.integers(-3, 20), "step": st.sampled_from([1, 2, 4, 0.5, 0.1, 1 / 3])},
        optional={"type": KINDS, "log": st.booleans()},
    ),
    st.fixed_dictionaries(
        {"choices": st.lists(NESTED, max_size=4)}, optional={"ordered": NESTED, "prior": NESTED, "when": NESTED}
    ),
)
NAMES = st.one_of(st.text(max_size=6), st.sampled_from(["lr", "value", "trial", "metric.x", "a", "b"]))
SPACES = st.fixed_dictionaries({}, optional={"constraints": NESTED, "start": NESTED})


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, ENTRIES, max_size=4), SPACES)
def test_any_plain_data_is_a_space_or_a_fault(parameters: dict[str, Any], more: dict[str, Any]) -> None:
    try:
        space = Space.from_json({**parameters, **more})
    except ConfigError as error:
        assert error.faults  # noqa: PT017
        return
    for point in np.random.default_rng(0).random((3, space.dim)):
        configuration = space.decode(point)
        assert np.isfinite(space.encode(configuration)).all()
        assert space.decode(space.encode(configuration)).keys() == configuration.keys()
        space.check(configuration)
        json.dumps(configuration, allow_nan=False)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))).to_json() == space.to_json()


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ([None, "a"], "null would mean that the parameter is not active; write it as a text: 'none'"),
        (["", "a"], "'' would mean that the parameter is not active"),
        ([True, "auto"], "true stands among other values; YAML reads on, off, yes and no as booleans"),
        ([False, 1, 2], "false stands among other values"),
        ([1, 1.0], "1 and 1.0 cannot be distinguished"),
        (["1", 1], "'1' and 1 cannot be distinguished"),
        ([float("nan"), 1.0], "nan is not a finite number"),
        ([[64, 64], [128]], "[64, 64] is a list; name it by a text, such as '64-64'"),
        ([{"a": 1}, 2], "is a dict"),
        ([Path("x"), 2], "accepted: texts, numbers, true and false"),
        ([], "needs at least one choice"),
    ],
)
def test_choices_that_cannot_be_told_apart_are_refused_by_every_door(choices: list[Any], said: str) -> None:
    with pytest.raises(ConfigError) as python:
        Space({"x": Categorical(tuple(choices))})
    with pytest.raises(ConfigError) as plain:
        Space.from_json({"x": {"choices": choices}})
    assert said in str(python.value)
    assert said in str(plain.value)


def test_the_bare_words_of_yaml_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "space").mkdir(parents=True)
    (tmp_path / "conf" / "space" / "mine.yaml").write_text("# mine\nx: {choices: [off, auto]}\n")
    with pytest.raises(ConfigError, match="unless they are quoted: \\['on', 'off'\\]"):
        compose(["objective=command", "objective.command='echo {x}'", "optimizer=random", "space=mine"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"low": -1.7e308, "high": 1.7e308}, "wider than a number can say"),
        ({"low": 0, "high": 2**60}, "beyond 2^53"),
        ({"low": 0.0, "high": float("inf")}, "must be finite"),
    ],
)
def test_ranges_that_numbers_cannot_hold(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Space.from_json({"x": entry})
    assert said in str(caught.value)
