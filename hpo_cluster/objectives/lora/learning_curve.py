"""The training loss that a result reports, and its learning curve, from the losses of all steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

#: Largest number of points of a curve.
POINTS = 200

#: Largest number of points of the curve that a job reports while it trains.
COARSE_POINTS = 40

#: The reported loss is the mean over this share of the steps, the last ones, and over at least `LEAST` of them.
SHARE, LEAST = 10, 10


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the last tenth of the steps, of the last 10 if that is more, or of all if they are fewer.

    One step sees `global_batch_size` examples; the mean is less noisy, and the learning rate is small by then.
    """
    last = losses[-max(LEAST, math.ceil(len(losses) / SHARE)) :]
    return math.fsum(last) / len(last)


def coarse_curve(losses: Sequence[float | None]) -> list[float]:
    """Return the mean losses of at most `COARSE_POINTS` equal parts of the training so far, for its progress."""
    known = [loss for loss in losses if loss is not None]
    size = max(1, math.ceil(len(known) / COARSE_POINTS))
    parts = (known[begin : begin + size] for begin in range(0, len(known), size))
    return [round(math.fsum(part) / len(part), 5) for part in parts]


def learning_curve(losses: Sequence[float], step: int, learning_rate: Callable[[int], float]) -> list[dict[str, Any]]:
    """Return at most `POINTS` points of a training, as objects to which other measurements can be added.

    Args:
        losses: of the last steps, one each; of all, unless an earlier version began the training.
        step: number of the last one, from 1.
        learning_rate: returns that of a step, from 0.

    Returns:
        For each point ``step``, the number of steps done; ``train_loss``, the mean loss of the steps since the point
        before; and ``learning_rate``, that of the step. Points are equally far apart; the last one is at `step`.
    """
    size = max(1, math.ceil(step / POINTS))
    first = begin = step - len(losses)
    points = []
    while begin < step:
        end = min(begin - begin % size + size, step)
        part = losses[begin - first : end - first]
        mean = math.fsum(part) / len(part)
        points.append({"step": end, "train_loss": mean, "learning_rate": learning_rate(end - 1)})
        begin = end
    return points
