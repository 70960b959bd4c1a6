"""Optimisation of a Python function in one call, without a cluster and without files.

    result = hpo_cluster.optimize(fn, {"x": {"low": -5.0, "high": 5.0}}, budget=30, workers=4, direction="minimize")
    result.parameters, result.value, result.history

The optimizers, the history and the rules are those of a campaign: a proposal as soon as a worker is free, a function
that raises is a failed trial, NaN is divergence. Only the journal is missing: an interrupted call loses its
evaluations, unless it names a `campaign`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, field_validator

from hpo_cluster.driver.failures import Failures
from hpo_cluster.driver.function_calls import Alone, Answer, Crew, Function, call_function
from hpo_cluster.driver.run_settings import Operation
from hpo_cluster.errors import ConfigError, HpoClusterError
from hpo_cluster.goals import Direction, Goals
from hpo_cluster.objectives.black_box import needed_metrics
from hpo_cluster.objectives.function import FunctionObjective
from hpo_cluster.optimizers.rungs.settings import Fidelity
from hpo_cluster.record.campaign_state import Record, asked_rows
from hpo_cluster.record.climb import room_for
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.history import MemoryJournal
from hpo_cluster.record.identity import read_identity
from hpo_cluster.record.layout import CAMPAIGN_NAME_RULE, CampaignLayout, is_campaign_name
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.settings import Settings, faults_of
from hpo_cluster.space import Configuration, Space
from hpo_cluster.text import counted
from hpo_cluster.trial import Origin, State

if TYPE_CHECKING:
    import pandas as pd

    from hpo_cluster.driver.spec import ChosenOptimizer
    from hpo_cluster.optimizers.base import Optimizer

log = logging.getLogger(__name__)

#: Actions that differ from a campaign's: each call is made once, and a call that takes too long is infeasible.
FAILURES = {"walltime": "infeasible"}


class AllFailedError(HpoClusterError):
    """No trial has a value, or none satisfies the constraints: there is no result.

    Args:
        message: why; with the traceback of the first failure, or the values closest to the constraints.
        history: all trials, as a result has them.
    """

    def __init__(self, message: str, history: pd.DataFrame) -> None:
        super().__init__(message)
        self.history = history


class Arguments(Settings):
    """The arguments of `optimize` that stand for themselves, so that their types can be checked."""

    budget: int = Field(strict=True, ge=1)
    workers: int = Field(strict=True, ge=1)
    direction: Direction
    metric: str = Field(min_length=1)
    campaign: str | None
    warm_start: tuple[str | Path, ...]
    trial_timeout_s: float | None = Field(strict=True, gt=0, allow_inf_nan=False)
    timeout_s: float | None = Field(strict=True, gt=0, allow_inf_nan=False)

    @field_validator("budget", "workers", mode="before")
    @classmethod
    def _plain(cls, number: Any) -> Any:
        """Return an integer of numpy as an int."""
        return int(number) if isinstance(number, Integral) and not isinstance(number, bool) else number


@dataclass(frozen=True)
class Result:
    """The best trial, and the history of all trials.

    With several objectives it is the trial of the Pareto front that is the best by the first one.

    Args:
        parameters: parameters of the trial with the best value.
        value: its value as measured, in the user's direction.
        trial: its number.
        history: one row for each trial; the columns are those of a campaign's history.
    """

    parameters: Configuration
    value: float
    trial: int
    history: pd.DataFrame = field(repr=False)

    @property
    def front(self) -> pd.DataFrame:
        """The rows of the history that make up the Pareto front of several objectives."""
        return self.history[self.history["front"]]


def optimize(
    fn: Function,
    space: Space | Mapping[str, Any],
    *,
    optimizer: str = "bo",
    budget: int = 30,
    workers: int = 1,
    seed: int = 0,
    direction: Direction = "maximize",
    metric: str = "value",
    metrics: Sequence[str | Mapping[str, Any]] = (),
    constraints: Sequence[Mapping[str, Any]] = (),
    campaign: str | None = None,
    warm_start: Sequence[str | Path] = (),
    warm_start_other_objective: bool = False,
    fidelity: str | Mapping[str, Any] = "off",
    failures: Mapping[str, str] | Literal["raise"] | None = None,
    trial_timeout_s: float | None = None,
    timeout_s: float | None = None,
    **settings: Any,
) -> Result:
    """Optimise `fn` over `space`.

    Args:
        fn: called as ``fn(**parameters)``; an inactive parameter is left out, so give it a default. Returns a number,
            or a dictionary whose field `metric` is optimised; its other number fields are metrics, and ``value_sem``
            is the standard error of ``value``.
        space: a Space, or its JSON form: ``{"lr": {"low": 1e-5, "high": 1e-1, "log": True}}``. Conditions,
            constraints, priors and starting points are described in ``docs/howto/describe_a_space.md``.
        optimizer: a name that `hpo_cluster.make_optimizer` knows.
        budget: number of evaluations in all.
        workers: number of evaluations at once. With 1, `fn` is called in this process. With more, it is called in that
            many forked processes, where the global generators of `random` and numpy are seeded from the trial's seed.
            The next evaluation is proposed as soon as one ends.
        seed: seed of the optimizer and the trials; a whole number, at least 0.
        direction: whether larger values are better ("maximize") or smaller ones ("minimize").
        metric: field of the dictionary that is optimised.
        metrics: two or more fields of the dictionary to optimise at once, in place of `metric`:
            ``[{"name": "accuracy", "direction": "maximize"}, {"name": "size", "direction": "minimize"}]``.
        constraints: what a result must satisfy: ``[{"name": "memory_gb", "at_most": 40}]``, each a field of the
            dictionary. A trial that does not is never the result.
        campaign: name of a campaign in ``campaigns/`` of the working directory. Each evaluation is then a job, and the
            same call continues where an earlier one ended. `fn` must be importable by its name.
        warm_start: folders of earlier campaigns with whose evaluations a `campaign` begins, outside its budget.
        warm_start_other_objective: whether the earlier campaigns may have another function, or one from another file.
        fidelity: of a `campaign`, whether evaluations are looked at early, with `budget` in whole evaluations: "share",
            or its settings as ``fidelity.KEY`` in campaigns: ``{"kind": "share", "rungs": ["1/9", "1/3", 1]}``.
        failures: the action for each kind of failure, as ``failures.KIND`` in campaigns: ``{"code": "failed"}``. By
            default an exception makes a trial infeasible once another trial has completed, so that the optimizer
            learns to avoid it. ``"raise"`` ends the search with the first exception.
        trial_timeout_s: seconds after which a call is ended and its trial is infeasible. With it, `fn` is called in a
            forked process even with one worker.
        timeout_s: seconds after which no new call begins. Calls in forked processes are ended then.
        settings: settings of the optimizer.

    Raises:
        ConfigError: naming every argument that is wrong.
        AllFailedError: if no trial has a value, or none satisfies the constraints; its `history` holds the trials.

    Example:
        >>> result = optimize(
        ...     lambda x: (x - 2) ** 2, {"x": {"low": 0, "high": 4}}, optimizer="grid", budget=9, direction="minimize"
        ... )
        >>> result.parameters, result.value, len(result.history)
        ({'x': 2}, 0.0, 3)
    """
    limits = {"trial_timeout_s": trial_timeout_s, "timeout_s": timeout_s}
    plain = {"budget": budget, "workers": workers, "direction": direction, "metric": metric, "campaign": campaign}
    faults = list[str]()
    try:
        Arguments.model_validate({**plain, "warm_start": warm_start, **limits})
    except ValidationError as error:
        faults += map(str, faults_of(error, Arguments))
    if isinstance(campaign, str) and not is_campaign_name(campaign):
        faults.append(f"campaign={campaign!r}: is not a name for a folder; accepted: {CAMPAIGN_NAME_RULE}")
    if warm_start and campaign is None:
        faults.append("warm_start: is only for campaigns; give campaign=NAME")
    if not callable(fn):
        faults.append(f"fn={fn!r} cannot be called")
    if campaign is not None:
        faults += [
            f"{name}: is not for campaigns; they have launcher.walltime_min and deadline instead"
            for name, limit in limits.items()
            if limit is not None
        ]
        if failures == "raise":
            faults.append('failures="raise": is not for campaigns; they stop if the first trials fail in the same way')
    policy = Failures()
    try:
        if failures is None or isinstance(failures, Mapping):
            policy = Failures.model_validate({**(FAILURES if campaign is None else {}), **(failures or {})})
        elif failures != "raise":
            faults.append(f'failures={failures!r}: accepted: "raise", or a mapping such as {{"code": "failed"}}')
    except ValidationError as error:
        faults += [f"failures.{fault}" for fault in faults_of(error, Failures)]
    climbs = Fidelity()
    try:
        climbs = Fidelity.model_validate({"kind": fidelity} if isinstance(fidelity, str) else fidelity)
    except ValidationError as error:
        faults += [str(fault).removeprefix("fidelity: ") for fault in faults_of(error, Fidelity, "fidelity")]
    if climbs.ladder is not None and campaign is None:
        faults.append("fidelity: is only for campaigns; give campaign=NAME")
    goals = {"direction": direction, "metric": metric, "metrics": metrics, "constraints": constraints}
    if metrics and metric != "value":
        faults.append(f"metric={metric!r}: is one objective, and metrics names several; give one of the two")
    if metrics and direction != "maximize":
        entry = f"{{name: NAME, direction: {direction}}}"
        faults.append(f"direction={direction!r}: each of the metrics has a direction of its own; give {entry}")
    shape = FunctionObjective(function="fn:fn")
    try:
        shape = FunctionObjective.model_validate({"function": shape.function, **goals})
    except ValidationError as error:
        found = [fault for fault in faults_of(error, FunctionObjective) if fault.key not in Arguments.model_fields]
        faults += [line for fault in found for line in str(fault).splitlines()]

    from hpo_cluster.driver.spec import choose_optimizer, rung_faults, several_objectives_faults
    from hpo_cluster.optimizers.registry import read_arguments

    own = [name for name in inspect.signature(optimize).parameters if name != "settings"]
    typed, space = read_arguments(optimizer, space, seed, settings, own, _as_arguments(faults))
    budget, workers, seed = int(budget), int(workers), int(seed)
    directory = None if campaign is None else Path("campaigns") / campaign
    recorded = None if directory is None else read_identity(CampaignLayout(directory).identity)
    objective = shape if campaign is None else FunctionObjective.of(fn, **goals)
    operation = Operation(budget=budget, workers=workers, failures=policy)
    faults = several_objectives_faults(shape.goals, space, optimizer, typed)
    faults += rung_faults(climbs, objective, space, optimizer, operation)
    if faults:
        raise ConfigError(_as_arguments(faults))
    chosen = choose_optimizer(optimizer, typed, space, seed, budget=budget, recorded=recorded)
    if directory is not None:
        earlier = {
            "fidelity": climbs,
            "warm_start": [Path(folder) for folder in warm_start],
            "warm_start_other_objective": warm_start_other_objective,
        }
        return _in_campaign(objective, space, chosen, operation, seed, directory, earlier)

    alone = workers == 1 and trial_timeout_s is None
    # fork before anything else, while this process has no threads
    call = functools.partial(call_function, fn, needed_metrics(shape.model_dump()))
    crew = Alone(call) if alone else Crew(call, workers, trial_timeout_s)
    journal = _Journal(space, shape, seed, policy, raises=failures == "raise")
    end = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        _loop(chosen.made, journal, crew, budget, end)
    finally:
        crew.close()
    return _result(journal.record, journal.history(), shape, journal.first_trace)


def _as_arguments(faults: Sequence[str]) -> list[str]:
    """Return faults with the names that keys of a campaign have as arguments of `optimize`."""
    return [re.sub(r"\b(objective\.(?=metric|constraints)|optimizer\.)", "", fault) for fault in faults]


def _loop(optimizer: Optimizer, journal: _Journal, crew: Crew | Alone, budget: int, end: float | None) -> None:
    """Run a campaign's loop, with calls instead of jobs, until `end` (on the monotonic clock)."""
    record = journal.record
    while True:
        if end is not None and time.monotonic() >= end:
            log.info("timeout evaluations=%d budget=%d", record.spent, budget)
            for trial in record.in_flight:
                journal.append("ended", trial=trial.number, attempt=0, state=State.CANCELLED)
            return
        free = min(crew.free, room_for(record, budget))
        if free > 0:
            rows = asked_rows(optimizer.ask(journal.history(), free), record.next_trial, journal.seed)
            if rows:
                journal.append("asked", trials=rows)
            for row in rows:
                if row["origin"] == Origin.EVALUATED:
                    journal.start(row["trial"])
                    crew.start(row["trial"], row["parameters"], row["seed"])
            if not rows and not crew.busy:
                log.info("optimizer exhausted evaluations=%d budget=%d", record.spent, budget)
                return
            if rows and not crew.busy:
                continue
        if not crew.busy:
            return
        for number, answer in crew.wait(end):
            journal.end(number, answer)


def _in_campaign(
    objective: FunctionObjective,
    space: Space,
    optimizer: ChosenOptimizer,
    operation: Operation,
    seed: int,
    directory: Path,
    earlier: Mapping[str, Any],
) -> Result:
    """Run each evaluation as a job of a journaled campaign; after an interruption the same call continues it."""
    from hpo_cluster.driver.campaign import Campaign
    from hpo_cluster.driver.spec import make_spec
    from hpo_cluster.launchers.local import LocalSettings
    from hpo_cluster.record.history import load_history

    spec = make_spec(
        directory,
        space=space,
        objective=objective,
        optimizer=optimizer,
        seed=seed,
        launcher=LocalSettings(),
        operation=operation,
        storage_dir=Path("storage").absolute(),
        resolve=Path,
        **earlier,
    )
    with Campaign(spec) as campaign:
        for _ in campaign.drive():
            pass
        if campaign.reason:
            message = f"{campaign.reason}\nOnce that is fixed, continue with the same call"
            raise AllFailedError(message, load_history(directory))
    return _result(campaign.record, load_history(directory), objective)


class _Journal(MemoryJournal):
    """The journal of a search, in memory: the events with which its calls begin and end."""

    def __init__(
        self, space: Space, objective: FunctionObjective, seed: int, policy: Failures, *, raises: bool = False
    ) -> None:
        super().__init__(space.names, maximize=objective.direction == "maximize", goals=objective.goals)
        self._objective, self.seed, self._policy, self._raises = objective, seed, policy, raises
        self.first_trace = ""

    def append(self, event: str, at: str = "", **fields: Any) -> None:
        """Apply one more event; its time is now unless `at` is given."""
        super().append(event, at or utc_now(), **fields)

    def start(self, number: int) -> None:
        """Note that the call of a trial begins."""
        now = utc_now()
        self.record.trials[number].submitted_at = now
        self.append("intent", trial=number, attempt=0, token="", code="")
        self.append("running", trial=number, attempt=0, started_at=now)

    def end(self, number: int, answer: Answer) -> None:
        """Note the outcome of a call."""
        if answer.result is not None:
            outcome = self._objective.outcome(answer.result)
            measured: dict[str, Any] = {"value": outcome.value, "metrics": outcome.metrics}
            measured |= {"value_sem": outcome.known_sem, "sems": outcome.sems}
            self.append("ended", trial=number, attempt=0, state=State.COMPLETED, **measured)
            log.info("trial=%d state=completed value=%s", number, outcome.value)
            return
        if self._raises:
            parameters = self.record.trials[number].parameters
            raise HpoClusterError(f"trial {number} failed at {dict(parameters)}:\n{answer.trace}")
        completed = self.record.counts[State.COMPLETED] > 0
        state = self._policy.verdict([answer.kind], 0, others_completed=completed) or State.FAILED
        error = {"kind": answer.kind, "message": answer.message}
        self.append("ended", trial=number, attempt=0, state=state, error=error)
        self.first_trace = self.first_trace or answer.trace
        log.warning("trial=%d state=%s error=%s: %s", number, state, answer.kind, answer.message)


def _result(record: Record, history: pd.DataFrame, objective: FunctionObjective, first_trace: str = "") -> Result:
    """Return the best of the evaluated trials that satisfy the constraints. Raise AllFailedError if there is none."""
    best = record.best(maximize=objective.direction == "maximize")
    if objective.goals is not None:
        if front := record.front(objective.goals):
            best = front[0]
        elif best is not None:
            raise AllFailedError(_none_satisfies(record.valued, objective.goals), history)
    if best is None or best.value is None:
        errors = [trial.error for trial in record.rows if trial.error]
        if not errors:
            raise AllFailedError("no trial has a value: the search ended before any of its evaluations did", history)
        first = first_trace or errors[0]["message"]
        message = f"none of {counted(len(errors), 'trial')} has a value; the first one's error:\n{first}"
        raise AllFailedError(message, history)
    return Result(best.parameters, best.value, best.number, history)


def _none_satisfies(trials: Sequence[TrialRecord], goals: Goals) -> str:
    """Return a message about the constraints that no completed trial satisfies all at once."""
    lines = [f"none of {counted(len(trials), 'completed trial')} satisfies the constraints; the closest to each:"]
    for bound in goals.constraints:
        closest = max(trials, key=lambda trial: bound.slack(trial.metrics[bound.name]))
        value = closest.metrics[bound.name]
        lines.append(f"  {bound.name} {bound.text}: {value:g}, of trial {closest.number} {dict(closest.parameters)}")
    return "\n".join([*lines, "all trials are in `history` of this exception"])
