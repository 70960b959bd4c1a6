"""The processes of an attempt on several GPUs: whatever happens to one of them, all end and the job says why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from support import light_ranks
from support.light_ranks import living

from hpo_cluster.objectives import worker
from hpo_cluster.objectives.lora import rank_processes
from hpo_cluster.objectives.lora.rank_processes import processes_killed_for_memory


def write(folder: Path, *ranks: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    params = {"schema": 1, "parameters": {}, "settings": {}, "seed": 0, "ranks": ranks}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def read(folder: Path) -> dict[str, Any]:
    found = [path for path in (folder / "result.json", folder / "error.json") if path.exists()]
    assert len(found) == 1
    document: dict[str, Any] = json.loads(found[0].read_text())
    return document


def run(folder: Path, *ranks: list[Any]) -> dict[str, Any]:
    worker.main(light_ranks.evaluate, [str(write(folder, *ranks))])
    return read(folder)


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def temporary_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own for temporary files, and no ranks of an earlier test."""
    while rank_processes._teams:
        rank_processes._teams.pop().end()
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_ranks_stay_for_the_next_attempt_of_their_number(tmp_path: Path, temporary_dir: Path) -> None:
    first, second = (run(tmp_path / name, ["return"], ["return"]) for name in "ab")
    assert first["metrics"] == {"rank": 0.0}
    assert set(first["seconds"]) == {"import", "train"}
    assert first["pid"] == second["pid"] != os.getpid() == second["parent"]
    three = run(tmp_path / "c", ["return"], ["return"], ["return"])
    assert three["pid"] != first["pid"]
    assert len(living(os.getpid())) == 3
    assert len(list(temporary_dir.iterdir())) == 1


def test_each_attempt_has_its_own_log(tmp_path: Path) -> None:
    kept = os.dup(2)
    try:
        for name in "ab":
            opened = os.open(tmp_path / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(opened, 2)
            os.close(opened)
            run(tmp_path / name, ["say", f"0 in {name}"], ["say", f"1 in {name}"])
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    for name in "ab":
        lines = (tmp_path / f"{name}.log").read_text().splitlines()
        assert sorted(lines) == [f"0 in {name}", f"1 in {name}"]


@pytest.mark.parametrize(
    ("ranks", "kind", "message"),
    [
        ([["sleep"], ["kill", "SIGKILL"]], "vanished", "the process of GPU 1 of 2 (counted from 0) was ended by SIGKI"),
        ([["kill", "SIGSEGV"], ["sleep"]], "vanished", "the process of GPU 0 of 2 (counted from 0) was ended by SIGSE"),
        ([["sleep"], ["exit", 7], ["sleep"]], "vanished", "GPU 1 of 3 (counted from 0) ended with status 7; see the"),
        ([["sleep"], ["wrong"]], "code", "GPU 1 of 2 (counted from 0): 'a fault'"),
        ([["wrong"], ["sleep"]], "code", "'a fault'"),
        ([["sleep"], ["raise", "diverged", "the loss is nan"]], "diverged", "the loss is nan"),
        ([["lose"], ["kill", "SIGKILL"]], "vanished", "GPU 1 of 2 (counted from 0) was ended by SIGKILL"),
        ([["lose"], ["lose"]], "node", "the exchange failed"),
        ([["return"], ["exit", 0]], "vanished", "GPU 1 of 2 (counted from 0) ended with status 0"),
    ],
)  # fmt: skip
def test_what_ends_one_rank_ends_all(
    ranks: list[list[Any]], kind: str, message: str, tmp_path: Path, temporary_dir: Path
) -> None:
    before = time.monotonic()
    error = run(tmp_path / "a", *ranks)
    assert error["kind"] == kind
    assert message in error["message"]
    assert set(error["seconds"]) <= {"import", "train"}
    assert living(os.getpid()) == []
    assert not list(temporary_dir.iterdir())
    assert time.monotonic() - before < 30, "the others would sleep for an hour"
    if kind == "code":
        assert "light_ranks.py" in error["traceback"]
        assert error["energy_wh"] == 0.5
    assert run(tmp_path / "b", *[["return"]] * len(ranks))["metrics"] == {"rank": 0.0}, "new ones take their place"


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_reaches_the_first_rank_which_saves(number: signal.Signals, tmp_path: Path) -> None:
    error = run(tmp_path / "a", ["look"], ["signal", number])
    assert (error["kind"], error["message"]) == ("interrupted", f"{number.name} asked to end during train")
    assert (tmp_path / "a" / "checkpoint" / "3" / "state").read_text() == "0"
    assert living(os.getpid()) == []


def test_a_signal_from_before_the_ranks_began_reaches_them(tmp_path: Path) -> None:
    run(tmp_path / "warm", ["return"], ["return"])

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGUSR2)
        return light_ranks.evaluate(attempt)

    worker.main(evaluate, [str(write(tmp_path / "a", ["look"], ["ignore"]))])
    assert read(tmp_path / "a")["kind"] == "interrupted"


def test_sigterm_ends_ranks_that_do_not_look(tmp_path: Path) -> None:
    error = run(tmp_path / "a", ["sleep"], ["signal", signal.SIGTERM])
    assert (error["kind"], error["message"]) == ("interrupted", "SIGTERM asked to end during train")


def start(folder: Path, *ranks: list[Any]) -> subprocess.Popen[bytes]:
    """Start a real job in a process group of its own; return when its ranks are at work."""
    program = [sys.executable, light_ranks.__file__, str(write(folder, *ranks))]
    command = ["env", "--default-signal=INT", *program]  # tests in the background ignore it
    job = subprocess.Popen(command, start_new_session=True)
    wait_until(lambda: "train" in ((worker.read_json(folder / "progress.json") or {}).get("phase") or ""))
    assert len(living(job.pid)) == len(ranks)
    return job


def test_ranks_end_with_a_job_that_is_killed(tmp_path: Path) -> None:
    job = start(tmp_path / "a", ["ignore"], ["sleep"])
    job.kill()
    job.wait()
    wait_until(lambda: living(job.pid) == [], 5)
    assert not (tmp_path / "a" / "error.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_to_the_whole_group(number: signal.Signals, tmp_path: Path) -> None:
    """Schedulers and terminals signal all processes of a job."""
    job = start(tmp_path / "a", ["look"], ["ignore"])
    os.killpg(job.pid, number)
    assert job.wait(10) == 1
    error = read(tmp_path / "a")
    assert (error["kind"], error["message"]) == ("interrupted", f"{number.name} asked to end during train")
    assert living(job.pid) == []


def test_a_job_that_is_done_leaves_nothing(tmp_path: Path, temporary_dir: Path) -> None:
    job = subprocess.Popen([sys.executable, light_ranks.__file__, str(write(tmp_path / "a", ["return"], ["return"]))])
    assert job.wait(30) == 0
    assert read(tmp_path / "a")["metrics"] == {"rank": 0.0}
    assert living(job.pid) == []
    assert not list(temporary_dir.iterdir())


def test_processes_that_were_killed_for_memory_are_counted(tmp_path: Path) -> None:
    listed, root = tmp_path / "cgroup", tmp_path / "fs"
    assert processes_killed_for_memory(listed, root) == 0
    listed.write_text("0::/slurm/job_1/step_0\n")
    assert processes_killed_for_memory(listed, root) == 0
    (root / "slurm/job_1/step_0").mkdir(parents=True)
    (root / "slurm/job_1/step_0/memory.events").write_text("low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n")
    assert processes_killed_for_memory(listed, root) == 2
    listed.write_text("12:cpuset:/oar/x\n4:memory:/slurm/uid_1/job_2\n0::/\n")
    (root / "memory/slurm/uid_1/job_2").mkdir(parents=True)
    (root / "memory/slurm/uid_1/job_2/memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert processes_killed_for_memory(listed, root) == 1


def test_a_process_killed_for_memory_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr(rank_processes, "processes_killed_for_memory", lambda: next(counts))
    error = run(tmp_path / "a", ["sleep"], ["kill", "SIGKILL"])
    assert error["kind"] == "out_of_memory"
    assert "was ended by SIGKILL: the memory of the job was full; set launcher.mem_gb" in error["message"]
