"""Scores on halves of the images, so that what is chosen on one half can be judged on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sharpscope.findings.frames import Scored
from sharpscope.scores import Counts, Predictions, sets_together

__all__ = ["halved_means"]


def halved_means(
    sets: Mapping[str, Scored],
    splits: int,
    rng_of: Callable[[int], np.random.Generator],
    pictures: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """The average over data sets of the scores on each half of their images, for every one of ``splits`` splits.

    All models are cut at the same images, and so are data sets of the same size, and sets that show the same pictures
    at the same pictures: a picture that chose in one set (or in one of its corruptions) must not judge in another. The
    halves of an odd number of images differ by one.

    Args:
        sets: data set -> array bool [K, n_d], or predictions of K models.
        splits: number of splits S.
        rng_of: number of images -> the generator of their splits, the same for the same number.
        pictures: data set -> [n_d], a number for the picture of each example; equal numbers are the same picture. A set
            that is not in it shares no picture with another.

    Returns:
        [S, 2, K]; [0, 2, K] where some data set cannot be cut: it has a single image, tells only how many answers are
        right, or has a score that a half of its images does not define.
    """
    count = next(iter(sets.values())).shape[0]
    if any(isinstance(block, Counts) or block.shape[1] < 2 for block in sets.values()):
        return np.empty((0, 2, count))
    known = {name: own for name, own in (pictures or {}).items() if name in sets}
    cuts: dict[str, np.ndarray] = {}
    for cluster in sets_together(known):
        every = np.unique(np.concatenate([known[name] for name in cluster]))
        first = _first_halves(len(every), splits, rng_of)
        cuts |= {name: first[:, np.searchsorted(every, known[name])] for name in cluster}
    total = np.zeros((splits, 2, count))
    for name, block in sets.items():
        first = cuts[name] if name in cuts else _first_halves(block.shape[1], splits, rng_of)
        for side, chosen in enumerate((first, ~first)):
            if isinstance(block, Predictions):
                total[:, side] += block.weighted(chosen.astype(np.float64))
            else:
                sums, n = chosen.astype(np.float64) @ np.asarray(block, dtype=np.float64).T, chosen.sum(axis=1)
                total[:, side] += sums / np.where(n > 0, n, np.nan)[:, None]
    means = total / len(sets)
    return means if np.isfinite(means).all() else np.empty((0, 2, count))


def _first_halves(n: int, splits: int, rng_of: Callable[[int], np.random.Generator]) -> np.ndarray:
    """Which of ``n`` images are in the first half, bool [S, n]."""
    rng = rng_of(n)
    return np.stack([rng.permutation(n) < n // 2 for _ in range(splits)])
