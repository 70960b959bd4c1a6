"""Write what the table shows into ``docs/benchmarks/village.md``, and the constants of its surrogate.

Usage: ``python -m benchmarks.village.report``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.optimizers.markdown import table
from benchmarks.village.surrogate import CONSTANTS, Surrogate, cross_validation, digest
from benchmarks.village.table import EARLY, TABLE, load, trials

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "village.md"
FIGURE = PAGE.with_name("village.png")
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

#: Validation accuracies that separate chance, what has learned something, and what is good.
LEARNED, GOOD = 0.35, 0.8
QUESTIONS = {"val_acc": 640, "test_acc": 320}
GROUPS = {"at chance": (0.0, LEARNED), "between": (LEARNED, GOOD), "good": (GOOD, 1.01)}


def spearman(a: pd.Series, b: pd.Series) -> float:
    """Return the rank correlation of two columns, of the rows that have both."""
    both = a.notna() & b.notna()
    return float(a[both].rank().corr(b[both].rank())) if both.sum() > 2 else float("nan")


def group_of(accuracy: pd.Series) -> pd.Series:
    """Return the name of each accuracy's group; a training that diverged is at chance."""
    edges = [low for low, _ in GROUPS.values()]
    return accuracy.fillna(0.0).map(lambda value: list(GROUPS)[int(np.searchsorted(edges, value, "right")) - 1])


def repeated(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the whole trainings of the configurations with several seeds."""
    whole = frame[frame["share"] == "1"]
    return whole[whole.groupby(["origin", "trial"])["seed"].transform("nunique") > 1]


def noise(frame: pd.DataFrame, column: str = "val_acc") -> pd.DataFrame:
    """Return for each configuration with several seeds the mean and the variance of a column over the seeds."""
    found = repeated(frame).groupby(["origin", "trial"])[column].agg(["mean", "var"])
    return found[found["var"].notna()]


def by_group(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the means and variances over seeds of each of `GROUPS`, lowest first."""
    found = noise(frame)
    groups = dict(list(found.groupby(group_of(found["mean"]))))
    return [groups[name] for name in GROUPS if name in groups]


def shorter(frame: pd.DataFrame, share: str) -> pd.DataFrame:
    """Return trainings that end with their schedule after a share of the steps, with the looks into the whole ones."""
    key = ["origin", "trial"]
    short = frame[frame["share"] == share][[*key, "val_acc", "val_loss"]]
    return short.merge(trials(frame), on=key, suffixes=("_short", ""))


# --- the parts of the page -------------------------------------------------------------------------------------------


def contents(frame: pd.DataFrame) -> Iterator[str]:
    """Say how many rows there are of each kind."""
    first = trials(frame)
    origins = first["origin"].value_counts()
    others = [f"`{name}` {count}" for name, count in origins.items() if name != "sobol"]
    seeds = repeated(frame).groupby(["origin", "trial"])["seed"].nunique()
    short = frame[frame["share"] != "1"].groupby(["origin", "trial"])["share"].nunique()
    size, hours = TABLE.stat().st_size / 1000, frame["total_s"].sum() / 3600
    diverged = int((frame["error"] != "").sum())
    yield f"{len(frame)} fine-tunings, {size:.0f} kB: {origins.get('sobol', 0)} points of the Sobol design, trials of"
    yield f"campaigns ({', '.join(others)}); {len(seeds)} configurations have {seeds.max()} seeds, {len(short)} have"
    yield f"shorter schedules. {diverged} trainings diverged: a loss was not finite. They took {hours:.1f} CPU hours,"
    yield "without the looks.\n"


def scores(frame: pd.DataFrame) -> Iterator[str]:
    """Tell how the accuracies are distributed, by origin."""
    first = trials(frame)
    rows = []
    for origin, part in first.groupby("origin", sort=False):
        at = group_of(part["val_acc"]).value_counts(normalize=True)
        quantiles = part["val_acc"].quantile([0.25, 0.5, 0.75, 1.0])
        best = part.sort_values("val_acc", na_position="first")["test_acc"].iloc[-1]
        cells = [f"{at.get(name, 0):.0%}" for name in GROUPS]
        rows.append([f"`{origin}`", str(len(part)), *cells, *(f"{q:.3f}" for q in quantiles), f"{best:.3f}"])
    head = ["origin", "trials", f"up to {LEARNED}", "between", f"above {GOOD}", "25 %", "median", "75 %", "best"]
    yield from table([*head, "its test accuracy"], rows)


def fidelities(frame: pd.DataFrame) -> Iterator[str]:
    """Compare looks at a ninth and a third of the steps with the end."""
    first = trials(frame)
    parts = {"all": first, "learned": first[first["val_acc"] > LEARNED], "good": first[first["val_acc"] > GOOD]}
    rows = []
    for share in EARLY:
        for metric in ("val_acc", "val_loss"):
            sign = -1 if metric == "val_loss" else 1
            cells = [f"{sign * spearman(p[f'{metric}@{share}'], p['val_acc']):.2f}" for p in parts.values()]
            tops = [_kept(first, sign * first[f"{metric}@{share}"], part) for part in (0.1, 1 / 3)]
            rows.append([f"{metric} at {share}", *cells, *(f"{top:.0%}" for top in tops)])
    counts = [f"{name} ({len(part)})" for name, part in parts.items()]
    yield "Rank correlation with the accuracy at the end, and how many of the best tenth (third) at the end are in the"
    yield "best tenth (third) at the look:\n"
    yield from table(["look", *counts, "best tenth", "best third"], rows)


def _kept(frame: pd.DataFrame, early: pd.Series, part: float) -> float:
    """Return which part of the best rows at the end is among as many best ones at a look."""
    count = max(1, round(len(frame) * part))
    at_end = set(frame["val_acc"].nlargest(count).index)
    return len(at_end & set(early.nlargest(count).index)) / count


def schedules(frame: pd.DataFrame) -> Iterator[str]:
    """Compare a look into a whole training with a training whose schedule ends there."""
    rows = []
    for share in EARLY:
        both = shorter(frame, share)
        if both.empty:
            continue
        gain = both["val_acc_short"] - both[f"val_acc@{share}"]
        curved = both["lr_schedule"] != "constant"
        ranks = [spearman(both[name], both["val_acc"]) for name in (f"val_acc@{share}", "val_acc_short")]
        cells = [f"{gain[curved].mean():+.3f}", f"{gain[~curved].mean():+.3f}", f"{gain.abs().max():.3f}"]
        rows.append([share, str(len(both)), *cells, *(f"{rank:.2f}" for rank in ranks)])
    head = ["steps", "configurations", "gain, falling schedules", "gain, constant", "largest difference"]
    yield from table([*head, "rank correlation of the look with the end", "of the shorter training"], rows)


def seeds(frame: pd.DataFrame) -> Iterator[str]:
    """Compare the standard deviation over seeds with the binomial standard error."""
    rows = []
    for column, questions in QUESTIONS.items():
        found = noise(frame, column)
        by_validation = noise(frame).reindex(found.index)["mean"]
        for name, part in found.groupby(group_of(by_validation)):
            deviation = np.sqrt(part["var"].mean())
            binomial = np.sqrt((part["mean"] * (1 - part["mean"]) / questions).mean())
            largest = np.sqrt(part["var"].max())
            cells = [f"{value:.4f}" for value in (deviation, binomial, largest)]
            rows.append([column, str(name), str(len(part)), *cells])
    yield from table(["accuracy", "mean over seeds", "configurations", "σ of the seeds", "binomial", "largest σ"], rows)


def test_task(frame: pd.DataFrame) -> Iterator[str]:
    """Compare validation and test accuracy."""
    first = trials(frame)
    rows = []
    for name, low in (("all", 0.0), ("learned", LEARNED), ("good", GOOD)):
        part = first[first["val_acc"] > low]
        gap = part["val_acc"] - part["test_acc"]
        loss = -spearman(part["val_loss"], part["test_acc"])
        cells = [f"{spearman(part['val_acc'], part['test_acc']):.3f}", f"{loss:.3f}", f"{gap.mean():+.3f}"]
        rows.append([name, str(len(part)), *cells, f"{gap.std():.3f}"])
    head = ["rows", "number", "rank correlation of val_acc and test_acc", "of val_loss and test_acc"]
    yield from table([*head, "mean of val_acc - test_acc", "its σ"], rows)


def costs(frame: pd.DataFrame) -> Iterator[str]:
    """Tell how the costs spread."""
    first = trials(frame)
    rows = []
    for name, part in [("all", first), *first.groupby("precision"), *first.groupby("epochs")]:
        label = f"{name} epochs" if isinstance(name, int) else str(name)
        quantiles = part["total_s"].quantile([0.05, 0.5, 0.95])
        rows.append([label, str(len(part)), *(f"{q:.1f}" for q in quantiles)])
    yield from table(["trainings", "number", "5 %", "median", "95 %"], rows)


def halving(frame: pd.DataFrame, pool: int = 81, draws: int = 200) -> Iterator[str]:
    """Run successive halving on rows of the design, and compare it with whole trainings of the same cost."""
    design = trials(frame)
    design = design[design["origin"] == "sobol"]
    pool = min(pool, len(design))
    rng = np.random.default_rng(0)
    found = {"successive halving": list[float](), "whole trainings": list[float](), "all": list[float]()}
    used = []
    for _ in range(draws):
        drawn = design.sample(pool, random_state=int(rng.integers(2**31)))
        steps = drawn["train_s@1/9"].sum()
        second = drawn.nlargest(pool // 3, "val_acc@1/9")
        steps += (second["train_s@1/3"] - second["train_s@1/9"]).sum()
        third = second.nlargest(pool // 9, "val_acc@1/3")
        steps += (third["train_s"] - third["train_s@1/3"]).sum()
        affordable = drawn[drawn["train_s"].cumsum() <= steps]
        found["successive halving"].append(third["val_acc"].max())
        found["whole trainings"].append(affordable["val_acc"].max())
        found["all"].append(drawn["val_acc"].max())
        used.append(steps / drawn["train_s"].sum())
    best = {name: float(np.mean(values)) for name, values in found.items()}
    yield f"Successive halving of {pool} rows of the design (the best third goes on after a ninth of the steps, a third"
    yield f"of these after a third), mean of {draws} draws: best accuracy {best['successive halving']:.3f} for"
    yield f"{np.mean(used):.0%} of the training time; whole trainings for the same time find"
    yield f"{best['whole trainings']:.3f}, all {pool} of them {best['all']:.3f}.\n"


def regression(frame: pd.DataFrame) -> Iterator[str]:
    """Tell how well values between the rows are predicted."""
    found = cross_validation(frame)
    rows = [[str(r["way"]), *(f"{r[name]:.3f}" for name in ("R²", "Spearman", "error"))] for _, r in found.iterrows()]
    yield from table(["way", "R²", "Spearman", "error (root of the mean square)"], rows)


def page(frame: pd.DataFrame) -> str:
    """Return the measured part of the page."""
    parts = {
        "What is in it": contents,
        "Scores": scores,
        "Looks at a ninth and a third": fidelities,
        "A look, or a shorter schedule": schedules,
        "Seeds": seeds,
        "Validation and test": test_task,
        "Costs": costs,
        "Early stopping on the rows": halving,
        "Values between the rows": regression,
    }
    lines = ["This part was written by `benchmarks/village/report.py`; run it again rather than edit it.", ""]
    for title, part in parts.items():
        lines += [f"### {title}", "", *part(frame)]
    return "\n".join(lines).rstrip()


def figure(frame: pd.DataFrame, path: Path) -> None:
    """Draw the scores of the design, the looks against the end, validation against test, and the seeds' deviations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    first = trials(frame)
    figure_, (scores_, looks, tests, deviations) = plt.subplots(1, 4, figsize=(15, 3.6))
    design = first["origin"] == "sobol"
    bins = np.linspace(0.2, 1.0, 33)
    values = [first["val_acc"][design], first["val_acc"][~design]]
    scores_.hist(values, bins, stacked=True, label=["design", "optimizers"], color=["#0072B2", "#E69F00"])
    scores_.set(xlabel="validation accuracy", ylabel="configurations")
    scores_.legend(frameon=False)
    for share, colour in zip(EARLY, ("#D55E00", "#009E73"), strict=True):
        looks.plot(
            first[f"val_acc@{share}"], first["val_acc"], ".", ms=3, alpha=0.5, color=colour, label=f"after {share}"
        )
    looks.set(xlabel="validation accuracy at a look", ylabel="at the end")
    looks.legend(frameon=False, markerscale=5)
    tests.plot(first["val_acc"], first["test_acc"], ".", ms=3, alpha=0.5, color="#0072B2")
    tests.set(xlabel="validation accuracy", ylabel="test accuracy")
    found = noise(frame)
    p = np.linspace(0.2, 0.95, 100)
    deviations.plot(found["mean"], np.sqrt(found["var"]), ".", color="#000000", label="seeds")
    deviations.plot(p, np.sqrt(p * (1 - p) / QUESTIONS["val_acc"]), color="#CC79A7", label="binomial")
    deviations.set(xlabel="mean validation accuracy", ylabel="σ over three seeds", yscale="log")
    deviations.legend(frameon=False)
    for axis in (scores_, looks, tests, deviations):
        axis.grid(alpha=0.3)
    figure_.tight_layout()
    figure_.savefig(path, dpi=75)
    plt.close(figure_)


def main(argv: Sequence[str]) -> int:
    """Write the measured part of the page, the figure and the constants of the surrogate."""
    frame = load()
    best, configuration = Surrogate.fit(frame).highest()
    spread = [[round(float(p["mean"].mean()), 3), round(float(np.sqrt(p["var"].mean())), 4)] for p in by_group(frame)]
    best_test, _ = Surrogate.fit(frame, "test_acc").highest()
    constants = {
        "table": digest(),
        "best": best,
        "best_test": best_test,
        "noise": spread,
        "configuration": configuration,
    }
    CONSTANTS.write_text(json.dumps(constants, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{page(frame)}\n{END}{after}", encoding="utf-8")
    figure(frame, FIGURE)
    print(f"{PAGE}\n{FIGURE}: {FIGURE.stat().st_size / 1000:.0f} kB\nbest of the surrogate {best:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
