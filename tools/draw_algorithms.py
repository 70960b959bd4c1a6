"""Draw the pictures of ``docs/algorithms/``: what each optimizer does with Himmelblau's function.

Usage: ``python tools/draw_algorithms.py [NAME ...]``, for instance ``soo bo``; all of them without names. Takes a
minute or two; the pictures go to ``docs/images/algorithm_NAME.png``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
mpl.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.colors import LogNorm  # noqa: E402
from matplotlib.patches import Circle, Rectangle  # noqa: E402

import hpo_cluster  # noqa: E402
from hpo_cluster.features import Features  # noqa: E402
from hpo_cluster.objectives.functions import FUNCTIONS, himmelblau  # noqa: E402
from hpo_cluster.observations import Observations  # noqa: E402
from hpo_cluster.optimizers.bamsoo import BaMSOO  # noqa: E402
from hpo_cluster.optimizers.cells import Cell, Partition  # noqa: E402
from hpo_cluster.optimizers.direct import Direct  # noqa: E402
from hpo_cluster.optimizers.fda import FDA  # noqa: E402
from hpo_cluster.optimizers.leaves import Node  # noqa: E402
from hpo_cluster.optimizers.registry import make_optimizer  # noqa: E402
from hpo_cluster.optimizers.retrace import Status  # noqa: E402
from hpo_cluster.optimizers.soo import SOO  # noqa: E402
from hpo_cluster.space import Float, Space  # noqa: E402
from hpo_cluster.surrogate import fit  # noqa: E402

IMAGES = ROOT / "docs" / "images"
FUNCTION = FUNCTIONS["himmelblau"]
LOW, HIGH = -5.0, 5.0
OPTIMA = np.array([(3.0, 2.0), (-2.805118, 3.131312), (-3.77931, -3.283186), (3.584428, -1.848126)])
INK, ACCENT, SOFT = "#1b2733", "#c8401e", "#3b78a8"
BUDGET = 50


def campaign(name: str, budget: int = BUDGET, **settings: Any) -> pd.DataFrame:
    """The history of a campaign on the function."""
    fn: Callable[..., float] = lambda **x: FUNCTION.evaluate(x)  # noqa: E731
    space = FUNCTION.space
    return hpo_cluster.optimize(fn, space, optimizer=name, budget=budget, direction="minimize", **settings).history


def background(axes: Any, title: str, history: pd.DataFrame | None = None) -> None:
    """The function's contours, its four minima, a title with the best value found."""
    grid = np.linspace(LOW, HIGH, 160)
    z = np.array([[himmelblau(np.array([x, y])) for x in grid] for y in grid])
    axes.contourf(grid, grid, z + 0.3, levels=np.geomspace(0.3, 900, 16), norm=LogNorm(), cmap="YlGnBu_r", alpha=0.55)
    axes.plot(*OPTIMA.T, "*", color="white", markeredgecolor=INK, markersize=11, markeredgewidth=0.8, zorder=4)
    if history is not None:
        best = history[history.origin == "evaluated"].value.min()
        title = f"{title}\nbest of {(history.origin == 'evaluated').sum()}: {best:.2g}"
    axes.set_title(title, fontsize=10, color=INK)
    axes.set(xlim=(LOW, HIGH), ylim=(LOW, HIGH), xticks=[], yticks=[], aspect="equal")


def place(u: Any) -> Any:
    """Coordinates of the picture of the unit cube's."""
    return LOW + (HIGH - LOW) * np.asarray(u)


def outline(axes: Any, partition: Partition, cell: Cell, **style: Any) -> None:
    """A cell's rectangle."""
    (x0, x1), (y0, y1) = (place(axis.ends(side)) for axis, side in zip(partition.axes, cell, strict=True))
    drawn: dict[str, Any] = {"fill": False, "edgecolor": INK, "linewidth": 0.55} | style
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **drawn))


def leaves(root: Node) -> list[Node]:
    """The nodes that are not cut."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        stack += node.children
        found += [] if node.children else [node]
    return found


def points(axes: Any, history: pd.DataFrame) -> None:
    """The evaluated configurations."""
    some = history[history.origin == "evaluated"]
    axes.plot(
        some.x1, some.x2, "o", color=ACCENT, markersize=3.4, markeredgecolor="white", markeredgewidth=0.4, zorder=5
    )


def row(count: int) -> tuple[Any, list[Any]]:
    """A figure of so many pictures side by side."""
    figure, axes = plt.subplots(1, count, figsize=(3.3 * count, 4.0), layout="constrained")
    return figure, list(np.atleast_1d(axes))


def draw_designs() -> Any:
    """Grid and random search, to compare with."""
    figure, axes = row(3)
    for panel, (name, settings) in zip(axes, (("grid", {"levels": 7}), ("random", {}), ("sobol", {})), strict=True):
        history = campaign(name, **settings)
        background(panel, name, history)
        points(panel, history)
    return figure


def draw_soo() -> Any:
    """The partition of each preset."""
    figure, axes = row(3)
    for panel, preset in zip(axes, ("paper", "reference", "greedy"), strict=True):
        history = campaign("soo", preset=preset)
        optimizer = make_optimizer("soo", FUNCTION.space, preset=preset)
        assert isinstance(optimizer, SOO)
        tree = optimizer.tree(history)
        background(panel, f"preset {preset}", history)
        for node in leaves(tree.root):
            outline(panel, tree.partition, node.cell)
        points(panel, history)
    return figure


def draw_bamsoo() -> Any:
    """SOO and BaMSOO with the same sweep; cells that the model screened out are hatched."""
    figure, axes = row(2)
    history = campaign("soo")
    tree: Any = _made("soo", SOO).tree(history)
    background(axes[0], "soo", history)
    for node in leaves(tree.root):
        outline(axes[0], tree.partition, node.cell)
    points(axes[0], history)
    history = campaign("bamsoo", beta=2.0)
    tree = _made("bamsoo", BaMSOO, beta=2.0).tree(history)
    background(axes[1], "bamsoo", history)
    for node in leaves(tree.root):
        screened = node.evaluation.status is Status.APPROXIMATED
        outline(axes[1], tree.partition, node.cell)
        if screened:
            outline(axes[1], tree.partition, node.cell, hatch="/////", linewidth=0, edgecolor="#5a6b78")
    points(axes[1], history)
    return figure


def draw_direct() -> Any:
    """The rectangles of both forms."""
    figure, axes = row(2)
    for panel, name in zip(axes, ("direct", "direct_l"), strict=True):
        history = campaign(name)
        tree: Any = _made(name, Direct).tree(history)
        background(panel, name, history)
        for node in leaves(tree.root):
            outline(panel, tree.partition, node.cell)
        points(panel, history)
    return figure


def draw_fda() -> Any:
    """The spheres of both levels."""
    figure, axes = row(2)
    for panel, levels in zip(axes, (1, 2), strict=True):
        history = campaign("fda", levels=levels)
        tree: Any = _made("fda", FDA, levels=levels).tree(history)
        background(panel, f"fda, levels: {levels}", history)
        for sphere in tree.spheres:
            width = 1.3 - 0.4 * sphere.level
            radius = sphere.radius * (HIGH - LOW)
            panel.add_patch(Circle(place(sphere.centre), radius, fill=False, edgecolor=INK, linewidth=width))
        points(panel, history)
    return figure


def line(at: float) -> float:
    """The function along x2 = 2."""
    return himmelblau(np.array([at, 2.0]))


def draw_bo() -> Any:
    """On a line through the function: what was observed, the process with its band; and what bo does in the plane."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained", width_ratios=(1.5, 1))
    x = np.array([-4.8, -3.1, -1.6, 0.4, 2.1, 4.4])
    space = Space({"x1": Float(LOW, HIGH)})
    targets = -np.array([line(at) for at in x])
    trials = np.arange(len(x))
    inputs = ((x - LOW) / 10)[:, None]
    observations = Observations(trials, inputs, targets, np.ones(len(x), dtype=np.bool_), trials.astype(np.float64))
    surrogate = fit(Features(space), observations, "raw")
    at = np.linspace(0, 1, 300)[:, None]
    mean, deviation = surrogate.believe(at, at[:0])
    axes[0].fill_between(
        *(place(at[:, 0]), -mean - 2 * deviation, -mean + 2 * deviation),
        color=SOFT,
        alpha=0.25,
        linewidth=0,
        label="two standard deviations",
    )
    axes[0].plot(place(at[:, 0]), -mean, color=SOFT, linewidth=1.8, label="posterior mean")
    axes[0].plot(
        place(at[:, 0]), [line(p) for p in place(at[:, 0])], color=INK, linewidth=1, ls="--", label="objective"
    )
    axes[0].plot(x, -targets, "o", color=ACCENT, markersize=5, label="observed")
    axes[0].set(ylim=(-150, 420), xlim=(LOW, HIGH), xlabel="x1, with x2 = 2")
    axes[0].set_title("the process after six observations", fontsize=10, color=INK)
    axes[0].legend(fontsize=8, frameon=False, loc="upper center")
    axes[0].spines[["top", "right"]].set_visible(False)
    history = campaign("bo", budget=30, initial=8)
    background(axes[1], "bo", history)
    points(axes[1], history)
    return figure


def told(name: str, budget: int, **settings: Any) -> list[tuple[NDArray[np.float64], float, dict[str, Any]]]:
    """A sequential campaign: point of the unit cube, value and what the optimizer says of each proposal."""
    optimizer, rows, said = make_optimizer(name, FUNCTION.space, **settings), list[dict[str, Any]](), []
    for trial in range(budget):
        (proposal,) = optimizer.ask(pd.DataFrame(rows), 1).proposals
        value = FUNCTION.evaluate(proposal.parameters)
        rows.append({"trial": trial, "value": value, "target": -value, **proposal.parameters})
        said.append((FUNCTION.space.encode(proposal.parameters), value, dict(proposal.info)))
    return said


def boxes(panel: Any, title: str, said: Any, side_of: Callable[[dict[str, Any]], float | None]) -> None:
    """What was proposed, each local proposal with a box of its size around the best point of that time."""
    values = [value for _, value, _ in said]
    background(panel, f"{title}\nbest of {len(said)}: {min(values):.2g}")
    for i, (point, _, info) in enumerate(said):
        side = side_of(info)
        if side is not None:
            best = said[int(np.argmin(values[:i]))][0]
            corner = place(best - side / 2)
            width = (HIGH - LOW) * side
            panel.add_patch(Rectangle(corner, width, width, fill=False, edgecolor=INK, linewidth=0.55))
        panel.plot(
            *place(point), "o", color=SOFT if side is None else ACCENT, markersize=4, markeredgecolor="white", zorder=5
        )


def draw_regions() -> Any:
    """The boxes of turbo, and the cells of mosaic."""
    figure, axes = row(2)
    boxes(axes[0], "turbo", told("turbo", 40, initial=8), lambda info: info.get("length"))
    boxes(axes[1], "mosaic", told("mosaic", 40, initial=8), lambda info: info.get("side"))
    return figure


def _made(name: str, kind: Any, **settings: Any) -> Any:
    optimizer = make_optimizer(name, FUNCTION.space, **settings)
    assert isinstance(optimizer, kind)
    return optimizer


DRAWINGS: dict[str, Callable[[], Any]] = {
    "designs": draw_designs,
    "soo": draw_soo,
    "bamsoo": draw_bamsoo,
    "direct": draw_direct,
    "fda": draw_fda,
    "bo": draw_bo,
    "regions": draw_regions,
}


def main(names: list[str]) -> int:
    """Draw what is named."""
    if unknown := sorted(set(names) - set(DRAWINGS)):
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(DRAWINGS)}", file=sys.stderr)
        return 1
    for name in names or DRAWINGS:
        figure = DRAWINGS[name]()
        path = IMAGES / f"algorithm_{name}.png"
        figure.savefig(path, dpi=90, metadata={"Software": None})
        plt.close(figure)
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
