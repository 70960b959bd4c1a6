"""Confirmations: the best configurations of a campaign, evaluated again with new seeds, outside the budget.

The best of many noisy measurements is partly lucky, so its value is too good on average. Evaluations with new seeds
have no part in the choice, and their mean has no such bias. Replicate number r has the same seed for every
configuration, so that configurations are compared in pairs: what the seed does to all of them cancels out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo_cluster.errors import ConfigError
from hpo_cluster.goals import Goals, reference_of, widest
from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.trial import FIRST_CONFIRMATION, Origin, State, derive_seed, trial_label

#: Fields of a confirmation's `info`: the trial whose configuration it evaluates again, and which of its replicates.
OF, REPLICATE = "confirms", "replicate"

#: Number of configurations and of replicates if nothing else is asked for.
TOP, REPLICATES = 3, 3

#: Quantiles of Student's t distribution for 95 % intervals, by degrees of freedom from 1.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Wanted:
    """What is to be confirmed.

    Attributes:
        top: number of configurations, the best ones.
        replicates: number of evaluations of each.
        trials: trials whose configurations are taken instead of the best ones; empty: the best ones.
    """

    top: int = TOP
    replicates: int = REPLICATES
    trials: tuple[int, ...] = ()


def chosen(
    record: Record, wanted: Wanted, goals: Goals | None, *, maximize: bool, ranking: Sequence[int] = ()
) -> list[TrialRecord]:
    """Return the trials to confirm, the best first; of trials with one configuration, the best.

    With constraints, those that satisfy them; with several objectives, points of the front, chosen one after another by
    what each adds to the volume that they dominate together.

    Args:
        record: the campaign's record.
        wanted: what is to be confirmed.
        goals: the objectives and constraints, if there are several objectives or any constraints.
        maximize: whether higher values are better.
        ranking: trials by what the campaign recommends, the best first; the others follow by their values.

    Raises:
        ConfigError: if there are none, or one of `wanted.trials` has no value of its own.
    """
    if wanted.trials:
        known = {trial.number: trial for trial in record.valued}
        if missing := [number for number in wanted.trials if number not in known]:
            labels = ", ".join(map(trial_label, missing))
            raise ConfigError([f"trials: {labels}: only a trial that this campaign has completed can be confirmed"])
        found = [known[number] for number in wanted.trials]
    elif goals is not None and goals.several:
        found = record.front(goals)
    else:
        trials = [trial for trial in record.valued if goals is None or goals.feasible(trial.metrics)]
        places, sign = {number: place for place, number in enumerate(ranking)}, -1 if maximize else 1
        found = sorted(trials, key=lambda t: (places.get(t.number, len(places)), (t.value or 0.0) * sign, t.number))
    if not found:
        raise ConfigError(["nothing to confirm: no trial has a value yet, or none satisfies the constraints"])
    configurations = {tuple(sorted(trial.parameters.items())): trial for trial in reversed(found)}
    kept = [trial for trial in found if configurations[tuple(sorted(trial.parameters.items()))] is trial]
    if wanted.trials or goals is None or not goals.several:
        return kept if wanted.trials else kept[: wanted.top]
    reference = reference_of(goals.references, [goals.targets(trial.metrics) for trial in record.valued])
    order = widest([goals.targets(trial.metrics) for trial in kept], reference, wanted.top)
    return [kept[i] for i in order]


def missing_rows(record: Record, trials: Sequence[TrialRecord], replicates: int, seed: int) -> list[dict[str, Any]]:
    """Return the confirmations that the campaign does not have yet, for the ``asked`` event.

    Args:
        record: the campaign's record.
        trials: the trials to confirm.
        replicates: number of evaluations of each.
        seed: the campaign's.
    """
    there = {(trial.info.get(OF), trial.info.get(REPLICATE)) for trial in record.confirmations}
    number = min([FIRST_CONFIRMATION + 1, *(trial.number for trial in record.confirmations)])
    rows = []
    for replicate in range(replicates):
        for trial in trials:
            if (trial.number, replicate) not in there:
                number -= 1
                rows.append(
                    {
                        "trial": number,
                        "parameters": trial.parameters,
                        "seed": confirmation_seed(seed, replicate),
                        "origin": Origin.CONFIRMATION,
                        "info": {OF: trial.number, REPLICATE: replicate},
                    }
                )
    return rows


def confirmation_seed(seed: int, replicate: Any) -> int:
    """Return the seed of a replicate, which is the same for every configuration of a campaign."""
    return derive_seed(seed, "confirmation", replicate)


def confirmations_of(record: Record) -> dict[int, list[TrialRecord]]:
    """Return the confirmations of each confirmed trial, by its number."""
    groups: dict[int, list[TrialRecord]] = {}
    for trial in record.confirmations:
        groups.setdefault(int(trial.info[OF]), []).append(trial)
    return groups


def confirmation_status(record: Record, *, maximize: bool) -> dict[str, Any] | None:
    """Return what confirmations have found, as plain data; None without any.

    Returns:
        ``wanted``, ``done`` and ``failed`` count evaluations. ``trials`` has an entry for each confirmed trial, the one
        with the best mean first: ``first`` is the value that the trial had; ``values`` those of its
        replicates, with ``mean``, ``sem``, ``lowest`` and ``highest``; ``behind`` how far it is behind the best mean in
        pairs of equal seeds (``mean``, ``low`` and ``high`` of a 95 % interval, ``pairs``).
    """
    if not record.confirmations:
        return None
    rows = [_row(record, number, trials) for number, trials in confirmations_of(record).items()]
    sign = 1.0 if maximize else -1.0
    rows.sort(key=lambda row: (row["mean"] is None, -sign * (row["mean"] or 0.0), row["trial"]))
    for row in rows:
        row["behind"] = None if row is rows[0] else _behind(rows[0]["values"], row["values"], sign)
    states = [trial.state for trial in record.confirmations]
    done = sum(state is State.COMPLETED for state in states)
    failed = sum(state.ended and state is not State.COMPLETED for state in states)
    return {"wanted": len(states), "done": done, "failed": failed, "trials": rows}


def _row(record: Record, number: int, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return what the replicates of one configuration say."""
    first = record.trials.get(number)
    values = {str(t.info[REPLICATE]): t.value for t in trials if t.state is State.COMPLETED and t.value is not None}
    found = [value for _, value in sorted(values.items(), key=lambda item: int(item[0]))]
    return {
        "trial": number,
        "first": None if first is None else first.value,
        "replicates": len(trials),
        "values": values,
        "mean": statistics.fmean(found) if found else None,
        "sem": _sem(found),
        "lowest": min(found, default=None),
        "highest": max(found, default=None),
    }


def _sem(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _behind(best: Mapping[str, float], other: Mapping[str, float], sign: float) -> dict[str, Any] | None:
    """Return by how much a configuration is worse than the best one, in pairs of equal seeds; None without a pair."""
    pairs = [sign * (best[replicate] - other[replicate]) for replicate in best if replicate in other]
    if not pairs:
        return None
    mean, sem = statistics.fmean(pairs), _sem(pairs)
    half = None if sem is None else quantile(len(pairs) - 1) * sem
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "low": low, "high": high, "pairs": len(pairs)}


def quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, to three digits."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom + 3.0 / freedom**2


def confirmation_cost(record: Record) -> dict[str, Any] | None:
    """Return what a confirmation of the default size would cost, by what trials took; None before one has ended."""
    mean = record.mean_evaluation_s
    if mean is None:
        return None
    valued = record.valued
    count = min(TOP, len(valued)) * REPLICATES
    hours = math.fsum(record.gpu_hours_of(trial.number) for trial in valued) / len(valued) if valued else 0.0
    workers = (record.starts[-1].get("operation", {}) if record.starts else {}).get("workers", 1)
    seconds = math.ceil(count / max(workers, 1)) * mean
    return {"evaluations": count, "gpu_hours": round(count * hours, 4), "seconds": round(seconds, 1)}
