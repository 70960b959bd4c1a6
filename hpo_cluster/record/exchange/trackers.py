"""Trackers: where trials can be logged as they end, or all at once. Each is idempotent: logging again changes nothing.

A tracker finds out by itself what it holds already, so that it can be taken up at any time from the journal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field, model_validator

from hpo_cluster.record.exchange.facts import Outline, TrialFacts
from hpo_cluster.record.exchange.libraries import library_fault, need
from hpo_cluster.settings import Settings


class Tracking(Settings):
    """Whether trials are logged elsewhere as they end, and where."""

    kind: Literal["off", "mlflow", "tensorboard"] = Field(
        "off", description="mlflow or tensorboard: trials are logged there as they end; off: nowhere"
    )
    uri: str | None = Field(
        None,
        description="mlflow: tracking URI; null: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db; tensorboard: folder; "
        "null: tensorboard/ in the campaign's folder",
    )
    experiment: str | None = Field(None, description="mlflow: name of the experiment; null: hpo_cluster")
    close_s: float = Field(
        30.0, ge=0, description="seconds that the driver waits at its end for what is still to be logged"
    )

    @model_validator(mode="after")
    def _without_password(self) -> Tracking:
        place, _, _ = (self.uri or "").partition("://")[2].rpartition("@")
        if ":" in place:
            raise ValueError(
                "tracking.uri: holds a password, which would be recorded; leave it null, and export "
                "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the shell"
            )
        return self

    @property
    def faults(self) -> list[str]:
        """Why trials cannot be logged here; empty if they can."""
        fault = library_fault(self.kind)
        found = [f"tracking={fault}"] if fault else []
        return found + ([f"tracking.uri={self.uri}: {place}"] if (place := self.place_fault) else [])

    @property
    def place_fault(self) -> str:
        """Why nothing can be logged at this kind of place; empty if it can."""
        uri = self.uri or ""
        if self.kind == "mlflow" and uri and ":" not in uri and uri != "databricks":
            return (
                f"is not a tracking URI; for a database in a file give sqlite:///{uri}, for a server http://HOST:PORT"
            )
        if self.kind == "tensorboard" and "://" in uri:
            return "is not a folder, which TensorBoard needs"
        return ""


#: Nothing is logged elsewhere.
OFF = Tracking()


class Tracker(Protocol):
    """Where the trials of one campaign are logged. Any method may raise any error, or take long."""

    place: str

    def log(self, facts: TrialFacts) -> bool:
        """Log a trial, or change what was logged of it; return False if nothing had to be changed."""

    def close(self, *, ended: bool) -> None:
        """Complete what was logged; `ended` says whether the campaign has ended."""


def make_tracker(tracking: Tracking, outline: Outline) -> Tracker:
    """Return the tracker of a campaign. Raise ConfigError if its library is not installed."""
    need(tracking.kind)
    if tracking.kind == "mlflow":
        from hpo_cluster.record.exchange.mlflow_runs import MlflowTracker

        return MlflowTracker(outline, tracking.uri, tracking.experiment)
    from hpo_cluster.record.exchange.tensorboard_runs import TensorboardTracker

    return TensorboardTracker(outline, Path(tracking.uri) if tracking.uri else outline.dir / "tensorboard")
