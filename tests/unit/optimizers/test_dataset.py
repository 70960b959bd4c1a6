"""One reading of a history, whatever the frame went through, and what is read again at the next one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Prior, Space
from hpo_cluster.space.sampling import free_point, key_of, remaining_points
from hpo_cluster.trial import State

SPACE = Space(
    {
        "version": Categorical(("1", "2", "10"), when={"on": True}),
        "size": Categorical((4, 8, 16), ordered=True, when={"on": True}),
        "fast": Categorical((False, True), when={"on": True}),
        "count": Integer(1, 9, when={"on": True}),
        "on": Categorical((False, True)),
        "rate": Float(0.0, 1.0),
    }
)
CONFIGURATIONS: list[Configuration] = [
    {"on": False, "rate": 0.1},
    {"version": "10", "size": 8, "fast": True, "count": 3, "on": True, "rate": 0.2},
    {"version": "1", "size": 16, "fast": False, "count": 9, "on": True, "rate": 0.3},
]


@pytest.mark.parametrize(
    "rows",
    [CONFIGURATIONS, CONFIGURATIONS[1:], CONFIGURATIONS[:1]],
    ids=["some inactive", "none inactive", "all inactive"],
)
def test_inactive_cells_come_back_from_memory_and_from_csv(rows: list[Configuration], tmp_path: Path) -> None:
    frame = pd.DataFrame([{"trial": i, "target": 1.0, **row} for i, row in enumerate(rows)])
    frame = frame.reindex(columns=["trial", "target", *SPACE.names])
    frame.to_csv(tmp_path / "history.csv", index=False)
    for history in (frame, pd.read_csv(tmp_path / "history.csv")):
        data = Dataset.read(SPACE, history)
        assert [row.configuration for row in data] == rows
        assert [[type(v) for v in row.configuration.values()] for row in data] == [
            [type(v) for v in row.values()] for row in rows
        ]
        assert data.outside == 0


def test_a_value_of_an_inactive_parameter_is_not_read_and_a_missing_one_puts_the_row_outside() -> None:
    more = {**CONFIGURATIONS[0], "count": 77, "version": "x"}
    less = {**CONFIGURATIONS[1], "count": math.nan}
    data = Dataset.read(SPACE, pd.DataFrame([more, less]).assign(target=1.0))
    assert [row.configuration for row in data] == [CONFIGURATIONS[0]]
    assert data.outside == 1


def test_what_remains_of_a_finite_space_is_allowed_and_there_once() -> None:
    space = Space(
        {"n": Integer(1, 4), "b": Categorical((False, True)), "m": Integer(1, 3, when={"b": True})}, ["n + m <= 5"]
    )
    points = remaining_points(space, set())
    assert len(points) == 4 + 9
    assert len({key_of(space, point) for point in points}) == 13
    assert space.allowed(points).all()
    taken = {key_of(space, point) for point in points[1:]}
    last = free_point(space, taken, np.random.default_rng(0))
    assert last is not None
    assert last.tolist() == points[0].tolist()
    assert free_point(space, {key_of(space, point) for point in points}, np.random.default_rng(0)) is None


def test_random_points_follow_the_priors() -> None:
    space = Space({"x": Float(0.0, 1.0, prior=Prior(0.8, 0.05)), "y": Float(0.0, 1.0)}, ["x + y <= 1.5"])
    rng = np.random.default_rng(0)
    drawn = np.array([free_point(space, set(), rng) for _ in range(50)])
    assert ((drawn[:, 0] > 0.6) & (drawn[:, 0] < 1.0)).all()
    assert drawn.sum(axis=1).max() <= 1.5


def test_what_is_no_history_is_refused_with_what_to_give() -> None:
    with pytest.raises(TypeError, match=r"history=None: is not a DataFrame .* without trials:  pd.DataFrame\(\)"):
        Dataset.read(Space({"x": Float(0, 1)}), None)  # type: ignore[arg-type]
    assert Dataset.read(Space({"x": Float(0, 1)}), pd.DataFrame()).rows == ()


def test_rows_that_are_left_out_are_told() -> None:
    space = Space({"x": Float(0.0, 1.0)})
    history = pd.DataFrame({"x": [0.5, 7.0, 0.25], "value": [1.0, 2.0, 3.0], "target": [1.0, 2.0, 3.0]})
    with pytest.warns(UserWarning, match=r"1 row of the history is not .* is left out: trial 1 \(x: .*7"):
        data = Dataset.read(space, history)
    assert [row.trial for row in data] == [0, 2]
    assert data.outside == 1
    texts = history.assign(x=["a", None, 0.25])
    with pytest.warns(UserWarning, match=r"2 rows .* are not .* trial 0 \(x='a': is not .*, trial 1 \(x: has no value"):
        assert Dataset.read(space, texts).outside == 2


def test_all_faults_of_a_history_made_by_hand_are_one_error() -> None:
    space = Space({"x": Float(0.0, 1.0), "target_modules": Categorical(("all", "mlp"))})
    history = pd.DataFrame(
        {
            "trial": [0, 1, 1, 3, 3, 5, 5.5, -1, -1],
            "state": ["completed", "done", "done", "failed", "diverged", None, "completed", "completed", "completed"],
            "target": ["high", 1.0, math.inf, math.nan, None, -math.inf, 2.0, 0.0, 0.0],
            "value": 1.0,
            "target_modules": "all",
        }
    )
    with pytest.raises(ConfigError) as error:
        Dataset.read(space, history, n=True)
    assert error.value.faults == (
        "n=True: is the number of proposals wanted; accepted: a whole number, 1 or more",
        "history: has no column x, which is a parameter of the space",
        "history: trial=5.5: is not a whole number",
        "history: target='high': is not a number",
        "history: several rows of trial 1, trial 3; a trial has one",
        "history: target=inf of trial 1, target=-inf of trial 5: is not finite; accepted: a finite number, or NaN with "
        "the state diverged or failed for a trial without a value",
        "history: state='done' of trial 1: is not known; accepted: proposed, submitted, running, completed, "
        "diverged, infeasible, failed, cancelled, paused",
    )
    states = ["completed", "failed", "running"] * 3
    sound = history.assign(x=0.5, trial=range(len(history)), state=states, target=[1.0, math.nan, None] * 3)
    assert [row.observed for row in Dataset.read(space, sound, n=np.int64(2))] == [True, False, False] * 3


def test_the_infinite_targets_of_several_objectives_are_named() -> None:
    space = Space({"x": Float(0.0, 1.0)})
    history = pd.DataFrame({"x": [0.1, 0.2, 0.3, 0.4, 0.5], "target_a": [1.0, -math.inf, 2.0, 3.0, math.nan]})
    history["target_b"] = math.inf
    with pytest.raises(ConfigError, match=r"target_a=-inf of trial 1: is not finite") as error:
        Dataset.read(space, history)
    assert "target_b=inf of trial 0, target_b=inf of trial 1, target_b=inf of trial 2 and 2 more" in str(error.value)


ORIGINS = ("confirmation", "baseline", "evaluated")
LINE = Space({"x": Float(0.0, 1.0), "c": Categorical(("a", "b"), when={"on": True}), "on": Categorical((False, True))})


def rows(count: int) -> list[dict[str, Any]]:
    """Return trials that were proposed and ended one after another; every other one has an inactive parameter."""
    return [
        {
            "trial": i,
            "state": "completed",
            "origin": "evaluated",
            "value": float(i),
            "target": float(i),
            "x": i / 100,
            "c": "a" if i % 2 else None,
            "on": bool(i % 2),
            "asked_seq": 2 * i,
            "ended_seq": 2.0 * i + 1,
        }
        for i in range(count)
    ]


def running(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"state": "running", "value": math.nan, "target": math.nan, "ended_seq": math.nan}


def frames(given: list[dict[str, Any]], tmp_path: Path) -> dict[str, pd.DataFrame]:
    """Return the same history in the forms that a frame can have."""
    plain = pd.DataFrame(given)
    plain.to_csv(tmp_path / "history.csv", index=False)
    return {
        "plain": plain,
        "shuffled": plain.sample(frac=1.0, random_state=1),
        "objects": plain.astype(object),
        "csv": pd.read_csv(tmp_path / "history.csv"),
        "nullable": plain.convert_dtypes(),
        "with a baseline": pd.concat([pd.DataFrame([given[0] | {"trial": -1, "origin": "baseline"}]), plain]),
    }


def test_the_next_reading_reads_only_what_has_changed(tmp_path: Path) -> None:
    """Rows that have not changed are the same objects, whatever form the frame has by then."""
    before = rows(20)
    before[7] = running(before[7])
    now = rows(22)
    now[3] |= {"value": 99.0, "target": 99.0}
    for first in frames(before, tmp_path).values():
        for form, second in frames(now, tmp_path).items():
            old = Dataset.read(LINE, first)
            new = Dataset.read(LINE, second, old)
            fresh = [i for i, row in enumerate(new) if i >= 20 or row is not old.rows[i]]
            assert fresh == [3, 7, 20, 21], form
            assert [row.target for row in new] == [row["target"] for row in now]
            assert [row.configuration for row in new] == [row.configuration for row in Dataset.read(LINE, second)]
            assert new.next_trial == 22


def test_a_frame_that_its_owner_changes_is_read_again() -> None:
    frame = pd.DataFrame(rows(4))
    old = Dataset.read(LINE, frame)
    frame.loc[2, "target"] = 50.0
    frame.loc[1, "c"] = "b"
    new = Dataset.read(LINE, frame, old)
    assert [now is before for now, before in zip(new, old, strict=True)] == [True, False, False, True]
    assert new.rows[1].configuration["c"] == "b"
    assert new.best is new.rows[2]


def test_a_frame_without_words_and_numbers_is_of_completed_trials() -> None:
    frame = pd.DataFrame({"x": [0.1, 0.2], "on": [False, False], "target": [2, 3]})
    data = Dataset.read(LINE, frame)
    assert [(row.trial, row.state, row.observed) for row in data] == [(i, State.COMPLETED, True) for i in range(2)]
    data = Dataset.read(LINE, frame.drop(columns="target").assign(state=["running", "failed"]))  # none has a value
    assert len(data.rows) == 2
    assert math.isnan(data.worst)
    assert (data.best, data.incumbent, data.sign) == (None, None, 1.0)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"Target": 1.0}, r"has no column target, .*; did you mean Target\?\nrename it: .*\{'Target': 'target'\}"),
        ({}, r"has no column target, .* makes more better\nadd it: history.assign\(target=SCORES\)"),
        ({"state": ["running", "completed"]}, "has no column target"),
        ({"state": ["running", None]}, "has no column target"),
        ({"state": ["running", "paused"]}, "has no column target"),
        ({"value": 1.0}, r"has a column value but no column target.*\nadd it: .*\(target=history.value\), or -history"),
        ({"target_a": 1.0, "target_b": 1.0}, r"has no column target.*\nadd it, .* first .*history\['target_a'\]"),
        ({"target": 1.0, "slack_m": 0.5}, r"slack_m is of a constraint, which needs .*assign\(target_score=history"),
        (
            {"target": [1.0, math.nan]},
            "trial 1: completed without a target; .* failed, diverged; without a column state",
        ),
        (
            {"target": [1.0, math.nan], "state": "completed"},
            "trial 1: completed without a target; .* failed, diverged$",
        ),
        ({"target": 1.0, "target_a": [None, 1.0], "target_b": 1.0}, "trial 0: completed without a target_a"),
        ({"target": 1.0, "trial": [-2, -1]}, "trial -2: trials are numbered from 0; -1 is the baseline"),
        ({"target": 1.0, "state": ["done", "faild"]}, r"'faild' of trial 1: is not known; did you mean failed\?"),
    ],
)
def test_what_would_be_ignored_is_a_fault(columns: dict[str, Any], fault: str) -> None:
    history = pd.DataFrame({"x": [0.1, 0.2], "on": [False, False]}).assign(**columns)
    with pytest.raises(ConfigError, match=fault):
        Dataset.read(LINE, history)


def test_a_conditional_parameter_needs_a_column_once_a_trial_has_it() -> None:
    history = pd.DataFrame({"x": [0.1, 0.2], "on": [False, True], "target": 1.0})
    with pytest.raises(ConfigError, match=r"1 fault:\n  - history: has no column c, but trial 1 has on=True$"):
        Dataset.read(LINE, history)
    assert len(Dataset.read(LINE, history.assign(on=False)).rows) == 2


def test_confirmations_and_the_baseline_are_no_trials_of_the_search() -> None:
    given = [r | {"trial": i - 2, "origin": o} for i, (r, o) in enumerate(zip(rows(3), ORIGINS, strict=True))]
    assert [row.trial for row in Dataset.read(LINE, pd.DataFrame(given))] == [0]


def test_an_empty_history_has_nothing() -> None:
    data = Dataset.read(LINE, pd.DataFrame())
    assert (data.next_trial, data.outside, data.rows, data.moments(), data.sign) == (0, 0, (), [], 1.0)
    after = Dataset.read(LINE, pd.DataFrame(rows(2)), data)
    assert after.since(data) == after.moments()


def test_the_sign_leads_from_targets_to_values() -> None:
    frame = pd.DataFrame(rows(3))
    assert Dataset.read(LINE, frame).sign == 1.0
    assert Dataset.read(LINE, frame.assign(target=-frame.value)).sign == -1.0
    assert Dataset.read(LINE, frame.assign(value=0.0, target=-0.0)).sign == 1.0


def test_what_one_event_proposed_or_ended_is_one_moment() -> None:
    """Rows of one ask come together, and one that needed no job ends with them."""
    given = [r | {"asked_seq": 0} for r in rows(3)]
    given[1] |= {"origin": "approximated", "ended_seq": 0}
    given[2] = running(given[2])
    moments = Dataset.read(LINE, pd.DataFrame(given)).moments()
    assert [([r.trial for r in m.asked], [r.trial for r in m.ended]) for m in moments] == [([0, 1, 2], [1]), ([], [0])]
    assert [(row.trial, ended) for row, ended in moments[0].by_trial()] == [(0, 0), (1, 0), (1, 1), (2, 0)]


def changed(count: int, **changes: dict[str, Any]) -> Dataset:
    given = rows(count)
    for name, change in changes.items():
        given[int(name[1:])] |= change
    return Dataset.read(LINE, pd.DataFrame(given))


NOTHING = {"value": math.nan, "target": math.nan, "ended_seq": math.nan}
RUNNING = {"state": "running", **NOTHING}


def test_what_happened_since_is_found() -> None:
    old = changed(4, r2=RUNNING, r3=RUNNING)
    more = {"r3": {"state": "submitted", **NOTHING}, "r4": {"asked_seq": 9, **RUNNING}}
    moments = changed(5, r2={"ended_seq": 8}, **more).since(old)
    assert moments is not None
    assert [([r.trial for r in m.asked], [r.trial for r in m.ended]) for m in moments] == [([], [2]), ([4], [])]
    assert changed(4, r2=RUNNING, r3=RUNNING).since(old) == []


@pytest.mark.parametrize(
    "now",
    [
        changed(3, r2=RUNNING),
        changed(4, r0={"target": 5.0, "value": 5.0}, r3=RUNNING),
        changed(4, r0={"state": "failed", "target": math.nan, "value": math.nan}, r3=RUNNING),
        changed(4, r0=RUNNING, r3=RUNNING),
        changed(4, r1={"x": 0.7}, r3=RUNNING),
        changed(4, r1={"origin": "imported"}, r3=RUNNING),
        changed(4, r3={"ended_seq": 4}),
        changed(4, r3={"asked_seq": math.nan, **RUNNING}),
    ],
    ids=["fewer", "value", "state", "reopened", "configuration", "origin", "ended earlier", "untimed"],
)
def test_a_history_that_is_not_continued_has_no_news(now: Dataset) -> None:
    assert now.since(changed(4, r3=RUNNING)) is None
