"""Bayesian optimization: a Gaussian process and the noisy expected improvement, without any barrier between trials.

After an initial design, each proposal maximises an acquisition function of a process fitted to what was observed.
Trials in flight take part in it (their outcomes are averaged over), so the next one can be proposed as soon as a worker
is free. ``acquisition: log_ei`` with one worker is the BO-GP of the study of LLM fine-tuning.

References: S. Ament, S. Daulton, D. Eriksson, M. Balandat and E. Bakshy, "Unexpected Improvements to Expected
Improvement for Bayesian Optimization", NeurIPS 2023 (arXiv:2310.20708), for LogEI and qLogNEI; B. Letham, B. Karrer,
G. Ottoni and E. Bakshy, "Constrained Bayesian Optimization with Noisy Experiments", Bayesian Analysis 14(2), 495-519,
2019, for the noisy expected improvement; D. R. Jones, M. Schonlau and W. J. Welch, "Efficient Global Optimization of
Expensive Black-Box Functions", Journal of Global Optimization 13, 455-492, 1998; C. Hvarfner, D. Stoll, A. Souza,
M. Lindauer, F. Hutter and L. Nardi, "piBO: Augmenting Acquisition Functions with User Beliefs for Bayesian
Optimization", ICLR 2022 (arXiv:2204.11051), for the priors.

Symbols: ``x`` point, ``f`` the process (see `hpo_cluster.surrogate`), ``X`` observed points, ``P`` pending points,
``y+`` best outcome observed.

    qlognei   log E[ max(0, f(x) - max f(X u P)) ], expectation over the joint posterior of f at x, X and P
    log_ei    log E[ max(0, f(x) - y+) ], analytic; with P not empty, log of the expected *joint* improvement of x and P
              over y+ by Monte Carlo (qLogEI with P appended), because the analytic form knows no pending points

Where the space has priors, their joint density ``pi`` has a say that decays: what is maximised is the acquisition's
logarithm plus ``prior_weight / n * log pi(x)`` with ``n`` proposals since the initial design (piBO), and the initial
design lies denser where the priors are high.

Conditional parameters: an inactive one is at 0.5 for the process (one-hot columns share 1), gradient steps move the
active ones alone, and the local search changes the parents. Constraints: samples are drawn until enough are allowed;
gradient steps that lead out of what is allowed are taken back along their line to its edge, from where, if they bound a
real parameter, a random local search goes on.

Deviations from the papers: the process sees the outcomes of `outcome`, drawn in below their median by default; trials
that diverged or were infeasible count as the worst value so far, there is no separate model of feasibility yet, so
nothing more than a low value keeps the search away from them; integers and choices are relaxed for the gradient steps,
then rounded, improved by a local search over their values and polished in the real parameters alone; a configuration
that was evaluated or is in flight is never proposed again unless `replicates` allows it, so that the best of the
candidates that remain is taken; with more than `AVERAGED` pending, the process believes its own mean at the `BELIEVED`
best of them instead (kriging believer), since averaging over all would cost too much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.design import Design, lhs_block, sobol_block
from hpo_cluster.optimizers.rows import Key, Memory, Rows, free_point, key_of, remaining_points
from hpo_cluster.space import Categorical, Float, Integer, Space
from hpo_cluster.surrogate import Features, FittedModels, Observations, Outcome, Surrogate, SurrogateError, quiet_torch
from hpo_cluster.trial import Ask, Proposal, State, derive_seed

if TYPE_CHECKING:
    import pandas as pd

Points: TypeAlias = NDArray[np.float64]

#: Finite spaces with at most this many free configurations are scored whole instead of searched.
ENUMERATED = 2000

#: Blocks of samples drawn at most until enough of them are allowed.
MOST_BLOCKS = 32

#: Standard deviations, as shares of an axis, of the rounds of the random search for what constraints allow.
STEPS = (0.1, 0.03, 0.01, 0.003)

#: Pending points that are averaged over at most; of more, the process believes its mean.
AVERAGED = 48

#: Pending points that the process believes in at most: those of the highest mean.
BELIEVED = 256

#: Steps to other values that the local search tries along an integer axis, in both directions.
STRIDES = (1, 2, 4, 8)


class BOSettings(OptimizerSettings):
    """Settings of Bayesian optimization."""

    acquisition: Literal["qlognei", "log_ei"] = Field(
        default="qlognei",
        description="qlognei: noisy expected improvement; log_ei: expected improvement over the best value observed",
    )
    initial: int = Field(default=10, ge=1, le=100_000, description="trials of the initial design before the model")
    initial_design: Literal["lhs", "sobol"] = Field(default="lhs", description="how the initial trials are spread")
    outcome: Outcome = Field(
        default="soft",
        description="what the model sees of values: soft draws those below the median nearer to it by a logarithm, "
        "clip raises them to it, winsor raises what is far below the upper half, raw leaves them alone",
    )
    replicates: bool = Field(
        default=False, description="allow a configuration that was evaluated before to be proposed again"
    )
    prior_weight: float = Field(
        default=5.0, ge=0, description="say of the space's priors, divided by the number of proposals; 0: none"
    )
    restarts: int = Field(default=4, ge=1, le=64, description="starting points of the acquisition's optimization")
    raw_samples: int = Field(default=384, ge=8, le=65536, description="points scored to choose the starts from")
    mc_samples: int = Field(default=128, ge=16, le=4096, description="Monte Carlo samples of the acquisition function")


class BO:
    """Gaussian process and expected improvement.

    Args:
        space: what to search.
        settings: acquisition, initial design, outcome.
        seed: of the campaign.
    """

    def __init__(self, space: Space, settings: BOSettings, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self.features = Features(space)
        if settings.initial_design == "lhs":
            block = lhs_block(settings.initial, space.dim, seed)
        else:
            block = sobol_block(space.dim, seed)
        self._design = Design(space, block, seed)
        self._models = FittedModels()  # a cache: fitting again gives the same
        self._memory: Memory = {}  # likewise

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        rows = Rows.read(self.space, history, self._memory)
        taken = rows.taken()
        pending = [row.point for row in rows.pending]
        begun = sum(row.state not in (State.FAILED, State.CANCELLED) for row in rows)
        observations = Observations.of(rows)
        decision: dict[str, Any] = {
            "optimizer": "bo",
            "observations": len(observations.trials),
            "pending": len(pending),
            "incumbent": None if rows.best is None else {"trial": rows.best.trial, "target": rows.best.target},
        }
        proposals: list[Proposal] = []
        for trial in range(rows.next_trial, rows.next_trial + n):
            found = self._propose(trial, begun + len(proposals), taken, pending, rows, decision)
            if found is None:
                decision["exhausted"] = True
                break
            point, info = found
            decision["phase"] = info["phase"]
            taken.add(key_of(self.space, point))
            pending.append(point)
            proposals.append(Proposal(self.space.decode(point), info))
        return Ask(tuple(proposals), decision=decision)

    def _propose(
        self,
        trial: int,
        begun: int,
        taken: set[Key],
        pending: Sequence[Points],
        rows: Rows,
        decision: dict[str, Any],
    ) -> tuple[Points, dict[str, Any]] | None:
        """Canonical point of a trial and how it was found; what the model is goes into `decision`."""
        if begun < self.settings.initial:
            return self._designed(trial, taken, {"phase": "initial"})
        try:
            surrogate = self._models.model_of(self.features, rows, self.settings.outcome, derive_seed(self.seed, "fit"))
            if len(surrogate.observations) < decision["observations"]:
                decision["conditioned_on"] = len(surrogate.observations)
            decision["model"] = {"outcome": self.settings.outcome, **surrogate.describe()}
            seed = derive_seed(self.seed, "ask", trial)
            weight = self.settings.prior_weight / (begun - self.settings.initial + 1) if self.space.has_prior else 0.0
            found = _search(self.space, surrogate, pending, taken, self.settings, weight, seed)
        except SurrogateError as error:
            decision["fallback"] = str(error)
            return self._designed(trial, taken, {"phase": "model", "fallback": str(error)})
        if found is None:
            return None
        point, value = found
        return point, {"phase": "model", "acquisition": float(f"{value:.6g}")}

    def _designed(self, trial: int, taken: set[Key], info: dict[str, Any]) -> tuple[Points, dict[str, Any]] | None:
        found = self._design.next(taken, trial)
        return None if found is None else (found[0], {**info, "point": found[1]})


def _search(
    space: Space,
    surrogate: Surrogate,
    pending: Sequence[Points],
    taken: set[Key],
    settings: BOSettings,
    prior_weight: float,
    seed: int,
) -> tuple[Points, float] | None:
    """The free canonical point (``d``) of the highest acquisition value found, and that value.

    Args:
        space: where to search.
        surrogate: fitted.
        pending: canonical points in flight.
        taken: configurations that may not be proposed, unless the settings allow replicates.
        settings: of the optimizer.
        prior_weight: of the logarithm of the priors' density beside that of the acquisition.
        seed: of this proposal.

    Returns:
        None where no configuration is free.

    Raises:
        SurrogateError: the acquisition function has no finite value anywhere.
    """
    import torch

    banned: set[Key] = set() if settings.replicates else taken
    rng = np.random.default_rng(seed)
    with quiet_torch(seed):
        try:
            expected = _acquisition(surrogate, pending, settings, seed)

            def acquisition(columns: torch.Tensor) -> torch.Tensor:
                value: torch.Tensor = expected(columns)
                if prior_weight > 0:
                    value = value + prior_weight * surrogate.features.log_prior(columns.squeeze(-2))
                return value

            def score(points: Points) -> NDArray[np.float64]:
                with torch.no_grad():
                    columns = surrogate.tensor(points).unsqueeze(1)
                    parts = [expected(columns[i : i + 512]) for i in range(0, len(columns), 512)]
                values = np.asarray(torch.cat(parts).numpy(), dtype=np.float64)
                return values + prior_weight * space.log_prior(points) if prior_weight > 0 else values

            if space.size - len(banned) <= ENUMERATED:
                candidates = remaining_points(space, banned)
            else:
                candidates = _climb(space, surrogate, acquisition, score, settings, rng)
            candidates = _free(space, candidates, banned)
            candidates = candidates[space.allowed(candidates)]
            if len(candidates) == 0:
                rest = free_point(space, banned, rng)
                if rest is None:
                    return None
                candidates = rest[None]
            values = score(candidates)
        except (RuntimeError, ValueError, ArithmeticError) as error:
            raise SurrogateError(f"the acquisition failed: {type(error).__name__}: {error}") from error
    if not np.isfinite(values).any():
        raise SurrogateError("the acquisition is not finite at any candidate")
    best = int(np.nanargmax(np.where(np.isfinite(values), values, -np.inf)))
    return candidates[best], float(values[best])


def _acquisition(surrogate: Surrogate, pending: Sequence[Points], settings: BOSettings, seed: int) -> Any:
    """The acquisition function, of columns (``b x 1 x c``) to values (``b``)."""
    import torch
    from botorch.acquisition.analytic import LogExpectedImprovement
    from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
    from botorch.sampling.normal import SobolQMCNormalSampler

    if len(pending) > AVERAGED:
        points = np.array(pending)
        order = np.argsort(-surrogate.mean(points), kind="stable")[:BELIEVED]
        surrogate, pending = surrogate.believing(points[order]), ()
    sampler = SobolQMCNormalSampler(torch.Size([settings.mc_samples]), seed=seed)
    x_pending = surrogate.tensor(np.array(pending)) if pending else None
    if settings.acquisition == "qlognei":
        return qLogNoisyExpectedImprovement(
            surrogate.model,
            X_baseline=surrogate.tensor(surrogate.observations.points),
            sampler=sampler,
            X_pending=x_pending,
            prune_baseline=True,
            incremental=True,
        )
    best = float(surrogate.outcomes.max())
    if x_pending is None:
        return LogExpectedImprovement(surrogate.model, best_f=best)
    return qLogExpectedImprovement(surrogate.model, best_f=best, sampler=sampler, X_pending=x_pending)


def _climb(
    space: Space,
    surrogate: Surrogate,
    acquisition: Any,
    score: Callable[[Points], NDArray[np.float64]],
    settings: BOSettings,
    rng: np.random.Generator,
) -> Points:
    """Canonical candidates (``m x d``): samples, and where gradients and local search lead from the best of them."""
    samples = space.snap(np.concatenate([_spread(space, settings, rng), _around(surrogate, settings, rng)]))
    samples = samples[space.allowed(samples)]
    if len(samples) == 0:
        return samples
    values = score(samples)
    starts = samples[_diverse(samples, values, settings.restarts)]
    mixed = any(not isinstance(parameter, Float) for _, parameter in space)
    real = any(isinstance(parameter, Float) for _, parameter in space)
    climbed = _ascend(surrogate, acquisition, starts, relax=True)
    candidates = [samples, climbed]
    if mixed:
        candidates.append(_improve(space, score, climbed))
        if real:
            candidates.append(_ascend(surrogate, acquisition, candidates[-1], relax=False))
    bounded = {name for constraint in space.constraints for name in constraint.names}
    if any(isinstance(space.parameters[name], Float) for name in bounded):
        candidates.append(_wander(space, score, candidates[-1], rng))
    return np.concatenate(candidates)


def _spread(space: Space, settings: BOSettings, rng: np.random.Generator) -> Points:
    """Points (``m x d``) all over the space; where it has priors every other one of them; where not all are allowed, as
    many as it takes for `raw_samples` that are, within reason."""
    from scipy.stats import qmc

    engine = qmc.Sobol(space.dim, rng=rng)
    blocks, wanted = list[Points](), settings.raw_samples
    for _ in range(MOST_BLOCKS if space.constraints else 1):
        points = np.asarray(engine.random(settings.raw_samples), dtype=np.float64)
        points[::2] = space.warp(points[::2])
        blocks.append(points[space.allowed(points)])
        wanted -= len(blocks[-1])
        if wanted <= 0:
            break
    return np.concatenate(blocks)


def _around(surrogate: Surrogate, settings: BOSettings, rng: np.random.Generator) -> Points:
    """Points near the five best observed: each with some coordinates moved a little or more."""
    best = np.argsort(-surrogate.observations.targets, kind="stable")[:5]
    count = settings.raw_samples // 4
    centres = surrogate.observations.points[best[np.arange(count) % len(best)]]
    dim = centres.shape[1]
    moved = rng.random(centres.shape) < max(0.3, min(1.0, 3 / dim))
    step = rng.normal(size=centres.shape) * np.where(rng.random((count, 1)) < 0.5, 0.02, 0.15)
    return np.clip(centres + np.where(moved, step, 0.0), 0.0, 1.0)


def _diverse(points: Points, values: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of high values that lie apart: greedily the best, at least 0.1 of an axis from those chosen before."""
    order = [int(i) for i in np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")]
    chosen: list[int] = []
    for i in order:
        if len(chosen) == count:
            break
        if all(np.abs(points[i] - points[j]).max() >= 0.1 for j in chosen):
            chosen.append(i)
    chosen += [i for i in order[:count] if i not in chosen][: count - len(chosen)]
    return np.array(chosen, dtype=np.int64)


def _ascend(surrogate: Surrogate, acquisition: Any, starts: Points, *, relax: bool) -> Points:
    """Canonical points (``k x d``) after L-BFGS-B on the columns from each start.

    One-hot columns and those of inactive parameters and of parents stay as they are; those of integers and ordered
    choices move with `relax`, and are rounded then. What the constraints do not allow is drawn back towards its start.
    """
    import torch
    from botorch.generation import gen_candidates_scipy

    features, space = surrogate.features, surrogate.features.space
    free = np.zeros((len(starts), features.dim), dtype=bool)
    active, parents = space.active(starts), space.parents
    for axis, ((name, parameter), start, one_hot) in enumerate(
        zip(space, features.start, features.one_hot, strict=True)
    ):
        if isinstance(parameter, Float) or (relax and not one_hot and name not in parents):
            free[:, start] = active[:, axis]
    if not free.any():
        return starts
    x = surrogate.tensor(starts).unsqueeze(1)
    moves = torch.from_numpy(free).unsqueeze(1)
    low, high = torch.where(moves, 0.0, x), torch.where(moves, 1.0, x)
    every = bool(free.all())
    climbed, _ = gen_candidates_scipy(
        x,
        acquisition,
        lower_bounds=0.0 if every else low,
        upper_bounds=1.0 if every else high,
        options={"maxiter": 60},
        use_parallel_mode=every,
    )
    return _drawn_back(space, starts, features.decode(climbed.detach().squeeze(1).numpy()))


def _drawn_back(space: Space, starts: Points, ends: Points) -> Points:
    """Canonical points (``k x d``): each end that is allowed, else the point next to it, on the way there, that is."""
    out = ends.copy()
    for i in np.flatnonzero(~space.allowed(ends)):
        out[i], low, high = starts[i], 0.0, 1.0
        for _ in range(20):
            share = (low + high) / 2
            point = space.snap((starts[i] + share * (ends[i] - starts[i]))[None])
            if space.allowed(point)[0]:
                out[i], low = point[0], share
            else:
                high = share
    return out


def _wander(
    space: Space, score: Callable[[Points], NDArray[np.float64]], starts: Points, rng: np.random.Generator
) -> Points:
    """Canonical points (``k x d``) after random steps, ever smaller, from each start to what is better and allowed."""
    current, values = starts.copy(), score(starts)
    for step in STEPS:
        for i in range(len(current)):
            count = min(8 * space.dim, 64)
            moved = rng.random((count, space.dim)) < max(0.3, 2 / space.dim)
            steps = np.where(moved, rng.normal(scale=step, size=(count, space.dim)), 0.0)
            points = space.snap(np.clip(current[i] + steps, 0.0, 1.0))
            points = points[space.allowed(points)]
            if len(points) == 0:
                continue
            scores = np.nan_to_num(score(points), nan=-np.inf)
            if scores.max() > values[i]:
                current[i], values[i] = points[int(scores.argmax())], scores.max()
    return current


def _improve(space: Space, score: Callable[[Points], NDArray[np.float64]], starts: Points, rounds: int = 6) -> Points:
    """Canonical points (``k x d``) after a steepest local search over the values of the discrete parameters."""
    current, values = starts.copy(), score(starts)
    active = list(range(len(current)))
    for _ in range(rounds):
        moves = {i: _neighbours(space, current[i]) for i in active}
        if not any(len(m) for m in moves.values()):
            break
        scores = np.split(score(np.concatenate(list(moves.values()))), np.cumsum([len(m) for m in moves.values()])[:-1])
        active = []
        for (i, neighbours), neighbour_values in zip(moves.items(), scores, strict=True):
            if len(neighbours) == 0:
                continue
            best = int(np.argmax(np.nan_to_num(neighbour_values, nan=-np.inf)))
            if neighbour_values[best] > values[i] + 1e-9:
                current[i], values[i] = neighbours[best], neighbour_values[best]
                active.append(i)
        if not active:
            break
    return current


def _neighbours(space: Space, point: Points) -> Points:
    """Allowed canonical points (``m x d``) that differ from `point` (``d``) in one active discrete parameter.

    Parameters that become active by that take the middle of their range.
    """
    out = []
    active, parents = space.active(point[None])[0], space.parents
    for axis, (name, parameter) in enumerate(space):
        if isinstance(parameter, Float) or not active[axis]:
            continue
        for u in parameter_neighbours(parameter, float(point[axis])):
            neighbour = point.copy()
            neighbour[axis] = u
            out.append(space.snap(neighbour[None])[0] if name in parents else neighbour)
    found = np.array(out, dtype=np.float64).reshape(-1, len(point))
    return found[space.allowed(found)]


def parameter_neighbours(parameter: Integer | Categorical, u: float) -> list[float]:
    """Canonical coordinates near `u`: every other value of an unordered choice, `STRIDES` to both sides otherwise."""
    if isinstance(parameter, Categorical):
        here, last = parameter.choices.index(parameter.decode(u)), len(parameter.choices) - 1
        indices = _strides(here, 0, last) if parameter.ordered else [i for i in range(last + 1) if i != here]
        return [(index + 0.5) / (last + 1) for index in indices]
    return [parameter.encode(value) for value in _strides(parameter.decode(u), parameter.low, parameter.high)]


def _strides(here: int, low: int, high: int) -> list[int]:
    values = {here + sign * stride for stride in (*STRIDES, max(1, (high - low) // 6)) for sign in (-1, 1)}
    return sorted(value for value in values if low <= value <= high)


def _free(space: Space, points: Points, banned: set[Key]) -> Points:
    """The points whose configuration is free, each configuration once, in order."""
    seen = set(banned)
    kept = []
    for point in points:
        key = key_of(space, point)
        if key not in seen:
            seen.add(key)
            kept.append(point)
    return np.array(kept, dtype=np.float64).reshape(-1, space.dim)
