"""Drive a campaign from a terminal until it ends: what is shown, what Ctrl-C does, and what is said at the end."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hpo_cluster.cli.arguments import SHOWN, short_path
from hpo_cluster.cli.commands import BAD_END, INTERRUPTED, OK, say, tell, terminal_width
from hpo_cluster.text import command_line, counted
from hpo_cluster.trial import trial_label

if TYPE_CHECKING:
    from hpo_cluster.cli.config.schema import Config
    from hpo_cluster.driver.campaign import Campaign
    from hpo_cluster.driver.spec import CampaignSpec
    from hpo_cluster.record.confirmation import Wanted

#: Seconds after the first Ctrl-C in which a second one cancels the jobs.
SECOND_CTRL_C_S = 3.0


def drive(config: Config, spec: CampaignSpec, confirmation: Wanted | None = None, again: str = "") -> int:
    """Drive a campaign until it ends, with a display.

    Args:
        config: the campaign as configured.
        spec: the same, ready to be opened.
        confirmation: what to confirm, and nothing else.
        again: the command that goes on after an interruption; empty: ``resume``.
    """
    from hpo_cluster.cli.display import LiveDisplay, PlainDisplay
    from hpo_cluster.driver.campaign import Campaign

    if config.settings.dry_run:
        return _preview(config, spec)
    logging.getLogger("hpo_cluster").addHandler(logging.NullHandler())  # its messages go to the driver's log
    display = LiveDisplay() if sys.stdout.isatty() else PlainDisplay(tell)
    with Campaign(spec) as campaign:
        if confirmation is not None:
            campaign.confirm(confirmation)
        if campaign.opened.is_new:
            _tell_warm_start(spec)
            for note in spec.objective.notes:
                tell(note)
        if not campaign.opened.lock.has_flock:
            tell(
                "this file system has no file locks (flock): drivers on several hosts can only be distinguished by "
                "their heartbeat and the number of their start",
            )
        if campaign.opened.journal.left_out:
            lines = campaign.opened.journal.left_out
            tell(f"left out of the journal: {counted(lines, 'line')} whose driver had lost the campaign")
        if dead := campaign.opened.lock.taken_over:
            tell(f"taken over from the driver that died: process {dead['pid']} on {dead.get('host')}")
        spent_before = campaign.record.spent
        if confirmation is None:
            _tell_who_goes_on(campaign)
        with _Interrupts(campaign) as interrupts:
            with display:
                for status in campaign.drive():
                    display.update(status, campaign.record.trials)
            interrupts.wait_for_second()
            if interrupts.count > 1:
                campaign.cancel_jobs()
        status = campaign.status()
    ended = _finish(config, campaign, status, interrupts, again)
    nothing_done = campaign.record.spent == spent_before and not campaign.opened.is_new and not status["exhausted"]
    if nothing_done and ended == OK and not campaign.reason and confirmation is None:
        budget = campaign.spec.operation.budget
        larger = 2 * max(budget, math.ceil(spent_before))
        more = command_line("resume", short_path(config.campaign_dir), f"budget={larger}")
        tell(f"The budget of {budget} was spent before. A larger one goes on:  {more}")
    if left := campaign.tracking.left:
        export = campaign.tracking.export_command
        tell(f"not logged to {config.tracking.kind}: {counted(left, 'trial')}. Log them with:  {export}")
    return ended


def _tell_who_goes_on(campaign: Campaign) -> None:
    """Say that paused trials are taken up first, which a larger budget or another rule makes room for."""
    going_on, cost = campaign.climbing.going_on()
    if not going_on:
        return
    spec = campaign.spec
    left = max(0.0, spec.operation.budget - campaign.record.committed)
    many = len(going_on) > 1
    tell(
        f"{counted(len(going_on), 'paused trial')} {'go' if many else 'goes'} on before new configurations are tried: "
        f"{'they are' if many else 'it is'} among the best at {'their rungs' if many else 'its rung'} "
        f"(fidelity.rule={spec.fidelity.rule}), and the budget has room for {'them' if many else 'it'} now "
        f"({cost:.3g} of the {counted(float(left), 'whole evaluation')} left)"
    )
    for promotion in going_on[:SHOWN]:
        tell(f"  {trial_label(promotion.trial)} goes on to rung {promotion.rung}: {promotion.why}")
    if len(going_on) > SHOWN:
        tell(f"  ... and {len(going_on) - SHOWN} more")


def _tell_warm_start(spec: CampaignSpec) -> None:
    for source in spec.warm_start.sources:
        tell(f"warm start: {source.message}")


def _preview(config: Config, spec: CampaignSpec) -> int:
    """Print what a start would submit first, and create nothing."""
    from hpo_cluster.cli.display import parameters_text
    from hpo_cluster.driver.dry_run import preview
    from hpo_cluster.record import clock
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.trial import State

    if not config.campaign_dir.exists():
        _tell_warm_start(spec)
    count = 0
    for trials, script in preview(spec):
        count += len(trials)
        say(*(f"{label}  {parameters_text(parameters)}" for label, parameters in trials), script, sep="\n")
    why = "" if count else ": its budget is spent, or as many are under way as there may be"
    say(f"{config.campaign}: {counted(count, 'trial')} would be submitted first{why}; nothing was created")
    if (several := spec.launcher_settings.trials_per_job) > 1:
        say(f"each job goes on with other trials when one has ended: up to {several} in all (launcher.trials_per_job)")
    if ladder := spec.fidelity.ladder:
        looks = ", ".join(ladder.labels[:-1])
        say(
            f"each trial is looked at after {looks} of a whole evaluation (fidelity={ladder.kind}) and goes on or is "
            f"paused (fidelity.rule={spec.fidelity.rule}); budget={spec.operation.budget} counts whole evaluations"
        )
        if Record.read(CampaignLayout(spec.dir).events).counts[State.PAUSED]:
            say("paused trials that deserve it by then go on before new ones are tried")
    if notice := spec.hours.reason_to_wait(clock.now()):
        say(notice)
    return OK


def _finish(config: Config, campaign: Campaign, status: dict[str, Any], interrupts: _Interrupts, again: str) -> int:
    from hpo_cluster.cli.display import number, retry_command, summary_lines
    from hpo_cluster.record.campaign_state import BY_STOP
    from hpo_cluster.record.item_pairs import confirmation_on_items
    from hpo_cluster.record.looks import count_look, looks_in_words

    folder = short_path(config.campaign_dir)
    resume = again or command_line("resume", folder)
    if interrupts.count:
        submitted = sum(row["job"] is not None for row in status["running"])
        run_on = f"{counted(submitted, 'job')} {'runs' if submitted == 1 else 'run'} on"
        jobs = "its jobs are cancelled" if interrupts.count > 1 else run_on
        tell(f"interrupted: {number(status['done'])} of {status['budget']} done, {jobs}. Go on with:\n  {resume}")
        return INTERRUPTED
    files = {"history": campaign.opened.layout.history, "log": campaign.opened.log_path}
    if page := _write_page(config.campaign_dir):
        files["report"] = page
    confirmed = not campaign.reason and (campaign.record.stopped or {}).get("reason") == "confirmed"
    reason = "confirmed" if confirmed else campaign.reason or None
    status = {**status, "dir": folder, "state": "stopped" if reason else "finished", "reason": reason, "eta_s": None}
    maximize = config.objective.direction == "maximize"
    status["confirmation"] = confirmation_on_items(campaign.record, campaign.opened.layout, maximize=maximize)
    short = {label: short_path(path) for label, path in files.items()}
    tests = config.objective.test_tasks or ()
    looked = looks_in_words(count_look(campaign.opened.layout, campaign.record, tests))
    tell("\n".join(summary_lines(status, config.objective.metric, tests, short, looked, terminal_width())))
    if campaign.reason == BY_STOP:
        tell(f"Go on with:\n  {resume}")
        return OK
    if campaign.reason:
        all_failed = status["best"] is None and status["counts"].get("failed")
        other = " (another command or setting of the objective needs another campaign=NAME)" if all_failed else ""
        retry = retry_command(status)  # resume alone spends what is left of the budget on other trials
        tell(f"Go on, once that is fixed{other}:\n  {f'{retry} && ' if retry else ''}{resume}")
    elif confirmed:
        tell(f"The budget is not spent. Go on with:\n  {command_line('resume', folder)}")
    return BAD_END if campaign.reason or status["best"] is None else OK


def _write_page(campaign_dir: Path) -> Path | None:
    """Write the report's page; one that fails does not make a finished campaign a failure."""
    try:
        from hpo_cluster.report import write_page

        return write_page(campaign_dir)
    except Exception as error:
        tell(f"no report: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def _reason_of(number: int) -> str:
    """Return why a driver stops that gets a signal."""
    from hpo_cluster.driver.notify import HANDED_OVER

    named = {signal.SIGINT: "interrupted", signal.SIGUSR1: HANDED_OVER}
    return named.get(signal.Signals(number), f"ended by {signal.Signals(number).name}")


class _Interrupts:
    """The handler of Ctrl-C: once stops submitting and leaves the jobs running, twice cancels them.

    SIGTERM acts like one Ctrl-C, and so does the end of the terminal (SIGHUP), unless it is ignored (nohup). So does
    SIGUSR1, which says that another driver will follow (``jobs/driver.slurm``).
    """

    def __init__(self, campaign: Campaign) -> None:
        self.count = 0
        self._campaign = campaign
        self._terminated = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count = self.count + 1 if number == signal.SIGINT else max(self.count, 1)  # a shell sends SIGHUP twice
        self._terminated = self._terminated or number != signal.SIGINT
        self._campaign.stop(_reason_of(number))
        if self.count == 1 and not self._terminated:
            message = f"stopping; jobs run on. Ctrl-C again within {SECOND_CTRL_C_S:.0f} s cancels them"
            tell(message, file=sys.stderr)
        if self.count > 2:
            signal.default_int_handler(number, frame)

    def wait_for_second(self) -> None:
        """Give a user who pressed Ctrl-C once the time to press it again."""
        end = time.monotonic() + SECOND_CTRL_C_S
        while self.count == 1 and not self._terminated and time.monotonic() < end:
            time.sleep(0.05)

    def __enter__(self) -> _Interrupts:
        numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            again = (
                number == signal.SIGHUP and self._terminated
            )  # a shell's second SIGHUP may come while the driver closes
            signal.signal(number, signal.SIG_IGN if again else handler)
