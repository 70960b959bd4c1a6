"""Make a campaign of evaluations that were made elsewhere: its journal begins with all of them, or is not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpo_cluster.driver.open_campaign import OpenCampaign
from hpo_cluster.driver.spec import CampaignSpec
from hpo_cluster.record.exchange.evaluations import Evaluation
from hpo_cluster.record.history import load_history, write_history
from hpo_cluster.record.warm_start import WarmStart
from hpo_cluster.trial import BASELINE, Origin, State, derive_seed


def renumbered(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the evaluations numbered from 0 without a gap; a baseline keeps its number."""
    ordinary = [e for e in evaluations if e.number != BASELINE]
    baseline = [e for e in evaluations if e.number == BASELINE]
    return [*baseline, *(dataclasses.replace(e, number=number) for number, e in enumerate(ordinary))]


def journal_rows(evaluations: Sequence[Evaluation], seed: int, source: str) -> list[dict[str, Any]]:
    """Return the trials of evaluations as the event ``created`` holds them.

    Args:
        evaluations: numbered as the trials.
        seed: of the campaign, from which seeds that are not known are derived.
        source: name of the file, for the record.
    """
    rows, ended_at = list[dict[str, Any]](), ""
    for e in evaluations:
        settled = e.origin not in (Origin.EVALUATED, Origin.BASELINE)
        ended_at = e.times.get("ended_at", ended_at)
        derived = derive_seed(seed, "baseline") if e.number == BASELINE else derive_seed(seed, "trial", e.number)
        measured = {"value_sem": e.value_sem, "metrics": dict(e.metrics), "sems": dict(e.sems), **e.times}
        ended = {"state": str(e.state), "error": dict(e.error) if e.error else None, **e.jobs}
        rows.append(
            {
                "trial": e.number,
                "seed": derived if e.seed is None else e.seed,
                "origin": str(e.origin),
                "parameters": dict(e.parameters),
                "info": {"made_elsewhere": source},
                "value": e.value,
                **{name: cell for name, cell in measured.items() if cell},
                **({} if settled else ended),
                **({"ended_at": ended_at} if settled and ended_at else {}),  # it was settled when the one before ended
            }
        )
    return rows


def write_campaign(spec: CampaignSpec, evaluations: Sequence[Evaluation], source: Path) -> None:
    """Write a finished campaign that holds these evaluations; its budget is what they have used."""
    rows = journal_rows(renumbered(evaluations), spec.seed, source.name)
    used = sum(row["origin"] == Origin.EVALUATED and State(row["state"]).counts for row in rows)
    operation = spec.operation.model_copy(update={"budget": max(1, used)})
    begins_with = WarmStart(made_elsewhere=tuple(rows))
    opened = OpenCampaign(dataclasses.replace(spec, operation=operation, warm_start=begins_with))
    try:
        opened.write_stop("finished")
    finally:
        opened.close()
    write_history(load_history(spec.dir), opened.layout.history)
