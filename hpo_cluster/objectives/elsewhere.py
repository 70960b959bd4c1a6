"""An objective that was evaluated elsewhere: of campaigns that were imported, which nothing here can go on with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from hpo_cluster.objectives.base import Objective, PathResolver


class ElsewhereObjective(Objective):
    """What evaluations that were made elsewhere have measured."""

    # The field `metric` has another name in Python because `Objective.metric` is a property.
    model_config = ConfigDict(serialize_by_alias=True)

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

    @property
    def metric(self) -> str:
        """Name of the metric that was optimised; the first one of several."""
        return self.metrics[0].name if self.metrics else self.metric_name

    def job_settings(self, resolve: PathResolver) -> dict[str, Any]:
        """Return the settings as plain data."""
        return self.model_dump(mode="json", by_alias=True)

    def file_faults(self, resolve: PathResolver) -> list[str]:
        """Return why nothing can be evaluated here."""
        return [
            "objective=elsewhere: was evaluated elsewhere and cannot be evaluated here; to go on from these "
            "evaluations: hpo-cluster run objective=... 'warm_start=[campaigns/IMPORTED]' "
            "warm_start_other_objective=true"
        ]
