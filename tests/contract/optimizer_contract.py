"""What every optimizer has to do, as a class of tests.

A third party's optimizer is held to it by a subclass with a fixture of its own::

    class TestMine(OptimizerContract):
        @pytest.fixture
        def make(self):
            return lambda space, seed=0: Mine(space, MySettings(), seed)
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.base import Optimizer
from hpo_cluster.space import Categorical, Configuration, Float, Integer, Prior, Space
from hpo_cluster.trial import Ask

Make = Callable[..., Optimizer]
Rows = Callable[[Space], list[dict[str, Any]]]
First = Callable[[Rows, int], Ask]

#: Answers of new optimizers, by the names of what makes them and of the space, then by history and number of proposals.
ANSWERS: dict[tuple[type, Any, Any], dict[tuple[Rows, int], Ask]] = {}

REAL = Space({"x": Float(-5.0, 5.0), "y": Float(0.0, 2.0)})
MIXED = Space(
    {
        "learning_rate": Float(1e-6, 1e-1, log=True),
        "rank": Integer(2, 64),
        "width": Integer(1, 4096, log=True),
        "scheme": Categorical(("plain", "cosine", "linear")),
        "bits": Categorical((4, 8, 16), ordered=True),
        "bias": Categorical((False, True)),
    }
)
CONDITIONAL = Space(
    {
        "alpha": Float(1.0, 64.0, log=True, when={"scaling": "free"}),
        "schedule": Categorical(("constant", "cosine", "linear")),
        "warmup": Float(0.0, 1.0, when={"schedule": ("cosine", "linear")}),
        "adapter": Categorical((False, True), prior=(1, 2)),
        "rank": Integer(1, 64, log=True, when={"adapter": True}),
        "scaling": Categorical(("free", "rank", "root"), when={"adapter": True}),
        "merged": Categorical((False, True), when={"adapter": True}),
        "bits": Categorical((4, 8, 16), ordered=True, when={"merged": False}),
        "learning_rate": Float(1e-5, 1e-1, log=True, prior=Prior(1e-3, 0.2)),
    }
)
CONSTRAINED = Space(
    {
        "a": Float(0.0, 1.0),
        "b": Float(0.0, 1.0),
        "batch": Integer(1, 64),
        "query": Categorical((False, True)),
        "key": Categorical((False, True)),
        "value_": Categorical((False, True)),
        "c": Float(0.0, 1.0, when={"query": True}),
    },
    constraints=["a + b <= 1", "query + key + value_ >= 1", "batch * a <= 8", "a + c <= 1.2"],
)
FINITE = Space({"depth": Integer(1, 3), "bias": Categorical((False, True))})
FINITE_CONDITIONAL = Space(
    {
        "kind": Categorical(("a", "b"), when={"bias": True}),
        "depth": Integer(1, 3),
        "bias": Categorical((False, True)),
    },
    constraints=["depth + bias <= 3"],
)
STEPPED = Space(
    {
        "optimizer": Categorical(("adamw",)),
        "batch": Integer(8, 64, step=8, prior=Prior(32, 0.3)),
        "dropout": Float(0.0, 0.3, step=0.05),
        "learning_rate": Float(1e-5, 1e-1, log=True),
        "epochs": Integer(3, 3),
        "beta": Float(0.9, 0.9, when={"optimizer": "adamw", "batch": [8, 16, 24]}),
        "momentum": Float(0.0, 0.9, when={"optimizer": "sgd"}),
        "rank": Integer(4, 16, step=4, when={"beta": 0.9}),
    },
    constraints=["batch * epochs <= 144"],
)
FINITE_STEPPED = Space(
    {
        "kind": Categorical((16,)),
        "width": Integer(8, 24, step=8),
        "rate": Float(0.1, 0.3, step=0.1, when={"width": [8, 24]}),
        "unused": Float(0.0, 1.0, when={"kind": 32}),
    }
)
ONE = Space({"kind": Categorical(("only",)), "rate": Float(0.1, 0.1), "depth": Integer(2, 2)})
SPACES = {"real": REAL, "mixed": MIXED, "conditional": CONDITIONAL, "constrained": CONSTRAINED, "stepped": STEPPED}

COLUMNS = ["trial", "state", "origin", "value", "value_sem", "target"]


def score(space: Space, configuration: Configuration) -> float:
    """A smooth target with one best configuration, in any space."""
    return float(1.0 - ((space.encode(configuration) - 0.37) ** 2).sum())


def frame(space: Space, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A history as the driver hands it out."""
    extra = ["attempts", "job", "node", "submitted_at", "started_at", "ended_at", "seed", "asked_seq", "ended_seq"]
    return pd.DataFrame(rows, columns=[*COLUMNS, *space.names, *extra, "error"])


def row(
    space: Space, trial: int, configuration: Configuration, state: str = "completed", **more: Any
) -> dict[str, Any]:
    """One row; only a completed one has a value."""
    value = score(space, configuration) if state == "completed" else math.nan
    return {
        "trial": trial,
        "state": state,
        "origin": "evaluated",
        "value": value,
        "target": value,
        **configuration,
        **more,
    }


def completed(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of different random configurations that are allowed."""
    rng = np.random.default_rng(seed)
    seen: list[Configuration] = []
    while len(seen) < count:
        configuration = space.decode(rng.random(space.dim))
        if configuration not in seen and space.allows(configuration):
            seen.append(configuration)
    return [row(space, trial, configuration) for trial, configuration in enumerate(seen)]


def eight(space: Space) -> list[dict[str, Any]]:
    """Rows of eight completed trials."""
    return completed(space, 8)


def nothing(space: Space) -> list[dict[str, Any]]:
    """No rows."""
    return []


def eventful(space: Space) -> list[dict[str, Any]]:
    """Rows in every state, as a rough campaign leaves them."""
    rows = completed(space, 14)
    for index, state in enumerate(
        ["diverged", "infeasible", "failed", "cancelled", "running", "submitted", "proposed"]
    ):
        rows[2 * index] |= {"state": state, "value": math.nan, "target": math.nan}
    return rows


def answers(ask: Ask) -> list[tuple[Configuration, dict[str, Any]]]:
    return [(dict(proposal.parameters), dict(proposal.info)) for proposal in ask.proposals]


def parameters(space: Space, row: dict[str, Any]) -> Configuration:
    """The configuration of a row."""
    return {name: row[name] for name in space.names if name in row}


def configurations(ask: Ask) -> list[Configuration]:
    return [dict(proposal.parameters) for proposal in ask.proposals]


class OptimizerContract:
    """Tests of `hpo_cluster.optimizers.base.Optimizer`; the fixture `make` builds one: ``make(space, seed=0)``."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError("a subclass says how its optimizer is made")

    @pytest.fixture(params=sorted(SPACES))
    def space(self, request: pytest.FixtureRequest) -> Space:
        return SPACES[request.param]

    @pytest.fixture
    def first(self, make: Make, space: Space, request: pytest.FixtureRequest) -> First:
        """The answer of a new optimizer to a history that several tests ask about: made by the first of them."""
        parameters = request.node.callspec.params
        made = ANSWERS.setdefault((type(self), parameters.get("make"), parameters.get("space")), {})

        def answer(rows: Rows, n: int) -> Ask:
            if (rows, n) not in made:
                made[rows, n] = make(space).ask(frame(space, rows(space)), n)
            return made[rows, n]

        return answer

    def test_is_an_optimizer(self, make: Make, space: Space) -> None:
        assert isinstance(make(space), Optimizer)

    def test_same_input_gives_the_same_answer(self, make: Make, space: Space, first: First) -> None:
        history = frame(space, eight(space))
        optimizer = make(space)
        assert optimizer.ask(history, 2) == first(eight, 2)
        optimizer.ask(frame(space, completed(space, 5, seed=9)), 1)  # nothing may be kept from another history
        assert optimizer.ask(history, 2) == first(eight, 2)

    def test_order_of_rows_does_not_matter(self, make: Make, space: Space, first: First) -> None:
        history = frame(space, eventful(space))
        shuffled = history.sample(frac=1.0, random_state=3)
        assert shuffled["trial"].tolist() != history["trial"].tolist()
        assert make(space).ask(shuffled, 2) == first(eventful, 2)

    @pytest.mark.parametrize("told", [nothing, eight])
    def test_asking_for_n_is_asking_n_times_for_one(self, make: Make, space: Space, told: Rows, first: First) -> None:
        rows = told(space)
        together = answers(first(told, 3))
        optimizer, single = make(space), []
        for _ in together:
            ask = optimizer.ask(frame(space, rows), 1)
            single += answers(ask)
            rows.append(row(space, len(rows), dict(ask.proposals[0].parameters), "proposed"))
        assert single == together

    def test_at_most_n(self, make: Make, space: Space) -> None:
        assert len(make(space).ask(frame(space, []), 1).proposals) == 1
        assert 1 <= len(make(space).ask(frame(space, []), 3).proposals) <= 3

    def test_values_have_their_types_and_lie_in_the_space(self, space: Space, first: First) -> None:
        for configuration in [*configurations(first(nothing, 3)), *configurations(first(eight, 3))]:
            space.check(configuration)
            assert list(configuration) == [name for name in space.names if name in configuration]
            for name, value in configuration.items():
                parameter = space.parameters[name]
                if isinstance(parameter, Categorical):
                    assert any(value == choice and type(value) is type(choice) for choice in parameter.choices)
                else:
                    assert type(value) is (float if isinstance(parameter, Float) else int)
                    assert parameter.cardinality is None or value in parameter.values

    def test_every_state_is_understood(self, space: Space, first: First) -> None:
        rows, ask = eventful(space), first(eventful, 2)
        assert len(ask.proposals) == 2
        begun = [parameters(space, r) for r in rows if r["state"] != "cancelled"]
        assert not any(configuration in begun for configuration in configurations(ask))

    @pytest.mark.parametrize("state", ["diverged", "failed", "cancelled", "running"])
    def test_nothing_but_trouble(self, make: Make, space: Space, state: str) -> None:
        rows = completed(space, 12)
        for r in rows:
            r |= {"state": state, "value": math.nan, "target": math.nan}
        assert len(make(space).ask(frame(space, rows), 1).proposals) == 1

    def test_equal_values_everywhere(self, make: Make, space: Space) -> None:
        rows = [r | {"value": 0.25, "target": 0.25} for r in completed(space, 12)]
        assert len(make(space).ask(frame(space, rows), 1).proposals) == 1

    def test_no_configuration_twice(self, make: Make, space: Space) -> None:
        optimizer, rows = make(space), completed(space, 3)
        for _ in range(2):
            for configuration in configurations(optimizer.ask(frame(space, rows), 3)):
                rows.append(row(space, len(rows), configuration))
        seen = [tuple(parameters(space, r).items()) for r in rows]
        assert len(set(seen)) == len(seen)

    @pytest.mark.parametrize(
        ("space", "size"),
        [(FINITE, 6), (FINITE_CONDITIONAL, 7), (FINITE_STEPPED, 7), (ONE, 1)],
        ids=["plain", "conditional", "stepped", "one"],
    )
    def test_a_finite_space_is_exhausted(self, make: Make, space: Space, size: int) -> None:
        optimizer, rows = make(space), list[dict[str, Any]]()
        for _ in range(20):
            asked = configurations(optimizer.ask(frame(space, rows), 4))
            if not asked:
                break
            for configuration in asked:
                space.check(configuration)
            rows += [row(space, len(rows) + i, configuration) for i, configuration in enumerate(asked)]
        assert len(rows) == size
        assert len({tuple(parameters(space, r).items()) for r in rows}) == size
        ask = optimizer.ask(frame(space, rows), 2)
        assert not ask.proposals
        assert ask.decision["exhausted"] is True

    def test_input_is_not_changed(self, make: Make, space: Space) -> None:
        history = frame(space, eventful(space)).sample(frac=1.0, random_state=1)
        before = history.copy(deep=True)
        make(space).ask(history, 2)
        pd.testing.assert_frame_equal(history, before)

    def test_global_random_state_is_left_alone(self, make: Make, space: Space) -> None:
        import torch

        history, states = frame(space, completed(space, 8)), []
        threads = torch.get_num_threads()
        for attempt in range(2):
            if attempt:
                make(space).ask(history, 2)
            states.append((random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()))  # noqa: NPY002
        assert states[0] == states[1]
        assert torch.get_num_threads() == threads
        assert torch.get_default_dtype() is torch.float32

    def test_global_random_state_has_no_influence(self, make: Make, space: Space, first: First) -> None:
        import torch

        before = first(eight, 2)
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        ask = make(space).ask(frame(space, eight(space)), 2)
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])
        assert ask == before

    def test_decisions_are_json(self, first: First) -> None:
        for rows in (nothing, eight, eventful):
            ask = first(rows, 2)
            assert json.loads(json.dumps(dict(ask.decision), allow_nan=False)) == ask.decision
            for proposal in ask.proposals:
                assert json.loads(json.dumps(dict(proposal.info), allow_nan=False)) == proposal.info

    def test_an_empty_history_may_lack_columns(self, make: Make, space: Space) -> None:
        assert make(space).ask(pd.DataFrame(), 2) == make(space).ask(frame(space, []), 2)

    def test_rows_it_did_not_ask_for(self, make: Make, space: Space) -> None:
        rows = completed(space, 12)
        for r, origin in zip(rows, ["imported"] * 4 + ["inherited", "approximated", "imputed"], strict=False):
            r["origin"] = origin
        outside = dict.fromkeys(space.names, math.nan)
        rows.append({**rows[0], **outside, "trial": 12, "origin": "imported"})
        rows.append({**rows[1], "trial": -1, "origin": "baseline"})
        ask = make(space).ask(frame(space, rows), 2)
        assert len(ask.proposals) == 2
        known = [parameters(space, r) for r in rows]
        assert not any(configuration in known for configuration in configurations(ask))

    def test_a_wrong_history_or_number_is_one_error_with_all_faults(self, make: Make, space: Space) -> None:
        rows = completed(space, 3)
        rows[2] |= {"trial": 1, "target": math.inf}
        with pytest.raises(ConfigError) as error:
            make(space).ask(frame(space, rows), 0)
        said = str(error.value)
        assert said.startswith("3 faults:")
        for part in ("n=0: is the number of proposals wanted", "several rows of trial 1", "target=inf of trial 1"):
            assert part in said
        with pytest.raises(ConfigError, match="n=0"):
            make(space).ask(pd.DataFrame(), 0)

    def test_a_history_read_back_from_csv_means_the_same(
        self, make: Make, space: Space, first: First, tmp_path: Path
    ) -> None:
        history = frame(space, eventful(space))
        path = tmp_path / "history.csv"
        history.to_csv(path, index=False)
        again = pd.read_csv(path, float_precision="round_trip")
        assert make(space).ask(again, 2) == first(eventful, 2)
