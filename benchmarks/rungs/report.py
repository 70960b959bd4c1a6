"""Write the measured part of ``docs/benchmarks/rungs.md`` and its figure from the runs on disk.

Usage: ``python -m benchmarks.rungs.report [--results runs.jsonl]``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.optimizers.cache import Key, latest
from benchmarks.optimizers.contestants import parse
from benchmarks.optimizers.statistics import wilcoxon
from benchmarks.rungs.run import CONTESTANTS, PROBLEMS, RESULTS, problem
from hpo_cluster.objectives.forest import Array
from hpo_cluster.optimizers.registry import OPTIMIZERS

ROOT = Path(__file__).resolve().parents[2]
PAGE, FIGURE = ROOT / "docs" / "benchmarks" / "rungs.md", "rungs.png"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

#: Where regrets are read, in whole evaluations; and the optimizer without rungs that the others are to reach sooner.
SPENT = (5, 10, 15, 30, 50)
AIM, AIM_SPENT = "bo", 50

#: By contestant, for each seed: the run.
Runs: TypeAlias = Mapping[str, Mapping[int, Mapping[str, Any]]]


def regret_at(run: Mapping[str, Any], spent: float, best: float) -> float:
    """Return the true regret of the best value seen at the top for what was spent; infinite before there is one."""
    seen = [(o, t) for s, o, t in zip(run["spent"], run["observed"], run["true"], strict=True) if s <= spent + 1e-6]
    return max(best - max(seen)[1], 0.0) if seen else math.inf


def regrets(runs: Mapping[int, Mapping[str, Any]], spent: float, best: float) -> Array:
    """Return the regrets of all seeds, in order; empty if a run had a smaller budget."""
    if any(run["budget"] < spent for run in runs.values()):
        return np.empty(0)
    return np.sort([regret_at(run, spent, best) for run in runs.values()])


def quartiles(values: Array) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile of values in order; infinite ones stay so."""
    outside = (len(values) - 1) // 4
    return float(values[outside]), float(np.median(values)), float(values[-1 - outside])


def chosen(found: Mapping[Key, Mapping[str, Any]], workers: int, where: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Return the runs of a problem by contestant and seed: those of the largest budget."""
    out: dict[str, dict[int, Mapping[str, Any]]] = {}
    for key in sorted(found, key=lambda key: key.budget):
        if (key.workers, key.problem) == (workers, where):
            out.setdefault(key.optimizer, {})[key.seed] = found[key]
    return {name: out[name] for name in [*CONTESTANTS, *sorted(set(out) - set(CONTESTANTS))] if name in out}


def without_rungs(name: str) -> str:
    """Return the contestant with which one with rungs is compared; empty for one without rungs."""
    if name.startswith("peer:"):
        sampler, _, pruner = name.removeprefix("peer:optuna-").partition("-")
        return ("random" if sampler == "random" else f"peer:optuna-{sampler}") if pruner else ""
    optimizer, _, rule = name.partition("+")
    return ("random" if OPTIMIZERS[parse(optimizer)[0]].needs_fidelity else optimizer) if rule else ""


def against(runs: Runs, name: str, best: float) -> str:
    """Return a contestant's median regret at the end, in those of its counterpart, with the p-value over the seeds."""
    other = runs.get(without_rungs(name), {})
    common = sorted(set(runs[name]) & set(other))
    if not common:
        return ""
    mine, theirs = ({s: regret_at(runs[n][s], AIM_SPENT, best) for s in common} for n in (name, without_rungs(name)))
    ratio = float(np.median(list(mine.values())) / np.median(list(theirs.values())))
    p = wilcoxon(mine, theirs, 0.0)
    return f"{ratio:.2f}" if math.isnan(p) else f"{ratio:.2f} (p = {p:.2g})"


def table(runs: Runs, best: float) -> Iterator[str]:
    """Yield the rows of a table: median regrets with quartiles by what was spent, and how many trials there were."""
    spents = " | ".join(f"{spent}" for spent in SPENT)
    yield f"| contestant | seeds | begun, whole | {spents} | {AIM_SPENT}, against without rungs |"
    yield "|---" * (4 + len(SPENT)) + "|"
    for name, seeds in runs.items():
        cells = []
        for spent in SPENT:
            values = regrets(seeds, spent, best)
            low, median, high = map(_number, quartiles(values)) if len(values) else ("", "", "")
            cells.append(f"{median} ({low}, {high})" if len(values) else "")
        reached = [run["reached"] for run in seeds.values()]
        counts = f"{np.median([max(r) for r in reached]):.0f}, {np.median([r[-1] for r in reached]):.0f}"
        yield f"| `{name}` | {len(seeds)} | {counts} | " + " | ".join([*cells, against(runs, name, best)]) + " |"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def aim(runs: Runs, best: float) -> Iterator[str]:
    """Yield for each contestant with rungs what it spends until it has the median regret of `AIM` at its end."""
    wanted = regrets(runs.get(AIM, {}), AIM_SPENT, best)
    if not len(wanted):
        return
    level = float(np.median(wanted))
    found = []
    for name, seeds in runs.items():
        most = min(run["budget"] for run in seeds.values())
        grid = np.arange(0.5, most + 0.1, 0.5)
        there = [s for s in grid if np.median(regrets(seeds, s, best)) <= level]
        found.append(f"`{name}` {there[0]:g}" if there else f"`{name}` not within {most:g}")
    yield f"`{AIM}` has a median regret of {level:.3g} after {AIM_SPENT} whole evaluations. Spent until it is as low:"
    yield ", ".join(found) + "."


def figure(found: Mapping[Key, Mapping[str, Any]], workers: int, path: Path) -> None:
    """Draw median regrets by what was spent, with a panel for each problem."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [where for where in PROBLEMS if chosen(found, workers, where)]
    names = list(dict.fromkeys(name for where in PROBLEMS for name in chosen(found, workers, where)))
    lines: dict[str, Any] = {}
    figure_, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 4.6), squeeze=False, layout="constrained")
    for axis, where in zip(axes.flat, shown, strict=True):
        best = problem(where).best
        for name, seeds in chosen(found, workers, where).items():
            most = min(run["budget"] for run in seeds.values())
            x = np.arange(1, most + 0.1, 0.5)
            medians = [float(np.median(regrets(seeds, s, best))) for s in x]
            style, colour = "-" if "+" in name else "--", mpl.colormaps["tab20"](names.index(name) % 20)
            (lines[name],) = axis.plot(x, medians, style, color=colour, linewidth=1.4)
        axis.set(title=where, xlabel="whole evaluations spent", yscale="log")
        axis.grid(alpha=0.3)
    axes.flat[0].set_ylabel(f"median regret, {workers} workers")
    legend = {"loc": "outside lower center", "ncols": 7, "fontsize": 8, "frameon": False}
    figure_.legend([lines[name] for name in names], names, **legend)
    figure_.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure_)


def measured(found: Mapping[Key, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the measured part."""
    yield "This part was written by `benchmarks/rungs/report.py`; run it again rather than edit it."
    for workers in sorted({key.workers for key in found}, key=lambda workers: (workers != 8, workers)):
        yield from ("", f"### {workers} {'worker' if workers == 1 else 'workers'}", "")
        yield (
            "Median regret at the top (quartiles) by whole evaluations spent; – : nothing was whole yet. Last: the "
            f"median after {AIM_SPENT} in those of the same optimizer without rungs (`asha`, `hyperband`, `bohb`: "
            "of random search), and Wilcoxon's p over the seeds that both have."
        )
        for where in PROBLEMS:
            runs = chosen(found, workers, where)
            if runs:
                best = problem(where).best
                yield from ("", f"`{where}`", "", *table(runs, best), "", *aim(runs, best))


def main(argv: Sequence[str]) -> int:
    """Write the page and the figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rungs.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    found = latest(parser.parse_args(argv).results)
    if not found:
        print("no runs: python -m benchmarks.rungs.run")
        return 1
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    body = "\n".join(measured(found)).replace("\n\n\n", "\n\n")
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")
    workers = sorted({key.workers for key in found}, key=lambda workers: (workers != 8, workers))[0]
    figure(found, workers, PAGE.parent / FIGURE)
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
