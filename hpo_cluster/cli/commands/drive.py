"""The commands that drive a campaign, or leave a request for its driver."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hpo_cluster.cli.arguments import COMMANDS, SHOWN, Arguments, short_path
from hpo_cluster.cli.commands import BAD_END, INTERRUPTED, OK, say, tell
from hpo_cluster.errors import ConfigError, LockedError
from hpo_cluster.text import command_line, counted, instead_of
from hpo_cluster.trial import trial_label

if TYPE_CHECKING:
    from hpo_cluster.cli.config.schema import Config
    from hpo_cluster.driver.campaign import Campaign
    from hpo_cluster.driver.spec import CampaignSpec
    from hpo_cluster.record.confirmation import Wanted

#: What to type in place of the continuation of a simulated campaign.
SIMULATE_AGAIN = "To simulate it with other settings:  hpo-cluster simulate --help"
#: Seconds after the first Ctrl-C in which a second one cancels the jobs.
SECOND_CTRL_C_S = 3.0


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
    if SIMULATION in (read_identity(layout.identity) or {}):
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
            read_identity(layout.identity) or {},
            operation,
            overrides,
            campaign_dir=folder,
            check_files=check_files,
            here=move.here,
            faults=arguments.faults,
            **arguments.files,
        )
    except ConfigError as error:
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
    done = {
        "cancel": "cancelled",
        "promote": f"will climb to the top; go on with:  {resume}",
        "retry": f"will be tried again; go on with:  {resume}",
        "stop": f"stopped: ticks submit nothing more; go on with:  {resume}",
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


def campaign_spec(
    config: Config, overrides: Sequence[str] = (), *, take_over: bool = False, other_places: bool = False
) -> CampaignSpec:
    """Return the campaign of a configuration, ready to be opened."""
    from hpo_cluster.driver.spec import make_spec

    settings = config.settings
    return make_spec(
        config.campaign_dir,
        space=config.space,
        objective=config.objective,
        optimizer=config.optimizer,
        seed=settings.seed,
        launcher=config.launcher,
        operation=config.operation,
        storage_dir=settings.storage_dir,
        resolve=config.resolve,
        fidelity=config.fidelity,
        tracking=config.tracking,
        warm_start=settings.warm_start,
        warm_start_other_objective=settings.warm_start_other_objective,
        warm_start_columns=settings.warm_start_columns,
        warm_start_skip_bad=settings.warm_start_skip_bad,
        overrides=tuple(overrides),
        code=settings.code,
        take_over=take_over,
        other_places=other_places,
    )


def drive(config: Config, spec: CampaignSpec, confirmation: Wanted | None = None, again: str = "") -> int:
    """Drive a campaign until it ends, with a display.

    Args:
        config: the campaign as configured.
        spec: the same, ready to be opened.
        confirmation: what to confirm, and nothing else.
        again: the command that goes on after an interruption; empty: ``resume``.
    """
    from hpo_cluster.cli.display import LiveDisplay, PlainDisplay
    from hpo_cluster.driver.campaign import Campaign

    if config.settings.dry_run:
        return _preview(config, spec)
    logging.getLogger("hpo_cluster").addHandler(logging.NullHandler())  # its messages go to the driver's log
    display = LiveDisplay() if sys.stdout.isatty() else PlainDisplay(tell)
    with Campaign(spec) as campaign:
        if confirmation is not None:
            campaign.confirm(confirmation)
        if campaign.opened.is_new:
            _tell_warm_start(spec)
            for note in spec.objective.notes:
                tell(note)
        if not campaign.opened.lock.has_flock:
            tell(
                "this file system has no file locks (flock): drivers on several hosts can only be distinguished by "
                "their heartbeat and the number of their start",
            )
        if campaign.opened.journal.left_out:
            lines = campaign.opened.journal.left_out
            tell(f"left out of the journal: {counted(lines, 'line')} whose driver had lost the campaign")
        if dead := campaign.opened.lock.taken_over:
            tell(f"taken over from the driver that died: process {dead['pid']} on {dead.get('host')}")
        spent_before = campaign.record.spent
        if confirmation is None:
            _tell_who_goes_on(campaign)
        with _Interrupts(campaign) as interrupts:
            with display:
                for status in campaign.drive():
                    display.update(status, campaign.record.trials)
            interrupts.wait_for_second()
            if interrupts.count > 1:
                campaign.cancel_jobs()
        status = campaign.status()
    ended = _finish(config, campaign, status, interrupts, again)
    nothing_done = campaign.record.spent == spent_before and not campaign.opened.is_new and not status["exhausted"]
    if nothing_done and ended == OK and not campaign.reason and confirmation is None:
        budget = campaign.spec.operation.budget
        more = command_line("resume", short_path(config.campaign_dir), f"budget={2 * budget}")
        tell(f"The budget of {budget} was spent before. A larger one goes on:  {more}")
    if left := campaign.tracking.left:
        export = campaign.tracking.export_command
        tell(f"not logged to {config.tracking.kind}: {counted(left, 'trial')}. Log them with:  {export}")
    return ended


def _tell_who_goes_on(campaign: Campaign) -> None:
    """Say that paused trials are taken up first, which a larger budget or another rule makes room for."""
    going_on, cost = campaign.climbing.going_on()
    if not going_on:
        return
    spec = campaign.spec
    left = max(0.0, spec.operation.budget - campaign.record.committed)
    many = len(going_on) > 1
    tell(
        f"{counted(len(going_on), 'paused trial')} {'go' if many else 'goes'} on before new configurations are tried: "
        f"{'they are' if many else 'it is'} among the best at {'their rungs' if many else 'its rung'} "
        f"(fidelity.rule={spec.fidelity.rule}), and the budget has room for {'them' if many else 'it'} now "
        f"({cost:.3g} of the {counted(float(left), 'whole evaluation')} left)"
    )
    for promotion in going_on[:SHOWN]:
        tell(f"  {trial_label(promotion.trial)} goes on to rung {promotion.rung}: {promotion.why}")
    if len(going_on) > SHOWN:
        tell(f"  ... and {len(going_on) - SHOWN} more")


def _tell_warm_start(spec: CampaignSpec) -> None:
    for source in spec.warm_start.sources:
        tell(f"warm start: {source.message}")


def _preview(config: Config, spec: CampaignSpec) -> int:
    """Print what a start would submit first, and create nothing."""
    from hpo_cluster.cli.display import parameters_text
    from hpo_cluster.driver.dry_run import preview
    from hpo_cluster.record import clock
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.trial import State

    if not config.campaign_dir.exists():
        _tell_warm_start(spec)
    count = 0
    for trials, script in preview(spec):
        count += len(trials)
        say(*(f"{label}  {parameters_text(parameters)}" for label, parameters in trials), script, sep="\n")
    why = "" if count else ": its budget is spent, or as many are under way as there may be"
    say(f"{config.campaign}: {counted(count, 'trial')} would be submitted first{why}; nothing was created")
    if (several := spec.launcher_settings.trials_per_job) > 1:
        say(f"each job goes on with other trials when one has ended: up to {several} in all (launcher.trials_per_job)")
    if ladder := spec.fidelity.ladder:
        looks = ", ".join(ladder.labels[:-1])
        say(
            f"each trial is looked at after {looks} of a whole evaluation (fidelity={ladder.kind}) and goes on or is "
            f"paused (fidelity.rule={spec.fidelity.rule}); budget={spec.operation.budget} counts whole evaluations"
        )
        if Record.read(CampaignLayout(spec.dir).events).counts[State.PAUSED]:
            say("paused trials that deserve it by then go on before new ones are tried")
    if notice := spec.hours.reason_to_wait(clock.now()):
        say(notice)
    return OK


def _finish(config: Config, campaign: Campaign, status: dict[str, Any], interrupts: _Interrupts, again: str) -> int:
    from hpo_cluster.cli.display import number, summary_lines
    from hpo_cluster.record.campaign_state import BY_STOP
    from hpo_cluster.record.item_pairs import confirmation_on_items
    from hpo_cluster.record.looks import count_look, looks_in_words

    folder = short_path(config.campaign_dir)
    resume = again or command_line("resume", folder)
    if interrupts.count:
        submitted = sum(row["job"] is not None for row in status["running"])
        run_on = f"{counted(submitted, 'job')} {'runs' if submitted == 1 else 'run'} on"
        jobs = "its jobs are cancelled" if interrupts.count > 1 else run_on
        tell(f"interrupted: {number(status['done'])} of {status['budget']} done, {jobs}. Go on with:\n  {resume}")
        return INTERRUPTED
    files = {"history": campaign.opened.layout.history, "log": campaign.opened.log_path}
    if page := _write_page(config.campaign_dir):
        files["report"] = page
    confirmed = not campaign.reason and (campaign.record.stopped or {}).get("reason") == "confirmed"
    reason = "confirmed" if confirmed else campaign.reason or None
    status = {**status, "dir": folder, "state": "stopped" if reason else "finished", "reason": reason, "eta_s": None}
    maximize = config.objective.direction == "maximize"
    status["confirmation"] = confirmation_on_items(campaign.record, campaign.opened.layout, maximize=maximize)
    short = {label: short_path(path) for label, path in files.items()}
    tests = config.objective.test_tasks or ()
    looked = looks_in_words(count_look(campaign.opened.layout, campaign.record, tests))
    tell("\n".join(summary_lines(status, config.objective.metric, tests, short, looked)))
    if campaign.reason == BY_STOP:
        tell(f"Go on with:\n  {resume}")
        return OK
    if campaign.reason:
        all_failed = status["best"] is None and status["counts"].get("failed")
        other = " (another command or setting of the objective needs another campaign=NAME)" if all_failed else ""
        tell(f"Go on, once that is fixed{other}:\n  {resume}")
    elif confirmed:
        tell(f"The budget is not spent. Go on with:\n  {command_line('resume', folder)}")
    return BAD_END if campaign.reason or status["best"] is None else OK


def _write_page(campaign_dir: Path) -> Path | None:
    """Write the report's page; one that fails does not make a finished campaign a failure."""
    try:
        from hpo_cluster.report import write_page

        return write_page(campaign_dir)
    except Exception as error:
        tell(f"no report: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _reason_of(number: int) -> str:
    """Return why a driver stops that gets a signal."""
    from hpo_cluster.driver.notify import HANDED_OVER

    named = {signal.SIGINT: "interrupted", signal.SIGUSR1: HANDED_OVER}
    return named.get(signal.Signals(number), f"ended by {signal.Signals(number).name}")


class _Interrupts:
    """The handler of Ctrl-C: once stops submitting and leaves the jobs running, twice cancels them.

    SIGTERM acts like one Ctrl-C, and so does the end of the terminal (SIGHUP), unless it is ignored (nohup). So does
    SIGUSR1, which says that another driver will follow (``jobs/driver.slurm``).
    """

    def __init__(self, campaign: Campaign) -> None:
        self.count = 0
        self._campaign = campaign
        self._terminated = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count = self.count + 1 if number == signal.SIGINT else max(self.count, 1)  # a shell sends SIGHUP twice
        self._terminated = self._terminated or number != signal.SIGINT
        self._campaign.stop(_reason_of(number))
        if self.count == 1 and not self._terminated:
            message = f"stopping; jobs run on. Ctrl-C again within {SECOND_CTRL_C_S:.0f} s cancels them"
            tell(message, file=sys.stderr)
        if self.count > 2:
            signal.default_int_handler(number, frame)

    def wait_for_second(self) -> None:
        """Give a user who pressed Ctrl-C once the time to press it again."""
        end = time.monotonic() + SECOND_CTRL_C_S
        while self.count == 1 and not self._terminated and time.monotonic() < end:
            time.sleep(0.05)

    def __enter__(self) -> _Interrupts:
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            again = (
                number == signal.SIGHUP and self._terminated
            )  # a shell's second SIGHUP may come while the driver closes
            signal.signal(number, signal.SIG_IGN if again else handler)
