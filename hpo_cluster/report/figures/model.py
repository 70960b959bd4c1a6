"""The model of the objective: slices through it, contours, and the importance of the parameters.

The model is the Gaussian process of `bo` (`hpo_cluster.optimizers.bayesian.surrogate`) of the values as measured. A
trial that diverged counts as the worst value.

Importance is the total-effect index of I. M. Sobol: the share of the function's variance over the whole space that goes
away if everything but the parameter is known, interactions included. It is computed on joint draws from the model by
M. J. W. Jansen's estimator, so that the spread over the draws says how much the trials leave open.

References: I. M. Sobol, "Global sensitivity indices for nonlinear mathematical models and their Monte Carlo estimates",
Mathematics and Computers in Simulation 55, 2001; M. J. W. Jansen, "Analysis of variance designs for model output",
Computer Physics Communications 117, 1999; F. Hutter, H. Hoos and K. Leyton-Brown, "An Efficient Approach for Assessing
Hyperparameter Importance", ICML 2014, for the use of a model in place of the objective.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.report.data import Campaign, shorten
from hpo_cluster.report.figures.description import (
    Axis,
    Band,
    Bars,
    Contours,
    Figure,
    Layer,
    Line,
    Panel,
    Points,
)
from hpo_cluster.report.figures.parameters import columns_for
from hpo_cluster.report.figures.shared import MOST_SMALL, ROUNDING, numbers, parameter_axis, thinned, with_margins
from hpo_cluster.space import Categorical, Parameter
from hpo_cluster.trial import State

if TYPE_CHECKING:
    from hpo_cluster.optimizers.bayesian.surrogate import Surrogate

#: Points of a slice, and the width of its band in standard deviations: 95 % of a normal distribution.
STEPS, WIDTH = 61, 1.96
#: Most numbers of which each pair has contours, cells along each, and edges of the areas.
MOST_AXES, CELLS, LEVELS = 3, 31, 13
#: Points in all at which the importance is computed, most points of one sample, and draws from the model.
MOST_INPUTS, MOST_SAMPLE, DRAWS = 2560, 256, 32
#: Quantiles of the draws that the ends of the uncertainty are.
ENDS = 0.1, 0.9


def slices(campaign: Campaign) -> Figure | None:
    """Return the model's mean and band along each parameter, the others as in the recommended trial."""
    model, trial = campaign.model, campaign.recommended
    if model is None or trial is None:
        return None
    row = campaign.record.trials[trial]
    active, base = row.parameters, campaign.space.encode(row.parameters)
    sign = 1.0 if campaign.maximize else -1.0
    panels, ends = [], [float(row.value or 0.0)]
    for axis, (name, parameter) in enumerate(campaign.space):
        if name not in active or parameter.fixed:
            continue
        choices = parameter.choices if isinstance(parameter, Categorical) else ()
        at = (np.arange(len(choices)) + 0.5) / len(choices) if choices else np.linspace(0, 1, STEPS)
        points = np.repeat(base[None], len(at), axis=0)
        points[:, axis] = [parameter.encode(parameter.decode(u)) for u in at]
        mean, spread = model.posterior(points, np.empty((0, campaign.space.dim)))
        height, half = sign * mean, WIDTH * spread
        ends += [float((height - half).min()), float((height + half).max())]
        layers: list[Layer]
        if choices:
            x = numbers(range(len(choices)))
            layers = [Points(x, numbers(height), "model", "model, with 95 % of it", (), (0.0,) * len(x), numbers(half))]
            here = float(choices.index(active[name]))
        else:
            x = numbers(parameter.decode(u) for u in at)
            layers = [
                Band(x, numbers(height - half), numbers(height + half), "model", "95 % of the model"),
                Line(x, numbers(height), "model", "mean of the model"),
            ]
            here = float(active[name])
        layers.append(Points((here,), (float(row.value or 0.0),), "best", f"trial {trial}", (trial,)))
        panels.append((parameter_axis(name, parameter), layers))
    if not panels:
        return None
    y = Axis(campaign.metric, False, *with_margins(ends, log=False))  # one for all: what is flat shall look flat
    reading = (
        f"What the model expects if one parameter of trial {trial} (the recommended one) is changed and the others "
        "stay. The band holds the function, without the noise of one measurement, with 95 % probability, if the "
        "model is right; where it is wide, nobody has looked. All panels have the same heights."
    )
    drawn = [Panel(x, y, layers, height=2.7) for x, layers in panels]
    return Figure("Slices of the model", reading, drawn, columns_for(len(panels)))


def contours(campaign: Campaign) -> Figure | None:
    """Return the model's mean over the pairs of the numbers that it depends on most, with the trials in flight."""
    model, trial = campaign.model, campaign.recommended
    if model is None or trial is None:
        return None
    space, active = campaign.space, campaign.record.trials[trial].parameters
    numeric = [
        axis
        for axis, (name, parameter) in enumerate(space)
        if name in active and not parameter.fixed and not isinstance(parameter, Categorical)
    ]
    numeric.sort(key=lambda axis: float(model.process.scales[model.features.start[axis]]))
    pairs = itertools.combinations(sorted(numeric[:MOST_AXES]), 2)
    panels = [panel for pair in pairs if (panel := _over(campaign, model, space.encode(active), pair)) is not None]
    if not panels:
        return None
    reading = (
        f"What the model expects of {campaign.metric} if two parameters of trial {trial} (the recommended one) are "
        "changed and the others stay: the lighter, the higher. Markers are the trials, wherever their other parameters "
        "lie; triangles are those in flight, the optimizer's next candidates."
    )
    return Figure("Contours of the model", reading, panels, min(2, len(panels)))


def _over(campaign: Campaign, model: Surrogate, base: NDArray[np.float64], pair: tuple[int, int]) -> Panel | None:
    """Return the panel of two parameters, by their places in the space; None if the model does not vary there."""
    space = campaign.space
    names = [space.axes[axis] for axis in pair]
    values = []
    points = np.repeat(base[None], CELLS * CELLS, axis=0)
    for axis, name, grid in zip(pair, names, np.meshgrid(*[np.linspace(0, 1, CELLS)] * 2), strict=True):
        parameter = space.parameters[name]
        points[:, axis] = grid.ravel()
        values.append(numbers(_value(parameter, u) for u in np.linspace(0, 1, CELLS)))
    mean = model.mean(points) * (1.0 if campaign.maximize else -1.0)
    if not np.ptp(mean) > ROUNDING * np.abs(mean).max():
        return None
    rows = tuple(numbers(row) for row in mean.reshape(CELLS, CELLS))
    levels = numbers(np.linspace(mean.min(), mean.max(), LEVELS))
    layers: list[Layer] = [Contours(values[0], values[1], rows, levels)]
    ended = thinned(campaign, campaign.ended, MOST_SMALL)
    flying = campaign.history[campaign.history["trial"].isin([trial.number for trial in campaign.record.in_flight])]
    for frame, style, label in ((ended, "seen", "trials"), (flying, str(State.RUNNING), "in flight")):
        shown = frame[frame[names].notna().all(axis=1)]
        if not shown.empty:
            trials = tuple(int(trial) for trial in shown["trial"])
            layers.append(Points(numbers(shown[names[0]]), numbers(shown[names[1]]), style, label, trials))
    x, y = (parameter_axis(name, space.parameters[name]) for name in names)
    return Panel(x, y, layers, height=3.6)


def _value(parameter: Parameter, u: float) -> float:
    """Return the number at a position, an integer not rounded, so that the contours are smooth."""
    assert not isinstance(parameter, Categorical)
    low, high = float(parameter.low), float(parameter.high)
    return low * (high / low) ** u if parameter.log else low + u * (high - low)


def importance(campaign: Campaign) -> Figure | None:
    """Return how much of the variation each parameter explains, with the uncertainty of the model."""
    model = campaign.model
    if model is None or campaign.space.dim < 2:
        return None
    from scipy.stats.qmc import Sobol

    space = campaign.space
    power = int(math.log2(max(1, min(MOST_SAMPLE, MOST_INPUTS // (space.dim + 1)))))
    random = np.random.default_rng(0)
    first, second = np.hsplit(Sobol(2 * space.dim, rng=random).random_base2(power), 2)  # a third of the error of chance
    count = len(first)
    points = [first]
    for axis in range(space.dim):
        changed = first.copy()
        changed[:, axis] = second[:, axis]
        points.append(changed)
    inputs = model.features.encode(space.snap(np.concatenate(points)))
    try:
        drawn = model.process.sample(inputs, random.standard_normal((len(inputs), DRAWS)))
    except ArithmeticError:
        return None
    shares = total_effects(drawn.reshape(space.dim + 1, count, DRAWS))
    mean, (low, high) = shares.mean(axis=1), np.quantile(shares, ENDS, axis=1)
    order = np.argsort(mean, kind="stable")
    ticks = tuple((float(row), shorten(space.axes[axis], 30)) for row, axis in enumerate(order))
    bars = Bars(numbers(mean[order]), "completed", "", numbers(low[order]), numbers(high[order]))
    panel = Panel(
        Axis("share of the variance, with all interactions (total effect)", low=0, high=1.05),
        Axis("", low=-0.6, high=len(order) - 0.4, ticks=ticks),
        [bars],
        height=1.4 + 0.35 * len(order),
    )
    reading = (
        "The share of the variation over the whole space that is left if everything but this parameter is known (total "
        "effect), as the model sees it. What parameters do together counts for each of them, so that the bars may add "
        "up to more than 1. The thin line goes from the 10 % to the 90 % quantile over draws from the model: if it is "
        "long, the trials do not tell."
    )
    return Figure("Importance of the parameters", reading, [panel])


def total_effects(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the total-effect indices (``d x k``) of ``k`` functions, each from 0 to 1.

    Args:
        values: of each function at the same sample (``(d + 1) x n x k``): as it is, and with one parameter changed.
    """
    variance = np.maximum(values[0].var(axis=0), 1e-12)
    effects: NDArray[np.float64] = ((values[1:] - values[0]) ** 2).mean(axis=1) / (2 * variance)
    return np.minimum(effects, 1.0)  # the index is never larger, its estimate may be
