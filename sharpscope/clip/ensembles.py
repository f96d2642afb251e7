"""Ensembles that mix the outputs of two models instead of their weights: baselines for the interpolation path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FailureSet", "calibrating_temperature", "failure_distance", "finetuned_weight", "mixed_outputs"]

NEAREST_SHARE = 0.001
"""VRF uses the distance of an image to its k-th nearest failure. k is this share of all failures, at least 1: 0.1 % in
the paper's text. Its released code takes round(1000 m / N) of m failures among N training images, which is 0.078 % of
them on ImageNet (N = 1.28 million)."""
CENTRE, WIDTH = 1.5, 0.6
"""The parameters of VRF's sigmoid. At the squared distance CENTRE from the zero-shot model's failures, both models have
the same weight. The larger WIDTH is, the more slowly the weight changes with the distance."""
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


@dataclass(frozen=True)
class FailureSet:
    """What VRF needs: the training images on which the zero-shot model fails, and a temperature for each model.

    ``features`` [m, D], unit rows: the fine-tuned model's features of the training images that the fine-tuned model
    gets right and the zero-shot model gets wrong. ``temperature_0``, ``temperature_1``: the temperatures of the
    zero-shot and the fine-tuned model, see :func:`calibrating_temperature`. Source: Zhu et al. 2024 (VRF, 2411.06966),
    with the squared distances of the published code.
    """

    features: Tensor
    temperature_0: float = 1.0
    temperature_1: float = 1.0

    @classmethod
    def of(
        cls, features: Tensor, right_0: Tensor, right_1: Tensor, temperature_0: float = 1.0, temperature_1: float = 1.0
    ) -> FailureSet:
        """From the training images' ``features`` [n, D] (unit rows), and whether each model is right, bool [n]."""
        return cls(features[right_1 & ~right_0], temperature_0, temperature_1)

    @property
    def k(self) -> int:
        """The number of the nearest failure to which the distance is taken: ``max(1, round(0.001 m))``."""
        return max(1, round(NEAREST_SHARE * len(self.features)))

    def mixed(self, logits_0: Tensor, logits_1: Tensor, features: Tensor) -> Tensor:
        """VRF's log-probabilities [n, C] of images; ``features`` [n, D]: the fine-tuned model's, unit rows."""
        weight = finetuned_weight(failure_distance(features, self.features, self.k))
        return mixed_outputs(logits_0 / self.temperature_0, logits_1 / self.temperature_1, weight)


def failure_distance(features: Tensor, failures: Tensor, k: int) -> Tensor:
    """Squared distance [n] from each row of ``features`` [n, D] to its ``k``-th nearest of ``failures`` [m, D].

    The result is in [0, 4] for unit rows, and infinite where there are fewer than ``k`` failures.
    """
    if len(failures) < k:
        return features.new_full((len(features),), torch.inf)
    squared = features.square().sum(1)[:, None] - 2 * features @ failures.T + failures.square().sum(1)
    return squared.clamp(min=0).kthvalue(k, dim=1).values


def finetuned_weight(distance: Tensor) -> Tensor:
    """``1 / (1 + exp((d - 1.5) / 0.6))``: the fine-tuned model's weight, larger near zero-shot failures."""
    return torch.sigmoid(-(distance - CENTRE) / WIDTH)


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
