"""Resampling, and the intervals, p-values and multiple-testing corrections that are computed from it.

Every function takes arrays with the replicates first and works on all columns together. Every random number comes from
a generator that the caller has seeded for that one purpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from scipy import special

from sharpscope.errors import ConfigError
from sharpscope.findings.frames import Scored
from sharpscope.scores import Counts, Predictions, draws, min_replicates, sets_together

__all__ = [
    "FEWEST_IMAGES",
    "bca_interval",
    "benjamini_hochberg",
    "max_min_interval",
    "mean_over_sets",
    "permutation_p",
    "resampled_means",
    "resampled_sets",
    "scores_of",
    "simultaneous_band",
    "stratified_means",
    "too_few_images",
    "why_no_interval",
]

FEWEST_IMAGES: Final = 20
"""The fewest images (or probe examples) from whose resamples an interval is computed (our choice). A bootstrap of one
image has no spread at all, and one of four is too narrow: 5 to 18 % of such intervals lay above 0 where there was no
gain. A larger value leaves more sets without an interval."""
_EXACT_IN_FLOAT32 = 2**24


def scores_of(values: np.ndarray | Predictions | Counts) -> np.ndarray:
    """Scores [K] of K models: the mean over examples of an array [K, n], predictions' by their own
    metric, or the share of right answers of counts."""
    return np.asarray(values).mean(axis=1) if isinstance(values, np.ndarray) else values.scores()


def resampled_means(values: np.ndarray | Predictions | Counts, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap means over examples, all rows of ``values`` resampled together (paired).

    Args:
        values: [K, n], bool or float; column i belongs to example i in every row. Or predictions or
            counts of K models.
        replicates: number of bootstrap samples R.
        rng: generator of the samples.

    Returns:
        [R, K] means, or scores of predictions. Sums of bool values are whole numbers and therefore bit-identical in any
        order of summation.
    """
    if isinstance(values, (Predictions, Counts)):
        return values.resampled(replicates, rng)
    values = np.atleast_2d(np.asarray(values))
    rows, n = values.shape
    dtype: type[np.floating] = np.float32 if values.dtype == np.bool_ and n < _EXACT_IN_FLOAT32 else np.float64
    columns: np.ndarray = np.ascontiguousarray(values.T, dtype=dtype)
    sums: list[np.ndarray] = [counts.astype(dtype) @ columns for counts in draws(n, replicates, rng)]
    return np.concatenate(sums).astype(np.float64) / n if sums else np.empty((0, rows))


def resampled_sets(
    sets: Mapping[str, Scored],
    replicates: int,
    stream: Callable[[str], np.random.Generator],
    pictures: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Bootstrap replicates [R, K] of the scores on each of several data sets.

    A sample draws pictures. Sets that show the same pictures (a set and its corruptions) are right and wrong together,
    so a picture counts equally often in every set of the sample that shows it: the means over such sets keep their
    true error. Sets without common pictures are drawn independently of each other, each from its own stream.

    Args:
        sets: data set -> its answers (or numbers of right ones) of K models.
        replicates: number of bootstrap samples R.
        stream: data set -> the generator of its draws; sets that are drawn together take that of the first of them.
        pictures: data set -> [n], a number for the picture of each example; equal numbers are the same picture. A set
            that is not in it shares no picture with another.

    Returns:
        data set -> [R, K]; no replicates, [0, K], for a set of fewer than ``FEWEST_IMAGES`` examples.

    Raises:
        ConfigError: ``pictures`` of another number of examples.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8 (resampling of the
    independent units, here pictures).
    """
    known = {name: np.asarray(own) for name, own in (pictures or {}).items() if name in sets}
    for name, own in known.items():
        if own.shape != (sets[name].shape[1],):
            raise ConfigError(f"pictures['{name}']: needs shape [{sets[name].shape[1]}], got {own.shape}.")
    together = {name: cluster for cluster in sets_together(known) if len(cluster) > 1 for name in cluster}
    out: dict[str, np.ndarray] = {}
    for name, values in sets.items():
        if name not in together:
            out[name] = resampled_means(values, replicates, stream(name))
        elif name == together[name][0]:
            out |= _drawn_together({n: sets[n] for n in together[name]}, known, replicates, stream(name))
    return {n: out[n] if v.shape[1] >= FEWEST_IMAGES else np.empty((0, v.shape[0])) for n, v in sets.items()}


def _drawn_together(
    sets: Mapping[str, Scored], pictures: Mapping[str, np.ndarray], replicates: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """``resampled_sets`` of sets that have pictures in common."""
    every = np.unique(np.concatenate([pictures[name] for name in sets]))
    places = {name: np.searchsorted(every, pictures[name]) for name in sets}
    parts: dict[str, list[np.ndarray]] = {name: [np.empty((0, v.shape[0]))] for name, v in sets.items()}
    for weights in draws(len(every), replicates, rng):
        for name, values in sets.items():
            parts[name].append(_weighted(values, weights[:, places[name]]))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _weighted(values: Scored, weights: np.ndarray) -> np.ndarray:
    """Scores [R, K] where the examples count as often as ``weights`` [R, n] says; NaN where none of them counts."""
    if isinstance(values, Predictions):
        return values.weighted(weights)
    if isinstance(values, Counts):
        raise ConfigError("pictures: of numbers of right answers it is not known which pictures are right.")
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights @ values.T.astype(np.float64) / np.maximum(total, 1), np.nan)


def too_few_images(sets: Mapping[str, Scored]) -> str:
    """Why there are no replicates on these sets; empty where every set has ``FEWEST_IMAGES`` examples."""
    small = {name: values.shape[1] for name, values in sets.items() if values.shape[1] < FEWEST_IMAGES}
    some = ", ".join(f"{name} has {n}" for name, n in small.items())
    return f"no interval: it needs {FEWEST_IMAGES} images in every data set, and {some}" if small else ""


def why_no_interval(sets: Mapping[str, Scored], replicates: int, level: float) -> str:
    """Why scores on these sets, and their mean, have no interval; empty where they have one."""
    if replicates < min_replicates(level):
        return f"no interval: {replicates} bootstrap replicates are too few for level {level:g}"
    return too_few_images(sets)


def stratified_means(
    sets: Mapping[str, Scored],
    replicates: int,
    stream: Callable[[str], np.random.Generator],
    pictures: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Average over data sets of the mean over examples, with bootstrap replicates of ``resampled_sets``.

    Args:
        sets: data set -> its answers (or numbers of right ones) of K models. All sets have the same weight, whatever
            their size.
        replicates, stream, pictures: as for ``resampled_sets``.

    Returns:
        (means [K], replicates [R, K]); no replicates, [0, K], where one of the sets has none.
    """
    means = np.mean([scores_of(values) for values in sets.values()], axis=0)
    return means, mean_over_sets(list(resampled_sets(sets, replicates, stream, pictures).values()))


def mean_over_sets(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The replicates [R, K] of the mean over sets with the replicates ``parts``; none where a set has none."""
    fewest = min(len(part) for part in parts)
    return np.asarray(sum(part[:fewest] for part in parts) / len(parts))


def max_min_interval(values: np.ndarray, replicates: np.ndarray, level: float) -> tuple[float, float, float, int]:
    """Interval of ``max_c min_e mu[c, e]`` that allows for the choice of the best c.

    The largest of several noisy numbers is too large on average, and resampling the maximum adds to this bias. The
    bounds are therefore built from the single cells. With t = (replicate - value) / se they are

        low  = max_c min_e (value - q se),    q   = quantile of max over all (c, e) of t     (simultaneous)
        high = max_c min_e (value + q_c se),  q_c = quantile of max over e of -t, at each c  (for the true best c)

    ``low`` exceeds the truth only if some cell's lower bound exceeds that cell's true value, which by the simultaneous
    quantile has probability at most (1 - level) / 2. ``high`` lies below the truth only if the bound of the truly best
    c does (union-intersection and intersection-union tests).

    Args:
        values: [C, E] point estimates.
        replicates: [R, C, E] their bootstrap.
        level: coverage.

    Returns:
        (estimate, low, high, argmax c); the bounds are NaN with fewer than ``min_replicates(level)`` replicates.

    Source: Romano and Wolf 2005, Journal of the American Statistical Association 100 (the max-type quantile).
    """
    worst = values.min(axis=1)
    best = int(np.argmax(worst))
    if len(replicates) < min_replicates(level):
        return float(worst[best]), math.nan, math.nan, best
    se = replicates.std(axis=0, ddof=1)
    t = (replicates - values) / np.where(se > 0, se, 1.0)
    tail = (1 + level) / 2
    joint = max(0.0, float(np.quantile(t.max(axis=(1, 2)), tail, method="higher")))
    own = np.maximum(0.0, np.quantile((-t).max(axis=2), tail, axis=0, method="higher"))
    low = float((values - joint * se).min(axis=1).max())
    high = float((values + own[:, None] * se).min(axis=1).max())
    return float(worst[best]), low, high, best


def simultaneous_band(values: np.ndarray, replicates: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds that hold for all K values at once, and so for the one that is chosen after a look at them.

    value -+ q se, with q the ``level`` quantile of max_k |replicate_k - value_k| / se_k. A value that no replicate
    changes has bounds of no width.

    Args:
        values: [K] point estimates.
        replicates: [R, K] their bootstrap.
        level: coverage of all K together.

    Returns:
        (low, high), each [K]; NaN with fewer than ``min_replicates(level)`` replicates.

    Source: Romano and Wolf 2005, Journal of the American Statistical Association 100 (the max-type quantile).
    """
    if len(replicates) < min_replicates(level):
        return np.full(values.shape, math.nan), np.full(values.shape, math.nan)
    se = replicates.std(axis=0, ddof=1)
    t = np.abs(replicates - values) / np.where(se > 0, se, 1.0)
    q = float(np.quantile(t.max(axis=1), level, method="higher"))
    return values - q * se, values + q * se


def bca_interval(
    estimate: np.ndarray, replicates: np.ndarray, jackknife: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bias-corrected and accelerated bootstrap bounds of each column.

    Args:
        estimate: [K].
        replicates: [R, K]; NaN (a resample in which the statistic has no value) is left out.
        jackknife: [m, K] leave-one-out values, NaN left out.
        level: coverage.

    Returns:
        (low, high), each [K]; NaN where the estimate is NaN, where fewer than ``min_replicates(level)`` replicates are
        left, or where all replicates agree, or all between the bounds do. (The replicates of a perfect correlation
        agree, and so do most of a measure that is 0 in all units but one; neither is certain.)

    Source: Efron 1987, https://doi.org/10.1080/01621459.1987.10478410.
    """
    finite = np.isfinite(replicates)
    count = finite.sum(axis=0)
    ordered = np.sort(np.where(finite, replicates, np.inf), axis=0)
    last = np.maximum(count - 1, 0)
    ordered[:, count == 0] = 0.0  # no replicate has a value: spread 0, hence no interval
    spread = np.take_along_axis(ordered, last[None], axis=0)[0] - ordered[0]
    tol = 1e-12
    below = (finite & (replicates < estimate - tol)).sum(axis=0)
    equal = (finite & (np.abs(replicates - estimate) <= tol)).sum(axis=0)
    share = (below + 0.5 * equal) / np.maximum(count, 1)
    z0 = special.ndtri(np.clip(share, 0.5 / np.maximum(count, 1), 1 - 0.5 / np.maximum(count, 1)))
    acceleration = _acceleration(jackknife)
    usable = np.isfinite(estimate) & (count >= min_replicates(level)) & (spread > tol)
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = z0 + special.ndtri(tail)
        place = special.ndtr(z0 + z / np.maximum(1 - acceleration * z, 1e-6)) * last
        under = np.floor(place).astype(int)
        over = np.minimum(under + 1, last)
        a = np.take_along_axis(ordered, under[None], axis=0)[0]
        b = np.take_along_axis(ordered, over[None], axis=0)[0]
        with np.errstate(invalid="ignore"):
            bounds.append(a + (b - a) * (place - under))
    known = usable & (bounds[1] - bounds[0] > tol)
    return np.where(known, bounds[0], np.nan), np.where(known, bounds[1], np.nan)


def _acceleration(jackknife: np.ndarray) -> np.ndarray:
    finite = np.isfinite(jackknife)
    values = np.where(finite, jackknife, 0.0)
    mean = values.sum(axis=0) / np.maximum(finite.sum(axis=0), 1)
    gap = np.where(finite, mean - values, 0.0)
    scale = (gap**2).sum(axis=0) ** 1.5
    return np.where(scale > 1e-12, (gap**3).sum(axis=0) / (6 * np.where(scale > 1e-12, scale, 1.0)), 0.0)


def permutation_p(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """Two-sided p of each column, (1 + #{|null| >= |observed|}) / (1 + B), which is never 0.

    Args:
        observed: [K].
        null: [B, K]; a NaN counts as at least as large as ``observed``.

    Returns:
        [K] in (0, 1]; NaN where ``observed`` is NaN.

    Source: Phipson and Smyth 2010, https://doi.org/10.2202/1544-6115.1585.
    """
    with np.errstate(invalid="ignore"):
        below = np.abs(null) < np.abs(observed) - 1e-12
    p = (1 + (~below).sum(axis=0)) / (1 + len(null))
    return np.where(np.isfinite(observed), p, np.nan)


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """False-discovery-rate adjusted p-values, shape and range as given; NaN stays NaN and is not counted.

    Source: Benjamini and Hochberg 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x.
    """
    p = np.asarray(p, dtype=float)
    q = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    if len(known):
        order = known[np.argsort(p[known], kind="stable")]
        ratio = p[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum(1.0, np.minimum.accumulate(ratio[::-1])[::-1])
    return q
