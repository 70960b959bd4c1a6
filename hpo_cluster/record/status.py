"""The status of a campaign, read from its journal and its jobs' progress files, without pandas or torch."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hpo_cluster.goals import Goals
from hpo_cluster.record import clock
from hpo_cluster.record.attempt_files import document_of
from hpo_cluster.record.campaign_state import BY_STOP, Record
from hpo_cluster.record.climb import Climb, room_for, rung_table, saved
from hpo_cluster.record.clock import is_time, moment, seconds_between, seconds_since
from hpo_cluster.record.confirmation import confirmation_cost, confirmation_status
from hpo_cluster.record.confirmed_front import confirmed_front
from hpo_cluster.record.files import read_json
from hpo_cluster.record.identity import SIMULATION, identity_of_campaign
from hpo_cluster.record.item_pairs import confirmation_on_items
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.record.lock import heartbeat_age_s, owner_lives, read_lock
from hpo_cluster.record.processes import is_alive, is_stopped
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.text import command_line, counted, some_of
from hpo_cluster.trial import BASELINE, State, trial_label
from hpo_cluster.window import LaunchHours


def campaign_status(campaign_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the status of a campaign as plain data (JSON).

    Raises:
        JournalError: if there is no campaign, or its journal cannot be read.
    """
    layout = CampaignLayout(Path(campaign_dir))
    identity = identity_of_campaign(layout.identity)
    owner = read_lock(layout.lock)
    alive = owner is not None and owner_lives(layout.lock, owner)
    goals = Goals.of(identity["objective"])
    record = Record.read(layout.events)
    simulated = SIMULATION in identity
    status = summarise(record, layout, identity["direction"], goals=goals, driver_alive=alive, simulated=simulated)
    can_go_on = not simulated and identity["objective"].get("kind") != "elsewhere"
    status["confirmation"] = confirmation_on_items(record, layout, maximize=identity["direction"] == "maximize")
    status["confirmation_cost"] = confirmation_cost(record) if can_go_on else None
    if record.ladder is not None:
        status["fidelity"]["checkpoint_bytes"] = checkpoint_bytes(record, layout)
    return status


def scheduler_view(data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the scheduler last said, without entries that a driver never writes; empty if unknown."""
    if not data:
        return {}
    jobs = data.get("jobs")
    sound = {name: job for name, job in jobs.items() if isinstance(job, dict)} if isinstance(jobs, dict) else {}
    times = {name: data.get(name) if is_time(data.get(name)) else None for name in ("at", "silent_since")}
    since = {name: job.get("unknown_since") for name, job in sound.items()}
    return {
        **times,
        "jobs": {n: {**job, "unknown_since": since[n] if is_time(since[n]) else None} for n, job in sound.items()},
    }


def summarise(
    record: Record,
    layout: CampaignLayout,
    direction: str,
    *,
    goals: Goals | None = None,
    driver_alive: bool,
    exhausted: bool = False,
    simulated: bool = False,
    read: Callable[[Path], dict[str, Any] | None] = read_json,
) -> dict[str, Any]:
    """Return the status of a record as plain data; ``docs/reference/status.md`` describes the fields.

    Args:
        record: the campaign's record.
        layout: the campaign's files.
        direction: ``maximize`` or ``minimize``.
        goals: the objectives and constraints, if there are several objectives or any constraints.
        driver_alive: whether a driver is running.
        exhausted: whether this driver has found that the space has no other configuration.
        simulated: whether jobs and time are those of a simulated cluster.
        read: reader of the JSON files that the jobs and the driver rewrite all the time.
    """
    start = record.starts[-1] if record.starts else {}
    operation = start.get("operation", {})
    budget = operation.get("budget", 0)
    in_flight = record.in_flight
    exhausted = exhausted or (not in_flight and bool((record.stopped or {}).get("exhausted")))
    view = scheduler_view(read(layout.scheduler))
    ends = {} if driver_alive or simulated else unnoticed_ends(record, layout)
    running = [_running(trial, layout, view.get("jobs", {}), read, ends.get(trial.number)) for trial in in_flight]
    hours = record.gpu_hours(clock.now(), {number: end.at for number, end in ends.items()})
    state = "running" if driver_alive else "finished" if record.is_finished else "stopped"
    return {
        "campaign": layout.dir.name,
        "dir": str(layout.dir),
        "simulated": simulated,
        "state": state,
        "reason": (record.stopped or {}).get("reason"),
        "driver": {"host": start.get("host"), "pid": start.get("pid"), "alive": driver_alive} if start else None,
        "direction": direction,
        "budget": budget,
        "done": record.spent,
        "in_flight": len(in_flight),
        "counts": {str(state): count for state in State if (count := record.counts[state])},
        "best": shown_trial(record.best(maximize=direction == "maximize")),
        **({} if goals is None else _front(record, goals)),
        **({} if record.ladder is None else {"fidelity": _fidelity(record, direction, hours)}),
        "confirmation": confirmation_status(record, maximize=direction == "maximize"),
        "imported": _imported(record, maximize=direction == "maximize"),
        "baseline": shown_trial(record.trials.get(BASELINE)),
        "running": running,
        "notices": [
            *_driver_notices(record, layout, driver_alive=driver_alive, exhausted=exhausted),
            *([EXHAUSTED] if exhausted else []),
            *_notices(running, layout, operation.get("unknown_after_s", math.inf)),
            *_stuck(running),
            *_stalled(running, layout, operation.get("stalled_after_s", math.inf)),
        ],
        "exhausted": exhausted,
        "scheduler": {"at": view.get("at"), "silent_since": view.get("silent_since")} if view else None,
        "gpu_hours": round(hours, 3),
        "energy_kwh": round(record.energy_kwh, 6),
        "errors": [{"trial": t.number, "state": str(t.state), **(t.error or {})} for t in record.with_error],
        "elapsed_s": _elapsed_s(record, driver_alive=driver_alive),
        "eta_s": _eta_s(record, budget, operation.get("workers", 1)) if state == "running" else None,
    }


def _front(record: Record, goals: Goals) -> dict[str, Any]:
    """Return the constraints and the best trial within them; with several objectives also these, and the Pareto front.

    The best trial of the front by the first objective comes first.
    """
    front = [shown_trial(trial) for trial in record.front(goals)]
    objectives = {goal.name: goal.direction for goal in goals.metrics}
    constraints = {bound.name: {"at_most": bound.at_most, "at_least": bound.at_least} for bound in goals.constraints}
    found = {"constraints": constraints, "best": front[0] if front else None}
    if not goals.several:
        return found
    return {"objectives": objectives, **found, "front": front, "confirmed_front": confirmed_front(record, goals)}


def _fidelity(record: Record, direction: str, hours: float) -> dict[str, Any]:
    """Return what became of the trials at each rung, and what rungs have saved."""
    assert record.ladder is not None
    started = len([trial for trial in record.rows if trial.climb is not None])
    spent, saved_evaluations = record.spent, saved(record)
    return {
        "kind": record.ladder.kind,
        "rungs": rung_table(record, maximize=direction == "maximize"),
        "trials": started,
        "saved": saved_evaluations,
        "gpu_hours_saved": round(saved_evaluations * hours / spent, 3) if spent else 0.0,
        "checkpoint_bytes": None,
    }


def checkpoint_bytes(record: Record, layout: CampaignLayout) -> int:
    """Return the space that the checkpoints of paused trials take."""
    total = 0
    for trial in record.rows:
        attempts = trial.attempts if trial.state is State.PAUSED else []
        folders = {layout.attempt(trial.number, attempt.number).checkpoint_dir for attempt in attempts}
        folders |= {layout.attempt(trial.number, attempt.number).trial_checkpoint_dir for attempt in attempts}
        for path in (path for folder in folders for path in folder.rglob("*")):
            with contextlib.suppress(OSError):  # removed meanwhile
                total += path.stat().st_size if path.is_file() else 0
    return total


def _imported(record: Record, *, maximize: bool) -> dict[str, Any] | None:
    """Return a summary of the imported trials, which the other counts leave out; None without any."""
    if not record.imported:
        return None
    campaigns = Counter(str(trial.info.get("campaign")) for trial in record.imported)
    best = record.best_imported(maximize=maximize)
    return {"trials": len(record.imported), "campaigns": dict(campaigns), "best": shown_trial(best)}


def shown_trial(trial: TrialRecord | None) -> dict[str, Any] | None:
    """Return what is shown of a trial, as plain data; None without a trial."""
    if trial is None:
        return None
    names = ("value", "value_sem", "parameters", "metrics", "seed")
    return {"trial": trial.number, "state": str(trial.state), **{name: getattr(trial, name) for name in names}}


class End(NamedTuple):
    """The end of a job that no driver has noted: ``ended`` or ``gone`` (without a result or an error), and when."""

    state: str
    at: str


def unnoticed_ends(record: Record, layout: CampaignLayout) -> dict[int, End]:
    """Return the ends of the jobs of trials in flight that can be seen without the scheduler, by trial.

    A job that has left no file was last alive, as far as is known, when it reported its progress.
    """
    ends: dict[int, End] = {}
    for trial in record.in_flight:
        attempt = trial.attempt
        if attempt is None or attempt.job is None:
            continue
        files = layout.attempt(trial.number, attempt.number)
        claim = document_of(files.claim, attempt.token)
        document = document_of(files.result, attempt.token) or document_of(files.error, attempt.token)
        if document is not None and (at := document.get("ended_at")):
            ends[trial.number] = End("ended", at)
        elif claim and claim.get("host") == socket.gethostname() and "pid" in claim:
            at = (read_json(files.progress) or {}).get("at")
            at = at if is_time(at) else claim.get("started_at")
            if at and not is_alive(claim["pid"], claim.get("pid_started")):
                ends[trial.number] = End("gone", at)
    return ends


def waits_for_driver(record: Record, layout: CampaignLayout, trial: int) -> bool:
    """Return whether a trial in flight has no job at work, and neither a driver nor ticks give it one."""
    owner, attempt = read_lock(layout.lock), record.trials[trial].attempt
    if record.trials[trial].state.ended or record.is_between_ticks or (owner and owner_lives(layout.lock, owner)):
        return False
    return attempt is None or attempt.job is None or trial in unnoticed_ends(record, layout)


def _running(
    trial: TrialRecord,
    layout: CampaignLayout,
    jobs: Mapping[str, Any],
    read: Callable[[Path], dict[str, Any] | None],
    end: End | None,
) -> dict[str, Any]:
    attempt = trial.attempt
    job = {} if attempt is None else jobs.get(attempt.job_name) or {}
    progress: dict[str, Any] = {}
    if attempt is not None and trial.state is State.RUNNING and end is None:
        progress = read(layout.attempt(trial.number, attempt.number).progress) or {}
    return {
        "trial": trial.number,
        "state": str(trial.state) if end is None else end.state,
        "attempt": None if attempt is None else attempt.number,
        "job": None if attempt is None else attempt.job_id,
        "turn": None if attempt is None else attempt.turn,
        "node": None if attempt is None else attempt.node,
        "scheduler": _scheduler_says(job) if end is None else None,
        "remedy": str(job.get("remedy") or "") if end is None else "",
        "unknown_since": job.get("unknown_since"),
        **_sound(progress),
        **_climb(trial.climb),
        "silent_s": _silent_s(trial, progress) if end is None else None,
        "elapsed_s": None if attempt is None or attempt.started_at is None else _elapsed(attempt.started_at, end),
    }


def _climb(climb: Climb | None) -> dict[str, Any]:
    """Return how far a trial has climbed; of one that was paused before, also why it goes on."""
    if climb is None:
        return {}
    why = climb.why if climb.paused_seq is not None else None
    return {"rung": climb.reached, "goal": climb.goal, "taken_up": why}


def _elapsed(started_at: str, end: End | None) -> float:
    return _seconds_since(started_at) if end is None else round(max(0.0, seconds_between(started_at, end.at)), 1)


def _silent_s(trial: TrialRecord, progress: Mapping[str, Any]) -> float | None:
    """Return the seconds since a running job last reported progress, or began; None if it does not run."""
    since = progress.get("at") or (trial.attempt.started_at if trial.attempt is not None else None)
    if trial.state is not State.RUNNING or not isinstance(since, str):
        return None
    try:
        return _seconds_since(since)
    except (ValueError, TypeError):
        return None


#: The fields of a job's progress and their types.
PROGRESS: Mapping[str, tuple[type, ...]] = {"phase": (str,), "step": (int,), "total": (int,), "loss": (int, float)}


def _sound(progress: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a job's progress; None for a field that is missing, of a wrong type or not finite."""
    found = {name: progress.get(name) for name in PROGRESS}
    sound = {name: type(value) in PROGRESS[name] and not _is_infinite(value) for name, value in found.items()}
    return {name: value if sound[name] else None for name, value in found.items()}


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


EXHAUSTED = "the space has no other configuration: all of them have been tried, whatever the budget"


def _driver_notices(record: Record, layout: CampaignLayout, *, driver_alive: bool, exhausted: bool) -> list[str]:
    """Return why the driver does nothing, and what is wrong with the files that it writes."""
    notices = []
    owner = read_lock(layout.lock) or {}
    here, pid = owner.get("host") == socket.gethostname(), owner.get("pid")
    if driver_alive and here and is_stopped(pid):
        notices.append(
            f"the driver is stopped (Ctrl-Z, SIGSTOP): no result is collected. Wake it:  fg, or kill -CONT {pid}"
            f"    or end it and go on:  kill -9 {pid}; {command_line('resume', layout.dir)}"
        )
    elif driver_alive and owner.get("trouble"):
        notices.append(owner["trouble"])
    elif not driver_alive and pid and not here:
        minutes = heartbeat_age_s(owner) / 60
        notices.append(
            f"the driver on host {owner.get('host')} (process {pid}) has given no sign of life for {minutes:.0f} min. "
            f"If it is dead:  {command_line('resume', layout.dir, '--take-over')}"
        )
    if not driver_alive and not record.halted and not exhausted and record.is_between_ticks:
        notices += _hours(record)
    if record.halted and not driver_alive:
        notices.append(f"{BY_STOP}: it submits nothing until it goes on.  {command_line('resume', layout.dir)}")
    if record.left_out:
        notices.append(
            f"not counted in {layout.events.name}: {counted(record.left_out, 'line')} that a driver wrote after "
            "another one had taken over. You need not do anything"
        )
    return notices


def _hours(record: Record) -> list[str]:
    """Return why the next tick submits nothing at this time, by the settings of the last tick."""
    start = record.starts[-1]
    if not has_jobs_to_submit(record, start.get("operation", {}).get("budget", 0)):
        return []
    hours = LaunchHours.recorded(start.get("settings", {}).get("launcher") or {})
    notice = hours.reason_to_wait(clock.now())
    return [notice] if notice else []


def has_jobs_to_submit(record: Record, budget: int, *, exhausted: bool = False) -> bool:
    """Return whether trials wait for a job or are still to be proposed."""
    waiting = any(trial.attempt is None or trial.attempt.job is None for trial in record.in_flight)
    return waiting or (not exhausted and room_for(record, budget) > 0)


def _stalled(running: list[dict[str, Any]], layout: CampaignLayout, stalled_after_s: float) -> list[str]:
    """Return a notice for each running job that has reported no progress for `stalled_after_s`."""
    return [
        f"{trial_label(row['trial'])}: its job {row['job']} on {row['node']} has reported no progress for "
        f"{row['silent_s'] / 60:.0f} min, in phase {row['phase'] or 'begin'}.  "
        f"{command_line('tail', layout.dir, row['trial'])}"
        for row in running
        if row["silent_s"] is not None and row["silent_s"] >= stalled_after_s
    ]


def _notices(running: list[dict[str, Any]], layout: CampaignLayout, unknown_after_s: float) -> list[str]:
    """Return a notice for each job whose state the scheduler has not known for `unknown_after_s`."""
    notices = []
    for row in running:
        if row["unknown_since"] and (silent_s := _seconds_since(row["unknown_since"])) >= unknown_after_s:
            label, minutes = trial_label(row["trial"]), round(silent_s / 60)
            ways = ", then ".join(command_line(verb, layout.dir, row["trial"]) for verb in ("cancel", "retry"))
            notices.append(
                f"{label}: nothing is known of job {row['job']} for {minutes} min ({row['scheduler']}). The driver "
                f"waits for it. If you know that it is lost:  {ways}"
            )
    return notices


def _stuck(running: list[dict[str, Any]]) -> list[str]:
    """Return a notice for the jobs that wait and will not start as they are, one for each reason."""
    jobs: dict[tuple[str, str], dict[str, None]] = {}
    for row in running:
        if row["remedy"] and row["job"]:
            jobs.setdefault((row["scheduler"], row["remedy"]), {})[row["job"]] = None
    return [
        f"{counted(len(ids), 'job')} ({some_of(ids)}) will not start as submitted: {said}. {remedy}"
        for (said, remedy), ids in jobs.items()
    ]


def _scheduler_says(job: Mapping[str, Any]) -> str | None:
    """Return what the scheduler last said about a job, in its own words if they are recorded."""
    return None if not job else str(job.get("detail") or job.get("state"))


def _seconds_since(text: str) -> float:
    return round(seconds_since(text), 1)


def _elapsed_s(record: Record, *, driver_alive: bool) -> float:
    """Return the seconds from the first start until now, or without a driver to the last event of the journal.

    The time for which a finished campaign waited for a larger budget, or for a confirmation, does not count.
    """
    if not record.starts or record.last is None:
        return 0.0
    end = clock.now() if driver_alive else moment(record.last["at"])
    return round((end - moment(record.starts[0]["at"])).total_seconds() - record.rested_s, 1)


def _eta_s(record: Record, budget: int, workers: int) -> float | None:
    """Return the estimated seconds until the budget is spent, by the mean duration of an evaluation so far.

    None if nothing was evaluated yet, or if the budget is spent and what runs is outside it.
    """
    mean = record.mean_evaluation_s
    if mean is None or record.spent >= budget:
        return None
    under_way = sum(min(mean, _seconds_since(t.started_at)) for t in record.in_flight if t.started_at)
    return round(max(0.0, math.ceil(((budget - record.spent) * mean - under_way) / max(workers, 1))), 1)
