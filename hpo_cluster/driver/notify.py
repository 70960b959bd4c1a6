"""A command of the user's that tells when a campaign has ended or stopped: by mail, by a webhook, in any other way.

The command is never in the way: it has a time limit, and if it fails, that is logged and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import string
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, field_validator

from hpo_cluster.driver.notify_command import in_shell
from hpo_cluster.record.campaign_state import BETWEEN_TICKS, BY_STOP
from hpo_cluster.record.files import read_bytes
from hpo_cluster.settings import Settings
from hpo_cluster.text import command_line, visible
from hpo_cluster.trial import trial_label

log = logging.getLogger(__name__)

#: What has happened to a campaign: its budget is spent, it stopped for a reason, its driver ended by a fault.
Happening: TypeAlias = Literal["finished", "stopped", "failed"]

#: The reason to stop of a driver that is a job, and whose successor waits in the queue.
HANDED_OVER = "handed over to the next driver job"
#: Reasons to stop that the user knows of, or that end nothing.
KNOWN = (BETWEEN_TICKS, "interrupted", BY_STOP, HANDED_OVER)

MESSAGE = "message"
#: Maximum length of a reason in a message.
REASON_AT_MOST = 500


class Notify(Settings):
    """What is called when a campaign ends or stops."""

    command: str | None = Field(
        None,
        min_length=1,
        description="command for bash when the campaign has finished, stopped for a fault, or its driver failed; "
        "{message} stands for a sentence, $HPO_CLUSTER_... hold the facts; null: none",
    )
    timeout_s: float = Field(5.0, gt=0, le=60, description="seconds after which the command is ended")

    @field_validator("command")
    @classmethod
    def _only_known(cls, command: str | None) -> str | None:
        double = "double the braces meant for the shell: {{ and }}"
        try:
            fields = [(name, form, how) for _, name, form, how in string.Formatter().parse(command or "")]
        except ValueError as error:
            raise ValueError(f"{error}; {double}") from None
        if wrong := [name for name, form, how in fields if name is not None and (name != MESSAGE or form or how)]:
            raise ValueError(f"{{{wrong[0]}}} is not known; accepted: {{{MESSAGE}}}; {double}")
        return command


def happening(reason: str, *, failed: bool) -> Happening | None:
    """Return what is told of a driver's end; None if the user knows of it, or a tick or another driver will follow."""
    if failed:
        return "failed"
    if reason in ("finished", "confirmed"):
        return "finished"
    return None if reason in KNOWN else "stopped"


def facts_of(what: Happening, reason: str, status: Mapping[str, Any]) -> dict[str, str]:
    """Return what the command is told, by name: the environment holds each as ``HPO_CLUSTER_NAME``.

    Args:
        what: what has happened.
        reason: why the driver stopped.
        status: of the campaign.
    """
    best = status["best"]
    value = "" if best is None else f"{best['value']:.6g}"
    facts = {
        "EVENT": what,
        "CAMPAIGN": status["campaign"],
        "DIR": str(Path(status["dir"]).absolute()),
        "HOST": (status["driver"] or {}).get("host") or "",
        "REASON": reason[:REASON_AT_MOST],
        "DONE": f"{status['done']:g}",
        "BUDGET": str(status["budget"]),
        "FAILED": str(status["counts"].get("failed", 0)),
        "BEST": value,
        "BEST_TRIAL": "" if best is None else trial_label(best["trial"]),
    }
    facts = {name: " ".join(visible(text).split()) for name, text in facts.items()}
    facts["MESSAGE"] = _message(facts)
    facts["JSON"] = json.dumps({"text": facts["MESSAGE"], **{name.lower(): text for name, text in facts.items()}})
    return facts


def _message(facts: Mapping[str, str]) -> str:
    """Return what has happened as a sentence."""
    name, again = facts["CAMPAIGN"], f" Go on with: {command_line('resume', facts['DIR'])}"
    best = f", best {facts['BEST']} ({facts['BEST_TRIAL']})" if facts["BEST"] else ", no value yet"
    progress = f"{facts['DONE']} of {facts['BUDGET']} done{best}."
    if facts["EVENT"] == "finished":
        what = "The confirmation of campaign" if facts["REASON"] == "confirmed" else "Campaign"
        return f"{what} {name} has finished: {progress}"
    if facts["EVENT"] == "stopped":
        return f"Campaign {name} has stopped: {facts['REASON']}. {progress}{again}"
    return f"The driver of campaign {name} has failed: {facts['REASON']}. {progress} Jobs run on.{again}"


def call(settings: Notify, facts: Mapping[str, str], log_path: Path) -> None:
    """Run the command, and log what went wrong with it.

    Args:
        settings: the command and its time limit.
        facts: as `facts_of` returns them.
        log_path: file for what the command prints.
    """
    if settings.command is None:
        return
    line = in_shell(settings.command, facts["MESSAGE"])
    environment = {**os.environ, **{f"HPO_CLUSTER_{name}": text for name, text in facts.items()}}
    try:
        with log_path.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", line],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        code = _wait(process, settings.timeout_s)
    except (OSError, ValueError) as error:
        log.warning("notify.command: not run: %s", error)
        return
    printed = " ".join(read_bytes(log_path, -400).decode(errors="replace").split())
    if code is None:
        log.warning("notify.command: ended after notify.timeout_s=%g; it printed: %s", settings.timeout_s, printed)
    elif code != 0:
        log.warning("notify.command: exit status %d; it printed: %s", code, printed)
    else:
        log.info("notify.command: done event=%s", facts["EVENT"])


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit status of a process; end it and all that it has started, and return None, if it takes longer."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
