"""A project's folder is renamed in the middle of a campaign, or its code moves alone: the campaign goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_cluster import load_history
from hpo_cluster.cli.main import main
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.journal import read_events
from hpo_cluster.record.layout import resources_dir
from hpo_cluster.record.status import campaign_status

QUICK = ["optimizer=random", "poll_s=0.1", "grace_s=0.3", "retry_wait_s=0"]
COMMAND = f"objective.command='{sys.executable} train.py {{x}}'"
RUN = ["run", "objective=command", COMMAND, "space={x: {low: 0.0, high: 1.0}}", "campaign=c", *QUICK]
PROGRAM = """
import json, os, pathlib, sys, time
with open("ran.txt", "a") as log:
    log.write("x\\n")
if pathlib.Path("slow").exists():
    time.sleep(60)
print(json.dumps({"value": float(sys.argv[1])}))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(PROGRAM)
    monkeypatch.chdir(folder)
    return folder


def renamed(project: Path, monkeypatch: pytest.MonkeyPatch, name: str = "renamed") -> Path:
    """Rename the project's folder, and go there."""
    there = project.rename(project.with_name(name))
    monkeypatch.chdir(there)
    return there


def ran(folder: Path) -> int:
    log = folder / "ran.txt"
    return len(log.read_text().split()) if log.exists() else 0


def running(campaign: Path) -> int:
    return sum(str(trial.state) == "running" for trial in Record.read(campaign / "events.jsonl").rows)


def completed(campaign: Path) -> int:
    return int((load_history(campaign)["state"] == "completed").sum())


def made_by_an_earlier_version(campaign: Path, objective: dict[str, Any]) -> None:
    """Give a campaign the form it had before: places in the identity, and nothing of them in the journal."""
    identity = yaml.safe_load((campaign / "campaign.yaml").read_text())
    identity["objective"].update(objective)
    (campaign / "campaign.yaml").write_text(yaml.safe_dump(identity, sort_keys=False))
    events = [json.loads(line) for line in (campaign / "events.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "started":
            del event["dir"]
            event["settings"]["objective"] = {}
    (campaign / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_a_campaign_alone_is_moved_to_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["run", "objective=synthetic", "objective.function=branin", "campaign=c", "budget=2", *QUICK]) == 0
    before = load_history("campaigns/c")
    there = tmp_path / "other machine" / "kept"
    there.parent.mkdir()
    shutil.move(tmp_path / "here/campaigns/c", there)
    shutil.rmtree(tmp_path / "here/campaigns")
    monkeypatch.chdir(there.parent)
    for command in (["status"], ["report"], ["why", "0"], ["verify"], ["describe"], ["export", "to=csv"]):
        name, *more = command
        assert main([name, str(there), *more]) == 0, command
    assert campaign_status(there)["state"] == "finished"
    assert load_history(there).equals(before)
    assert (there / "report" / "report.md").is_file()
    assert main(["resume", str(there), "budget=4"]) == 0
    history = load_history(there)
    assert history["state"].tolist() == ["completed"] * 4
    assert history.loc[:1, "value"].tolist() == before["value"].tolist()
    assert main(["verify", str(there)]) == 0
    assert not (tmp_path / "here/campaigns").exists()


@pytest.mark.parametrize("earlier", [False, True], ids=["as made now", "made by an earlier version"])
def test_a_project_is_renamed_while_jobs_run(earlier: bool, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*RUN, "budget=2"]) == 0
    (project / "slow").touch()
    command = [sys.executable, "-m", "hpo_cluster", "resume", "campaigns/c", "budget=4"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while ran(project) < 4 or running(Path("campaigns/c")) < 2:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    if earlier:
        made_by_an_earlier_version(Path("campaigns/c"), {"cwd": str(project)})
    pids = [json.loads(path.read_text())["pid"] for path in Path("campaigns/c").glob("trials/t000[23]/a0/claim")]
    there = renamed(project, monkeypatch)
    (there / "slow").unlink()
    for pid in pids:  # what a machine that is switched off does to its jobs
        subprocess.run(["kill", str(pid)], check=True)
    assert main(["resume", "campaigns/c"]) == 0
    assert completed(Path("campaigns/c")) == 4
    assert ran(there) == 6  # two before, two that were lost, and these again
    assert not project.exists()
    params = json.loads(Path("campaigns/c/trials/t0002/a1/params.json").read_text())
    assert params["settings"]["cwd"] == str(there)
    assert main([*RUN, "budget=5"]) == 0  # the same command as at first
    assert completed(Path("campaigns/c")) == 5


def test_a_move_is_told_once_and_ticks_go_on_too(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "budget=1"]) == 0
    there = renamed(project, monkeypatch)
    capsys.readouterr()
    assert main(["tick", "campaigns/c", "budget=2"]) == 0
    assert f"{project} has moved to {there}" in capsys.readouterr().out
    assert main(["resume", "campaigns/c"]) == 0
    assert "has moved" not in capsys.readouterr().out
    assert ran(there) == 2


def test_the_campaign_may_have_another_name_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*RUN, "budget=1"]) == 0
    there = renamed(project, monkeypatch)
    Path("campaigns/c").rename("campaigns/d")
    assert main(["resume", "campaigns/d", "budget=2"]) == 0
    assert ran(there) == 2


def test_what_is_where_it_was_is_used_there(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaigns alone are moved away."""
    assert main([*RUN, "budget=1"]) == 0
    (project / "campaigns").rename(project.parent / "campaigns")
    monkeypatch.chdir(project.parent)
    assert main(["resume", "campaigns/c", "budget=2"]) == 0
    assert ran(project) == 2


@pytest.mark.parametrize("earlier", [False, True], ids=["as made now", "made by an earlier version"])
def test_the_code_moves_alone(
    earlier: bool, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = project.parent / "code"
    code.mkdir()
    (project / "train.py").rename(code / "train.py")
    assert main([*RUN, f"objective.cwd={code}", "budget=1"]) == 0
    if earlier:
        made_by_an_earlier_version(Path("campaigns/c"), {"cwd": str(code)})
    moved = code.rename(project.parent / "elsewhere")
    before = Path("campaigns/c/events.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["resume", "campaigns/c", "budget=2"]) == 2
    said = capsys.readouterr().err
    assert f"objective.cwd: {code} is not a directory; if it has moved, give objective.cwd=DIR" in said
    assert "hpo-cluster resume campaigns/c KEY=VALUE" in said
    assert Path("campaigns/c/events.jsonl").read_bytes() == before
    assert main(["resume", "campaigns/c", "budget=2", "objective.cwd=../elsewhere"]) == 0
    assert main(["resume", "campaigns/c", "budget=3"]) == 0  # it is remembered
    assert ran(moved) == 3
    assert completed(Path("campaigns/c")) == 3


def test_a_function_is_found_in_the_new_place(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "moved_functions.py").write_text("def half(x):\n    return x / 2\n")
    call = "import hpo_cluster, moved_functions as m\n"
    call += (
        "hpo_cluster.optimize(m.half, {'x': {'low': 0.0, 'high': 1.0}}, optimizer='random', campaign='f', budget=%d)"
    )
    command = [sys.executable, "-c"]
    subprocess.run([*command, call % 1], check=True, timeout=60)
    made_by_an_earlier_version(Path("campaigns/f"), {"search_path": str(project)})
    there = renamed(project, monkeypatch)
    assert main(["resume", "campaigns/f", "budget=2"]) == 0
    subprocess.run([*command, call % 3], check=True, timeout=60)
    assert completed(there / "campaigns/f") == 3


def test_a_campaign_that_began_elsewhere_warms_another(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*RUN, "budget=2"]) == 0
    made_by_an_earlier_version(Path("campaigns/c"), {"cwd": str(project)})
    renamed(project, monkeypatch)
    warm = [word.replace("campaign=c", "campaign=warm") for word in RUN]
    assert main([*warm, "budget=1", "warm_start=[campaigns/c]", "seed=1"]) == 0
    assert len(load_history("campaigns/warm")) == 3


# --- fine-tunings ----------------------------------------------------------------------------------------------------

TUNE = ["run", "campaign=t", "data.path=data", "model.checkpoint_dir=model", "train.max_steps=1", "tasks.limit=2"]


@pytest.fixture
def village(project: Path) -> Path:
    """A project with model, data, tasks, storage and the jobs' shell lines of its own."""
    bundle = resources_dir() / "bundle" / "village"
    for source, name in (("checkpoint", "model"), ("data", "data"), ("tasks", "tasks")):
        shutil.copytree(bundle / source, project / name)
    (project / "storage").mkdir()
    (project / "setup.sh").write_text('echo ready >> "$(dirname "${BASH_SOURCE[0]}")/setup.log"\n')
    return project


@pytest.mark.parametrize("earlier", [False, True], ids=["as made now", "made by an earlier version"])
def test_model_data_and_tasks_move_with_the_project(
    earlier: bool, village: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TUNE, *QUICK, "tasks.include_path=tasks", "launcher.setup_file=setup.sh", "workers=1"]
    assert main([*words, "budget=1", "--no-check"]) == 0
    if earlier:
        made_by_an_earlier_version(Path("campaigns/t"), {})
    there = renamed(village, monkeypatch)
    assert main(["resume", "campaigns/t", "budget=2"]) == 0
    params = json.loads(Path("campaigns/t/trials/t0001/a0/params.json").read_text())["settings"]
    assert params["data"]["path"] == str(there / "data")
    assert params["model"]["checkpoint_dir"] == str(there / "model")
    assert params["tasks"]["include_path"] == str(there / "tasks")
    assert params["storage_dir"] == str(there / "storage")
    assert (there / "setup.log").read_text() == "ready\nready\n"
    assert main([*words, "budget=2"]) == 0  # the same command as at first is the same campaign

    shutil.copytree("data", "other")
    capsys.readouterr()
    assert main([*words, "budget=3", "data.path=other"]) != 0  # other data are another campaign
    assert "objective.data.path" in capsys.readouterr().err
    Path("data").rename("rows")
    assert main(["resume", "campaigns/t", "budget=2"]) == 2
    assert f"data.path: {there}/data is not Alpaca-format data" in capsys.readouterr().err
    assert main(["resume", "campaigns/t", "budget=2", "data.path=rows"]) == 0  # said so, they are the same
    starts = [event for event in read_events(Path("campaigns/t/events.jsonl")) if event["event"] == "started"]
    assert starts[-1]["settings"]["objective"]["data.path"] == str(there / "rows")
    assert main([*words, "budget=2", "data.path=rows"]) == 0
