"""The table, the tests and the figure of the cached runs: ``docs/benchmarks/several_objectives.md``.

Usage: ``python -m benchmarks.several_objectives.report [--results FILE] [--out DIR]``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.optimizers import cache
from benchmarks.optimizers import statistics as st
from benchmarks.optimizers.markdown import number, table
from benchmarks.optimizers.report import OUT, versions
from benchmarks.several_objectives.contestants import NAMES
from benchmarks.several_objectives.problems import PROBLEMS
from benchmarks.several_objectives.run import RESULTS

#: Names, colours that the colour-blind tell apart, and line styles.
STYLES = {
    "bo": ("bo", "#0072B2", "-"),
    "peer:optuna-gp": ("Optuna GP", "#E69F00", "--"),
    "peer:optuna-tpe": ("Optuna TPE", "#D55E00", "-"),
    "peer:optuna-nsga2": ("Optuna NSGA-II", "#009E73", "-."),
    "random": ("random", "#555555", ":"),
}

#: What is ours among the contestants; tests compare it with the best of the others.
OURS = "bo"

HEAD = """# Several objectives compared

<!-- Made by benchmarks/several_objectives/report.py. Do not edit. -->

`bo` with two objectives against Optuna's NSGA-II, TPE and Gaussian process, and random search. Make it again with
`make bench-several` (a few problems and seeds) or `make bench-several BENCH=full`.

**Measured:** the volume that a run's front dominates after its last evaluation, as a share of the best front's
volume (`village`: of the box between the reference and the best values, which no front fills). The front is that of
the observed values, its volume that of their true ones. Contestants are not told the reference point. With 8 workers
a free one gets the next proposal at once, while 7 are in flight.

| problem | what it is | reference point |
|---|---|---|
| `zdt1` | 6 real parameters; random points do not reach the volume that counts | 1.1, 1.1 |
| `dtlz2` | 6 real parameters, the front is a quarter of a circle | 1.1, 1.1 |
| `c2dtlz2` | the same in 4 dimensions, where a constraint leaves three pieces of the circle | 1.1, 1.1 |
| `bnh` | 2 real parameters, two constraints on measured values | 140, 50 |
| `village` | validation accuracy against seconds of fine-tunings, 21 parameters | 0.25, 10 s |

`village` is two regressions on [real fine-tunings](village.md), over mixed and conditional parameters; the accuracy has
the noise of training seeds.

"p": the two-sided paired Wilcoxon test of `bo` against the best of the others by median, over the common seeds; at
least 6 are needed. CPU s: of one suggestion after the first ten, median over all problems.
"""


class Results:
    """The last run of each key with a number of workers.

    Args:
        entries: the runs, as `benchmarks.optimizers.cache` reads them.
        workers: of the runs taken.
    """

    def __init__(self, entries: Mapping[cache.Key, Mapping[str, Any]], workers: int) -> None:
        taken = {key: entry for key, entry in entries.items() if key.workers == workers}
        self.workers = workers
        self.budget = max((key.budget for key in taken), default=0)
        self.shares: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(dict))
        self.cpu: dict[str, list[float]] = defaultdict(list)
        for key, entry in taken.items():
            if key.budget == self.budget:
                self.shares[key.problem][key.optimizer][key.seed] = entry["true"]
                self.cpu[key.optimizer] += entry["cpu_s"][10:]
        self.problems = [name for name in PROBLEMS if name in self.shares]
        self.names = [name for name in NAMES if any(name in self.shares[p] for p in self.problems)]

    def lost(self, problem: str, name: str) -> dict[int, float]:
        """Return the share of the volume that is missing at the end, by seed."""
        return {seed: 1 - shares[-1] for seed, shares in self.shares[problem].get(name, {}).items()}


def section(results: Results) -> Iterator[str]:
    """Return the table of a number of workers, and the tests."""
    many = "1 worker" if results.workers == 1 else f"{results.workers} workers"
    yield f"## {many}, {results.budget} evaluations\n"
    rows = []
    for name in results.names:
        seeds = {len(results.shares[p].get(name, {})) for p in results.problems}
        cells = [_cell(list(results.lost(problem, name).values())) for problem in results.problems]
        cpu = number(float(np.median(results.cpu[name]))) if results.cpu[name] else "–"
        rows.append([STYLES[name][0], "–".join(map(str, sorted({min(seeds), max(seeds)}))), cpu, *cells])
    yield "Median share of the best volume, in brackets the quartiles.\n"
    yield from table(["optimizer", "seeds", "CPU s", *results.problems], rows)
    tests = []
    for problem in results.problems:
        mine = results.lost(problem, OURS)
        others = {name: results.lost(problem, name) for name in results.names if name != OURS}
        others = {name: lost for name, lost in others.items() if lost}
        if mine and others:
            rival, p, verdict = st.best_or_level(mine, others, 0.0)
            tests.append([problem, STYLES[rival][0], "–" if math.isnan(p) else number(p), verdict])
    if tests:
        yield from table(["problem", "best of the others", "p", f"`{OURS}` is"], tests)


def _cell(lost: Sequence[float]) -> str:
    if not lost:
        return "–"
    if len(lost) == 1:
        return f"{1 - lost[0]:.3f}"
    low, median, high = st.quartiles([1 - value for value in lost])
    return f"{median:.3f} ({low:.3f}, {high:.3f})"


def figure(each: Sequence[Results], path: Path) -> None:
    """Draw the median share by evaluations: a row of panels for each number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = max(len(results.problems) for results in each)
    size = (max(2.9 * columns, 6.0), 2.7 * len(each) + 0.6)
    drawing, grid = plt.subplots(len(each), columns, figsize=size, squeeze=False)
    handles: dict[str, Any] = {}
    for row, results in zip(grid, each, strict=True):
        for axes in row[len(results.problems) :]:
            axes.set_axis_off()
        for axes, problem in zip(row, results.problems, strict=False):
            for name in results.names:
                runs = list(results.shares[problem].get(name, {}).values())
                if runs:
                    title, colour, line = STYLES[name]
                    x = range(1, min(map(len, runs)) + 1)
                    values = np.array([shares[: len(x)] for shares in runs])
                    (handles[title],) = axes.plot(x, np.median(values, axis=0), line, color=colour, linewidth=1.8)
            axes.set_title(problem if results.workers == 1 else f"{problem}, {results.workers} workers", fontsize=11)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.set_xlabel("evaluations")
        row[0].set_ylabel("share of the best volume")
    drawing.legend(handles.values(), handles.keys(), loc="upper center", ncol=len(handles), frameon=False, fontsize=10)
    drawing.tight_layout(rect=(0, 0, 1, 1 - 0.4 / size[1]))
    drawing.savefig(path, dpi=90)
    plt.close(drawing)


def main(argv: Sequence[str]) -> int:
    """Write ``several_objectives.md`` and its figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several_objectives.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(argv)
    entries = cache.latest(arguments.results)
    if not entries:
        print(f"{arguments.results} has no runs: python -m benchmarks.several_objectives.run")
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    each = [Results(entries, workers) for workers in sorted({key.workers for key in entries})]
    figure(each, arguments.out / "several_objectives.png")
    lines = [HEAD, "![Share of the best volume by evaluations, medians](several_objectives.png)", ""]
    for results in each:
        lines += section(results)
    lines += ["## Versions", "", versions(arguments.results) + ".", ""]
    path = arguments.out / "several_objectives.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
