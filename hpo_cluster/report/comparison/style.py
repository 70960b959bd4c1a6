"""How the groups of a comparison look in its figures: colours, lines, markers, and bands over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo_cluster.report.figures.description import BLUE, GREEN, ORANGE, PURPLE, VERMILION

#: Colours of M. Okabe and K. Ito, which colour-blind readers can distinguish; a group has a line style too.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, "#56B4E9", "#000000")
STYLES: Sequence[Any] = ("solid", "dashed", "dashdot", (0, (6, 1.5, 1, 1.5, 1, 1.5)))  # dotted has a meaning of its own
MARKERS = "osD^vPX"
#: Seeds from which on the band holds the middle half of them; with fewer, all of them.
QUARTILES_FROM = 5
#: Number of markers on a line, which show whose it is.
MARKS = 7


def band(best: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return lower end, median and upper end over seeds (rows); NaN where it depends on a campaign without a value."""
    share = 0.25 if len(best) >= QUARTILES_FROM else 0.0
    with np.errstate(invalid="ignore"):
        low, middle, high = (np.quantile(best, q, axis=0) for q in (share, 0.5, 1 - share))
    return tuple(np.where(np.isfinite(line), line, np.nan) for line in (low, middle, high))  # type: ignore[return-value]
