"""Rungs, as the program in a job sees them: it reports the score at a rung, and learns whether to go on.

An attempt without rungs has no `Climb`. With them, `Climb.report` publishes the rung and waits for the driver's word
for some seconds. If the word is *go on*, the same process climbs to the next rung. Otherwise the program returns its
result, which then says at which rung the attempt has ended; the trial may go on later, in another job.

A program of which each rung is a call of its own uses `at_each_rung`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hpo_cluster.errors import AttemptError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.goals import GPU_SECONDS
from hpo_cluster.objectives.one_after_another import look_for
from hpo_cluster.record.attempt_files import SCHEMA, is_finite_number, result_faults
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import patiently, read_json
from hpo_cluster.record.layout import AttemptLayout
from hpo_cluster.record.rung_files import publish_rung, publish_word, read_word, rung_file
from hpo_cluster.trial import ErrorKind

if TYPE_CHECKING:
    from hpo_cluster.objectives.worker import Attempt

log = logging.getLogger(__name__)

#: The phase in which an attempt waits for the word.
WAIT = "wait"


class Climb:
    """The rungs of an attempt.

    Attributes:
        ladder: the rungs, with their shares.
        start: the lowest rung that this attempt reports: those below were reported before, or are passed.
        linger_s: seconds to wait for the word.
        ended_at: the rung below the top at which the attempt has ended; None while it climbs.
    """

    def __init__(self, attempt: Attempt, ladder: Ladder, start: int, linger_s: float) -> None:
        self._attempt = attempt
        self.ladder, self.start, self.linger_s = ladder, start, linger_s
        self.ended_at: int | None = None

    @classmethod
    def of(cls, attempt: Attempt) -> Climb | None:
        """Return the rungs of an attempt; None if it is one without."""
        rungs: Mapping[str, Any] | None = attempt.params.get("rungs")
        if not rungs or attempt.baseline:
            return None
        ladder = Ladder(rungs["kind"], tuple(map(float, rungs["shares"])))
        start = min(max(int(rungs["goal"]), int(rungs["first"])), ladder.top)
        return cls(attempt, ladder, start, float(rungs["linger_s"]))

    @property
    def top(self) -> int:
        """Number of the last rung, at which the evaluation is whole."""
        return self.ladder.top

    @property
    def rungs(self) -> range:
        """The rungs that this attempt reports if it climbs to the top, which it ends with its result."""
        return range(self.start, self.top + 1)

    def share(self, rung: int) -> float:
        """Return the share of a whole evaluation that a rung is."""
        return self.ladder.shares[rung]

    def earlier_s(self) -> float:
        """Return the seconds that the trial had taken, on one GPU, when it reached the rung below `start`."""
        below = {rung: found.get(GPU_SECONDS) for rung, found in self._found().items() if rung < self.start}
        seconds = below[max(below)] if below else None
        if not isinstance(seconds, float) or not is_finite_number(seconds):
            return 0.0
        return seconds / max(1, int(self._attempt.params.get("gpus") or 0))

    def report(
        self, rung: int, metrics: Mapping[str, float], sems: Mapping[str, float] | None = None, step: int | None = None
    ) -> bool:
        """Report the score at a rung; return whether the program goes on.

        If it does not, the program returns its result at once. A rung below `start` is passed, and nothing is written.
        The top is reported by the result alone, and nothing comes after it.

        Args:
            rung: its number.
            metrics: finite numbers by name, as in a result.
            sems: standard errors under the same names, as far as they are known.
            step: number of steps done, if the program has steps.

        Raises:
            AttemptError: of kind ``bad_result`` if the metrics are not those of a result; or the interruption, if a
                signal asked the job to end after the driver had said that it goes on.
        """
        if rung < self.start:
            return True
        if rung >= self.top:
            return False
        attempt, score = self._attempt, {"metrics": dict(metrics), "sems": dict(sems or {})}
        if faults := result_faults(score):
            raise AttemptError(ErrorKind.BAD_RESULT, f"at rung {rung}: {'; '.join(faults)}")
        document = {
            "schema": SCHEMA,
            **{key: attempt.params.get(key) for key in ("trial", "attempt", "token")},
            "rung": rung,
            "share": self.share(rung),
            "step": step,
            **score,
            "seconds": attempt.seconds(),
            GPU_SECONDS: attempt.gpu_seconds(),
            "at": utc_now(),
        }
        patiently(lambda: publish_rung(attempt.files, rung, document))
        before = attempt.current_phase
        attempt.phase(WAIT)
        go_on = self._word(rung)
        attempt.phase(before)
        log.info("rung=%d of %d share=%.4g go_on=%s", rung, self.top, self.share(rung), str(go_on).lower())
        if not go_on:
            self.ended_at = rung
        return go_on

    def _word(self, rung: int) -> bool:
        """Wait for the word and return it; if there is none in time, or the job is to end, the word is *end*."""
        attempt, word = self._attempt, None
        looks, attempt.looks = attempt.looks, True  # a signal only ends the waiting
        try:
            word = look_for(
                lambda: read_word(attempt.files, rung), self.linger_s, until=lambda: attempt.interrupted is not None
            )
        except KeyboardInterrupt:  # how submitit's local executor ends a job at its walltime
            attempt.interrupted = attempt.interrupted or "SIGINT"
        if word is None:
            word = self._end(rung)
        if not word:
            return False
        attempt.looks = looks
        if attempt.interrupted is not None:
            raise attempt.interruption()
        return True

    def _end(self, rung: int) -> bool:
        """Publish that the attempt ends; return the word, which is the driver's if it was faster."""
        try:
            files = self._attempt.files
            return not publish_word(files, rung, go_on=False) and bool(read_word(files, rung))
        except OSError as error:  # the driver learns it from the result
            log.warning("the word after rung %d not written: %s", rung, error)
            return False

    def part_of_result(self) -> dict[str, Any]:
        """Return what a result says of the rungs: ``rungs``, those reported so far, and ``rung``, if it ended at one.

        Each of ``rungs`` holds rung, share, step and metrics. Those that earlier attempts of the trial reported belong
        to them, so the list is as long as if one job had climbed.
        """
        found = sorted(self._found().items())
        rungs = [{key: each.get(key) for key in ("rung", "share", "step", "metrics")} for _, each in found]
        return {**({} if self.ended_at is None else {"rung": self.ended_at}), "rungs": rungs}

    def _found(self) -> dict[int, dict[str, Any]]:
        """Return the rungs below the top that this trial has reported, from the newest attempt that reported each."""
        found: dict[int, dict[str, Any]] = {}
        for folder in (self._attempt.files.dir, *self._attempt.previous):
            for rung in range(self.top):
                document = read_json(rung_file(AttemptLayout(folder), rung)) if rung not in found else None
                if document is not None and not result_faults(document):
                    found[rung] = document
        return found

    def seconds_of(self, phase: str) -> float:
        """Return the seconds that earlier attempts had spent in a phase when they reported their last rung."""
        seconds = 0.0
        for folder in self._attempt.previous:
            documents = (read_json(rung_file(AttemptLayout(folder), rung)) for rung in reversed(range(self.top)))
            last = next((document for document in documents if document is not None), {})
            with contextlib.suppress(AttributeError, TypeError, ValueError):  # anybody may write into the folder
                seconds += float(last.get("seconds", {}).get(phase, 0.0))
        return seconds


def at_each_rung(attempt: Attempt, evaluate: Callable[[float], dict[str, Any]]) -> dict[str, Any]:
    """Evaluate at one rung after another until the word is *end*; return the last result.

    Args:
        attempt: the attempt; without rungs, the evaluation is whole.
        evaluate: takes a share, and returns a result.
    """
    climb = attempt.climb
    if climb is None:
        return evaluate(1.0)
    result: dict[str, Any] = {}
    for rung in climb.rungs:
        result = evaluate(climb.share(rung))
        if not climb.report(rung, result["metrics"], result.get("sems")):
            break
    return result


def at_each_rung_in(
    seconds: float, attempt: Attempt, measure: Callable[[int, float], dict[str, Any]]
) -> dict[str, Any]:
    """Wait at each rung for its part of an evaluation that takes `seconds`, and measure; return the last result.

    Args:
        seconds: of a whole evaluation.
        attempt: the attempt.
        measure: takes the attempt's number and a share, and returns a result.
    """
    climb = attempt.climb
    done = 0.0 if climb is None or climb.start == 0 else climb.share(climb.start - 1)

    def evaluate(share: float) -> dict[str, Any]:
        nonlocal done
        time.sleep(seconds * max(0.0, share - done))
        done = share
        return measure(int(attempt.params.get("attempt") or 0), share)

    return at_each_rung(attempt, evaluate)
