"""The command that compares campaigns, which is also the end of a run of several campaigns."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hpo_cluster.cli.arguments import Arguments, campaigns_nearby, short_path
from hpo_cluster.cli.command_table import COMMANDS
from hpo_cluster.cli.commands import OK, progress_bar, say
from hpo_cluster.errors import ConfigError
from hpo_cluster.record.attempt_files import is_finite_number
from hpo_cluster.record.writable import writing
from hpo_cluster.text import command_line

HINT = "hpo-cluster compare --help"
#: Name of the folder that is written, next to the first campaign.
FOLDER = "comparison"
#: Largest number of folders that a message names.
SHOWN = 4


def compare(arguments: Arguments) -> int:
    """Compare campaigns: print the table and what can be said, and write tables and figures into a folder."""
    faults = list(arguments.faults)
    folders = _campaigns(arguments.others, faults)
    reach, out = _reach(arguments.given, faults), _out(arguments.given, folders, faults)
    reference = _reference(arguments.given, faults)
    if len(folders) < 2 and not faults:
        faults.append(f"compare needs two campaigns or more; given: {', '.join(map(str, folders)) or 'none'}")
    if faults:
        raise ConfigError(faults, HINT)
    show_comparison(folders, out, say, reach, reference)
    return OK


def show_comparison(
    folders: Sequence[Path],
    out: Path,
    write: Callable[[str], object],
    reach: float | None = None,
    reference: Mapping[str, float] | None = None,
) -> None:
    """Compare campaigns, write the files and print the result with the function `write`."""
    from hpo_cluster.record.looks import count_look
    from hpo_cluster.report.comparison import compare_campaigns
    from hpo_cluster.report.comparison.table import cells, explanation, text_table
    from hpo_cluster.report.comparison.write import write_comparison

    with progress_bar() as progress:
        comparison = compare_campaigns(folders, reach, reference, progress)
        for run in [] if comparison.several else comparison.runs:
            count_look(run.campaign.layout, run.record, run.campaign.tests)
        with writing(f"out={out}", out, "Give a folder in which you may write:  out=FOLDER"):
            files = write_comparison(comparison, out, progress)
    lines = [*text_table(*cells(comparison)), "", *explanation(comparison), ""]
    for verdict in comparison.verdicts:
        lines += [verdict.leader, *(f"  {line}" for line in verdict.details)]
    lines += ["", *(f"note: {note}" for note in comparison.notes)] if comparison.notes else []
    write("\n".join([*lines, "", f"written to {short_path(out)}: {', '.join(path.name for path in files)}"]))


def default_folder(campaigns: Sequence[Path]) -> Path:
    """Return the folder that is written if none is named: next to the first campaign."""
    return campaigns[0].parent / FOLDER


def _campaigns(words: Sequence[str], faults: list[str]) -> list[Path]:
    """Return the campaigns that are meant, each once: folders, folders of campaigns, and patterns."""
    from hpo_cluster.record.overview import campaigns_in, folders_of_campaigns
    from hpo_cluster.report.comparison.write import PAGE

    found: dict[Path, Path] = {}
    if not words:
        faults.append(f"compare needs the folders of campaigns, or a folder that holds them{campaigns_nearby()}")
    for word in words:
        matching = [word] if Path(word).is_dir() else sorted(glob.glob(word))  # noqa: PTH207 (a pattern may begin at the root)
        folders = [Path(match) for match in matching if Path(match).is_dir()]
        if not folders:
            what = "no folder matches" if any(sign in word for sign in "*?[") else "is not a folder"
            keys = ", ".join(f"{key}=..." for key in COMMANDS["compare"].keys)
            accepted = f"; accepted: {keys}" if "=" in word else ""
            faults.append(f"{word}: {what}{accepted or campaigns_nearby(word)}")
        for folder in folders:
            inside = campaigns_in(folder)
            below = {} if inside else folders_of_campaigns(folder)
            if len(below) == 1 and words == [word] == matching:
                (inside,) = below.values()
            elif below:
                each = [command_line("compare", place) for place in below]
                some = " or ".join([*each[:SHOWN], *(["..."] if each[SHOWN:] else [])])
                faults.append(f"{folder}: holds campaigns in its folders alone; type  {some}")
            elif not inside and not (folder / PAGE).is_file():  # the comparison of before is no fault
                faults.append(f"{folder}: is not a campaign, and holds none{campaigns_nearby(word)}")
            for campaign in inside:
                found.setdefault(campaign.resolve(), campaign)
    return list(found.values())


def _reach(keys: dict[str, str], faults: list[str]) -> float | None:
    if "reach" not in keys:
        return None
    try:
        reach = float(keys["reach"])
    except ValueError:
        reach = math.nan
    if not math.isfinite(reach):
        faults.append(f"reach={keys['reach']}: is not a number; accepted: a value of the metric, such as reach=0.9")
    return reach


def _reference(keys: Mapping[str, str], faults: list[str]) -> dict[str, float]:
    """Return the worst values of interest, by metric; empty if none are given."""
    import yaml

    if "reference" not in keys:
        return {}
    try:
        values = yaml.safe_load(keys["reference"])
    except yaml.YAMLError:
        values = None
    if isinstance(values, dict) and values and all(is_finite_number(value) for value in values.values()):
        return {str(name): float(value) for name, value in values.items()}
    accepted = "a number for each metric, such as reference='{gpu_seconds: 60}'"
    faults.append(f"reference={keys['reference']}: accepted: {accepted}")
    return {}


def _out(keys: dict[str, str], campaigns: Sequence[Path], faults: list[str]) -> Path:
    """Return the folder to write."""
    named = keys.get("out")
    out = Path(named) if named else default_folder(campaigns) if campaigns else Path(FOLDER)
    label = f"out={named}" if named else str(out)
    if named == "":
        faults.append("out=: needs the name of a folder")
    elif (out / "campaign.yaml").is_file():
        faults.append(f"{label}: is a campaign; choose another folder with out=FOLDER")
    elif out.exists() and not out.is_dir():
        faults.append(f"{label}: is a file; choose another folder with out=FOLDER")
    return out
