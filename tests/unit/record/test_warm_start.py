from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_cluster.cli.display import PlainDisplay, status_lines
from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.dataset import Dataset
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.campaign_state import Record, asked_rows
from hpo_cluster.record.history import to_frame
from hpo_cluster.record.journal import Journal
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.status import campaign_status
from hpo_cluster.record.warm_start import WarmStart, read_warm_start, recorded_warm_start
from hpo_cluster.report import write_report
from hpo_cluster.report.trial import trial_story
from hpo_cluster.space import Float, Integer, Space
from hpo_cluster.trial import Ask, Origin

SPACE = Space({"x": Float(0.0, 1.0), "k": Integer(1, 8)}, constraints=["x * k <= 6"])
OBJECTIVE = {"kind": "command", "command": "train {x} {k}", "direction": "maximize", "model": {"name": "m"}}
IDENTITY = {"objective": OBJECTIVE, "direction": "maximize"}


def earlier(folder: Path, ends: list[dict[str, Any]], **identity: Any) -> Path:
    """A campaign whose trial i has `ends[i]`: its parameters, and what became of it."""
    folder.mkdir(parents=True)
    layout = CampaignLayout(folder)
    whole = {"space": SPACE.to_json(), "optimizer": {"name": "random"}, "seed": 0, **IDENTITY, **identity}
    layout.identity.write_text(yaml.safe_dump(whole))
    with Journal(layout.events) as journal:
        journal.append("created", campaign=folder.name, code="c")
        for number, end in enumerate(ends):
            end = {"state": "completed", **end}
            row = {"trial": number, "parameters": end.pop("parameters"), "seed": 0}
            origin = end.pop("origin", "evaluated")
            journal.append("asked", trials=[{**row, "origin": origin, "value": end.get("value")}], decision={})
            if origin == "evaluated" and end["state"]:
                journal.append("ended", trial=number, attempt=None, **end)
    return folder


def good(value: float, x: float = 0.5, k: int = 2, **more: Any) -> dict[str, Any]:
    return {"parameters": {"k": k, "x": x}, "value": value, **more}


def read(*folders: Path, space: Space = SPACE, **options: Any) -> WarmStart:
    return read_warm_start(folders, folders[0].parent / "new", space, IDENTITY, **options)


def test_only_what_was_measured_is_taken_over(tmp_path: Path) -> None:
    ends = [
        good(0.3, x=0.1, value_sem=0.01, metrics={"value": 0.3, "loss": 2.0}),
        {"parameters": {"x": 0.2, "k": 1}, "state": "diverged", "error": {"kind": "diverged", "message": ""}},
        {"parameters": {"x": 0.3, "k": 1}, "state": ""},  # in flight
        {"parameters": {"x": 0.4, "k": 1}, "state": "cancelled"},
        good(0.9, origin="inherited"),
        good(0.5, x=0.6),
    ]
    start = read(earlier(tmp_path / "first", ends))
    assert [(row.parameters, row.value, row.origin) for row in start.rows] == [
        ({"x": 0.1, "k": 2}, 0.3, Origin.IMPORTED),
        ({"x": 0.6, "k": 2}, 0.5, Origin.IMPORTED),
    ]
    assert list(start.rows[0].parameters) == ["x", "k"]  # the order of the space
    assert [row.info for row in start.rows] == [{"campaign": "first", "trial": n} for n in (0, 5)]
    assert (start.rows[0].value_sem, start.rows[0].metrics) == (0.01, {"value": 0.3, "loss": 2.0})
    (source,) = start.sources
    assert (source.campaign, source.evaluations, source.outside) == ("first", 2, 0)


def test_configurations_outside_of_the_space_are_left_out_and_counted(tmp_path: Path) -> None:
    ends = [good(1.0), good(2.0, x=3.0), good(3.0, k=8, x=0.9), {"parameters": {"x": 0.1}, "value": 4.0}]
    ends.append({"parameters": {"x": 0.1, "k": 1, "other": 3}, "value": 5.0})
    start = read(earlier(tmp_path / "first", ends))
    assert [row.value for row in start.rows] == [1.0]
    message = "1 of 5 evaluations of first are taken over; 4 left out: their configurations lie outside of the space"
    assert start.sources[0].message == message


def test_an_evaluation_that_comes_by_two_ways_is_there_once(tmp_path: Path) -> None:
    first = earlier(tmp_path / "first", [good(1.0), good(1.0)])  # the same configuration, twice evaluated
    rows = read(first).rows
    assert len(rows) == 2
    second = earlier(tmp_path / "second", [good(7.0)])
    layout = CampaignLayout(second)
    events = layout.events.read_text().splitlines()
    layout.events.unlink()
    with Journal(layout.events) as journal:
        journal.append("created", campaign="second", code="c", trials=asked_rows(Ask(settled=rows), 0, 0))
    assert len(events) > 1
    assert [row.info["campaign"] for row in read(second).rows] == ["first", "first"]
    assert len(read(first, second).rows) == 2


def test_the_identity_is_what_was_there(tmp_path: Path) -> None:
    first = earlier(tmp_path / "first", [good(1.0)])
    identity = read(first).identity
    assert list(identity) == ["warm_start"]
    assert read(first).identity == identity
    assert read(earlier(tmp_path / "again" / "first", [good(1.0)])).identity == identity
    assert read(earlier(tmp_path / "other" / "first", [good(1.5)])).identity != identity
    assert WarmStart().identity == {}
    assert recorded_warm_start(None).identity == recorded_warm_start({"seed": 0}).identity == {}
    assert recorded_warm_start(identity).identity == identity


def test_an_earlier_campaign_that_is_gone_is_taken_from_the_identity(tmp_path: Path) -> None:
    folders = [earlier(tmp_path / "first", [good(1.0)]), earlier(tmp_path / "second", [good(2.0)])]
    identity = read(*folders).identity
    folders[0].rename(tmp_path / "elsewhere")
    again = read(*folders, recorded=identity)
    assert again.identity == identity
    assert [source.read for source in again.sources] == [False, True]
    with pytest.raises(ConfigError, match="first: is not a campaign"):
        read(*folders)


def test_all_that_speaks_against_it_is_named_at_once(tmp_path: Path) -> None:
    other = {**OBJECTIVE, "model": {"name": "small"}, "command": "score {x}"}
    folders = [
        earlier(tmp_path / "first", [good(1.0)], direction="minimize"),
        earlier(tmp_path / "second", [good(1.0)], objective=other),
        tmp_path / "third",
        earlier(tmp_path / "new", [good(1.0)]),
        tmp_path / "first",
    ]
    with pytest.raises(ConfigError) as caught:
        read(*folders)
    text = "\n".join(caught.value.faults)
    for part in (
        "first: direction=minimize, here maximize",
        "second: objective command: score {x} there, train {x} {k} here",
        "second: objective model.name: small there, m here",
        "third: is not a campaign",
        "new: is the campaign itself",
        "first: is named twice",
    ):
        assert part in text
    assert caught.value.hint.endswith("warm_start_other_objective=true")
    assert len(read(folders[1], other_objective=True).rows) == 1
    with pytest.raises(ConfigError, match="direction=minimize") as again:
        read(folders[0], other_objective=True)
    assert again.value.hint == ""  # nothing to type: it is no use


def test_many_differences_are_not_all_told(tmp_path: Path) -> None:
    first = earlier(tmp_path / "first", [good(1.0)], objective={f"f{i}": i for i in range(30)})
    with pytest.raises(ConfigError) as caught:
        read(first)
    assert len(caught.value.faults) == 9
    assert "more fields differ" in caught.value.faults[-1]


@pytest.fixture
def warm(tmp_path: Path) -> Path:
    """A campaign that began with three evaluations, the best of all among them, and has one of its own."""
    rows = read(earlier(tmp_path / "first", [good(0.3, x=0.1), good(0.9, x=0.2), good(0.4, x=0.3)])).rows
    folder = tmp_path / "warm"
    identity = {"warm_start": [{"campaign": "first", "evaluations": 3, "digest": "d"}]}
    earlier(folder, [], **identity)
    layout = CampaignLayout(folder)
    layout.events.unlink()
    with Journal(layout.events) as journal:
        journal.append("created", campaign="warm", code="c", trials=asked_rows(Ask(settled=rows), 0, 0))
        journal.append("started", operation={"budget": 5}, settings={}, code="c")
        row = {"trial": 3, "parameters": {"x": 0.7, "k": 1}, "seed": 0, "origin": "evaluated"}
        journal.append("asked", trials=[row], decision={})
        journal.append("ended", trial=3, attempt=None, state="completed", value=0.5, metrics={"value": 0.5})
    return folder


def test_imported_rows_count_for_nothing_and_are_never_the_best(warm: Path) -> None:
    record = Record.read(warm / "events.jsonl")
    assert (record.spent, record.next_trial, record.counts["completed"]) == (1, 4, 1)
    best = record.best(maximize=True)
    assert best is not None
    assert best.number == 3
    status = campaign_status(warm)
    assert (status["done"], status["counts"], status["best"]["value"]) == (1, {"completed": 1}, 0.5)
    assert (status["imported"]["trials"], status["imported"]["campaigns"]) == (3, {"first": 3})
    assert (status["imported"]["best"]["trial"], status["imported"]["best"]["value"]) == (1, 0.9)
    text = "\n".join(status_lines(status))
    assert "best       0.5  (t0003)" in text
    assert "imported   3 of first; the best of them 0.9  (t0001)" in text


def test_the_report_tells_them_apart(warm: Path) -> None:
    text = write_report(warm)[1].read_text()
    assert "By measured value: trial 3, 0.5" in text
    assert "It began with 3 evaluations imported from `first`" in text
    assert "Imported, not a result of this campaign: the best of 3 is trial 1, 0.9" in text
    assert "Trials: 1 completed." in text
    assert "The 1 best of 1" in text


def test_the_recommendation_may_be_an_imported_one_and_says_so(warm: Path) -> None:
    with Journal(warm / "events.jsonl") as journal:
        for number in range(4, 8):
            parameters = {"x": 0.05 * number, "k": 1}
            row = {"trial": number, "parameters": parameters, "seed": 0, "origin": "evaluated"}
            journal.append("asked", trials=[row], decision={})
            journal.append("ended", trial=number, attempt=None, state="completed", value=0.0, metrics={})
    text = write_report(warm)[1].read_text()
    assert "By measured value: trial 3" in text
    assert "partly luck): imported trial 1" in text or "partly luck): the same trial" in text


def test_the_story_of_an_imported_trial(warm: Path) -> None:
    text = "\n".join(trial_story(warm, 1))
    assert "imported: trial 1 of first" in text
    assert "it needs no job" in text


def test_what_is_imported_is_no_news(warm: Path) -> None:
    record = Record.read(warm / "events.jsonl")
    lines: list[str] = []
    PlainDisplay(lines.append).update(campaign_status(warm), {n: record.trials[n] for n in range(3)})
    assert lines == []


@pytest.mark.parametrize("optimizer", ["random", "lhs", "sobol", "grid", "soo", "direct", "direct_l", "fda"])
def test_optimizers_do_not_ask_for_them_again(optimizer: str) -> None:
    space = Space({"n": Integer(1, 6)})
    record = Record()
    rows = [{"trial": n, "seed": 0, "origin": "imported", "parameters": {"n": n + 1}, "value": 1.0} for n in range(4)]
    record.apply({"seq": 0, "at": "2027-01-31T18:00:00Z", "event": "created", "trials": rows})
    history = to_frame(record, space.names, maximize=True)
    data = Dataset.read(space, history)
    assert (data.next_trial, len(data.taken()), sum(row.observed for row in data)) == (4, 4, 4)
    proposals = make_optimizer(optimizer, space).ask(history, 6).proposals
    assert {proposal.parameters["n"] for proposal in proposals} <= {5, 6}
    assert proposals
