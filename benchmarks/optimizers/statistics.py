"""The statistics of the tables: regrets, quartiles, paired tests, ranks, and when two optimizers count as equal.

Two rules, stated with every table. *Floor*: regrets below `FLOOR_SHARE` of the median regret of random search on a
problem count as equal to that floor, so that the tenth digit of a smooth function decides nothing. *Within noise*: the
paired Wilcoxon signed-rank test over the common seeds has p > `ALPHA`.

Reference: J. Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", Journal of Machine Learning
Research 7, 2006, for the test and for mean ranks over problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FLOOR_SHARE = 1e-3
ALPHA = 0.05


def regrets(observed: Sequence[float], true: Sequence[float], best: float) -> Array:
    """Return the simple regret (``n``) of the best *observed* so far, by its true value; never below 0."""
    seen, held = -np.inf, -np.inf
    out = []
    for o, t in zip(observed, true, strict=True):
        if o > seen:
            seen, held = o, t
        out.append(max(best - held, 0.0))
    return np.array(out)


def regret_at(times: Sequence[float], regret: Array, when: float) -> float:
    """Return the regret at a simulated time; NaN before the first evaluation has ended. `times` never fall."""
    count = int(np.searchsorted(np.asarray(times), when, side="right"))
    return float(regret[count - 1]) if count else float("nan")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


def floor_of(random_regrets: Sequence[float]) -> float:
    """Return the regret that counts as zero on a problem, from random search's regrets there."""
    return FLOOR_SHARE * float(np.median(np.asarray(random_regrets)))


def wilcoxon(a: Mapping[int, float], b: Mapping[int, float], floor: float) -> float:
    """Return the two-sided p of the paired signed-rank test over the common seeds; 1 if nothing differs.

    NaN if fewer than 6 seeds are common: no p below `ALPHA` can come out then.
    """
    from scipy.stats import wilcoxon as test

    seeds = sorted(set(a) & set(b))
    if len(seeds) < 6:
        return float("nan")
    difference = np.array([max(a[s], floor) - max(b[s], floor) for s in seeds])
    if not difference.any():
        return 1.0
    return float(test(difference).pvalue)


def ranks(medians: Mapping[str, float], floor: float) -> dict[str, float]:
    """Return the rank of each by its median, 1 for the best, ties shared."""
    from scipy.stats import rankdata

    names = list(medians)
    found = rankdata([max(medians[name], floor) for name in names])
    return dict(zip(names, map(float, found), strict=True))


def best_or_level(
    ours: Mapping[int, float], others: Mapping[str, Mapping[int, float]], floor: float
) -> tuple[str, float, str]:
    """Compare one with the best of the others by median: return its name, p, and "better", "level" or "worse".

    "level": within noise (p > `ALPHA`), or both medians at the floor; "untested": too few common seeds to say.
    """
    medians = {name: float(np.median(list(values.values()))) for name, values in others.items() if values}
    rival = min(medians, key=lambda name: (max(medians[name], floor), name))
    mine = max(float(np.median(list(ours.values()))), floor)
    theirs = max(medians[rival], floor)
    p = wilcoxon(ours, others[rival], floor)
    if mine == theirs or p > ALPHA:
        return rival, p, "level"
    if np.isnan(p):
        return rival, p, "untested"
    return rival, p, "better" if mine < theirs else "worse"
