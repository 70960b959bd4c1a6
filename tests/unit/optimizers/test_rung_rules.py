"""Who goes on after a rung."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest

from hpo_cluster.fidelity import Ladder
from hpo_cluster.optimizers.rungs.rules import ENOUGH, Climber, Promotion, promotions
from hpo_cluster.optimizers.rungs.settings import Fidelity

LADDER = Ladder("steps", (1 / 9, 1 / 3, 1.0))
NAN = math.nan


def rule(name: str, eta: float = 3.0) -> Fidelity:
    return Fidelity.model_validate({"kind": "steps", "rule": name, "eta": eta})


def at(rung: int, *targets: float, first: int = 0, start: int = 0) -> list[Climber]:
    """Return trials paused at a rung, whose values at every rung so far are the same."""
    passed = (NAN,) * first
    return [
        Climber(trial, first, rung, (*passed, *[target] * (rung + 1 - first)))
        for trial, target in enumerate(targets, start)
    ]


def who(climbers: list[Climber], fidelity: Fidelity) -> list[tuple[int, int]]:
    return [(promotion.trial, promotion.rung) for promotion in promotions(climbers, LADDER, fidelity)]


def many(count: int, seed: int = 0, agree: float = 1.0) -> list[Climber]:
    """Return trials, of which those above the middle of the lowest rung have climbed to the next one, a few to the top.

    Args:
        count: of the trials.
        seed: of their values.
        agree: correlation of a value with that at the rung below.
    """
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((count, 3))
    for rung in (1, 2):
        values[:, rung] = agree * values[:, rung - 1] + math.sqrt(1 - agree**2) * values[:, rung]
    reached = np.where(values[:, 0] > 0, np.where(values[:, 1] > 0.5, 2, 1), 0).tolist()
    rows = values.tolist()
    return [Climber(i, 0, rung, tuple(rows[i][: rung + 1])) for i, rung in enumerate(reached)]


def test_asha_lets_the_best_of_each_rung_go_on_and_says_why() -> None:
    climbers = at(0, 3, 1, 4, 1, 5, 9, 2, 6)
    assert promotions(climbers, LADDER, rule("asha")) == [
        Promotion(5, 1, "1 of 8 at rung 0"),
        Promotion(7, 1, "2 of 8 at rung 0"),
    ]
    assert who(at(0, 1, 2), rule("asha")) == []  # too few for one in three


def test_those_that_go_on_already_take_their_places() -> None:
    climbers = at(0, 3, 1, 4)
    assert who(climbers, rule("asha")) == [(2, 1)]
    climbers[2] = Climber(2, 0, 1, (4.0,))
    assert who(climbers, rule("asha")) == []


def test_the_highest_rung_comes_first() -> None:
    climbers = [*at(1, 7, 9, 8), *at(0, 1, 2, 3, 4, 5, 6, 10, start=3)]
    assert who(climbers, rule("asha")) == [(1, 2), (9, 1)]


def test_equal_values_go_on_in_the_order_of_the_trials() -> None:
    assert who(at(0, 1, 1, 1, 1, 1, 1), rule("asha")) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("name", ["careful", "asha", "median", "all"])
def test_a_trial_that_failed_never_goes_on(name: str) -> None:
    assert who(at(0, NAN, NAN, NAN), rule(name)) == []


def test_failed_trials_are_the_worst_of_their_rung() -> None:
    assert who(at(0, NAN, 1, NAN), rule("asha")) == [(1, 1)]


def test_median_and_all() -> None:
    assert who(at(0, 1, 2, 3, 4), rule("median")) == [(3, 1), (2, 1)]
    assert who(at(0, 1, 2, 3), rule("median")) == [(2, 1), (1, 1)]
    assert who(at(0, NAN, NAN, 3, NAN), rule("median")) == [(2, 1)]
    assert who(at(0, 2, 1), rule("all")) == [(0, 1), (1, 1)]
    assert who(at(2, 2, 1), rule("all")) == []  # whole already


def test_brackets_are_compared_among_themselves() -> None:
    climbers = [*at(1, 9, 8, 7), *at(1, 3, 2, 1, first=1, start=3)]
    assert who(climbers, rule("asha")) == [(0, 2), (3, 2)]


@pytest.mark.parametrize("name", ["careful", "asha", "median", "all"])
def test_the_order_of_the_trials_does_not_matter(name: str) -> None:
    climbers = many(60, agree=0.4)
    shuffled = climbers.copy()
    random.Random(1).shuffle(shuffled)
    assert promotions(shuffled, LADDER, rule(name)) == promotions(climbers, LADDER, rule(name))


@pytest.mark.parametrize("name", ["careful", "asha"])
@pytest.mark.parametrize("agree", [0.4, 0.7, 1.0])
def test_a_smaller_eta_takes_nothing_away(name: str, agree: float) -> None:
    climbers = many(80, agree=agree)
    found = [set(who(climbers, rule(name, eta))) for eta in (1.5, 2, 3, 4, 9)]
    assert all(more >= less for more, less in itertools.pairwise(found))
    assert len(found[0]) > len(found[-1])


def test_careful_is_asha_where_the_rungs_agree() -> None:
    waiting = at(0, *np.linspace(-3, 3, 200), start=100)
    assert who([*many(100), *waiting], rule("careful")) == who([*many(100), *waiting], rule("asha"))


@pytest.mark.parametrize("seed", range(3))
def test_careful_lets_more_go_on_where_a_rung_says_little(seed: int) -> None:
    climbers = [*many(100, seed, agree=0.0), *at(0, *np.linspace(-3, 3, 200), start=100)]
    careful = [p for p in promotions(climbers, LADDER, rule("careful")) if p.rung == 1]
    assert len(careful) > 1.25 * sum(rung == 1 for _, rung in who(climbers, rule("asha")))
    assert "which says little (correlation" in careful[0].why


def test_everybody_goes_on_where_the_rungs_have_nothing_to_do_with_each_other() -> None:
    climbers = [Climber(i, 0, 1, (float(i % 7), float(i % 5))) for i in range(35 * 60)]
    waiting = at(0, *np.linspace(-3, 9, 200), start=len(climbers))
    told = [p for p in promotions([*climbers, *waiting], LADDER, rule("careful")) if p.rung == 1]
    assert len(told) > 190
    assert "100% go on" in told[0].why


def test_careful_lets_nearly_everybody_go_on_where_the_order_is_turned_round() -> None:
    turned = [Climber(c.trial, 0, c.goal, (-c.targets[0], *c.targets[1:])) for c in many(60)]
    climbers = [*turned, *at(0, *np.linspace(-3, 3, 60), start=60)]
    assert len([rung for _, rung in who(climbers, rule("careful")) if rung == 1]) > 55


def test_careful_lets_the_best_one_go_on_at_once() -> None:
    assert who(at(0, 1.0), rule("careful")) == [(0, 1)]
    assert who(at(0, 1.0, 2.0), rule("careful")) == [(1, 1)]


def test_few_trials_do_not_change_what_careful_thinks() -> None:
    few = [Climber(i, 0, 1, (float(i), -float(i))) for i in range(3)]
    waiting = at(0, *np.linspace(-3, 3, 27), start=3)
    assert len(who([*few, *waiting], rule("careful"))) <= 30 / 3 + 1  # one more is the best of rung 1


def test_careful_is_not_misled_by_the_choice_of_those_that_climbed() -> None:
    """The correlation over the best third is far below that over all; it is put right."""
    rng = np.random.default_rng(0)
    low = rng.standard_normal(600)
    high = 0.85 * low + math.sqrt(1 - 0.85**2) * rng.standard_normal(600)
    climbed = low > np.quantile(low, 2 / 3)
    assert np.corrcoef(low[climbed], high[climbed])[0, 1] < ENOUGH
    climbers = [
        Climber(i, 0, int(up), (one, two) if up else (one,))
        for i, (one, two, up) in enumerate(zip(low.tolist(), high.tolist(), climbed.tolist(), strict=True))
    ]
    assert sum(rung == 1 for _, rung in who(climbers, rule("careful"))) == 0


def test_ten_thousand_trials_take_little_time() -> None:
    climbers = many(10_000, agree=0.5)
    promotions(climbers, LADDER, rule("careful"))
    began = time.process_time()
    promotions(climbers, LADDER, rule("careful"))
    assert time.process_time() - began < 0.5  # 0.03 s on a quiet core
