"""Search spaces: decoding and encoding, bins, faults."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.spaces import SPACES

from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Categorical, Float, Integer, Prior, Space, parameter_names
from hpo_cluster.space.constraints import parse_constraint

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
    with pytest.raises(ValueError, match="not one of"):
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
        ({"low": 0.0, "high": 1.0, "log": True}, "low above 0"),
        ({"low": float("nan"), "high": 1.0}, "finite"),
        ({"low": 1.0}, "needs high"),
        ({"low": "a", "high": 1.0}, "not a number"),
        ({"low": 1.5, "high": 3, "type": "int"}, "integer ends"),
        ({"low": 1, "high": 3, "type": "real"}, "unknown; accepted"),
        ({"low": 1, "high": 3, "lgo": True}, "lgo: unknown"),
        ({"low": 1, "high": 3, "log": "yes"}, "true or false"),
        ({"choices": []}, "at least one"),
        (
            {"low": 1, "high": 64, "step": 8},
            "not reached from low 1 in steps of 8; the nearest .* 57 or 65",
        ),
        ({"low": 0.0, "high": 0.3, "step": 0.07}, "the nearest that can be: high 0.28 or 0.35"),
        ({"low": 0.0, "high": 0.1, "step": 0.4}, "the nearest that can be: high 0.4$"),
        ({"low": 8, "high": 64, "step": 8, "log": True}, r"step and log do not go together; .* \{ordered: \[8, 16"),
        ({"low": 0.0, "high": 1.0, "step": 0}, "step=0: must be above 0"),
        ({"low": 0.0, "high": 1.0, "step": float("nan")}, "step=nan: must be above 0"),
        ({"low": 0.0, "high": 1.0, "step": 1e-12}, "too small"),
        ({"low": 0, "high": 3, "step": 1.5, "type": "int"}, "integer step"),
        ({"low": 0, "high": 3, "step": "1"}, "not a number"),
        ({"choices": [1, 2], "step": 1}, "step: unknown for type categorical"),
        ({"values": ["a", "b"]}, "has only values; a parameter has low and high, choices, ordered"),
        ({}, "is empty; a parameter has low and high"),
        ({"choices": ["a", "a"]}, "twice"),
        ({"choices": "ab"}, "must be a list"),
    ],
)
def test_faults_of_a_parameter(entry: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as error:
        Space.from_json({"good": {"low": 0.0, "high": 1.0}, "bad": entry})
    assert "space.bad" in str(error.value)


@pytest.mark.parametrize(
    ("parameter", "fault"),
    [
        (Integer(1.5, 4), "low=1.5: an int needs integer ends"),  # type: ignore[arg-type]
        (Integer("1", 8), "low='1': is not a number"),  # type: ignore[arg-type]
        (Integer(0, 3, step=1.5), "step=1.5: an int needs an integer step"),  # type: ignore[arg-type]
        (Float(None, True), "low=None: is not a number"),  # type: ignore[arg-type]
        (Float(0, 1, log="yes"), "log='yes': must be true or false"),  # type: ignore[arg-type]
        (Float(0, 1, when="a"), "when='a': must be a mapping from parameter to value"),  # type: ignore[arg-type]
        (Float(0, 1, prior=0.5), "prior=0.5: a number's prior is Prior"),  # type: ignore[arg-type]
        (Float(0, 1, prior=Prior("a", 0.1)), "prior.center='a': is not a number"),  # type: ignore[arg-type]
        (Categorical("sgd"), "choices='sgd': must be a list"),  # type: ignore[arg-type]
        (Categorical({"a"}), "choices={'a'}: must be a list"),  # type: ignore[arg-type]
        (Categorical(("a", "b"), "c"), "ordered='c': must be true or false"),  # type: ignore[arg-type]
        (Categorical(("a", "b"), prior=(1, "a")), "a list of weights"),  # type: ignore[arg-type]
        ({"low": 0, "high": 1}, r"Float\(0.0, 1.0\), .*; plain data: Space.from_json"),
        ("adamw", "is not a parameter; accepted"),
    ],
)
def test_wrong_types_are_faults_next_to_others(parameter: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=rf"space\.bad.*{fault}") as error:
        Space({"bad": parameter, "good": Float(0, 1), "worse": Float(2, 1)}, ["bad + good <= 1"])
    assert any("space.worse: empty range" in other for other in error.value.faults)


@pytest.mark.parametrize("given", [None, [Float(0, 1)], "x"])
def test_what_is_not_a_mapping_is_not_a_space(given: Any) -> None:
    for make in (Space, Space.from_json, Space.of):
        with pytest.raises(ConfigError, match="is not a space; accepted: a mapping"):
            make(given)


def test_names_constraints_and_starts_of_another_type_are_faults() -> None:
    with pytest.raises(ConfigError) as error:
        Space({3: Float(0, 1), "x": Float(0, 1)}, constraints=[1], start=2)  # type: ignore[dict-item, list-item, arg-type]
    assert [fault.partition(":")[0] for fault in error.value.faults] == [
        "space.3",
        "space.constraints=[1]",
        "space.start=2",
    ]


def test_types_that_mean_the_same_are_the_same() -> None:
    space = Space({"n": Integer(1.0, np.int64(8), step=2.0 - 1), "c": Categorical(["a", "b"]), "x": Float(0, 1)})  # type: ignore[arg-type]
    assert space == Space({"n": Integer(1, 8), "c": Categorical(("a", "b")), "x": Float(0.0, 1.0)})
    assert type(space.to_json()["n"]["high"]) is int


def test_a_mapping_may_hold_parameters() -> None:
    space = Space.of({"x": Float(0, 1), "n": {"low": 1, "high": 8}, "constraints": ["x <= 0.5"]})
    assert space == Space({"x": Float(0, 1), "n": Integer(1, 8)}, ["x <= 0.5"])
    assert Space.of(space) is space


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


# -------------------------------------------------------------------------------------------------- conditions

NESTED = {
    "beta": {"low": 0.5, "high": 0.9, "when": {"optimizer": "adam", "tuned": True}},
    "tuned": {"type": "bool", "when": {"optimizer": ["adam", "sgd"]}},
    "momentum": {"low": 0.0, "high": 1.0, "when": {"optimizer": "sgd"}},
    "optimizer": {"choices": ["adam", "sgd", "none"]},
    "rank": {"ordered": [2, 4, 8, 16]},
}


def test_inactive_parameters_are_left_out_and_lie_in_the_middle() -> None:
    space = Space.from_json(NESTED)
    assert space.decode([0.9, 0.9, 0.9, 0.9, 0.1]) == {"optimizer": "none", "rank": 2}
    assert space.decode([0.9, 0.1, 0.9, 0.5, 0.9]) == {
        "tuned": False,
        "momentum": pytest.approx(0.9),
        "optimizer": "sgd",
        "rank": 16,
    }
    found = space.decode([0.5, 0.9, 0.9, 0.1, 0.1])
    assert list(found) == ["beta", "tuned", "optimizer", "rank"]  # in the order of the axes
    assert space.snap(np.array([[0.3, 0.9, 0.7, 0.9, 0.1]])) == pytest.approx(np.array([[0.5, 0.5, 0.5, 5 / 6, 0.125]]))
    assert space.active(np.array([[0.5, 0.9, 0.9, 0.1, 0.1], [0.0, 0.0, 0.0, 0.9, 0.1]])).tolist() == [
        [True, True, False, True, True],
        [False, False, False, True, True],
    ]


@pytest.mark.parametrize("name", SPACES)
def test_many_points_at_once_are_each_point_alone(name: str) -> None:
    """Those outside the unit cube too."""
    space = SPACES[name]
    points = np.random.default_rng(0).random((300, space.dim)) * 1.2 - 0.1
    alone = [space.decode(point) for point in points]
    assert space.snap(points) == pytest.approx(np.array([space.encode(configuration) for configuration in alone]))
    assert space.active(points).tolist() == [[name in found for name in space.axes] for found in alone]
    assert space.snap(points[:0]).shape == (0, space.dim)


@given(st.lists(UNIT, min_size=5, max_size=5))
def test_a_conditional_configuration_comes_back(point: list[float]) -> None:
    space = Space.from_json(NESTED)
    configuration = space.decode(point)
    space.check(configuration)
    canonical = space.encode(configuration)
    assert np.all(canonical[~space.active(canonical[None])[0]] == 0.5)
    assert space.snap(canonical[None]) == pytest.approx(canonical[None], abs=1e-9)
    assert list(space.decode(canonical)) == list(configuration)


def test_a_value_of_an_inactive_parameter_is_a_fault() -> None:
    space = Space.from_json(NESTED)
    with pytest.raises(ConfigError) as error:
        space.encode({"optimizer": "none", "rank": 2, "beta": 0.6, "momentum": 0.5})
    assert list(error.value.faults) == [
        "beta: is active only when optimizer is adam and tuned is True",
        "momentum: is active only when optimizer is sgd",
    ]
    with pytest.raises(ConfigError, match="momentum: has no value"):
        space.encode({"optimizer": "sgd", "rank": 2, "tuned": True})


def test_size_counts_what_is_active() -> None:
    finite = {name: entry for name, entry in NESTED.items() if name not in ("beta", "momentum")}
    assert Space.from_json(finite).size == (2 + 2 + 1) * 4
    assert Space.from_json(NESTED).size == float("inf")


@pytest.mark.parametrize(
    ("when", "fault"),
    [
        ({"optimiser": "adam"}, r"space.x.when.optimiser: is not a parameter of the space; did you mean optimizer\?"),
        ({"optimizer": "adma"}, "space.x.when.optimizer: 'adma' is not one of"),
        ({"optimizer": []}, "space.x.when.optimizer: names no value"),
        ({"beta": 0.6}, "space.x.when.beta: a condition needs a parent with single values"),
        ({"tuned": 1}, r"space.x.when.tuned: 1 is not one of \[False, True\]"),
        ({"x": 1}, "the conditions of x go round in a circle"),
        ("optimizer", "space.x: when='optimizer': must be a mapping"),
    ],
)
def test_faults_of_a_condition(when: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as error:
        Space.from_json({**NESTED, "x": {"low": 1, "high": 3, "when": when}})
    assert len(error.value.faults) == 1


def test_conditions_in_a_circle() -> None:
    with pytest.raises(ConfigError, match="the conditions of a, b go round in a circle"):
        Space({"a": Integer(1, 2, when={"b": 1}), "b": Integer(1, 2, when={"a": 1}), "c": Integer(1, 2)})


# -------------------------------------------------------------------------------------------------- constraints

MIXED = {
    "rank": Integer(2, 64),
    "alpha": Integer(1, 128),
    "share": Float(0.0, 1.0),
    "query": Categorical((False, True)),
    "key": Categorical((False, True)),
    "schedule": Categorical(("cosine", "linear")),
    "warmup": Float(0.0, 1.0, when={"schedule": "linear"}),
}
AT = {"rank": 8, "alpha": 16, "share": 0.5, "query": True, "key": False, "schedule": "cosine"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("alpha <= 2 * rank", True),
        ("alpha < 2 * rank", False),
        ("query + key >= 1", True),
        ("query + key == 2", False),
        ("query and not key", True),
        ("4 <= rank <= alpha", True),
        ("rank ** 0.5 * sqrt(rank) == rank", True),  # rounding is forgiven
        ("log2(rank) == 3 and alpha % rank == 0 and alpha // 3 == 5", True),
        ("min(rank, alpha) != max(rank, alpha, 3)", True),
        ("-rank + +alpha == abs(rank - alpha)", True),
        ("schedule == 'cosine' or rank > 60", True),
        ('schedule != "cosine"', False),
        ("(share - 0.5) * rank == 0", True),
        ("rank / (share - 0.5) > 0", False),  # cannot be computed
        ("log(share - 0.5) < 1 or rank > 2", False),
        ("(0.25 - share) ** 0.5 < 1 or share > 0", False),
        ("10 ** (rank * alpha * 9) > 1", False),
        ("warmup < 0.0 and share > 2", True),  # of an inactive parameter: does not apply
    ],
)
def test_what_a_constraint_means(text: str, holds: bool) -> None:
    kinds = {n: "text" if n == "schedule" else "bool" if n in ("query", "key") else "number" for n in MIXED}
    constraint = parse_constraint(text, kinds, {"schedule": ("cosine", "linear")})  # type: ignore[arg-type]
    assert constraint.holds(AT) is holds


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("alhpa <= 2 * rank", r"'alhpa' is not a parameter; did you mean alpha\?"),
        ("query == true", r"'true' is not a parameter; did you mean True\?"),
        ("alpha <= ", r"cannot be read \(invalid syntax\)"),
        ("alpha + rank", "is not a comparison"),
        ("1 < 2", "names no parameter"),
        ("alpha = rank", "cannot be read"),
        ("__import__('os').system('true') == 0", "is not accepted here"),
        ("alpha.real < 2", "'alpha.real' is not accepted here"),
        ("[a for a in rank] == 2", "is not accepted here"),
        ("(lambda: rank)() < 2", "is not accepted here"),
        ("rank if query else alpha", "is not accepted here"),
        ("rank in (2, 4)", "is not accepted here"),
        ("rank << 2 > 1", "is not accepted here"),
        ("rank < 1j", "'1j' is not accepted here"),
        ("max(rank) < 2", "max takes two arguments or more"),
        ("sqrt(rank, alpha) < 2", "sqrt takes one argument"),
        ("schedule < 'm'", "a text can only be compared with a text, by == and !="),
        ("schedule == 1", "schedule and 1: a text can only be compared with a text"),
        ("schedule + 1 < 2", "schedule is a text: arithmetic needs numbers"),
        ("schedule == 'cosin'", "'cosin' is not a choice of schedule; accepted: cosine, linear"),
        ("rank and alpha < 2", "rank is neither a comparison nor a boolean parameter"),
        ("+".join(["rank"] * 300) + " < 1", "is longer than 1000 characters"),
    ],
)
def test_faults_of_a_constraint(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault) as error:
        Space(MIXED, [text])
    assert len(error.value.faults) == 1
    assert repr(text) in str(error.value)


def test_constraints_decide_what_is_allowed_and_are_named_where_broken() -> None:
    space = Space(MIXED, ["alpha <= 2 * rank", "query + key >= 1", "share + warmup <= 1"])
    assert space.allows(AT)
    assert not space.allows({**AT, "alpha": 17})
    assert space.allows({**AT, "schedule": "linear", "warmup": 0.5})
    assert not space.allows({**AT, "schedule": "linear", "warmup": 0.6})
    space.check(AT)
    with pytest.raises(ConfigError) as error:
        space.check({**AT, "alpha": 17, "query": False})
    assert list(error.value.faults) == ["is not allowed: alpha <= 2 * rank", "is not allowed: query + key >= 1"]
    space.encode({**AT, "alpha": 17})  # a point of the cube may stand for it all the same
    points = np.random.default_rng(0).random((50, 7))
    assert space.allowed(points).tolist() == [space.allows(space.decode(row)) for row in points]
    assert 0 < space.allowed(points).sum() < 50


@pytest.mark.parametrize(
    ("constraints", "count"),
    [(["share > 2"], "none of 10000"), (["share == 0.25"], "none of 10000"), (["share < 1e-5"], "of 10000")],
)
def test_a_space_in_which_almost_nothing_is_allowed_is_a_fault(constraints: list[str], count: str) -> None:
    with pytest.raises(ConfigError, match=count) as error:
        Space(MIXED, constraints)
    assert f"satisfies {constraints[0]}; widen" in str(error.value) or "satisfy all; widen" in str(error.value)
    with pytest.raises(
        ConfigError, match=r"only 0 of 10000 random configurations satisfy all \(\d+ satisfy share > 0.6, "
    ):
        Space(MIXED, ["share > 0.6", "share < 0.4"])


def test_one_configuration_of_a_small_space_is_enough() -> None:
    assert Space({"a": Integer(1, 50), "b": Integer(1, 50)}, "a + b == 100").allows({"a": 50, "b": 50})
    with pytest.raises(ConfigError, match="none of the 2500 configurations satisfies"):
        Space({"a": Integer(1, 50), "b": Integer(1, 50)}, ["a + b == 101"])


# -------------------------------------------------------------------------------------------------- priors and starts


@pytest.mark.parametrize(
    "parameter",
    [
        Float(1e-6, 1e-1, log=True, prior=Prior(1e-4, 0.15)),
        Float(-5.0, 5.0, prior=Prior(5.0, 0.3)),
        Integer(1, 64, prior=Prior(8, 0.1)),
        Integer(1, 512, log=True, prior=Prior(16, 0.2)),
    ],
)
def test_warped_points_are_distributed_as_the_prior(parameter: Float | Integer) -> None:
    assert parameter.prior is not None
    u = (np.arange(4000) + 0.5) / 4000
    warped = np.array([parameter.warp(float(x)) for x in u])
    assert np.all(np.diff(warped) >= 0)
    density = np.exp([parameter.log_prior(float(x)) for x in u])
    assert density.mean() == pytest.approx(1.0, abs=0.01)
    for end in (0.2, 0.5, 0.8):
        assert (warped <= end).mean() == pytest.approx(density[u <= end].sum() / 4000, abs=0.01)
    near = parameter.encode(int(parameter.prior.center)) if isinstance(parameter, Integer) else 0.0
    assert isinstance(parameter, Float) or density[int(near * 4000)] == pytest.approx(density.max(), rel=0.02)


def test_weights_of_choices() -> None:
    parameter = Categorical(("a", "b", "c"), prior=(1, 2, 5))
    values = [parameter.decode(parameter.warp((i + 0.5) / 800)) for i in range(800)]
    assert [values.count(choice) for choice in "abc"] == [100, 200, 500]
    assert np.exp([parameter.log_prior(u) for u in (0.1, 0.5, 0.9)]) == pytest.approx([3 / 8, 6 / 8, 15 / 8])


def test_the_joint_prior_counts_active_parameters_alone() -> None:
    space = Space(
        {
            "use": Categorical((False, True), prior=(3, 1)),
            "x": Float(0.0, 1.0, when={"use": True}, prior=Prior(0.2, 0.1)),
            "y": Float(0.0, 1.0),
        }
    )
    off, on = space.log_prior(np.array([[0.25, 0.5, 0.3], [0.75, 0.5, 0.3]]))
    assert off == pytest.approx(np.log(1.5))
    assert on == pytest.approx(np.log(0.5) + space.parameters["x"].log_prior(0.5))
    assert space.has_prior
    points = np.random.default_rng(0).random((5, 3))
    assert np.all(space.warp(points)[:, 2] == points[:, 2])


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"low": 0.0, "high": 1.0, "prior": {"center": 2.0, "spread": 0.1}}, "prior.center=2: is outside 0 to 1"),
        ({"low": 0.0, "high": 1.0, "prior": {"center": 0.5, "spread": 0}}, "prior.spread=0: must be above 0"),
        ({"low": 0.0, "high": 1.0, "prior": {"center": 0.5}}, "a number's prior is {center: VALUE, spread"),
        ({"choices": ["a", "b"], "prior": [1]}, "prior has 1 weights for 2 choices"),
        ({"choices": ["a", "b"], "prior": [1, 0]}, "weights must be above 0"),
        ({"choices": ["a", "b"], "prior": {"a": 1}}, "a choice's prior is a list of weights"),
    ],
)
def test_faults_of_a_prior(entry: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(fault)):
        Space.from_json({"x": entry})


def test_starting_points_are_made_whole() -> None:
    parameters = {**MIXED, "share": Float(0.0, 1.0, prior=Prior(0.1, 0.05))}
    space = Space(parameters, ["alpha <= 2 * rank"], start=[AT, {"rank": 64.0, "warmup": 0.25}])
    assert space.start[0] == AT
    assert space.start[1] == {
        "rank": 64,
        "alpha": 65,
        "share": pytest.approx(0.1, abs=0.01),
        "query": True,
        "key": True,
        "schedule": "linear",  # since warmup is given
        "warmup": 0.25,
    }
    assert type(space.start[1]["rank"]) is int
    with pytest.raises(ConfigError) as error:
        Space(MIXED, ["alpha <= 2 * rank"], start=[{"rnak": 3}, {"rank": 3}, {"share": 2.0, "rank": 1}])
    assert [fault.partition(":")[0] for fault in error.value.faults] == [
        "space.start[0].rnak",
        "space.start[1]",
        "space.start[2].rank",
        "space.start[2].share",
    ]
    assert "did you mean rank?" in error.value.faults[0]
    assert "is not allowed: alpha <= 2 * rank (with alpha=65" in error.value.faults[1]


def test_everything_comes_back_from_json() -> None:
    space = Space(
        {
            "lr": Float(1e-5, 1e-1, log=True, prior=Prior(1e-3, 0.2)),
            "schedule": Categorical(("cosine", "linear"), prior=(2, 1)),
            "decay": Float(0.0, 1.0, when={"schedule": ["linear"]}),
            "rank": Categorical((2, 4, 8), ordered=True),
        },
        constraints=["lr * rank <= 0.1"],
        start=[{"lr": 1e-3, "schedule": "linear"}],
    )
    plain = json.loads(json.dumps(space.to_json()))
    assert Space.from_json(plain) == space
    assert parameter_names(plain) == list(space.names)
    assert Space.from_json({**plain, "constraints": []}) != space
    assert Space.from_json({**plain, "start": []}) != space
    assert Space.from_json({**plain, "decay": {"low": 0.0, "high": 1.0}}) != space


def test_keys_of_the_space_are_no_names_of_parameters() -> None:
    with pytest.raises(ConfigError, match="no parameter can have that name"):
        Space.from_json({"x": {"low": 1, "high": 2}, "start": {"low": 1, "high": 2}})
    with pytest.raises(ConfigError, match="is a key of the space"):
        Space({"constraints": Float(0, 1)})
    with pytest.raises(ConfigError, match="must be a list of comparisons"):
        Space.from_json({"x": {"low": 1, "high": 2}, "constraints": [1]})


def test_all_faults_of_conditions_constraints_and_parameters_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Space.from_json(
            {
                "x": {"low": 2, "high": 1},
                "y": {"low": 1, "high": 2, "whne": {"x": 1}},
                "z": {"low": 1, "high": 2, "when": {"y": 1, "w": 2}},
                "constraints": ["x < y", "x < v"],
            }
        )
    assert len(error.value.faults) == 4


# --------------------------------------------------------------------------------------------- steps, and what is fixed


@pytest.mark.parametrize(
    ("parameter", "values"),
    [
        (Integer(8, 64, step=8), [8, 16, 24, 32, 40, 48, 56, 64]),
        (Float(0.0, 0.3, step=0.05), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (Float(-0.3, 0.3, step=0.1), [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3]),
        (Float(0.1, 3 * 0.1, step=0.1), [0.1, 0.2, 0.3]),
        (Float(0.0, 1.0, step=1 / 3), [0.0, 0.33333333333333, 0.66666666666667, 1.0]),
        (Float(1e6, 1e6 + 1, step=0.25), [1e6, 1000000.25, 1000000.5, 1000000.75, 1000001.0]),
        (Float(2.0, 2.0, step=0.5), [2.0]),
        (Integer(-3, 3, step=3), [-3, 0, 3]),
    ],
)
def test_steps_have_exact_values_in_bins_of_equal_width(parameter: Float | Integer, values: list[float]) -> None:
    assert repr(list(parameter.values)) == repr(values)
    assert parameter.cardinality == len(values)
    for i, value in enumerate(values):
        assert parameter.encode(value) == (i + 0.5) / len(values)
        for u in ((i + 1e-9) / len(values), (i + 0.5) / len(values), (i + 1 - 1e-9) / len(values)):
            assert repr(parameter.decode(u)) == repr(value)
    again = Space.from_json(json.loads(json.dumps(Space({"x": parameter}).to_json())))
    assert again == Space({"x": parameter})


@given(st.integers(-400, 400), st.integers(1, 300), st.integers(1, 99), st.integers(0, 5))
def test_steps_never_show_the_noise_of_a_sum(low: int, count: int, step: int, digits: int) -> None:
    """Decimal numbers give decimal numbers of no more digits."""
    unit = 10**digits
    parameter = Float(low / unit, (low + count * step) / unit, step=step / unit)
    assert parameter.faults() == []
    assert list(parameter.values) == [(low + i * step) / unit for i in range(count + 1)]


def test_a_step_of_one_is_what_integers_have() -> None:
    assert Integer(1, 64, log=True, step=1) == Integer(1, 64, log=True)
    assert "step" not in Space({"n": Integer(1, 4, step=1)}).to_json()["n"]


def test_a_value_between_two_steps_is_refused() -> None:
    space = Space({"x": Float(0.0, 0.3, step=0.05), "n": Integer(8, 64, step=8)})
    with pytest.raises(ConfigError) as error:
        space.check({"x": 0.17, "n": 12})
    assert list(error.value.faults) == [
        "x: 0.17 is not one of [0, 0.05, … 0.3] (step 0.05)",
        "n: 12 is not one of [8, 16, … 64] (step 8)",
    ]
    for value in (-0.05, 0.35, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="is not one of"):
            space.parameters["x"].encode(value)
    space.check({"x": 0.1 + 0.05, "n": 64})  # 0.15000000000000002


def test_the_kind_follows_from_ends_and_step() -> None:
    space = Space.from_json({"a": {"low": 0, "high": 1, "step": 0.25}, "b": {"low": 0, "high": 8, "step": 2}})
    assert space.decode([0.5, 0.5]) == {"a": 0.5, "b": 4}
    assert space.size == 25


def test_a_prior_of_steps() -> None:
    parameter = Float(0.0, 0.3, step=0.05, prior=Prior(0.1, 0.1))
    drawn = [parameter.decode(parameter.warp(u)) for u in np.random.default_rng(0).random(400)]
    assert max(drawn.count(value) for value in parameter.values) == drawn.count(0.1)
    assert parameter.prior_position[0] == pytest.approx(parameter.encode(0.1))


def test_a_condition_on_steps() -> None:
    space = Space({"x": Float(0.0, 0.3, step=0.1), "y": Float(0.0, 1.0, when={"x": 0.3})})
    assert [space.decode([u, 0.5]).get("y") for u in (0.1, 0.9)] == [None, 0.5]
    assert space.active(np.array([[0.1, 0.5], [0.9, 0.5]])).tolist() == [[True, False], [True, True]]
    with pytest.raises(ConfigError, match=r"0\.30000000000000004 is not exactly a value of it; write 0\.3"):
        Space({"x": Float(0.0, 0.3, step=0.1), "y": Float(0.0, 1.0, when={"x": 0.1 + 0.2})})


def test_fixed_parameters_stand_in_every_configuration_and_have_no_axis() -> None:
    space = Space(
        {
            "batch": Categorical((16,)),
            "x": Float(0.0, 1.0),
            "rate": Float(0.1, 0.1, log=True, prior=Prior(0.1, 0.2)),
            "n": Integer(3, 3),
        },
        constraints=["x * n <= 2"],
        start=[{"x": 0.25}],
    )
    assert (space.dim, space.axes, space.names) == (1, ("x",), ("batch", "x", "rate", "n"))
    whole = {"batch": 16, "x": 0.25, "rate": 0.1, "n": 3}
    assert space.decode([0.25]) == space.start[0] == whole
    assert space.encode(whole).tolist() == [0.25]
    assert not space.allows({**whole, "x": 0.75})
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    with pytest.raises(ConfigError) as error:
        space.check({**whole, "batch": 8, "rate": 0.2, "n": 4})
    assert list(error.value.faults) == [
        "batch: 8 is not one of [16]",
        "rate: 0.2 is not one of [0.1]",
        "n: 4 is not an integer from 3 to 3",
    ]


def test_a_fixed_parent_decides_what_is_searched() -> None:
    """As after ``space.schedule=constant`` on the command line: the conditions still name what it might have been."""
    entries = {
        "schedule": "cosine",
        "warmup": {"low": 0.0, "high": 0.2, "when": {"schedule": ["cosine", "linear"]}},
        "cycles": {"choices": [2], "when": {"warmed": True}},
        "warmed": {"type": "bool", "when": {"schedule": "cosine"}},
        "decay": {"low": 1, "high": 4, "when": {"cycles": 2}},
    }
    space = Space.from_json(entries)
    assert space.axes == ("warmup", "warmed", "decay")
    assert space.decode([0.5, 0.9, 0.1]) == {
        "schedule": "cosine",
        "warmup": 0.1,
        "cycles": 2,
        "warmed": True,
        "decay": 1,
    }
    assert space.decode([0.5, 0.1, 0.1]) == {"schedule": "cosine", "warmup": 0.1, "warmed": False}
    assert space.active(np.array([[0.5, 0.9, 0.1], [0.5, 0.1, 0.1]])).tolist() == [[True] * 3, [True, True, False]]
    fixed = Space.from_json(entries | {"schedule": "constant"})
    assert fixed.size == 1  # though `warmup` is real
    assert fixed.decode([0.5] * fixed.dim) == {"schedule": "constant"}
    with pytest.raises(ConfigError, match="warmup: is active only when schedule is cosine or linear"):
        fixed.check({"schedule": "constant", "warmup": 0.1})


def test_a_space_in_which_everything_is_fixed_has_one_configuration() -> None:
    space = Space({"c": Categorical(("a",)), "x": Float(0.0, 0.0), "n": Integer(3, 3)})
    assert (space.size, space.dim) == (1, 1)
    assert (
        list(space.combinations(space.order)) == [space.decode([u]) for u in (0.3,)] == [{"c": "a", "x": 0.0, "n": 3}]
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("log", True, "is a key of a parameter: indent it under one"),
        ("constraint", "a <= 1", "did you mean constraints?"),
        ("batch", [8, 16], r"write \{choices: \[8, 16\]\}, or \{ordered: \[8, 16\]\}"),
        ("batch", None, "is not a parameter; accepted: a mapping such as"),
        ("batch", "", "would mean that the parameter is not active"),
        ("batch", float("nan"), "is not a finite number"),
    ],
)
def test_bare_values_that_fix_nothing(name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        Space.from_json({"a": {"low": 0.0, "high": 1.0}, name: value, "bad": {"low": 1}})
    assert "space.bad: needs high" in str(error.value)
