"""What Bayesian optimization maximises with several objectives, or with constraints on what was measured.

There is a process for each objective, and one for the slack of each constraint: how far it holds. Like those of
`hpo_cluster.optimizers.bayesian.acquisition`, the functions give logarithms at inputs (``b x 1 x c``).

    larger_front       ``qLogNoisyExpectedHypervolumeImprovement``: the volume that is gained over the observed and the
                       pending points
    weighted           ``qLogNParEGO``: the improvement of one weighting of the objectives, drawn at random
    allowed_improvement  ``qLogNoisyExpectedImprovement`` of one objective, over what satisfies the constraints
    satisfied          ``LogProbabilityOfFeasibility`` of the constraints, which is added to each of them

References: S. Daulton, M. Balandat and E. Bakshy, "Parallel Bayesian Optimization of Multiple Noisy Objectives with
Expected Hypervolume Improvement", NeurIPS 2021 (arXiv:2105.08195); S. Ament, S. Daulton, D. Eriksson, M. Balandat and
E. Bakshy, "Unexpected Improvements to Expected Improvement for Bayesian Optimization", NeurIPS 2023 (arXiv:2310.20708);
J. Knowles, "ParEGO: A Hybrid Algorithm with On-Line Landscape Approximation for Expensive Multiobjective Optimization
Problems", IEEE Transactions on Evolutionary Computation 10(1), 2006.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from botorch.acquisition.analytic import LogProbabilityOfFeasibility
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.multi_objective import logei
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.acquisition.multi_objective.parego import qLogNParEGO
from botorch.acquisition.multi_objective.utils import prune_inferior_points_multi_objective
from botorch.acquisition.objective import GenericMCObjective
from botorch.acquisition.utils import prune_inferior_points
from botorch.models import ModelListGP, SingleTaskGP
from torch import Tensor

from hpo_cluster.optimizers.bayesian.acquisition import LOOKED_AT, LOOKS, Acquisition, sampler_of
from hpo_cluster.optimizers.bayesian.gaussian_process import Array, Process, tensor, together

#: BoTorch would compile a part of the expected hypervolume at its first use: a minute of compiling, for this machine's
#: processor, into the home folder, which other frontends share; a driver killed meanwhile leaves a lock behind that the
#: next one waits for without end. In Python a suggestion takes a quarter longer, and is equal on every machine.
logei._load_attempted = True


@dataclass(frozen=True)
class Processes:
    """The processes of several outcomes, all of the same columns.

    Args:
        objectives: one for each, at least one.
        slacks: one for each constraint; what is below 0 does not satisfy it.
        reference: worst outcomes of interest (``m``), in units of the objectives' outcomes.
        inputs: where outcomes were observed (``n x c``).
    """

    objectives: tuple[Process, ...]
    slacks: tuple[Process, ...]
    reference: Array
    inputs: Array

    @property
    def every(self) -> tuple[Process, ...]:
        """The objectives' processes, then those of the slacks."""
        return (*self.objectives, *self.slacks)

    def model(self) -> SingleTaskGP | ModelListGP:
        """Return the model of all standardised outcomes."""
        return together(self.every)

    def standard_reference(self) -> Tensor:
        """Return the reference in units of the standardised outcomes (``m``)."""
        pairs = zip(self.objectives, self.reference, strict=True)
        return tensor(np.array([(edge - process.location) / process.spread for process, edge in pairs]))

    def constraints(self) -> list[Callable[[Tensor], Tensor]] | None:
        """Return for each constraint what is below 0 where a draw (``... x (m + s)``) satisfies it; None without."""
        found: list[Callable[[Tensor], Tensor]] = [
            partial(_excess, index, -process.location / process.spread)
            for index, process in enumerate(self.slacks, len(self.objectives))
        ]
        return found or None

    def fantasizing(self, inputs: Array) -> Processes:
        """Return the processes that fantasize their own means at `inputs` (``p x c``)."""
        objectives, slacks = (
            tuple(process.fantasizing(inputs) for process in processes) for processes in (self.objectives, self.slacks)
        )
        return replace(self, objectives=objectives, slacks=slacks, inputs=np.concatenate([self.inputs, inputs]))


def larger_front(processes: Processes, pending: Array, draws: int, seed: int) -> Acquisition:
    """Return the logarithm of the expected gain of volume over observed and pending points (``p x c``)."""
    model, reference, constraints = processes.model(), processes.standard_reference(), processes.constraints()
    objective = IdentityMCMultiOutputObjective(outcomes=list(range(len(processes.objectives))))
    best = prune_inferior_points_multi_objective(
        model, _promising(processes), reference, objective=objective, constraints=constraints, num_samples=LOOKS
    )
    return qLogNoisyExpectedHypervolumeImprovement(  # type: ignore[no-any-return]
        model,
        reference,
        best,
        sampler=sampler_of(draws, seed),
        objective=objective,
        constraints=constraints,
        X_pending=_pending(pending),
    )


def weighted(processes: Processes, pending: Array, draws: int, seed: int) -> Acquisition:
    """Return the improvement of a weighting drawn from PyTorch's generator, with pending points (``p x c``)."""
    return qLogNParEGO(  # type: ignore[no-any-return]
        processes.model(),
        _promising(processes),
        sampler=sampler_of(draws, seed),
        objective=IdentityMCMultiOutputObjective(outcomes=list(range(len(processes.objectives)))),
        constraints=processes.constraints(),
        X_pending=_pending(pending),
        prune_baseline=True,
    )


def allowed_improvement(processes: Processes, pending: Array, draws: int, seed: int) -> Acquisition:
    """Return the improvement of the first objective over observed and pending points that satisfy the constraints."""
    model, constraints = processes.model(), processes.constraints()
    objective = GenericMCObjective(lambda draw, X=None: draw[..., 0])  # noqa: N803 - BoTorch's name
    best = prune_inferior_points(
        model, _promising(processes), objective=objective, constraints=constraints, sampler=sampler_of(LOOKS, seed)
    )
    return qLogNoisyExpectedImprovement(  # type: ignore[no-any-return]
        model,
        best,
        sampler=sampler_of(draws, seed),
        objective=objective,
        constraints=constraints,
        X_pending=_pending(pending),
        prune_baseline=False,
    )


def satisfied(processes: Processes) -> Acquisition:
    """Return the logarithm of the probability that all constraints hold."""
    zeros = {i: (-process.location / process.spread, None) for i, process in enumerate(processes.slacks)}
    return LogProbabilityOfFeasibility(together(processes.slacks), zeros)  # type: ignore[no-any-return]


def _promising(processes: Processes) -> Tensor:
    """Return the observed inputs, in their order, that fewest others surpass (at most `LOOKED_AT`).

    Another input surpasses one if its means are above the upper bounds of the other in every objective.
    """
    inputs = processes.inputs
    if len(inputs) > LOOKED_AT:
        found = [process.posterior(inputs) for process in processes.every]
        means = np.stack([mean for mean, _ in found], axis=1)
        upper = means + 2 * np.sqrt(np.stack([variance for _, variance in found], axis=1))
        count = len(processes.objectives)
        zeros = np.array([-process.location / process.spread for process in processes.slacks])
        outside = (upper[:, count:] < zeros).any(axis=1)
        surpassed = (means[:, None, :count] > upper[None, :, :count]).all(axis=2)[~outside].sum(axis=0)
        surpassed = np.where(outside, len(inputs), surpassed)
        inputs = inputs[np.sort(np.argsort(surpassed, kind="stable")[:LOOKED_AT])]
    return tensor(inputs)


def _excess(index: int, zero: float, draws: Tensor) -> Tensor:
    """Return how far the slack of that index falls below 0 in draws (``... x (m + s)``)."""
    return zero - draws[..., index]


def _pending(inputs: Array) -> Tensor | None:
    return tensor(inputs) if len(inputs) else None
