"""The base of the optimizers of other libraries: the state of the library is rebuilt from the history for each `ask`.

The library replays what was proposed and what ended, in the order of these events, and is then asked for one point
more. So nothing of the library is saved, and resuming, asynchronous workers and replay work as for our own optimizers.
A trial that diverged or was infeasible counts as the worst value observed so far; one that failed has no value. The
libraries see the unit cube: a coordinate for each parameter, or the index of the value.

If a point is taken, or the constraints do not allow it, the library is asked again, up to `ATTEMPTS` times, then a free
point is drawn at random. Inactive parameters have the middle of their axes; the libraries do not use priors.
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
from hpo_cluster.optimizers.batch import Batch, Found, Points
from hpo_cluster.optimizers.dataset import Dataset, Row
from hpo_cluster.space import Space
from hpo_cluster.space.sampling import free_point, key_of
from hpo_cluster.trial import Ask, derive_seed

if TYPE_CHECKING:
    import pandas as pd

#: Times that a library is asked for a free point before one is drawn at random.
ATTEMPTS = 12


class Library(Protocol):
    """The state of a library, rebuilt from events."""

    def begin(self, row: Row) -> None:
        """Record that a trial was proposed."""

    def end(self, row: Row, target: float) -> None:
        """Record that a trial ended; the target is NaN if it has no value."""

    def draw(self, trial: int, attempt: int) -> Points:
        """Return the point that the library proposes (``d``, unit cube). Raises StopIteration if there is none."""


class External:
    """Base of the optimizers of other libraries.

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
        self._data: Dataset | None = None  # a cache

    def library(self, data: Dataset) -> Library:
        """Return the library before the first event of a history."""
        raise NotImplementedError

    def ask(self, history: pd.DataFrame, n: int) -> Ask:
        """Return at most `n` proposals; see `hpo_cluster.optimizers.base.Optimizer.ask`."""
        data = self._data = Dataset.read(self.space, history, self._data, n)
        batch = Batch(data, n)
        for trial in batch.trials:
            with quiet(derive_seed(self.seed, self.name)):
                found = self._propose(trial, batch)
            if found is None:
                break
            batch.add(found)
        return batch.ask({"optimizer": self.name, **self.settings.model_dump(mode="json")})

    def _propose(self, trial: int, batch: Batch) -> Found | None:
        """Return a free point; None if there is none."""
        rng = np.random.default_rng(derive_seed(self.seed, "ask", trial))
        if len(batch.taken) < self.space.size:
            library = self._replayed(batch)
            for attempt in range(ATTEMPTS):
                try:
                    point = np.clip(library.draw(trial, attempt), 0.0, 1.0)
                except StopIteration:  # it has converged
                    break
                configuration = self.space.decode(point)
                new = key_of(self.space, self.space.encode(configuration)) not in batch.taken
                if new and self.space.allows(configuration):
                    return Found(point, {"redrawn": attempt} if attempt else {})
        free = free_point(self.space, batch.taken, rng)
        return None if free is None else Found(free, {"fallback": "random"})

    def _replayed(self, batch: Batch) -> Library:
        """Return the library after the events of the history and the proposals of this ask."""
        library, worst = self.library(batch.data), batch.data.worst
        for moment in batch.data.moments():
            for row, ended in moment.by_trial():
                if ended:
                    library.end(row, row.target if row.observed else worst if row.low else math.nan)
                else:
                    library.begin(row)
        for row in batch.rows:
            library.begin(row)
        return library


@contextlib.contextmanager
def quiet(seed: int) -> Iterator[None]:
    """Seed the global random generators, torch's if it is loaded, and put them back; suppress warnings and messages."""
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
