"""Measure one evaluation by our job and by LitGPT's commands, in turns, and say how much less the job takes.

Usage: ``python -m benchmarks.job.run [village|medium|1b|tiny] [options]``; ``make bench-job`` is the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.job.cases import MODELS, SHAPES, Case, build, village
from benchmarks.job.routes import Measurement, ours, theirs

ROUTES = ("ours", "theirs")
PACKAGES = ("torch", "litgpt", "lm_eval", "transformers")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Our job against `litgpt finetune_lora` and `litgpt evaluate`.")
    parser.add_argument("model", nargs="?", default="village", choices=MODELS)
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each route")
    parser.add_argument("--trials", type=int, default=1, metavar="N", help="trials one after another in our job")
    parser.add_argument("--rows", type=int, help="training rows of a model with random weights")
    parser.add_argument("--documents", type=int, help="documents of each of its two tasks")
    parser.add_argument("--ours", action="store_true", help="measure our job alone")
    parser.add_argument("--kernels", action="store_true", help="count the kernels of an optimizer step too")
    parser.add_argument(
        "--gpu", action="store_true", help="on the GPU of this machine: model 1b, throughput and kernels"
    )
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the runs' folder is made")
    return parser


def make_case(arguments: argparse.Namespace, folder: Path) -> Case:
    """Return the case that the command line asks for; a model with random weights is written into the folder."""
    if arguments.model not in SHAPES:
        return village()
    sizes = {name: getattr(arguments, name) for name in ("rows", "documents") if getattr(arguments, name) is not None}
    return build(arguments.model, folder, **sizes)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median with the least and the largest value."""
    text = f"{statistics.median(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table, the first row as its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def costs(found: Sequence[Measurement]) -> str:
    """Return the table of CPU time, wall time and memory of each route."""
    rows = [["route", "CPU s", "wall s", "peak memory GB"]]
    for route in ROUTES:
        mine = [each for each in found if each.route == route]
        if mine:
            columns = ([each.cpu_s for each in mine], [each.wall_s for each in mine], [each.memory_gb for each in mine])
            rows.append([route, *map(spread, columns)])
    return table(rows)


def phases(found: Sequence[Measurement]) -> str:
    """Return the table of the wall seconds of the parts of each route."""
    rows = [["route", "part", "wall s"]]
    for route in ROUTES:
        mine = [each for each in found if each.route == route]
        for name in dict.fromkeys(name for each in mine for name in each.phases):
            rows.append([route, name, spread([each.phases.get(name, 0.0) for each in mine])])
    return table(rows)


def ratios(found: Sequence[Measurement], what: str, trials: int = 1) -> list[float]:
    """Return ours divided by `trials` times theirs of each pair of neighbouring runs; `what`: a field of a run."""
    pairs = zip(
        (each for each in found if each.route == "ours"),
        (each for each in found if each.route == "theirs"),
        strict=False,
    )
    return [getattr(a, what) / (trials * getattr(b, what)) for a, b in pairs]


def score_differences(found: Sequence[Measurement]) -> Iterable[str]:
    """Yield a line for each metric that the two routes do not agree on."""
    first = {each.route: each.scores for each in reversed(found)}
    if len(first) == len(ROUTES):
        for name, value in first["theirs"].items():
            if abs(first["ours"][name] - value) > 1e-6:
                yield f"{name}: ours {first['ours'][name]:.4f}, theirs {value:.4f}"


def main(argv: list[str] | None = None) -> int:
    """Measure and print; the last line is the ratio of the CPU times."""
    arguments = make_parser().parse_args(argv)
    if arguments.gpu and arguments.model == "village":
        arguments.model = "1b"
    folder = Path(tempfile.mkdtemp(prefix="bench-job-", dir=arguments.dir))
    try:
        found = measure(make_case(arguments, folder / "case"), arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(found, arguments.trials)
    return 0


def measure(case: Case, arguments: argparse.Namespace, folder: Path) -> list[Measurement]:
    """Run both routes in turns, a line for each run."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    print(f"{case.name} on {platform.machine()} with {os.cpu_count()} cores, {versions}", flush=True)
    found = []
    for number in range(arguments.repetitions):
        for name in ROUTES:
            if name == "ours" or not arguments.ours:
                runs = folder / f"{name}{number}"
                one = ours(case, runs, arguments.trials) if name == "ours" else theirs(case, runs)
                print(f"{name}: {one.cpu_s:.2f} CPU s, {one.wall_s:.2f} s, {one.memory_gb:.2f} GB", flush=True)
                found.append(one)
    if arguments.kernels or arguments.gpu:
        from benchmarks.job.kernels import kernels_a_step

        print(f"kernels a step: {kernels_a_step(case, folder / 'kernels'):.0f}", flush=True)
    return found


def report(found: Sequence[Measurement], trials: int = 1) -> None:
    """Print the tables and the ratios; `trials` is the number of trials that our job evaluated."""
    print(f"\n{costs(found)}\n\n{phases(found)}\n")
    if work := throughput(found):
        print(f"{work}\n")
    for line in score_differences(found):
        print(f"scores differ: {line}")
    if trials > 1:
        print(f"ours: {trials} trials in one job; theirs: one trial, multiplied by {trials} in the ratios")
        print(f"ours, CPU s a trial: {spread([each.cpu_s / trials for each in found if each.route == 'ours'])}")
    if wall := ratios(found, "wall_s", trials):
        print(f"wall ratio {spread(wall)}")
        print(f"cpu ratio {spread(ratios(found, 'cpu_s', trials))}")


def throughput(found: Sequence[Measurement]) -> str:
    """Return the table of what our job's own meter says of its training and its scoring; empty without such a meter."""
    rows = [["device", "part", "tokens/s", "requests/s", "MFU", "energy Wh"]]
    for name in ("train", "score"):
        parts = [each.result["phases"][name] for each in found if name in each.result.get("phases", {})]
        if parts:
            device = next(each.result["device_name"] for each in found if each.result)
            columns = ("tokens_per_s", "requests_per_s", "mfu", "energy_wh")
            known = [[part[key] for part in parts if part.get(key) is not None] for key in columns]
            digits = [3 if key == "mfu" else 1 for key in columns]
            cells = [spread(*each) if each[0] else "-" for each in zip(known, digits, strict=True)]
            rows.append([device, name, *cells])
    return table(rows) if len(rows) > 1 else ""


if __name__ == "__main__":
    sys.exit(main())
