"""The surrogate: its columns, what it is told, what it recommends."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from hpo_cluster.optimizers.bayesian.bo import BOSettings
from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import OUTCOME, Observations, Outcome, fitted_size, scaled, thinned
from hpo_cluster.optimizers.bayesian.surrogate import (
    Fitted,
    SurrogateError,
    conditioned,
    fit,
    recommend,
    surrogate_of,
)
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Categorical, Float, Integer, Space

LINE = Space({"x": Float(0.0, 1.0)})
MIXED = Space(
    {
        "x": Float(1e-3, 1.0, log=True),
        "n": Integer(1, 5),
        "c": Categorical(("a", "b", "c")),
        "o": Categorical((2, 4, 8, 16), ordered=True),
        "b": Categorical((False, True)),
    }
)


def history(values: list[tuple[float, str, float]], **more: Any) -> pd.DataFrame:
    """Rows of (x, state, target)."""
    rows = [
        {"trial": i, "state": s, "origin": "evaluated", "value": t, "target": t, "x": x}
        for i, (x, s, t) in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**more)


def test_columns() -> None:
    features = Features(MIXED)
    assert features.names == ["x", "n", "c=a", "c=b", "c=c", "o", "b"]
    point = MIXED.encode({"x": 1e-3, "n": 5, "c": "b", "o": 2, "b": True})
    assert features.encode(point[None])[0] == pytest.approx([0, 1, 0, 1, 0, 0, 1])


def test_columns_lead_back_to_the_point() -> None:
    features, rng = Features(MIXED), np.random.default_rng(0)
    points = MIXED.snap(rng.random((200, MIXED.dim)))
    assert features.decode(features.encode(points)) == pytest.approx(points)


def test_units_and_bounds_of_a_box() -> None:
    features = Features(MIXED)
    assert features.units(0.1) == pytest.approx([0.1, 0.1, 1, 1, 1, 0.1, 0.1])
    low, high = features.bounds(np.full(5, 0.5), np.full(5, 1.0))
    assert low == pytest.approx([0.5, 0.5, 0, 0, 0, 0.5, 0.5])
    assert high == pytest.approx([1, 1, 1, 1, 1, 1, 1])


def test_relaxed_columns_are_rounded_to_the_nearest_value() -> None:
    space = Space({"n": Integer(1, 5)})
    decoded = Features(space).decode(np.array([[0.0], [0.12], [0.13], [0.49], [1.0]]))
    assert [space.decode(point)["n"] for point in decoded] == [1, 1, 2, 3, 5]


def test_what_is_told() -> None:
    nan = math.nan
    frame = history(
        [
            (0.1, "completed", 3.0),
            (0.2, "diverged", nan),
            (0.3, "failed", nan),
            (0.4, "cancelled", nan),
            (0.5, "running", nan),
            (0.6, "infeasible", nan),
            (0.7, "completed", 1.0),
        ]
    )
    observations = Observations.of(Dataset.read(LINE, frame))
    assert observations.trials.tolist() == [0, 1, 5, 6]
    assert observations.targets.tolist() == [3.0, 1.0, 1.0, 1.0]  # the worst one so far for those without a value
    assert observations.measured.tolist() == [True, False, False, True]
    worse = pd.concat([frame, history([(0.9, "completed", -2.0)]).assign(trial=7)], ignore_index=True)
    assert Observations.of(Dataset.read(LINE, worse)).targets.tolist() == [3.0, -2.0, -2.0, 1.0, -2.0]


def test_nothing_measured_tells_nothing() -> None:
    assert len(Observations.of(Dataset.read(LINE, history([(0.2, "diverged", math.nan)]))).trials) == 0


def test_the_first_are_those_that_ended_first() -> None:
    frame = history([(0.1 * i, s, t) for i, (s, t) in enumerate([("completed", 3.0), ("diverged", math.nan)] * 2)])
    frame = frame.assign(ended_seq=[9, 4, 7, 5])
    first = Observations.of(Dataset.read(LINE, frame)).first(3)
    assert first.trials.tolist() == [1, 2, 3]
    assert first.targets.tolist() == [3.0, 3.0, 3.0]
    assert len(Observations.of(Dataset.read(LINE, frame)).first(2)) == 0  # nothing measured among them
    without = frame.drop(columns="ended_seq")
    assert Observations.of(Dataset.read(LINE, without)).first(2).trials.tolist() == [0, 1]


def test_sizes_that_are_fitted() -> None:
    assert [fitted_size(n) for n in (1, 59, 60, 61, 65, 66, 72, 73)] == [1, 59, 60, 60, 60, 66, 66, 73]
    sizes = [fitted_size(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes)
    assert all(0.9 * n < size <= n for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 120


def test_a_choice_of_observations_has_the_best_and_covers_the_rest() -> None:
    x = np.linspace(0.0, 1.0, 101)
    frame = history([(float(u), "completed", -((u - 0.2) ** 2)) for u in x])
    few = thinned(Observations.of(Dataset.read(LINE, frame)), 12)
    chosen = few.points[:, 0]
    assert len(few) == 12
    assert {round(u, 9) for u in x[18:23]} <= {round(u, 9) for u in chosen}
    assert np.diff(np.sort(chosen)).max() < 0.25
    assert chosen.max() == 1.0
    assert len(thinned(few, 12)) == 12


def test_conditioning_is_what_the_fit_does_after_its_fit() -> None:
    rng = np.random.default_rng(0)
    frame = history([(float(u), "completed", math.sin(6 * u)) for u in rng.random(14)])
    data, features, at = Dataset.read(LINE, frame), Features(LINE), np.linspace(0, 1, 9)[:, None]
    fitted = fit(features, Observations.of(data), "soft")
    again = conditioned(fitted, Observations.of(data), "soft")
    assert again.mean(at) == pytest.approx(fitted.mean(at), abs=1e-6)


def test_outcomes() -> None:
    frame = history([(0.1 * i, "completed", t) for i, t in enumerate([0.0, 1.0, 2.0, 3.0, 10.0])])
    observations = Observations.of(Dataset.read(LINE, frame))
    assert observations.outcomes("raw").tolist() == [0, 1, 2, 3, 10]
    assert observations.outcomes("clip").tolist() == [2, 2, 2, 3, 10]
    tied = Observations.of(Dataset.read(LINE, frame.assign(target=[0.0, 1.0, 1.0, 1.0, 1.0])))
    assert tied.outcomes("clip").tolist() == [0, 1, 1, 1, 1]


CASES = {
    "cliff below": [0.23, 0.24, 0.27, 0.86, 0.89, 0.9, 0.91],
    "cliff, mostly bad": [0.2, 0.21, 0.22, 0.23, 0.24, 0.5, 0.9],
    "half are the best": [0.1, 0.2, 1.0, 1.0, 1.0, 1.0],
    "one is bad": [-1e6, 1.0, 1.0, 1.0, 1.0],
    "one is good": [0.0, 0.0, 0.0, 0.0, 1.0],
    "two": [-3.0, 2.0],
    "wide": [-1e12, -1e6, -10.0, 0.0, 1e-3],
}


@pytest.mark.parametrize("outcome", get_args(Outcome))
@pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())
def test_no_outcome_changes_the_order_or_the_best(outcome: Outcome, values: list[float]) -> None:
    targets = np.array(values)
    seen = scaled(targets, outcome)
    assert np.all(np.diff(seen) >= 0)
    assert seen.max() == targets.max()
    if outcome == "ranked":  # the lower half moves up or down, and is no deeper than the better half is high
        high = targets.max() - np.median(targets)
        assert targets.max() - seen.min() <= 2 * (high or np.ptp(targets))
    else:
        assert np.all(seen >= targets)
    assert np.ptp(seen) > 0
    top = targets >= np.median(targets)
    if outcome != "winsor":
        assert seen[top].tolist() == targets[top].tolist()
    if outcome in ("ranked", "soft", "raw"):  # nothing is lost
        assert np.all(np.diff(seen)[np.diff(targets) > 0] > 0)
    shuffled = np.random.default_rng(0).permutation(len(targets))
    assert scaled(targets[shuffled], outcome) == pytest.approx(seen[shuffled])


@pytest.mark.parametrize("outcome", get_args(Outcome))
@pytest.mark.parametrize("values", [[], [0.4], [0.4, 0.4], [-2.0] * 7])
def test_an_outcome_of_equal_values_is_what_they_are(outcome: Outcome, values: list[float]) -> None:
    assert scaled(np.array(values), outcome).tolist() == values


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_an_outcome_minds_no_units(outcome: Outcome) -> None:
    targets = np.random.default_rng(2).normal(size=13)
    assert scaled(100 * targets - 7, outcome) == pytest.approx(100 * scaled(targets, outcome) - 7)


def test_soft_has_no_kink_and_keeps_the_cliff_low() -> None:
    targets = np.array(CASES["cliff below"])
    soft = scaled(targets, "soft")
    assert soft.tolist()[3:] == targets.tolist()[3:]  # from the median on as they are
    assert soft[2] == pytest.approx(0.86 - 0.05 * math.log(1 + 0.59 / 0.05))
    below = np.array([0.0, 1.0 - 1e-6, 1.0, 2.0, 3.0])
    seen = scaled(below, "soft")
    assert (seen[2] - seen[1]) / 1e-6 == pytest.approx(1.0, abs=1e-5)  # slope 1 at the median, from both sides


def test_ranked_spreads_the_lower_half_evenly() -> None:
    targets = np.array([-1e6, 0.2, 0.2, 0.5, 0.8, 0.8, 0.9, 1.0])  # median 0.65, 0.35 below the best
    below = [0.65 - 0.35 * share for share in (7 / 8, 1 / 2, 1 / 2, 1 / 8)]
    assert scaled(targets, "ranked").tolist() == pytest.approx([*below, 0.8, 0.8, 0.9, 1.0])


def test_the_model_tells_a_flat_top_apart_and_sees_the_cliff_beside_it() -> None:
    """The top is 0.02 high and the cliff 0.6 deep: raw values hide the top from the process, clip hides the cliff."""

    def height(x: float, y: float, z: float) -> float:
        s = x + 0.3 * y
        return 0.25 if s > 0.75 else 0.83 + 0.02 * math.exp(-(((s - 0.65) / 0.15) ** 2) - ((z - 0.3) / 0.3) ** 2)

    space = Space({name: Float(0.0, 1.0) for name in "xyz"})
    order, fallen = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    for seed in range(3):
        points = np.random.default_rng(seed).random((800, 3))
        heights = np.array([height(*point) for point in points])
        good = heights > 0.25
        trained = [*np.flatnonzero(good)[:30], *np.flatnonzero(~good)[:10]]
        rows = [
            {"trial": i, "state": "completed", "origin": "evaluated", "target": heights[i]}
            | dict(zip("xyz", points[i], strict=True))
            for i in trained
        ]
        for outcome in get_args(Outcome):
            means = surrogate_of(pd.DataFrame(rows), space, outcome).mean(points[500:])
            above = good[500:]
            order[outcome].append(spearmanr(means[above], heights[500:][above])[0])
            fallen[outcome].append(float((means[~above] > np.median(means[above])).mean()))
    assert np.mean(order["ranked"]) > 0.8 > 0.5 > np.mean(order["raw"])
    assert np.mean(fallen["ranked"]) < 0.1 < np.mean(fallen["clip"])
    assert np.mean(order["ranked"]) > max(np.mean(order[outcome]) for outcome in ("soft", "winsor"))
    assert BOSettings().outcome == OUTCOME
    default = surrogate_of(pd.DataFrame(rows), space)
    assert default.outcomes.tolist() == default.observations.outcomes(OUTCOME).tolist()


def test_winsor_is_where_the_best_half_ends() -> None:
    targets = np.array([0.0, 5.0, 6.0, 8.0, 9.0, 10.0])
    assert scaled(targets, "winsor").tolist() == [7, 7, 7, 8, 9, 10]  # upper half 8, 9, 10: 9 - 2 * (10 - 9)


def test_the_fit_follows_the_data() -> None:
    x = np.linspace(0, 1, 15)
    frame = history([(float(u), "completed", float(np.sin(6 * u))) for u in x])
    surrogate = fit(Features(LINE), Observations.of(Dataset.read(LINE, frame)), "raw")
    new = np.linspace(0.05, 0.95, 9)
    assert surrogate.mean(new[:, None]) == pytest.approx(np.sin(6 * new), abs=0.05)
    said = surrogate.describe()
    assert set(said["length_scales"]) == {"x"}
    assert 0 < said["noise"] < 0.2


def test_too_few_different_values() -> None:
    for values in ([], [1.0], [1.0, 1.0, 1.0]):
        frame = history([(0.1 * i, "completed", v) for i, v in enumerate(values)])
        with pytest.raises(SurrogateError, match="distinct values"):
            fit(Features(LINE), Observations.of(Dataset.read(LINE, frame)), "clip")


def test_recommends_the_best_mean_not_the_luckiest_value() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0.0, 1.0, 25)
    y = -((x - 0.7) ** 2) * 4 + rng.normal(0, 0.03, len(x))
    y[5] = y.max() + 0.02  # a lucky value far from where the good ones are
    frame = history([(float(u), "completed", float(v)) for u, v in zip(x, y, strict=True)])
    chosen = recommend(frame, LINE, outcome="raw")
    assert chosen is not None
    assert abs(x[chosen] - 0.7) < 0.1


def test_recommends_among_what_was_evaluated() -> None:
    assert recommend(pd.DataFrame(), LINE) is None
    assert recommend(history([(0.5, "running", math.nan)]), LINE) is None
    assert recommend(history([(0.5, "diverged", math.nan), (0.2, "completed", 1.0)]), LINE) == 1
    assert recommend(history([(0.5, "completed", 1.0), (0.2, "completed", 1.0)]), LINE) == 0


def test_what_is_pending_takes_uncertainty_away_but_moves_no_mean() -> None:
    rng = np.random.default_rng(0)
    frame = history([(float(u), "completed", math.sin(6 * u)) for u in 0.5 * rng.random(8)])
    surrogate = fit(Features(LINE), Observations.of(Dataset.read(LINE, frame)), "raw")
    at, pending = np.array([[0.8], [0.1]]), np.array([[0.82]])
    mean, deviation = surrogate.posterior(at, pending[:0])
    same, less = surrogate.posterior(at, pending)
    assert same == pytest.approx(mean)
    assert less[0] < 0.5 * deviation[0]
    assert less[1] == pytest.approx(deviation[1], rel=0.2)


def test_configurations_evaluated_again_tell_of_the_noise() -> None:
    """With ten points once nothing can be said; with five values at each, the noise is what they differ by."""
    rng = np.random.default_rng(3)
    x = np.repeat(np.linspace(0.05, 0.95, 10), 5)
    y = np.sin(40 * x) + 0.2 * rng.standard_normal(len(x))
    frame = history([(float(u), "completed", float(v)) for u, v in zip(x, y, strict=True)])
    surrogate = fit(Features(LINE), Observations.of(Dataset.read(LINE, frame)), "raw")
    within = np.sqrt(np.mean([y[i : i + 5].var(ddof=1) for i in range(0, 50, 5)]))
    assert surrogate.describe()["noise"] == pytest.approx(within, rel=0.25)


def test_infeasible_trials_may_be_left_out() -> None:
    data = Dataset.read(
        LINE, history([(0.1, "completed", 3.0), (0.2, "diverged", math.nan), (0.3, "infeasible", math.nan)])
    )
    assert Observations.of(data).trials.tolist() == [0, 1, 2]
    assert Observations.of(data, infeasible=False).trials.tolist() == [0, 1]


def test_a_model_of_a_history_predicts_configurations() -> None:
    told = history([(x, "completed", math.sin(6 * x)) for x in np.linspace(0, 1, 9)])
    mean, deviation = surrogate_of(told, LINE, "raw").predict([{"x": 0.5}, {"x": 0.31}])
    assert mean == pytest.approx([math.sin(3), math.sin(1.86)], abs=0.02)
    assert (deviation < 0.1).all()
    with pytest.raises(SurrogateError, match="at least 2"):
        surrogate_of(told[:1], LINE)


def test_as_many_processes_are_remembered_as_are_wanted() -> None:
    x = np.random.default_rng(0).random((6, 2))
    y, fitted = x.sum(axis=1), Fitted(2)
    one, other = fitted.process("soft", x, y), fitted.process("clip", x, y)
    assert fitted.process("soft", x.copy(), y.copy()) is one
    assert fitted.process("soft", x, -y) is not one  # which takes the place of the one used longest ago
    assert fitted.process("soft", x, y) is one
    assert fitted.process("clip", x, y) is not other
    assert fitted.process("clip", x, y, units=np.full(2, 0.5)) is not fitted.process("clip", x, y)
