"""Fractal decomposition: spheres within spheres, and a local search in the best of the smallest.

A sphere is cut into two spheres for each parameter, smaller by the same factor at every level; the values of a few
points say how promising each is. The search goes down into the best sphere of the deepest level until the last level,
where it improves the best point of the sphere one coordinate at a time, and then comes up again.

References: A. Nakib, S. Ouchraa, N. Shvai, L. Souquet and E.-G. Talbi, "Deterministic metaheuristic based on fractal
decomposition for large-scale optimization", Applied Soft Computing 61, 468-485, 2017; T. Firmin and E.-G. Talbi, "A
fractal-based decomposition framework for continuous optimization", 2022 (hal-04474444).

Symbols: ``c``, ``r`` centre and radius of a sphere; ``d`` number of parameters; ``e_q`` unit vector of parameter q;
``alpha`` inflation; ``x`` point of the local search, ``s`` its step.

    root                c = (1/2, ..., 1/2), r = 1/2
    its spheres         r' = r / (1 + sqrt(2)),  c' = c +- (r - r') e_q,  q = 1..d
    points of a sphere  c, and with `points: 3` also c +- alpha r / sqrt(d) (1, ..., 1)
    local search        x +- s e_q for q = 1..d, moving to the better one; s = reduction s after a round without gain,
                        from r down to precision

Deviations from the papers: one point for each sphere and two levels by default, for budgets of tens of evaluations
where the papers have thousands; the score of a sphere is the best value of its points, or as an option their slope
towards the best point; points outside the unit cube are clipped to it, and moves that change no value of a finite
parameter are not evaluated. When every sphere is done, free points are drawn at random. With trials in flight a sphere
has the score of its points with a value, or that of the sphere it lies in, and the next sphere is begun while a local
search waits for its points; one evaluation at a time gives exactly the sequential algorithm.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.partition.replayed_search import Evaluation, Search, SearchOptimizer, Status
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import free_point
from hpo_cluster.trial import derive_seed


class FDASettings(OptimizerSettings):
    """Settings of FDA."""

    levels: int = Field(
        default=2, ge=1, le=8, description="levels of spheres below the root; the last is searched locally"
    )
    points: Literal[1, 3] = Field(
        default=1,
        description="points of a sphere: its centre, or also one on either side along the diagonal as published",
    )
    inflation: float = Field(default=1.75, gt=0, le=4, description="how far out the side points lie, in radii")
    score: Literal["best", "slope"] = Field(
        default="best", description="what makes a sphere promising: its best value, or the slope towards the best point"
    )
    reduction: float = Field(default=0.5, gt=0, lt=1, description="factor of the local search's step without gain")
    precision: float = Field(default=0.005, gt=0, lt=0.5, description="smallest step, as a share of each range")


@dataclass(eq=False, slots=True)
class Sphere:
    """A part of the space.

    Args:
        centre: ``d``, unit cube.
        radius: r.
        level: 0 for the root.
        serial: number of the sphere, in the order in which spheres are made.
        parent: None for the root.
        points: the points that it is judged by (``d`` each), with their evaluations.
    """

    centre: NDArray[np.float64]
    radius: float
    level: int
    serial: int
    parent: Sphere | None
    points: list[tuple[NDArray[np.float64], Evaluation]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class LocalSearch:
    """Improves a point one coordinate at a time.

    Args:
        serial: number of the search, in the order in which searches begin; the oldest that can go on goes first.
        u: the current point (``d``, unit cube).
        best: the evaluation of the current point.
        step: s.
        axis: the axis that is tried next.
        gained: whether it has moved in this round.
        tried: the points that it waits for, with their evaluations.
    """

    serial: int
    u: NDArray[np.float64]
    best: Evaluation
    step: float
    axis: int = 0
    gained: bool = False
    tried: list[tuple[NDArray[np.float64], Evaluation]] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether an evaluation that it needs is queued or in flight."""
        return any(e.status in (Status.QUEUED, Status.PENDING) for e in [self.best, *(e for _, e in self.tried)])


class Spheres(Search):
    """The spheres, and the local searches under way.

    Args:
        space: what to search.
        settings: of the optimizer.
        seed: of the campaign; for the points that are drawn when every sphere is done.
    """

    def __init__(self, space: Space, settings: FDASettings, seed: int) -> None:
        super().__init__(space)
        self.settings, self.seed = settings, seed
        self.spheres: list[Sphere] = []
        self.open: list[list[Sphere]] = [[] for _ in range(settings.levels + 1)]  # by level
        self.searches: dict[int, LocalSearch] = {}
        self.begun = 0  # local searches so far
        self.ready: list[int] = []  # a heap of local searches that may go on
        self.top: Evaluation | None = None  # the one with the best value
        self._sphere(np.full(space.dim, 0.5), 0.5, None)

    def grow(self) -> bool:
        """Let a local search go on, or begin with the next sphere; return False if no configuration is left."""
        while self.ready:
            search = self.searches.get(heapq.heappop(self.ready))
            if search is not None and not search.waits:
                self._go_on(search)
                return True
        deepest = next((spheres for spheres in reversed(self.open) if spheres), None)
        if deepest is None:
            return self._draw()
        sphere = min(deepest, key=lambda sphere: (-self._score(sphere), sphere.serial))
        deepest.remove(sphere)
        if sphere.level < self.settings.levels:
            self._cut(sphere)
        else:
            self._begin(*max(sphere.points, key=lambda entry: self._value(entry[1])), sphere.radius)
        return True

    # --------------------------------------------------------------------------------------------------------- spheres

    def _cut(self, sphere: Sphere) -> None:
        radius = sphere.radius / (1 + math.sqrt(2))
        for axis in range(self.space.dim):
            for sign in (-1, 1):
                centre = sphere.centre.copy()
                centre[axis] = min(max(centre[axis] + sign * (sphere.radius - radius), 0.0), 1.0)
                self._sphere(centre, radius, sphere)

    def _sphere(self, centre: NDArray[np.float64], radius: float, parent: Sphere | None) -> None:
        sphere = Sphere(centre, radius, 0 if parent is None else parent.level + 1, len(self.spheres), parent)
        offset = self.settings.inflation * radius / math.sqrt(self.space.dim)
        points = [centre, centre + offset, centre - offset] if self.settings.points == 3 else [centre]
        for point in points:
            u = np.clip(point, 0.0, 1.0)
            evaluation = self.want(u, {"level": sphere.level})
            evaluation.nodes.append(sphere)
            sphere.points.append((u, evaluation))
        self.spheres.append(sphere)
        self.open[sphere.level].append(sphere)

    def _score(self, sphere: Sphere) -> float:
        """Return the score of the points of a sphere with a value, or of the sphere it lies in."""
        values = [(e, value) for _, e in sphere.points if (value := self.value_of(e)) is not None]
        if not values:
            return -math.inf if sphere.parent is None else self._score(sphere.parent)
        if self.settings.score == "best" or self.top is None or self.best is None:
            return max(value for _, value in values)
        top, best = self.top.point, self.best
        return max((value - best) / (float(np.linalg.norm(e.point - top)) + 1e-20) for e, value in values)

    def _value(self, evaluation: Evaluation) -> float:
        value = self.value_of(evaluation)
        return -math.inf if value is None else value

    # ---------------------------------------------------------------------------------------------------- local search

    def _begin(self, u: NDArray[np.float64], best: Evaluation, step: float) -> None:
        self.begun += 1
        search = self.searches[self.begun] = LocalSearch(self.begun, u, best, step)
        best.nodes.append(search)
        self._called(search)

    def _called(self, search: LocalSearch) -> None:
        """Let a search go on when its turn comes, unless it waits for an evaluation."""
        if not search.waits:
            heapq.heappush(self.ready, search.serial)

    def _go_on(self, search: LocalSearch) -> None:
        """Move to the better of the points tried, then try the next axis; end the search below the precision."""
        u, best = max(search.tried, key=lambda entry: self._value(entry[1]), default=(search.u, search.best))
        if self._value(best) > self._value(search.best):
            search.u, search.best, search.gained = u, best, True
        search.tried = []
        if search.axis == self.space.dim:
            search.step *= 1.0 if search.gained else self.settings.reduction
            search.axis, search.gained = 0, False
        if search.step < self.settings.precision:
            del self.searches[search.serial]
            return
        for sign in (-1, 1):
            u = search.u.copy()
            u[search.axis] = min(max(u[search.axis] + sign * search.step, 0.0), 1.0)
            evaluation = self.want(u, {"level": self.settings.levels, "step": search.step})
            evaluation.nodes.append(search)
            search.tried.append((u, evaluation))
        search.axis += 1
        self._called(search)

    def _draw(self) -> bool:
        """Queue a free configuration at random; return False if there is none."""
        seed = derive_seed(self.seed, "rest", len(self.taken))
        point = free_point(self.space, self.taken, np.random.default_rng(seed))
        if point is None:
            return False
        self.want(point, {"level": None}).nodes.append(None)
        return True

    def changed(self, evaluation: Evaluation) -> None:
        """Update the search after the status or value of a configuration has changed."""
        if evaluation.value is not None and (self.top is None or evaluation.value > self._value(self.top)):
            self.top = evaluation
        for node in evaluation.nodes:
            if isinstance(node, LocalSearch) and node.serial in self.searches:
                self._called(node)

    def describe(self) -> dict[str, Any]:
        """Return where the search stands (JSON)."""
        return {"spheres": len(self.spheres), "open": sum(map(len, self.open)), "local_searches": len(self.searches)}


class FDA(SearchOptimizer[Spheres]):
    """Proposes the points of spheres and of local searches in them."""

    name = "fda"

    def search(self) -> Spheres:
        """Return the root sphere before its evaluation."""
        return Spheres(self.space, self.settings, self.seed)
