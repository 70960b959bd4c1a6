"""The comparison of campaigns: groups over seeds, tables, tests, figures, and what can be said in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hpo_cluster.errors import ConfigError, JournalError
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.record.looks import looks_in_words, read_looks
from hpo_cluster.report.comparison.groups import (
    Group,
    differences_beside_optimizer,
    faults_of,
    group,
    without_seeds,
)
from hpo_cluster.report.comparison.runs import COSTS, Run, read_run
from hpo_cluster.report.comparison.several import FRONT, HYPERVOLUME, Box, in_one_box
from hpo_cluster.report.comparison.verdicts import Metric, Pair, Verdict, mean_and_sem, pairs_of, verdict_of
from hpo_cluster.report.statistics import Comparison as Ranking
from hpo_cluster.report.statistics import compare as rank
from hpo_cluster.text import Progress, counted, untold

HINT = "hpo-cluster compare --help"
#: Groups, and seeds that all of them have, that a critical-difference diagram needs.
RANKED_GROUPS, RANKED_SEEDS = 3, 5


@dataclass(frozen=True)
class Comparison:
    """Campaigns in groups that differ only in their seeds, and what can be said of them.

    Args:
        groups: the groups, in the order in which they were given.
        reach: the value for which it is told what it took to reach it; None if no group has a value.
        reach_given: whether the user has chosen it.
        box: with several objectives, that in which hypervolumes are measured; None also if no point lies in one.
    """

    groups: tuple[Group, ...]
    reach: float | None
    reach_given: bool
    box: Box | None = None

    @property
    def runs(self) -> list[Run]:
        """All campaigns, group by group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def first(self) -> Run:
        """The campaign that says what is measured: all of them measure the same."""
        return self.runs[0]

    @property
    def several(self) -> bool:
        """Whether the campaigns have several objectives."""
        return self.first.campaign.several

    @property
    def reach_in_words(self) -> str:
        """The value that is to be reached; a hypervolume with its share of the best one."""
        if self.reach is None or not self.several:
            return "" if self.reach is None else f"{self.reach:.5g}"
        return f"{self.reach:.3g} ({100 * self.reach / _best_volume(self.runs):.3g} % of the best)"

    @property
    def costs(self) -> list[str]:
        """The costs (`COSTS`) that say something: equivalents only with rungs, GPU-hours only with a GPU."""
        without = set() if any(run.has_rungs for run in self.runs) else {"equivalents"}
        if not any(run.curve.end("gpu_hours") > 0 for run in self.runs):
            without.add("gpu_hours")
        return [cost for cost in COSTS if cost not in without]

    @cached_property
    def metrics(self) -> list[Metric]:
        """What is compared, what is optimised first.

        At the recommended configurations it is the optimised metric, and those of the test tasks. With several
        objectives it is the hypervolume, and the number of points of the front is shown.
        """
        campaign = self.first.campaign
        if self.several:
            return [
                Metric("", HYPERVOLUME, None, True, HYPERVOLUME),
                Metric("", "points of the front", FRONT, None, FRONT),
            ]
        tests = campaign.others_are_tests
        of_task = tests and "/" in campaign.metric
        found = [Metric("validation" if of_task else "", campaign.metric, None, campaign.maximize, "value")]
        names = dict.fromkeys(name for run in self.runs for name in run.campaign.others)
        for name in names:
            same = tests and name.partition("/")[2] == campaign.metric.partition("/")[2]
            maximize = campaign.maximize if same else None
            found.append(Metric("test" if tests else "", name, name, maximize, METRIC_PREFIX + name))
        return found

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each two groups, by each metric."""
        return [pair for metric in self.metrics for pair in pairs_of(self.groups, metric)]

    @property
    def verdicts(self) -> list[Verdict]:
        """What can be said of the differences in plain words, by metric."""
        return [
            verdict_of(self.groups, metric, [pair for pair in self.pairs if pair.metric is metric])
            for metric in self.metrics
            if metric.maximize is not None
        ]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know: campaigns that are not finished or have no value, and other differences."""
        lines = [f"{run.dir}: not finished, {why}" for run in self.runs if (why := run.unfinished)]
        lines += [f"{run.dir}: {remark}" for run in self.runs if (remark := run.remark)]
        looks = [] if self.several else [(run, read_looks(run.campaign.layout)) for run in self.runs]
        lines += [f"{run.dir}: {looks_in_words(seen)}" for run, seen in looks if len(seen) > 1]
        failed = [(run, run.without_value) for run in self.runs]
        lines += [f"{run.dir}: {counted(count, 'evaluation')} ended without a value" for run, count in failed if count]
        lines += [*differences_beside_optimizer(self.groups), *without_seeds(self.groups)]
        seeds = [set(group.by_seed) for group in self.groups]
        if len(set(map(frozenset, seeds))) > 1:
            common = len(set.intersection(*seeds))
            lines.append(f"the groups have other seeds: {common} in common; only pairs with the same seed are tested")
        return lines

    @cached_property
    def ranking(self) -> Ranking | None:
        """Mean ranks of the groups over the seeds that all have, by the optimised metric; None if there are too few."""
        seeds = set.intersection(*(set(group.by_seed) for group in self.groups))
        sign = -self.first.sign  # lower is better there
        scores = {group.name: [sign * group.by_seed[seed].score() for seed in sorted(seeds)] for group in self.groups}
        known = [all(map(math.isfinite, row)) for row in zip(*scores.values(), strict=True)]
        if len(self.groups) < RANKED_GROUPS or sum(known) < RANKED_SEEDS:
            return None
        kept = {name: [x for x, ok in zip(values, known, strict=True) if ok] for name, values in scores.items()}
        return rank(kept)

    def to_reach(self, group: Group, cost: str) -> float:
        """Return the median over seeds of what it took to reach the value; infinity if most campaigns never did."""
        if self.reach is None:
            return math.inf
        took = [run.curve.reaches(cost, self.first.sign * self.reach) for run in group.runs]
        return float(np.quantile(took, 0.5, method="higher"))

    def reached(self, group: Group) -> int:
        """Return how many campaigns of a group have reached the value."""
        if self.reach is None:
            return 0
        return sum(math.isfinite(run.curve.reaches("evaluations", run.sign * self.reach)) for run in group.runs)


def compare_campaigns(
    folders: Sequence[Path],
    reach: float | None = None,
    reference: Mapping[str, float] | None = None,
    progress: Progress = untold,
) -> Comparison:
    """Return the comparison of campaigns.

    Args:
        folders: of the campaigns, each of them once.
        reach: value for which it is told what it took to reach it, with several objectives a share of the best
            hypervolume; None: the value that more than half of the campaigns of every group with values have reached.
        reference: with several objectives, the worst value of interest by metric, in place of what the campaigns
            were given or that follows from their results.
        progress: is told of each campaign that was read, and of each whose recommendation is known.

    Raises:
        ConfigError: with everything that prevents it.
    """
    runs, faults = [], []
    for number, folder in enumerate(folders):
        progress("campaigns", number, len(folders))
        try:
            runs.append(read_run(folder))
        except JournalError as error:
            faults.append(f"{folder}: cannot be read: {error}")
    progress("campaigns", len(folders), len(folders))
    if runs:
        faults += faults_of(runs)
    if faults:
        raise ConfigError(faults, f"Give campaigns that measure the same. {HINT}")
    box = None
    if runs[0].campaign.several:
        if reach is not None and not 0 < reach <= 1:
            accepted = "a share of the best hypervolume, above 0 and up to 1, such as reach=0.9"
            raise ConfigError([f"reach={reach:g}: with several objectives it is {accepted}"], HINT)
        runs, box = in_one_box(runs, reference or {})
        reach = None if reach is None or box is None else reach * _best_volume(runs)
    elif reference:
        raise ConfigError(["reference: these campaigns have one objective, and a best value without one"], HINT)
    else:
        for number, run in enumerate(runs):
            progress("recommendations", number, len(runs))
            run.recommended  # noqa: B018 - a model is fitted here, and not in the middle of a table
        progress("recommendations", len(runs), len(runs))
    groups = group(runs)
    return Comparison(tuple(groups), _reached_by_all(groups) if reach is None else reach, reach is not None, box)


def _best_volume(runs: Sequence[Run]) -> float:
    """Return the largest hypervolume of any campaign."""
    return max(float(run.curve.best[-1]) for run in runs if len(run.curve.best))


def _reached_by_all(groups: Sequence[Group]) -> float | None:
    """Return the value that more than half of the campaigns of every group have reached; None if no group has one."""
    medians = []
    for each in groups:
        ends = [float(run.curve.best[-1]) if len(run.curve.best) else -math.inf for run in each.runs]
        median = float(np.quantile(ends, 0.5, method="lower"))
        reached = math.isfinite(median) and not (median == 0 and each.runs[0].campaign.several)  # 0: nothing dominated
        medians += [median] if reached else []
    return groups[0].runs[0].sign * min(medians) if medians else None


__all__ = ["Comparison", "Group", "Metric", "Pair", "Run", "compare_campaigns", "mean_and_sem"]
