"""Bayesian multi-scale optimistic optimization: SOO that evaluates only cells that a Gaussian process finds promising.

The tree and the sweep are those of `hpo_cluster.optimizers.partition.soo`. Before the centre of a cell is evaluated,
the cell is screened: if even the upper confidence bound there is below the best value so far, the cell gets the lower
bound as its value and nothing is run. These approximations are rows of the history (origin ``approximated``), so that
the tree is found again without fitting models to the past.

Reference: Z. Wang, B. Shakibi, L. Jin and N. de Freitas, "Bayesian Multi-Scale Optimistic Optimization", AISTATS 2014,
1005-1014 (arXiv:1402.7005), algorithm 2. Pending trials: T. Desautels, A. Krause and J. W. Burdick, "Parallelizing
Exploration-Exploitation Tradeoffs in Gaussian Process Bandit Optimization", JMLR 15, 4053-4103, 2014.

Symbols: ``N`` number of screened cells, ``mu`` and ``sigma`` posterior mean and standard deviation, ``f+`` best value
observed, ``eta`` probability that some bound fails, ``G`` approximations in a row before one is evaluated anyway.

    N = N + 1;  B = sqrt(2 ln(pi^2 N^2 / (6 eta)));  U = mu + B sigma;  L = mu - B sigma
    if U >= f+: evaluate the centre, else: g = L

Deviations from the paper: those of SOO; the process has noise and sees the outcomes of `outcome` (``raw``: as they
are), in whose scale U is compared with f+, while L is converted to the scale of the target; `beta` replaces B; after
``G = 8 K`` approximations in a row the one of the largest U is evaluated, since a tree of unlimited depth could
approximate for ever; when nothing else is left, approximated cells are evaluated, those of the largest L first;
`refresh` computes the bounds of the leaves again with each fit. The middle child of an approximated cell is screened
again, as in the study. With several workers a cell is screened when its turn to be evaluated comes, with the standard
deviation given the pending trials (their place is known, their value is not), and leaves in flight have the value of
their ancestor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpo_cluster.optimizers.bayesian.encoding import Features
from hpo_cluster.optimizers.bayesian.observations import Observations, Outcome, unscaled
from hpo_cluster.optimizers.bayesian.surrogate import Surrogate, SurrogateError, fit
from hpo_cluster.optimizers.dataset import Row
from hpo_cluster.optimizers.partition.replayed_search import Evaluation, SearchOptimizer, Status
from hpo_cluster.optimizers.partition.soo import SOOSettings, SOOTree
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import Key
from hpo_cluster.trial import Origin, Proposal, Settled

#: Approximations in a row, for each part of a cut, before one is evaluated.
PATIENCE = 8

#: Number of fitted models that are kept.
KEPT = 64


class BaMSOOSettings(SOOSettings):
    """Settings of BaMSOO."""

    eta: float = Field(default=0.5, gt=0, le=1, description="probability that some bound fails; has little influence")
    beta: float | None = Field(
        default=None, gt=0, description="width of the bounds in standard deviations; null: grows with the cells, by eta"
    )
    outcome: Outcome = Field(
        default="soft", description="what the model sees of values, as for bo; raw: as they are, as in the study"
    )
    refresh: bool = Field(
        default=False,
        description="compute the bounds of approximated leaves again with each fit; a restart repeats the earlier fits",
    )


def bound_width(screened: int, eta: float) -> float:
    """Return B_N of `screened` cells (algorithm 2, line 10)."""
    return math.sqrt(2 * math.log(math.pi**2 * screened**2 / (6 * eta)))


class BaMSOOTree(SOOTree):
    """SOO's tree, whose cells are screened before they are evaluated.

    Args:
        space: what to search.
        settings: of the optimizer.
        fit: returns the model of observations; raises SurrogateError if none can be fitted.
    """

    def __init__(self, space: Space, settings: BaMSOOSettings, fit: Callable[[Observations], Surrogate]) -> None:
        self.settings, self._fit = settings, fit
        self.rows: dict[int, Row] = {}  # by trial: what the model is trained on
        self.screened = 0  # N
        self.doubtful: list[tuple[float, Evaluation]] = []  # approximated since the last evaluation, with their U
        self.passed: Evaluation | None = None  # screened, and evaluated next
        self.settled: list[Settled] = []
        self._model: Surrogate | None = None
        self._asked_model: Surrogate | None = None  # the one that screened in this ask
        self._stale = True  # whether rows have been added since the last fit
        self._past: dict[Key, deque[float]] = {}  # approximations of the ask that is replayed
        self._proposed: set[Key] = set()  # proposals of the ask that is replayed
        super().__init__(space, settings)

    # --------------------------------------------------------------------------------------------------- its proposals

    def ask(self, n: int) -> tuple[list[Proposal], list[Settled]]:
        """Return at most `n` proposals, and the cells that were approximated on the way (values of the target)."""
        self.settled, self._asked_model = [], None
        proposals, _ = super().ask(n)
        return proposals, self.settled

    def head(self) -> Evaluation | None:
        """Return what is proposed next, and approximate the cells before it; None if there is nothing."""
        while True:
            if self.settings.refresh and self._stale:
                self._refresh()
            if len(self.doubtful) >= PATIENCE * self.settings.sections:
                return self._most_doubtful()
            evaluation = super().head()
            if evaluation is None:
                return self._rest()
            if evaluation is self.passed:
                return evaluation
            self.screened += 1
            if self._past.get(evaluation.key):
                self._approximate(evaluation, self._past[evaluation.key].popleft(), math.nan)
            elif evaluation.key in self._proposed or self._promising(evaluation):
                self.passed = evaluation
                return evaluation

    def issue(self, evaluation: Evaluation) -> None:
        """Record that an evaluation is in flight."""
        self.passed, self.doubtful = None, []
        super().issue(evaluation)

    def want(self, u: NDArray[np.float64], info: dict[str, Any]) -> Evaluation:
        """Return the evaluation at a point (``d``), and queue it if nothing is known, or to screen it again."""
        evaluation = super().want(u, info)
        if evaluation.status is Status.APPROXIMATED:
            evaluation.status = Status.QUEUED
            self.queue.append(evaluation)
        return evaluation

    def asked(self, rows: Sequence[Row]) -> None:
        """Apply the rows of one ask, with the decisions that the history holds."""
        for row in rows:
            if row.origin is Origin.APPROXIMATED:
                self._past.setdefault(row.key, deque()).append(row.target)
            elif row.origin is Origin.EVALUATED:
                self._proposed.add(row.key)
        while self._proposed or any(self._past.values()):
            evaluation = self.head()
            if evaluation is None or evaluation.key not in self._proposed:
                break
            self._proposed.remove(evaluation.key)
            self.issue(evaluation)
        for row in rows:
            known = row.origin is Origin.EVALUATED and row.key not in self._proposed
            if not known and (row.origin is not Origin.APPROXIMATED or self._past[row.key]):
                self.adopt(row)
        self._past, self._proposed = {}, set()

    def ended(self, row: Row) -> None:
        """Record that a trial has ended."""
        super().ended(row)
        if row.observed or row.low:
            self.rows[row.trial], self._stale = row, True

    # ------------------------------------------------------------------------------------------------------ screening

    def _promising(self, evaluation: Evaluation) -> bool:
        """Return whether U reaches f+; if not, approximate the evaluation by L."""
        model = self._asked_model = self._surrogate()
        if model is None:
            return True
        lower, upper = self._bounds(model, [evaluation])
        if upper[0] >= model.outcomes.max():
            return True
        value = unscaled(lower[0], model.observations.targets, self.settings.outcome)
        self._approximate(evaluation, value, upper[0])
        return False

    def _bounds(self, model: Surrogate, evaluations: Sequence[Evaluation]) -> tuple[list[float], list[float]]:
        """Return L and U of each evaluation, in the scale of the outcomes."""
        pending = [other.point for other in self.evaluations.values() if other.status is Status.PENDING]
        mean, deviation = model.posterior(
            np.array([evaluation.point for evaluation in evaluations]), np.array(pending).reshape(-1, self.space.dim)
        )
        width = self.settings.beta or bound_width(self.screened, self.settings.eta)
        return (mean - width * deviation).tolist(), (mean + width * deviation).tolist()

    def _approximate(self, evaluation: Evaluation, value: float, upper: float) -> None:
        evaluation.status, evaluation.value = Status.APPROXIMATED, value
        self.doubtful.append((value if math.isnan(upper) else upper, evaluation))
        self.settled.append(Settled(evaluation.configuration, Origin.APPROXIMATED, value, evaluation.info))
        self.changed(evaluation)

    def _most_doubtful(self) -> Evaluation:
        """Return the cell of the largest U approximated since the last evaluation, or the one that the history has."""
        for _, evaluation in self.doubtful:
            if evaluation.key in self._proposed:
                return evaluation
        return max(self.doubtful, key=lambda entry: entry[0])[1]

    def _rest(self) -> Evaluation | None:
        """Return the approximated cell of the largest L, for when nothing is left to cut."""
        left = [e for e in self.evaluations.values() if e.status is Status.APPROXIMATED and e.nodes]
        return max(left, key=lambda evaluation: evaluation.value or 0.0, default=None)

    def _refresh(self) -> None:
        """Compute the bounds of approximated leaves again with the present model; queue those whose U reaches f+."""
        leaves = [
            evaluation
            for evaluation in self.evaluations.values()
            if evaluation.status is Status.APPROXIMATED and any(not node.children for node in evaluation.nodes)
        ]
        model = self._surrogate()
        if model is None or not leaves:
            return
        for evaluation, lower, upper in zip(leaves, *self._bounds(model, leaves), strict=True):
            evaluation.value = unscaled(lower, model.observations.targets, self.settings.outcome)
            self.changed(evaluation)
            if upper >= model.outcomes.max():
                evaluation.status = Status.QUEUED
                self.queue.append(evaluation)

    def _surrogate(self) -> Surrogate | None:
        """Return the model fitted to the rows; None if none can be fitted."""
        if self._stale:
            self._stale = False
            try:
                self._model = self._fit(Observations.of_rows(self.space, [self.rows[i] for i in sorted(self.rows)]))
            except SurrogateError:
                self._model = None
        return self._model

    def describe(self) -> dict[str, Any]:
        """Return where the tree stands, and what the model is (JSON)."""
        model = None if self._asked_model is None else self._asked_model.describe()
        return {**super().describe(), "screened": self.screened, "model": model}


class BaMSOO(SearchOptimizer[BaMSOOTree]):
    """Proposes the centres of the leaves of a tree that a Gaussian process finds promising."""

    name = "bamsoo"

    def __init__(self, space: Space, settings: BaMSOOSettings, seed: int) -> None:
        super().__init__(space, settings, seed)
        self._features = Features(space)
        self._fits: dict[bytes, Surrogate | SurrogateError] = {}  # a cache: fitting again gives the same

    def search(self) -> BaMSOOTree:
        """Return the tree before its first evaluation."""
        return BaMSOOTree(self.space, self.settings, self._fit)

    def _fit(self, observations: Observations) -> Surrogate:
        digest = observations.digest()
        if digest not in self._fits:
            while len(self._fits) >= KEPT:
                del self._fits[next(iter(self._fits))]
            try:
                self._fits[digest] = fit(self._features, observations, self.settings.outcome)
            except SurrogateError as error:
                self._fits[digest] = error
        found = self._fits[digest]
        if isinstance(found, SurrogateError):
            raise found
        return found
