"""A partition tree: its nodes, and its leaves in the order of their values, also while trials are in flight.

A leaf without a value has the value of its nearest ancestor with one, so that a tree can go on while trials are in
flight. A leaf that diverged or was infeasible has the lowest value measured, and comes after the leaves with a value of
their own.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.optimizers.partition.cells import Cell, Partition
from hpo_cluster.optimizers.partition.replayed_search import Evaluation, Search, Status
from hpo_cluster.space import Space

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False, slots=True)
class Node:
    """A cell of a tree.

    Args:
        cell: its sides.
        u: the point that stands for it (``d``, unit cube).
        level: depth in the tree, or size; leaves of equal level are compared.
        serial: number of the node, in the order in which nodes are made; of equal leaves the first is the best.
        parent: None for the root.
        evaluation: of the point.
        axes: the longest sides that can be cut; empty if none can.
        children: empty before the node is cut.
        entry: number of its valid entry in the heap of its level; 0 before it takes part.
    """

    cell: Cell
    u: NDArray[np.float64]
    level: float
    serial: int
    parent: Node | None
    evaluation: Evaluation
    axes: list[int]
    children: tuple[Node, ...] = ()
    entry: int = 0


@dataclass(eq=False, slots=True)
class Level:
    """The leaves of one level that can be cut, and a heap of those that take part in the choice of the best."""

    leaves: dict[int, Node] = field(default_factory=dict)
    heap: list[tuple[float, int, int]] = field(default_factory=list)  # -value, serial, entry


class Leaves:
    """The leaves that can be cut, by level.

    Args:
        value_of: returns the value of an evaluation, None if it has none.
    """

    def __init__(self, value_of: Callable[[Evaluation], float | None]) -> None:
        self.value_of = value_of
        self.levels: dict[float, Level] = {}

    def __bool__(self) -> bool:
        return any(level.leaves for level in self.levels.values())

    def add(self, node: Node) -> None:
        """Add a new leaf; it takes part once it is entered."""
        node.evaluation.nodes.append(node)
        if node.axes:
            self.levels.setdefault(node.level, Level()).leaves[node.serial] = node

    def enter(self, node: Node) -> None:
        """Let a leaf take part, or move it to the place of its present value."""
        level = self.levels.get(node.level)
        if level is not None and node.serial in level.leaves:
            node.entry += 1
            heapq.heappush(level.heap, (*self.rank(node), node.entry))

    def remove(self, node: Node) -> None:
        """Remove a node that is no longer a leaf."""
        del self.levels[node.level].leaves[node.serial]

    def value(self, node: Node) -> float | None:
        """Return the value of a node, or of its nearest ancestor with one; None if there is none."""
        at: Node | None = node
        while at is not None:
            value = self.value_of(at.evaluation)
            if value is not None:
                return value
            at = at.parent
        return None

    def rank(self, node: Node) -> tuple[float, int]:
        """Return the sort key of a leaf within its level: the lowest is the best."""
        at: Node | None = node
        while at is not None and at.evaluation.value is None and at.evaluation.status is not Status.LOW:
            at = at.parent
        value = -math.inf if at is None or at.evaluation.value is None else at.evaluation.value
        return -value, node.serial

    def best(self, level: float) -> Node | None:
        """Return the best leaf of a level that takes part; None if none does."""
        here = self.levels.get(level)
        while here is not None and here.heap:
            _, serial, entry = here.heap[0]
            if serial in here.leaves and here.leaves[serial].entry == entry:
                return here.leaves[serial]
            heapq.heappop(here.heap)
        return None

    def changed(self, evaluation: Evaluation) -> None:
        """Move the leaves that have the value of an evaluation, their own or an ancestor's, to their new place."""
        stack = list(evaluation.nodes)
        while stack:
            node = stack.pop()
            if node.children:
                stack += [child for child in node.children if child.evaluation.value is None]
            elif node.entry:
                self.enter(node)


class Tree(Search):
    """Base of the searches that cut the space into cells. A subclass makes the `root`.

    Args:
        space: what to search.
        partition: its cells.
    """

    root: Node

    def __init__(self, space: Space, partition: Partition) -> None:
        super().__init__(space)
        self.partition = partition
        self.leaves = Leaves(self.value_of)
        self.nodes = 0

    def changed(self, evaluation: Evaluation) -> None:
        """Move the leaves whose value changes with that of a configuration."""
        self.leaves.changed(evaluation)

    def uncut(self) -> list[Node]:
        """Return the nodes without children, in the order in which they were made."""
        found, stack = list[Node](), [self.root]
        while stack:
            node = stack.pop()
            stack += node.children
            if not node.children:
                found.append(node)
        return sorted(found, key=lambda node: node.serial)

    def cells(self) -> pd.DataFrame:
        """Return a table of the cells that are not cut, in the order of their making; together they cover the space.

        Columns: ``NAME.low`` and ``NAME.high`` for each searched parameter, the ends of a real side, the first and last
        value of any other; ``NAME``, the configuration that stands for the cell, without inactive parameters;
        ``status`` of its evaluation (`hpo_cluster.optimizers.partition.replayed_search.Status`); ``target``, its value
        or its bound, always maximised, NaN if there is none; ``volume``, the cell's share of the unit cube.
        """
        import pandas as pd

        rows = []
        for node in self.uncut():
            ends = dict(zip(self.space.axes, self.partition.values(node.cell), strict=True))
            evaluation = node.evaluation
            rows.append(
                {f"{name}.low": low for name, (low, _) in ends.items()}
                | {f"{name}.high": high for name, (_, high) in ends.items()}
                | {name: evaluation.configuration.get(name) for name in self.space.names}
                | {"status": str(evaluation.status)}
                | {"target": math.nan if evaluation.value is None else evaluation.value}
                | {"volume": self.partition.volume(node.cell)}
            )
        return pd.DataFrame(rows)
