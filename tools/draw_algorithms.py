"""Draw the pictures of ``docs/algorithms/``: what each optimizer does with Himmelblau's function.

Usage: ``python tools/draw_algorithms.py [NAME ...]``, for instance ``soo bo``; without names it draws all. It takes a
minute or two and writes ``docs/images/algorithm_NAME.png``.
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
from benchmarks.rungs.contestants import Ours  # noqa: E402
from benchmarks.rungs.problems import LADDER  # noqa: E402
from benchmarks.rungs.simulate import simulate  # noqa: E402
from hpo_cluster.objectives.benchmark_functions import FUNCTIONS, himmelblau  # noqa: E402
from hpo_cluster.optimizers.bayesian.surrogate import surrogate_of  # noqa: E402
from hpo_cluster.optimizers.registry import make_optimizer  # noqa: E402
from hpo_cluster.space import Float, Space  # noqa: E402

IMAGES = ROOT / "docs" / "images"
FUNCTION = FUNCTIONS["himmelblau"]
LOW, HIGH = -5.0, 5.0
OPTIMA = np.array([(3.0, 2.0), (-2.805118, 3.131312), (-3.77931, -3.283186), (3.584428, -1.848126)])
INK, ACCENT, SOFT = "#1b2733", "#c8401e", "#3b78a8"
BUDGET = 50


def campaign(name: str, budget: int = BUDGET, **settings: Any) -> pd.DataFrame:
    """Return the history of a campaign on the function."""
    fn: Callable[..., float] = lambda **x: FUNCTION.evaluate(x)  # noqa: E731
    space = FUNCTION.space
    return hpo_cluster.optimize(fn, space, optimizer=name, budget=budget, direction="minimize", **settings).history


def background(axes: Any, title: str, history: pd.DataFrame | None = None) -> None:
    """Draw the function's contours, its four minima, and a title with the best value found."""
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
    """Return coordinates of the picture for coordinates of the unit cube."""
    return LOW + (HIGH - LOW) * np.asarray(u)


def outline(axes: Any, cells: pd.DataFrame, **style: Any) -> None:
    """Draw the rectangles of cells."""
    drawn: dict[str, Any] = {"fill": False, "edgecolor": INK, "linewidth": 0.55} | style
    for x0, y0, x1, y1 in cells[["x1.low", "x2.low", "x1.high", "x2.high"]].to_numpy():
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **drawn))


def cells_of(name: str, history: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """Return the cells into which optimizer `name` has divided the space."""
    optimizer: Any = make_optimizer(name, FUNCTION.space, **settings)
    cells: pd.DataFrame = optimizer.tree(history).cells()
    return cells


def points(axes: Any, history: pd.DataFrame) -> None:
    """Draw the evaluated configurations."""
    some = history[history.origin == "evaluated"]
    axes.plot(
        some.x1, some.x2, "o", color=ACCENT, markersize=3.4, markeredgecolor="white", markeredgewidth=0.4, zorder=5
    )


def row(count: int) -> tuple[Any, list[Any]]:
    """Return a figure with `count` pictures side by side, and their axes."""
    figure, axes = plt.subplots(1, count, figsize=(3.3 * count, 4.0), layout="constrained")
    return figure, list(np.atleast_1d(axes))


def draw_designs() -> Any:
    """Draw grid search, random search and Sobol points, for comparison."""
    figure, axes = row(3)
    for panel, (name, settings) in zip(axes, (("grid", {"levels": 7}), ("random", {}), ("sobol", {})), strict=True):
        history = campaign(name, **settings)
        background(panel, name, history)
        points(panel, history)
    return figure


def draw_soo() -> Any:
    """Draw the partition of each preset of SOO."""
    figure, axes = row(3)
    for panel, preset in zip(axes, ("paper", "reference", "greedy"), strict=True):
        history = campaign("soo", preset=preset)
        background(panel, f"preset {preset}", history)
        outline(panel, cells_of("soo", history, preset=preset))
        points(panel, history)
    return figure


def draw_bamsoo() -> Any:
    """Draw SOO and BaMSOO with the same sweep; cells that the model screened out are hatched."""
    figure, axes = row(2)
    history = campaign("soo")
    background(axes[0], "soo", history)
    outline(axes[0], cells_of("soo", history))
    points(axes[0], history)
    history = campaign("bamsoo", beta=2.0)
    cells = cells_of("bamsoo", history, beta=2.0)
    background(axes[1], "bamsoo", history)
    outline(axes[1], cells)
    outline(axes[1], cells[cells.status == "approximated"], hatch="/////", linewidth=0, edgecolor="#5a6b78")
    points(axes[1], history)
    return figure


def draw_direct() -> Any:
    """Draw the rectangles of DIRECT and DIRECT-L."""
    figure, axes = row(2)
    for panel, name in zip(axes, ("direct", "direct_l"), strict=True):
        history = campaign(name)
        background(panel, name, history)
        outline(panel, cells_of(name, history))
        points(panel, history)
    return figure


def draw_fda() -> Any:
    """Draw the spheres of FDA with one and with two levels."""
    figure, axes = row(2)
    for panel, levels in zip(axes, (1, 2), strict=True):
        history = campaign("fda", levels=levels)
        optimizer: Any = make_optimizer("fda", FUNCTION.space, levels=levels)
        background(panel, f"fda, levels: {levels}", history)
        for sphere in optimizer.tree(history).spheres:
            width = 1.3 - 0.4 * sphere.level
            radius = sphere.radius * (HIGH - LOW)
            panel.add_patch(Circle(place(sphere.centre), radius, fill=False, edgecolor=INK, linewidth=width))
        points(panel, history)
    return figure


def line(at: float) -> float:
    """Return the function's value at x1 = `at`, x2 = 2."""
    return himmelblau(np.array([at, 2.0]))


def draw_bo() -> Any:
    """Draw a Gaussian process with its band on a line through the function, and the points of bo in the plane."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9), layout="constrained", width_ratios=(1.5, 1))
    x = np.array([-4.8, -3.1, -1.6, 0.4, 2.1, 4.4])
    observed = pd.DataFrame({"x1": x, "target": [-line(at) for at in x]})
    surrogate = surrogate_of(observed, Space({"x1": Float(LOW, HIGH)}), "raw")
    along = np.linspace(LOW, HIGH, 300)
    mean, deviation = surrogate.predict({"x1": float(at)} for at in along)
    axes[0].fill_between(
        *(along, -mean - 2 * deviation, -mean + 2 * deviation),
        color=SOFT,
        alpha=0.25,
        linewidth=0,
        label="two standard deviations",
    )
    axes[0].plot(along, -mean, color=SOFT, linewidth=1.8, label="posterior mean")
    axes[0].plot(along, [line(at) for at in along], color=INK, linewidth=1, ls="--", label="objective")
    axes[0].plot(x, -observed.target, "o", color=ACCENT, markersize=5, label="observed")
    axes[0].set(ylim=(-150, 420), xlim=(LOW, HIGH), xlabel="x1, with x2 = 2")
    axes[0].set_title("the process after six observations", fontsize=10, color=INK)
    axes[0].legend(fontsize=8, frameon=False, loc="upper center")
    axes[0].spines[["top", "right"]].set_visible(False)
    history = campaign("bo", budget=30, initial=8)
    background(axes[1], "bo", history)
    points(axes[1], history)
    return figure


def proposals_of(name: str, budget: int, **settings: Any) -> list[tuple[NDArray[np.float64], float, dict[str, Any]]]:
    """Run a sequential campaign; return the point in the unit cube, the value and the info of each proposal."""
    optimizer, rows, found = make_optimizer(name, FUNCTION.space, **settings), list[dict[str, Any]](), []
    for trial in range(budget):
        (proposal,) = optimizer.ask(pd.DataFrame(rows), 1).proposals
        value = FUNCTION.evaluate(proposal.parameters)
        rows.append({"trial": trial, "value": value, "target": -value, **proposal.parameters})
        found.append((FUNCTION.space.encode(proposal.parameters), value, dict(proposal.info)))
    return found


def boxes(panel: Any, title: str, proposals: Any, side_of: Callable[[dict[str, Any]], float | None]) -> None:
    """Draw the proposals; each local one has a box of its side length around the best point at that time."""
    values = [value for _, value, _ in proposals]
    background(panel, f"{title}\nbest of {len(proposals)}: {min(values):.2g}")
    for i, (point, _, info) in enumerate(proposals):
        side = side_of(info)
        if side is not None:
            best = proposals[int(np.argmin(values[:i]))][0]
            corner = place(best - side / 2)
            width = (HIGH - LOW) * side
            panel.add_patch(Rectangle(corner, width, width, fill=False, edgecolor=INK, linewidth=0.55))
        panel.plot(
            *place(point), "o", color=SOFT if side is None else ACCENT, markersize=4, markeredgecolor="white", zorder=5
        )


def draw_regions() -> Any:
    """Draw the boxes of turbo and the cells of mosaic."""
    figure, axes = row(2)
    boxes(axes[0], "turbo", proposals_of("turbo", 40, initial=8), lambda info: info.get("length"))
    boxes(axes[1], "mosaic", proposals_of("mosaic", 40, initial=8), lambda info: info.get("side"))
    return figure


def draw_other_libraries() -> Any:
    """Draw the points that TPE, CMA-ES and NOMAD evaluate."""
    figure, axes = row(3)
    titles = {"optuna": "Optuna's TPE", "nevergrad": "Nevergrad's CMA-ES", "nomad": "NOMAD"}
    for panel, (name, title) in zip(axes, titles.items(), strict=True):
        history = campaign(name)
        background(panel, title, history)
        points(panel, history)
    return figure


def draw_rungs() -> Any:
    """Draw the trials of ASHA, Hyperband and BOHB, larger the higher the rung that they reached."""
    figure, axes = row(3)

    def observe(trial: int, configuration: Any) -> tuple[tuple[float, ...], float]:
        x, y = configuration["x1"], configuration["x2"]
        values = [-himmelblau(np.array([x + 0.5 * (1 - share), y])) for share in LADDER.shares]
        return tuple(map(float, values)), float(values[-1])

    for panel, name in zip(axes, ("asha", "hyperband", "bohb"), strict=True):
        contestant = Ours(f"{name}+careful", FUNCTION.space, 0)
        run = simulate(contestant, observe, LADDER, 12, 1, lambda trial: 1.0)
        background(panel, f"{name}\nbest of {len(contestant.cells)} begun, {len(run.true)} whole: {-max(run.true):.2g}")
        for cells in contestant.cells:
            size = 2.4 + 2.2 * cells["rung"]
            panel.plot(cells["x1"], cells["x2"], "o", color=ACCENT, markersize=size, markeredgecolor="white", zorder=5)
    return figure


DRAWINGS: dict[str, Callable[[], Any]] = {
    "designs": draw_designs,
    "soo": draw_soo,
    "bamsoo": draw_bamsoo,
    "direct": draw_direct,
    "fda": draw_fda,
    "bo": draw_bo,
    "regions": draw_regions,
    "other_libraries": draw_other_libraries,
    "rungs": draw_rungs,
}


def main(names: list[str]) -> int:
    """Draw the named pictures, or all."""
    if unknown := sorted(set(names) - set(DRAWINGS)):
        print(f"unknown: {', '.join(unknown)}; accepted: {', '.join(DRAWINGS)}", file=sys.stderr)
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
