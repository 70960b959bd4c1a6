"""Who is ahead on each group of problems: mean ranks, tests over the problems, and a critical-difference diagram."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.optimizers import catalogue
from benchmarks.optimizers.markdown import is_peer, label, number, table
from hpo_cluster.report.critical_difference import draw
from hpo_cluster.report.statistics import Comparison, compare

#: Problems that a group needs: with fewer, no p-value of Wilcoxon's test is below 0.05.
FEWEST = 6
#: Least regret in ratios and figures: what counts as none where random search was not run.
LEAST = 1e-12


class Runs(Protocol):
    """The regrets of all runs with one number of workers."""

    problems: list[str]
    optimizers: list[str]
    workers: int
    budget: int

    def final(self, problem: str, optimizer: str) -> dict[int, float]:
        """Return the regret at the end, by seed."""

    def floor(self, problem: str) -> float:
        """Return the regret that counts as zero."""


def standings(runs: Runs, out: Path, prefix: str = "") -> Iterator[str]:
    """Return the standings of each group with enough problems as Markdown, and draw their diagrams into `out`."""
    for group, members in catalogue.GROUPS.items():
        problems = [name for name in runs.problems if name in members.names]
        names = [name for name in runs.optimizers if all(runs.final(problem, name) for problem in problems)]
        if len(problems) < FEWEST or len(names) < 2:
            continue
        seeds = common_seeds(runs, problems, names)
        if not seeds:
            continue
        scores = {name: [score(runs, problem, name, seeds) for problem in problems] for name in names}
        found = compare(scores)
        several = f"{len(seeds)} seeds each" if len(seeds) > 1 else "one seed"
        yield f"### {group}: {len(problems)} problems, {several}\n"
        yield f"Friedman's test of the hypothesis that all are equal: p = {number(found.friedman_p)}.\n"
        yield from table(
            ["optimizer", "mean rank", "regret / random", "p", "p against the first"], _rows(found, scores)
        )
        workers = f"_w{runs.workers}" if runs.workers > 1 else ""
        picture = f"{prefix}critical_difference_{group}{workers}.png"
        title = f"{group}: mean ranks over {len(problems)} problems, {runs.budget} evaluations, {several}"
        draw(found, out / picture, title, label, [name for name in names if not is_peer(name)])
        yield f"![Critical-difference diagram: {group}]({picture})\n"


def common_seeds(runs: Runs, problems: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the seeds that every contestant has on every problem."""
    sets = [set(runs.final(problem, name)) for problem in problems for name in names]
    return sorted(set.intersection(*sets))


def score(runs: Runs, problem: str, name: str, seeds: Sequence[int]) -> float:
    """Return the mean logarithm of the regret over some seeds, in which regrets below the floor count as the floor."""
    floor = max(runs.floor(problem), LEAST)
    regrets = runs.final(problem, name)
    return math.fsum(math.log(max(regrets[seed], floor)) for seed in seeds) / len(seeds)


def _rows(found: Comparison, scores: Mapping[str, Sequence[float]]) -> Iterator[list[str]]:
    """Return a row for each contestant: mean rank, geometric mean of the ratio to random search, and two tests."""
    for name, rank in zip(found.names, found.mean_ranks, strict=True):
        ratio, against_random = "–", "–"
        if "random" in scores:
            pairs = zip(scores[name], scores["random"], strict=True)
            ratio = number(math.exp(math.fsum(mine - chance for mine, chance in pairs) / found.problems))
            against_random = _p(found, name, "random")
        yield [label(name), f"{rank:.1f}", ratio, against_random, _p(found, name, found.names[0])]


def _p(found: Comparison, one: str, other: str) -> str:
    """Return the corrected p-value of a pair."""
    if one == other:
        return "–"
    return number(found.pairs[(one, other) if (one, other) in found.pairs else (other, one)])
