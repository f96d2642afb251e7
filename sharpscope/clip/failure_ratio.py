"""The ratio of two models' accuracies by the images' distance to the nearest failures of one of them: VRF's figure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sharpscope.scores import normal_quantile

__all__ = ["BINS", "FEWEST", "Nearness", "RatioBin", "ratio_bins"]

BINS: Final = 10
"""The largest number of bins of distance. With a larger value the curve has more points, each from fewer images."""
FEWEST: Final = 40
"""The smallest number of images per bin; smaller sets get fewer bins. With a larger value small sets have fewer bins
and narrower intervals."""


@dataclass(frozen=True)
class Nearness:
    """How near the n images of one data set are to failures, and which of them each model gets right.

    ``distance`` [n]: VRF's squared distance of each image to its ``k``-th nearest failure, infinite where there are
    fewer than ``k`` (``ensembles.failure_distance``). ``zeroshot``, ``finetuned``: bool [n], whether each end is right.
    ``failures``: the number of failures among the training images.
    """

    distance: NDArray[np.float64]
    zeroshot: NDArray[np.bool_]
    finetuned: NDArray[np.bool_]
    failures: int
    k: int


@dataclass(frozen=True)
class RatioBin:
    """The images of one bin of distance: their accuracies and the ratio, with its interval over draws of images.

    ``distance_low``, ``distance_high``, ``distance``: the smallest, largest and mean squared distance. ``note`` says
    why a ratio or an interval is NaN.
    """

    distance_low: float
    distance_high: float
    distance: float
    zeroshot: float
    finetuned: float
    ratio: float
    low: float
    high: float
    n: int
    note: str = ""

    @property
    def status(self) -> str:
        return "ok" if math.isfinite(self.ratio) else "undefined"


def ratio_bins(near: Nearness, bins: int | None = None, level: float = 0.95) -> list[RatioBin]:
    """Accuracy of the fine-tuned over that of the zero-shot model, bin by bin, from the nearest images to the farthest.

    The bins hold about as many images each; images at one distance share a bin, so that there may be fewer bins.

    The ratio r = p_1 / p_0 of the two shares on the same n images has the interval exp(log r +- z s), where s^2 is the
    variance of the mean of the influence values right_1 / p_1 - right_0 / p_0 (delta method on the logarithm). Pairs
    are kept together, so that what both models get right adds little to s. There is no interval where a model gets no
    image of the bin right, or where both are right on the same images.

    Args:
        near: distances and answers of n images.
        bins: the number of bins; None: ``BINS``, or fewer so that a bin has ``FEWEST`` images.
        level: the confidence level, in (0, 1).

    Source of the figure: Zhu et al. 2024 (VRF, arXiv 2411.06966). The interval: Katz et al. 1978, Biometrics 34, with
    the covariance of paired answers.
    """
    n = len(near.distance)
    if not np.isfinite(near.distance).all():
        note = f"there are {near.failures} zero-shot failures among the training images, fewer than k = {near.k}"
        p_0, p_1 = float(near.zeroshot.mean()), float(near.finetuned.mean())
        nan = math.nan
        return [RatioBin(nan, nan, nan, p_0, p_1, nan, nan, nan, n, note)]
    count = max(1, min(BINS, n // FEWEST)) if bins is None else bins
    return [_bin(near, rows, level) for rows in _members(near.distance, count)]


def _members(distance: NDArray[np.float64], count: int) -> Iterator[NDArray[np.bool_]]:
    """The images of every bin that has any, bool [n]; a bin's upper edge is one of the distances and belongs to it."""
    edges = np.quantile(distance, np.arange(1, count) / count, method="inverted_cdf")
    number = np.searchsorted(edges, distance, side="left")
    for i in np.unique(number):
        yield number == i


def _bin(near: Nearness, rows: NDArray[np.bool_], level: float) -> RatioBin:
    d, right_0, right_1 = near.distance[rows], near.zeroshot[rows], near.finetuned[rows]
    p_0, p_1, n = float(right_0.mean()), float(right_1.mean()), len(d)
    ratio, note, low, high = math.nan, "", math.nan, math.nan
    if p_0 == 0:
        note = "the zero-shot model gets no image of the bin right"
    else:
        ratio = p_1 / p_0
        if p_1 == 0:
            note = "no interval: the fine-tuned model gets no image of the bin right"
        elif (right_0 == right_1).all():
            note = "no interval: both models are right on the same images of the bin"
        else:
            error = float((right_1 / p_1 - right_0 / p_0).std(ddof=1)) / math.sqrt(n)
            factor = math.exp(normal_quantile(level) * error)
            low, high = ratio / factor, ratio * factor
    return RatioBin(float(d.min()), float(d.max()), float(d.mean()), p_0, p_1, ratio, low, high, n, note)
