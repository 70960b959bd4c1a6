"""What the report is made from: the history with what is needed to read it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import ConfigError, JournalError
from hpo_cluster.objectives import parse_objective
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.lora.settings import LoraObjective
from hpo_cluster.record.attempt_files import is_finite_number
from hpo_cluster.record.files import read_json
from hpo_cluster.record.history import METRIC_PREFIX, load_history
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.space import Space
from hpo_cluster.text import test_metrics
from hpo_cluster.trial import BASELINE, Origin, State, trial_label

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: States that are drawn.
DRAWN = (State.COMPLETED, State.DIVERGED, State.INFEASIBLE, State.FAILED)
MAX_OTHER_METRICS = 4


@dataclass(frozen=True)
class Campaign:
    """What the pages and pictures are made from."""

    layout: CampaignLayout
    name: str
    identity: dict[str, Any]
    space: Space
    metric: str
    maximize: bool
    others: tuple[str, ...]  # metrics to set against the optimised one
    others_are_tests: bool
    history: pd.DataFrame
    sems: dict[int, dict[str, float]]  # standard errors that the results report, by trial and metric

    @property
    def ended(self) -> pd.DataFrame:
        """Evaluated trials that have ended, in the order in which they did."""
        frame = self.history
        drawn = frame["state"].isin([str(state) for state in DRAWN]) & (frame["origin"] == str(Origin.EVALUATED))
        return frame[drawn].sort_values("ended_seq", kind="stable")

    @property
    def ranked(self) -> pd.DataFrame:
        """Evaluated trials with a value, the best first."""
        frame = self.ended[self.ended["value"].notna()]
        return frame.sort_values(["value", "trial"], ascending=[not self.maximize, True], kind="stable")

    @property
    def imported(self) -> pd.DataFrame:
        """Evaluations of earlier campaigns that this one began with, the best first."""
        frame = self.history[self.history["origin"] == str(Origin.IMPORTED)]
        return frame.sort_values(["value", "trial"], ascending=[not self.maximize, True], kind="stable")

    @property
    def baseline(self) -> pd.Series | None:
        """The model before fine-tuning, where it was scored."""
        rows = self.history[(self.history["trial"] == BASELINE) & self.history["value"].notna()]
        return None if rows.empty else rows.iloc[0]

    @property
    def title(self) -> str:
        """The name, short enough for the head of a figure."""
        return shorten(self.name, 36)

    @property
    def goal(self) -> str:
        """The optimised metric and its direction, in words."""
        return f"{self.metric} ({'higher' if self.maximize else 'lower'} is better)"


def read_campaign(campaign_dir: Path) -> Campaign:
    """Gather what the report is made from. Raise JournalError if there is no campaign."""
    layout = CampaignLayout(campaign_dir)
    identity = read_identity(layout.identity)
    if identity is None:
        raise JournalError(f"{layout.dir} is not a campaign: it has no campaign.yaml")
    history = load_history(campaign_dir)
    try:
        objective: Objective | None = parse_objective(identity["objective"])
    except ConfigError as error:  # of another version, perhaps: the history can be drawn all the same
        log.warning("campaign=%s objective=unreadable reason=%s", layout.dir, error)
        objective = None
    metric = (objective.metric if objective else None) or "value"
    direction = identity.get("direction") or (objective.direction if objective else "maximize")
    columns = map(str, history.columns)
    known = [column.removeprefix(METRIC_PREFIX) for column in columns if column.startswith(METRIC_PREFIX)]
    tests = isinstance(objective, LoraObjective)
    if isinstance(objective, LoraObjective):
        others = test_metrics(metric, objective.tasks.test, known)
    else:
        others = known
    chosen = [name for name in others if name in known and name != metric]
    return Campaign(
        layout=layout,
        name=layout.dir.resolve().name,
        identity=identity,
        space=Space.from_json(identity["space"]),
        metric=metric,
        maximize=direction == "maximize",
        others=tuple(chosen if tests else chosen[:MAX_OTHER_METRICS]),
        others_are_tests=tests,
        history=history,
        sems={int(trial): _sems(layout, int(trial)) for trial in history["trial"]},
    )


def _sems(layout: CampaignLayout, trial: int) -> dict[str, float]:
    results = (layout.trials_dir / trial_label(trial)).glob("a*/result.json")
    sems = next(((read_json(result) or {}).get("sems") for result in results), None)  # an attempt of a trial has one
    if not isinstance(sems, dict):
        return {}
    return {name: float(sem) for name, sem in sems.items() if is_finite_number(sem) and sem >= 0}


def shorten(choice: Any, length: int = 12) -> str:
    """The text of `choice`, cut to so many characters."""
    text = str(choice)
    return text if len(text) <= length else text[: length - 1] + "…"
