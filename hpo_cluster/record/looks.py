"""How often the test scores of a campaign were looked at.

A configuration is chosen by its validation score, and its test score says what to expect of it elsewhere. Whoever has
seen test scores and goes on to choose (another space, a larger budget, another winner) uses the test tasks as further
validation tasks, and their scores become too good. What a user does with a number cannot be seen. What can be counted
is how often there was something new to see: a look counts if it shows more evaluations than every look before it, so
that to write a report again, or two views at once, changes nothing. The count is a lower bound: ``history.csv``, JSON
output, exports and other programs are not counted.

``test_looks.jsonl`` in the campaign's folder has a line for each look. It is not part of the journal, since a view
changes nothing there. In a folder that cannot be written, nothing is counted.

Reference: C. Dwork et al., "The Reusable Holdout: Preserving Validity in Adaptive Data Analysis", Science 349, 2015.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

from hpo_cluster.record.campaign_state import Record
from hpo_cluster.record.clock import utc_now
from hpo_cluster.record.files import read_bytes
from hpo_cluster.record.layout import CampaignLayout
from hpo_cluster.text import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LookAtTests:
    """One look at test scores that were new.

    Attributes:
        at: when (ISO 8601 UTC).
        evaluations: number of evaluations with test scores, those of the baseline and of confirmations included.
    """

    at: str
    evaluations: int


def count_look(layout: CampaignLayout, record: Record, tests: Sequence[str]) -> list[LookAtTests]:
    """Note that test scores are shown; return all looks, this one included if there is anything new to see.

    Args:
        layout: the campaign's files.
        record: the campaign's record.
        tests: names of its test tasks.
    """
    starts = tuple(f"{task}/" for task in tests)
    evaluations = sum(any(name.startswith(starts) for name in trial.metrics) for trial in record.rows)
    looks = read_looks(layout)
    if evaluations <= max((look.evaluations for look in looks), default=0):
        return looks
    line = json.dumps({"at": utc_now(), "evaluations": evaluations}) + "\n"
    try:
        opened = os.open(layout.test_looks, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            os.write(opened, line.encode())  # in one piece, beside other views
        finally:
            os.close(opened)
    except OSError as error:
        log.debug("file=%s look not counted: %s", layout.test_looks, error)
    return read_looks(layout)


def read_looks(layout: CampaignLayout) -> list[LookAtTests]:
    """Return the looks at what was new, in order; empty if nothing was counted. Lines that are damaged are left out."""
    looks: list[LookAtTests] = []
    for line in read_bytes(layout.test_looks).splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            found = json.loads(line)
            look = LookAtTests(str(found["at"]), int(found["evaluations"]))
            if look.evaluations > (looks[-1].evaluations if looks else 0):
                looks.append(look)
    return looks


def looks_in_words(looks: Sequence[LookAtTests]) -> str:
    """Return how often test scores were looked at, and what to do; empty without a look."""
    if not looks:
        return ""
    first, last = looks[0].evaluations, looks[-1].evaluations
    after = counted(last, "evaluation")
    often = f"once, after {after}" if len(looks) == 1 else f"{len(looks)} times, after {first} to {after}"
    return f"test scores looked at {often}: choose by validation, and report the test score once"
