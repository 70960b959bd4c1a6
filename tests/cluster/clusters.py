"""One interface to a real Slurm and a real OAR: what users, administrators and accidents do to them."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
ROOT = Path(os.environ.get("HPO_CLUSTER_TEST_ROOT", "/tmp/hpo-cluster-tests"))


def wait(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `condition`; a failure after `seconds`."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)
    return found


def output(*command: str | Path, check: bool = True, timeout: float = 60, **options: Any) -> str:
    """Standard output of a command; what it said where it failed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **options)
    assert not check or done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process began with; empty where it is gone."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
    return {}


def processes() -> Iterator[int]:
    """All processes of this machine."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send each a signal, those that are gone left out."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def family(pid: int) -> list[int]:
    """A process and all that it started and still lives below it."""
    children: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    return [pid, *(one for child in children for one in family(child))]


class Cluster(ABC):
    """A scheduler that runs, as its user and its administrator see it.

    Attributes:
        kind: of the launcher.
        submit_command: what the launcher submits with.
        python: interpreter that this cluster's user can run.
        checkout: copy of the project that this cluster's user can read.
        preemption_settings: launcher settings of jobs that others may push aside.
        big_job: launcher settings of a job that has a node for itself.
        kill_at_each: 1 for drivers killed before and after every event of their journal, 7 for a seventh of them.
        forgets_s: what is younger than that, a controller that is killed has not saved, and forgets.
        set_down_kind: what the scheduler says of a job whose node was taken out.
    """

    kind: str
    submit_command: str
    python: Path
    checkout: Path
    preemption_settings: dict[str, Any]
    big_job: dict[str, Any]
    kill_at_each: int
    forgets_s: float
    set_down_kind: str

    def settings(self) -> dict[str, Any]:
        """Launcher settings that fit this cluster."""
        return {"kind": self.kind, "gpus_per_trial": 0, "cpus_per_trial": 1, "poll_period_s": 0.5, "walltime_min": 10}

    @abstractmethod
    def user_options(self) -> dict[str, Any]:
        """How to start a process as the user that submits: options of `subprocess.Popen`."""

    def start_as_user(self, *command: str | Path, path: Path | None = None, **options: Any) -> subprocess.Popen[Any]:
        """Start a process as the user that submits, with `path` before all else on its PATH."""
        chosen = self.user_options()
        environment = {**chosen.pop("env"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = f"{self.checkout}:{self.checkout / 'tests'}"
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        return subprocess.Popen([str(part) for part in command], env=environment, **chosen, **options)

    def as_user(self, *command: str | Path, timeout: float = 60, path: Path | None = None) -> str:
        """Output of a command of the user that submits."""
        process = self.start_as_user(*command, path=path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        text, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"{command}: status {process.returncode}\n{text}"
        return str(text).strip()

    @abstractmethod
    def folder(self) -> Path:
        """A new folder that the user can write into, and every node sees."""

    @abstractmethod
    def state(self, job: str) -> str:
        """What the scheduler's own command says of a job, in lower case; empty where it says nothing."""

    @abstractmethod
    def jobs(self, name: str) -> list[str]:
        """The jobs of that name that wait or run."""

    @abstractmethod
    def cancel(self, job: str) -> None:
        """The user ends a job with the scheduler's own command."""

    @abstractmethod
    def cancel_all(self) -> None:
        """End every job and wait until they are gone."""

    @abstractmethod
    def fill(self, seconds: int, *, but: int = 0, urgent: bool = False) -> str:
        """Take all nodes `but` so many for one job of somebody else, before those that may be preempted if `urgent`."""

    @abstractmethod
    def suspend(self, job: str) -> None:
        """The administrator suspends a running job."""

    @abstractmethod
    def resume(self, job: str) -> None:
        """The administrator lets it run on."""

    @abstractmethod
    def submit_driver(self, *arguments: str | Path) -> str:
        """The user runs a driver as a job of its own, with the file in jobs/ that is meant for it."""

    @abstractmethod
    def warn(self, job: str) -> None:
        """A running job is told, as its submission asked for, that its walltime is over soon."""

    @abstractmethod
    def crash_node(self, node: str) -> None:
        """Every process of a node dies, its daemon's too."""

    @abstractmethod
    def set_down(self, node: str) -> None:
        """The administrator takes a node out at once, jobs or no jobs."""

    @abstractmethod
    def mend(self) -> None:
        """Everything up again: the controller, its accounting, all nodes."""

    @abstractmethod
    def stop_controller(self) -> None:
        """End the controller as an administrator does."""

    @abstractmethod
    def kill_controller(self) -> None:
        """SIGKILL the controller."""


class Slurm(Cluster):
    """Eight nodes with four GPUs each, and one that binds jobs to their cores; root submits."""

    kind = "slurm"
    submit_command = "sbatch"
    kill_at_each = 1
    forgets_s = 10.0
    set_down_kind = "node"

    def __init__(self) -> None:
        self.root = ROOT / "slurm"
        self.run = self.root / "run"
        self.conf = self.root / "etc" / "slurm.conf"
        self.python, self.checkout = Path(sys.executable), CHECKOUT
        self.preemption_settings, self.big_job = {"partition": "main"}, {"cpus_per_trial": 16}
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.mend()

    def _tool(self, *command: str, check: bool = True) -> str:
        return output(*command, check=check, env=self.environment)

    def pid(self, daemon: str) -> int:
        return int((self.run / f"{daemon}.pid").read_text())

    def user_options(self) -> dict[str, Any]:
        return {"env": dict(self.environment), "cwd": self.root}

    def folder(self) -> Path:
        parent = self.root / "campaigns"
        parent.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="c", dir=parent))

    def state(self, job: str) -> str:
        return self._tool("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T", check=False).lower()

    def jobs(self, name: str) -> list[str]:
        return self._tool("squeue", "--noheader", f"--name={name}", "--format=%i").split()

    def cancel(self, job: str) -> None:
        self._tool("scancel", job)

    def cancel_all(self) -> None:
        self._tool("scancel", "--user=root")
        wait(lambda: not self._tool("squeue", "--noheader", "--format=%i"), 60, "an empty queue")

    def fill(self, seconds: int, *, but: int = 0, urgent: bool = False) -> str:
        partition = "high" if urgent else "main"
        wanted = ("--parsable", f"--nodes={8 - but}", "--exclusive", f"--partition={partition}", "--output=/dev/null")
        return self._tool("sbatch", *wanted, f"--wrap=sleep {seconds}")

    def suspend(self, job: str) -> None:
        self._tool("scontrol", "suspend", job)

    def resume(self, job: str) -> None:
        self._tool("scontrol", "resume", job)

    def submit_driver(self, *arguments: str | Path) -> str:
        command = ("sbatch", "--parsable", "--output=/dev/null", self.checkout / "jobs" / "driver.slurm", *arguments)
        return self.as_user(*command, path=self.python.parent)

    def warn(self, job: str) -> None:
        self._tool("scancel", "--batch", "--signal=USR1", job)

    def crash_node(self, node: str) -> None:
        daemon = self.pid(f"slurmd-{node}")
        steps = [pid for pid in processes() if self._is_step_of(pid, node)]
        kill(daemon, *(one for step in steps for one in family(step)))

    def _is_step_of(self, pid: int, node: str) -> bool:
        with contextlib.suppress(OSError):
            if not Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd"):
                return False
            nodes = [environment_of(child).get("SLURMD_NODENAME") for child in family(pid)[1:]]
            return node in nodes
        return False

    def set_down(self, node: str) -> None:
        self._tool("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def mend(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.pid("slurmdbd"), signal.SIGCONT)
        for file in self.run.glob("slurmd-*.pid"):
            if not Path(f"/proc/{file.read_text().strip()}").exists():
                file.unlink()
        if self.conf.exists() and (self.run / "slurmctld.pid").exists():
            self._tool("scontrol", "update", "nodename=ALL", "state=resume", check=False)
        output(HERE / "slurm" / "start", self.root, timeout=180)
        self._tool("scontrol", "update", "nodename=ALL", "state=resume", check=False)

    def stop_controller(self) -> None:
        pid = self.pid("slurmctld")
        os.kill(pid, signal.SIGTERM)
        wait(lambda: not is_alive(pid), 30, "the controller's end")

    def kill_controller(self) -> None:
        pid = self.pid("slurmctld")
        kill(pid)
        wait(lambda: not is_alive(pid), 10, "the controller's end")

    def stop_accounting(self) -> None:
        """The accounting daemon is gone."""
        pid = self.pid("slurmdbd")
        kill(pid)
        wait(lambda: not is_alive(pid), 10, "the accounting's end")

    def freeze_accounting(self) -> None:
        """The accounting daemon takes connections and answers nothing."""
        os.kill(self.pid("slurmdbd"), signal.SIGSTOP)


def is_alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


class Oar(Cluster):
    """Four nodes; an ordinary user submits, since OAR refuses root."""

    kind = "oar"
    submit_command = "oarsub"
    kill_at_each = 7  # its jobs take seconds to start: a sample
    forgets_s = 0.0
    set_down_kind = "cancelled"  # by root: the same as if root had called oardel
    states: ClassVar = {"waiting": "pending", "tolaunch": "pending", "tohold": "pending", "launching": "pending"}

    def __init__(self) -> None:
        self.root = ROOT / "oar"
        self.run = self.root / "run"
        # killed at once: one that was warned is killed when OAR next schedules, after a minute where all is quiet
        self.preemption_settings: dict[str, Any] = {"types": ["besteffort"], "checkpoint_delay_s": 0}
        self.big_job = {"cpus_per_trial": 4}
        readable = ROOT / "readable"
        output(HERE / "readable", sys.executable, readable, timeout=600)
        self.python, self.checkout = readable / "python" / "bin" / "python", readable / "checkout"
        self.environment = {**os.environ, "OAR_ROOT": str(self.root), "LC_ALL": "C"}
        self.mend()
        self.user = pwd.getpwnam(os.environ.get("OAR_USER", "g5k"))

    def _tool(self, *command: str | Path, check: bool = True, timeout: float = 60) -> str:
        return output(*command, check=check, timeout=timeout, env=self.environment)

    def _nodes(self) -> list[str]:
        lines = (self.run / "resources.txt").read_text().splitlines()
        return sorted({line.split("|")[0] for line in lines})

    def user_options(self) -> dict[str, Any]:
        home, name = self.user.pw_dir, self.user.pw_name
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "PWD": home, "LC_ALL": "C"}
        environment |= {"USER": name, "LOGNAME": name, "SHELL": "/bin/bash"}
        return {"env": environment, "cwd": home, "user": name, "group": self.user.pw_gid, "extra_groups": []}

    def folder(self) -> Path:
        parent = self.root / "campaigns"
        parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="c", dir=parent))
        os.chown(made, self.user.pw_uid, self.user.pw_gid)
        return made

    def state(self, job: str) -> str:
        said = self._tool("oarstat", "-s", "-j", job, check=False).rpartition(":")[2].strip().lower()
        return self.states.get(said, said)

    def cancel(self, job: str) -> None:
        self.as_user("oardel", job)

    def _queue(self) -> dict[str, dict[str, Any]]:
        return dict(json.loads(self._tool("oarstat", "-J") or "{}"))

    def jobs(self, name: str) -> list[str]:
        return [job for job, said in self._queue().items() if said["name"] == name]

    def cancel_all(self) -> None:
        if jobs := self._queue():
            self._tool("oardel", *jobs, check=False)
            wait(lambda: not self._queue(), 90, "an empty queue")
            self.mend()  # a node whose job did not end well is suspected

    def fill(self, seconds: int, *, but: int = 0, urgent: bool = False) -> str:
        left = "chiclet-1.lille.grid5000.fr"
        place = ("-p", f"host!='{left}'") if but else ()
        wanted = ("-l", f"nodes={len(self._nodes()) - but},walltime=0:20:0", "-O", "/dev/null", "-E", "/dev/null")
        return self._submitted("oarsub", *place, *wanted, f"sleep {seconds}")

    def _submitted(self, *command: str) -> str:
        said = self.as_user(*command)
        match = re.search(r"OAR_JOB_ID=(\d+)", said)
        assert match is not None, said
        return match[1]

    def suspend(self, job: str) -> None:
        self._tool("oarhold", "-r", job)

    def resume(self, job: str) -> None:
        self._tool("oarresume", job)

    def submit_driver(self, *arguments: str | Path) -> str:
        line = shlex.join(map(str, (self.checkout / "jobs" / "driver.oar", *arguments)))
        return self._submitted("oarsub", "-O", "/dev/null", "-E", "/dev/null", "-S", line)

    def warn(self, job: str) -> None:
        self._tool("oardel", "-c", job)

    def crash_node(self, node: str) -> None:
        daemon = int((self.run / f"sshd-{node.split('.')[0]}.pid").read_text())
        name_space = (Path("/proc") / str(daemon) / "ns" / "uts").readlink()
        kill(*(pid for pid in processes() if self._name_space(pid) == name_space))

    @staticmethod
    def _name_space(pid: int) -> Path | None:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/ns/uts").readlink()
        return None

    def set_down(self, node: str) -> None:
        self._tool("oarnodesetting", "-s", "Absent", "-h", node)

    def _database(self) -> list[int]:
        """The database's processes, the one that starts the others first."""
        return family(int((self.run / "pg" / "postmaster.pid").read_text().split()[0]))

    def freeze_database(self) -> None:
        """The database takes connections and answers nothing."""
        kill(self._database()[0], number=signal.SIGSTOP)  # from here on it starts no other
        kill(*self._database(), number=signal.SIGSTOP)

    def mend(self) -> None:
        with contextlib.suppress(OSError):
            kill(*self._database(), number=signal.SIGCONT)
        for file in self.run.glob("sshd-*.pid"):
            if not is_alive(int(file.read_text())):
                file.unlink()
        self._tool(HERE / "oar" / "start", timeout=700)

    def stop_controller(self) -> None:
        self._tool(HERE / "oar" / "stop-server")

    def kill_controller(self) -> None:
        self._tool(HERE / "oar" / "stop-server", "KILL")


CLUSTERS: dict[str, Callable[[], Cluster]] = {"slurm": Slurm, "oar": Oar}
