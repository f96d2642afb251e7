"""Means over a few random draws that are all judged on the same examples: errors of two levels, and their intervals.

Five random masks of a layer share the test images. The images' part of the error is the same for all masks and does not
shrink with their number; the masks' part does, and is itself known from five numbers only. A percentile bootstrap over
five masks is too narrow, because it takes their spread as known (and as smaller than it is by 4 / 5). With Welch and
Satterthwaite's degrees of freedom an interval still errs in up to 2.9 % instead of 2.5 % of the cases on each side (4.6
to 6.3 % with two masks), because few degrees of freedom and a small spread come together. The intervals here give each
part its own quantile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

__all__ = ["OverDraws", "max_min_over_draws", "over_draws"]


@dataclass(frozen=True)
class OverDraws:
    """Means over ``count`` draws, and the two parts of their standard error; arrays of one shape.

    mean +- half(tail) has the error ``tail`` at most on each side:

        half(tail)^2 = (z examples)^2 + (t draws)^2

    with the quantiles z of the normal and t of Student's distribution with count - 1 degrees of freedom, both at
    1 - tail. It is exact where one part makes all of the error, and too wide in between (1.7 instead of 2.5 % for five
    draws and equal parts).
    """

    mean: np.ndarray
    examples: np.ndarray
    draws: np.ndarray
    count: int

    def half(self, tail: float) -> np.ndarray:
        t = special.stdtrit(self.count - 1, 1 - tail) if self.count > 1 else 0.0
        return np.hypot(special.ndtri(1 - tail) * self.examples, t * self.draws)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of every mean for itself."""
        half = self.half((1 - level) / 2)
        return self.mean - half, self.mean + half


def over_draws(values: np.ndarray, replicates: np.ndarray) -> OverDraws:
    """The means over m draws of K numbers, with their errors over examples and over draws.

        examples^2 = Var_r(mean_i replicate),    draws^2 = 1 / (m (m - 1)) sum_i (value_i - mean)^2

    ``draws`` holds also the part of the examples' error that differs from draw to draw, and ``examples`` has it too:
    together they are rather too large than too small. One draw has no spread: right only where nothing was drawn.

    Args:
        values: [m, K], one row per draw.
        replicates: [R, m, K], bootstrap over examples that are common to all draws.
    """
    m = len(values)
    spread = values.std(axis=0, ddof=1) / math.sqrt(m) if m > 1 else np.zeros(values.shape[1])
    examples = replicates.mean(axis=1).std(axis=0, ddof=1) if len(replicates) > 1 else np.full(spread.shape, math.nan)
    return OverDraws(values.mean(axis=0), examples, spread, m)


def max_min_over_draws(cells: list[OverDraws], level: float) -> tuple[float, float, float, int]:
    """Interval of ``max_c min_e mu[c, e]`` that allows for the choice of the best c among C.

        low  = max_c min_e (mean - half(tail / C))
        high = max_c min_e (mean + half(tail / E)),    tail = (1 - level) / 2

    ``low`` exceeds the truth only if, for some c, the bound of the e that is truly smallest there exceeds it: C events.
    ``high`` lies below the truth only if one of the E bounds of the truly best c does. Both have probability at most
    tail (Bonferroni), however the numbers depend on each other.

    Args:
        cells: for every c the E numbers.
        level: coverage.

    Returns:
        (estimate, low, high, argmax c); NaN bounds where one of the errors is NaN.
    """
    tail = (1 - level) / 2
    worst = [float(cell.mean.min()) for cell in cells]
    best = int(np.argmax(worst))
    if not all(np.isfinite(cell.half(tail)).all() for cell in cells):
        return worst[best], math.nan, math.nan, best
    low = max(float((cell.mean - cell.half(tail / len(cells))).min()) for cell in cells)
    high = max(float((cell.mean + cell.half(tail / len(cell.mean))).min()) for cell in cells)
    return worst[best], low, high, best
