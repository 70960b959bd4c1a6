"""The texts of ``--help``: commands, keys and every option of every group with its line of description."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpo_cluster.cli.arguments import help_width, make_parser
from hpo_cluster.cli.command_table import COMMANDS, OPEN_GROUPS, SETTLED_KEYS
from hpo_cluster.cli.config.groups import GROUPS, conf_dir, key_lines, options, search_dirs
from hpo_cluster.text import cut

SECTION_KEYS = {
    "space.PARAMETER.high": "likewise low, log, choices, when, prior; ~space.NAME removes one, +space.NAME={} adds one",
    "space.constraints": "what is allowed: ['a + b <= 1']; space.start: configurations to begin with",
    "optimizer.KEY": "a setting of the chosen optimizer; likewise objective, model, data, tasks, train, launcher",
}

#: The same for a campaign that exists.
OPEN_SECTIONS = {
    "launcher.KEY": "a setting of the launcher; likewise tracking, failures, notify",
    "fidelity.KEY": "eta, rule, linger_s and keep, in a campaign with rungs",
    "objective.KEY": "what changes no result, such as where files are; likewise model, data, tasks, train",
}

USAGE = "usage: hpo-cluster COMMAND [KEY=VALUE ...] [options]"

EXAMPLES = """\
examples:
  hpo-cluster run                                        the default campaign, in minutes on two cores
  hpo-cluster run optimizer=lhs campaign=first budget=30 workers=4 seed=1 space.learning_rate.high=1e-2
  hpo-cluster run experiment=ola2025_bo launcher=slurm launcher.partition=gpu 'budget=${workers}'
  hpo-cluster run -m 'optimizer=lhs,bo' 'seed=range(3)'
  hpo-cluster compare campaigns/lora-bo-* campaigns/lora-lhs-* reach=0.9 out=bo_or_lhs
  hpo-cluster resume campaigns/first budget=60 workers=8
  hpo-cluster run objective=command 'objective.command="python train.py --lr={lr}"' \\
      'space={lr: {low: 1e-5, high: 1e-1, log: true}}'"""


def main_help(cwd: Path) -> str:
    """Return the help of the program: commands, groups with their options, examples."""
    lines = [USAGE, "", "commands:"]
    lines += _table({name: command.summary for name, command in COMMANDS.items()})
    lines += ["", *groups_help(search_dirs(cwd)), "", "hpo-cluster help COMMAND says more; --version"]
    lines += ['the TAB key completes after: eval "$(hpo-cluster completion bash)"  (or zsh; fish: ... fish | source)']
    return "\n".join([*_fitted(lines), "", EXAMPLES])


def short_help() -> str:
    """Return the commands, one line each, and how to get more."""
    room = max(map(len, COMMANDS))
    summaries = {name: re.split("[:;]", command.summary)[0] for name, command in COMMANDS.items()}
    lines = [cut(f"  {name:<{room}}  {summary}", help_width()) for name, summary in summaries.items()]
    return "\n".join([USAGE, "", *lines, "", "hpo-cluster help COMMAND says more; hpo-cluster help: everything"])


def command_help(command: str, cwd: Path, config_dir: Path | None = None) -> str:
    """Return the help of one command: usage, options and, if overrides are accepted, keys and groups."""
    lines = make_parser()[1][command].format_help().rstrip().splitlines()
    if any(COMMANDS[command].keys.values()):
        lines += ["", "the command's own keys:", *_table(COMMANDS[command].keys)]
    if COMMANDS[command].takes_overrides:
        keys, dirs = key_lines(conf_dir() / "config.yaml"), search_dirs(cwd, config_dir)
        if COMMANDS[command].goes_on:
            lines += ["", "keys that may change (KEY=VALUE; the others say what the campaign is):"]
            lines += _table({key: text for key, _, text in keys if key not in SETTLED_KEYS} | OPEN_SECTIONS)
            lines += ["", *groups_help(dirs, OPEN_GROUPS)]
        else:
            lines += ["", "keys (KEY=VALUE; here with their defaults; --cfg job prints all values):"]
            lines += _table({f"{key}={value}": text for key, value, text in keys} | SECTION_KEYS)
            lines += simulation_help() if command == "simulate" else []
            lines += ["", *groups_help(dirs)]
    return "\n".join([*_fitted(lines), *(["", EXAMPLES] if command == "run" else [])])


def simulation_help() -> list[str]:
    """Return the keys of the simulated cluster, with their defaults."""
    from hpo_cluster.driver.simulate import SimulationSettings

    rows = {}
    for key, field in SimulationSettings.model_fields.items():
        default = "null" if field.default is None else str(field.default).lower()
        rows[f"simulate.{key}={default}"] = field.description or ""
    return ["", "the simulated cluster:", *_table(rows)]


def groups_help(dirs: list[Path], groups: Iterable[str] = GROUPS) -> list[str]:
    """Return every option of these groups with its line of description."""
    lines = ["groups (GROUP=OPTION; a file of your own in ./conf/GROUP/ is an option too):"]
    for group in groups:
        lines.append(f"  {group}: {GROUPS[group]}")
        lines += _table({name: option.description for name, option in options(group, dirs).items()}, indent=4)
    return lines


def _table(rows: Mapping[str, str], indent: int = 2) -> list[str]:
    width, columns = min(max((len(name) for name in rows), default=0), 24), help_width()
    lines = []
    for name, text in rows.items():
        first = f"{' ' * indent}{name:<{width}}  "
        if text and len(first) > columns // 2:
            lines.append(first.rstrip())
            first = " " * (indent + width + 2)
        lines += textwrap.wrap(text, columns, initial_indent=first, subsequent_indent=" " * len(first)) or [
            first.rstrip()
        ]
    return lines


def _fitted(lines: Iterable[str]) -> list[str]:
    """Return the lines, those that are too long broken between words."""
    return [part for line in lines for part in textwrap.wrap(line, help_width(), subsequent_indent="    ") or [""]]
