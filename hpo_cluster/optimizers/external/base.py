"""What the optimizers of other libraries share: the library's state is rebuilt from the history for each `ask`.

The library is told what was asked and what ended, in the order of these events, and then asked for one more. So nothing
of theirs is saved, and resuming, asynchronous workers and replay work as for our own optimizers. A trial that diverged
or was infeasible counts as the worst value observed so far; one that failed is not told. The libraries see the unit
cube: a coordinate for each parameter, or the index of the value where there are few.

In the place of a configuration that is taken, or that the constraints do not allow, the library is asked again,
`ATTEMPTS` times, then a free one is drawn at random; inactive parameters stand in the middle of their axes; of priors
the libraries know nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import random
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from hpo_cluster.errors import ConfigError
from hpo_cluster.optimizers.ask import Found, Points
from hpo_cluster.optimizers.dataset import Row, Rows
from hpo_cluster.optimizers.replay import Event, events_of
from hpo_cluster.space import Configuration, Space
from hpo_cluster.space.sampling import Key, free_point, key_of
from hpo_cluster.trial import Ask, Origin, Proposal, State, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: Times that a library is asked again where its answer is taken, before a free configuration is drawn.
ATTEMPTS = 12


class Library(Protocol):
    """The state of a library, rebuilt from events."""

    def begin(self, row: Row) -> None:
        """A trial of the history was asked for."""

    def end(self, row: Row, target: float) -> None:
        """It ended; NaN where its value says nothing."""

    def draw(self, trial: int, attempt: int) -> Points:
        """Where the library wants trial `trial` to be (``d``, unit cube)."""


class External:
    """What the optimizers of other libraries share.

    Args:
        space: what to search.
        settings: of the optimizer.
        seed: of the campaign.

    Raises:
        ConfigError: the library is not installed.
    """

    name: ClassVar[str]
    module: ClassVar[str]

    def __init__(self, space: Space, settings: Any, seed: int) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        if importlib.util.find_spec(self.module) is None:
            fault = f"optimizer: {self.name} needs a library that is not installed"
            raise ConfigError([fault], hint=f"pip install 'hpo_cluster[{self.name}]'")

    def library(self) -> Library:
        """The library before anything happened."""
        raise NotImplementedError

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """At most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        rows = Rows.read(self.space, history)
        events, taken = events_of(rows), rows.taken()
        worst = min((row.target for row in rows if row.observed), default=math.nan)
        proposals: list[Proposal] = []
        decision: dict[str, Any] = {"optimizer": self.name, **self.settings.model_dump(mode="json")}
        for trial in range(rows.next_trial, rows.next_trial + n):
            with quiet(derive_seed(self.seed, self.name)):
                found = self._propose(trial, events, worst, taken)
            if found is None:
                decision["exhausted"] = True
                break
            point, info = found
            proposals.append(Proposal(self.space.decode(point), info))
            row = pending_row(self.space, trial, proposals[-1].parameters)
            events.append(Event(row, ended=False))
            taken.add(key_of(self.space, row.point))
        return Ask(tuple(proposals), decision=decision)

    def _propose(self, trial: int, events: list[Event], worst: float, taken: set[Key]) -> Found | None:
        """A free point (``d``) and how it was found."""
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        if len(taken) < self.space.size:
            library = self.library()
            for event in events:
                row = event.row
                if event.ended:
                    library.end(row, row.target if row.observed else worst if row.low else math.nan)
                else:
                    library.begin(row)
            for attempt in range(ATTEMPTS):
                try:
                    point = np.clip(library.draw(trial, attempt), 0.0, 1.0)
                except StopIteration:  # it has converged
                    break
                configuration = self.space.decode(point)
                new = key_of(self.space, self.space.encode(configuration)) not in taken
                if new and self.space.allows(configuration):
                    return point, {"redrawn": attempt} if attempt else {}
        free = free_point(self.space, taken, rng)
        return None if free is None else (free, {"fallback": "random"})


def pending_row(space: Space, trial: int, configuration: Configuration) -> Row:
    """The row that a proposal becomes."""
    return Row(trial, State.PROPOSED, Origin.EVALUATED, configuration, space.encode(configuration), math.nan)


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Global random generators seeded, then put back, torch's where it is loaded; no warnings, no messages."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002 - saved only to be put back
    disabled = logging.root.manager.disable
    torch = sys.modules.get("torch")
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(record=True))
        if torch is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
        logging.disable(logging.WARNING)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            logging.disable(disabled)
            random.setstate(kept[0])
            np.random.set_state(kept[1])  # noqa: NPY002
