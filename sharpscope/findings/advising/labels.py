"""The situation ``target_labels``: some images of the target have labels; the intervals hold for small numbers too."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
from scipy import stats

from sharpscope.errors import ConfigError
from sharpscope.findings.advising.along import (
    AlongPath,
    Row,
    curve_of,
    fixed_regret,
    gain_over_zeroshot,
    new_row,
    noted,
)
from sharpscope.findings.frames import alpha_index
from sharpscope.scores import normal_quantile, wilson
from sharpscope.vocabulary import TARGET

__all__ = ["FEWEST_LABELS", "label_curve", "label_rows", "paired_difference"]

FEWEST_LABELS = 20
"""The fewest labelled target images on which an alpha is chosen."""
_STEPS = 50


@functools.cache
def paired_difference(only_first: int, only_second: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of the difference of two accuracies on the same ``n`` images.

    The bounds are the differences d at which (b - c - n d) / sqrt(n (2 q + d (1 - d))) = +-z, where q is the maximum
    likelihood estimate of the share of ``only_second`` under d. It keeps its coverage with 20 images and with no
    discordant ones, where bootstrap and normal intervals have no width.

    Args:
        only_first: b, images that only the first model gets right.
        only_second: c, images that only the second model gets right.
        n: all images.
        level: coverage.

    Returns:
        (low, high) of accuracy 1 minus accuracy 2, each in [-1, 1].

    Source: Tango 1998, Statistics in Medicine 17:891-908.
    """
    z = normal_quantile(level)

    def statistic(d: float) -> float:
        linear = -only_first - only_second + (2 * n - only_first + only_second) * d
        root = math.sqrt(max(linear**2 + 8 * n * only_second * d * (1 - d), 0.0))
        share = (root - linear) / (4 * n)
        spread = math.sqrt(max(n * (2 * share + d * (1 - d)), 0.0))
        excess = only_first - only_second - n * d
        return excess / spread if spread > 1e-12 else math.copysign(math.inf, excess) if excess else 0.0

    def bound(target: float, low: float, high: float) -> float:
        for _ in range(_STEPS):  # the statistic falls from d = -1 to d = 1
            middle = (low + high) / 2
            low, high = (middle, high) if statistic(middle) > target else (low, middle)
        return (low + high) / 2

    centre = (only_first - only_second) / n
    return bound(z, -1.0, centre), bound(-z, centre, 1.0)


def label_curve(alphas: tuple[float, ...], hits: np.ndarray, level: float = 0.95) -> pd.DataFrame:
    """Accuracy on the labelled target images at every point, and its gain over zero-shot with a simultaneous interval.

    Columns alpha, accuracy, gain, ci_low, ci_high, p_value (exact McNemar test against zero-shot). The intervals are
    Tango's at level 1 - (1 - level) / m, where m is the number of distinct answers along the path: by Bonferroni's
    inequality they hold for the chosen point.

    Args:
        alphas: [A], with alpha 0 among them.
        hits: bool [A, n].
        level: coverage of all intervals together.

    Raises:
        ConfigError: fewer than ``FEWEST_LABELS`` images, or no alpha 0.
    """
    n, start = hits.shape[1], alpha_index(alphas, 0.0)
    if n < FEWEST_LABELS:
        raise ConfigError(f"target_labels: {n} labelled images; advice needs at least {FEWEST_LABELS}.")
    if start is None:
        raise ConfigError("target_labels: the path needs alpha 0, over which the gain is measured.")
    distinct = max(len(np.unique(hits, axis=0)) - 1, 1)
    rows = []
    for alpha, own in zip(alphas, hits, strict=True):
        b, c = int((own & ~hits[start]).sum()), int((~own & hits[start]).sum())
        same = alpha_index((alpha,), 0.0) is not None
        low, high = (0.0, 0.0) if same else paired_difference(b, c, n, 1 - (1 - level) / distinct)
        rows.append((alpha, float(own.mean()), (b - c) / n, low, high, _mcnemar(b, c)))
    return pd.DataFrame(rows, columns=["alpha", "accuracy", "gain", "ci_low", "ci_high", "p_value"])


@functools.cache
def _mcnemar(only_first: int, only_second: int) -> float:
    """The exact p-value of McNemar's test: a sign test of the discordant images."""
    count = only_first + only_second
    return float(stats.binomtest(only_first, count).pvalue) if count else 1.0


def label_rows(path: AlongPath, hits: np.ndarray) -> list[Row]:
    """The alpha with the best accuracy on the labelled target images; of several best ones the middle one.

    The accuracy and the gain of the chosen alpha, and the regret of the best baseline, are cross-fitted
    (``Curve.crossfit``): the choice is made on one half of the labelled images and judged on the other. The best of
    several accuracies on twenty images is 10 points above the truth on average where all points are equal.
    """
    curve = label_curve(path.alphas, hits, path.level)
    # The splits are the same whatever the run's seed: with so few labels their choice should not be one's own.
    halved = curve_of({TARGET: hits}, 0, 0, "advice", path.pair, "target_labels")
    values, place = halved.values, _middle_best(halved.values)
    at, n = curve.iloc[place], hits.shape[1]
    distinct = len(np.unique(hits, axis=0))
    low, high = wilson(int(hits[place].sum()), n, 1 - (1 - path.level) / distinct)
    gain = gain_over_zeroshot(halved, path.alphas, _middle_best)
    centre = gain["predicted_gain"]
    gain |= {"ci_low": min(float(at["ci_low"]), centre), "ci_high": max(float(at["ci_high"]), centre)}
    note = noted(
        f"{n} labelled images; {int((values == values.max()).sum())} of {len(values)} points share the best accuracy",
        "" if gain["ci_low"] > 0 else "whether this alpha is better than zero-shot cannot be told from so few",
        "target accuracy, gain and regret are judged on halves of the images that did not choose",
        f"target accuracy {100 * path.level:g}% interval [{100 * low:.1f}, {100 * high:.1f}] %",
        f"exact McNemar p {at['p_value']:.3g} against zero-shot, not corrected for the choice",
        "the intervals allow for the choice of alpha",
    )
    judged = halved.crossfit(lambda choosing, judging: float(judging[_middle_best(choosing)]))
    told = gain | fixed_regret(path, halved, _middle_best) | {"ood_accuracy": judged}
    return [new_row(path, "target_labels", "labels_best", TARGET, float(at["alpha"]), note, advised=True, **told)]


def _middle_best(values: np.ndarray) -> int:
    best = np.flatnonzero(values == values.max())
    return int(best[(len(best) - 1) // 2])
