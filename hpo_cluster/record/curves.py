"""The values of a campaign's trials at each rung, as a pandas table."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import JournalError
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.history import METRIC_PREFIX
from hpo_cluster.record.identity import identity_of_campaign
from hpo_cluster.record.layout import CampaignLayout

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table, before the metrics.
CURVE_COLUMNS = ("trial", "rung", "fidelity", "value", "value_sem", "attempt", "step", "seconds", "seq")


def load_curves(campaign_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the values of a campaign's trials at the rungs that they have reached.

    Args:
        campaign_dir: directory of a campaign with rungs (``fidelity=...``).

    Returns:
        One row for each trial and rung at which it was scored, the top included; the columns are described in
        ``docs/reference/history.md``.

    Raises:
        JournalError: if there is no campaign, its journal cannot be read, or it has no rungs.

    Example:
        >>> from hpo_cluster import optimize
        >>> from my_study import early  # def early(x, fidelity): return x * x * fidelity
        >>> space = {"x": {"low": -1.0, "high": 1.0}}
        >>> result = optimize(early, space, optimizer="random", budget=1, campaign="climb", fidelity="share")
        >>> load_curves("campaigns/climb")["fidelity"].round(2).tolist()
        [0.11, 0.33, 1.0]
    """
    layout = CampaignLayout(Path(campaign_dir))
    identity_of_campaign(layout.identity)
    record = Record.read(layout.events)
    if record.ladder is None:
        raise JournalError(f"{layout.dir} has no rungs: it was made without fidelity=steps, data, items or share")
    return curves_of(record)


def curves_of(record: Record) -> pd.DataFrame:
    """Return the values of a record's trials at their rungs, in the order of trials and rungs."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for trial in record.rows:
        if trial.climb is None or record.ladder is None:
            continue
        for rung, score in sorted(trial.climb.scores.items()):
            cells = (
                *(trial.number, rung, record.ladder.shares[rung], score.value, score.value_sem),
                *(score.attempt, score.step, score.seconds, score.seq),
            )
            numbers = (math.nan if cell is None else cell for cell in cells)
            metrics = {METRIC_PREFIX + name: value for name, value in score.metrics.items()}
            rows.append({**dict(zip(CURVE_COLUMNS, numbers, strict=True)), **metrics})
    names = sorted({name for row in rows for name in row} - set(CURVE_COLUMNS))
    return pd.DataFrame(rows, columns=[*CURVE_COLUMNS, *names])
