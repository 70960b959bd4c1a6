"""The command that lists the campaigns of a folder."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.cli.arguments import Arguments
from hpo_cluster.cli.commands import OK, say, terminal_width
from hpo_cluster.cli.config.groups import conf_dir, key_lines
from hpo_cluster.cli.display import number
from hpo_cluster.errors import ConfigError
from hpo_cluster.record import clock
from hpo_cluster.record.campaign_state import BETWEEN_TICKS
from hpo_cluster.record.clock import moment
from hpo_cluster.record.overview import campaigns_in, folders_of_campaigns, overview
from hpo_cluster.text import command_line, cut, first_line, visible

COLUMNS = ("campaign", "optimizer", "objective", "done", "best", "state", "changed")
#: By column: the number of characters that are left of it at least where a terminal is narrow, in the order of cutting.
LEAST = {"objective": 8, "campaign": 18, "state": 12, "optimizer": 6}
#: Most characters of a state: the reason why a campaign stopped may be long.
STATE_AT_MOST = 90
#: Number of other folders with campaigns that are named.
FOLDERS = 4
#: Numbers of seconds, and the unit in which a longer time is told.
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def ls(arguments: Arguments) -> int:
    """List the campaigns of a folder."""
    faults = [*arguments.faults, *(f"{word!r}: ls takes one folder" for word in arguments.words[1:])]
    folder = Path(arguments.words[0] if arguments.words else _default_folder())
    if not folder.is_dir():
        faults.append(f"{folder}: is not a folder; campaigns are in campaigns/ where they were begun")
    if faults:
        raise ConfigError(faults, "hpo-cluster ls --help")
    campaigns = campaigns_in(folder)
    below = {} if campaigns == [folder] else folders_of_campaigns(folder)
    shown = campaigns or [campaign for inside in below.values() for campaign in inside]
    rows = [overview(campaign) for campaign in shown]
    if arguments.option("--json"):
        say(json.dumps(rows, indent=2))
    elif not rows:
        say(f"{folder} holds no campaign")
    else:
        names = [
            row["campaign"] if campaigns else str(path.relative_to(folder))
            for row, path in zip(rows, shown, strict=True)
        ]
        named = [{**row, "campaign": name} for row, name in zip(rows, names, strict=True)]
        say("\n".join(table_lines(named, terminal_width(), clock.now())))
    if campaigns and below and not arguments.option("--json"):
        more = [command_line("ls", place) for place in below]
        say(f"more campaigns:  {',  '.join([*more[:FOLDERS], *(['...'] if more[FOLDERS:] else [])])}")
    return OK


def _default_folder() -> str:
    """Return the folder of campaigns that the configuration names."""
    return next(value for key, value, _ in key_lines(conf_dir() / "config.yaml") if key == "campaigns_dir")


def table_lines(rows: Sequence[Mapping[str, Any]], width: int | None, now: datetime.datetime) -> list[str]:
    """Return the rows of `hpo_cluster.record.overview.overview` as a table that is `width` wide at most.

    Args:
        rows: one for each campaign.
        width: number of columns of the terminal; None if nothing limits it.
        now: the current time.
    """
    cells = [[visible(cell).replace("\n", " ") for cell in _cells(row, now)] for row in rows]
    whole = [COLUMNS, *(line for line in cells if len(line) == len(COLUMNS))]
    names = max(len(line[0]) for line in [COLUMNS, *cells])
    widths = dict(zip(COLUMNS, (max(map(len, column)) for column in zip(*whole, strict=True)), strict=True))
    widths |= {"campaign": names, "state": min(widths["state"], STATE_AT_MOST)}
    for column, least in LEAST.items():
        over = 0 if width is None else sum(widths.values()) + 2 * (len(COLUMNS) - 1) - width
        widths[column] -= max(0, min(over, widths[column] - least))
    lines = []
    for line in [COLUMNS, *cells]:
        name = _cut_inside(line[0], widths["campaign"]).ljust(widths["campaign"])
        rest = "  ".join(
            cut(cell, widths[column]).ljust(widths[column]) for column, cell in zip(COLUMNS[1:], line[1:], strict=False)
        )
        if len(line) < len(COLUMNS):
            rest = line[1] if width is None else cut(line[1], max(width - len(name) - 2, 10))
        lines.append(f"{name}  {rest}".rstrip())
    return lines


def _cells(row: Mapping[str, Any], now: datetime.datetime) -> list[str]:
    """Return the cells of a row; a name and a reason if the campaign cannot be read."""
    if row["fault"] is not None:
        return [row["campaign"], f"cannot be read: {row['fault']}"]
    done = f"{number(row['done'])}/{row['budget']}"
    if row["in_flight"]:
        waiting = row["in_flight"] - row["running"]
        done += f" +{row['running']}" + (f" ({waiting} wait)" if waiting else "")
    best = "" if row["best"] is None else number(row["best"])
    return [
        row["campaign"],
        str(row["optimizer"]),
        row["objective"],
        done,
        best if row["front"] is None else f"front {row['front']}",
        _state(row),
        "" if row["last_change"] is None else _age(row["last_change"], now),
    ]


def _state(row: Mapping[str, Any]) -> str:
    return f"{_plain_state(row)}, simulated" if row["simulated"] else _plain_state(row)


def _plain_state(row: Mapping[str, Any]) -> str:
    if row["state"] == "running":
        return f"running on {row['host']}"
    if row["state"] == "stopped":
        return str(row["reason"]) if row["reason"] == BETWEEN_TICKS else f"stopped: {first_line(str(row['reason']))}"
    return str(row["state"])


def _age(at: str, now: datetime.datetime) -> str:
    """Return how long ago something happened, such as ``5 min``."""
    seconds = max(0.0, (now - moment(at)).total_seconds())
    for size, unit in UNITS:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _cut_inside(name: str, width: int) -> str:
    """Return a name without its middle if it is too long: names of campaigns often differ at their ends."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"
