"""Compare several contestants over several problems: mean ranks, tests, and who cannot be told apart.

`compare` ranks the contestants on each problem and asks two questions. Do they differ at all? That is Friedman's test.
Which pairs do? That is Wilcoxon's signed-rank test of each pair over the problems, with Holm's correction for the
number of pairs. A *clique* is a set of contestants next to one another in the order of mean ranks of which no pair
differs: the bars of a critical-difference diagram.

References: J. Demsar, "Statistical Comparisons of Classifiers over Multiple Data Sets", Journal of Machine Learning
Research 7, 2006, for the ranks, Friedman's test and the diagram; A. Benavoli, G. Corani and F. Mangili, "Should We
Really Use Post-Hoc Tests Based on Mean-Ranks?", Journal of Machine Learning Research 17, 2016, for Wilcoxon's test
in place of Nemenyi's, whose verdict on a pair depends on who else takes part.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """A comparison of contestants, best mean rank first.

    Args:
        names: of the contestants.
        problems: how many problems they were compared on.
        mean_ranks: over the problems, 1 for the best; ties are shared.
        friedman_p: p-value of the hypothesis that all are equal; 1 if no problem tells any two apart.
        pairs: p-value of each pair with Holm's correction; a pair is in the order of `names`.
        cliques: the largest sets of neighbours in `names` of which no pair differs, of two contestants at least.
    """

    names: tuple[str, ...]
    problems: int
    mean_ranks: tuple[float, ...]
    friedman_p: float
    pairs: Mapping[tuple[str, str], float]
    cliques: tuple[tuple[str, ...], ...]


def compare(scores: Mapping[str, Sequence[float]], alpha: float = ALPHA) -> Comparison:
    """Compare contestants by a score of each on the same problems; lower is better.

    Wilcoxon's test ranks the differences between two contestants across problems, so the scores must have the same
    unit on all of them, such as the logarithm of a regret or of its ratio to that of random search.

    Args:
        scores: of each contestant, one for each problem, in the same order.
        alpha: pairs with a corrected p-value up to it differ, if Friedman's test rejects equality at this level too.

    Raises:
        ValueError: if there are fewer than two contestants or problems, or scores are missing.
    """
    table = _table(scores)
    ranks = rank_rows(table)
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    names = tuple(list(scores)[i] for i in order)
    table, ranks = table[:, order], ranks[:, order]
    p = friedman(ranks)
    raw = {(names[i], names[j]): wilcoxon(table[:, i] - table[:, j]) for i, j in _pairs(len(names))}
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    differ = {pair for pair, value in corrected.items() if value <= alpha} if p <= alpha else set()
    return Comparison(names, len(table), tuple(ranks.mean(axis=0).tolist()), p, corrected, cliques(names, differ))


def _table(scores: Mapping[str, Sequence[float]]) -> Array:
    """Return the scores as an array (problems x contestants), or raise ValueError."""
    lengths = {name: len(values) for name, values in scores.items()}
    if len(scores) < 2 or min(lengths.values()) < 2 or len(set(lengths.values())) > 1:
        raise ValueError(
            f"two or more contestants must each have a score on the same two or more problems; scores: {lengths}"
        )
    table = np.array(list(scores.values()), dtype=np.float64).T
    if np.isnan(table).any():
        absent = [name for name, column in zip(scores, table.T, strict=True) if np.isnan(column).any()]
        raise ValueError(f"scores are missing (NaN): {', '.join(absent)}")
    return table


def rank_rows(table: Array) -> Array:
    """Return the ranks (problems x contestants) of scores: 1 for the lowest of a row, ties shared."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(table, axis=1), dtype=np.float64)


def friedman(ranks: Array) -> float:
    """Return the p-value of Friedman's test with ties, in the form of Iman and Davenport, for any number of columns.

    Args:
        ranks: of the contestants on each problem (``n x k``).
    """
    from scipy.stats import f

    n, k = ranks.shape
    spread = float(((ranks - (k + 1) / 2) ** 2).sum())
    between = n * float(((ranks.mean(axis=0) - (k + 1) / 2) ** 2).sum())
    if spread == 0:
        return 1.0  # all are tied on all problems
    chi_square = n * (k - 1) * between / spread
    rest = n * (k - 1) - chi_square
    if rest <= 1e-9:
        return 0.0  # the same order on all problems
    return float(f.sf((n - 1) * chi_square / rest, k - 1, (k - 1) * (n - 1)))


def wilcoxon(differences: Array) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if no difference is left. Zeros are split."""
    from scipy.stats import wilcoxon as test

    if not differences.any():
        return 1.0
    return float(test(differences, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's step-down correction for the number of tests, in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    highest = 0.0
    for step, index in enumerate(order):
        highest = max(highest, min((len(p_values) - step) * p_values[index], 1.0))
        corrected[index] = highest
    return [float(value) for value in corrected]


def cliques(names: Sequence[str], differ: set[tuple[str, str]]) -> tuple[tuple[str, ...], ...]:
    """Return the largest runs of neighbours of which no pair differs; single contestants are left out.

    Args:
        names: in the order of their mean ranks.
        differ: the pairs that do, each in the order of `names`.
    """
    found: list[tuple[str, ...]] = []
    reached = 0
    for first in range(len(names)):
        last = first + 1
        while last < len(names) and not any((names[i], names[last]) in differ for i in range(first, last)):
            last += 1
        if last - first > 1 and last > reached:
            found.append(tuple(names[first:last]))
            reached = last
    return tuple(found)


def _pairs(count: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(count), 2))
