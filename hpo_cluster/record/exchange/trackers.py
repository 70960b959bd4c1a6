"""Trackers: where trials can be logged as they end, or all at once. Each is idempotent: logging again changes nothing.

A tracker finds out by itself what it holds already, so that it can be taken up at any time from the journal.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol

from pydantic import Field, model_validator

from hpo_cluster.record.exchange.facts import Outline, TrialFacts
from hpo_cluster.record.exchange.libraries import library_fault, need
from hpo_cluster.settings import Settings

#: By key: the kinds that have it.
KINDS = {"uri": ("mlflow", "tensorboard"), "experiment": ("mlflow",)}
KINDS |= dict.fromkeys(("project", "entity", "mode", "dir"), ("wandb",))


class Tracking(Settings):
    """Whether trials are logged elsewhere as they end, and where."""

    kind: Literal["off", "mlflow", "tensorboard", "wandb"] = Field(
        "off", description="mlflow, tensorboard or wandb: trials are logged there as they end; off: nowhere"
    )
    uri: str | None = Field(
        None,
        description="mlflow: tracking URI; null: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db; tensorboard: folder; "
        "null: tensorboard/ in the campaign's folder",
    )
    experiment: str | None = Field(None, description="mlflow: name of the experiment; null: hpo_cluster")
    project: str | None = Field(
        None, description="wandb: name of the project; null: WANDB_PROJECT, or wandb's settings, or hpo_cluster"
    )
    entity: str | None = Field(
        None, description="wandb: user or team; null: WANDB_ENTITY, or wandb's settings, or the account's own"
    )
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="wandb: offline: runs are only written to dir; null: WANDB_MODE, or wandb's settings, or online",
    )
    dir: str | None = Field(
        None, description="wandb: folder in which runs are written; null: WANDB_DIR, or the campaign's folder"
    )
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
        found += [f"tracking.uri={self.uri}: {place}"] if (place := self.place_fault) else []
        found += [
            f"tracking.{key}={value}: belongs to {' or '.join(f'tracking={kind}' for kind in kinds)}"
            for key, kinds in KINDS.items()
            if (value := getattr(self, key)) is not None and self.kind not in kinds and "wandb" in (self.kind, *kinds)
        ]
        if self.kind == "wandb" and not found:
            from hpo_cluster.record.exchange.wandb_runs import wandb_fault

            fault = wandb_fault(self.project, self.entity, self.mode)
            found += [f"tracking=wandb: {fault}"] if fault else []
        return found

    @property
    def of_export(self) -> list[str]:
        """The words with which ``hpo-cluster export`` logs to the same place."""
        given = {"to": self.kind, "path": self.uri or self.dir, "name": self.experiment or self.project}
        return [f"{key}={value}" for key, value in given.items() if value]

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
    if tracking.kind == "wandb":
        from hpo_cluster.record.exchange.wandb_runs import WandbSettings, WandbTracker

        folder = Path(tracking.dir or os.environ.get("WANDB_DIR") or outline.dir).absolute()
        return WandbTracker(outline, WandbSettings(tracking.project, tracking.entity, tracking.mode, folder))
    from hpo_cluster.record.exchange.tensorboard_runs import TensorboardTracker

    return TensorboardTracker(outline, Path(tracking.uri) if tracking.uri else outline.dir / "tensorboard")
