"""The commands that show a campaign and change nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_cluster.commands import OK
from hpo_cluster.commands.arguments import Arguments, short_path

if TYPE_CHECKING:
    pass


def status(arguments: Arguments) -> int:
    """Print where a campaign is."""
    from hpo_cluster.display import status_lines
    from hpo_cluster.status import campaign_status

    status = campaign_status(arguments.folder())
    print(json.dumps(status, indent=2) if "--json" in arguments.flags else "\n".join(status_lines(status)))
    return OK


def why(arguments: Arguments) -> int:
    """Print the story of trials."""
    from hpo_cluster.story import trial_story

    folder = arguments.folder()
    for number in arguments.trials():
        print("\n".join(trial_story(folder, number)))
    return OK


def tail(arguments: Arguments) -> int:
    """Print the log of a trial as it grows, until the trial ends."""
    from hpo_cluster.layout import CampaignLayout
    from hpo_cluster.record import Record
    from hpo_cluster.story import find_trial

    folder, number = arguments.folder(), arguments.trials()[0]
    layout = CampaignLayout(folder)
    seen: dict[Path, int] = {}
    while True:
        trial = find_trial(Record.read(layout.events), folder, number)
        for attempt in trial.attempts[-1:]:
            for path in sorted(layout.attempt(number, attempt.number).job_dir.glob("*log*")):
                with path.open("rb") as stream:
                    stream.seek(seen.get(path, 0))
                    text = stream.read()
                seen[path] = seen.get(path, 0) + len(text)
                print(text.decode(errors="replace"), end="", flush=True)
        if trial.state.ended:
            print(f"t{number:04d} is {trial.state}")
            return OK
        time.sleep(1.0)


def report(arguments: Arguments) -> int:
    """Draw a campaign's plots."""
    from hpo_cluster.report import write_report

    for path in write_report(arguments.folder()):
        print(short_path(path))
    return OK
