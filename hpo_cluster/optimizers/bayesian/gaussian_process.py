"""The Gaussian process of every optimizer that has a model: BoTorch's ``SingleTaskGP`` with our kernel and priors.

The kernel is a Matern 5/2 with a length-scale for each column and no output scale; the mean is constant, and one noise
level is inferred; outcomes are standardised. The prior of each length-scale is that of ``SingleTaskGP``, a log-normal
that grows with the number of columns; that of the noise is wider and lower, since evaluations of the same configuration
mostly agree. Hyperparameters are fitted by ``fit_gpytorch_mll`` from two starts at once.

This module, `hpo_cluster.optimizers.bayesian.acquisition` and `hpo_cluster.optimizers.bayesian.acquisition_of_several`
alone know BoTorch and GPyTorch. Importing them takes seconds, so that others import these where they use them.

References: M. Balandat et al., "BoTorch: A Framework for Efficient Monte-Carlo Bayesian Optimization", NeurIPS 2020
(arXiv:1910.06403); J. R. Gardner, G. Pleiss, D. Bindel, K. Q. Weinberger and A. G. Wilson, "GPyTorch: Blackbox
Matrix-Matrix Gaussian Process Inference with GPU Acceleration", NeurIPS 2018 (arXiv:1809.11165); C. Hvarfner, E. O.
Hellsten and L. Nardi, "Vanilla Bayesian Optimization Performs Great in High Dimensions", ICML 2024 (arXiv:2402.02229),
for the prior of the length-scales.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from botorch.exceptions.errors import BotorchError, ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.transforms.input import Normalize
from botorch.settings import validate_input_scaling
from botorch.utils.constraints import LogTransformedInterval
from botorch.utils.sampling import manual_seed
from gpytorch.kernels import MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import LogNormalPrior
from gpytorch.settings import cholesky_max_tries, max_cholesky_size
from linear_operator.utils.warnings import NumericalWarning
from numpy.typing import NDArray
from torch import Tensor

from hpo_cluster.optimizers.bayesian.encoding import SCALE_SPREAD, likeliest_scale, scale_location

Array: TypeAlias = NDArray[np.float64]
Module = TypeVar("Module", bound=torch.nn.Module)

#: Upper bounds of the length-scales and of the noise variance in a fit, and the most steps it takes.
MOST_SCALE, MOST_NOISE, STEPS = 100.0, 1.0, 60

#: By what share the bounds of a fit are wider: the libraries keep them, and their logarithms, in single precision.
ROUNDED = 1e-6

#: Location and scale of the logarithm of the noise variance.
NOISE_PRIOR = (-4.0, 2.0)

#: Logarithms of the noise variance that a fit starts from.
NOISE_STARTS = (-8.0, -2.0)

#: Matrices up to this size are factorised, larger ones are solved iteratively; and how often more is added to the
#: diagonal of one that has no factor (ten times as much each time, from 1e-8 on).
FACTORISED, TRIES = 2000, 6

#: Inputs whose posterior is computed at once, and the least variance of one.
AT_ONCE, LEAST_VARIANCE = 512, 1e-10


class LowerBounds(NamedTuple):
    """Lower bounds of the length-scales and of the noise variance in a fit."""

    scale: float = 0.02
    noise: float = 1e-6


#: The bounds of a fit unless others are given.
LEAST = LowerBounds()


@contextmanager
def computing(seed: int) -> Iterator[None]:
    """Draw from a seed, factorise what can be factorised, and raise `ArithmeticError` where the numbers fail.

    Args:
        seed: of what BoTorch draws; PyTorch's generator is left as it was.
    """
    with manual_seed(seed), cholesky_max_tries(TRIES), max_cholesky_size(FACTORISED), warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)  # of what was added to a diagonal
        try:
            yield
        except (BotorchError, ModelFittingError, RuntimeError) as error:  # no factor, no finite number, no gradient
            raise ArithmeticError(f"{type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Process:
    """A process conditioned on observations.

    Args:
        gp: of the standardised outcomes.
        inputs: ``n x c``.
        outcomes: standardised (``n``).
        units: of the inputs (``c``): the length-scales are in units of them; None: 1.
        location: of the outcomes before they were standardised.
        spread: likewise.
    """

    gp: SingleTaskGP
    inputs: Array
    outcomes: Array
    units: Array | None
    location: float
    spread: float

    @classmethod
    def fitted(cls, inputs: Array, outcomes: Array, least: LowerBounds = LEAST, units: Array | None = None) -> Process:
        """Fit by maximum a posteriori from two fixed starts: one with little noise, one with much.

        The density often has one maximum with little noise and short length-scales, and one with much noise and long
        ones. Both starts have the length-scales at the modes of their priors. A batch of two processes is fitted, so
        that each step evaluates both.

        Args:
            inputs: ``n x c``, n at least 2.
            outcomes: ``n``, not all equal, in any units.
            least: bounds of what is fitted.
            units: see the class.

        Raises:
            ArithmeticError: the fit failed.
        """
        y, location, spread = _standardised(outcomes)
        columns = inputs.shape[1]
        mode = likeliest_scale(columns)
        starts = len(NOISE_STARTS)
        gp = _made(inputs, np.stack([y] * starts, axis=1), units, least)
        gp.covar_module.lengthscale = torch.full((starts, 1, columns), min(max(mode, least.scale), MOST_SCALE))
        gp.likelihood.noise = torch.tensor([[max(math.exp(start), least.noise)] for start in NOISE_STARTS])
        mll = _freeable(ExactMarginalLogLikelihood(gp.likelihood, gp))
        with computing(0):
            fit_gpytorch_mll(
                mll,
                optimizer_kwargs={"options": {"maxiter": STEPS}},
                max_attempts=1,  # others would begin at random
                warning_handler=lambda warning: True,  # a search that ends early is a fit all the same
            )
            mll.train()
            with torch.no_grad():
                best = int(mll(gp(*gp.train_inputs), gp.train_targets).argmax())
            scales, noise = gp.covar_module.lengthscale[best, 0].detach(), gp.likelihood.noise[best, 0].item()
            return cls._with(inputs, y, units, scales, noise, location, spread)

    @classmethod
    def conditioned(cls, inputs: Array, outcomes: Array, scales: Sequence[float], noise: float) -> Process:
        """Return the process of outcomes (in any units) with given hyperparameters, and the likeliest mean."""
        y, location, spread = _standardised(outcomes)
        return cls._with(inputs, y, None, torch.tensor(scales, dtype=torch.float64), noise, location, spread)

    @classmethod
    def _with(
        cls,
        inputs: Array,
        y: Array,
        units: Array | None,
        scales: Tensor,
        noise: float,
        location: float,
        spread: float,
        mean: float | None = None,
    ) -> Process:
        """Return the process of standardised outcomes; a mean that is None is the likeliest one given the rest."""
        gp = _made(inputs, y[:, None], units, LEAST)
        gp.covar_module.lengthscale = scales.clamp(LEAST.scale, MOST_SCALE)
        gp.likelihood.noise = min(max(noise, LEAST.noise), MOST_NOISE)
        gp.requires_grad_(False)
        with computing(0):
            gp.mean_module.constant = _likeliest_mean(gp) if mean is None else mean
        gp.eval()
        return cls(gp, inputs, y, units, location, spread)

    def conditioned_on(self, inputs: Array, outcomes: Array) -> Process:
        """Return the process of other observations (``n x c`` and ``n``, in any units) with these hyperparameters."""
        y, location, spread = _standardised(outcomes)
        return self._with(inputs, y, self.units, self._lengthscale, self.noise, location, spread)

    def fantasizing(self, inputs: Array) -> Process:
        """Return the process that fantasizes its own mean at `inputs` (``m x c``; kriging believer)."""
        if len(inputs) == 0:
            return self
        every, y = np.concatenate([self.inputs, inputs]), np.concatenate([self.outcomes, self.means(inputs)])
        return self._with(every, y, self.units, self._lengthscale, self.noise, self.location, self.spread, self.mean)

    @property
    def _lengthscale(self) -> Tensor:
        return self.gp.covar_module.lengthscale[0]  # type: ignore[no-any-return]

    @property
    def scales(self) -> Array:
        """The length-scales (``c``)."""
        return np.asarray(self._lengthscale.numpy(), dtype=np.float64)

    @property
    def noise(self) -> float:
        """The variance of the noise."""
        return float(self.gp.likelihood.noise)

    @property
    def mean(self) -> float:
        """The constant mean."""
        return float(self.gp.mean_module.constant)

    @cached_property
    def caches(self) -> tuple[Tensor, Tensor]:
        """What GPyTorch keeps: the weights of the mean (``n``), and a root of the inverse covariance of the outcomes.

        The root is ``n x n``; the root times its transpose is the inverse.
        """
        with computing(0), torch.no_grad():
            self.gp.posterior(tensor(self.inputs[:1]))
            strategy = self.gp.prediction_strategy
            return strategy.mean_cache, strategy.covar_cache

    def covariance(self, inputs: Tensor, others: Tensor) -> Tensor:
        """Return the prior covariance (``m x k``) of the function at inputs (``m x c``) and at others (``k x c``)."""
        found: Tensor = self.gp.covar_module.forward(*map(self.gp.transform_inputs, (inputs, others)))
        return found

    def means(self, inputs: Array) -> Array:
        """Return the posterior mean (``m``) at inputs (``m x c``), standardised."""
        with computing(0), torch.no_grad():
            weights, every = self.caches[0], tensor(self.inputs)
            return np.asarray((self.covariance(tensor(inputs), every) @ weights).numpy() + self.mean)

    def posterior(self, inputs: Array) -> tuple[Array, Array]:
        """Return mean and variance (``m`` each) of the noiseless function at inputs (``m x c``), standardised.

        BoTorch would compute the joint covariance of all inputs for it.
        """
        means, variances = np.empty(len(inputs)), np.empty(len(inputs))
        with computing(0), torch.no_grad():
            (weights, root), every = self.caches, tensor(self.inputs)
            for i in range(0, len(inputs), AT_ONCE):
                covariance = self.covariance(tensor(inputs[i : i + AT_ONCE]), every)
                explained = (covariance @ root).square().sum(dim=1)
                means[i : i + AT_ONCE] = (covariance @ weights).numpy() + self.mean
                variances[i : i + AT_ONCE] = (1 - explained).clamp(min=LEAST_VARIANCE).numpy()
        return means, variances

    def sample(self, inputs: Array, normals: Array) -> Array:
        """Return joint draws (``m x k``) at inputs (``m x c``) from standard normal numbers (``m x k``)."""
        with computing(0), torch.no_grad():
            posterior = self.gp.posterior(tensor(inputs))
            count = normals.shape[1]
            drawn = posterior.rsample_from_base_samples(torch.Size([count]), tensor(normals.T))
            return np.asarray(drawn[:, :, 0].T.numpy(), dtype=np.float64)


def together(processes: Sequence[Process]) -> SingleTaskGP | ModelListGP:
    """Return one model of the standardised outcomes of several processes, in their order.

    Processes of the same inputs become a batch, whose posterior costs half as much as those of two models.
    """
    first = processes[0]
    if len(processes) == 1 or not all(np.array_equal(process.inputs, first.inputs) for process in processes[1:]):
        return _freeable(ModelListGP(*(process.gp for process in processes)))
    gp = _made(first.inputs, np.stack([process.outcomes for process in processes], axis=1), first.units, LEAST)
    gp.covar_module.lengthscale = torch.stack([process._lengthscale for process in processes])[:, None]
    gp.likelihood.noise = torch.tensor([[process.noise] for process in processes], dtype=torch.float64)
    gp.requires_grad_(False)
    gp.mean_module.constant = torch.tensor([process.mean for process in processes], dtype=torch.float64)
    return gp.eval()


def tensor(array: Array) -> Tensor:
    """Return an array as a tensor of double precision."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))


def _made(inputs: Array, y: Array, units: Array | None, least: LowerBounds) -> SingleTaskGP:
    """Return an untrained process of standardised outcomes (``n x k``): k processes of the same inputs."""
    columns, batch = inputs.shape[1], torch.Size([y.shape[1]] if y.shape[1] > 1 else [])
    kernel = MaternKernel(
        nu=2.5,
        ard_num_dims=columns,
        batch_shape=batch,
        lengthscale_prior=LogNormalPrior(scale_location(columns), SCALE_SPREAD),
        lengthscale_constraint=_between(least.scale, MOST_SCALE),
    )
    likelihood = GaussianLikelihood(
        noise_prior=LogNormalPrior(*NOISE_PRIOR),
        noise_constraint=_between(least.noise, MOST_NOISE),
        batch_shape=batch,
    )
    transform: Any = None
    if units is not None:
        transform = Normalize(columns, bounds=tensor(np.stack([np.zeros(columns), units])))
    with validate_input_scaling(False):  # outcomes that were standardised together need not be so in part
        gp = SingleTaskGP(
            tensor(inputs),
            tensor(y),
            likelihood=likelihood,
            covar_module=kernel,
            outcome_transform=None,
            input_transform=transform,
        )
    return _freeable(gp.double())


def _freeable(module: Module) -> Module:
    """Return a module of GPyTorch that is freed, with its matrices, as soon as nothing refers to it.

    GPyTorch gives each module a hook for loading a state, which refers to the module. With it hundreds of processes,
    several megabytes each, would wait for the garbage collector.
    """
    module._load_state_dict_pre_hooks.clear()
    return module


def _between(low: float, high: float) -> LogTransformedInterval:
    """Return the bounds of a hyperparameter, which is fitted in its logarithm."""
    return LogTransformedInterval(low * (1 - ROUNDED), high * (1 + ROUNDED), initial_value=math.sqrt(low * high))


def _likeliest_mean(gp: SingleTaskGP) -> float:
    """Return the constant mean that is best given the other hyperparameters (generalised least squares)."""
    inputs = gp.transform_inputs(gp.train_inputs[0])
    covariance = gp.covar_module(inputs).add_diagonal(gp.likelihood.noise)
    ones = torch.ones_like(gp.train_targets)
    solved = covariance.solve(ones[:, None])[:, 0]
    return float(solved @ gp.train_targets / solved.sum())


def _standardised(outcomes: Array) -> tuple[Array, float, float]:
    """Return the outcomes (``n``) scaled to mean 0 and variance 1, and their former mean and deviation.

    They are scaled by a power of two first, which rounds nothing: squares of extreme numbers would overflow or vanish.
    """
    unit = int(np.frexp(np.abs(outcomes).max())[1])
    shares = np.ldexp(outcomes, -unit)
    location, spread = float(shares.mean()), float(shares.std(ddof=1))
    return (shares - location) / spread, float(np.ldexp(location, unit)), float(np.ldexp(spread, unit))
