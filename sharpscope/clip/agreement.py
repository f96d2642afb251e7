"""How far two models agree on one data set, beyond their accuracies: predictions, probabilities, features, energies.

Every number has an interval over draws of images. Shares have Wilson's. All others are smooth functions of means over
images; their standard error is that of the mean of the influence values (delta method), so that no resampling is
needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.scores import normal_quantile, wilson
from sharpscope.vocabulary import AGREEMENT

__all__ = ["CKA_IMAGES", "Agreed", "Energies", "Outputs", "Seen", "compare", "margin", "overrides"]

CKA_IMAGES = 10_000
"""The largest number of images from which CKA is computed, as in WiSE-FT; from a larger set as many are drawn at
random."""
_AT_ONCE = 4096
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Energies:
    """Texts on which energies are measured: unit ``features`` [M, D] under one model, and its logit scale."""

    features: Tensor
    scale: float


@dataclass(frozen=True)
class Outputs:
    """What one model says of the n images of a data set, on the CPU.

    ``features`` [n, D]: the image features that the head reads. ``scores`` [n, T]: logits over the set's classes, -inf
    for classes that do not compete. ``energies``: None where the model has no text tower.
    """

    features: Tensor
    scores: Tensor
    energies: Energies | None = None

    @property
    def predicted(self) -> NDArray[np.int64]:
        return self.scores.argmax(dim=1).numpy()

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + self.scores.nbytes


@dataclass
class Seen:
    """Collects a model's outputs batch by batch: an argument ``seen`` of ``clip.accuracy.answers``."""

    features: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)

    def __call__(self, features: Tensor, scores: Tensor) -> None:
        self.features.append(features.cpu())
        self.scores.append(scores.cpu())

    def outputs(self, energies: Energies | None = None) -> Outputs:
        return Outputs(torch.cat(self.features), torch.cat(self.scores), energies)


@dataclass(frozen=True)
class Agreed:
    """One number with its interval over draws of ``n`` images; NaN, with the reason in ``note``, where undefined."""

    estimate: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    note: str = ""

    @property
    def status(self) -> str:
        return "undefined" if math.isnan(self.estimate) else "ok"

    def row(self, pair: str, alpha: float, dataset: str, measure: str, against: str) -> dict[str, Any]:
        """The number as a row of the agreement table."""
        return {
            "pair": pair, "alpha": alpha, "dataset": dataset, "measure": measure, "estimate": self.estimate,
            "ci_low": self.low, "ci_high": self.high, "n": self.n, "status": self.status, "against": against,
            "note": self.note,
        }  # fmt: skip


# ---------------------------------------------------------------------- two models
def compare(
    end: Outputs, point: Outputs, labels: NDArray[np.integer], *, level: float = 0.95, seed: int = 0
) -> dict[str, Agreed]:
    """Every measure of ``vocabulary.AGREEMENT`` that compares two models, by name.

    Where the outputs of the two are equal bit for bit, all measures are exactly 0 with an interval of no width: the two
    models are one.

    Args:
        end: the outputs of an end of the path.
        point: the outputs of a point of the path, on the same images in the same order.
        labels: the classes of the images, [n].
        level: coverage of the intervals, in (0, 1).
        seed: seed of the choice of images for CKA, in sets of more than ``CKA_IMAGES``.
    """
    n = len(labels)
    same = torch.equal(end.features, point.features) and torch.equal(end.scores, point.scores)
    if same and _same_energies(end.energies, point.energies):
        zero = Agreed(0.0, 0.0, 0.0, n)
        missing = {} if end.energies is not None else {"energy_gap": Agreed(math.nan, n=n, note=_NO_TEXTS)}
        return dict.fromkeys(_COMPARED, zero) | missing
    was, now = end.predicted, point.predicted
    right_0, right_1 = was == labels, now == labels
    mean = _Mean(level)
    squared, plain = _distances(end.features, point.features)
    found = {
        "disagreement": _share(was != now, level),
        "prediction_diversity": _share(right_0 != right_1, level),
        "only_end_right": _share(right_0 & ~right_1, level),
        "only_point_right": _share(right_1 & ~right_0, level),
        "kappa_complement": _kappa_complement(was, now, level),
        "kl_divergence": mean(_kl(end.scores, point.scores), low=0),
        "cka_complement": _cka_complement(*_chosen(end.features, point.features, seed), level),
        "feature_distortion": mean(squared, low=0),
        "feature_distance": mean(plain, low=0),
        "energy_gap": mean(_energy_gaps(end, point), low=0)
        if end.energies is not None and point.energies is not None
        else Agreed(math.nan, n=n, note=_NO_TEXTS),
        "logit_gap": mean(_logit_gaps(end.scores, point.scores), low=0),
        "margin_difference": _undefined_alone(end.scores, lambda: mean(_margins(point.scores) - _margins(end.scores))),
    }
    assert tuple(found) == _COMPARED
    return found


_COMPARED = tuple(name for name, measure in AGREEMENT.items() if measure.of == "end")
_NO_TEXTS = "energies need a text tower, which the checkpoint lacks, and a tokenizer of CLIP's"


def margin(point: Outputs, level: float = 0.95) -> Agreed:
    """The mean over images of the largest minus the second largest logit; Wortsman et al. 2022, section 5.1."""
    return _undefined_alone(point.scores, lambda: _Mean(level)(_margins(point.scores), low=0))


def overrides(zero: Outputs, one: Outputs, point: Outputs, level: float = 0.95) -> dict[str, Agreed]:
    """Among the images on which the ends disagree: shares with which the point predicts as theta_0 and as theta_1.

    Both are undefined where the ends never disagree. The rest to 1 is a third prediction. Source: Wortsman et al. 2022,
    section 5.1, figure 5 (middle).
    """
    was, then, now = zero.predicted, one.predicted, point.predicted
    split = was != then
    none = Agreed(math.nan, note="the two ends agree on every image")
    return {
        "zeroshot_overrides": _share((now == was)[split], level) if split.any() else none,
        "zeroshot_overridden": _share((now == then)[split], level) if split.any() else none,
    }


# ---------------------------------------------------------------------- one number per image
def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of the tensors in float64, a few thousand at a time; columns of -inf in the first are left out of all."""
    keep = torch.isfinite(tensors[0][0])
    for start in range(0, len(tensors[0]), _AT_ONCE):
        yield tuple(t[start : start + _AT_ONCE, keep].double() for t in tensors)


def _kl(end: Tensor, point: Tensor) -> Floats:
    parts = []
    for a, b in _blocks(end, point):
        log_p, log_q = a.log_softmax(1), b.log_softmax(1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(1))
    return torch.cat(parts).numpy()


def _logit_gaps(end: Tensor, point: Tensor) -> Floats:
    return torch.cat([(b - a).square().mean(1) for a, b in _blocks(end, point)]).numpy()


def _margins(scores: Tensor) -> Floats:
    tops = [block.topk(2, dim=1).values for (block,) in _blocks(scores)]
    return torch.cat([t[:, 0] - t[:, 1] for t in tops]).numpy()


def _distances(end: Tensor, point: Tensor) -> tuple[Floats, Floats]:
    """(squared distance of the unit features, distance of the features) of every image."""
    squared, plain = [], []
    for a, b in _blocks(end, point):
        squared.append((F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1))
        plain.append((a - b).norm(dim=1))
    return torch.cat(squared).numpy(), torch.cat(plain).numpy()


def _energy_gaps(end: Outputs, point: Outputs) -> Floats:
    """The mean over the texts of the squared change of the energy, for every image."""
    assert end.energies is not None and point.energies is not None
    (texts_0, scale_0), (texts_1, scale_1) = ((e.features.double(), e.scale) for e in (end.energies, point.energies))
    parts = []
    for a, b in _blocks(end.features, point.features):
        change = scale_1 * F.normalize(b, dim=1) @ texts_1.T - scale_0 * F.normalize(a, dim=1) @ texts_0.T
        parts.append(change.square().mean(1))
    return torch.cat(parts).numpy()


def _same_energies(a: Energies | None, b: Energies | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.scale == b.scale and torch.equal(a.features, b.features)


# ---------------------------------------------------------------------- intervals
@dataclass(frozen=True)
class _Mean:
    """The mean of one number per image, with its normal interval."""

    level: float

    def __call__(self, values: Floats, low: float = -math.inf, high: float = math.inf) -> Agreed:
        return _smooth(float(values.mean()), values, self.level, low, high)


def _smooth(estimate: float, influence: Floats, level: float, low: float = -math.inf, high: float = math.inf) -> Agreed:
    """``estimate`` with the normal interval of the standard deviation of ``influence`` [n], kept in [low, high].

    A single image has no standard deviation, and then the bounds are NaN.
    """
    n = len(influence)
    half = normal_quantile(level) * float(influence.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    if math.isnan(half):
        return Agreed(estimate, n=n)
    return Agreed(estimate, max(estimate - half, low), min(estimate + half, high), n)


def _share(hits: Bools, level: float) -> Agreed:
    k, n = int(hits.sum()), len(hits)
    return Agreed(k / n, *wilson(k, n, level), n)


def _undefined_alone(scores: Tensor, take: Callable[[], Agreed]) -> Agreed:
    """``take()``, or undefined where fewer than two classes compete."""
    if int(torch.isfinite(scores[0]).sum()) < 2:
        return Agreed(math.nan, n=len(scores), note="a margin needs two competing classes")
    return take()


def _kappa_complement(was: NDArray[np.int64], now: NDArray[np.int64], level: float) -> Agreed:
    """(1 - p_o) / (1 - p_e) with the observed agreement p_o and the agreement p_e of independent predictions."""
    n, classes = len(was), int(max(was.max(), now.max())) + 1
    p, q = (np.bincount(x, minlength=classes) / n for x in (was, now))
    observed, expected = float((was == now).mean()), float(p @ q)
    if expected >= 1:
        return Agreed(math.nan, n=n, note="both models predict one and the same class for every image")
    estimate = (1 - observed) / (1 - expected)
    on_observed = (was == now) - observed
    on_expected = q[was] + p[now] - 2 * expected
    influence = -on_observed / (1 - expected) + estimate * on_expected / (1 - expected)
    return _smooth(estimate, influence, level, low=0)


def _chosen(end: Tensor, point: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The features of at most ``CKA_IMAGES`` images, a choice that depends on the seed and the number of images."""
    if len(end) <= CKA_IMAGES:
        return end, point
    rows = torch.randperm(len(end), generator=torch.Generator().manual_seed(seed))[:CKA_IMAGES].sort().values
    return end[rows], point[rows]


def _cka_complement(end: Tensor, point: Tensor, level: float) -> Agreed:
    """1 - ||Y'X||^2 / (||X'X|| ||Y'Y||) of features X [n, D], Y [n, D'] with centred columns, Frobenius norms.

    With a = ||C_xy||^2, b = ||C_xx||^2, c = ||C_yy||^2 of the covariances C, image i has the influence
    2 (x_i' C_xy y_i - a) on a, and likewise on b and c; CKA = a / sqrt(b c). Source: Kornblith et al. 2019
    (arXiv 1905.00414), equation 6.
    """
    n = len(end)
    if torch.equal(end, point):
        return Agreed(0.0, 0.0, 0.0, n)
    x, y = (t.double() - t.double().mean(0) for t in (end, point))
    (a, on_a), (b, on_b), (c, on_c) = (_squared_covariance(*pair) for pair in ((x, y), (x, x), (y, y)))
    if not (b > 0 and c > 0):
        return Agreed(math.nan, n=n, note="the features of one model are the same for every image")
    cka = a / math.sqrt(b * c)
    influence = cka * (on_a / a if a > 0 else 0 * on_a) - cka * (on_b / b + on_c / c) / 2
    return _smooth(1 - cka, influence, level, low=0, high=1)


def _squared_covariance(x: Tensor, y: Tensor) -> tuple[float, Floats]:
    """(||C||^2, influence of every image on it) for C = x'y / n of centred x [n, D], y [n, D']."""
    covariance = x.T @ y / len(x)
    value = float(covariance.square().sum())
    return value, (2 * (((x @ covariance) * y).sum(1) - value)).numpy()
