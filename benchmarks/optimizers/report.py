"""Tables and figures of the cached runs, written into ``docs/benchmarks/``.

Usage: ``python -m benchmarks.optimizers.report [--results FILE] [--out DIR] [--page NAME]``.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.optimizers import cache, catalogue
from benchmarks.optimizers import statistics as st
from benchmarks.optimizers.cache import Key
from benchmarks.optimizers.league import LEAST, standings
from benchmarks.optimizers.markdown import is_peer, label, number, table
from benchmarks.optimizers.problems import DATA_VARIABLE, LORA, cross_validation
from benchmarks.optimizers.run import BUDGETS

Array = NDArray[np.float64]
OUT = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"

#: Lines of the figures, in this order; colours that the colour-blind tell apart, each with a line style of its own.
STYLES = {
    "bo": ("#0072B2", "-", 2.4),
    "mosaic": ("#000000", "-", 1.6),
    "turbo": ("#882255", "--", 1.6),
    "turbo[regions=5]": ("#882255", "-.", 1.6),
    "peer:optuna-tpe": ("#D55E00", "-", 1.6),
    "peer:optuna-gp": ("#E69F00", "--", 1.6),
    "peer:ax": ("#CC79A7", "-.", 1.6),
    "peer:smac": ("#009E73", "--", 1.6),
    "peer:smac-bb": ("#009E73", ":", 1.8),
    "peer:hebo": ("#CC79A7", "-", 1.6),
    "nomad": ("#009E73", "-", 1.6),
    "soo[preset=greedy]": ("#56B4E9", "-", 1.6),
    "peer:nevergrad-ngopt": ("#56B4E9", "-.", 1.6),
    "random": ("#555555", ":", 1.8),
}


class Results:
    """The last run of each key, as regrets.

    Args:
        path: of the runs.
        workers: of the runs taken.
    """

    def __init__(self, path: Path, workers: int) -> None:
        budget = BUDGETS.get(workers, 4 * workers)
        entries = {k: e for k, e in cache.latest(path).items() if k.workers == workers and k.budget == budget}
        self.budget, self.workers, self.entries = budget, workers, entries
        best = _best_known(path)
        self.regret: dict[str, dict[str, dict[int, Array]]] = defaultdict(lambda: defaultdict(dict))
        for key, entry in entries.items():
            found = st.regrets(entry["observed"], entry["true"], best[key.problem])
            whole = np.concatenate([found, np.full(max(budget - len(found), 0), found[-1])])  # exhausted: it stays so
            self.regret[key.problem][key.optimizer][key.seed] = whole
        self.problems = [name for name in catalogue.names(catalogue.GROUPS) if name in self.regret]
        names = {name for per in self.regret.values() for name in per}
        self.optimizers = sorted(names, key=lambda name: (name != "bo", name.startswith("peer:"), name))

    def final(self, problem: str, optimizer: str) -> dict[int, float]:
        """Return the regret at the end, by seed."""
        return {seed: float(regret[-1]) for seed, regret in self.regret[problem].get(optimizer, {}).items()}

    def floor(self, problem: str) -> float:
        """Return the regret that counts as zero; 0 if random search was not run."""
        values = list(self.final(problem, "random").values())
        return st.floor_of(values) if values else 0.0

    def cpu(self, optimizer: str) -> float:
        """Return the median CPU seconds of a suggestion after the first ten."""
        seconds = [s for key, e in self.entries.items() if key.optimizer == optimizer for s in e["cpu_s"][10:]]
        return float(np.median(seconds)) if seconds else math.nan

    def at_time(self, problem: str, optimizer: str, when: float) -> list[float]:
        """Return the regrets at a simulated time."""
        found = []
        for seed, regret in self.regret[problem].get(optimizer, {}).items():
            entry = self.entries[Key(problem, optimizer, seed, self.workers, self.budget)]
            found.append(st.regret_at(entry["times"], regret[: len(entry["times"])], when))
        return found


def _best_known(path: Path) -> dict[str, float]:
    """Return the highest true value of each problem: the known one, or a higher one found by a run on real data."""
    import json

    store = path.parent / "best_known.json"
    kept: dict[str, Any] = json.loads(store.read_text(encoding="utf-8")) if store.is_file() else {}
    entries = cache.latest(path)
    ran = dict.fromkeys(key.problem for key in entries)
    absent = catalogue.left_out(ran)
    best = {name: -math.inf if name in absent else catalogue.problem(name).best for name in ran}
    best |= {name: float(kept.get("lora1Bs" if name == "lora1Bs" else "lora1B", -math.inf)) for name in LORA}
    for key, entry in entries.items():
        if key.problem in absent or key.problem in catalogue.GROUPS["data"].names:
            best[key.problem] = max(best[key.problem], *entry["true"])
    best["lora1B"] = best["lora1B_noisy"] = max(best["lora1B"], best["lora1B_noisy"])
    return best


def sequential(results: Results) -> Iterator[str]:
    """Return medians and quartiles, ranks, and the comparison of `bo`."""
    seeds = {name: _seeds(results, name) for name in results.optimizers}
    ranks: dict[str, list[float]] = defaultdict(list)
    whole = [n for n in results.optimizers if all(results.regret[p].get(n) for p in results.problems)]
    for problem in results.problems:
        medians = {n: float(np.median(list(results.final(problem, n).values()))) for n in whole}
        for name, rank in st.ranks(medians, results.floor(problem)).items():
            ranks[name].append(rank)
    rows = []
    for name in sorted(results.optimizers, key=lambda n: (np.mean(ranks[n]) if n in ranks else 99, n)):
        mean = f"{np.mean(ranks[name]):.1f}" if name in ranks else "–"
        cells = [_cell(results, problem, name) for problem in results.problems]
        rows.append([label(name), seeds[name], mean, number(results.cpu(name)), *cells])
    yield "Median simple regret, in brackets the quartiles. Mean rank over the problems, by medians with the floor,"
    yield "among those that ran on all of them. CPU s: of one suggestion after the first ten, median.\n"
    yield from table(["optimizer", "seeds", "mean rank", "CPU s", *results.problems], rows)


def _seeds(results: Results, name: str) -> str:
    counts = [len(results.regret[p][name]) for p in results.problems if results.regret[p].get(name)]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"


def _cell(results: Results, problem: str, name: str) -> str:
    values = list(results.final(problem, name).values())
    if not values:
        return "–"
    low, median, high = st.quartiles(values)
    return f"{number(median)} ({number(low)}, {number(high)})"


def standing(results: Results, ours: str) -> Iterator[str]:
    """Return a row for each problem: the best rival, the paired test against it, and against random search."""
    rows, counts = [], {"better": 0, "level": 0, "worse": 0, "untested": 0}
    for problem in results.problems:
        mine = results.final(problem, ours)
        others = {name: results.final(problem, name) for name in results.optimizers if is_peer(name)}
        others = {name: values for name, values in others.items() if values}
        if not mine or not others:
            continue
        floor = results.floor(problem)
        rival, p, verdict = st.best_or_level(mine, others, floor)
        counts[verdict] += 1
        chance = results.final(problem, "random")
        _, p_random, against = st.best_or_level(mine, {"random": chance}, floor) if chance else ("", math.nan, "–")
        medians = [number(st.quartiles(list(values.values()))[1]) for values in (mine, others[rival])]
        rows.append(
            [problem, medians[0], f"{label(rival)}: {medians[1]}", number(p), verdict, against, number(p_random)]
        )
    yield f"`{ours}` is better than the best of the peers on {counts['better']} problems, level on {counts['level']},"
    yield f"worse on {counts['worse']}; on {counts['untested']} the common seeds are too few for a test (at least 6).\n"
    head = ["problem", ours, "best peer", "p", "against it", "against random", "p"]
    yield from table(head, rows)


def duel(results: Results, ours: str, other: str) -> Iterator[str]:
    """Return the comparison of two optimizers over all problems: paired ratios of regrets, and tests."""
    rows, logs, verdicts = [], list[float](), {"better": 0, "level": 0, "worse": 0, "untested": 0}
    for problem in results.problems:
        mine, theirs = results.final(problem, ours), results.final(problem, other)
        seeds = sorted(set(mine) & set(theirs))
        floor = max(results.floor(problem), LEAST)
        if not seeds:
            continue
        ratios = [math.log(max(mine[s], floor) / max(theirs[s], floor)) for s in seeds]
        logs.append(float(np.mean(ratios)))
        _, p, verdict = st.best_or_level(mine, {other: theirs}, floor)
        verdicts[verdict] += 1
        medians = [number(float(np.median([v[s] for s in seeds]))) for v in (mine, theirs)]
        rows.append([problem, str(len(seeds)), *medians, number(math.exp(logs[-1])), number(p), verdict])
    if not rows:
        return
    mean = number(math.exp(float(np.mean(logs))))
    yield f"`{ours}` against `{other}`: geometric mean of the ratios of regrets {mean}"
    yield f"over {len(rows)} problems; better on {verdicts['better']}, level on {verdicts['level']}, worse on"
    yield f"{verdicts['worse']}, too few seeds on {verdicts['untested']}.\n"
    yield from table(["problem", "seeds", ours, other, "ratio", "p", "verdict"], rows)


def asynchronous(results: Results) -> Iterator[str]:
    """Return medians at half and at the end of the simulated time."""
    times = (results.budget / results.workers / 2, results.budget / results.workers)
    rows = []
    for name in results.optimizers:
        cells = []
        for problem in results.problems:
            medians = [np.nanmedian(v) if (v := results.at_time(problem, name, t)) else math.nan for t in times]
            cells.append(", ".join(number(float(m)) for m in medians))
        rows.append([label(name), _seeds(results, name), *cells])
    yield f"{results.budget} evaluations: median regret at simulated times {times[0]:g} and {times[1]:g}.\n"
    yield from table(["optimizer", "seeds", *results.problems], rows)


def figure(results: Results, path: Path, against_time: bool) -> None:
    """Draw median and quartiles of the regret by evaluations or simulated time, with a panel for each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(4, len(results.problems))
    lines = math.ceil(len(results.problems) / columns)
    width = max(3.75 * columns, 6.0)  # as wide as the legend at least
    figure_, axes = plt.subplots(lines, columns, figsize=(width, 3.3 * lines + 0.7), squeeze=False)
    for axis in axes.flat[len(results.problems) :]:
        axis.set_axis_off()
    handles: dict[str, Any] = {}
    end = results.budget / results.workers * 1.1
    for axis, problem in zip(axes.flat, results.problems, strict=False):
        floor = max(results.floor(problem), LEAST)
        for name, (colour, line, thickness) in STYLES.items():
            runs = results.regret[problem].get(name)
            if not runs:
                continue
            if against_time:
                x = np.linspace(0.8, end, 80)
                values = np.array([results.at_time(problem, name, when) for when in x]).T
            else:
                x = np.arange(1.0, results.budget + 1)
                values = np.array(list(runs.values()))
            values = np.maximum(values, floor)
            low, median, high = np.nanquantile(values, [0.25, 0.5, 0.75], axis=0)
            (handles[label(name)],) = axis.plot(x, median, line, color=colour, linewidth=thickness)
            if name in ("bo", "random"):
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_title(f"{problem}", fontsize=12)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=9)
        axis.set_xlim(0, end if against_time else results.budget)
    xlabel = f"simulated time, {results.workers} workers" if against_time else "evaluations"
    for axis in axes[:, 0]:
        axis.set_ylabel("simple regret", fontsize=11)
    for column in range(columns):
        used = [axes[i, column] for i in range(lines) if i * columns + column < len(results.problems)]
        if used:
            used[-1].set_xlabel(xlabel, fontsize=11)
    figure_.legend(handles.values(), handles.keys(), loc="upper center", ncol=len(handles), fontsize=11, frameon=False)
    figure_.tight_layout(rect=(0, 0, 1, 1 - 0.45 / (3.3 * lines + 0.7)))
    figure_.savefig(path, dpi=90)
    plt.close(figure_)


def versions(path: Path) -> str:
    """Return the versions of the libraries in the runs."""
    found: dict[str, set[str]] = defaultdict(set)
    for entry in cache.latest(path).values():
        for name, version in entry["versions"].items():
            if name != "code":
                found[name].add(version)
    return ", ".join(f"{name} {'/'.join(sorted(found[name]))}" for name in sorted(found, key=str.lower))


def main(argv: Sequence[str]) -> int:
    """Write the page and its figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=cache.RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--page", default="results", help="its name; figures of another page than results begin with it"
    )
    arguments = parser.parse_args(argv)
    prefix = "" if arguments.page == "results" else f"{arguments.page}_"
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# Optimizers compared: {arguments.page}",
        "",
        "<!-- Made by benchmarks/optimizers/report.py. Do not edit. -->",
        "",
    ]
    lines += ["How it was measured, and what it says: [optimizers.md](optimizers.md).", ""]
    for workers in BUDGETS:
        results = Results(arguments.results, workers)
        if not results.problems:
            continue
        if workers == 1:
            lines += [f"## Sequential, {results.budget} evaluations", ""]
            lines += [*standings(results, arguments.out, prefix), *sequential(results)]
            lines += _figure_line(results, arguments.out, prefix)
            if any("bo" in results.regret[p] for p in results.problems):
                lines += ["## Where `bo` stands", "", *standing(results, "bo")]
        else:
            lines += [f"## Asynchronous, {workers} workers", "", *asynchronous(results)]
            lines += [*standings(results, arguments.out, prefix)]
            lines += _figure_line(results, arguments.out, prefix)
            if "bo" in results.optimizers and any(map(is_peer, results.optimizers)):
                lines += [*standing(results, "bo")]
        lines += _duels(results)
    regrets = f"{prefix}regrets.csv"
    _write_regrets(arguments.results, arguments.out / regrets)
    lines += [f"The regrets of all runs at their ends: [{regrets}]({regrets}).", ""]
    lines += ["## Versions", "", versions(arguments.results) + ".", ""]
    if folder := os.environ.get(DATA_VARIABLE):
        cv = cross_validation(Path(folder))
        lines += [
            f"Surrogate of the {cv['evaluations']:.0f} real evaluations, 10-fold cross-validation grouped by "
            f"configuration: R2 {cv['r2']:.3f}, Spearman {cv['spearman']:.3f}, error {cv['rmse']:.3f} in accuracy.",
            "",
        ]
    path = arguments.out / f"{arguments.page}.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    print(path)
    return 0


def _duels(results: Results) -> list[str]:
    """Compare `mosaic` with `bo` if both ran, else with the other optimizers for many workers."""
    if "mosaic" not in results.optimizers:
        return []
    others = ["bo"] if "bo" in results.optimizers else [n for n in results.optimizers if n != "mosaic"]
    return [line for other in others for line in duel(results, "mosaic", other)]


def _write_regrets(path: Path, out: Path) -> None:
    """Write a line for each run: its key, its regret at the end and the median CPU seconds of a suggestion."""
    best = _best_known(path)
    lines = ["problem,optimizer,seed,workers,evaluations,regret,cpu_s"]
    for key, entry in sorted(cache.latest(path).items()):
        regret = st.regrets(entry["observed"], entry["true"], best[key.problem])[-1]
        cpu = float(np.median(entry["cpu_s"][10:] or entry["cpu_s"]))
        name = f'"{key.optimizer}"' if "," in key.optimizer else key.optimizer
        lines.append(f"{key.problem},{name},{key.seed},{key.workers},{key.budget},{regret:.6g},{cpu:.2g}")
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _figure_line(results: Results, out: Path, prefix: str) -> list[str]:
    name = "regret_by_evaluations.png" if results.workers == 1 else f"regret_by_time_w{results.workers}.png"
    name = prefix + name
    figure(results, out / name, results.workers > 1)
    return [f"![Regret, median; shaded: quartiles of bo and random]({name})", ""]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
