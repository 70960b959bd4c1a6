"""Log trials to a tracker as they end, in a thread of its own, so that neither driver nor jobs ever wait for it.

The thread may be slow, fail or hang. After a failure it waits, makes the tracker again, and goes on with the same
trial. What was not logged when the driver ends is logged by the next start, or by ``hpo-cluster export``: trackers know
what they hold.
"""

from __future__ import annotations

import copy
import logging
import queue
import threading
from collections.abc import Iterable

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.exchange.facts import Outline, trial_facts
from hpo_cluster.record.exchange.trackers import Tracker, Tracking, make_tracker
from hpo_cluster.record.trial_record import TrialRecord
from hpo_cluster.text import command_line

log = logging.getLogger(__name__)

#: Seconds before the first and the longest of the waits between two attempts to log something.
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0


class LiveTracking:
    """The thread that logs the trials of an open campaign.

    Args:
        tracking: settings of the tracker; nothing is done if they say ``off``.
        outline: the campaign.
        record: its state, which only the driver's thread changes.
        at_once: whether trials that ended before this start are looked through at once; if not, when the next one ends.

    Attributes:
        left: number of trials that are still to be logged.
    """

    def __init__(self, tracking: Tracking, outline: Outline, record: Record, *, at_once: bool) -> None:
        self.tracking, self.outline, self.record = tracking, outline, record
        self._trials: queue.Queue[TrialRecord | None] = queue.Queue()
        self._closing = threading.Event()
        self.left = 0
        self._thread: threading.Thread | None = None
        self._in_flight: set[int] = set()
        self._next, self._seq = 0, -1
        self._earlier: list[int] = []
        if tracking.kind != "off":
            self._earlier = self._ended()
            if at_once:
                self._hand_over([])

    def _ended(self) -> list[int]:
        """Return the numbers of the trials that have ended since the last call."""
        record, before, first = self.record, self._in_flight, self._next
        self._seq, self._next = record.seq, record.next_trial
        self._in_flight = {trial.number for trial in record.in_flight}
        known = before | (set(range(first, self._next)) if first else set(record.trials))
        return sorted(number for number in known - self._in_flight if number in record.trials)

    def look(self) -> None:
        """Hand the trials that have ended since the last look to the thread."""
        if self.tracking.kind != "off" and self.record.seq != self._seq and (ended := self._ended()):
            self._hand_over(ended)

    def _hand_over(self, ended: Iterable[int]) -> None:
        numbers, self._earlier = [*self._earlier, *ended], []
        self.left += len(numbers)
        for number in numbers:
            self._trials.put(copy.deepcopy(self.record.trials[number]))
        if numbers and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Log one trial after another, as long as it takes; end if something fails while the driver closes."""
        tracker: Tracker | None = None
        while (trial := self._trials.get()) is not None:
            wait_s, logged = FIRST_WAIT_S, False
            while not logged:
                closing = self._closing.is_set()
                try:
                    tracker = tracker or make_tracker(self.tracking, self.outline)
                    tracker.log(trial_facts(self.outline, self.record, trial))
                    logged = True
                except Exception as error:  # of a library, a network, a server: any
                    tracker = None
                    log.warning(
                        "tracking=%s trial=%d not logged: %s: %s", self.tracking.kind, trial.number,
                        type(error).__name__, str(error)[:500],
                    )  # fmt: skip
                    if closing:
                        return
                    self._closing.wait(wait_s)
                    wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            self.left -= 1
        if tracker is not None:
            try:
                tracker.close(ended=(self.record.stopped or {}).get("reason") == "finished")
            except Exception as error:
                log.warning("tracking=%s not closed: %s: %s", self.tracking.kind, type(error).__name__, error)

    @property
    def export_command(self) -> str:
        """The command that logs what is left."""
        return command_line("export", self.outline.dir, *self.tracking.of_export)

    def close(self) -> None:
        """Wait a while for what is still to be logged, and leave the rest."""
        if self._thread is None:
            return
        self._closing.set()
        self._trials.put(None)
        self._thread.join(self.tracking.close_s)
        if self.left:
            log.warning(
                "tracking=%s trials_not_logged=%d: the next start logs them, or %s",
                self.tracking.kind, self.left, self.export_command,
            )  # fmt: skip
