"""All uses of submitit's private interface, which is why the version of submitit is pinned.

submitit's public interface submits pickled functions, and the launchers submit plain commands. So they use what lies
below it: the text of submitit's Slurm scripts, and the controller of its local executor.
`tests/unit/launchers/test_submitit_inside.py` says what to look at when the pinned version changes.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def slurm_script(folder: Path, command: str, token: str, parameters: Mapping[str, Any]) -> str:
    """Return the text of the script that submitit would hand to sbatch.

    Args:
        folder: folder of the job's output.
        command: shell line that srun runs.
        token: name that submitit gives the script.
        parameters: arguments of `submitit.SlurmExecutor.update_parameters`; those that are None are left out.
    """
    from submitit.slurm import slurm

    class PlainExecutor(slurm.SlurmExecutor):  # type: ignore[misc]
        """submitit's executor without its check that `srun` is on the path: a dry run writes scripts anywhere."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = PlainExecutor(folder=folder)
    # a site that tracks wckeys would refuse submitit's default one
    executor.update_parameters(wckey=None, **{name: value for name, value in parameters.items() if value is not None})
    return str(executor._make_submission_file_text(command, uid=token))


def start_local_controller(
    folder: Path, command: Sequence[str], environment: Mapping[str, str], walltime_s: int, warning_s: int
) -> subprocess.Popen[bytes]:
    """Start submitit's controller as `submitit.local.local.start_controller` does, but in a new session.

    Args:
        folder: folder of the job's output.
        command: command that the controller runs.
        environment: environment of the command.
        walltime_s: seconds after which the controller ends the command.
        warning_s: seconds before the walltime at which the controller sends SIGUSR2.
    """
    settings = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_COMMAND": shlex.join(command),
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(warning_s),
        "SUBMITIT_LOCAL_TIMEOUT_S": str(walltime_s),
        "SUBMITIT_LOCAL_WITH_SHELL": "",
        "SUBMITIT_STDERR_TO_STDOUT": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "submitit.local._local", str(folder)],
        env={**environment, **settings},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
