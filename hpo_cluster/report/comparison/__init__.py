"""The comparison of campaigns: groups over seeds, tables, tests, figures, and what can be said in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hpo_cluster.errors import ConfigError, JournalError
from hpo_cluster.report.comparison.groups import Group, differences_beside_optimizer, faults_of, group
from hpo_cluster.report.comparison.runs import COSTS, Run, read_run
from hpo_cluster.report.comparison.verdicts import Metric, Pair, Verdict, mean_and_sem, pairs_of, verdict_of
from hpo_cluster.report.statistics import Comparison as Ranking
from hpo_cluster.report.statistics import compare as rank
from hpo_cluster.text import counted

#: Groups, and seeds that all of them have, that a critical-difference diagram needs.
RANKED_GROUPS, RANKED_SEEDS = 3, 5


@dataclass(frozen=True)
class Comparison:
    """Campaigns in groups that differ only in their seeds, and what can be said of them.

    Args:
        groups: the groups, in the order in which they were given.
        reach: the value for which it is told what it took to reach it; None if no group has a value.
        reach_given: whether the user has chosen it.
    """

    groups: tuple[Group, ...]
    reach: float | None
    reach_given: bool

    @property
    def runs(self) -> list[Run]:
        """All campaigns, group by group."""
        return [run for group in self.groups for run in group.runs]

    @property
    def first(self) -> Run:
        """The campaign that says what is measured: all of them measure the same."""
        return self.runs[0]

    @property
    def costs(self) -> list[str]:
        """The costs (`COSTS`) that say something: equivalents only with rungs, GPU-hours only with a GPU."""
        without = set() if any(run.has_rungs for run in self.runs) else {"equivalents"}
        if not any(run.curve.end("gpu_hours") > 0 for run in self.runs):
            without.add("gpu_hours")
        return [cost for cost in COSTS if cost not in without]

    @cached_property
    def metrics(self) -> list[Metric]:
        """What is compared at the recommended configurations: the optimised metric, and those of the test tasks."""
        campaign = self.first.campaign
        tests = campaign.others_are_tests
        of_task = tests and "/" in campaign.metric
        found = [Metric("validation" if of_task else "", campaign.metric, None, campaign.maximize)]
        names = dict.fromkeys(name for run in self.runs for name in run.campaign.others)
        for name in names:
            same = tests and name.partition("/")[2] == campaign.metric.partition("/")[2]
            found.append(Metric("test" if tests else "", name, name, campaign.maximize if same else None))
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
        lines += [f"{run.dir}: no trial has a value that counts" for run in self.runs if run.recommended is None]
        lines += [
            f"{run.dir}: recommends an evaluation that it imported" for run in self.runs if run.recommends_imported
        ]
        failed = [(run, run.without_value) for run in self.runs]
        lines += [f"{run.dir}: {counted(count, 'evaluation')} ended without a value" for run, count in failed if count]
        lines += differences_beside_optimizer(self.groups)
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


def compare_campaigns(folders: Sequence[Path], reach: float | None = None) -> Comparison:
    """Return the comparison of campaigns.

    Args:
        folders: of the campaigns, each of them once.
        reach: value for which it is told what it took to reach it; None: the one that more than half of the campaigns
            of every group with values have reached.

    Raises:
        ConfigError: with everything that prevents it.
    """
    runs, faults = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except JournalError as error:
            faults.append(f"{folder}: cannot be read: {error}")
    if runs:
        faults += faults_of(runs)
    if faults:
        raise ConfigError(faults, "Give campaigns of one objective. hpo-cluster compare --help")
    groups = group(runs)
    return Comparison(tuple(groups), _reached_by_all(groups) if reach is None else reach, reach is not None)


def _reached_by_all(groups: Sequence[Group]) -> float | None:
    """Return the value that more than half of the campaigns of every group have reached; None if no group has one."""
    medians = []
    for each in groups:
        ends = [float(run.curve.best[-1]) if len(run.curve.best) else -math.inf for run in each.runs]
        median = float(np.quantile(ends, 0.5, method="lower"))
        medians += [median] if math.isfinite(median) else []
    return groups[0].runs[0].sign * min(medians) if medians else None


__all__ = ["Comparison", "Group", "Metric", "Pair", "Run", "compare_campaigns", "mean_and_sem"]
