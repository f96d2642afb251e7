"""Means over a few random draws that are all judged on the same examples: errors of two levels, and their intervals.

Five random masks of a layer share the test images. The images' part of the error is the same for all masks and does not
shrink with their number; the masks' part does, and is itself known from five numbers only. A percentile bootstrap over
five masks is too narrow, because it takes their spread as known (and is smaller than it by 4 / 5). The intervals here
are therefore t-intervals, whose degrees of freedom are few where the masks make most of the error.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

__all__ = ["max_min_t_interval", "over_draws", "t_interval"]


def over_draws(values: np.ndarray, replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over m draws of each of K numbers, with its error over examples and draws.

        error^2 = Var_r(mean_i replicate) + S^2 / m,    S^2 = 1 / (m - 1) sum_i (value_i - mean)^2
        freedom = (m - 1) error^4 / (S^2 / m)^2         (Welch and Satterthwaite)

    S^2 holds the draws' own spread and also the part of the examples' error that differs from draw to draw. The first
    term has that part too, divided by m: the error is rather too large than too small.

    Args:
        values: [m, K], one row per draw. With one draw S^2 is 0: right only where nothing was drawn.
        replicates: [R, m, K], bootstrap over examples that are common to all draws.

    Returns:
        (mean, error, freedom), each [K]; ``freedom`` is infinite where the draws do not differ.

    Source: Satterthwaite 1946, https://doi.org/10.2307/3002019.
    """
    m = len(values)
    of_examples = replicates.mean(axis=1).var(axis=0, ddof=1)
    of_draws = values.var(axis=0, ddof=1) / m if m > 1 else np.zeros(values.shape[1])
    total = of_examples + of_draws
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(of_draws > 0, max(m - 1, 1) * (total / of_draws) ** 2, np.inf)
    return values.mean(axis=0), np.sqrt(total), freedom


def t_interval(mean: np.ndarray, error: np.ndarray, freedom: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """mean -+ t error, with the quantile t of Student's distribution at (1 + level) / 2; arrays of one shape."""
    half = _quantile((1 + level) / 2, freedom) * error
    return mean - half, mean + half


def max_min_t_interval(
    mean: np.ndarray, error: np.ndarray, freedom: np.ndarray, level: float
) -> tuple[float, float, float, int]:
    """Interval of ``max_c min_e mu[c, e]`` that allows for the choice of the best c among C.

        low  = max_c min_e (mean - t error),     t at tail / C
        high = max_c min_e (mean + t error),     t at tail / E,    tail = (1 - level) / 2

    ``low`` exceeds the truth only if, for some c, the bound of the e that is truly smallest there exceeds it: C events.
    ``high`` lies below the truth only if one of the E bounds of the truly best c does. Both have probability at most
    tail (Bonferroni), however the numbers depend on each other.

    Args:
        mean, error, freedom: [C, E], of ``over_draws``.
        level: coverage.

    Returns:
        (estimate, low, high, argmax c); NaN bounds where an error is NaN.
    """
    worst = mean.min(axis=1)
    best = int(np.argmax(worst))
    if not np.isfinite(error).all():
        return float(worst[best]), math.nan, math.nan, best
    tail = (1 - level) / 2
    choices, parts = mean.shape
    low = (mean - _quantile(1 - tail / choices, freedom) * error).min(axis=1).max()
    high = (mean + _quantile(1 - tail / parts, freedom) * error).min(axis=1).max()
    return float(worst[best]), float(low), float(high), best


def _quantile(p: float, freedom: np.ndarray) -> np.ndarray:
    """Student's quantile at ``p``; the normal one where there are infinitely many degrees of freedom."""
    known = np.isfinite(freedom)
    return np.where(known, special.stdtrit(np.where(known, freedom, 1.0), p), special.ndtri(p))
