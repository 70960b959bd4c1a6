"""Simultaneous optimistic optimization: a tree of cells, of which the best leaf of each depth is cut in turn.

The value at the centre stands for a cell. A sweep walks from the root's depth down and opens, at each depth, the best
leaf, if no leaf opened before it in this sweep was better. So cells of all sizes are cut at once, and nothing need be
known of how smooth the objective is. With several workers the sweep goes on while trials are in flight.

Reference: R. Munos, "Optimistic Optimization of a Deterministic Function without the Knowledge of its Smoothness",
NeurIPS 24, 783-791, 2011 (section 4, figure 2). The presets' origins: the authors' program oo.m of StoSOO (M. Valko,
A. Carpentier and R. Munos, ICML 2013) and the study of 2025 (N. Davouse and E.-G. Talbi, OLA 2025).

Symbols: ``K`` parts of a cut; ``h`` depth; ``g`` value of a leaf, maximised; ``nu`` value of the last cell opened in
this sweep; ``h_max`` greatest depth that is opened; ``t`` evaluations so far.

    for h = 0, 1, ... :  leaf = the best of depth h;  if g(leaf) >= nu:  open it, nu = g(leaf)

What the paper leaves open decides everything (``docs/algorithms/soo.md`` has measurements), so it can be chosen:

    preset      leaves made in a sweep              compared by  h_max
    paper       opened down to the depth that the    >           none
                tree had when the sweep began
    reference   wait for the next sweep             >=           ceil(sqrt(t))
    greedy      opened as soon as they are reached  >=           none

Deviations from the paper: sides are compared as shares of their axis, and never cut below `resolution` or one value;
a child whose centre is its parent's configuration has its value without an evaluation, and so has any cell with a
configuration that was evaluated before; ``h_max`` of `reference` follows the evaluations so far where oo.m has the
square root of the budget; if no leaf may be opened (all are too deep) the shallowest is. A leaf without a value has the
value of its nearest ancestor with one, so that the sweep goes on while trials are in flight; one evaluation at a time
gives exactly the sequential algorithm. A trial that diverged or was infeasible counts as the lowest value measured, and
comes after every measured one; a trial that failed has no value, and its leaf keeps the value of its ancestor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from hpo_cluster.optimizers.base import OptimizerSettings
from hpo_cluster.optimizers.partition.cells import Cell, Partition
from hpo_cluster.optimizers.partition.replayed_search import SearchOptimizer
from hpo_cluster.optimizers.partition.tree import Node, Tree
from hpo_cluster.space import Space

Eligibility: TypeAlias = Literal["next_sweep", "frozen", "dynamic"]


@dataclass(frozen=True)
class Rules:
    """The choices that the paper leaves open."""

    eligibility: Eligibility
    strict: bool
    h_max: int | Literal["sqrt"] | None


PRESETS = {
    "paper": Rules("frozen", True, None),
    "reference": Rules("next_sweep", False, "sqrt"),
    "greedy": Rules("dynamic", False, None),
}


class SOOSettings(OptimizerSettings):
    """Settings of SOO."""

    preset: Literal["paper", "reference", "greedy"] = Field(
        default="paper",
        description="paper: as in the study; reference: as in the program of SOO's authors; greedy: new leaves at "
        "once, a coordinate search without exploration",
    )
    sections: int = Field(default=3, ge=2, le=9, description="parts of a cut, K; odd ones keep the centre's value")
    eligibility: Eligibility | None = Field(
        default=None,
        description="when leaves made in a sweep may be opened: next_sweep, frozen (in this one, to the depth the tree "
        "had when it began), dynamic (at once); null: the preset's",
    )
    strict: bool | None = Field(
        default=None,
        description="whether a leaf must be better than the last one opened; false: at least as good; null: the "
        "preset's",
    )
    h_max: Annotated[int, Field(ge=1)] | Literal["preset", "sqrt"] | None = Field(
        default="preset",
        description="greatest depth opened: a number, sqrt of the evaluations, null for no limit, or preset",
    )
    resolution: float = Field(
        default=1e-4, ge=1e-5, le=0.5, description="real sides narrower than this share of their range are never cut"
    )

    def rules(self) -> Rules:
        """Return the rules of the preset, replaced by those that are set."""
        preset = PRESETS[self.preset]
        return Rules(
            preset.eligibility if self.eligibility is None else self.eligibility,
            preset.strict if self.strict is None else self.strict,
            preset.h_max if self.h_max == "preset" else self.h_max,
        )


class SOOTree(Tree):
    """The tree, its sweep, and its evaluations in flight.

    Args:
        space: what to search.
        settings: of the optimizer.
    """

    def __init__(self, space: Space, settings: SOOSettings) -> None:
        super().__init__(space, Partition(space, settings.sections, settings.resolution))
        self.rules = settings.rules()
        self.deepest = 0
        self.fresh: list[Node] = []  # made in this sweep, if they wait for the next one
        self.sweep, self.depth, self.frozen_depth = 0, 0, 0
        self.nu: float | None = None
        self.root = self._node(self.partition.whole, None)

    def grow(self) -> bool:
        """Open one leaf; return False if none can be cut."""
        if not self.leaves:
            return False
        for _ in range(2):  # the rest of this sweep, and a whole one
            leaf = self._sweep_on()
            if leaf is not None:
                self._open(leaf)
                return True
        shallowest = next(level for _, level in sorted(self.leaves.levels.items()) if level.leaves)
        self._open(min(shallowest.leaves.values(), key=self.leaves.rank))
        return True

    def _sweep_on(self) -> Node | None:
        """Return the next leaf that the sweep opens; None if it ends without one."""
        bottom = self.frozen_depth if self.rules.eligibility == "frozen" else self.deepest
        if self.rules.h_max is not None:
            bottom = min(bottom, math.ceil(math.sqrt(self.issued)) if self.rules.h_max == "sqrt" else self.rules.h_max)
        while self.depth <= bottom:
            leaf = self.leaves.best(self.depth)
            self.depth += 1
            value = None if leaf is None else self.leaves.value(leaf)
            if value is None:  # no leaf, or no value yet
                continue
            if self.nu is None or value > self.nu or (value == self.nu and not self.rules.strict):
                self.nu = value
                return leaf
        self.sweep, self.depth, self.frozen_depth, self.nu = self.sweep + 1, 0, self.deepest, None
        for node in self.fresh:
            self.leaves.enter(node)
        self.fresh = []
        return None

    def _open(self, leaf: Node) -> None:
        self.leaves.remove(leaf)
        leaf.children = tuple(self._node(cell, leaf) for cell in self.partition.cut(leaf.cell, leaf.axes[0]))

    def _node(self, cell: Cell, parent: Node | None) -> Node:
        depth = 0 if parent is None else int(parent.level) + 1
        u = self.partition.centre(cell)
        evaluation = self.want(u, {"depth": depth})
        self.nodes, self.deepest = self.nodes + 1, max(self.deepest, depth)
        node = Node(cell, u, depth, self.nodes, parent, evaluation, self.partition.longest(cell))
        self.leaves.add(node)
        if self.rules.eligibility == "next_sweep" and parent is not None:
            self.fresh.append(node)
        else:
            self.leaves.enter(node)
        return node

    def describe(self) -> dict[str, Any]:
        """Return where the tree stands (JSON)."""
        return {"cells": self.nodes, "depth": self.deepest, "sweep": self.sweep, "at_depth": self.depth}


class SOO(SearchOptimizer[SOOTree]):
    """Proposes the centres of the leaves of a tree that grows by simultaneous optimistic optimization."""

    name = "soo"

    def search(self) -> SOOTree:
        """Return the tree before its first evaluation."""
        return SOOTree(self.space, self.settings)
