"""A campaign that begins with the evaluations of another, both on real processes."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from pandas.testing import assert_frame_equal

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.driver.check_proposals import replay
from hpo_cluster.driver.in_process import optimize
from hpo_cluster.errors import ConfigError, HpoClusterError, IdentityError
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.journal import read_events
from hpo_cluster.space import Integer, Space

SPACE = {"x": {"low": -5.0, "high": 5.0}, "n": {"low": 1, "high": 4}}
MODULE = """
def bowl(x, n):
    return {"value": (x - 1) ** 2 + n, "twice": 2 * n}

def other(x, n):
    return x

def whole(n):
    return -n
"""
RUN = ["run", "objective=synthetic", "optimizer=random", "poll_s=0.1", "grace_s=0.5"]


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "earlier_functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("earlier_functions")
    sys.modules.pop("earlier_functions")


def test_a_campaign_goes_on_from_another_that_is_then_deleted(
    functions: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"optimizer": "random", "workers": 2, "direction": "minimize"}
    first = optimize(functions.bowl, SPACE, campaign="first", budget=4, **options)
    warm = {**options, "seed": 1, "campaign": "second", "warm_start": ["campaigns/first"]}
    second = optimize(functions.bowl, SPACE, budget=2, **warm)
    history = second.history
    assert list(history["origin"]) == ["imported"] * 4 + ["evaluated"] * 2
    columns = ["trial", "state", "value", "target", "x", "n", "metric.twice"]
    assert_frame_equal(history[columns].head(4), first.history[columns])
    assert second.trial in (4, 5)
    assert second.value == history["value"].tail(2).min()
    assert sorted(path.name for path in Path("campaigns/second/trials").iterdir()) == ["t0004", "t0005"]

    shutil.rmtree("campaigns/first")
    third = optimize(functions.bowl, SPACE, budget=4, **warm)  # the same call, more of it
    assert list(third.history["origin"]) == ["imported"] * 4 + ["evaluated"] * 4
    assert_frame_equal(third.history[columns].head(6), history[columns])
    assert main(["resume", "campaigns/second", "budget=5"]) == 0
    assert "imported   4 of first; the best of them" in capsys.readouterr().out
    last = load_history("campaigns/second")
    assert (last["origin"] == "evaluated").sum() == 5
    events = list(read_events(Path("campaigns/second/events.jsonl")))
    assert [len(event["trials"]) for event in events if event["event"] == "created"] == [4]
    derived = make_optimizer("random", Space.from_json(SPACE), seed=1)
    assert replay(events, derived, maximize=False) == []

    with pytest.raises(IdentityError, match="warm_start"):
        optimize(functions.bowl, SPACE, budget=5, **{**warm, "warm_start": []})


def test_nothing_is_evaluated_twice(functions: ModuleType) -> None:
    space = Space({"n": Integer(1, 6)})
    optimize(functions.whole, space, optimizer="random", budget=4, campaign="first")
    warm = {"campaign": "second", "seed": 1, "warm_start": ["campaigns/first"]}
    second = optimize(functions.whole, space, optimizer="random", budget=6, **warm)
    assert sorted(second.history["n"]) == [1, 2, 3, 4, 5, 6]
    assert list(second.history["origin"]).count("evaluated") == 2


def test_another_objective_is_refused_before_anything_is_written(functions: ModuleType) -> None:
    options = {"optimizer": "random", "budget": 2}
    optimize(functions.bowl, SPACE, campaign="first", direction="minimize", **options)
    with pytest.raises(ConfigError) as caught:
        optimize(functions.other, SPACE, campaign="second", warm_start=["campaigns/first", "campaigns/none"], **options)
    text = str(caught.value)
    assert "direction=minimize, here maximize" in text
    assert "objective function: earlier_functions:bowl there, earlier_functions:other here" in text
    assert "campaigns/none: is not a campaign" in text
    assert "warm_start_other_objective=true" in text
    assert not Path("campaigns/second").exists()
    with pytest.raises(ConfigError, match="give campaign=NAME"):
        optimize(functions.other, SPACE, warm_start=["campaigns/first"], **options)
    allowed = optimize(
        functions.other, SPACE, campaign="second", warm_start=["campaigns/first"], direction="minimize",
        warm_start_other_objective=True, **options,
    )  # fmt: skip
    assert len(allowed.history) == 4


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "campaign=first", "budget=3"]) == 0
    wide = [*RUN, "campaign=second", "budget=5", "workers=5", "seed=1", "space.x1.high=1.0"]
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([*wide, "warm_start=[campaigns/first]", "dry_run=true"]) == 0
    out = capsys.readouterr().out
    inside = int((load_history("campaigns/first")["x1"] <= 1.0).sum())
    assert f"warm start: {inside} of 3 evaluations of first are taken over" in out
    assert f"t{inside:04d}  " in out  # the first proposal comes after what is imported
    assert main([*wide, "warm_start=[campaigns/first]", "objective.noise=0.1"]) != 0
    err = capsys.readouterr().err
    assert "objective noise: 0.0 there, 0.1 here" in err
    assert "warm_start_other_objective=true" in err
    assert sorted(tmp_path.rglob("*")) == before
    assert main([*wide, "warm_start=campaigns/first"]) == 0
    assert f"warm start: {inside} of 3" in capsys.readouterr().out
    assert load_history("campaigns/second")["origin"].tolist() == ["imported"] * inside + ["evaluated"] * 5
    shutil.rmtree("campaigns/first")
    assert main(["resume", "campaigns/second", "budget=6"]) == 0
    assert main([*wide, "warm_start=[campaigns/first]", "budget=7"]) == 0
    assert len(load_history("campaigns/second")) == inside + 7
    assert main(["resume", "campaigns/second", "warm_start=[]"]) != 0
    assert "belongs to the campaign's identity" in capsys.readouterr().err


def test_a_driver_that_died_before_it_had_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "campaign=first", "budget=2"]) == 0
    again = [*RUN, "campaign=second", "budget=1", "seed=1", "warm_start=[campaigns/first]"]
    from hpo_cluster.driver.open_campaign import OpenCampaign

    def dies(self: OpenCampaign) -> None:
        raise HpoClusterError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(OpenCampaign, "_start", dies)
        assert main(again) != 0
    assert (read_identity(Path("campaigns/second/campaign.yaml")) or {})["warm_start"]
    capsys.readouterr()
    assert main(["resume", "campaigns/second"]) != 0
    assert "Run the command that began the campaign again" in capsys.readouterr().err
    assert main(again) == 0
    assert len(load_history("campaigns/second")) == 3
