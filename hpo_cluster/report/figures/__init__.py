"""The figures of a report: what each shows is computed here as plain data, and drawn by `still` and `live`.

Only evaluated trials are shown, not the values that an optimizer inherited, approximated or imputed, unless a figure is
about these. A trial without a value (diverged, failed) is a marker on a strip below the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpo_cluster.report.data import Campaign
from hpo_cluster.report.figures import curves, jobs, model, objectives, parameters, progress
from hpo_cluster.report.figures.description import Figure
from hpo_cluster.text import Progress, untold

#: The figures by the names of their files, in their order on the page. One for which there is nothing to draw is None.
FIGURES: Mapping[str, Callable[[Campaign], Figure | None]] = {
    "front": objectives.front,
    "hypervolume": objectives.hypervolume,
    "best_by_evaluations": progress.best_by_evaluations,
    "best_by_time": progress.best_by_time,
    "best_by_gpu_hours": progress.best_by_gpu_hours,
    "curves": curves.rungs,
    "losses": curves.losses,
    "parameters": parameters.score_by_parameter,
    "parameters_over_time": parameters.parameters_over_time,
    "parallel_coordinates": parameters.parallel_coordinates,
    "importance": model.importance,
    "slices": model.slices,
    "contours": model.contours,
    "validation_test": objectives.validation_test,
    "tree": curves.tree,
    "timeline": jobs.timeline,
    "failures": jobs.failures,
    "costs": jobs.costs,
}


def figures_of(campaign: Campaign, progress: Progress = untold) -> dict[str, Figure]:
    """Return the figures for which there is something to draw; `progress` is told of each of `FIGURES`."""
    made: dict[str, Figure] = {}
    for number, (stem, make) in enumerate(FIGURES.items(), start=1):
        figure = make(campaign)
        if figure is not None:
            made[stem] = figure
        progress("figures", number, len(FIGURES))
    return made
