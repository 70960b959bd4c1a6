"""Two configurations compared on the same items: how many each of them answers better, and by how much in the mean.

Both are evaluated with the same seeds, so there is a difference for each item: its mean over the seeds. Items that are
hard for every model cancel out, which a comparison of two mean scores with their standard errors does not see. The
standard error of the mean difference is that of its items. The p-value is exact: if neither configuration were better,
either would be ahead on half of the items on which they differ. With one seed this is McNemar's exact test.

The items are taken as a sample of all that could have been asked; the trainings are those that were made. How much
another seed would change is what the comparison in pairs of seeds says (`confirmation`).

References: Q. McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages",
Psychometrika 12, 1947, in its exact form, for which see T. G. Dietterich, "Approximate Statistical Tests for Comparing
Supervised Classification Learning Algorithms", Neural Computation 10, 1998; E. Miller, "Adding Error Bars to Evals: A
Statistical Approach to Language Model Evaluations", 2024 (arXiv:2411.00640), for the standard error of differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.confirmation import REPLICATE, confirmation_status, confirmations_of
from hpo_cluster.record.items import Items, items_of_trial
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.trial import trial_label

#: Differences with a larger p-value are said to be within the noise.
ALPHA = 0.05

#: Items of each of two evaluations with one seed.
Pair = tuple[Items, Items]


def confirmation_on_items(record: Record, layout: CampaignLayout, *, maximize: bool) -> dict[str, Any] | None:
    """Return what confirmations have found, as `confirmation_status` does, and each row compared on items.

    Returns:
        Each row of ``trials`` has ``items``: the comparison of the first row with it (`on_items`), None for the first
        row and where no items were kept. The files of all confirmations are read.
    """
    found = confirmation_status(record, maximize=maximize)
    if found is None:
        return None
    kept = {
        number: {str(t.info[REPLICATE]): items for t in trials if (items := items_of_trial(layout, t)) is not None}
        for number, trials in confirmations_of(record).items()
    }
    best = kept[found["trials"][0]["trial"]]
    rows = []
    for row in found["trials"]:
        other = {} if row is found["trials"][0] else kept[row["trial"]]
        pairs = [(best[replicate], other[replicate]) for replicate in best if replicate in other]
        rows.append({**row, "items": on_items(pairs, maximize=maximize)})
    return {**found, "trials": rows}


def on_items(pairs: Sequence[Pair], *, maximize: bool) -> dict[str, Any] | None:
    """Return how the first evaluations of pairs compare with the second ones on their items, by the optimised metric.

    Args:
        pairs: the items of two configurations, with one seed in each pair.
        maximize: whether larger scores are better.

    Returns:
        ``metric``, ``items`` (their number), ``pairs`` (of seeds), ``better`` and ``worse`` (numbers of items on which
        the first is ahead and behind), ``difference`` (positive: the first is ahead) with its standard error ``sem``
        (None for one item), and ``p``. If the items are not the same, only ``metric`` and ``differ``, the names of the
        tasks. None without pairs, or if the metric is not one of items.
    """
    metric = pairs[0][0].optimised if pairs else None
    if metric is None:
        return None
    scored = [(mine.of(metric), theirs.of(metric)) for mine, theirs in pairs]
    sides = [side for pair in scored for side in pair]
    if not all(sides):
        return None
    if differ := _different(sides):
        return {"metric": metric, "differ": differ}
    sign = 1.0 if maximize else -1.0
    together = [zip(_joined(mine), _joined(theirs), strict=True) for mine, theirs in scored]
    sums = [math.fsum(sign * x for a, b in item for x in (a, -b)) for item in zip(*together, strict=True)]
    better, worse = sum(total > 0 for total in sums), sum(total < 0 for total in sums)
    means = [total / len(pairs) for total in sums]
    return {
        "metric": metric,
        "items": len(means),
        "pairs": len(pairs),
        "better": better,
        "worse": worse,
        "difference": statistics.fmean(means),
        "sem": statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
        "p": sign_test(better, worse),
    }


def _different(sides: Sequence[Mapping[str, tuple[str, Sequence[float]]]]) -> list[str]:
    """Return the names of the tasks that not all sides have with the same items."""
    names = dict.fromkeys(name for side in sides for name in side)
    return [name for name in names if len({side[name][0] if name in side else None for side in sides}) > 1]


def _joined(side: Mapping[str, tuple[str, Sequence[float]]]) -> list[float]:
    """Return the scores of all tasks of a metric, the tasks in the order of their names."""
    return [score for name in sorted(side) for score in side[name][1]]


def sign_test(better: int, worse: int) -> float:
    """Return the exact two-sided p-value of equal chances to be ahead, as in McNemar's exact test; 1 without any."""
    count = better + worse
    ways = tail = 1
    for number in range(min(better, worse)):
        ways = ways * (count - number) // (number + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**count) if count else 1.0


def sentences_on_items(found: Mapping[str, Any]) -> list[str]:
    """Return in words how the best of the confirmed trials compares with each other one on their items.

    Args:
        found: result of `confirmation_on_items`; without items, and from `confirmation_status`, there are no sentences.
    """
    best, *others = found["trials"]
    compared = [(trial_label(row["trial"]), row.get("items")) for row in others]
    return [f"{trial_label(best['trial'])} against {name}: {_words(items)}" for name, items in compared if items]


def _words(items: Mapping[str, Any]) -> str:
    if "differ" in items:
        return f"not compared on items, since those of {', '.join(items['differ'])} are not the same"
    by = f"{items['difference']:.3g}" + ("" if items["sem"] is None else f" ± {items['sem']:.2g}")
    seeds = "with 1 seed" if items["pairs"] == 1 else f"in the mean of {items['pairs']} seeds"
    noise = ", within the noise" if items["p"] > ALPHA else ""
    return (
        f"better on {items['better']} of {items['items']} items, worse on {items['worse']}, {seeds}; "
        f"by {by}; p = {items['p']:.2g}{noise}"
    )
