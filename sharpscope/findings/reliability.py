"""How well accuracies on a finite number of images tell pairs apart: their sampling errors, shared images included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from sharpscope.findings.controls import Controls
from sharpscope.findings.design import Design
from sharpscope.findings.frames import Answered, alpha_index
from sharpscope.scores import normal_quantile

__all__ = [
    "LEAST_RELIABILITY",
    "Answers",
    "SamplingError",
    "answer_error",
    "at_reliability",
    "interval_error",
    "reliability_of",
    "with_errors",
]

LEAST_RELIABILITY: Final = 0.8
"""With a smaller reliability of the outcome nothing is concluded across pairs (our choice). With a larger value more
images are asked for."""

Answers = Mapping[str, tuple[Sequence[float], Mapping[str, Answered]]]
"""Pair -> (its alphas, data set -> its answers at these alphas to every image)."""


@dataclass(frozen=True)
class SamplingError:
    """The errors of n pairs' accuracies, of which another draw of images would give others."""

    covariance: np.ndarray
    """[n, n] of the errors, squares of accuracies in [0, 1]."""
    paired: bool
    """Whether it is known what the pairs' models answered to the same images. If not, the errors are taken to be
    independent: those of differences are then too large rather than too small."""

    def subset(self, at: np.ndarray) -> SamplingError | None:
        """That of the pairs at which ``at`` [n] is true; None where one of theirs is not known."""
        own = self.covariance[np.ix_(at, at)]
        return SamplingError(own, self.paired) if np.isfinite(own).all() else None

    def draws(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, n] normal errors with this covariance."""
        size, direction = np.linalg.eigh(self.covariance)
        # The symmetric root is the only one; that of eigenvectors alone turns with rounding where two sizes are equal.
        root = (direction * np.sqrt(np.maximum(size, 0.0))) @ direction.T
        return rng.normal(size=(count, len(size))) @ root


def answer_error(
    answers: Answers, pairs: Sequence[str], sets: Sequence[str], alpha: float, *, gain: bool
) -> SamplingError | None:
    """The errors of the pairs' mean accuracies over ``sets`` at ``alpha``, or with ``gain`` of what these are above
    those at alpha 0, from the answers to every image.

    With d [n, N] the answers (0 or 1, or the difference of two) to the N images of a set, the covariance is
    sum over sets of cov(d) / N, divided by the squared number of sets: images are drawn from each set by itself, and
    all pairs answer the same. None where the answers of a pair are missing, or are no rights and wrongs.
    """
    total = np.zeros((len(pairs), len(pairs)))
    for name in sets:
        rows = [_right(answers, pair, name, alpha) for pair in pairs]
        starts = [_right(answers, pair, name, 0.0) for pair in pairs] if gain else []
        found = [row for row in (*rows, *starts) if row is not None]
        if len(found) < len(rows) + len(starts) or len({len(row) for row in found}) != 1 or len(found[0]) < 2:
            return None
        right = np.stack(found).astype(float)
        d = right[: len(pairs)] - right[len(pairs) :] if gain else right
        centred = d - d.mean(axis=1, keepdims=True)
        total += centred @ centred.T / (d.shape[1] * (d.shape[1] - 1))
    return SamplingError(total / len(sets) ** 2, paired=True) if sets and len(pairs) else None


def _right(answers: Answers, pair: str, name: str, alpha: float) -> np.ndarray | None:
    alphas, by_set = answers.get(pair, ((), {}))
    at, found = alpha_index(alphas, alpha), by_set.get(name)
    return found[at] if at is not None and isinstance(found, np.ndarray) else None


def interval_error(
    accuracy: pd.DataFrame, pairs: Sequence[str], sets: Sequence[str], alpha: float, level: float
) -> SamplingError:
    """The errors of the pairs' mean accuracies over ``sets`` at ``alpha``, from their intervals alone.

    (ci_high - ci_low) / 2z of each set, independent over sets and pairs. A gain over zero-shot has the same: the
    zero-shot accuracy is common to all pairs of a base. NaN where an interval is missing.
    """
    rows = accuracy[accuracy["dataset"].isin(list(sets)) & np.isclose(accuracy["alpha"].astype(float), alpha)]
    half = (rows["ci_high"].astype(float) - rows["ci_low"].astype(float)) / (2 * normal_quantile(level))
    squares = half.pow(2).groupby(rows["pair"])
    whole = squares.mean().where(squares.count() == len(sets)).reindex(list(pairs)).to_numpy(dtype=float)
    covariance = np.zeros((len(pairs), len(pairs)))
    np.fill_diagonal(covariance, whole / max(len(sets), 1))
    return SamplingError(covariance, paired=False)


def reliability_of(left: np.ndarray, drawn: np.ndarray) -> float:
    """The share of the variance of residuals ``left`` [m] that is not sampling error, in [0, 1].

    ``drawn`` [B, m]: the residuals that come out with one more error added, all of length one. With V the variance and
    E that of the errors, their mean correlation with ``left`` is a = sqrt(V / (V + E)), and the reliability
    1 - E / V = 2 - 1 / a^2.
    """
    a = float(np.nanmean(drawn @ left)) if np.isfinite(drawn).any() else 0.0
    return max(0.0, 2 - 1 / a**2) if a > 0 else 0.0


def with_errors(
    values: np.ndarray, error: SamplingError, design: Design, held: Controls, count: int, rng: np.random.Generator
) -> np.ndarray:
    """[count, units] residuals of the ranks of ``values`` [n] with one more error each."""
    return held.remove(design.centred_ranks(values + error.draws(count, rng)))


def at_reliability(xz: np.ndarray, yz: float, xy: np.ndarray, share: float) -> np.ndarray:
    """Partial correlations of x and y given z, if ``share`` of the variance of z is not sampling error.

    (r_xy - r_xz r_yz / share) / sqrt((1 - r_xz^2 / share) (1 - r_yz^2 / share)); NaN where z without error would
    explain all of x or y.

    Source: Cochran 1968, https://doi.org/10.2307/1267450 (errors of measurement).
    """
    if share <= 0:
        return np.full(np.shape(xy), math.nan)
    rest: Any = (1 - np.square(xz) / share, 1 - yz**2 / share)
    known = (rest[0] > _NOTHING_LEFT) & (rest[1] > _NOTHING_LEFT)
    product = np.where(known, rest[0] * rest[1], 1.0)
    return np.where(known, (xy - xz * yz / share) / np.sqrt(product), math.nan)


_NOTHING_LEFT = 0.05
"""Less than this share of x or y beside z is not told from nothing."""
