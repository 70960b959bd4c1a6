from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hpo_cluster.cli.main import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_ends_with_a_job_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "FAULT" not in out
    for part in (
        "the files that objective=lora reads are there",
        "was accepted",
        f"it ran on {os.uname().nodename}",
        "clock agrees",
    ):
        assert part in out
    assert list(Path.cwd().iterdir()) == []


def test_each_fault_has_its_remedy_and_no_job_is_submitted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ["launcher=slurm", "model=llama-3.2-1b", "campaigns_dir=file/campaigns"]
    assert main(["doctor", *words]) == 1
    out = capsys.readouterr().out
    for part in ("lacks lit_model.pth", "prepare model=llama-3.2-1b", "command sbatch is not found", "Not a directory"):
        assert part in out
    assert out.count("FAULT") == out.count("->")
    assert "was accepted" not in out


def test_a_job_that_cannot_work_is_told_with_the_end_of_its_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", 'launcher.setup=["echo no such module >&2","exit 1"]', "grace_s=0.5"]) == 1
    out = capsys.readouterr().out
    assert "left no result" in out
    assert "no such module" in out
    assert list(Path.cwd().iterdir()) == []


def test_a_gpu_that_a_job_does_not_find_is_a_fault(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without an nvidia-smi
    assert main(["doctor", "launcher.gpus_per_trial=1", "launcher.gpu_devices=[0]"]) == 1
    out = capsys.readouterr().out
    assert "FAULT  launcher.gpus_per_trial=1; GPUs there: none" in out
    assert out.count("FAULT") == 1
    assert "1 to fix" in out


def test_a_file_system_without_flock_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(fd: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert main(["doctor", "objective=synthetic"]) == 0
    assert "no file locks (flock)" in capsys.readouterr().out
    assert main(["run", "objective=synthetic", "campaign=c", "budget=2"]) == 0
    assert "this file system has no file locks (flock)" in capsys.readouterr().out
