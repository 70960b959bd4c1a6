"""`hpo-cluster verify`: what follows from the journal is found again, and what was changed is named."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.journals import simulated_campaign
from support.simulated import TROUBLE
from support.spaces import SPACES
from support.waiting import wait

from hpo_cluster.cli.main import main
from hpo_cluster.driver.verify import Verification
from hpo_cluster.optimizers.libraries import LIBRARIES
from hpo_cluster.optimizers.registry import OPTIMIZERS
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.versions import package_versions

QUICK = ["poll_s=0.05", "grace_s=0.5", "objective=synthetic"]
#: Settings with which an optimizer soon does what it is for.
SETTINGS: dict[str, dict[str, Any]] = {
    "bo": {"initial": 3},
    "turbo": {"initial": 3},
    "mosaic": {"initial": 3},
    "lhs": {"points": 8},
    "grid": {"levels": 2},
}


def outcome(number: int, configuration: Any) -> tuple[str, float | None]:
    """Return a value for most trials, and each kind of trouble for some."""
    if number % 5 == 4:
        return TROUBLE[number // 5 % len(TROUBLE)], None
    return "completed", 1.0 / (1 + len(str(sorted(configuration.items()))) + number % 7)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of real jobs: three trials with two workers, resumed with one trial more."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", *QUICK, "optimizer=random", "campaign=c", "budget=3", "workers=2"]) == 0
        assert main(["resume", "campaigns/c", "budget=4"]) == 0
    return folder


@pytest.fixture
def finished(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A copy of that campaign."""
    shutil.copytree(made / "campaigns", tmp_path / "campaigns")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return Path("campaigns/c")


def edit(folder: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Edit the journal of a campaign."""
    events = read_events(folder / "events.jsonl")
    change(events)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == kind]


def said(words: list[str], capsys: pytest.CaptureFixture[str], status: int) -> str:
    assert main(words) == status
    return capsys.readouterr().out


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_derived_again(name: str, tmp_path: Path) -> None:
    settings = SETTINGS.get(name, {})
    folder = simulated_campaign(
        tmp_path / "c", name, SPACES["mixed"], outcome, evaluations=7, workers=2, seed=3, **settings
    )
    verification = Verification(folder)
    verification.run()
    assert verification.faults == []
    count = verification.counts["proposals"]
    assert count.checked == count.total >= 7
    # with another seed nothing random is the same, and what is not random has other seeds of trials
    identity = folder / "campaign.yaml"
    identity.write_text(identity.read_text().replace("seed: 3", "seed: 4"))
    other = Verification(folder)
    other.run()
    assert len([fault for fault in other.faults if fault.kind == "seeds"]) == len(other.record.rows)
    if name in ("random", "lhs", "sobol", "bo", "turbo", "mosaic", "optuna", "nevergrad"):
        assert len([fault for fault in other.faults if fault.kind == "proposals"]) >= 4


def test_what_an_optimizer_settles_is_derived_again(tmp_path: Path) -> None:
    def settled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for event in events for row in event.get("trials", ()) if row["origin"] == "approximated"]

    def falling(number: int, configuration: Any) -> tuple[str, float | None]:
        return "completed", -(float(configuration["x"]) ** 2) - float(configuration["z"])

    folder = simulated_campaign(tmp_path / "c", "bamsoo", SPACES["real"], falling, evaluations=9, workers=2)
    assert settled(read_events(folder / "events.jsonl"))
    verification = Verification(folder)
    verification.run()
    assert verification.faults == []
    edit(folder, lambda events: settled(events)[-1].update(value=7.0))
    verification = Verification(folder)
    verification.run()
    assert verification.faults[0].message == "was settled otherwise"


def test_a_whole_campaign_is_verified(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    text = said(["verify", str(finished)], capsys, 0)
    assert "ok     4 values are those in the files of the results" in text
    assert "ok     4 proposals derived again from the journal" in text
    assert text.endswith("verified: nothing differs\n")
    assert max(map(len, text.splitlines())) <= 80
    document = json.loads(said(["verify", str(finished), "--json"], capsys, 0))
    assert (document["ok"], document["finished"], document["differences"]) == (True, True, [])
    assert document["checks"]["results"] == {"checked": 4, "total": 4, "missing": 0, "rounded": 0}
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_changed_proposal_is_named(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(events: list[dict[str, Any]]) -> None:
        for event in of_kind(events, "asked"):
            for row in event["trials"]:
                if row["trial"] == 2:
                    row["parameters"]["x1"] = 1.25
        for start in of_kind(events, "started"):
            start["versions"]["numpy"] = "1.0"

    edit(finished, change)
    text = said(["verify", str(finished)], capsys, 1)
    assert "FAULT  4 proposals derived again from the journal; 1 differs" in text
    assert "t0002 was proposed with other values" in text
    assert "recorded  x1=1.25" in text
    assert f"other than now: numpy 1.0 (now {package_versions()['numpy']})" in text
    assert f"note   numpy: 1.0 then, {package_versions()['numpy']} now; proposals may differ with it" in text
    assert "t0002 was given other parameters (params.json)" in text
    document = json.loads(said(["verify", str(finished), "--json"], capsys, 1))
    named = {(fault["kind"], fault["trial"]) for fault in document["differences"]}
    assert named == {("proposals", 2), ("parameters", 2)}


def test_a_changed_value_is_named(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(finished, lambda events: of_kind(events, "ended")[1].update(value=-1.5))
    text = said(["verify", str(finished)], capsys, 1)
    assert "has another result in its file" in text
    assert "recorded  value=-1.5" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda result: "{", "is not a JSON object"),
        (lambda result: json.dumps({**result, "token": "t"}), "was written by another attempt"),
        (lambda result: json.dumps({**result, "metrics": {"other": 1.0}}), "has no metric value"),
        (lambda result: json.dumps({**result, "metrics": {"value": 1e9}}), "now       value=1000000000.0"),
    ],
)
def test_a_changed_result_is_named(
    change: Callable[[dict[str, Any]], str], says: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished / "trials/t0001/a0/result.json"
    path.write_text(change(json.loads(path.read_text())))
    assert says in said(["verify", str(finished)], capsys, 1)


def test_a_changed_copy_of_the_code_is_named(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = next((finished / "code").iterdir())
    (copy / "jobs" / "synthetic.py").write_text("print('other')\n")
    assert f"{copy}: a file was changed, added or removed" in said(["verify", str(finished)], capsys, 1)


def test_files_that_are_gone_are_no_fault(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(finished / "trials")
    shutil.rmtree(finished / "code")
    text = said(["verify", str(finished)], capsys, 0)
    assert "ok     0 of 4 values are those in the files of the results; 4 without files" in text
    assert "ok     4 proposals derived again from the journal" in text


def test_several_objectives_after_a_warm_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", *QUICK, "objective.function=zdt1", "objective.metrics=[f1,f2]", "workers=2"]
    words = [*words, "optimizer=optuna", "optimizer.sampler=nsga2"]
    assert main([*words, "campaign=a", "budget=3"]) == 0
    assert main([*words, "campaign=b", "budget=4", "seed=1", "warm_start=[campaigns/a]"]) == 0
    capsys.readouterr()
    text = said(["verify", "campaigns/b"], capsys, 0)
    assert "note   3 trials imported from earlier campaigns: taken as recorded" in text
    assert "ok     4 proposals derived again" in text

    def change(events: list[dict[str, Any]]) -> None:
        of_kind(events, "ended")[0]["metrics"]["f2"] = 7.0

    edit(Path("campaigns/b"), change)
    assert "recorded  metric.f2=7.0" in said(["verify", "campaigns/b"], capsys, 1)


def test_trials_known_from_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = simulated_campaign(tmp_path / "c", "soo", SPACES["real"], outcome, evaluations=4, workers=2)

    def change(events: list[dict[str, Any]]) -> None:
        row = next(row for event in of_kind(events, "asked") for row in event["trials"] if row["trial"] == 3)
        row["parameters"]["x"] = 1.25

    edit(folder, change)
    assert "FAULT  4 proposals" in said(["verify", str(folder)], capsys, 1)
    edit(folder, lambda events: events.append({**events[-1], "seq": len(events), "event": "repaired", "rebuilt": [3]}))
    text = said(["verify", str(folder)], capsys, 0)
    assert "ok     4 proposals derived again from the journal; 1 cannot be derived, since earlier lines" in text
    assert "verified: nothing else differs" in text


def test_results_that_a_repair_has_put_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = simulated_campaign(tmp_path / "c", "soo", SPACES["real"], outcome, evaluations=8)
    lost = 0

    def lose(events: list[dict[str, Any]]) -> None:
        nonlocal lost
        ended = of_kind(events, "ended")[1]
        lost = events.index(ended)
        events.remove(ended)
        events += [{**events[-1], "event": "repaired", "rebuilt": [], "sound": lost}, ended]
        events[:] = [{**event, "seq": seq} for seq, event in enumerate(events)]

    edit(folder, lose)
    assert "cannot be derived, since earlier lines were lost" in said(["verify", str(folder)], capsys, 0)
    edit(folder, lambda events: of_kind(events, "repaired")[0].update(sound=len(events) - 2))
    assert "FAULT  " in said(["verify", str(folder)], capsys, 1)  # nothing was lost before these proposals


def test_an_empty_campaign_and_one_without_its_journal(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "events.jsonl").write_text("")
    found = said(["verify", str(finished)], capsys, 1)
    assert f"events.jsonl is empty, but there are attempts in {finished}/trials" in found
    assert f"hpo-cluster repair {finished}" in found
    shutil.rmtree(finished / "trials")
    assert "verified: nothing differs" in said(["verify", str(finished)], capsys, 0)


def test_an_optimizer_that_this_version_cannot_make(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = finished / "campaign.yaml"
    identity.write_text(identity.read_text().replace("name: random", "name: random\n  forgotten: 1"))
    text = said(["verify", str(finished)], capsys, 1)
    assert "the optimizer cannot be made by this version: forgotten: is not a setting of random" in text


def test_ctrl_c_ends_a_long_verification_with_what_is_known(tmp_path: Path) -> None:
    folder = simulated_campaign(
        tmp_path / "c", "bo", SPACES["real"], outcome, evaluations=40, initial=39, versions={"botorch": "0.1"}
    )
    # far more trials than can be verified while the test waits
    events = read_events(folder / "events.jsonl")
    identity = folder / "campaign.yaml"
    identity.write_text(identity.read_text().replace("initial: 39", "initial: 2"))
    assert len(events) > 100
    master, slave = pty.openpty()
    program = [sys.executable, "-m", "hpo_cluster", "verify", str(folder)]
    words = ["env", "--default-signal=INT", *program]  # tests in the background ignore it
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    seen = b""

    def drawn() -> bool:
        nonlocal seen
        seen += os.read(master, 4096)
        return b"proposals" in seen and b"/40" in seen and b" 0/40" not in seen[-200:]

    wait(drawn, 60)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    os.close(master)
    assert child.returncode in (1, 130)
    assert "of 40 proposals derived again from the journal" in out
    assert "interrupted: what is not listed was not verified" in out
    assert "Traceback" not in out


def test_every_optimizer_with_a_library_is_in_the_registry() -> None:
    assert set(LIBRARIES) <= set(OPTIMIZERS)
