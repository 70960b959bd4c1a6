"""Ranks, Friedman's and Wilcoxon's tests, Holm's correction and cliques, on numbers worked out by hand or elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hpo_cluster.report.statistics import cliques, compare, friedman, holm, rank_rows, wilcoxon

#: Accuracies of four variants of C4.5 on 14 data sets: Table 6 of Demsar (2006), whose Friedman test gives F = 3.69.
#: The last but one of the last variant is 0.975 there, as its neighbour is, but ranked behind it.
C45 = {
    "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.000, 0.940, 0.619, 0.972, 0.957],
    "C4.5+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.000, 0.962, 0.666, 0.981, 0.978],
    "C4.5+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.000, 0.965, 0.614, 0.975, 0.946],
    "C4.5+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.000, 0.962, 0.669, 0.9749, 0.970],
}


def test_the_ranks_and_friedmans_test_are_those_of_the_paper() -> None:
    found = compare({name: [-value for value in values] for name, values in C45.items()})
    assert found.problems == 14
    ranks = dict(zip(found.names, found.mean_ranks, strict=True))
    assert ranks == pytest.approx({"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=5e-4)
    assert found.names == ("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5")
    # the paper's F of 3.69 leaves out the correction for ties, which makes it larger
    assert found.friedman_p < stats.f.sf(3.69, 3, 39)
    assert found.friedman_p == pytest.approx(stats.f.sf(3.69, 3, 39), rel=0.5)


def test_friedmans_statistic_is_that_of_scipy_before_the_correction_of_iman_and_davenport() -> None:
    table = np.random.default_rng(0).integers(0, 5, (12, 4)).astype(float)
    n, k = table.shape
    chi_square = stats.friedmanchisquare(*table.T).statistic
    expected = stats.f.sf((n - 1) * chi_square / (n * (k - 1) - chi_square), k - 1, (k - 1) * (n - 1))
    assert friedman(rank_rows(table)) == pytest.approx(expected)


def test_friedmans_test_at_its_ends() -> None:
    assert friedman(rank_rows(np.ones((6, 3)))) == 1.0
    assert friedman(rank_rows(np.tile([1.0, 2.0, 3.0], (6, 1)))) == 0.0


def test_ties_share_their_rank() -> None:
    assert rank_rows(np.array([[0.2, 0.1, 0.2], [1.0, 1.0, 1.0]])).tolist() == [[2.5, 1.0, 2.5], [2.0, 2.0, 2.0]]


def test_wilcoxons_test_of_differences() -> None:
    assert wilcoxon(np.zeros(8)) == 1.0
    assert wilcoxon(np.arange(1.0, 11.0)) == pytest.approx(2 / 2**10)  # all of one sign
    assert wilcoxon(np.array([1.0, -1.0, 2.0, -2.0, 3.0, -3.0])) > 0.9


def test_holms_correction_steps_down_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_cliques_are_the_largest_runs_without_a_differing_pair() -> None:
    names = ("a", "b", "c", "d", "e")
    assert cliques(names, set()) == (names,)
    assert cliques(names, {("a", "d"), ("a", "e"), ("b", "e")}) == (("a", "b", "c"), ("b", "c", "d"), ("c", "d", "e"))
    assert cliques(names, {("b", "c")}) == (("a", "b"), ("c", "d", "e"))
    assert cliques(("a", "b", "c"), {("a", "b"), ("a", "c"), ("b", "c")}) == ()


def test_clear_differences_are_found_and_equals_are_joined() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=20)
    scores = {
        "last": list(base + 5),
        "first": list(base),
        "twin": list(base + rng.normal(scale=0.01, size=20)),
    }
    found = compare(scores)
    assert found.names[2] == "last"
    assert found.friedman_p < 1e-6
    assert {pair for pair, p in found.pairs.items() if p <= 0.05} == {
        (found.names[0], "last"),
        (found.names[1], "last"),
    }
    assert found.cliques == (found.names[:2],)


def test_no_pair_differs_where_friedmans_test_finds_nothing() -> None:
    # three contestants beat one another in turn: each pair of ranks is even, and equality stands
    table = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 1.0], [3.0, 1.0, 2.0]] * 4)
    found = compare({name: list(column) for name, column in zip("abc", table.T, strict=True)})
    assert found.friedman_p > 0.9
    assert found.cliques == (("a", "b", "c"),)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({"a": [1.0, 2.0]}, "two or more contestants"),
        ({"a": [1.0, 2.0], "b": [1.0]}, "same two or more problems"),
        ({"a": [1.0], "b": [2.0]}, "two or more problems"),
        ({"a": [1.0, 2.0], "b": [float("nan"), 1.0]}, "NaN.*b"),
    ],
)
def test_scores_that_cannot_be_compared(scores: dict[str, list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compare(scores)
