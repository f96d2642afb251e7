"""Axes on which accuracies are stretched towards 0 and 100 %: logit and probit, with round percentages as ticks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from scipy import special

__all__ = ["SCALES", "Scale", "logit", "percent_ticks", "scaled"]

Scale = Literal["logit", "probit", "linear"]
Floats = pd.Series | np.ndarray
_EDGE: Final = 1e-4
"""Accuracies of 0 and 1, whose logit is infinite, are drawn this far inside."""
_TICKS: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9)

SCALES: Final[dict[Scale, tuple[Callable[[np.ndarray], np.ndarray], Callable[[float], float]]]] = {
    "logit": (special.logit, lambda v: 1 / (1 + math.exp(-v))),
    "probit": (special.ndtri, lambda v: float(special.ndtr(v))),
    "linear": (lambda p: p, lambda v: v),
}
"""Scale -> the place of a share p in (0, 1) on the axis, and the share at a place."""


def scaled(shares: Floats, scale: Scale) -> np.ndarray:
    """The places of ``shares`` in [0, 1] on an axis of this scale."""
    inside = np.asarray(shares, dtype=float)
    inside = inside if scale == "linear" else np.clip(inside, _EDGE, 1 - _EDGE)
    return np.asarray(SCALES[scale][0](inside))


def logit(shares: Floats) -> np.ndarray:
    """log(p / (1 - p)) of ``shares``, 0 and 1 moved inside."""
    return scaled(shares, "logit")


def percent_ticks(axis: Axis, scale: Scale = "logit") -> None:
    """Put round percentages on an axis of this scale, as many as there is room for."""
    low, high = sorted(axis.get_view_interval())
    share = SCALES[scale][1]
    first, last = 100 * share(low), 100 * share(high)
    wanted = [t for t in _TICKS if first <= t <= last]
    for step in (5.0, 2.0, 1.0, 0.5, 0.2, 0.1):
        if len(wanted) < 3:  # a narrow range
            wanted = [step * k for k in range(math.ceil(first / step), math.floor(last / step) + 1)]
    wanted = wanted[:: max(1, math.ceil(len(wanted) / 7))]
    places = [float(v) for v in scaled(np.array(wanted) / 100, scale)]
    axis.set_major_locator(FixedLocator(places))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FixedFormatter([f"{t:g}" for t in wanted]))
