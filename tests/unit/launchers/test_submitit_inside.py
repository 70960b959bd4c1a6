"""submitit is what `hpo_cluster.launchers.submitit_inside` was written against."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_cluster.launchers.submitit_inside import slurm_script, start_local_controller

ROOT = Path(__file__).resolve().parents[3]
LOOK_AT = (
    "submitit has changed. Look at hpo_cluster/launchers/submitit_inside.py: does SlurmExecutor still make a script "
    "from _make_submission_file_text, does submitit.local._local still read the same SUBMITIT_ variables, and does its "
    "controller still send SIGUSR2 before the walltime and end the command after it? Then change the pin and this test."
)


def test_the_installed_version_is_the_pinned_one() -> None:
    pinned = re.search(r'"submitit==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert pinned is not None
    assert importlib.metadata.version("submitit") == pinned[1] == "1.5.4", LOOK_AT


def test_the_controller_reads_the_variables_that_we_set() -> None:
    from submitit.local import local

    source = inspect.getsource(local)
    ours = inspect.getsource(start_local_controller)
    for name in re.findall(r'"(SUBMITIT_LOCAL_\w+)"', ours):
        assert name in source or name == "SUBMITIT_LOCAL_NODEID", f"{name}: {LOOK_AT}"


def test_a_script_is_written_where_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    text = slurm_script(tmp_path, "echo hello", "token", {"time": 5, "partition": None})
    assert "#SBATCH --time=5" in text, LOOK_AT
    assert "partition" not in text
    assert "wckey" not in text
    assert re.search(r"^srun .*echo hello$", text, re.MULTILINE), LOOK_AT


def test_the_controller_runs_a_plain_command_to_its_walltime(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    controller = start_local_controller(tmp_path, command, {"PATH": "/usr/bin:/bin"}, walltime_s=5, warning_s=1)
    try:
        controller.wait(50)
    except subprocess.TimeoutExpired:
        controller.kill()
        pytest.fail(LOOK_AT)
    assert any("begun" in path.read_text() for path in tmp_path.glob("*_log.out")), LOOK_AT
