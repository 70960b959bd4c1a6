"""Commands that are told to write where nothing can be written say in one sentence what to type instead."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.compared import campaign

from hpo_cluster.cli.main import main

#: Words before a command that take from root the right to write everywhere.
ORDINARY = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all"]
ORDINARY = ORDINARY if os.geteuid() == 0 else []
needs_setpriv = pytest.mark.skipif(bool(ORDINARY) and shutil.which("setpriv") is None, reason="root writes everywhere")
#: Evaluations of a table, with the space of the campaign that it was exported from.
IMPORT = ["import", "table.csv", "space={x: {low: 0.0, high: 1.0}}", "campaign=i"]
#: What is exported, and the place of a file or folder of it below a folder.
EXPORTS = {
    "csv": "{}/x.csv",
    "parquet": "{}/x.parquet",
    "optuna": "{}/x.db",
    "mlflow": "sqlite:///{}/x.db",
    "tensorboard": "{}/x",
    "wandb": "{}/x",
}
#: By what is exported, the library that must be installed.
LIBRARIES = {"csv": "pandas", "parquet": "pandas", "optuna": "optuna", "mlflow": "mlflow", "tensorboard": "tensorboard"}
LIBRARIES |= {"wandb": "wandb"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two campaigns, one with a space in its name, a table, and a file that is in the way."""
    monkeypatch.chdir(tmp_path)
    campaign(tmp_path / "the first", [1.0, 2.0, 3.0])
    campaign(tmp_path / "second", [2.0, 1.0, 2.0], seed=1)
    (tmp_path / "file").write_text("mine")
    assert main(["export", "second", "to=csv", "path=table.csv"]) == 0
    return tmp_path


def only_fault(err: str) -> tuple[str, str]:
    """Return the fault and the hint of a message that has one of each."""
    head, fault, hint = err.strip().split("\n")
    assert head == "1 fault:"
    return fault, hint


@pytest.mark.parametrize("to", EXPORTS)
@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/none"])
def test_an_export_to_a_place_that_cannot_be_made(
    to: str, folder: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(LIBRARIES[to])
    capsys.readouterr()
    place = EXPORTS[to].format(folder)
    assert main(["export", "the first", f"to={to}", f"path={place}"]) == 2
    fault, hint = only_fault(capsys.readouterr().err)
    in_the_way = "file is a file, not a folder: move it away"
    what = "no folder can be made in /proc" if folder.startswith("/proc") else in_the_way
    assert fault.startswith(f"  - path={place}: {what}")
    assert f"hpo-cluster export 'the first' to={to} path=" in hint
    assert (here / "file").read_text() == "mine"


def test_a_folder_is_no_name_of_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.csv").mkdir()
    assert main(["export", "second", "to=csv", "path=x.csv"]) == 2
    assert "path=x.csv: is a folder; give the name of a file in it" in capsys.readouterr().err


@needs_setpriv
@pytest.mark.parametrize(
    "words",
    [
        *(["export", "second", f"to={to}", f"path={EXPORTS[to].format('closed')}"] for to in ("csv", "optuna")),
        ["export", "closed", "to=parquet"],
        ["report", "closed"],
        ["compare", "the first", "second", "out=closed/x"],
        [*IMPORT, "campaigns_dir=closed/x"],
        ["run", "objective=synthetic", "optimizer=random", "campaigns_dir=closed/x"],
        ["simulate", "objective=synthetic", "optimizer=random", "budget=1", "campaigns_dir=closed/x"],
    ],
)
def test_a_folder_of_somebody_else(words: list[str], here: Path) -> None:
    shutil.copytree("second", "closed")
    Path("closed").chmod(0o555)
    command = [*ORDINARY, sys.executable, "-m", "hpo_cluster", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    fault, hint = only_fault("\n".join(ended.stderr.strip().split("\n")[-3:]))
    assert ended.returncode == 2
    assert "closed: Permission denied" in fault
    assert ".x." not in fault  # no name of a temporary file
    assert "path=" in hint or "out=FOLDER" in hint or "campaigns_dir=FOLDER" in hint or "cp -r closed" in hint


def test_a_report_that_cannot_be_written_names_the_way_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("the first/report").write_text("mine")
    capsys.readouterr()
    assert main(["report", "the first"]) == 2
    fault, hint = only_fault(capsys.readouterr().err)
    assert fault == "  - the first/report: the first/report is a file, not a folder: move it away"
    assert hint.endswith("cp -r 'the first' 'the first-copy' && hpo-cluster report 'the first-copy'")


@pytest.fixture
def full_disk(here: Path) -> Iterator[Path]:
    """A real file system of 16 MB that has no space left."""
    disk = here / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], check=True)
    with (disk / "fills").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
@pytest.mark.parametrize("to", EXPORTS)
def test_an_export_to_a_full_disk(
    to: str, full_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(LIBRARIES[to])
    monkeypatch.setenv("WANDB_MODE", "offline")
    capfd.readouterr()
    assert main(["export", "second", f"to={to}", f"path={EXPORTS[to].format('disk')}"]) in (1, 2)
    err = capfd.readouterr().err
    assert "No space left on device" in err or "disk is full" in err
    assert f"hpo-cluster export second to={to} path=" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_an_import_to_a_full_disk_leaves_nothing_behind(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*IMPORT, "campaigns_dir=disk"]) == 2
    assert "disk: No space left on device" in capsys.readouterr().err
    (full_disk / "fills").unlink()
    assert main([*IMPORT, "campaigns_dir=disk"]) == 0
    assert "is there already" not in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_comparison_on_a_full_disk(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "the first", "second", "out=disk"]) == 2
    fault, hint = only_fault(capsys.readouterr().err)
    assert "out=disk: nothing can be written to disk: No space left on device" in fault
    assert "out=FOLDER" in hint


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_campaign_on_a_full_disk(full_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["objective=synthetic", "optimizer=random", "budget=1", "campaigns_dir=disk", "campaign=c"]

    def said(command: str, folder: Path) -> str:
        assert main([command, *quick]) == 2
        fault, hint = only_fault("\n".join(capsys.readouterr().err.strip().split("\n")[-3:]))
        assert fault == f"  - {folder}: nothing can be written to {folder}: No space left on device"
        return hint

    assert said("run", full_disk) == "Give a folder of yours:  campaigns_dir=FOLDER"
    assert said("simulate", full_disk / "simulated/c") == "Give a folder of yours:  campaigns_dir=FOLDER"
    assert said("run", full_disk / "c").endswith("Type the command again when that is fixed")  # it is there by now
    (full_disk / "fills").unlink()
    assert main(["run", *quick, "poll_s=0.05"]) == 0
