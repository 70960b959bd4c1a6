"""The commands, their options, and what a command line says: the one table that help, parsing and completion read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpo_cluster.cli.commands import terminal_width
from hpo_cluster.errors import ConfigError
from hpo_cluster.text import did_you_mean, instead_of, nearest

#: Fewest columns of the help, and most: those where the output is not a terminal.
NARROW, WIDTH = 60, 118

OVERRIDES = "[KEY=VALUE ...]"
FILES = ("--config-dir", "--config-name")
#: Keys of `hpo_cluster.driver.simulate.SimulationSettings`, which the TAB key need not import.
SIMULATION_KEYS = (
    *("repeats", "duration_s", "spread", "waiting_s", "places", "failure_rate", "preemptions_per_hour", "checkpoints"),
    *("proposal_scale", "start"),
)
#: Keys that say what a campaign is, or where, and that one which exists does not accept.
SETTLED_KEYS = (
    *("campaign", "campaigns_dir", "seed", "warm_start", "warm_start_other_objective", "warm_start_columns"),
    "warm_start_skip_bad",
)
#: Groups from which a campaign that exists may choose another option.
OPEN_GROUPS = ("launcher", "tracking")
LOOK = ("--cfg", "--package", "--resolve")


@dataclass(frozen=True)
class Command:
    """One command: its line of description, what it takes, its options and the function that carries it out."""

    summary: str
    runs: str  # module of `hpo_cluster.cli.commands` and function
    words: str
    options: tuple[str, ...] = ()
    #: What it accepts as KEY=VALUE after a folder, or besides overrides, each with its line of description.
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_overrides(self) -> bool:
        """Whether the command takes ``KEY=VALUE``."""
        return OVERRIDES in self.words

    @property
    def takes_folder(self) -> bool:
        """Whether the command's first word is a campaign's folder."""
        return self.words.startswith("DIR")

    @property
    def goes_on(self) -> bool:
        """Whether the command goes on with a campaign that exists, of which not every key may change."""
        return self.takes_folder and self.takes_overrides

    @property
    def takes_folders(self) -> bool:
        """Whether more campaigns' folders may follow the first one."""
        return self.words.startswith("DIR [DIR ...]")

    @property
    def takes_trials(self) -> bool:
        """Whether numbers of trials follow the folder."""
        return "TRIAL" in self.words


COMMANDS: Mapping[str, Command] = {
    "run": Command(
        "start a campaign, or go on with it: the same command does both",
        "drive.run",
        OVERRIDES,
        ("--multirun", *LOOK, "--info", *FILES, "--take-over", "--no-check"),
    ),
    "resume": Command(
        "go on with a campaign by its folder; budget=, workers=, launcher= may change",
        "drive.resume",
        f"DIR {OVERRIDES}",
        (*LOOK, "--config-dir", "--take-over"),
    ),
    "status": Command("where a campaign is, from any terminal", "look.status", "DIR", ("--json",)),
    "watch": Command(
        "a view of a campaign that refreshes: progress, running jobs, curves, errors, queue; q ends the view alone",
        "watch.watch",
        "DIR",
        ("--every",),
    ),
    "why": Command("the story of a trial: attempts, jobs, nodes, errors, its last output", "look.why", "DIR TRIAL"),
    "tail": Command("the log of a trial, as it grows", "look.tail", "DIR TRIAL"),
    "ls": Command(
        "all campaigns of a folder in one table: progress, best value, state", "overview.ls", "[FOLDER]", ("--json",)
    ),
    "best": Command(
        "the best trial for a preference: weights='{acc: 1, gpu_seconds: -0.01}' or at_most='{gpu_seconds: 30}'",
        "look.best",
        "DIR [weights={METRIC: NUMBER}] [at_most={METRIC: NUMBER}] [at_least={METRIC: NUMBER}]",
        ("--json",),
        {
            "weights": "by metric, what one more of it is worth; below zero if less is better",
            "at_most": "by metric, the largest value that is accepted",
            "at_least": "by metric, the smallest value that is accepted",
        },
    ),
    "compare": Command(
        "compare campaigns over seeds: table, tests, figures, what is within the noise; DIR may hold many campaigns",
        "compare.compare",
        "DIR [DIR ...] [reach=VALUE] [reference={METRIC: NUMBER}] [out=FOLDER]",
        keys={
            "reach": "a value of the metric: the table says what it took to reach it",
            "reference": "with several objectives, by metric, the worst value of interest",
            "out": "folder to write; if none is given, comparison, next to the first campaign",
        },
    ),
    "cancel": Command("end trials; they do not count for the budget", "drive.post", "DIR TRIAL [TRIAL ...]"),
    "retry": Command("try trials again that failed, diverged or were cancelled", "drive.post", "DIR TRIAL [TRIAL ...]"),
    "promote": Command("let trials that are paused at a rung climb to the top", "drive.post", "DIR TRIAL [TRIAL ...]"),
    "stop": Command("let the driver, or the ticks, submit nothing more; jobs run on", "drive.post", "DIR"),
    "tick": Command(
        "one short pass instead of a driver that stays, for cron: collect, propose, submit, exit",
        "drive.tick",
        f"DIR {OVERRIDES}",
        ("--config-dir", "--take-over"),
    ),
    "report": Command("write a campaign's page (HTML) and its figures (PNG, PDF)", "look.report", "DIR"),
    "describe": Command(
        "what a paper's appendix needs: the paragraph, the tables and the references",
        "describe.describe",
        "DIR",
        ("--latex", "--bibtex", "--json"),
    ),
    "verify": Command(
        "derive every proposal again, compare results with their files; changes nothing",
        "verify.verify",
        "DIR",
        ("--json",),
    ),
    "confirm": Command(
        "evaluate the best configurations again with new seeds; outside the budget: was the winner lucky?",
        "confirm.confirm",
        f"DIR [top=3] [replicates=3] [trials=[7,3]] {OVERRIDES}",
        ("--config-dir", "--take-over"),
        {
            "top": "how many of the best configurations are evaluated again",
            "replicates": "evaluations of each, each with a new seed",
            "trials": "the trials whose configurations are evaluated again, in place of the best ones",
        },
    ),
    "repair": Command(
        "rebuild a journal that was cut or damaged: from its whole lines and the jobs' files", "check.repair", "DIR"
    ),
    "export-adapter": Command(
        "write the model that a trial has fine-tuned: as a Hugging Face model",
        "look.export_adapter",
        "DIR TRIAL",
        ("--to",),
    ),
    "export": Command(
        "write the trials for other tools: a table, an Optuna study, MLflow, TensorBoard, W&B; again updates it",
        "exchange.export",
        "DIR to=csv|parquet|optuna|mlflow|tensorboard|wandb [path=FILE, FOLDER or URL] [name=NAME]",
        (),
        {
            "to": "the format: csv or parquet (a table), optuna (a study), mlflow, tensorboard, wandb",
            "path": "file, folder or URL; if none is given, a file in the campaign's folder, or the tool's own place",
            "name": "of the study (optuna), the experiment (mlflow) or the project (wandb)",
        },
    ),
    "import": Command(
        "make a campaign of evaluations that were made elsewhere: a table, JSON lines or an Optuna study",
        "exchange.import_evaluations",
        f"FILE {OVERRIDES}",
        ("--like", *FILES),
    ),
    "simulate": Command(
        "play campaigns through on a simulated cluster, in seconds: how long, how many GPU-hours, which optimizer",
        "simulate.simulate",
        f"{OVERRIDES} [simulate.KEY=VALUE ...]",
        ("--multirun", *FILES),
        {f"simulate.{key}": "" for key in SIMULATION_KEYS},  # the settings have their descriptions
    ),
    "doctor": Command(
        "check commands, storage, clock, queue and files; run one tiny job", "check.doctor", OVERRIDES, FILES
    ),
    "prepare": Command(
        "fetch model, data and tasks to shared storage, once", "check.prepare", OVERRIDES, (*LOOK, *FILES)
    ),
    "completion": Command(
        "print the script for the TAB key: it completes commands, keys, options and folders",
        "shell.completion",
        "bash|zsh|fish",
    ),
}

#: By option: its short forms, and argparse's arguments.
OPTIONS: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
    "--multirun": (
        ("-m",),
        {"action": "store_true", "help": "several campaigns one after another: -m optimizer=lhs,bo 'seed=range(3)'"},
    ),
    "--cfg": (("-c",), {"metavar": "job", "help": "print the composed configuration as YAML and do nothing"}),
    "--package": (("-p",), {"metavar": "KEY", "help": "of --cfg job: print this section or key alone"}),
    "--resolve": (
        (),
        {"action": "store_true", "help": "of --cfg job: not needed, as interpolations are always resolved"},
    ),
    "--info": (
        ("-i",),
        {
            "metavar": "WHAT",
            "nargs": "?",
            "const": "all",
            "help": "print what the configuration is made of and do nothing: searchpath, defaults, defaults-tree, "
            "config, or all",
        },
    ),
    "--config-dir": (
        ("-cd",),
        {"metavar": "DIR", "help": "a folder of configuration files and of groups (space/NAME.yaml), next to ./conf"},
    ),
    "--config-name": (
        ("-cn",),
        {"metavar": "NAME", "help": "the file to begin with, in ./conf or --config-dir; begin it with  defaults: "
         "[config, _self_]"},
    ),
    "--take-over": ((), {"action": "store_true", "help": "take over a campaign whose driver died on another host"}),
    "--no-check": (
        (),
        {
            "action": "store_true",
            "help": "do not read model, data and tasks before a new campaign starts; its jobs will",
        },
    ),
    "--every": ((), {"metavar": "SECONDS", "help": "seconds between two looks at the campaign; 3 if not given"}),
    "--like": ((), {"metavar": "DIR", "help": "take space, objective, optimizer and seed of this campaign"}),
    "--to": ((), {"metavar": "NEW_DIR", "help": "the folder to write"}),
    "--latex": ((), {"action": "store_true", "help": "print it as LaTeX"}),
    "--bibtex": ((), {"action": "store_true", "help": "print the BibTeX entries alone"}),
    "--json": ((), {"action": "store_true", "help": "print it as JSON"}),
    "--help": (("-h",), {"action": "store_true", "help": "this text"}),
}  # fmt: skip

#: Hydra's options that have no meaning here, and what to type.
NOT_OURS = {
    ("--shell-completion", "-sc"): 'type: eval "$(hpo-cluster completion bash)"  (or zsh, fish)',
    ("--hydra-help",): "type: hpo-cluster run --help",
    ("--run", "-r"): "leave it out: run is the command",
    ("--experimental-rerun",): "type: hpo-cluster resume DIR",
    ("--config-path", "-cp"): "type: --config-dir DIR, and --config-name NAME for a file to begin with",
}

INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")


@dataclass
class Arguments:
    """A command with its options, and its other words in order: overrides, a folder, numbers of trials."""

    command: str
    words: list[str] = field(default_factory=list)
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    faults: list[str] = field(default_factory=list)

    def option(self, name: str) -> Any:
        """Return the value of an option; None or False if it was not given, or the command does not have it."""
        return getattr(self.options, name.lstrip("-").replace("-", "_"), None)

    @property
    def files(self) -> dict[str, Any]:
        """Where configuration files are searched, as `compose` takes it."""
        given = {"config_dir": self.option("--config-dir"), "config_name": self.option("--config-name")}
        return {key: Path(value) if key == "config_dir" else value for key, value in given.items() if value}

    def folder(self, *, later: bool = False) -> Path:
        """Return the campaign's folder, the first word. Raises ConfigError if it is missing, or anything is wrong.

        Args:
            later: whether the caller names the faults that are known already, with those that it finds in the campaign.
        """
        faults, command = list(self.faults), COMMANDS[self.command]
        if not self.words or "=" in self.words[0]:
            faults.append(f"{self.command} needs the campaign's folder, such as campaigns/first")
        elif not (Path(self.words[0]) / "campaign.yaml").is_file():
            nearby = campaigns_nearby(self.words[0])
            faults.append(f"{self.words[0]}: is not a campaign (it has no campaign.yaml){nearby}")
        elif later:
            return Path(self.words[0])
        if command.takes_trials:
            wrong = [word for word in self.words[1:] if trial_number(word) is None]
            faults += [f"{word!r}: is not the number of a trial" for word in wrong]
            if len(self.words) < 2:
                faults.append(f"{self.command} needs the number of a trial, such as 7")
        elif command.keys and not command.takes_overrides:
            wrong = [word for word in self.words[1:] if word.partition("=")[0] not in command.keys or "=" not in word]
            accepted = ", ".join(re.findall(r"\w+=[^]]+?(?=]|$| \[)", command.words))
            faults += [f"{word!r}: is not what {self.command} takes; accepted: {accepted}" for word in wrong]
        elif not command.takes_overrides:
            faults += [
                f"{word!r}: {did_you_mean(word, command.options)}{self.command} takes nothing but a folder"
                for word in self.words[1:]
            ]
        if faults:
            raise ConfigError(faults, f"hpo-cluster {self.command} --help")
        return Path(self.words[0])

    @property
    def given(self) -> dict[str, str]:
        """The command's own keys that were typed, with their texts."""
        keys = COMMANDS[self.command].keys
        return {key: text for key, sign, text in (word.partition("=") for word in self.words) if sign and key in keys}

    @property
    def others(self) -> list[str]:
        """The words that are not the command's own keys."""
        keys = COMMANDS[self.command].keys
        return [word for word in self.words if "=" not in word or word.partition("=")[0] not in keys]

    def trials(self) -> list[int]:
        """Return the numbers of the trials, which `folder` has checked."""
        return [number for word in self.words[1:] if (number := trial_number(word)) is not None]


def trial_number(word: str) -> int | None:
    """Return 7 for ``7``, ``t0007`` or ``t7``; -1 for ``baseline``, -2 for ``c0001``, -3 for ``c0002``; else None."""
    if word == "baseline":
        return -1
    if word[:1] == "c" and word[1:].isdecimal() and int(word[1:]):
        return -1 - int(word[1:])
    digits = word.removeprefix("t")
    return int(digits) if digits.isdecimal() else None


def help_width() -> int:
    """Return the columns of the help: those of the terminal, within limits."""
    return min(max(terminal_width() or WIDTH, NARROW), WIDTH)


def make_parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and those of the commands by name."""
    top = argparse.ArgumentParser("hpo-cluster", add_help=False, allow_abbrev=False, exit_on_error=False)
    parsers = top.add_subparsers(dest="command")
    made = {}
    for name, command in COMMANDS.items():
        usage = f"hpo-cluster {name} {command.words}"
        made[name] = parser = parsers.add_parser(
            name,
            description=command.summary,
            usage=f"{usage} [options]" if command.options else usage,
            add_help=False,
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=help_width()),
        )
        group = parser.add_argument_group("options")
        for option in (*command.options, "--help"):
            short, arguments = OPTIONS[option]
            group.add_argument(option, *short, **arguments)
    return top, made


def parse(words: list[str]) -> Arguments:
    """Return the arguments of a command line that begins with a command; options stand anywhere behind it."""
    command = words[0]
    if command not in COMMANDS:
        if "=" in command:
            fault = f"{command!r}: a command comes first; did you mean: hpo-cluster run {command}?"
        else:
            fault = f"{command!r}: is not a command; {instead_of(command, [*COMMANDS, 'help'])}"
        raise ConfigError([fault], "Commands and options: hpo-cluster --help")
    accepted = [*COMMANDS[command].options, "--help"]
    spellings = {spelling for option in accepted for spelling in (option, *OPTIONS[option][0])}
    # argparse would read -cn as "-c n" for a command that has only -c
    foreign = [word for word in words if re.match(r"-[a-z]{2}(=|$)", word) and word.partition("=")[0] not in spellings]
    arguments, rest = Arguments(command), [word for word in words if word not in foreign]
    parser = make_parser()[0]
    while True:
        try:
            arguments.options, others = parser.parse_known_args(rest)
            break
        except argparse.ArgumentError as error:  # an option without its value, or a switch with one
            name = (error.argument_name or "").partition("/")[0]
            at = next(i for i, word in enumerate(rest) if word.partition("=")[0] in (name, *OPTIONS[name][0]))
            wanted = OPTIONS[name][1].get("metavar", "")
            arguments.faults.append(f"{rest.pop(at)}: accepted: {name} {wanted}".rstrip())
    for word in [*others, *foreign]:
        flag = word.partition("=")[0]
        if not word.startswith("-"):
            arguments.words.append(word)
        elif told := next((told for names, told in NOT_OURS.items() if flag in names), None):
            arguments.faults.append(f"{word}: is an option of Hydra's that is not needed here; {told}")
        else:
            meant = "" if did_you_mean(flag, accepted) else _as_key(word, command)
            instead = f"did you mean {meant}?" if meant else instead_of(flag, accepted)
            arguments.faults.append(f"{word}: is not an option of {command}; {instead}")
    _check_own_keys(arguments)
    _check_values(arguments)
    return arguments


def _as_key(option: str, command: str) -> str:
    """Return the key that an option spells, as it is typed here: ``dry_run=true`` for ``--dryrun``; empty if none."""
    from hpo_cluster.cli.completion import VALUES

    if not COMMANDS[command].takes_overrides:
        return ""
    name, _, value = option.partition("=")
    key = nearest(name.lstrip("-").replace("-", "_"), _words_of_campaign())
    return f"{key}={value or ('true' if 'true' in VALUES.get(key, ()) else '...')}" if key else ""


def _check_own_keys(arguments: Arguments) -> None:
    """Take out the words that misspell a key of the command's own, and add a fault for each."""
    own = COMMANDS[arguments.command].keys
    for word in [word for word in arguments.words if "=" in word and own and not Path(word).exists()]:
        key = word.lstrip("+").partition("=")[0]
        if key in own or not re.fullmatch(r"[A-Za-z_][\w.]*", key) or not (close := did_you_mean(key, own)):
            continue
        if COMMANDS[arguments.command].takes_overrides and key.partition(".")[0] in _words_of_campaign():
            continue
        arguments.words.remove(word)
        arguments.faults.append(f"{key}: is not a key; {close.strip()}")


def _words_of_campaign() -> tuple[str, ...]:
    """Return the keys and the sections of a campaign's configuration."""
    from hpo_cluster.cli.config.groups import GROUPS
    from hpo_cluster.cli.config.schema import TOP_KEYS  # pydantic, which the TAB key need not import

    return (*TOP_KEYS, *GROUPS)


def _check_values(arguments: Arguments) -> None:
    """Add the faults of the options' values."""
    cfg, info = arguments.option("--cfg"), arguments.option("--info")
    if cfg not in (None, "job"):
        own = "; Hydra's own settings (folders, logs, launchers) are not used" if cfg in ("hydra", "all") else ""
        arguments.faults.append(f"--cfg {cfg}: accepted: --cfg job{own}")
    for option in ("--package", "--resolve"):
        if arguments.option(option) and not cfg:
            arguments.faults.append(f"{option}: goes with --cfg job")
    if info and "=" in info:  # --info budget=3
        arguments.words.append(info)
        arguments.options.info = "all"
    elif info and info not in INFO:
        own = "; Hydra's plugins are not used" if info.startswith("plugins") else ""
        arguments.faults.append(f"--info {info}: {instead_of(info, INFO)}{own}")


def short_path(path: Path) -> Path:
    """Return the path relative to the working directory if it lies in it."""
    path = path.absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


#: Most campaigns or trials that a message names.
SHOWN = 8


def campaigns_nearby(word: str = "") -> str:
    """Return the campaigns below the working directory, for a message; first the one that a word may mean."""
    found = sorted(str(path.parent) for path in Path("campaigns").glob("*/campaign.yaml"))
    more = ", …" if len(found) > SHOWN else ""
    close = "" if Path(word).exists() else did_you_mean(word, found)
    return f"; {close}there are: {', '.join(found[:SHOWN])}{more}" if found else ""
