"""The command that evaluates the best configurations of a campaign again with new seeds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hpo_cluster.cli.arguments import Arguments, trial_number
from hpo_cluster.cli.commands import OK, say, tell
from hpo_cluster.errors import ConfigError
from hpo_cluster.record.confirmation import REPLICATES, TOP, Wanted
from hpo_cluster.text import command_line, counted


def confirm(arguments: Arguments) -> int:
    """Evaluate what is missing of a confirmation, and print what it says."""
    from hpo_cluster.cli.commands.drive import recorded_config
    from hpo_cluster.cli.config.spec import campaign_spec
    from hpo_cluster.cli.driving import drive
    from hpo_cluster.goals import Goals
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.confirmation import chosen, missing_rows
    from hpo_cluster.record.identity import identity_of_campaign
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.record.trial_record import TrialRecord
    from hpo_cluster.trial import trial_label

    wanted, overrides = _read(arguments)
    layout = CampaignLayout(arguments.folder(later=True))
    identity = identity_of_campaign(layout.identity)
    maximize, goals = identity["direction"] == "maximize", Goals.of(identity["objective"])
    record = Record.read(layout.events)
    trials, ranking = list[TrialRecord](), list[int]()
    try:  # before anything is opened
        ranking = [] if wanted.trials or arguments.faults else _ranking(layout.dir)
        trials = chosen(record, wanted, goals, maximize=maximize, ranking=ranking)
    except ConfigError as error:
        arguments.faults += error.faults
    config = recorded_config(arguments, overrides, check_files=True)
    wanted = dataclasses.replace(wanted, trials=tuple(trial.number for trial in trials))
    labels = ", ".join(trial_label(trial.number) for trial in trials)
    spec = campaign_spec(config, overrides, take_over=arguments.option("--take-over"), other_places=True)
    if config.settings.dry_run:
        missing = missing_rows(record, trials, wanted.replicates, spec.seed)
        say(f"{labels}: {counted(len(missing), 'evaluation')} missing; nothing was added")
        return OK
    if ranking:
        tell(f"confirming {labels}: the best by the model's posterior mean, as the campaign recommends")
    return drive(config, spec, wanted, again=command_line("confirm", *arguments.words))


def _ranking(folder: Path) -> list[int]:
    """Return the trials by what the campaign recommends, the best first; empty if it recommends the best value."""
    from hpo_cluster.report import read_campaign

    return read_campaign(folder).ranking


def _read(arguments: Arguments) -> tuple[Wanted, list[str]]:
    """Return what is to be confirmed, and the overrides; add a fault for each value that is wrong."""
    given, counts = arguments.given, {}
    for key, default in (("top", TOP), ("replicates", REPLICATES)):
        text = given.get(key, str(default))
        counts[key] = int(text) if text.isdecimal() else 0
        if counts[key] < 1:
            arguments.faults.append(f"{key}={text}: accepted: a whole number, 1 or more")
    words = [word for word in given.get("trials", "").strip("[]").split(",") if word]
    trials = [trial_number(word.strip()) for word in words]
    if "trials" in given and (not trials or None in trials):
        arguments.faults.append(f"trials={given['trials']}: accepted: numbers of trials, such as trials=[7,3]")
    if "trials" in given and "top" in given:
        arguments.faults.append("top and trials: give one of the two")
    numbers = tuple(dict.fromkeys(number for number in trials if number is not None))
    return Wanted(**counts, trials=numbers), arguments.others[1:]
