"""The command line. The only part of the package that prints; it imports what a command needs when it needs it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import hpo_cluster
from hpo_cluster.errors import ConfigError, HpoClusterError, IdentityError, JournalError, LockedError
from hpo_cluster.help import COMMANDS, FLAGS, command_help, main_help

if TYPE_CHECKING:
    from hpo_cluster.campaign import Campaign
    from hpo_cluster.config import Config
    from hpo_cluster.spec import CampaignSpec

T = TypeVar("T")

OK, BAD_END, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

#: Seconds after the first Ctrl-C in which a second one cancels the jobs.
SECOND_CTRL_C_S = 3.0


@dataclass
class _Arguments:
    command: str
    words: list[str] = field(default_factory=list)  # what is no flag: overrides, a folder
    flags: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def config_dir(self) -> Path | None:
        return Path(self.flags["--config-dir"]) if "--config-dir" in self.flags else None

    def folder(self) -> Path:
        """The campaign's folder, the first word. Raises ConfigError where there is none."""
        faults = list(self.faults)
        if not self.words or "=" in self.words[0]:
            faults.append(f"{self.command} needs the campaign's folder, such as campaigns/first")
        elif not (Path(self.words[0]) / "campaign.yaml").is_file():
            faults.append(f"{self.words[0]}: is no campaign (it has no campaign.yaml){_campaigns_nearby()}")
        extra = self.words[1:] if self.command in ("status", "report", "stop") else []
        faults += [f"{word!r}: {self.command} takes nothing but a folder" for word in extra]
        if self.command in ("why", "tail", "cancel", "retry"):
            faults += [f"{word!r}: is no number of a trial" for word in self.words[1:] if _trial_number(word) is None]
            if len(self.words) < 2:
                faults.append(f"{self.command} needs the number of a trial, such as 7")
        if faults:
            raise ConfigError(faults, f"hpo-cluster {self.command} --help")
        return Path(self.words[0])

    def trials(self) -> list[int]:
        """The trials that are meant, once `folder` has found no fault."""
        return [number for word in self.words[1:] if (number := _trial_number(word)) is not None]


def _trial_number(word: str) -> int | None:
    """7 of ``7``, ``t0007`` or ``t7``; -1 of ``baseline``."""
    if word == "baseline":
        return -1
    digits = word.removeprefix("t")
    return int(digits) if digits.isdecimal() else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, or 1 for a campaign that ended badly, 2 for bad input, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except (ConfigError, IdentityError, LockedError, JournalError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except HpoClusterError as error:
        print(error, file=sys.stderr)
        return BAD_END
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(main_help(Path.cwd()))
        return OK if words else BAD_INPUT
    if words[0] in ("--version", "-V"):
        print(f"hpo-cluster {hpo_cluster.__version__}")
        return OK
    command = words[0]
    if command not in COMMANDS:
        accepted = f"accepted: {', '.join(COMMANDS)}"
        if "=" in command:
            fault = f"{command!r}: a command comes first; did you mean: hpo-cluster run {command}?"
        else:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            fault = f"{command!r}: is no command; {f'did you mean {close[0]}? ' if close else ''}{accepted}"
        raise ConfigError([fault], "Commands and options: hpo-cluster --help")
    arguments = _parse(command, words[1:])
    if "--help" in arguments.flags:
        print(command_help(command, Path.cwd(), arguments.config_dir))
        return OK
    commands: dict[str, Callable[[_Arguments], int]] = {
        "run": _run,
        "resume": _resume,
        "tick": _tick,
        "status": _status,
        "why": _why,
        "tail": _tail,
        "cancel": _command,
        "retry": _command,
        "stop": _command,
        "report": _report,
        "doctor": _doctor,
        "prepare": _prepare,
    }
    return commands[command](arguments)


def _parse(command: str, words: list[str]) -> _Arguments:
    """Flags wherever they stand, everything else in order."""
    arguments = _Arguments(command)
    short = {"-m": "--multirun", "-h": "--help"}
    accepted = [flag for flag, (_, commands, _) in FLAGS.items() if command in commands]
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            arguments.words.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = short.get(flag, flag)
        if flag not in accepted:
            close = difflib.get_close_matches(flag, accepted, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            arguments.faults.append(f"{word}: is no option of {command}; {meant}accepted: {', '.join(accepted)}")
            continue
        if wanted := FLAGS[flag][0]:
            value = value if equals else (queue.pop(0) if queue else "")
            if not value or (flag == "--cfg" and value != "job"):
                arguments.faults.append(f"{flag} {value}".strip() + f": accepted: {flag} {wanted}")
        arguments.flags[flag] = value
    return arguments


# --------------------------------------------------------------------------------------------------------- run, resume


def _run(arguments: _Arguments) -> int:
    from hpo_cluster.compose import compose_all, expand

    check_files = "--cfg" not in arguments.flags

    def compose() -> tuple[list[list[str]], list[Config]]:
        combinations = expand(arguments.words) if "--multirun" in arguments.flags else [arguments.words]
        return combinations, compose_all(combinations, config_dir=arguments.config_dir, check_files=check_files)

    combinations, configs = _collecting(arguments, compose)
    if not check_files:
        return _print_configs(configs)
    code = OK
    for number, (config, overrides) in enumerate(zip(configs, combinations, strict=True), 1):
        if len(configs) > 1:
            print(f"campaign {number} of {len(configs)}: {config.campaign}")
        ended = _drive(config, overrides, take_over="--take-over" in arguments.flags)
        code = max(code, ended)
        if ended == INTERRUPTED:
            break
    return code


def _resume(arguments: _Arguments) -> int:
    config = _recorded_config(arguments, arguments.words[1:], check_files="--cfg" not in arguments.flags)
    if "--cfg" in arguments.flags:
        return _print_configs([config])
    return _drive(config, arguments.words[1:], take_over="--take-over" in arguments.flags)


def _recorded_config(arguments: _Arguments, overrides: Sequence[str], *, check_files: bool) -> Config:
    """The configuration of an existing campaign, as it was last run but for `overrides`."""
    from hpo_cluster.compose import compose_resume
    from hpo_cluster.identity import read_identity
    from hpo_cluster.layout import CampaignLayout
    from hpo_cluster.record import Record

    folder = arguments.folder()
    layout = CampaignLayout(folder)
    starts = Record.read(layout.events).starts
    operation = {**starts[-1]["operation"], **starts[-1].get("settings", {})} if starts else {}
    return compose_resume(
        read_identity(layout.identity) or {},
        operation,
        overrides,
        campaign_dir=folder,
        config_dir=arguments.config_dir,
        check_files=check_files,
    )


def _tick(arguments: _Arguments) -> int:
    from hpo_cluster.campaign import Campaign
    from hpo_cluster.display import PlainDisplay

    config = _recorded_config(arguments, arguments.words[1:], check_files=True)
    spec = campaign_spec(config, arguments.words[1:], take_over="--take-over" in arguments.flags)
    display = PlainDisplay(lambda line: print(line, flush=True))
    try:
        with Campaign(dataclasses.replace(spec, tick=True)) as campaign:
            display.remember(campaign.record.trials)
            campaign.tick()
            display.update(campaign.status(), campaign.record.trials)
            if campaign.record.halted:
                print(f"stopped from another terminal; go on with:  hpo-cluster resume {arguments.words[0]}")
            return BAD_END if campaign.reason else OK
    except LockedError as error:
        print(error)  # a driver is at work: nothing to do for us
        return OK


def _command(arguments: _Arguments) -> int:
    """Leave a command for the driver; where there is none, carry it out."""
    from hpo_cluster import inbox
    from hpo_cluster.layout import CampaignLayout
    from hpo_cluster.record import Record
    from hpo_cluster.story import find_trial
    from hpo_cluster.trial import trial_label

    folder = arguments.folder()
    layout = CampaignLayout(folder)
    trials: list[int | None] = [*arguments.trials()]
    record = Record.read(layout.events)
    faults = []
    for number in arguments.trials():
        trial = find_trial(record, folder, number)
        if arguments.command == "cancel" and trial.state.ended:
            faults.append(f"{trial_label(number)} is {trial.state}: only a trial under way can be cancelled")
        if arguments.command == "retry" and (not trial.state.ended or trial.value is not None):
            faults.append(f"{trial_label(number)} is {trial.state}: only one that ended without a value can be retried")
    if faults:
        raise ConfigError(faults, f"hpo-cluster status {folder}")
    for meant in trials or [None]:
        inbox.post(layout.inbox_dir, inbox.verb(arguments.command), meant)
    return _serve(arguments)


def _serve(arguments: _Arguments) -> int:
    """Carry out what waits in the inbox, unless a driver does."""
    from hpo_cluster.campaign import Campaign

    config = _recorded_config(_Arguments("resume", arguments.words[:1]), [], check_files=False)
    try:
        with Campaign(dataclasses.replace(campaign_spec(config), tick=True)) as campaign:
            campaign.take_commands()
    except LockedError:
        print(f"{arguments.command}: told the driver, which takes it in within seconds")
        return OK
    done = {
        "cancel": "cancelled",
        "retry": f"will be tried again; go on with:  hpo-cluster resume {arguments.words[0]}",
        "stop": "stopped: ticks submit nothing more",
    }
    print(f"{' '.join([*arguments.words[1:], done[arguments.command]])}")
    return OK


def _why(arguments: _Arguments) -> int:
    from hpo_cluster.story import trial_story

    folder = arguments.folder()
    for number in arguments.trials():
        print("\n".join(trial_story(folder, number)))
    return OK


def _tail(arguments: _Arguments) -> int:
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


def _collecting(arguments: _Arguments, compose: Callable[[], T]) -> T:
    """What `compose` returns; the faults of the flags are named along with its own."""
    try:
        result = compose()
    except ConfigError as error:
        raise ConfigError([*arguments.faults, *error.faults], error.hint) from None
    if arguments.faults:
        raise ConfigError(arguments.faults, f"hpo-cluster {arguments.command} --help")
    return result


def _print_configs(configs: Sequence[Config]) -> int:
    from hpo_cluster.config import to_yaml

    print("---\n".join(to_yaml(config) for config in configs), end="")
    return OK


def campaign_spec(config: Config, overrides: Sequence[str] = (), *, take_over: bool = False) -> CampaignSpec:
    """The campaign of a configuration, ready to be opened."""
    from hpo_cluster.operation import Operation
    from hpo_cluster.spec import make_spec

    return make_spec(
        config.campaign_dir,
        space=config.space,
        objective=config.objective,
        optimizer=config.optimizer.name,
        optimizer_settings=config.optimizer.settings,
        seed=config.seed,
        launcher=config.launcher,
        operation=Operation(**config.model_dump(include=set(Operation.model_fields))),
        storage_dir=config.storage_dir,
        resolve=config.resolve,
        overrides=tuple(overrides),
        code=config.code,
        take_over=take_over,
    )


def _drive(config: Config, overrides: Sequence[str], *, take_over: bool) -> int:
    from hpo_cluster.campaign import Campaign
    from hpo_cluster.display import LiveDisplay, PlainDisplay

    if config.dry_run:
        return _preview(config, overrides)
    logging.getLogger("hpo_cluster").addHandler(logging.NullHandler())  # its messages go to the driver's log
    display = LiveDisplay() if sys.stdout.isatty() else PlainDisplay(lambda line: print(line, flush=True))
    with Campaign(campaign_spec(config, overrides, take_over=take_over)) as campaign:
        if dead := campaign.lock.taken_over:
            print(f"taken over from the driver that died: process {dead['pid']} on {dead.get('host')}", flush=True)
        with _Interrupts(campaign) as interrupts:
            with display:
                for status in campaign.drive():
                    display.update(status, campaign.record.trials)
            interrupts.wait_for_second()
            if interrupts.count > 1:
                campaign.cancel_jobs()
        status = campaign.status()
    return _finish(config, campaign, status, interrupts)


def _preview(config: Config, overrides: Sequence[str]) -> int:
    """Print what a start would submit first. Creates nothing."""
    from hpo_cluster.display import parameters_text
    from hpo_cluster.preview import preview

    count = 0
    for trials, script in preview(campaign_spec(config, overrides)):
        count += len(trials)
        print(*(f"{label}  {parameters_text(parameters)}" for label, parameters in trials), script, sep="\n")
    print(f"{config.campaign}: {count} trials would be submitted first; nothing was created")
    return OK


def _finish(config: Config, campaign: Campaign, status: dict[str, Any], interrupts: _Interrupts) -> int:
    from hpo_cluster.display import summary_lines

    folder = _short_path(config.campaign_dir)
    resume = f"hpo-cluster resume {folder}"
    if interrupts.count:
        jobs = "its jobs are cancelled" if interrupts.count > 1 else f"{status['in_flight']} jobs run on"
        print(f"interrupted: {status['done']} of {status['budget']} done, {jobs}. Go on with:\n  {resume}")
        return INTERRUPTED
    files = {"history": campaign.layout.history, "log": campaign.log_path}
    if plot := _draw(config.campaign_dir):
        files["plot"] = plot
    tasks = getattr(config.objective, "tasks", None)
    status = {
        **status,
        "state": "stopped" if campaign.reason else "finished",
        "reason": campaign.reason or None,
        "eta_s": None,
    }
    tests = tuple(tasks.test) if tasks is not None else ()
    short = {label: _short_path(path) for label, path in files.items()}
    print("\n".join(summary_lines(status, config.objective.metric, tests, short)))
    if campaign.reason:
        print(f"Go on, once that is mended:\n  {resume}")
    return BAD_END if campaign.reason or status["best"] is None else OK


def _draw(campaign_dir: Path) -> Path | None:
    """Draw the report; a plot that fails is no reason to call a finished campaign a failure."""
    try:
        from hpo_cluster.report import write_report

        paths = write_report(campaign_dir)
    except Exception as error:
        print(f"no plot: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return paths[0] if paths else None


class _Interrupts:
    """Ctrl-C: once stops submitting and leaves the jobs running, twice cancels them. SIGTERM is as once."""

    def __init__(self, campaign: Campaign) -> None:
        self.count = 0
        self._campaign = campaign
        self._terminated = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._terminated = self._terminated or number == signal.SIGTERM
        self._campaign.stop("interrupted")
        if self.count == 1 and not self._terminated:
            message = f"stopping; jobs run on. Ctrl-C again within {SECOND_CTRL_C_S:.0f} s cancels them"
            print(message, file=sys.stderr, flush=True)
        if self.count > 2:
            signal.default_int_handler(number, frame)

    def wait_for_second(self) -> None:
        """Give a user who pressed Ctrl-C once the time to press it again."""
        end = time.monotonic() + SECOND_CTRL_C_S
        while self.count == 1 and not self._terminated and time.monotonic() < end:
            time.sleep(0.05)

    def __enter__(self) -> _Interrupts:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------- status, report, prepare


def _status(arguments: _Arguments) -> int:
    from hpo_cluster.display import status_lines
    from hpo_cluster.status import campaign_status

    status = campaign_status(arguments.folder())
    print(json.dumps(status, indent=2) if "--json" in arguments.flags else "\n".join(status_lines(status)))
    return OK


def _report(arguments: _Arguments) -> int:
    from hpo_cluster.report import write_report

    for path in write_report(arguments.folder()):
        print(_short_path(path))
    return OK


def _doctor(arguments: _Arguments) -> int:
    from hpo_cluster.compose import compose
    from hpo_cluster.doctor import examine

    config = _collecting(
        arguments, lambda: compose(arguments.words, config_dir=arguments.config_dir, check_files=False)
    )
    faults = 0
    for finding in examine(campaign_spec(config, arguments.words)):
        print(f"{'ok   ' if finding.ok else 'FAULT'}  {finding.what}", flush=True)
        if not finding.ok:
            faults += 1
            print(f"       -> {finding.remedy}", flush=True)
    print("all is well" if not faults else f"{faults} to mend")
    return BAD_END if faults else OK


def _prepare(arguments: _Arguments) -> int:
    from hpo_cluster.compose import compose

    config = _collecting(
        arguments, lambda: compose(arguments.words, config_dir=arguments.config_dir, check_files=False)
    )
    if "--cfg" in arguments.flags:
        return _print_configs([config])
    from hpo_cluster.objectives.lora import LoraObjective
    from hpo_cluster.prepare import prepare

    if isinstance(config.objective, LoraObjective):
        prepare(config.objective, config.resolve, lambda line: print(line, flush=True))
    else:
        print(f"objective={config.objective.kind} needs nothing prepared")
    return OK


def _short_path(path: Path) -> Path:
    """Relative to the working directory where it lies in it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _campaigns_nearby() -> str:
    found = sorted(path.parent for path in Path("campaigns").glob("*/campaign.yaml"))
    return f"; there are: {', '.join(map(str, found[:8]))}" if found else ""


if __name__ == "__main__":
    sys.exit(main())
