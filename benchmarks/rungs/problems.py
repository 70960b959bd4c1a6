"""The problems with rungs: real fine-tunings, and test functions whose low rungs mislead as much as is asked for.

`village` has a regression for each rung of the fine-tunings in `benchmarks.village`: the accuracy after a ninth and a
third of the steps, and at the end, with the noise of the seeds.

`curves90`, `curves60`, `curves30` and `curves00` have the six-dimensional Hartmann function ``f`` at the top. At the
rungs below, the value is a mixture of it and of another function ``h`` of the same shape, with its axes mirrored and in
another order: ``cos(a) F + sin(a) H - gap``, with ``F`` and ``H`` the normal scores of both. So curves cross, in a way
that a configuration determines. The angle at the lowest rung is the one with which the rank correlation with the top is
0.9, 0.6 or 0.3; at the rung above it is half as large. In `curves00` both lower rungs show ``H`` alone, which says
nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives import benchmark_functions
from hpo_cluster.objectives.forest import Array
from hpo_cluster.space import Configuration, Space, Value
from hpo_cluster.trial import derive_seed

#: The rungs of all problems, and the ladder of a campaign without any.
LADDER, WHOLE = Ladder("steps", (1 / 9, 1 / 3, 1.0)), Ladder("off", (1.0,))

#: `curves`: rank correlations of the lowest rung with the top, noise, points that the scores are made of, and how far
#: the rungs lie below the top.
CORRELATIONS = {"curves90": 0.9, "curves60": 0.6, "curves30": 0.3, "curves00": 0.0}
NOISE, SCORED, GAPS = 0.02, 2**13, (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class RungProblem:
    """A problem to maximise.

    Args:
        name: its key.
        space: where it is defined.
        best: highest known value at the top.
        truths: noiseless values of a configuration at each rung of `LADDER`.
        noise: standard deviation of what is added to a value, by the value.
    """

    name: str
    space: Space
    best: float
    truths: Callable[[Mapping[str, Value]], tuple[float, ...]]
    noise: Callable[[float], float]

    def observe(self, configuration: Configuration, seed: int, trial: int) -> tuple[tuple[float, ...], float]:
        """Return what is seen at each rung, and the true value at the top.

        The noise depends on (problem, seed, trial): it is of the training, so that it grows along the rungs.
        """
        truths = self.truths(configuration)
        rng = np.random.default_rng(derive_seed("noise", self.name, seed, trial))
        draws = rng.standard_normal(len(truths))
        return tuple(t + self.noise(t) * float(z) for t, z in zip(truths, draws, strict=True)), truths[-1]


def problems() -> dict[str, RungProblem]:
    """Return all problems."""
    return {name: curves(name) for name in CORRELATIONS} | {"village": village()}


@functools.cache
def curves(name: str) -> RungProblem:
    """Return a problem of crossing curves."""
    function = benchmark_functions.FUNCTIONS["hartmann6"]
    names = function.space.names

    def of(points: Array) -> tuple[Array, Array]:
        mirrored = 1 - points[:, ::-1]
        both = [[-function.evaluate(dict(zip(names, p, strict=True))) for p in rows] for rows in (points, mirrored)]
        return np.array(both[0]), np.array(both[1])

    from scipy.stats import norm, qmc

    known = of(qmc.Sobol(len(names), rng=np.random.default_rng(0)).random(SCORED))
    quantiles = norm.ppf((np.arange(SCORED) + 0.5) / SCORED)
    ordered = [np.sort(values) for values in known]

    def scores(values: tuple[Array, Array]) -> list[Array]:
        return [np.interp(v, o, quantiles) for v, o in zip(values, ordered, strict=True)]

    angle = _angle(scores(known), CORRELATIONS[name])
    angles = (angle, angle / 2 if CORRELATIONS[name] else angle)

    def truths(configuration: Mapping[str, Value]) -> tuple[float, ...]:
        values = of(np.array([[float(configuration[axis]) for axis in names]]))
        first, second = (float(s[0]) for s in scores(values))
        low = [np.cos(a) * first + np.sin(a) * second - g for a, g in zip(angles, GAPS, strict=False)]
        return (*map(float, low), float(values[0][0]))

    return RungProblem(name, function.space, -function.optimum, truths, lambda _: NOISE)


def _angle(known: list[Array], correlation: float) -> float:
    """Return the angle at which the rank correlation of the mixture with the first is as wanted."""
    from scipy.stats import spearmanr

    (first, second), low, high = known, 0.0, 0.75 * np.pi  # both may be alike from the start
    for _ in range(30):
        middle = (low + high) / 2
        seen = spearmanr(first, np.cos(middle) * first + np.sin(middle) * second)[0]
        low, high = (middle, high) if seen > correlation else (low, middle)
    return float(low)


@functools.cache
def village() -> RungProblem:
    """Return the regressions on the fine-tunings of the bundled model, with the noise of their seeds."""
    from benchmarks.village import surrogate, table

    frame = table.load()
    fits = [surrogate.Surrogate.fit(frame, column) for column in ("val_acc@1/9", "val_acc@1/3")]
    fits.append(surrogate.village())
    trees = [fit.trees for fit in fits]

    def truths(configuration: Mapping[str, Value]) -> tuple[float, ...]:
        features = surrogate.matrix([configuration])
        return tuple(float(forest.predict(features)[0]) for forest in trees)

    return RungProblem("village", table.read_space(), surrogate.constants()["best"], truths, surrogate.noise_at)
