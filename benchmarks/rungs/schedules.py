"""Compare two learning-rate schedules by what their rungs say of the end, on real fine-tunings of the bundled model.

Usage: ``python -m benchmarks.rungs.schedules [--configurations 64] [--rows schedules.jsonl]``.

Each configuration of a Sobol design of ``space=village_extended`` is trained once with each of `SCHEDULES` in place of
its own schedule, and scored at the rungs 1/9, 1/3 and 1. Rows are kept, so an interrupted run goes on where it was.
At the end the table is written into ``docs/benchmarks/rungs.md``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.optimizers.markdown import table
from benchmarks.rungs.report import PAGE
from benchmarks.village.evaluate import SHARES, VALIDATION, Evaluator, configuration, quiet
from benchmarks.village.make import LEARNED, Key, append, key_of, read
from benchmarks.village.table import load, read_space, rows_of
from hpo_cluster.optimizers.registry import make_optimizer
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.space import Configuration
from hpo_cluster.trial import derive_seed

#: Not in version control.
ROWS = Path(__file__).parent / "results" / "schedules.jsonl"
BEGIN, END = "<!-- schedules: begin -->", "<!-- schedules: end -->"

#: The schedules, and what is set for each.
SCHEDULES: Mapping[str, Configuration] = {
    "cosine": {"lr_schedule": "cosine"},
    "wsd": {"lr_schedule": "wsd", "lr_decay_share": 0.15},
}
RUNGS = tuple(SHARES)
CONFIGURATIONS, SEED = 64, 0
#: Accuracy of a model that answers at random, or that diverged.
CHANCE = 0.25
DRAWS = 2000

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Row: TypeAlias = Mapping[str, Any]


def design(count: int) -> list[Configuration]:
    """Return the first configurations of the Sobol design of the village table."""
    space = configuration().space
    empty = MemoryJournal(space.names, maximize=True).history()
    optimizer = make_optimizer("sobol", space, derive_seed("village", "sobol"))
    return [dict(proposal.parameters) for proposal in optimizer.ask(empty, count).proposals]


def in_table() -> dict[int, Row]:
    """Return the rows of the design in the village table, with the schedules that the design drew."""
    rows = rows_of(load(), read_space())
    return {row["trial"]: row for row in rows if key_of(row) == Key("sobol", row["trial"], SEED)}


def make_missing(path: Path, count: int) -> None:
    """Make the trainings that are not in the file."""
    done = {(row["trial"], row["schedule"]) for row in read(path)}
    tasks = [(t, name) for t in range(count) for name in SCHEDULES if (t, name) not in done]
    if not tasks:
        return
    quiet()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    configurations, evaluator, known = design(count), Evaluator(), in_table()
    for trial, schedule in tasks:
        parameters = {**configurations[trial], **SCHEDULES[schedule]}
        row = known.get(trial, {})
        if row.get("parameters") != parameters:
            row = {"parameters": parameters, **evaluator(parameters, SEED)}
        row = {**row, "trial": trial, "schedule": schedule}
        append(path, row)
        print(trial, schedule, *(f"{accuracy(row, rung):.3f}" for rung in RUNGS), f"{row['total_s']} s", flush=True)


def accuracy(row: Row, rung: str) -> float:
    """Return the validation accuracy at a rung; that of chance if the training had diverged."""
    return float(row["looks"].get(rung, {}).get(f"{VALIDATION}/acc", CHANCE))


def scores(rows: Sequence[Row], schedule: str) -> dict[str, Array]:
    """Return the accuracies of a schedule by rung, in the order of the trials that have all schedules."""
    found = {(row["trial"], row["schedule"]): row for row in rows}
    trials = sorted(t for t, name in found if name == schedule and all((t, other) in found for other in SCHEDULES))
    return {rung: np.array([accuracy(found[t, schedule], rung) for t in trials]) for rung in RUNGS}


def ranks(values: Array) -> Array:
    """Return ranks from 1, ties with their mean."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=np.float64)


def correlation(low: Array, top: Array) -> float:
    """Return Spearman's rank correlation; NaN if all values are equal."""
    if len(low) < 2 or np.ptp(low) == 0 or np.ptp(top) == 0:
        return float("nan")
    return float(np.corrcoef(ranks(low), ranks(top))[0, 1])


def kept(low: Array, top: Array) -> float:
    """Return the share of the best third at the top that is in the best third at a rung; ties go by order."""
    third = max(1, round(len(top) / 3))
    best, chosen = (set(np.argsort(-values, kind="stable")[:third].tolist()) for values in (top, low))
    return len(best & chosen) / third


def interval(values: Array) -> str:
    """Return the interval that holds 95 % of some values, as text."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return f"{low:.2f} to {high:.2f}"


def resampled(low: Array, top: Array) -> Array:
    """Return the correlations of bootstrap samples of the configurations, the same ones for each call."""
    rng = np.random.default_rng(derive_seed("schedules", "bootstrap"))
    draws = rng.integers(len(top), size=(DRAWS, len(top)))
    return np.array([correlation(low[draw], top[draw]) for draw in draws])


def extra(rows: Sequence[Row], schedule: str) -> str:
    """Return the CPU seconds of finishing copies, as text: for each training, and as a share of the training's own."""
    mine = [row for row in rows if row["schedule"] == schedule]
    decay_s = sum(look.get("decay_s", 0.0) for row in mine for look in row["looks"].values())
    train_s = sum(row["train_s"] for row in mine)
    return f"{decay_s / len(mine):.2f} s ({decay_s / train_s:.0%})" if decay_s else "none"


def measured(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of the table and of the comparison."""
    by_schedule = {name: scores(rows, name) for name in SCHEDULES}
    lower = RUNGS[:-1]
    yield "This part was written by `benchmarks/rungs/schedules.py`; run it again rather than edit it."
    yield ""
    tops = {name: values["1"] for name, values in by_schedule.items()}
    learned = np.any([top > LEARNED for top in tops.values()], axis=0)
    first = next(iter(tops.values()))
    yield f"{len(first)} configurations, of which {int(learned.sum())} learned something (accuracy above {LEARNED:g} at"
    yield "the top of a schedule). In brackets: 95 % of bootstrap samples."
    yield ""
    head = ["schedule", *(f"correlation of {r} with 1" for r in lower), *(f"of those that learned, {r}" for r in lower)]
    head += [*(f"best third kept at {r}" for r in lower), "mean accuracy at 1/9, 1/3, 1", "best", "extra CPU time"]
    lines = []
    for name, values in by_schedule.items():
        top = values["1"]
        whole = [f"{correlation(values[r], top):.2f} ({interval(resampled(values[r], top))})" for r in lower]
        good = [f"{correlation(values[r][learned], top[learned]):.2f}" for r in lower]
        means = ", ".join(f"{values[r].mean():.3f}" for r in RUNGS)
        shares = [f"{kept(values[r], top):.0%}" for r in lower]
        lines.append([f"`{name}`", *whole, *good, *shares, means, f"{top.max():.3f}", extra(rows, name)])
    yield from table(head, lines)
    one, other = SCHEDULES
    for rung in lower:
        pairs = [(by_schedule[name][rung], tops[name]) for name in (one, other)]
        difference = correlation(*pairs[1]) - correlation(*pairs[0])
        spread = interval(resampled(*pairs[1]) - resampled(*pairs[0]))
        yield f"Correlation of {rung}, `{other}` less `{one}`: {difference:+.2f} ({spread})."
    gain = tops[other] - tops[one]
    yield (
        f"Accuracy at the top, `{other}` less `{one}`: {gain.mean():+.3f}, standard error "
        f"{gain.std(ddof=1) / len(gain) ** 0.5:.3f}; better in {int((gain > 0).sum())}, worse in "
        f"{int((gain < 0).sum())} of {len(gain)}."
    )


def main(argv: Sequence[str]) -> int:
    """Make the missing trainings, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rungs.schedules", description=__doc__)
    parser.add_argument("--configurations", type=int, default=CONFIGURATIONS)
    parser.add_argument("--rows", type=Path, default=ROWS, help="file of JSON lines; it may hold some already")
    arguments = parser.parse_args(argv)
    make_missing(arguments.rows, arguments.configurations)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    body = "\n".join(measured(read(arguments.rows)))
    PAGE.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
