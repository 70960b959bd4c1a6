"""The progress of a training, saved in checkpoints and restored from them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpo_cluster.errors import AttemptError
from hpo_cluster.objectives.lora.checkpoint import differences, read_checkpoint, restore, write_checkpoint
from hpo_cluster.objectives.lora.learning_curve import coarse_curve
from hpo_cluster.objectives.lora.run import Run
from hpo_cluster.objectives.worker import Attempt
from hpo_cluster.trial import ErrorKind

log = logging.getLogger("lora")


@dataclass(frozen=True)
class Unread:
    """The loss of a step that the device may still be computing."""

    step: int
    total: int
    learning_rate: float
    loss: torch.Tensor


@dataclass
class State:
    """Progress of the training. Together with the adapter and the global generators, all that a resumed run needs.

    Attributes:
        train_s: seconds that the steps took, without checkpoints and without steps whose results were lost.
        losses: of the steps whose losses have been read; after a checkpoint of an earlier version, from its last on.
        resumed_at: steps after which an attempt ended and the next one continued.
        unread: the step whose loss has not been read yet.
    """

    optimizer: Any = None
    step: int = 0
    examples: int = 0
    tokens: int = 0
    train_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)
    unread: Unread | None = None

    COUNTERS = ("step", "examples", "tokens", "train_s", "losses", "resumed_at")

    def read(self, attempt: Attempt) -> None:
        """Wait for the loss of the last step and report it; raise `AttemptError` (diverged) if it is not finite."""
        unread, self.unread = self.unread, None
        if unread is None:
            return
        loss = unread.loss.item()
        if not math.isfinite(loss):
            where = f"step {unread.step} of {unread.total}, learning rate {unread.learning_rate:.3g}"
            raise AttemptError(ErrorKind.DIVERGED, f"the training loss is {loss} at {where}")
        self.losses.append(loss)
        rate, curve = unread.learning_rate, lambda: coarse_curve(self.losses)
        attempt.progress(step=unread.step, total=unread.total, loss=loss, learning_rate=rate, curve=curve)


@dataclass
class Keeper:
    """Saver of checkpoints: every ``checkpoint_interval_s``, and when a signal asks the program to end.

    Attributes:
        mark: `fingerprint` of the training, by which a later attempt recognises its checkpoints.
        kept_at: time of the last checkpoint, on the monotonic clock.
    """

    attempt: Attempt
    run: Run
    state: State
    mark: Mapping[str, Any] = field(default_factory=dict)
    kept_at: float = field(default_factory=time.monotonic)
    sample: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        """Save a checkpoint if one is due, and end the attempt if a signal asked for that.

        This is called between two steps of training and between two batches of scoring.
        """
        self.sample()
        period = self.run.train.checkpoint_interval_s
        due = period > 0 and time.monotonic() - self.kept_at >= period
        if due or self.attempt.interrupted:
            self.save()
        if self.attempt.interrupted:
            raise self.attempt.interruption()

    def end_if_asked(self) -> None:
        """End the attempt if a signal asked for that; the checkpoint must be there already."""
        self.sample()
        if self.attempt.interrupted:
            raise self.attempt.interruption()

    def save(self) -> None:
        """Save a checkpoint, if the training has begun and has not diverged."""
        self.state.read(self.attempt)
        if self.state.step > 0:
            self.attempt.save_checkpoint(self.state.step, self._write)
        self.kept_at = time.monotonic()

    def _write(self, folder: Path) -> None:
        counters = {name: getattr(self.state, name) for name in State.COUNTERS}
        write_checkpoint(folder, self.run.model, self.state.optimizer, counters, self.mark)


def resume(keep: Keeper) -> None:
    """Restore the newest checkpoint of an earlier attempt that belongs to this training; without one, do nothing."""
    ranks = keep.run.ranks
    kept = ranks.from_first(lambda: restored(keep))
    if kept is None:
        return
    if not ranks.first:
        restore(kept, keep.run.model, keep.state.optimizer)
    for name in State.COUNTERS:
        setattr(keep.state, name, kept["counters"][name])
    keep.state.resumed_at.append(keep.state.step)


def restored(keep: Keeper) -> dict[str, Any] | None:
    """Restore the model and the optimizer of this rank from the newest checkpoint that fits, and return it."""
    for folder in keep.attempt.checkpoints:
        try:
            kept = read_checkpoint(folder)
            if others := differences(kept["mark"], keep.mark):
                log.warning("%s is of another configuration (%s): not used", folder, ", ".join(others))
                continue
            # earlier versions did not count the seconds, and kept the last loss alone
            kept["counters"] = {"train_s": math.nan, "losses": [kept["counters"].get("loss")], **kept["counters"]}
            if missing := [name for name in State.COUNTERS if name not in kept["counters"]]:
                raise KeyError(*missing)
            restore(kept, keep.run.model, keep.state.optimizer)
        except Exception as error:  # whatever is wrong with a checkpoint, training from the beginning is right
            log.warning("%s cannot be used: %s: %s", folder, type(error).__name__, error)
            continue
        log.info("continuing after step %d, from %s", kept["counters"]["step"], folder)
        return kept
    if keep.attempt.previous:
        log.info("training from the beginning: no usable checkpoint of %d earlier attempts", len(keep.attempt.previous))
    return None
