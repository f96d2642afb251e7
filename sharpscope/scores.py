"""Scores of predictions as functions of weighted sums over examples: one formula for the estimate and its bootstrap.

A bootstrap sample is a vector of weights (the number of times each example was drawn). A score that is a function of
sums over examples is therefore computed for all samples by one sparse matrix product. This module needs numpy and scipy
only, because the packages that read images and those that read tables share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

__all__ = [
    "FRAME_METRICS",
    "PROPORTIONS",
    "RETRIEVAL",
    "Counts",
    "PathAnswers",
    "Predictions",
    "Statistic",
    "anchors_right",
    "draws",
    "independent_mean",
    "label_score",
    "macro_f1",
    "mean_per_class",
    "min_replicates",
    "normal_quantile",
    "percentile_interval",
    "resample_counts",
    "sets_together",
    "share",
    "wilson",
    "worst_group",
    "worst_interval",
]

Floats = NDArray[np.float64]
Direction = Literal["i2t", "t2i"]
FRAME_METRICS = ("pm0", "pm10")
"""The metrics of anchor frames and their neighbours; they are defined for sets of video frames only."""
PROPORTIONS = ("top1", "top5", *FRAME_METRICS)
"""The metrics that are a share of examples (or of anchor frames), k of n, and therefore have Wilson's interval."""
RETRIEVAL: Final[dict[str, tuple[Direction, int]]] = {
    "i2t_r1": ("i2t", 1), "i2t_r5": ("i2t", 5), "i2t_r10": ("i2t", 10),
    "t2i_r1": ("t2i", 1), "t2i_r5": ("t2i", 5), "t2i_r10": ("t2i", 10),
}  # fmt: skip
"""Metric of a set of captions -> (from images to captions or back, the k of its R@k)."""
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Statistic:
    """A score that depends on the examples only through weighted sums: ``finish(weights @ columns)``.

    ``columns`` is [n, m] with one row per example; ``finish`` maps sums [..., m] to scores [...].
    """

    columns: sparse.csr_array
    finish: Callable[[Floats], Floats]

    def value(self) -> float:
        """The score of the sample itself, in which every example has weight 1."""
        return float(self.finish(np.asarray(self.columns.sum(axis=0), dtype=np.float64)))

    def resampled(self, weights: NDArray[np.floating]) -> Floats:
        """The scores [R] under the R rows of ``weights`` [R, n]."""
        return self.finish(np.asarray(self.columns.T @ weights.T).T)


def share(values: NDArray[np.generic], counts: NDArray[np.generic] | None = None) -> Statistic:
    """The mean over examples of one number per example (a hit, a loss).

    With ``counts`` [n], example i stands for counts[i] things that are drawn together, and its value is their sum.
    """
    ones = np.ones(len(values)) if counts is None else np.asarray(counts, dtype=np.float64)
    columns = np.stack([np.asarray(values, dtype=np.float64), ones], axis=1)
    return Statistic(sparse.csr_array(columns), lambda sums: sums[..., 0] / sums[..., 1])


def mean_per_class(labels: NDArray[np.integer], predicted: NDArray[np.integer]) -> Statistic:
    """Balanced accuracy: the accuracy on each class, averaged over the classes that occur."""
    seen, index = np.unique(labels, return_inverse=True)
    c = len(seen)
    hits = predicted == labels
    return Statistic(
        sparse.hstack([_one_hot(index, c, hits), _one_hot(index, c)], format="csr"),
        lambda sums: _mean_ratio(sums[..., :c], sums[..., c:]),
    )


def macro_f1(labels: NDArray[np.integer], predicted: NDArray[np.integer]) -> Statistic:
    """F1 = 2 TP / (2 TP + FP + FN) of each class, averaged over the classes that occur among the labels.

    This is the definition of WILDS for iWildCam: a class without an example is not averaged, but an example that is
    predicted to be of such a class counts as a miss of its own class.

    Source: Koh et al. 2021, arXiv 2012.07421.
    """
    seen, index = np.unique(labels, return_inverse=True)
    c = len(seen)
    place = np.searchsorted(seen, predicted)
    known = (place < c) & (seen[np.minimum(place, c - 1)] == predicted)
    taken = _one_hot(np.where(known, place, 0), c, known)
    columns = sparse.hstack([_one_hot(index, c, predicted == labels), _one_hot(index, c), taken], format="csr")

    def finish(sums: Floats) -> Floats:
        hits, labelled, named = sums[..., :c], sums[..., c : 2 * c], sums[..., 2 * c :]
        f1 = 2 * hits / np.maximum(labelled + named, 1e-300)
        return _mean_where(f1, labelled > 0)

    return Statistic(columns, finish)


def worst_group(hits: NDArray[np.bool_], groups: NDArray[np.integer]) -> Statistic:
    """The smallest accuracy over the groups that occur; an example with a negative group number is in no group.

    Raises:
        ValueError: no example belongs to a group.

    Source: Sagawa et al. 2020 (arXiv 1911.08731); FMoW's worst region in WILDS (Koh et al. 2021, arXiv 2012.07421).
    """
    seen, index = np.unique(groups, return_inverse=True)
    member = groups >= 0
    if not member.any():
        raise ValueError("worst_group: no example belongs to a group.")
    first = int((seen < 0).sum())
    c = len(seen) - first
    index = np.maximum(index - first, 0)
    columns = sparse.hstack([_one_hot(index, c, member & hits), _one_hot(index, c, member)], format="csr")

    def finish(sums: Floats) -> Floats:
        right, size = sums[..., :c], sums[..., c:]
        return np.where(size > 0, right / np.maximum(size, 1e-300), np.inf).min(axis=-1)

    return Statistic(columns, finish)


def anchors_right(hits: NDArray[np.bool_], frames: NDArray[np.integer], *, neighbours: bool) -> Statistic:
    """pm-k: the share of anchor frames that are right, with ``neighbours`` only together with all their neighbours.

    ``hits``: bool [n]. ``frames``: int [n], 2v for the anchor of video set v and 2v + 1 for a neighbour of that anchor.
    Neighbours without an anchor do not count. The examples of the score are the anchors: in the bootstrap each is drawn
    together with its neighbours, whose answers depend on each other. A sample without any anchor has the score NaN.

    Raises:
        ValueError: there is no anchor.

    Source: Shankar et al. 2019, arXiv 1906.02168, section 2.
    """
    of_set, anchor = frames // 2, frames % 2 == 0
    if not anchor.any():
        raise ValueError("anchors_right: there is no anchor frame.")
    whole = np.ones(int(of_set.max()) + 1, dtype=bool)
    whole[of_set[~hits]] = False
    right = whole[of_set] if neighbours else hits
    columns = np.stack([right & anchor, anchor], axis=1).astype(np.float64)

    def finish(sums: Floats) -> Floats:
        drawn = sums[..., 1]
        return np.where(drawn > 0, sums[..., 0] / np.maximum(drawn, 1e-300), np.nan)

    return Statistic(sparse.csr_array(columns), finish)


def label_score(
    metric: str,
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    groups: NDArray[np.integer] | None = None,
) -> Statistic:
    """The score ``metric`` (top1, mean_per_class, macro_f1, worst_group, pm0, pm10) of predicted labels.

    ``groups``: the examples' groups, or for pm0 and pm10 their numbers as video frames (:func:`anchors_right`).

    Raises:
        ValueError: another metric, or one that needs groups without groups.
    """
    if metric == "top1":
        return share(predicted == labels)
    if metric == "mean_per_class":
        return mean_per_class(labels, predicted)
    if metric == "macro_f1":
        return macro_f1(labels, predicted)
    if metric == "worst_group" and groups is not None:
        return worst_group(predicted == labels, groups)
    if metric in FRAME_METRICS and groups is not None:
        return anchors_right(predicted == labels, groups, neighbours=metric != "pm0")
    needs = metric in ("worst_group", *FRAME_METRICS)
    raise ValueError(f"'{metric}' is not a score of predicted labels" + " without groups." * needs)


@dataclass(frozen=True)
class Predictions:
    """The predictions of K models on one data set whose metric is not plain accuracy.

    ``metric`` is a metric of ``label_score``. Shapes: ``labels`` [n], ``predicted`` [K, n], ``groups`` [n] or None.
    """

    metric: str
    labels: NDArray[np.integer]
    predicted: NDArray[np.integer]
    groups: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        if self.predicted.ndim != 2 or self.predicted.shape[1] != len(self.labels) or not len(self.labels):
            raise ValueError(f"predicted: needs shape [models, {len(self.labels)}], got {self.predicted.shape}.")

    @property
    def shape(self) -> tuple[int, int]:
        return self.predicted.shape[0], self.predicted.shape[1]

    def scores(self) -> Floats:
        """The metric of every model: [K]."""
        return np.array([s.value() for s in self._statistics()])

    def resampled(self, replicates: int, rng: np.random.Generator) -> Floats:
        """Bootstrap replicates [R, K] of the scores; all models share the same draws of examples."""
        return np.concatenate([self.weighted(weights) for weights in draws(len(self.labels), replicates, rng)])

    def weighted(self, weights: Floats) -> Floats:
        """The scores [R, K] under the R rows of ``weights`` [R, n]; an example of weight 0 is left out."""
        return np.stack([s.resampled(weights) for s in self._statistics()], axis=1)

    def _statistics(self) -> Iterator[Statistic]:
        return (label_score(self.metric, self.labels, p, self.groups) for p in self.predicted)


@dataclass(frozen=True)
class Counts:
    """How many of ``n`` examples each of K models answers right, where it is not known which ones.

    ``right`` int [K], 0 <= right <= n. This is all that a published accuracy tells. Replicates of different models are
    drawn independently. The points of one path agree on most examples, so an interval of a difference between two of
    them is too wide rather than too narrow.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552 (the bootstrap of a share is binomial).
    """

    right: NDArray[np.integer]
    n: int

    def __post_init__(self) -> None:
        if self.right.ndim != 1 or not len(self.right) or ((self.right < 0) | (self.right > self.n)).any():
            raise ValueError(f"right: needs shape [models] and whole numbers from 0 to {self.n}.")

    @property
    def shape(self) -> tuple[int, int]:
        """(K, n), as that of an array of answers."""
        return len(self.right), self.n

    def scores(self) -> Floats:
        """The share of right answers of every model: [K]."""
        return np.asarray(self.right / self.n)

    def resampled(self, replicates: int, rng: np.random.Generator) -> Floats:
        """Bootstrap replicates [R, K] of the scores: binomial counts, since a draw hits a right answer at that rate."""
        return np.asarray(rng.binomial(self.n, self.scores(), (replicates, len(self.right))) / self.n)


@dataclass(frozen=True)
class PathAnswers:
    """What the K points of a path answer to the n images of one data set.

    ``predicted`` int [K, n]: the predicted classes. ``confidence`` [K, n]: the softmax of the predicted class, in
    [0, 1]. ``labels`` int [n], or None where the images have no labels.
    """

    predicted: NDArray[np.integer]
    confidence: NDArray[np.floating]
    labels: NDArray[np.integer] | None = None

    def __post_init__(self) -> None:
        shape = self.predicted.shape
        if len(shape) != 2 or self.confidence.shape != shape or not all(shape):
            raise ValueError(f"needs predicted and confidence [K, n], got {shape} and {self.confidence.shape}.")
        if self.labels is not None and self.labels.shape != shape[1:]:
            raise ValueError(f"labels: needs shape [{shape[1]}], got {self.labels.shape}.")

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each point's predicted class is the label, [K, n]; ValueError without labels."""
        if self.labels is None:
            raise ValueError("the images have no labels.")
        return np.asarray(self.predicted == self.labels)

    def take(self, rows: NDArray[np.integer]) -> PathAnswers:
        """The answers to the images ``rows``, in that order."""
        labels = None if self.labels is None else self.labels[rows]
        return PathAnswers(self.predicted[:, rows], self.confidence[:, rows], labels)

    @classmethod
    def joined(cls, parts: Sequence[PathAnswers]) -> PathAnswers:
        """The images of several sets as one set; it has labels if all of them do."""
        labels = [p.labels for p in parts if p.labels is not None]
        return cls(
            np.concatenate([p.predicted for p in parts], axis=1),
            np.concatenate([p.confidence for p in parts], axis=1),
            np.concatenate(labels) if len(labels) == len(parts) else None,
        )

    def without_labels(self) -> PathAnswers:
        """The same answers to images whose labels are not known."""
        return PathAnswers(self.predicted, self.confidence)


def resample_counts(n: int, replicates: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The number of times that each of ``n`` examples is drawn in each of R bootstrap samples: int64 [R, n]."""
    drawn = rng.integers(0, n, size=(replicates, n))
    drawn += np.arange(replicates)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=replicates * n).reshape(replicates, n)


def draws(n: int, replicates: int, rng: np.random.Generator) -> Iterator[Floats]:
    """The R samples of ``resample_counts`` in blocks, float64 [r, n], so that many examples fit into memory."""
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, replicates, step):
        yield resample_counts(n, min(step, replicates - start), rng).astype(np.float64)


def min_replicates(level: float) -> int:
    """The fewest replicates for an interval of coverage ``level``: 2 / (1 - level), rounded up; 40 at 0.95."""
    return math.ceil(round(2 / (1 - level), 6))


def percentile_interval(replicates: Floats, level: float, *, skip_nan: bool = False) -> tuple[Floats, Floats]:
    """Percentile bootstrap bounds (low, high) of each column of ``replicates`` [R, ...].

    The bounds are NaN with fewer than ``min_replicates(level)`` replicates. With ``skip_nan`` a replicate that is NaN
    is left out; without it a single one makes the bounds NaN.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552.
    """
    if len(replicates) < min_replicates(level):
        missing = np.full(replicates.shape[1:], np.nan)
        return missing, missing.copy()
    quantile = np.nanquantile if skip_nan else np.quantile
    low, high = quantile(replicates, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def independent_mean(
    estimates: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
) -> tuple[float, float, float]:
    """The mean of K estimates with its interval: (mean, low, high).

    Estimates of different clusters are independent. The lower bound is mean - 1/K sqrt(sum_c (sum_{k in c} (m_k -
    low_k))^2), and the upper bound likewise. Within a cluster the distances to the bounds add up, as if its estimates
    rose and fell together. The interval is therefore wide enough however they are correlated, and too wide where they
    are little: with K estimates in one cluster at most by the factor sqrt(K). The bounds are NaN where one of the
    estimates has no bounds.

    Args:
        estimates, lows, highs: [K].
        clusters: [K], the cluster of each estimate; None: all are independent.

    Source: Zou and Donner 2008, Stat. Med. 27:1693.
    """
    k = len(estimates)
    mean = sum(estimates) / k
    below: dict[Hashable, float] = {}
    above: dict[Hashable, float] = {}
    of = range(k) if clusters is None else clusters
    for c, m, low, high in zip(of, estimates, lows, highs, strict=True):
        below[c] = below.get(c, 0.0) + (m - low)
        above[c] = above.get(c, 0.0) + (high - m)
    down, up = (math.sqrt(sum(x**2 for x in side.values())) / k for side in (below, above))
    return mean, mean - down, mean + up


def sets_together(pictures: Mapping[str, NDArray[np.integer]]) -> list[list[str]]:
    """The clusters of data sets that have pictures in common, directly or by way of another set.

    Args:
        pictures: data set -> [n], a number for the picture of each example; equal numbers are the same picture.

    >>> sets_together({"a": np.array([1, 2]), "b": np.array([5]), "c": np.array([2, 3])})
    [['a', 'c'], ['b']]
    """
    clusters: list[tuple[list[str], NDArray[np.integer]]] = []
    for name, own in pictures.items():
        near = [c for c in clusters if np.isin(own, c[1]).any()]
        joined = [n for names, _ in near for n in names] + [name], np.concatenate([own, *(seen for _, seen in near)])
        clusters = [c for c in clusters if all(c is not other for other in near)] + [joined]
    order = list(pictures)
    return sorted((sorted(names, key=order.index) for names, _ in clusters), key=lambda names: order.index(names[0]))


def normal_quantile(level: float) -> float:
    """The z with P(|Z| <= z) = ``level`` for a standard normal Z: how many standard errors an interval reaches.

    >>> round(normal_quantile(0.95), 3)
    1.96
    """
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, ``k`` of ``n``.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with p = k/n and z the normal quantile at (1 + level)/2.
    The interval is inside [0, 1] and never has zero width.

    Raises:
        ValueError: unless 0 <= k <= n, n >= 1 and 0 < level < 1.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209-212.
    """
    if not (0 <= k <= n and n >= 1 and 0 < level < 1):
        raise ValueError(f"wilson: needs 0 <= k <= n, n >= 1 and 0 < level < 1; got k={k}, n={n}, level={level}.")
    z, p = normal_quantile(level), k / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    return (0.0 if k == 0 else (centre - half) / scale), (1.0 if k == n else (centre + half) / scale)


def worst_interval(counts: Iterable[tuple[int, int]], level: float = 0.95) -> tuple[float, float]:
    """Interval of the smallest of several proportions, from the (k, n) of each: the smallest exact bounds.

    With Clopper and Pearson's bounds low_g and high_g of every group g the interval is [min low_g, min high_g]. Let w
    be the group with the smallest true proportion. min low_g is above its value only if low_w is, and min high_g below
    it only if high_w is. The interval therefore misses the truth in at most 1 - level of cases, however small a group.

    Raises:
        ValueError: unless there is a group, 0 <= k <= n and n >= 1 in every group, and 0 < level < 1.

    Source: Clopper and Pearson 1934, Biometrika 26:404-413 (the bounds of one proportion).
    """
    known = list(counts)
    if not known or not all(0 <= k <= n and n >= 1 for k, n in known) or not 0 < level < 1:
        raise ValueError(
            f"worst_interval: needs groups with 0 <= k <= n, n >= 1 and 0 < level < 1; got {known}, {level}."
        )
    tail = (1 - level) / 2
    lows = [0.0 if k == 0 else float(special.betaincinv(k, n - k + 1, tail)) for k, n in known]
    highs = [1.0 if k == n else float(special.betaincinv(k + 1, n - k, 1 - tail)) for k, n in known]
    return min(lows), min(highs)


def _one_hot(index: NDArray[np.integer], width: int, keep: NDArray[np.bool_] | None = None) -> sparse.csr_array:
    """A matrix [n, width] with a 1 at ``index`` in the row of every example (of every example in ``keep``)."""
    rows = np.arange(len(index)) if keep is None else np.flatnonzero(keep)
    return sparse.csr_array((np.ones(len(rows)), (rows, index[rows])), shape=(len(index), width))


def _mean_ratio(part: Floats, whole: Floats) -> Floats:
    return _mean_where(part / np.maximum(whole, 1e-300), whole > 0)


def _mean_where(values: Floats, there: NDArray[np.bool_]) -> Floats:
    return np.where(there, values, 0.0).sum(axis=-1) / there.sum(axis=-1)
