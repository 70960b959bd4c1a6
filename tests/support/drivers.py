"""Drivers to run, and to kill, in processes of their own.

    python drivers.py CAMPAIGN_DIR OPTIONS_JSON
    python drivers.py    # `forks.serve`

`kill_at` ends the process with SIGKILL around the append of the journal event of that number: ``before`` (half of its
line is on disk) or ``after`` (all of it is).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.driver import submit
from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.driver.spec import CampaignSpec, choose_optimizer, make_spec
from hpo_cluster.launchers import LocalSettings, SlurmSettings
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.optimizers.registry import make_settings
from hpo_cluster.record import journal
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.confirmation import Wanted
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import AttemptLayout, CampaignLayout
from hpo_cluster.record.next_attempt import Next
from hpo_cluster.space import Float, Integer, Space
from hpo_cluster.trial import trial_label
from support import forks

SPACE = Space({"x": Float(-5.0, 5.0), "k": Integer(1, 8)})


def spec(directory: Path, options: dict[str, Any]) -> CampaignSpec:
    log = directory.parent / f"{directory.name}.log"
    note, nap = f"echo {{x}} >> {log}", f"sleep {options.get('sleep', 0.1)}"
    command = f"{note}; {nap}; " + """echo '{{"value": '{x}{k}'}}'"""
    objective = CommandObjective(command=command, cwd=str(directory.parent))
    quick = {"budget": 4, "workers": 2, "poll_s": 0.05, "grace_s": 0.5, "retry_wait_s": 0.0}
    operation = {**quick, **options.get("operation", {})}
    slurm = SlurmSettings(poll_period_s=0.2, gpus_per_trial=0, cpus_per_trial=1)
    local = LocalSettings(poll_period_s=0.1, **options.get("local", {}))
    name, seed = options.get("optimizer", "random"), options.get("seed", 0)
    settings = make_settings(name, options.get("optimizer_settings", {}))
    made = make_spec(
        directory,
        space=SPACE,
        objective=objective,
        optimizer=choose_optimizer(
            name,
            settings,
            SPACE,
            seed,
            budget=operation["budget"],
            recorded=read_identity(CampaignLayout(directory).identity),
        ),
        seed=seed,
        launcher=slurm if options.get("launcher") == "slurm" else local,
        operation=Operation(**operation),
        storage_dir=directory.parent,
        resolve=Path,
    )
    made.launcher.trials_per_node = options.get("trials_per_node", 1)
    # the tests' commands differ in how long they sleep, and are the same campaign all the same
    identity = {**made.identity, "objective": {"kind": "command"}}
    return dataclasses.replace(made, identity=identity, take_over=options.get("take_over", False))


def kill_around(number: int, when: str) -> None:
    """From now on, die around the append of event `number`."""
    append = journal.Journal.append

    def deadly(self: journal.Journal, event: str, **fields: Any) -> journal.Event:
        if self.count == number and when == "before":
            os.write(self._fd, b'{"seq": %d, "at": "20' % number)
            os.kill(os.getpid(), signal.SIGKILL)
        written = append(self, event, **fields)
        if written["seq"] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return written

    journal.Journal.append = deadly  # type: ignore[method-assign]


def kill_when_named(trial: int) -> None:
    """From now on, die when a running job has been told to go on with this trial."""
    publish = submit.publish_next

    def deadly(files: AttemptLayout, decision: Next) -> bool:
        published = publish(files, decision)
        if decision.attempt_dir is not None and decision.attempt_dir.parent.name == trial_label(trial):
            os.kill(os.getpid(), signal.SIGKILL)
        return published

    submit.publish_next = deadly


def run(directory: Path, **options: Any) -> int:
    """Run a driver in a process of its own; returns its exit status (negative: the signal that ended it)."""
    if "environment" in options:  # which may be one that an interpreter reads when it starts
        return start(directory, **options).wait(timeout=120)
    return forks.run(__file__, directory, options, os.environ)


def start(directory: Path, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **options.pop("environment", {})}
    command = [sys.executable, __file__, str(directory), json.dumps(options)]
    return subprocess.Popen(command, env=environment, cwd=Path(__file__).resolve().parents[2])


def open_once(directory: Path) -> None:
    """Open the campaign in this process and let go of it at once."""
    Campaign(spec(directory, {})).close()


def trials(directory: Path) -> list[tuple[Any, ...]]:
    """What two runs of one campaign must agree on."""
    record = Record.read(directory / "events.jsonl")
    return [(t.number, t.parameters, t.value, t.seed, str(t.state)) for t in record.rows]


def evaluations(directory: Path) -> list[str]:
    """One entry for each evaluation that began, whoever asked for it."""
    log = directory.parent / f"{directory.name}.log"
    return log.read_text().split() if log.exists() else []


def drive(directory: Path, options: dict[str, Any]) -> None:
    """Drive a campaign to its end in this process, or as far as the options say."""
    if "kill_at" in options:
        kill_around(options["kill_at"], options["when"])
    if "kill_when_named" in options:
        kill_when_named(options["kill_when_named"])
    with Campaign(spec(directory, options)) as campaign:
        if "confirm" in options:
            campaign.confirm(Wanted(**options["confirm"]))
        for _ in campaign.drive():
            pass


if __name__ == "__main__":
    if len(sys.argv) > 1:
        drive(Path(sys.argv[1]), json.loads(sys.argv[2]))
    else:
        forks.serve(drive)
