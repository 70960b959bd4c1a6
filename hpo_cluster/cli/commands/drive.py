"""The commands that drive a campaign, or leave a request for its driver."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.cli.arguments import Arguments, short_path
from hpo_cluster.cli.command_table import COMMANDS
from hpo_cluster.cli.commands import BAD_END, INTERRUPTED, OK, say, tell
from hpo_cluster.cli.config.spec import campaign_spec
from hpo_cluster.cli.driving import drive
from hpo_cluster.errors import ConfigError, LockedError
from hpo_cluster.text import command_line, instead_of
from hpo_cluster.trial import trial_label

if TYPE_CHECKING:
    from hpo_cluster.cli.config.schema import Config

#: What to type in place of the continuation of a simulated campaign.
SIMULATE_AGAIN = "To simulate it with other settings:  hpo-cluster simulate --help"


def run(arguments: Arguments) -> int:
    """Start campaigns, or go on with those that exist."""
    from hpo_cluster.cli.config.sweep import compose_all, expand

    check_files = not arguments.option("--cfg") and not arguments.option("--info")

    combinations, faults = [arguments.words], arguments.faults
    if arguments.option("--multirun"):
        combinations = expand(arguments.words, config_dir=arguments.files.get("config_dir"), faults=faults)
    configs = compose_all(combinations, check_files=check_files, faults=faults, **arguments.files)
    if arguments.option("--info"):
        return print_info(arguments, configs)
    if arguments.option("--cfg"):
        return print_configs(arguments, configs)
    code = OK
    specs = [
        campaign_spec(config, overrides, take_over=arguments.option("--take-over"))
        for config, overrides in zip(configs, combinations, strict=True)
    ]
    if not arguments.option("--no-check"):
        _check(configs)
    for number, (config, spec) in enumerate(zip(configs, specs, strict=True), 1):
        if len(configs) > 1:
            tell(f"campaign {number} of {len(configs)}: {config.campaign}")
        ended = drive(config, spec)
        code = max(code, ended)
        if ended == INTERRUPTED:
            break
    if len(configs) > 1 and not any(config.settings.dry_run for config in configs):
        if code == INTERRUPTED:
            tell(f"Or type the same command again: it goes on with all {len(configs)} campaigns, and compares them")
        else:
            _compare([config.campaign_dir for config in configs])
    return code


def _compare(folders: Sequence[Path]) -> None:
    """Compare the campaigns of one command; what goes wrong there does not make finished campaigns a failure."""
    from hpo_cluster.cli.commands.compare import default_folder, show_comparison

    again = command_line("compare", *map(short_path, folders))
    tell(f"\ncomparison of the {len(folders)} campaigns")
    try:
        show_comparison([short_path(folder) for folder in folders], default_folder(folders), tell)
    except ConfigError as error:
        tell("\n".join(["not compared:", *(f"  {fault}" for fault in error.faults)]))
    except Exception as error:
        tell(f"not compared: {type(error).__name__}: {error}\n  {again}", file=sys.stderr)


def _check(configs: Sequence[Config]) -> None:
    """Look whether this machine has what jobs need, and read what those of new campaigns will, each objective once."""
    from hpo_cluster.objectives.base import Objective

    seen: set[str] = set()
    faults: list[str] = []
    for config in configs:
        faults += config.launcher.machine_faults()
        key = config.objective.model_dump_json()
        if key in seen or config.campaign_dir.exists():
            continue
        seen.add(key)
        if type(config.objective).reading_faults is not Objective.reading_faults:
            tell("reading model, data and tasks as the jobs will (--no-check leaves it out)")
        faults += config.objective.reading_faults(config.resolve)
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)), "Nothing was created. hpo-cluster run --help")


def resume(arguments: Arguments) -> int:
    """Go on with a campaign."""
    config = recorded_config(arguments, arguments.words[1:], check_files=not arguments.option("--cfg"))
    if arguments.option("--cfg"):
        return print_configs(arguments, [config])
    spec = campaign_spec(config, arguments.words[1:], take_over=arguments.option("--take-over"), other_places=True)
    return drive(config, spec)


def recorded_config(arguments: Arguments, overrides: Sequence[str], *, check_files: bool) -> Config:
    """Return the configuration of an existing campaign as it last ran, changed by `overrides`.

    Raises:
        ConfigError: with the faults of the command line that are known already, and all others.
    """
    from hpo_cluster.cli.config.recorded import compose_resume
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.identity import SIMULATION, read_identity
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.record.places import move_of

    folder = arguments.folder(later=True)
    layout = CampaignLayout(folder)
    identity = read_identity(layout.identity) or {}
    if SIMULATION in identity:
        fault = f"{folder}: is a simulated campaign, which nothing real can continue"
        raise ConfigError([*arguments.faults, fault], SIMULATE_AGAIN)
    record = Record.read(layout.events)
    starts = record.starts
    operation = {**starts[-1]["operation"], **starts[-1].get("settings", {})} if starts else {}
    move = move_of(folder, record)
    if check_files and move.roots:
        old, new = move.roots
        say(
            f"{old} has moved to {new}: files that are no longer in the old folder are used from the new one",
            flush=True,
        )
    try:
        return compose_resume(
            identity,
            operation,
            overrides,
            campaign_dir=folder,
            check_files=check_files,
            here=move.here,
            faults=arguments.faults,
            **arguments.files,
        )
    except ConfigError as error:
        if identity.get("objective", {}).get("kind") == "elsewhere":
            raise  # it says what to type; nothing that is added to this command helps
        own = "".join(f"[{key}=...] " for key in COMMANDS[arguments.command].keys)
        again = f"{command_line(arguments.command, arguments.words[0])} {own}KEY=VALUE"
        raise ConfigError(error.faults, f"To go on:  {again}   (hpo-cluster {arguments.command} --help)") from None


def tick(arguments: Arguments) -> int:
    """Make one short pass over a campaign."""
    from hpo_cluster.cli.display import PlainDisplay
    from hpo_cluster.driver.campaign import Campaign
    from hpo_cluster.record.campaign_state import BY_STOP

    config = recorded_config(arguments, arguments.words[1:], check_files=True)
    spec = campaign_spec(config, arguments.words[1:], take_over=arguments.option("--take-over"), other_places=True)
    display = PlainDisplay(tell)
    try:
        with Campaign(dataclasses.replace(spec, tick=True)) as campaign:
            display.remember(campaign.record.trials)
            campaign.tick()
            display.update(campaign.status(), campaign.record.trials)
            if campaign.record.halted:
                say(f"{BY_STOP}; go on with:  {command_line('resume', arguments.words[0])}")
            return BAD_END if campaign.reason not in ("", BY_STOP) else OK
    except LockedError as error:
        say(error)  # a driver is running: nothing is left to do
        return OK


def post(arguments: Arguments) -> int:
    """Leave a command for the driver; carry it out if no driver runs."""
    from hpo_cluster.record import inbox
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.record.lock import owner_lives, read_lock
    from hpo_cluster.record.trial_record import may_be_retried
    from hpo_cluster.report.trial import find_trial
    from hpo_cluster.trial import State

    folder = arguments.folder()
    layout = CampaignLayout(folder)
    trials: list[int | None] = [*arguments.trials()]
    record = Record.read(layout.events)
    faults = []
    for number in arguments.trials():
        trial = find_trial(record, folder, number)
        if arguments.command == "cancel" and trial.state.ended:
            faults.append(f"{trial_label(number)} is {trial.state}: only a trial under way can be cancelled")
        if arguments.command == "retry" and not may_be_retried(trial):
            way = (
                f"; to go on with it:  {command_line('promote', folder, number)}" if trial.state is State.PAUSED else ""
            )
            faults.append(
                f"{trial_label(number)} is {trial.state}: only one that ended without a value can be retried{way}"
            )
        if arguments.command == "promote" and trial.state is not State.PAUSED:
            faults.append(f"{trial_label(number)} is {trial.state}: only one that is paused at a rung can be promoted")
    owner = read_lock(layout.lock)
    driven = owner is not None and owner_lives(layout.lock, owner)
    if arguments.command == "stop" and record.is_finished and not driven:
        faults.append(f"{folder}: is finished: nothing is left to stop")
    if faults:
        raise ConfigError(faults, command_line("status", folder))
    for meant in trials or [None]:
        inbox.post(layout.inbox_dir, inbox.verb(arguments.command), meant)
    return _serve(arguments, driven=driven)


def _serve(arguments: Arguments, *, driven: bool) -> int:
    """Carry out the commands in the inbox, unless a driver does.

    Args:
        arguments: the command.
        driven: whether a driver was alive when it was given; it may have acted on it, and ended, since.
    """
    from hpo_cluster.driver.campaign import Campaign
    from hpo_cluster.record import inbox
    from hpo_cluster.record.layout import CampaignLayout

    resume = command_line("resume", arguments.words[0])
    stops = f"submits nothing more and ends; jobs run on. Go on with:  {resume}"
    acts = stops if arguments.command == "stop" else "acts on it within seconds"
    sent = f"{arguments.command}: sent to the driver, which {acts}"
    config = recorded_config(Arguments("resume", arguments.words[:1]), [], check_files=False)
    if driven and not inbox.pending(CampaignLayout(arguments.folder()).inbox_dir):
        say(sent)
        return OK
    try:
        with Campaign(dataclasses.replace(campaign_spec(config, other_places=True), tick=True)) as campaign:
            by_ticks = campaign.record.is_between_ticks
            campaign.take_commands()
            if not by_ticks:
                campaign.stop("waits to be resumed")
    except LockedError:
        say(sent)
        return OK
    stopped = "ticks submit nothing more" if by_ticks else "no driver was running"
    done = {
        "cancel": "cancelled",
        "promote": f"will climb to the top; go on with:  {resume}",
        "retry": f"will be tried again; go on with:  {resume}",
        "stop": f"stopped: {stopped}; go on with:  {resume}",
    }
    say(f"{' '.join([*map(trial_label, arguments.trials()), done[arguments.command]])}")
    return OK


def print_configs(arguments: Arguments, configs: Sequence[Config]) -> int:
    """Print configurations as YAML, as ``--cfg job`` asks for; with ``--package KEY`` that part of them."""
    from hpo_cluster.cli.config.schema import to_plain, to_yaml

    package = arguments.option("--package") or "_global_"
    pages = []
    for config in configs:
        part: Any = to_plain(config)
        for key in package.split(".") if package != "_global_" else ():
            accepted = list(part) if isinstance(part, dict) else []
            if key not in accepted:
                fault = f"--package {package}: there is no {key}; {instead_of(key, accepted)}"
                raise ConfigError([fault], "hpo-cluster run --cfg job")
            part = part[key]
        header = "" if package == "_global_" else f"# @package {package}\n"
        pages.append(header + to_yaml(part).removesuffix("...\n"))
    say("---\n".join(pages), end="")
    return OK


def print_info(arguments: Arguments, configs: Sequence[Config]) -> int:
    """Print what a configuration is made of, as ``--info`` asks for."""
    from hpo_cluster.cli.config.info import info_lines

    what = arguments.option("--info")
    if what != "config":
        say("\n".join(info_lines(what, arguments.words, **arguments.files)))
    return print_configs(arguments, configs) if what in ("all", "config") else OK
