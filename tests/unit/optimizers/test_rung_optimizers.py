"""Optimizers in a campaign with rungs, and what they see of it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.rungs.contestants import Ours
from benchmarks.rungs.problems import LADDER
from benchmarks.rungs.simulate import Asked, simulate
from hpo_cluster.optimizers.bayesian.encoding import likeliest_scale
from hpo_cluster.optimizers.bayesian.observations import Observations
from hpo_cluster.optimizers.bayesian.rungs import RungFeatures, equated, rung_observations
from hpo_cluster.optimizers.bayesian.surrogate import recommend, surrogate_of
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.registry import OPTIMIZERS, make_optimizer
from hpo_cluster.optimizers.rungs.bohb import Density
from hpo_cluster.optimizers.rungs.hyperband import first_rung
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Prior, Space
from hpo_cluster.trial import State

NAN = math.nan
SPACE = Space(
    {
        "x": Float(0.0, 1.0),
        "n": Integer(1, 64, log=True),
        "kind": Categorical(("a", "b", "c")),
        "y": Float(0.0, 1.0, when={"kind": "a"}),
    },
    constraints=["x + n / 64 <= 1.8"],
)


def truths(configuration: Configuration) -> tuple[float, float, float]:
    """Return values that rise along the rungs, with curves that cross."""
    x, n = float(configuration["x"]), int(configuration["n"])
    good = -((x - 0.6) ** 2) - 0.1 * abs(math.log2(n) - 3) + (0.3 if configuration["kind"] == "a" else 0.0)
    return good - 1 + 0.5 * x, good - 0.3 + 0.1 * x, good


class Checked(Ours):
    """Asks a second optimizer, which has seen nothing before, whether it decides the same."""

    def __init__(self, name: str, space: Space, seed: int) -> None:
        super().__init__(name, space, seed)
        self.name = name.partition("+")[0]

    def ask(self, trial: int) -> Asked | None:
        from benchmarks.optimizers.contestants import parse

        key, settings = parse(self.name)
        history = self.history()
        fresh = make_optimizer(key, self.space, 1, **settings).ask(history, 1)
        kept = self.optimizer.ask(history, 1)
        assert fresh.proposals == kept.proposals
        return super().ask(trial)


def climbed(name: str, budget: float = 6.0, workers: int = 3) -> Ours:
    """Return the contestant after a campaign with rungs."""
    contestant = Checked(name, SPACE, 1)
    run = simulate(
        contestant, lambda t, c: (truths(c), truths(c)[-1]), LADDER, budget, workers, lambda t: 1 + t % 3 / 9
    )
    assert run.reached[0] > run.reached[2] > 0 or name.startswith("hyperband")
    return contestant


@pytest.mark.parametrize(
    "name",
    [
        *("asha", "hyperband", "bohb[fewest=3]", "random", "sobol", "soo", "direct_l", "turbo[initial=4]"),
        *("bo[initial=4,restarts=1,raw_samples=32,mc_samples=16]", "mosaic[initial=4]"),
    ],
)
def test_decisions_follow_from_the_history_alone(name: str) -> None:
    history = climbed(f"{name}+asha").history()
    states = history["state"].tolist()
    assert {"paused", "completed"} <= set(states)
    came_back = history[(history["paused_value"] == history["value@1/9"]) & history["value@1/3"].notna()]
    assert len(came_back) or name.startswith("bo[")  # what a search had decided on a paused trial stood


def test_an_optimizer_that_replays_sees_the_value_at_the_first_end() -> None:
    history = climbed("random+asha").history()
    data = Dataset.read(SPACE, history)
    ends = {row.trial: row for moment in data.moments() for row in moment.ended}
    for row in data:
        if not math.isnan(row.paused):
            assert ends[row.trial].state is State.PAUSED
            assert (ends[row.trial].ended, ends[row.trial].target) == (row.paused, row.paused_target)
    back = [row for row in data if row.observed and row.paused_target == row.looks[0] and row.looks[1] > -math.inf]
    assert back
    assert all(row.target != row.paused_target for row in back)  # those that read rows see the last one


def test_the_order_of_events_goes_on_when_a_trial_comes_back() -> None:
    contestant = Ours("random+asha", SPACE, 1)
    for trial in range(3):
        contestant.ask(trial)
        contestant.reached(trial, 0, float(trial))
        contestant.paused(trial)
    before = Dataset.read(SPACE, contestant.history())
    contestant.goes_on(2, 1)
    climbing = Dataset.read(SPACE, contestant.history(), before)
    assert climbing.since(before) == []
    assert [row.trial for row in climbing.pending] == [2]
    contestant.reached(2, 1, 9.0)
    contestant.goes_on(2, 2)
    contestant.reached(2, 2, 10.0)
    whole = Dataset.read(SPACE, contestant.history(), climbing)
    assert whole.since(climbing) == whole.since(before) == []
    contestant.ask(3)
    more = Dataset.read(SPACE, contestant.history(), whole)
    (moment,) = more.since(whole) or []
    assert [row.trial for row in moment.asked] == [3]


def test_the_best_is_a_whole_evaluation() -> None:
    contestant = Ours("random+asha", SPACE, 1)
    for trial, value in enumerate((5.0, 7.0, 6.0)):
        contestant.ask(trial)
        contestant.reached(trial, 0, value)
        contestant.paused(trial)
    data = Dataset.read(SPACE, contestant.history())
    assert data.best is None
    assert data.incumbent is None
    assert recommend(contestant.history(), SPACE) is None
    contestant.reached(2, 2, 1.0)
    contestant.goes_on(2, 2)
    history = contestant.history()
    history.loc[2, ["state"]] = "completed"
    best = Dataset.read(SPACE, history).best
    assert best is not None
    assert best.trial == 2
    assert recommend(history, SPACE) == 2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_values_at_rungs_have_the_direction_of_the_campaign(sign: float) -> None:
    row = {"trial": 0, "state": "paused", "origin": "evaluated", "value": NAN, "target": NAN, "asked_seq": 0}
    row |= {"ended_seq": 3, "rung": 1, "fidelity": 1 / 3, "goal": 1, "rung_value": 2.0, "rung_target": 2.0 * sign}
    row |= {"paused_seq": 2, "paused_value": 1.0, "value@1/9": 1.0, "value@1/3": 2.0}
    history = pd.DataFrame([{**row, "x": 0.5, "n": 3, "kind": "b", "y": NAN}])
    (found,) = Dataset.read(SPACE, history)
    assert Dataset.read(SPACE, history).sign == sign
    assert Dataset.read(SPACE, history).shares == (1 / 9, 1 / 3)
    assert found.looks == (sign, 2 * sign)
    assert (found.target, found.paused_target, found.observed, found.whole) == (2 * sign, sign, True, False)


def test_a_history_without_rungs_has_no_looks() -> None:
    contestant = Ours("random", SPACE, 1)
    contestant.ask(0)
    contestant.reached(0, 0, 1.0)
    data = Dataset.read(SPACE, contestant.history())
    assert data.shares == ()
    assert data.rows[0].looks == ()
    assert data.rows[0].first_end is data.rows[0]


# --- the model ---------------------------------------------------------------------------------------------------


def test_values_at_rungs_are_moved_and_stretched_to_those_at_the_top() -> None:
    top = np.arange(8.0)
    seen = np.array([top / 2 - 3, top - 1, top]).T
    seen[5:, 2] = NAN
    seen[0, 1:] = NAN
    assert equated(seen)[:, 0] == pytest.approx(top)
    assert equated(seen)[1:, 1] == pytest.approx(top[1:])
    few = np.array([[0.0, 5.0], [1.0, 9.0], [2.0, NAN]])
    assert equated(few)[:, 0].tolist() == [6.5, 7.5, 8.5]  # by the median of 5 and 8
    nobody = np.array([[0.0, NAN], [1.0, NAN]])
    assert equated(nobody)[:, 0].tolist() == [0.0, 1.0]


def test_the_model_has_a_row_for_each_rung_and_predicts_the_top() -> None:
    history = climbed("random+asha").history()
    data = Dataset.read(SPACE, history)
    features = RungFeatures(SPACE, data.shares)
    low, middle, top = features.places
    assert (top, middle) == pytest.approx((1.0, (low + 1) / 2))
    apart = math.sqrt(5) * (top - low) / likeliest_scale(features.dim)
    assert (1 + apart + apart**2 / 3) * math.exp(-apart) == pytest.approx(0.8, abs=0.03)  # Matern 5/2
    seen = rung_observations(data, features.places)
    scored = int(history[["value@1/9", "value@1/3", "value"]].notna().sum().sum())
    assert len(seen) == scored > len(Observations.of(data))
    at_top = features.encode(seen.points[:, : SPACE.dim])
    assert (at_top[:, -1] == 1).all()
    assert (features.whole(features.encode(seen.points))[:, -1] == 1).all()
    assert len(features.whole(at_top)) == len({row.key for row in data if any(map(math.isfinite, row.looks))})
    assert surrogate_of(history, SPACE).describe()["length_scales"].keys() == set(features.names)


def test_a_proposal_of_bo_learns_from_paused_trials() -> None:
    line = Space({"x": Float(0.0, 1.0)})
    contestant = Ours("bo[initial=4]+asha", line, 0)
    for trial, x in enumerate(np.linspace(0, 1, 9)):
        contestant.ask(trial)
        contestant.cells[trial]["x"] = x
        contestant.reached(trial, 0, -((x - 0.8) ** 2))
        contestant.paused(trial)
    proposals = [float(p.parameters["x"]) for p in contestant.optimizer.ask(contestant.history(), 1).proposals]
    assert proposals == pytest.approx([0.8], abs=0.1)


# --- the optimizers ----------------------------------------------------------------------------------------------


def test_those_that_need_rungs_say_so() -> None:
    assert [name for name, entry in OPTIMIZERS.items() if entry.needs_fidelity] == ["asha", "hyperband", "bohb"]


def test_brackets_have_the_proportions_of_hyperband() -> None:
    shares = (1 / 27, 1 / 9, 1 / 3)
    counts = np.bincount([first_rung(trial, shares) for trial in range(2**12)], minlength=4) / 2**12
    weights = np.array([27 / 4, 9 / 3, 3 / 2, 1])  # 27, 12, 6 and 4 trials in the paper, where they are rounded up
    assert counts == pytest.approx(weights / weights.sum(), abs=1e-3)
    first = [first_rung(trial, shares) for trial in range(16)]
    assert first[0] == 0
    assert set(first) == {0, 1, 2, 3}
    assert first_rung(7, ()) == 0


@pytest.mark.parametrize("name", ["hyperband", "bohb"])
def test_proposals_name_their_first_rung(name: str) -> None:
    contestant = Ours(f"{name}+asha", SPACE, 0)
    proposals = contestant.optimizer.ask(contestant.history(), 20).proposals
    assert [p.info["rung"] for p in proposals] == [first_rung(trial, LADDER.shares[:-1]) for trial in range(20)]


@pytest.mark.parametrize("name", ["asha", "hyperband", "bohb"])
def test_priors_count(name: str) -> None:
    space = Space({"x": Float(0.0, 1.0, prior=Prior(0.9, 0.05)), "z": Float(0.0, 1.0)})
    proposals = make_optimizer(name, space, 0).ask(pd.DataFrame(), 40).proposals
    assert np.mean([float(p.parameters["x"]) > 0.75 for p in proposals]) > 0.9


def _scored(name: str) -> Ours:
    contestant = Ours(f"{name}+asha", SPACE, 3)
    for trial in range(40):
        asked = contestant.ask(trial)
        assert asked is not None
        contestant.reached(trial, 0, truths(asked.configuration)[2])
        contestant.paused(trial)
    return contestant


def test_bohb_draws_where_good_trials_are_dense() -> None:
    contestant = _scored("bohb[random=0.0]")
    asked = contestant.optimizer.ask(contestant.history(), 20)
    assert asked.decision["model_rung"] == 0
    better = [truths(dict(p.parameters))[2] for p in asked.proposals]
    random = [
        truths(dict(p.parameters))[2] for p in make_optimizer("random", SPACE, 3).ask(pd.DataFrame(), 40).proposals
    ]
    assert np.median(better) > np.quantile(random, 0.75)
    assert {p.info["phase"] for p in asked.proposals} == {"model"}


def test_a_third_of_bohb_is_random() -> None:
    contestant = _scored("bohb")
    phases = [p.info["phase"] for p in contestant.optimizer.ask(contestant.history(), 60).proposals]
    assert 10 <= phases.count("random") <= 30


def test_the_density_is_one() -> None:
    space = Space({"x": Float(0.0, 1.0), "kind": Categorical(("a", "b", "c"))})
    points = np.array([[0.02, 1 / 6], [0.1, 0.5], [0.7, 0.5]])
    density = Density(space, points)
    grid = np.array([[x, u] for x in (np.arange(4000) + 0.5) / 4000 for u in (1 / 6, 0.5, 5 / 6)])
    assert np.exp(density.log(grid)).sum() / 4000 == pytest.approx(1, abs=1e-3)
    drawn = density.draw(200, np.random.default_rng(0))
    assert ((drawn >= 0) & (drawn <= 1)).all()
