"""An objective that was evaluated elsewhere: of campaigns that were imported, which nothing here can go on with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpo_cluster.objectives.base import MetricByName, PathResolver


class ElsewhereObjective(MetricByName):
    """What evaluations that were made elsewhere have measured."""

    kind: Literal["elsewhere"] = "elsewhere"
    metric_name: str = Field("value", alias="metric", min_length=1, description="what was optimised")

    @property
    def label(self) -> str:
        """Short name, used in the default name of a campaign."""
        return "elsewhere"

    @property
    def program(self) -> str:
        """File name of a program in ``jobs/``; no job is ever made of it."""
        return "command.py"

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return why nothing can be evaluated here."""
        return [
            "objective=elsewhere: was evaluated elsewhere and cannot be evaluated here; to go on from these "
            "evaluations: hpo-cluster run objective=... 'warm_start=[campaigns/IMPORTED]' "
            "warm_start_other_objective=true"
        ]
