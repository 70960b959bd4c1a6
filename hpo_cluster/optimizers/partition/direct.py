"""DIRECT: divide rectangles of all the sizes that may hold the optimum at once.

Each rectangle has the value at its centre. If the objective changed by at most some constant per distance, the lowest
value that it could reach in a rectangle would follow from value and size; DIRECT divides all rectangles that are the
most promising for *some* constant, large ones with middling values as well as small ones with good values. DIRECT-L
measures size by the longest side and takes one rectangle of each size, which favours the good regions. All points of a
division are proposed as independent trials.

References: D. R. Jones, C. D. Perttunen and B. E. Stuckman, "Lipschitzian Optimization Without the Lipschitz Constant",
Journal of Optimization Theory and Applications 79, 157-181, 1993; J. M. Gablonsky and C. T. Kelley, "A Locally-Biased
Form of the DIRECT Algorithm", Journal of Global Optimization 21, 27-37, 2001.

Symbols: ``phi_j = -value`` and ``delta_j`` size of rectangle j (half its diagonal, DIRECT; half its longest side,
DIRECT-L); ``phi_min`` the lowest so far; ``epsilon`` least relative improvement; ``I`` the longest sides.

    j is potentially optimal:  there is a kappa > 0 with   phi_j - kappa delta_j <= phi_i - kappa delta_i   for all i
                               and                         phi_j - kappa delta_j <= phi_min - epsilon |phi_min|
    division:  evaluate c +- (l/3) e_q for q in I;  trisect along the q of the best of its two points first

Deviations from the papers: finite parameters are cut between their values, into the parts that
`hpo_cluster.optimizers.partition.cells` describes; the part that holds the point of the rectangle keeps it, the others
get the value nearest to their middle. Real sides narrower than `resolution` are never cut. With trials in flight a
division is completed once the next one has to be chosen, and rectangles without a value have that of the rectangle that
was divided; one evaluation at a time gives exactly the sequential algorithm. A trial that diverged or was infeasible
counts as the lowest value measured; one that failed keeps the value of the rectangle that was divided.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.partition.cells import Cell, Partition, Side
from hpo_cluster.optimizers.partition.replayed_search import Evaluation, SearchOptimizer
from hpo_cluster.optimizers.partition.tree import Node, Tree
from hpo_cluster.space import Space


class DirectSettings(OptimizerSettings):
    """Settings of DIRECT and DIRECT-L."""

    epsilon: float = Field(
        default=1e-4,
        ge=0,
        lt=1,
        description="least improvement that a rectangle must promise, relative to the best value",
    )
    resolution: float = Field(
        default=1e-4, ge=1e-5, le=0.5, description="real sides narrower than this share of their range are never cut"
    )


class Rectangles(Tree):
    """The rectangles and the division under way.

    Args:
        space: what to search.
        settings: of the optimizer.
        locally_biased: whether it is DIRECT-L.
    """

    def __init__(self, space: Space, settings: DirectSettings, locally_biased: bool) -> None:
        super().__init__(space, Partition(space, 3, settings.resolution))
        self.settings, self.locally_biased = settings, locally_biased
        self.iteration = 0
        self.dividing: list[tuple[Node, dict[int, list[tuple[Side, Evaluation | None]]]]] = []
        whole = self.partition.whole
        self.root = self._node(whole, None, self.want(self.partition.centre(whole), {"iteration": 0}))

    def grow(self) -> bool:
        """Complete the divisions under way and begin the next ones; return False if none can be divided."""
        for node, samples in self.dividing:
            self._divide(node, samples)
        self.dividing = [(node, {}) for node in self._potentially_optimal()]
        self.iteration += 1
        for node, samples in self.dividing:
            self.leaves.remove(node)
            for axis in node.axes:
                samples[axis] = self._sample(node, axis)
        return bool(self.dividing)

    def _sample(self, node: Node, axis: int) -> list[tuple[Side, Evaluation | None]]:
        """Return the parts across an axis, each with its evaluation; None for the part that keeps the node's point."""
        parts: list[tuple[Side, Evaluation | None]] = []
        along = self.partition.axes[axis]
        for side in along.cut(node.cell[axis]):
            low, high = along.ends(side)
            if low <= node.u[axis] < high:
                parts.append((side, None))
                continue
            u = node.u.copy()
            u[axis] = along.centre(side)
            parts.append((side, self.want(u, {"iteration": self.iteration})))
        return parts

    def _divide(self, node: Node, samples: dict[int, list[tuple[Side, Evaluation | None]]]) -> None:
        """Trisect along each axis in turn, the one with the best point first, so that it gets the largest rectangle."""
        value = self.leaves.value(node)

        def best(axis: int) -> float:
            known = [self.value_of(evaluation) for _, evaluation in samples[axis] if evaluation is not None]
            values = [value if own is None else own for own in known]
            return max((own for own in values if own is not None), default=-math.inf)

        cell, children = node.cell, []
        for axis in sorted(samples, key=lambda axis: (-best(axis), axis)):
            kept = cell
            for side, evaluation in samples[axis]:
                part: Cell = (*cell[:axis], side, *cell[axis + 1 :])
                if evaluation is None:
                    kept = part
                    continue
                child = self._node(part, node, evaluation)
                child.u = node.u.copy()
                child.u[axis] = self.partition.axes[axis].centre(side)
                children.append(child)
            cell = kept
        node.children = (*children, self._node(cell, node, node.evaluation))

    def _node(self, cell: Cell, parent: Node | None, evaluation: Evaluation) -> Node:
        u = self.partition.centre(cell) if parent is None else parent.u
        self.nodes += 1
        node = Node(cell, u, self._size(cell), self.nodes, parent, evaluation, self.partition.longest(cell))
        self.leaves.add(node)
        self.leaves.enter(node)
        return node

    def _size(self, cell: Cell) -> float:
        """Return delta, which is equal for cells of equal widths in any order."""
        widths = self.partition.widths(cell)
        return max(widths) / 2 if self.locally_biased else math.sqrt(math.fsum(w * w for w in widths)) / 2

    def _potentially_optimal(self) -> list[Node]:
        """Return the nodes to divide, from small to large."""
        best = {size: self.leaves.best(size) for size in sorted(self.leaves.levels)}
        nodes = {size: node for size, node in best.items() if node is not None}
        values = {size: self.leaves.value(node) for size, node in nodes.items()}
        phi = {size: -value for size, value in values.items() if value is not None}
        if not phi or self.best is None:
            return list(nodes.values())[-1:]  # no value yet: the largest
        least = -self.best - self.settings.epsilon * abs(self.best)
        chosen = []
        hull = _lower_hull(phi)
        for size, following in zip(hull, [*hull[1:], None], strict=True):
            if following is not None:
                kappa = (phi[following] - phi[size]) / (following - size)  # the largest that is possible
                if kappa <= 0 or phi[size] - kappa * size > least:
                    continue
            chosen += self._equals(size, nodes[size])
        return chosen

    def _equals(self, size: float, node: Node) -> list[Node]:
        """Return the leaves of a size that are as good as its best one; only the best one in DIRECT-L."""
        if self.locally_biased:
            return [node]
        leaves = self.leaves.levels[size].leaves.values()
        return [leaf for leaf in leaves if self.leaves.rank(leaf)[0] == self.leaves.rank(node)[0]]

    def describe(self) -> dict[str, Any]:
        """Return where the division stands (JSON)."""
        return {"rectangles": self.nodes, "iteration": self.iteration, "dividing": len(self.dividing)}


def _lower_hull(phi: dict[float, float]) -> list[float]:
    """Return the sizes (given in increasing order) at which phi is the least for some kappa, with those on a line."""
    hull = list[float]()
    for size, value in phi.items():
        while len(hull) > 1:
            last, before = hull[-1], hull[-2]
            if (phi[last] - phi[before]) / (last - before) <= (value - phi[last]) / (size - last):
                break
            hull.pop()
        hull.append(size)
    return hull


class Direct(SearchOptimizer[Rectangles]):
    """Proposes the points of the rectangles that DIRECT divides."""

    name = "direct"
    locally_biased: ClassVar[bool] = False

    def search(self) -> Rectangles:
        """Return the rectangles before the first evaluation."""
        return Rectangles(self.space, self.settings, self.locally_biased)


class DirectL(Direct):
    """Proposes the points of the rectangles that DIRECT-L divides, the locally biased form."""

    name, locally_biased = "direct_l", True
