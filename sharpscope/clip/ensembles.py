"""Ensembles that mix the outputs of two models instead of their weights: baselines for the interpolation path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sharpscope.config.study import StudyConfig
from sharpscope.vocabulary import EnsembleKind

__all__ = [
    "CENTRE",
    "WIDTH",
    "FailureSet",
    "calibrating_temperature",
    "ensemble",
    "failure_distance",
    "finetuned_weight",
    "mixed_logits",
    "mixed_outputs",
    "nearest_count",
]

CENTRE, WIDTH = StudyConfig.vrf_centre, StudyConfig.vrf_width
"""The parameters a and b of VRF's sigmoid. At the squared distance CENTRE from the zero-shot model's failures, both
models have the same weight. The larger WIDTH is, the more slowly the weight changes with the distance."""
COLDEST, HOTTEST = 0.01, 100.0
"""The lower and upper bound of the temperature that calibrates a model."""


def mixed_outputs(logits_0: Tensor, logits_1: Tensor, weight: Tensor | float = 0.5) -> Tensor:
    """Log-probabilities ``log((1 - w) softmax(logits_0) + w softmax(logits_1))``: [n, C].

    ``logits_0``, ``logits_1``: logits [n, C] of the zero-shot and the fine-tuned model, for the competing classes only.
    ``weight``: the weight w of the fine-tuned model, a number or [n]. With w = 1/2 the result is the output-space
    ensemble (OSE) with which Zhu et al. 2024 (2411.06966) compare. WiSE-FT's output ensemble (Wortsman et al. 2022,
    2109.01903, appendix C.3) is another one, the mean of the logits.
    """
    w = torch.as_tensor(weight, dtype=logits_0.dtype, device=logits_0.device).reshape(-1, 1)
    return torch.logaddexp((1 - w).log() + logits_0.log_softmax(1), w.log() + logits_1.log_softmax(1))


def mixed_logits(logits_0: Tensor, logits_1: Tensor, weight: float) -> Tensor:
    """``(1 - w) logits_0 + w logits_1``: the output-space ensemble of WiSE-FT (Wortsman et al. 2022, section C.3.1).

    ``logits_0``, ``logits_1``: [n, C], -inf for classes that do not compete; ``weight``: w in [0, 1]. The ends are bit
    for bit those of the two models. Where only an affine head moves, the result equals the logits of the interpolated
    weights for every w, up to rounding. It does not where the image tower or logit_scale moves, or where class vectors
    are normalised after the interpolation (head ``text``).
    """
    if weight in (0.0, 1.0):  # 0 times -inf would be NaN
        return logits_1 if weight else logits_0
    return (1 - weight) * logits_0 + weight * logits_1


def ensemble(kind: EnsembleKind, logits_0: Tensor, logits_1: Tensor, weight: float) -> Tensor:
    """The mixed outputs [n, C] of two models, of logits or of probabilities, whose ends are those of one model."""
    if kind == "logits" or weight in (0.0, 1.0):
        return mixed_logits(logits_0, logits_1, weight)
    return mixed_outputs(logits_0, logits_1, weight)


@dataclass(frozen=True)
class FailureSet:
    """What VRF needs: the training images on which the zero-shot model fails, and a temperature for each model.

    ``features`` [m, D], unit rows: the fine-tuned model's features of the training images that the fine-tuned model
    gets right and the zero-shot model gets wrong. ``temperature_0``, ``temperature_1``: the temperatures of the
    zero-shot and the fine-tuned model, see :func:`calibrating_temperature`. ``k``: the number of the nearest failure to
    which the distance is taken. ``centre``, ``width``: a and b of the sigmoid, see :func:`finetuned_weight`. Source:
    Zhu et al. 2024 (VRF, 2411.06966), with the squared distances of the published code.
    """

    features: Tensor
    temperature_0: float = 1.0
    temperature_1: float = 1.0
    k: int = 1
    centre: float = CENTRE
    width: float = WIDTH

    @classmethod
    def of(
        cls, features: Tensor, right_0: Tensor, right_1: Tensor, temperature_0: float = 1.0, temperature_1: float = 1.0
    ) -> FailureSet:
        """From the training images' ``features`` [n, D] (unit rows), and whether each model is right, bool [n].

        ``k`` is :func:`nearest_count`.
        """
        failures = features[right_1 & ~right_0]
        return cls(failures, temperature_0, temperature_1, nearest_count(len(failures), len(features)))

    def mixed(self, logits_0: Tensor, logits_1: Tensor, features: Tensor) -> Tensor:
        """VRF's log-probabilities [n, C] of images; ``features`` [n, D]: the fine-tuned model's, unit rows."""
        return self.mixed_at(self.distance(features), logits_0, logits_1)

    def distance(self, features: Tensor) -> Tensor:
        """:func:`failure_distance` [n] of images from the ``k``-th nearest failure; ``features`` [n, D]: unit rows."""
        return failure_distance(features, self.features, self.k)

    def mixed_at(self, distance: Tensor, logits_0: Tensor, logits_1: Tensor) -> Tensor:
        """VRF's log-probabilities [n, C] of images at these squared distances [n] from the failures."""
        weight = finetuned_weight(distance, self.centre, self.width)
        return mixed_outputs(logits_0 / self.temperature_0, logits_1 / self.temperature_1, weight)


def nearest_count(failures: int, images: int) -> int:
    """k of VRF's released code, ``round(1000 failures / images)``, at least 1 and at most ``failures`` (or 1).

    At ImageNet's 1.28 million training images this is .078 % of the failures; the text of the paper says .1 %. With
    fewer images it is a larger share of the failures, and with less than a thousand all of them.
    """
    return max(1, min(round(1000 * failures / images), failures))


def failure_distance(features: Tensor, failures: Tensor, k: int) -> Tensor:
    """Squared distance [n] from each row of ``features`` [n, D] to its ``k``-th nearest of ``failures`` [m, D].

    The result is in [0, 4] for unit rows, and infinite where there are fewer than ``k`` failures.
    """
    if len(failures) < k:
        return features.new_full((len(features),), torch.inf)
    squared = features.square().sum(1)[:, None] - 2 * features @ failures.T + failures.square().sum(1)
    return squared.clamp(min=0).kthvalue(k, dim=1).values


def finetuned_weight(distance: Tensor, centre: float = CENTRE, width: float = WIDTH) -> Tensor:
    """``1 / (1 + exp((d - centre) / width))``: the fine-tuned model's weight, larger near zero-shot failures."""
    return torch.sigmoid(-(distance - centre) / width)


def calibrating_temperature(logits: Tensor, accuracy: float) -> float:
    """The temperature T in [0.01, 100] at which the mean of ``max softmax(logits / T)`` equals ``accuracy``.

    ``logits``: [n, C]. Where no T in the range does, the nearer bound is returned. The mean confidence falls as T
    grows, so that T is found by bisection in log T, to a relative accuracy of 1e-6.
    """
    low, high = COLDEST, HOTTEST
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        sure = float((logits.double() / middle).softmax(1).amax(1).mean())
        low, high = (middle, high) if sure > accuracy else (low, middle)
    return (low * high) ** 0.5
