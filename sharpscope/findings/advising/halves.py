"""Scores on halves of the images, so that what is chosen on one half can be judged on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sharpscope.findings.frames import Scored
from sharpscope.scores import Counts, Predictions

__all__ = ["halved_means"]


def halved_means(blocks: Sequence[Scored], splits: int, rng_of: Callable[[int], np.random.Generator]) -> np.ndarray:
    """The average over data sets of the scores on each half of their images, for every one of ``splits`` splits.

    All models are cut at the same images, and so are data sets of the same size: corruptions of one set show the same
    images in the same order, and an image that chose on one must not judge on another. The halves of an odd number of
    images differ by one.

    Args:
        blocks: one array bool [K, n_d], or predictions of K models, per data set.
        splits: number of splits S.
        rng_of: number of images -> the generator of their splits, the same for the same number.

    Returns:
        [S, 2, K]; [0, 2, K] where some data set cannot be cut: it has a single image, tells only how many answers are
        right, or has a score that a half of its images does not define.
    """
    count = blocks[0].shape[0]
    if any(isinstance(block, Counts) or block.shape[1] < 2 for block in blocks):
        return np.empty((0, 2, count))
    total = np.zeros((splits, 2, count))
    for block in blocks:
        n = block.shape[1]
        rng = rng_of(n)
        first = np.stack([rng.permutation(n) < n // 2 for _ in range(splits)])
        for side, chosen in enumerate((first, ~first)):
            if isinstance(block, Predictions):
                total[:, side] += block.weighted(chosen.astype(np.float64))
            else:
                sums = chosen.astype(np.float64) @ np.asarray(block, dtype=np.float64).T
                total[:, side] += sums / chosen.sum(axis=1, keepdims=True)
    means = total / len(blocks)
    return means if np.isfinite(means).all() else np.empty((0, 2, count))
