"""From one score a layer to a set of layers, which may be empty."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sharpscope.errors import ConfigError
from sharpscope.vocabulary import parse_rule

__all__ = ["Selection", "masked_median", "select", "standardise", "sustained"]

_FEWEST = 3


@dataclass(frozen=True)
class Selection:
    """What a rule makes of scores: ``mask`` [..., L] is True where score > ``threshold`` [...]."""

    threshold: np.ndarray
    mask: np.ndarray


def masked_median(x: np.ndarray) -> np.ndarray:
    """Median along the last axis of what is finite, NaN where nothing is (much faster than ``np.nanmedian``)."""
    finite = np.isfinite(x)
    count = finite.sum(axis=-1)[..., None]
    ranked = np.sort(np.where(finite, x, np.inf), axis=-1)
    low = np.take_along_axis(ranked, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ranked, np.minimum(count // 2, x.shape[-1] - 1), axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low + high) / 2, np.nan)[..., 0]


def _centre_scale(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre and spread along the last axis of the finite entries; spread 0 where nothing can stand out."""
    finite = np.isfinite(x)
    count = finite.sum(axis=-1)
    filled = np.where(finite, x, 0.0)
    if kind == "mad":
        centre = masked_median(x)
        gap = np.where(finite, np.abs(filled - np.where(finite.any(axis=-1), centre, 0.0)[..., None]), np.nan)
        mean_gap = np.nansum(gap, axis=-1) / np.maximum(count, 1)
        mad = masked_median(gap)
        # More than half of the layers tie: the MAD is 0 and would make every other layer an outlier; the mean
        # absolute deviation, also scaled to a normal's sd, takes its place (Iglewicz & Hoaglin 1993).
        largest = np.where(finite, gap, 0.0).max(axis=-1)
        scale = np.where(mad > 1e-12 * largest, 1.4826 * mad, 1.2533 * mean_gap)
    else:
        centre = np.where(count > 0, filled.sum(axis=-1) / np.maximum(count, 1), np.nan)
        gap = np.where(finite, filled - np.where(count > 0, centre, 0.0)[..., None], 0.0)
        scale = np.sqrt((gap**2).sum(axis=-1) / np.maximum(count - 1, 1))
    size = np.where(finite, np.abs(filled), 0.0).max(axis=-1)
    return centre, np.where((count >= _FEWEST) & (scale > 1e-12 * size), scale, 0.0)


def standardise(x: np.ndarray, kind: str) -> np.ndarray:
    """Robust (``mad``: median and 1.4826 MAD) or plain (``sd``) z along the last axis; 0 where all layers agree."""
    centre, scale = _centre_scale(x, kind)
    flat = scale == 0
    z = (x - centre[..., None]) / np.where(flat, 1.0, scale)[..., None]
    return np.where(flat[..., None] & np.isfinite(x), 0.0, np.where(np.isfinite(x), z, np.nan))


def sustained(values: np.ndarray, fraction: float) -> np.ndarray:
    """The level that a layer exceeds at ``fraction`` of the alphas at least.

    The ceil(fraction * A)-th largest of the A values along the last axis, so that ``sustained(v) > t`` says exactly
    ``v > t at that many alphas or more``. An alpha without a value (NaN) counts as not exceeding; NaN where too few
    are left.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction: needs a number in (0, 1], got {fraction}.")
    alphas = values.shape[-1]
    needed = math.ceil(fraction * alphas - 1e-9)
    ranked = np.sort(np.where(np.isfinite(values), values, -np.inf), axis=-1)
    level = ranked[..., alphas - needed]
    return np.where(np.isfinite(level), level, np.nan)


def select(scores: np.ndarray, rule: str, *, floor: float | None = None) -> Selection:
    """Choose the layers whose score exceeds the rule's threshold.

    mad:K  median + K * 1.4826 * MAD (if the MAD is 0 because more than half tie: 1.2533 * mean absolute deviation);
    sd:T   mean + T * sd;    top:K  the (K + 1)-th largest, so ties at the cut are left out and no result depends on
    the order of the layers (threshold -inf where there are at most K);    abs:X  X itself.
    Nobody is chosen when all scores agree, or when mad and sd have fewer than 3 to compare.

    Args:
        scores: [..., L]; NaN is no candidate. Leading axes (replicates) are treated separately.
        rule: see ``config.parse_rule``.
        floor: no score at or below it is chosen, whatever the rule.

    Raises:
        ConfigError: unknown rule, or a ``top`` that is no whole number >= 0.

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers (MAD and its replacement under ties).
    """
    kind, number = parse_rule(rule)
    scores = np.asarray(scores, dtype=float)
    finite = np.isfinite(scores)
    if kind == "abs":
        threshold = np.full(scores.shape[:-1], number)
    elif kind == "top":
        if number != int(number) or number < 0:
            raise ConfigError(f"straggler_rule: '{rule}' needs a whole number of layers, 0 or more.")
        threshold = _top(np.where(finite, scores, -np.inf), int(number))
    else:
        centre, scale = _centre_scale(scores, kind)
        largest = np.where(finite, scores, -np.inf).max(axis=-1)
        threshold = np.where(scale > 0, centre + number * scale, largest)
    if floor is not None:
        threshold = np.maximum(threshold, floor)
    return Selection(threshold, finite & (scores > threshold[..., None]))


def _top(scores: np.ndarray, number: int) -> np.ndarray:
    ranked = np.sort(scores, axis=-1)[..., ::-1]
    layers = scores.shape[-1]
    cut = ranked[..., number] if number < layers else np.full(scores.shape[:-1], -np.inf)
    lowest = np.where(np.isfinite(scores), scores, np.inf).min(axis=-1)
    tied = ranked[..., 0] - lowest <= 1e-12 * np.abs(ranked[..., 0])
    return np.where(tied & (np.isfinite(scores).sum(axis=-1) > 1), ranked[..., 0], cut)
