"""A driver in a process of its own, for any cluster; `python driver.py CAMPAIGN_DIR OPTIONS_JSON`.

Options: `launcher` (its settings, with its kind), `steps` (what an attempt does, by the end of its directory's path, as
in ``t0000/a0``), `step` (what the others do), `operation`, `fidelity` (the rungs: what an attempt does is then named
with its share, as in ``t0000/a0@0.25``), `limits` (constants of the launcher's module, or of the
one that calls commands: how long they may take, how many may hang) and `kill_at` with `when`, as in `support.drivers`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from support import drivers

from hpo_cluster.driver.campaign import Campaign
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.launchers import LAUNCHERS, commands, make_launcher
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.optimizers.rungs.settings import Fidelity


def command(log: Path, options: dict[str, Any]) -> str:
    """Log the attempt, do its step, print the value: the digits of x and k."""
    share, keep = ("@{fidelity}", "; echo {fidelity} >> {checkpoint}/done") if options.get("fidelity") else ("", "")
    cases = [f"*/{end}) {step};;" for end, step in options.get("steps", {}).items()]
    case = f"case $HPO_CLUSTER_ATTEMPT_DIR{share} in {' '.join(cases)} *) {options.get('step', 'sleep 0.5')};; esac"
    note = f"echo ${{{{HPO_CLUSTER_ATTEMPT_DIR#*/trials/}}}}{share} >> {log}"
    return f"{note}; {case}{keep}; " + """echo '{{"value": '{x}{k}'}}'"""


def spec(directory: Path, options: dict[str, Any]) -> CampaignSpec:
    """The campaign that `options` describe."""
    made = drivers.spec(directory, {"operation": {"poll_s": 0.1, "grace_s": 2, **options.get("operation", {})}})
    objective = CommandObjective(command=command(directory.parent / "log", options), cwd=str(directory.parent))
    settings = LAUNCHERS[options["launcher"]["kind"]][0](**options["launcher"])
    launcher, fidelity = make_launcher(settings), Fidelity(**options.get("fidelity", {}))
    identity = made.identity if fidelity.ladder is None else {**made.identity, "fidelity": fidelity.ladder.to_json()}
    return dataclasses.replace(
        made, objective=objective, launcher=launcher, launcher_settings=settings, fidelity=fidelity, identity=identity
    )


def main() -> None:
    """Drive the campaign to its end, or until the moment to die."""
    directory, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    module = importlib.import_module(f"hpo_cluster.launchers.{options['launcher']['kind']}")
    for name, limit in options.get("limits", {}).items():
        owner = module if hasattr(module, name) else commands
        assert hasattr(owner, name), name
        setattr(owner, name, limit)
    if "kill_at" in options:
        drivers.kill_around(options["kill_at"], options["when"])
    with Campaign(spec(directory, options)) as campaign:
        for _ in campaign.drive():
            pass


if __name__ == "__main__":
    main()
