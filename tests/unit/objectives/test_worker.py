from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives import worker
from hpo_cluster.record.files import dumps, publish_once, read_json, redact, replace_text


@pytest.fixture
def attempt_dir(tmp_path: Path) -> Path:
    params = {
        "schema": worker.SCHEMA, "campaign": "c", "trial": 3, "attempt": 0, "token": "hpo-c-t0003-a0", "code": "abc",
        "seed": 7, "baseline": False, "parameters": {"x": 1.5}, "settings": {"k": 2},
    }  # fmt: skip
    (tmp_path / "params.json").write_text(json.dumps(params))
    return tmp_path


def test_a_copy_of_what_is_no_attempt_creates_nothing(
    attempt_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    for folder, to, fault in (
        (tmp_path / "nope", copy, "nope: is not an attempt (it has no params.json)"),
        (attempt_dir, tmp_path, "is there already; give a new directory"),
    ):
        with pytest.raises(SystemExit) as ended:
            worker.main(lambda _: {"value": 1.0}, [str(folder), "--copy-to", str(to)])
        assert ended.value.code == 2
        assert fault in capsys.readouterr().err
    assert not copy.exists()


def fails_with(error: BaseException) -> Callable[[worker.Attempt], dict[str, Any]]:
    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        raise error

    return evaluate


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(("gpus", "factor"), [(0, 1), (1, 1), (4, 4)])
def test_gpu_seconds_are_those_of_the_work_on_every_gpu(attempt_dir: Path, gpus: int, factor: int) -> None:
    params = json.loads((attempt_dir / "params.json").read_text())
    (attempt_dir / "params.json").write_text(json.dumps({**params, "gpus": gpus}))

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        attempt.phase("import")
        time.sleep(0.2)
        attempt.phase("train")
        attempt.earlier_s = 10.0  # an earlier attempt's training, which goes on here
        time.sleep(0.05)
        attempt.phase("score")
        return {"metrics": {"value": 1.0}}

    assert worker.main(evaluate, [str(attempt_dir)]) == 0
    result = read_json(attempt_dir / "result.json") or {}
    seconds = 10.0 + result["seconds"]["train"] + result["seconds"]["score"]
    assert result["gpu_seconds"] == pytest.approx(factor * seconds, abs=0.02)
    assert "gpu_seconds" not in result["metrics"]  # only where a campaign asks for it


def test_a_result_is_published_with_its_circumstances(attempt_dir: Path) -> None:
    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        attempt.phase("train")
        attempt.progress(force=True, step=1, total=2, loss=math.nan)
        progress = read_json(attempt.files.progress) or {}
        assert (progress["phase"], progress["step"], progress["total"], progress["loss"]) == ("train", 1, 2, None)
        return {"metrics": {"value": attempt.parameters["x"] * attempt.settings["k"]}}

    assert worker.main(evaluate, [str(attempt_dir)]) == 0
    result = read_json(attempt_dir / "result.json")
    assert result is not None
    assert result["metrics"] == {"value": 3.0}
    for field in ("token", "job", "host", "node", "started_at", "ended_at", "seed", "seconds", "versions", "code"):
        assert result[field] is not None, field
    assert "train" in result["seconds"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_processes_that_a_job_forks_die_of_the_signals_that_the_job_survives(
    attempt_dir: Path, number: signal.Signals
) -> None:
    """Process pools end their processes with SIGTERM, and wait for them without end."""

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        attempt.looks = True
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        os.kill(pid, number)
        _, status = os.waitpid(pid, 0)
        os.kill(os.getpid(), number)
        assert attempt.interrupted == number.name
        return {"metrics": {"signal": os.WTERMSIG(status)}}

    assert worker.main(evaluate, [str(attempt_dir)]) == 0
    assert (read_json(attempt_dir / "result.json") or {})["metrics"] == {"signal": number}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> None:
    with (disk / "full").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("ends", ["well", "badly", "torch"])
def test_hours_of_work_are_published_on_a_disk_that_is_full_by_then(
    attempt_dir: Path, small_disk: Path, ends: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "params.json").write_bytes((attempt_dir / "params.json").read_bytes())

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        fill(small_disk)
        if ends == "badly":
            (small_disk / "adapter").write_bytes(bytes(10_000))
        if ends == "torch":
            import torch

            torch.save({"weight": torch.zeros(100_000)}, small_disk / "adapter.pth")
        return {"metrics": {"value": 1.0}, "note": "x" * 20_000}

    status = worker.main(evaluate, [str(small_disk)])
    said = capfd.readouterr().err
    if ends == "well":
        assert status == 0
        assert (read_json(small_disk / "result.json") or {})["metrics"] == {"value": 1.0}
    else:
        assert status == 1
        assert (read_json(small_disk / "error.json") or {})["kind"] == "disk"
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("attempt failed: disk:")
    assert not (small_disk / ".reserve").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_is_full_from_the_beginning_is_one_line_of_the_log(
    attempt_dir: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "params.json").write_bytes((attempt_dir / "params.json").read_bytes())
    fill(small_disk)
    status = worker.main(fails_with(AssertionError("worked")), [str(small_disk)])
    assert status == worker.NOTHING_WRITTEN_EXIT_STATUS
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("attempt failed: disk: [Errno 28] No space left on device")


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_an_outcome_waits_for_storage_that_cannot_be_written(
    attempt_dir: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ends: str
) -> None:
    monkeypatch.setattr("hpo_cluster.record.files.AGAIN_S", 0.1)
    (small_disk / "params.json").write_bytes((attempt_dir / "params.json").read_bytes())
    back = threading.Timer(1.0, remount, (small_disk, "rw"))

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        remount(small_disk, "ro")
        back.start()
        if ends == "badly":
            raise AttemptError("diverged", "the loss is NaN")
        return {"metrics": {"value": 1.0}}

    assert worker.main(evaluate, [str(small_disk)]) == (1 if ends == "badly" else 0)
    assert caplog.text.count("tried again every 0.1 s") == 1
    back.join()
    assert (small_disk / ("error.json" if ends == "badly" else "result.json")).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_storage_that_stays_away_is_one_line_of_the_log(
    attempt_dir: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpo_cluster.record.files.PATIENCE_S", 0.2)
    monkeypatch.setattr("hpo_cluster.record.files.AGAIN_S", 0.1)
    (small_disk / "params.json").write_bytes((attempt_dir / "params.json").read_bytes())

    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        remount(small_disk, "ro")
        return {"metrics": {"value": 1.0}}

    assert worker.main(evaluate, [str(small_disk)]) == worker.NOTHING_WRITTEN_EXIT_STATUS
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("attempt failed: disk: [Errno 30] Read-only file system")


def test_a_second_job_on_the_attempt_does_nothing(attempt_dir: Path) -> None:
    assert worker.main(lambda attempt: {"metrics": {"value": 1}}, [str(attempt_dir)]) == 0
    assert worker.main(fails_with(AssertionError("worked")), [str(attempt_dir)]) == worker.CLAIMED_EXIT_STATUS
    assert not (attempt_dir / "error.json").exists()


def test_a_copy_can_be_run_again_by_hand(attempt_dir: Path, tmp_path: Path) -> None:
    worker.main(lambda attempt: {"metrics": {"value": 1}}, [str(attempt_dir)])
    again = tmp_path / "again"
    assert worker.main(lambda attempt: {"metrics": {"value": 2}}, [str(attempt_dir), "--copy-to", str(again)]) == 0
    assert (read_json(again / "result.json") or {})["metrics"] == {"value": 2}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AttemptError("diverged", "the loss is NaN at step 3"), "diverged"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: out of memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (ValueError("boom"), "code"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit("a library gave up"), "code"),
    ],
)
def test_an_exception_becomes_a_typed_error(attempt_dir: Path, error: BaseException, kind: str) -> None:
    assert worker.main(fails_with(error), [str(attempt_dir)]) == 1
    document = read_json(attempt_dir / "error.json")
    assert document is not None
    assert document["kind"] == kind
    assert document["message"]
    assert type(error).__name__ in document["traceback"]
    assert not (attempt_dir / "result.json").exists()


@pytest.mark.parametrize("metrics", [{}, {"value": math.nan}, {"value": math.inf}, {"value": "high"}, {"value": True}])
def test_what_is_no_result_is_not_published(attempt_dir: Path, metrics: dict[str, Any]) -> None:
    assert worker.main(lambda attempt: {"metrics": metrics}, [str(attempt_dir)]) == 1
    assert (read_json(attempt_dir / "error.json") or {})["kind"] == "bad_result"
    assert not (attempt_dir / "result.json").exists()


def test_secrets_of_the_environment_stay_out_of_errors(attempt_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_veryprivate")
    worker.main(fails_with(ValueError("GET https://hub/?token=hf_veryprivate failed")), [str(attempt_dir)])
    assert "hf_veryprivate" not in (attempt_dir / "error.json").read_text()
    assert redact("x hf_veryprivate y") == "x *** y"


def test_only_one_of_many_claims_wins(attempt_dir: Path) -> None:
    wins: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: wins.append(publish_once(attempt_dir / "claim", dumps({"n": n}))))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wins.count(True) == 1
    assert read_json(attempt_dir / "claim") is not None
    assert [path.name for path in attempt_dir.iterdir() if path.name.startswith(".")] == []


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "progress.json", [dumps({"n": n, "pad": "x" * 20000}) for n in range(2)]
    replace_text(path, texts[0])
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(len(path.read_text()))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(100):
        replace_text(path, texts[n % 2])
    done.set()
    reader.join()
    assert seen
    assert set(seen) == {len(texts[0])}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"a": 1'])
def test_what_is_no_json_object_reads_as_nothing_yet(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "absent.json") is None


def test_what_an_attempt_used_is_in_its_progress_and_its_error(attempt_dir: Path) -> None:
    def evaluate(attempt: worker.Attempt) -> dict[str, Any]:
        attempt.used = lambda: {"energy_wh": 1.5}
        attempt.phase("train")
        raise AttemptError("diverged", "no number")

    assert worker.run(worker.Attempt(attempt_dir), evaluate) == 1
    for name in ("progress", "error"):
        document = read_json(attempt_dir / f"{name}.json")
        assert document is not None
        assert document["energy_wh"] == 1.5
