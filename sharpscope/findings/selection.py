"""Choice of layers, possibly none, from one score per layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sharpscope.errors import ConfigError
from sharpscope.vocabulary import parse_rule

__all__ = ["Selection", "centre_scale", "masked_median", "select", "standardise", "sustained"]

_FEWEST = 3


@dataclass(frozen=True)
class Selection:
    """The choice that a rule makes: ``mask`` [..., L] is True where a layer's score exceeds ``threshold`` [...]."""

    threshold: np.ndarray
    mask: np.ndarray


def masked_median(x: np.ndarray) -> np.ndarray:
    """Median of the finite entries along the last axis, NaN where there are none (faster than ``np.nanmedian``)."""
    finite = np.isfinite(x)
    count = finite.sum(axis=-1)[..., None]
    ranked = np.sort(np.where(finite, x, np.inf), axis=-1)
    low = np.take_along_axis(ranked, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ranked, np.minimum(count // 2, x.shape[-1] - 1), axis=-1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, (low + high) / 2, np.nan)[..., 0]


def centre_scale(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre and spread of the finite entries along the last axis; the spread is 0 where no entry can be an outlier."""
    finite = np.isfinite(x)
    count = finite.sum(axis=-1)
    filled = np.where(finite, x, 0.0)
    if kind == "mad":
        centre = masked_median(x)
        gap = np.where(finite, np.abs(filled - np.where(finite.any(axis=-1), centre, 0.0)[..., None]), np.nan)
        mean_gap = np.nansum(gap, axis=-1) / np.maximum(count, 1)
        mad = masked_median(gap)
        # If more than half of the layers tie, the MAD is 0 and would make every other layer an outlier. The mean
        # absolute deviation, scaled to a normal's sd like the MAD, takes its place (Iglewicz & Hoaglin 1993).
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
    centre, scale = centre_scale(x, kind)
    flat = scale == 0
    z = (x - centre[..., None]) / np.where(flat, 1.0, scale)[..., None]
    return np.where(flat[..., None] & np.isfinite(x), 0.0, np.where(np.isfinite(x), z, np.nan))


def sustained(values: np.ndarray, fraction: float) -> np.ndarray:
    """The level that a layer reaches at no less than ``fraction`` of the alphas.

    It is the ceil(fraction * A)-th largest of the A values along the last axis, so ``sustained(v) > t`` holds exactly
    if v > t at that many alphas or more. An alpha without a value (NaN) counts as below every level; the result is NaN
    where fewer values than needed are left.

    Raises:
        ConfigError: a fraction outside (0, 1].
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

        mad:K   median + K * 1.4826 * MAD; where the MAD is 0 because more than half of the scores tie, 1.2533 times
                the mean absolute deviation takes the place of 1.4826 * MAD
        sd:T    mean + T * sd
        top:K   the (K + 1)-th largest score (-inf where there are at most K), so layers that tie at the cut are left
                out and no result depends on the order of the layers
        abs:X   X itself

    The rule null:Q needs more than scores; ``relativechange.calibrated`` follows it.

    No layer is chosen when all scores agree (except by abs), or when mad or sd has fewer than 3 scores to compare.

    Args:
        scores: [..., L]; a layer with NaN is never chosen. Leading axes (replicates) are treated separately.
        rule: see ``vocabulary.parse_rule``.
        floor: no score at or below this value is chosen, whatever the rule.

    Raises:
        ConfigError: an unknown rule, null:Q, or a ``top`` that is not a whole number >= 0.

    Source: Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers (MAD and its replacement under ties).
    """
    kind, number = parse_rule(rule)
    scores = np.asarray(scores, dtype=float)
    finite = np.isfinite(scores)
    if kind == "abs":
        threshold = np.full(scores.shape[:-1], number)
    elif kind == "null":
        raise ConfigError(
            f"straggler_rule: '{rule}' needs scores that have a null distribution; only those of change:M have one."
        )
    elif kind == "top":
        if number != int(number) or number < 0:
            raise ConfigError(f"straggler_rule: '{rule}' needs a whole number of layers, 0 or more.")
        threshold = _top(np.where(finite, scores, -np.inf), int(number))
    else:
        centre, scale = centre_scale(scores, kind)
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
