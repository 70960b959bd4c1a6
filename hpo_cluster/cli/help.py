"""The texts of ``--help``: commands, keys and every option of every group with its line of description."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from hpo_cluster.cli.config.groups import GROUPS, conf_dir, key_lines, options, search_dirs

WIDTH = 118

COMMANDS: Mapping[str, str] = {
    "run": "start a campaign, or go on with it: the same command does both",
    "resume": "go on with a campaign by its folder; budget=, workers=, launcher= may change",
    "status": "where a campaign is, from any terminal",
    "why": "the story of a trial: attempts, jobs, nodes, errors, the end of its log",
    "tail": "the log of a trial, as it grows",
    "cancel": "end trials; they do not count for the budget",
    "retry": "try trials again that failed, diverged or were cancelled",
    "stop": "let the driver, or the ticks, submit nothing more; jobs run on",
    "tick": "one short pass in place of a driver that stays, for cron: take in, propose, submit, exit",
    "report": "draw plots of a campaign",
    "repair": "rebuild a journal that was cut or damaged, from its whole lines and the jobs' files",
    "export-adapter": "write the model that a trial has fine-tuned as a Hugging Face model",
    "doctor": "check commands, storage, clock, queue, files, and run one tiny job",
    "prepare": "fetch model, data and tasks to shared storage, once",
}

USAGE = {
    "run": "hpo-cluster run [KEY=VALUE ...] [options]",
    "resume": "hpo-cluster resume DIR [KEY=VALUE ...] [options]",
    "status": "hpo-cluster status DIR [--json]",
    "why": "hpo-cluster why DIR TRIAL",
    "tail": "hpo-cluster tail DIR TRIAL",
    "cancel": "hpo-cluster cancel DIR TRIAL [TRIAL ...]",
    "retry": "hpo-cluster retry DIR TRIAL [TRIAL ...]",
    "stop": "hpo-cluster stop DIR",
    "tick": "hpo-cluster tick DIR [KEY=VALUE ...] [options]",
    "report": "hpo-cluster report DIR",
    "repair": "hpo-cluster repair DIR",
    "export-adapter": "hpo-cluster export-adapter DIR TRIAL --to NEW_DIR",
    "doctor": "hpo-cluster doctor [KEY=VALUE ...] [options]",
    "prepare": "hpo-cluster prepare [KEY=VALUE ...] [options]",
}

#: Flag -> (what it is followed by, commands that have it, description).
FLAGS: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "--cfg": ("job", ("run", "resume", "prepare"), "print the composed configuration as YAML and do nothing"),
    "--multirun": ("", ("run",), "several campaigns one after another: -m optimizer=lhs,bo seed=0,1 (also -m)"),
    "--take-over": ("", ("run", "resume", "tick"), "drive on where another host's driver has died"),
    "--config-dir": (
        "DIR",
        ("run", "resume", "tick", "doctor", "prepare"),
        "a folder of space/NAME.yaml and the like, besides ./conf",
    ),
    "--no-check": ("", ("run",), "do not read model, data and tasks before a new campaign starts; its jobs will"),
    "--to": ("NEW_DIR", ("export-adapter",), "the folder that is written"),
    "--json": ("", ("status",), "print the status as JSON"),
    "--help": ("", tuple(COMMANDS), "this text (also -h)"),
}

SECTION_KEYS = {
    "space.PARAMETER.high": "likewise low, log, choices, when, prior; ~space.NAME removes one, +space.NAME={} adds one",
    "space.constraints": "what is allowed: ['a + b <= 1']; space.start: configurations to begin with",
    "optimizer.KEY": "a setting of the chosen optimizer; likewise objective, model, data, tasks, train, launcher",
}

EXAMPLES = """\
examples:
  hpo-cluster run                                        the default campaign, in minutes on two cores
  hpo-cluster run optimizer=lhs campaign=first budget=30 workers=4 seed=1 space.learning_rate.high=1e-2
  hpo-cluster run experiment=ola2025_bo launcher=slurm launcher.partition=gpu
  hpo-cluster run -m optimizer=lhs,bo seed=0,1
  hpo-cluster resume campaigns/first budget=60 workers=8
  hpo-cluster run objective=command 'objective.command="python train.py --lr {lr}"' \\
      'space={lr: {low: 1e-5, high: 1e-1, log: true}}'"""


def main_help(cwd: Path) -> str:
    """Commands, groups with their options, examples."""
    lines = ["usage: hpo-cluster COMMAND [KEY=VALUE ...] [options]", "", "commands:"]
    lines += _table(COMMANDS)
    lines += ["", *groups_help(search_dirs(cwd)), "", "hpo-cluster COMMAND --help says more; --version", "", EXAMPLES]
    return "\n".join(lines)


def command_help(command: str, cwd: Path, config_dir: Path | None = None) -> str:
    """Usage, flags and, where overrides are accepted, keys and groups of one command."""
    lines = [f"usage: {USAGE[command]}", "", COMMANDS[command], "", "options:"]
    flags = {name: (arg, text) for name, (arg, commands, text) in FLAGS.items() if command in commands}
    lines += _table({f"{name} {arg}".strip(): text for name, (arg, text) in flags.items()})
    if command in ("run", "prepare", "resume", "doctor", "tick"):
        lines += ["", "keys (KEY=VALUE; here with their defaults; --cfg job prints all values):"]
        keys = {f"{key}={value}": text for key, value, text in key_lines(conf_dir() / "config.yaml")}
        lines += _table({**keys, **SECTION_KEYS})
        lines += ["", *groups_help(search_dirs(cwd, config_dir))]
    return "\n".join([*lines, "", EXAMPLES] if command == "run" else lines)


def groups_help(dirs: list[Path]) -> list[str]:
    """Every option of every group with its line of description."""
    lines = ["groups (GROUP=OPTION; a file of your own in ./conf/GROUP/ is an option too):"]
    for group, purpose in GROUPS.items():
        lines.append(f"  {group}: {purpose}")
        lines += _table({name: option.description for name, option in options(group, dirs).items()}, indent=4)
    return lines


def _table(rows: Mapping[str, str], indent: int = 2) -> list[str]:
    width = min(max((len(name) for name in rows), default=0), 24)
    lines = []
    for name, text in rows.items():
        first = f"{' ' * indent}{name:<{width}}  "
        lines += textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first)) or [
            first.rstrip()
        ]
    return lines
