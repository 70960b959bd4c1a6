"""The command line: help, faults, exit codes, what it imports, and whole campaigns of a test function."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpo_cluster.cli import display
from hpo_cluster.cli.arguments import campaigns_nearby
from hpo_cluster.cli.command_table import COMMANDS, OPEN_GROUPS, SETTLED_KEYS
from hpo_cluster.cli.config.groups import GROUPS, conf_dir, options
from hpo_cluster.cli.config.schema import OPERATIONAL, TOP_KEYS
from hpo_cluster.cli.main import main
from hpo_cluster.driver.spec import OPERATIONAL_FIDELITY

ROOT = Path(__file__).resolve().parents[3]
QUICK = ["experiment=quick", "poll_s=0.05"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys, contextlib, io\n"
        "from hpo_cluster.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    main({list(arguments)!r})\n"
        "print(*sys.modules)"
    )
    return {name.partition(".")[0] for name in python(code).split()}


# ----------------------------------------------------------------------------------------------------------------- help


def test_help_lists_every_command_and_every_file_of_conf(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    found = sorted(conf_dir().glob("*/*.yaml"))
    assert len(found) > 20
    for path in found:
        option = options(path.parent.name, [conf_dir()])[path.stem]
        row = [path.stem, *option.description.split()]
        assert any(line[:4] == row[:4] for line in lines), path
    assert {path.parent.name for path in found} == set(GROUPS)
    assert all(any(line[:1] == [command] for line in lines) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: hpo-cluster {command}")
    described = [line.split()[0].partition("=")[0] for line in said.splitlines() if len(line.split()) > 3]
    assert {*COMMANDS[command].keys} <= {*described}


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.goes_on])
def test_help_names_the_keys_that_a_campaign_accepts_when_it_goes_on(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    keys = {line.split()[0] for line in said.partition("keys that may change")[2].splitlines() if line[:3].strip()}
    assert keys >= {*OPERATIONAL, "code", "dry_run"}
    assert not keys & {*SETTLED_KEYS}
    assert {*SETTLED_KEYS} == {*TOP_KEYS} - {*OPERATIONAL, "code", "dry_run"}
    groups = {line.strip().partition(":")[0] for line in said.splitlines() if line.strip().partition(":")[0] in GROUPS}
    assert groups == {*OPEN_GROUPS}
    assert all(name in said.partition("fidelity.KEY")[2].splitlines()[0] for name in OPERATIONAL_FIDELITY)


def test_version_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hpo-cluster 0.")
    assert main([]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == [*COMMANDS]
    assert max(map(len, lines)) < 80
    assert "hpo-cluster help COMMAND" in lines[-1]


@pytest.mark.parametrize("words", [["help"], ["run", "--help"], ["best", "--help"], ["resume", "--help"]])
@pytest.mark.parametrize(("terminal", "width"), [(20, 60), (80, 80), (200, 118)])
def test_help_is_as_wide_as_the_terminal(
    words: list[str], terminal: int, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpo_cluster.cli.arguments.terminal_width", lambda: terminal)
    assert main(words) == 0
    text = capsys.readouterr().out.partition("examples:")[0]  # commands to copy are not broken
    assert width - 20 < max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["rnu"], "'rnu': is not a command; did you mean run? accepted: run, resume, status, watch, why, tail, ls"),
        (["budget=3"], "did you mean: hpo-cluster run budget=3?"),
        (["run", "--mulitrun"], "--mulitrun: is not an option of run; did you mean --multirun?"),
        (["run", "--json"], "--json: is not an option of run; accepted: --multirun"),
        (["run", "--dryrun"], "--dryrun: is not an option of run; did you mean dry_run=true?"),
        (["run", "--budget=3"], "--budget=3: is not an option of run; did you mean budget=3?"),
        (["status", "--budget=3"], "--budget=3: is not an option of status; accepted: --json"),
        (["run", "--cfg", "all"], "--cfg all: accepted: --cfg job; Hydra's own settings"),
        (["run", "-c"], "-c: accepted: --cfg job"),
        (["run", "--multirun=3"], "--multirun=3: accepted: --multirun"),
        (["run", "-p", "optimizer"], "--package: goes with --cfg job"),
        (["run", "--resolve"], "--resolve: goes with --cfg job"),
        (["run", "--cfg", "job", "-p", "optimiser"], "there is no optimiser; did you mean optimizer?"),
        (["run", "--info", "default"], "--info default: did you mean defaults? accepted: all, config, defaults"),
        (["run", "--info", "plugins"], "Hydra's plugins are not used"),
        (["run", "-sc", "install=bash"], "-sc: is an option of Hydra's that is not needed here; type: eval \"$(hpo"),
        (["run", "-cp", "x"], "-cp: is an option of Hydra's that is not needed here; type: --config-dir DIR"),
        (["run", "--config-path", "x"], "type: --config-dir DIR, and --config-name NAME"),
        (["run", "-cn", "confg"], "--config-name confg: there is no such file; did you mean config? accepted: config"),
        (["resume", "campaigns/first", "-cn", "x"], "-cn: is not an option of resume"),
        (
            ["completion", "fisch"],
            "'fisch': is not a shell that is known; did you mean fish? accepted: bash, zsh, fish",
        ),
        (["run", "--config-dir"], "--config-dir: accepted: --config-dir DIR"),
        (["status"], "status needs the campaign's folder, such as campaigns/first"),
        (["status", "campaigns/first"], "campaigns/first: is not a campaign"),
        (["resume", "budget=3"], "resume needs the campaign's folder"),
        (["report", "nowhere", "more"], "'more': report takes nothing but a folder"),
    ],
)
def test_bad_input(words: list[str], expected: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert expected in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_all_faults_come_in_one_message_and_nothing_is_created(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK, "--tkae-over", "wrokers=3", "workers=0", "optimizer=boo", "campaign=../x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("5 faults:")
    assert list(here.iterdir()) == []


def test_a_wrong_combination_stops_all(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", *QUICK, "optimizer=random,boo", "seed=0,1"]) == 2
    assert "optimizer=boo: is not an option" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_cfg_prints_the_configuration_and_starts_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "experiment=ola2025_bo", "budget=7", "--cfg", "job"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["budget"] == 7
    assert printed["model"]["name"] == "llama-3.2-1b"
    assert printed["space"]["learning_rate"]["low"] == 1e-10
    assert main(["run", "-m", *QUICK, "seed=0,1", "--cfg=job"]) == 0
    assert [page["seed"] for page in yaml.safe_load_all(capsys.readouterr().out)] == [0, 1]
    assert list(here.iterdir()) == []


def test_a_part_of_the_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *QUICK, "budget=${workers}", "--cfg", "job", "--resolve", "-p", "budget"]) == 0
    assert capsys.readouterr().out == "# @package budget\n4\n"
    assert main(["run", *QUICK, "optimizer=lhs", "--cfg", "job", "--package", "optimizer"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# @package optimizer\nname: lhs\n")
    assert yaml.safe_load(printed) == {"name": "lhs", "points": 24, "optimization": "none"}


def test_info_names_folders_and_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "conf" / "launcher").mkdir(parents=True)
    (here / "conf" / "launcher" / "mine.yaml").write_text("# Mine\ndefaults:\n  - oar\nqueue: night\n")
    assert main(["run", *QUICK, "launcher=mine", "--info"]) == 0
    lines = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
    for word in (str(conf_dir()), str(here / "conf"), "launcher/oar", "launcher/mine", "experiment/quick", "queue:"):
        assert [word] in lines
    assert lines.index(["launcher/oar"]) < lines.index(["launcher/mine"])
    assert main(["run", "launcher=mine", "--info", "defaults-tree"]) == 0
    out = capsys.readouterr().out
    assert "\n    launcher/mine" in out
    assert "\n      launcher/oar" in out
    assert "queue:" not in out


def test_options_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-c", "job", *QUICK, "-p", "seed", "seed=3"]) == 0
    assert main(["run", *QUICK, "--package=seed", "seed=3", "--cfg=job"]) == 0
    assert capsys.readouterr().out == "# @package seed\n3\n" * 2


def test_preparing_what_is_bundled_does_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["prepare", "objective=synthetic"]) == 0
    assert "needs nothing prepared" in capsys.readouterr().out
    assert list(here.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- imports


def test_help_imports_no_library() -> None:
    assert not imported_by("--help") & {
        "torch",
        "pandas",
        "hydra",
        "omegaconf",
        "pydantic",
        "scipy",
        "rich",
        "submitit",
    }


def test_completion_imports_no_library() -> None:
    slow = {"torch", "pandas", "hydra", "omegaconf", "pydantic", "scipy", "rich", "submitit"}
    assert not imported_by("completion", "candidates", "hpo-cluster run optimizer=lhs optimizer.") & slow


def test_a_fault_imports_no_heavy_library() -> None:
    heavy = {"torch", "botorch", "pandas", "scipy", "matplotlib", "submitit", "litgpt"}
    assert not imported_by("run", "workers=0") & heavy


# ------------------------------------------------------------------------------------------------------ whole campaigns


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpo_cluster", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_campaign_from_start_to_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run("run", *QUICK, "optimizer=random", "budget=3", "workers=2", "campaign=first")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("trial=t0002 state=completed value=")]
    assert "best       t000" in done.stdout
    assert "x1=" in done.stdout
    for line in (
        "history    campaigns/first/history.csv",
        "log        campaigns/first/drivers/",
        "report     campaigns/",
    ):
        assert line in done.stdout
    assert sorted(path.name for path in here.iterdir()) == ["campaigns"]

    slow = {"torch", "pandas", "hydra", "omegaconf", "scipy", "rich", "numpy", "pydantic"}
    for command in ("status", "ls"):
        assert not imported_by(command, "campaigns/first") & slow
    for command in ("why", "tail"):
        assert not imported_by(command, "campaigns/first", "0") & {"torch", "botorch", "gpytorch", "hydra", "omegaconf"}
    assert main(["status", "campaigns/first"]) == 0
    assert "3/3 done" in capsys.readouterr().out
    assert main(["status", "campaigns/first", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["done"]) == ("finished", 3)

    assert main(["run", *QUICK, "optimizer=random", "campaign=first", "seed=1", "objective.noise=2"]) == 2
    message = capsys.readouterr().err
    assert "objective.noise  0.0       2.0" in message
    assert "hpo-cluster resume" in message

    done = run("resume", "campaigns/first", "budget=4", "workers=1")
    assert done.returncode == 0, done.stderr
    assert "going on done=3/4" in done.stdout
    assert "4/4 done" in done.stdout
    assert main(["resume", "campaigns/first", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["budget"] == 4
    assert main(["status", "campaigns/frist"]) == 2
    assert "there are: campaigns/first" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "ends"), [(8, "campaigns/c7"), (9, "campaigns/c7, …")])
def test_a_list_of_campaigns_that_is_cut_says_so(
    count: int, ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(count):
        (tmp_path / "campaigns" / f"c{number}").mkdir(parents=True)
        (tmp_path / "campaigns" / f"c{number}" / "campaign.yaml").touch()
    assert campaigns_nearby().endswith(f", {ends}")


def test_the_design_keeps_its_size_when_the_budget_grows() -> None:
    lhs = [*QUICK, "optimizer=lhs", "campaign=lhs"]
    assert run("run", *lhs, "budget=2").returncode == 0
    again = run("run", *lhs, "budget=3")
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load(Path("campaigns/lhs/campaign.yaml").read_text())["optimizer"]["points"] == 2


def test_a_budget_that_is_spent_already_ends_the_campaign() -> None:
    first = [*QUICK, "optimizer=random", "campaign=first"]
    assert run("run", *first, "budget=3").returncode == 0
    done = run("resume", "campaigns/first", "budget=2")
    assert done.returncode == 0, done.stderr
    assert "3/2 done" in done.stdout
    assert "A larger one goes on:  hpo-cluster resume campaigns/first budget=6" in done.stdout


def test_a_finished_campaign_says_how_to_go_on_and_stays_finished(here: Path) -> None:
    quick = [*QUICK, "optimizer=random", "campaign=done", "budget=2"]
    assert run("run", *quick).returncode == 0
    again = run("resume", "campaigns/done")
    assert again.returncode == 0
    assert "The budget of 2 was spent before. A larger one goes on:  hpo-cluster resume campaigns/done budget=4" in (
        again.stdout
    )
    assert "0 trials would be submitted first: its budget is spent" in run("run", *quick, "dry_run=true").stdout
    stopped = run("stop", "campaigns/done")
    assert stopped.returncode == 2
    assert "campaigns/done: is finished: nothing is left to stop" in stopped.stderr
    assert "done: finished" in run("status", "campaigns/done").stdout
    more = run("resume", "campaigns/done", "budget=3", "workers=1,2")
    assert "workers=1,2: lists several values; run -m starts a campaign for each; a text needs quotes" in more.stderr
    more = run("resume", "campaigns/done", "budget=3")
    assert "3/3 done" in more.stdout
    assert "spent before" not in more.stdout


def test_several_campaigns_one_after_another() -> None:
    done = run("run", "-m", *QUICK, "optimizer=random,sobol", "budget=1")
    assert done.returncode == 0, done.stderr
    assert "campaign 2 of 2: himmelblau-sobol-0" in done.stdout
    campaigns = ["himmelblau-random-0", "himmelblau-sobol-0"]
    assert sorted(path.name for path in Path("campaigns").iterdir()) == ["comparison", *campaigns]


def test_a_campaign_where_everything_fails_ends_badly() -> None:
    done = run("run", *QUICK, "optimizer=random", "objective.failure_rate=1", "budget=4", "retries=0", "campaign=bad")
    assert done.returncode == 1
    assert "hpo-cluster resume campaigns/bad" in done.stdout or "no trial was completed" in done.stdout


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(times: int) -> None:
    words = ["run", *QUICK, "optimizer=random", "budget=4", "workers=1", "objective.duration_s=20", "campaign=slow"]
    driver = subprocess.Popen(
        [sys.executable, "-m", "hpo_cluster", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        journal = Path("campaigns/slow/events.jsonl")
        wait_for(lambda: journal.is_file() and '"running"' in journal.read_text())
        for _ in range(times):
            os.killpg(driver.pid, signal.SIGINT)
            time.sleep(0.3)
        out, err = driver.communicate(timeout=30)
    finally:
        driver.kill()
    status = json.loads(run("status", "campaigns/slow", "--json").stdout)
    assert driver.returncode == 130
    assert "Ctrl-C again" in err
    assert "hpo-cluster resume campaigns/slow" in out
    assert status["state"] == "stopped"
    if times == 1:
        assert "1 jobs run on" in out or "1 job runs on" in out
        assert status["in_flight"] == 1
        os.kill(int(status["running"][0]["job"]), signal.SIGTERM)
    else:
        assert status["counts"] == {"cancelled": 1}


def wait_for(condition: Any, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------------------- display

STATUS: dict[str, Any] = {
    "campaign": "first", "dir": "campaigns/first", "state": "running", "reason": None,
    "driver": {"host": "frontend", "pid": 12, "alive": True}, "direction": "maximize", "budget": 16, "done": 8,
    "in_flight": 2, "counts": {"completed": 6, "failed": 1, "diverged": 1, "running": 1, "submitted": 1},
    "best": {"trial": 3, "value": 0.9625, "value_sem": 0.0106, "parameters": {"learning_rate": 0.0026, "lora_rank": 18},
             "metrics": {"village_val/acc": 0.9625, "village_test/acc": 0.94, "village_test/acc_norm": 0.9}},
    "baseline": {"trial": -1, "value": 0.275, "value_sem": None, "parameters": {},
                 "metrics": {"village_val/acc": 0.275, "village_test/acc": 0.26}},
    "running": [{"trial": 8, "state": "running", "attempt": 1, "job": "77", "node": "gpu3", "phase": "train",
                 "step": 40, "total": 240, "loss": 1.234567, "elapsed_s": 65.0},
                {"trial": 9, "state": "submitted", "attempt": 0, "job": None, "node": None, "phase": None, "step": None,
                 "total": None, "loss": None, "elapsed_s": None}],
    "errors": [{"trial": 4, "state": "failed", "kind": "code", "message": "ValueError: no\nmore"}],
    "elapsed_s": 3700.0, "eta_s": 125.0,
}  # fmt: skip


def test_a_status_as_text() -> None:
    text = "\n".join(display.status_lines(STATUS))
    assert "first: running on frontend, process 12, 1 h 01 min" in text
    assert "[############------------] 8/16 done · 1 running · 1 waiting · 1 failed · 1 diverged" in text
    assert "best 0.9625 · 2 min 05 s left" in text
    assert "t0008  train  step 40/240  loss 1.235  1 min 05 s  job 77 on gpu3  attempt 1" in text
    assert "t0009  submitted" in text
    assert "t0004  code: ValueError: no" in text
    assert "  more:  hpo-cluster why campaigns/first 4    once its cause is gone:  hpo-cluster retry" in text


def test_a_status_fits_its_terminal_and_is_whole_elsewhere() -> None:
    reason = "the first 3 trials failed alike (code): ValueError: no (exit status 1: python train.py)\nmore"
    message = "RuntimeError: CUDA error (exit status 1: python train.py --lr=0.00147 --layers=4 --seed=12345)"
    errors = [{**STATUS["errors"][0], "message": message}]
    status = {**STATUS, "state": "stopped", "reason": reason, "errors": errors, "running": [], "best": None}
    narrow, whole = display.status_lines(status, 80), display.status_lines(status)
    assert max(map(len, narrow[:2] + narrow[3:])) <= 80  # without the line of progress
    assert whole[0] == f"first: stopped ({reason.splitlines()[0]}), 1 h 01 min"
    assert " ".join(line.strip() for line in narrow[:2]) == whole[0]
    assert any(line.startswith("  t0004  code: RuntimeError: CUDA error (exit status 1: python") for line in narrow)
    assert f"  t0004  code: {message}" in whole


def test_the_end_of_a_run_shows_validation_test_and_baseline() -> None:
    lines = display.summary_lines(STATUS, "village_val/acc", ("village_test",), {"history": Path("h.csv")})
    assert "best       t0003  learning_rate=0.0026 lora_rank=18" in lines
    assert "validation village_val/acc 0.9625 ± 0.0106" in lines
    assert "test       village_test/acc 0.94" in lines
    assert "validation village_val/acc 0.275" in lines
    assert lines[-1] == "history    h.csv"
    failed = display.summary_lines({**STATUS, "best": None}, "value", (), {})
    assert "best       none: no trial was completed" in failed
