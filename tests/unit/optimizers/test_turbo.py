"""Trust regions: lengths, restarts and whose a trial is follow from the order of events."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.objectives.benchmark_functions import FUNCTIONS
from hpo_cluster.optimizers.bayesian.turbo import START, Regions, Turbo
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.optimizers.replay import Replay
from hpo_cluster.space import Float, Space

LINE = Space({"x": Float(0.0, 1.0)})


def history(rows: list[tuple[float, float | None, int, int | None]], state: str = "completed") -> pd.DataFrame:
    """Rows of (x, target, asked, ended): without a target the trial is of that state or, without an end, running."""
    out: list[dict[str, Any]] = []
    for trial, (x, target, asked, ended) in enumerate(rows):
        now = "running" if ended is None else "completed" if target is not None else state
        seqs = {"asked_seq": asked, "ended_seq": math.nan if ended is None else ended}
        value = math.nan if target is None else target
        out.append({"trial": trial, "state": now, "origin": "evaluated", "target": value, "x": x, **seqs})
    return pd.DataFrame(out)


def regions(frame: pd.DataFrame, count: int = 1, initial: int = 2) -> Regions:
    return Replay(lambda: Regions(count, initial, 1)).of(Dataset.read(LINE, frame))


def sequential(targets: list[float | None], **more: Any) -> pd.DataFrame:
    rows = [(0.1 + 0.8 * i / len(targets), t, 2 * i, 2 * i + 1) for i, t in enumerate(targets)]
    return history(rows, **more)


def events(frame: pd.DataFrame) -> list[tuple[int, bool]]:
    """Return trials and whether they ended, in the order in which that happened."""
    moments = Dataset.read(LINE, frame).moments()
    return [(row.trial, ended) for moment in moments for row, ended in moment.by_trial()]


def test_events_are_in_their_order() -> None:
    frame = history([(0.1, 1.0, 0, 5), (0.2, 2.0, 0, 3), (0.3, None, 4, None)])
    assert events(frame) == [(0, False), (1, False), (1, True), (2, False), (0, True)]
    without = frame.drop(columns=["asked_seq", "ended_seq"])
    assert events(without) == [(0, False), (0, True), (1, False), (1, True), (2, False)]


def test_successes_double_the_length_and_failures_halve_it() -> None:
    assert regions(sequential([1.0, 2.0])).regions[0].length == START
    assert regions(sequential([1.0, 2.0, 3.0, 4.0, 5.0])).regions[0].length == 2 * START
    assert regions(sequential([1.0, 2.0, 3.0, 4.0, 4.001])).regions[0].length == START  # too small a gain
    assert regions(sequential([1.0, 2.0, 0.0, 0.0, 0.0])).regions[0].length == START
    assert regions(sequential([1.0, 2.0, 0.0, 0.0, 0.0, 0.0])).regions[0].length == START / 2
    assert regions(sequential([1.0, 2.0, 0.0, 0.0, 9.0, 0.0, 0.0, 0.0])).regions[0].length == START


def test_diverged_trials_are_failures_and_lost_ones_nothing() -> None:
    targets = [1.0, 2.0, None, None, None, None]
    assert regions(sequential(targets, state="diverged")).regions[0].length == START / 2
    lost = regions(sequential(targets, state="failed")).regions[0]
    assert lost.length == START
    assert len(lost.rows) == 2


def test_a_failure_counts_for_the_length_it_was_proposed_at() -> None:
    """Eight trials in flight when the region shrinks after four of them: the other four do not shrink it again."""
    first = [(0.1, 1.0, 0, 1), (0.2, 2.0, 0, 2)]
    burst = [(0.3 + i / 20, 0.0, 3, 4 + i) for i in range(8)]
    assert regions(history(first + burst)).regions[0].length == START / 2
    later = [(0.31 + i / 20, 0.0, 20 + i, 30 + i) for i in range(4)]
    assert regions(history(first + burst + later)).regions[0].length == START / 4


def test_a_tiny_region_starts_again_and_forgets() -> None:
    state = regions(sequential([1.0, 2.0] + [0.0] * 28)).regions[0]
    assert state.life == 1
    assert state.length == START
    assert state.rows == []
    again = regions(sequential([1.0, 2.0] + [0.0] * 28 + [0.5, 0.6])).regions[0]
    assert again.best is not None
    assert again.best.target == 0.6


def test_trials_belong_to_the_nearest_region_in_units_of_its_length() -> None:
    start = [(0.1, 1.0, 0, 1), (0.2, 0.0, 2, 3), (0.9, 1.0, 4, 5), (0.8, 0.0, 6, 7)]
    state = regions(history([*start, (0.3, 0.0, 8, 9), (0.7, 0.0, 10, None)]), count=2)
    assert [state.owner[t][0] for t in range(6)] == [0, 0, 1, 1, 0, 1]


def test_what_is_replayed_goes_on_or_starts_again() -> None:
    frame = sequential([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0])
    replay = Replay(lambda: Regions(1, 2, 1))
    states = [replay.of(Dataset.read(LINE, frame[:n])) for n in (3, 7)]
    assert states[0] is states[1]
    lengths = [replay.of(Dataset.read(LINE, frame[:n])).regions[0].length for n in (3, 7, 5, 6)]
    assert lengths == [regions(frame[:n]).regions[0].length for n in (3, 7, 5, 6)]
    changed = frame.assign(target=[1.0, 2.0, 9.0, 0.0, 0.0, 0.0, 3.0])
    best = replay.of(Dataset.read(LINE, changed)).regions[0].best
    assert best is not None
    assert best.target == 9.0


def test_finds_a_valley_that_random_search_does_not() -> None:
    function = FUNCTIONS["levy"]
    asked = make_optimizer("random", function.space, 1).ask(pd.DataFrame(), 80)
    random = min(function.evaluate(proposal.parameters) for proposal in asked.proposals)
    optimizer, rows, least = make_optimizer("turbo", function.space, 1), list[dict[str, Any]](), math.inf
    while least >= 0.6 * random and len(rows) < 80:
        c = dict(optimizer.ask(pd.DataFrame(rows), 1).proposals[0].parameters)
        rows.append({"trial": len(rows), "state": "completed", "target": -function.evaluate(c), **c})
        least = -max(row["target"] for row in rows)
    assert least < 0.6 * random


def test_many_at_once_are_different_and_in_the_box() -> None:
    rng = np.random.default_rng(0)
    frame = sequential([-((u - 0.4) ** 2) for u in rng.random(20)])
    optimizer = make_optimizer("turbo", LINE, initial=4)
    assert isinstance(optimizer, Turbo)
    ask = optimizer.ask(frame, 20)
    assert len({p.parameters["x"] for p in ask.proposals}) == 20
    assert ask.decision["regions"][0]["observations"] == 20
    assert [p.info["phase"] for p in ask.proposals] == ["model"] * 20


@pytest.mark.parametrize("count", [1, 3])
def test_says_which_region(count: int) -> None:
    ask = make_optimizer("turbo", LINE, regions=count, initial=2).ask(sequential([1.0, 2.0] * 4), 1)
    assert ask.proposals[0].info["region"] in range(count)
    assert len(ask.decision["regions"]) == count
