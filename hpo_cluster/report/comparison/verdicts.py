"""What can be said of two groups: the difference over the seeds that both have, a test, and a sentence in plain words.

Two campaigns with one seed are a pair. The differences of the pairs are tested with Wilcoxon's signed-rank test, and
the p-values of a metric are corrected for the number of tests with Holm's method. With n pairs no p-value of this test
lies below 2 / 2^n, so with fewer than `FEWEST` pairs nothing can be found, and nothing is tested.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.report.comparison.groups import Group
from hpo_cluster.report.statistics import ALPHA, holm, wilcoxon

Array = NDArray[np.float64]

#: What stands for a number that is not known, and decimals from which on a number is written with an exponent.
NOTHING, LONG = "–", 8


def seeds_needed(tests: int) -> int:
    """Return the number of pairs with which the smallest of this many corrected p-values can be below `ALPHA`."""
    return math.ceil(math.log2(2 * max(tests, 1) / ALPHA))


FEWEST = seeds_needed(1)


@dataclass(frozen=True)
class Metric:
    """A metric at the recommended configurations that is compared.

    Args:
        role: what it is for: ``validation`` or ``test``; empty if the objective does not set them apart.
        shown: its name as it is shown.
        name: by which a campaign knows it (`Run.score`); None for what is optimised.
        maximize: whether larger values are better; None if that is not known, and then nothing is tested.
        column: its name in a table of data.
    """

    role: str
    shown: str
    name: str | None
    maximize: bool | None
    column: str

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return f"{self.role} {self.shown}".strip()


@dataclass(frozen=True)
class Pair:
    """The comparison of two groups by a metric.

    Args:
        metric: that is compared.
        better: name of the group with the better mean over the seeds in common.
        worse: name of the other one.
        seeds: number of seeds with which both have a value.
        difference: mean of the differences in the unit of the metric, positive for `better`; NaN without pairs.
        sem: standard error of that mean; NaN with fewer than two pairs, and if both groups are the same with each seed.
        p: p-value with Holm's correction; None if there are too few pairs for a test.
        tests: number of the tests of this metric, for which the p-values are corrected.
    """

    metric: Metric
    better: str
    worse: str
    seeds: int
    difference: float
    sem: float
    p: float | None = None
    tests: int = 0

    @property
    def repeated(self) -> bool:
        """Whether there is more than one pair, which shows how much a difference varies."""
        return math.isfinite(self.sem)

    @property
    def verdict(self) -> str:
        """What can be said: ``differs``, ``noise``, ``hint`` or ``unknown``.

        With too few pairs for Wilcoxon's test, a difference that a paired t-test would find is a hint.
        """
        if self.p is not None:
            return "differs" if self.p <= ALPHA else "noise"
        if not self.repeated:
            return "unknown"
        from scipy.stats import t

        return "hint" if self.difference > t.isf(ALPHA / 2, self.seeds - 1) * self.sem else "noise"

    @property
    def words(self) -> str:
        """The verdict in words."""
        both = f"{self.better} and {self.worse}"
        if not self.seeds:
            return f"{both} have no seed in common for which both have a value: nothing can be said."
        if self.seeds == 1:
            return f"{both} have one seed in common: nothing can be said, since a single pair shows no noise."
        if self.difference == 0 and not self.sem > 0:
            return f"{both} have equal values with each of {self.seeds} seeds."
        if not self.repeated:
            return (
                f"{self.better} is ahead of {self.worse} by {self.difference:.4g} with every seed; but both repeat the "
                "same evaluations with each, so that this is a single pair: it shows no noise, and nothing is tested."
            )
        by = plus_minus(self.difference, self.sem)
        if self.verdict == "differs":
            return (
                f"{self.better} is better than {self.worse} by {by} (p = {_number(self.p or 0.0)}, {self.seeds} seeds)."
            )
        if self.verdict == "hint":
            return (
                f"{self.better} is ahead of {self.worse} by {by}, which a t-test would call more than noise; but "
                f"{self.seeds} seeds are too few for a test without assumptions: a hint, not a result."
            )
        p = f", p = {_number(self.p)}" if self.p is not None else ""
        many = f"{self.seeds} seeds" + (", too few for a test" if self.p is None else "")
        return f"{both}: the difference is within the noise ({by} for {self.better}{p}, {many})."


def pairs_of(groups: Sequence[Group], metric: Metric) -> list[Pair]:
    """Return the comparison of each two groups, with p-values corrected for the number of tests."""
    if metric.maximize is None:
        return []
    sign = 1.0 if metric.maximize else -1.0
    found = [(_pair(a, b, metric, sign)) for a, b in itertools.combinations(groups, 2)]
    tested = [i for i, (pair, differences) in enumerate(found) if len(differences) >= FEWEST and pair.repeated]
    corrected = holm([wilcoxon(found[i][1]) for i in tested])
    p_values = dict(zip(tested, corrected, strict=True))
    return [replace(pair, p=p_values.get(i), tests=len(tested)) for i, (pair, _) in enumerate(found)]


def _pair(a: Group, b: Group, metric: Metric, sign: float) -> tuple[Pair, Array]:
    """Return two groups compared, without a test, and the differences of their pairs."""
    mine, theirs = a.by_seed, b.by_seed
    scores = [(mine[seed].score(metric.name), theirs[seed].score(metric.name)) for seed in mine if seed in theirs]
    differences = np.array([sign * (x - y) for x, y in scores if math.isfinite(x) and math.isfinite(y)])
    mean, sem = mean_and_sem(differences)
    if a.repeats and b.repeats:  # more seeds are copies of one pair
        sem = math.nan
    better, worse = (b, a) if mean < 0 else (a, b)
    return Pair(metric, better.name, worse.name, len(differences), abs(mean), sem), differences


def mean_and_sem(values: Array | Sequence[float]) -> tuple[float, float]:
    """Return the mean of the values that are known, and its standard error; NaN where there are too few."""
    known = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    mean = float(known.mean()) if len(known) else math.nan
    return mean, float(known.std(ddof=1) / math.sqrt(len(known))) if len(known) > 1 else math.nan


@dataclass(frozen=True)
class Verdict:
    """What can be said of a metric: who has the best mean, and then each two groups, those that differ first."""

    leader: str
    details: tuple[str, ...]


def verdict_of(groups: Sequence[Group], metric: Metric, pairs: Sequence[Pair]) -> Verdict:
    """Return what can be said of a metric, with the number of seeds that is needed if there are too few."""
    order = ("differs", "hint", "noise", "unknown")
    lines = [pair.words for pair in sorted(pairs, key=lambda pair: order.index(pair.verdict))]
    if len(pairs) > 1 and all(pair.seeds == 1 for pair in pairs):
        lines = ["Each two groups have one seed in common: nothing can be said, since a single pair shows no noise."]
    few = min((pair.seeds for pair in pairs), default=0)
    needed = seeds_needed(len(pairs))
    if pairs and few < needed:
        tests = f" with the correction for {len(pairs)} comparisons" if len(pairs) > 1 else ""
        lines.append(
            f"With {few} seed{'s' * (few != 1)} in common no p-value can be {ALPHA} or less{tests}: at least {needed} "
            "seeds in each group are needed."
        )
    return Verdict(_leader(metric, groups), tuple(lines))


def _leader(metric: Metric, groups: Sequence[Group]) -> str:
    scores = {group.name: [run.score(metric.name) for run in group.runs] for group in groups}
    means = {name: mean_and_sem(values) for name, values in scores.items()}
    known = [name for name, (mean, _) in means.items() if math.isfinite(mean)]
    if not known:
        return f"{metric.title}: no campaign has a value."
    top = (max if metric.maximize else min)(means[name][0] for name in known)
    best = [name for name in known if means[name][0] == top]
    count = sum(map(math.isfinite, scores[best[0]]))
    what = f"{plus_minus(*means[best[0]])} ({f'mean over {count} seeds' if count > 1 else 'one seed'})"
    have = "has" if len(best) == 1 else "have"
    return f"{metric.title}: {' and '.join(best)} {have} {'' if len(groups) == 1 else 'the best mean, '}{what}."


def plus_minus(mean: float, sem: float) -> str:
    """Return a mean with its standard error, both with as many decimals as the error's second digit needs."""
    if not math.isfinite(mean):
        return NOTHING
    if not math.isfinite(sem):
        return f"{mean:.4g}"
    decimals = max(0, 1 - math.floor(math.log10(sem))) if sem else LONG
    return f"{mean:.{decimals}f} ± {sem:.{decimals}f}" if decimals < LONG else f"{mean:.4g} ± {sem:.2g}"


def _number(value: float) -> str:
    return f"{value:.3g}"
