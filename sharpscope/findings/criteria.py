"""What a layer's own movement does to the ID loss: one number a layer, from single-layer paths and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sharpscope.errors import ConfigError, did_you_mean
from sharpscope.findings.frames import alpha_index

__all__ = [
    "BASES",
    "LOSS_SLACK",
    "LayerLosses",
    "NoiseLosses",
    "barrier",
    "criticality",
    "instability",
    "rewind",
]

BASES = ("finetuned", "zeroshot", "midpoint")
LOSS_SLACK = 0.15
"""Default rise of the probe loss (nats) that criticality tolerates; ours, the paper leaves epsilon open."""


@dataclass(frozen=True)
class LayerLosses:
    """Losses on single-layer paths: only layer l is at ``alphas[a]``, every other layer stays at ``base``.

    Raises ConfigError for an unknown base, alphas without 0 and 1, or losses of another shape.

    Source: Vlaar and Frankle 2022, arXiv 2106.16004 (single-layer paths).
    """

    layers: tuple[str, ...]
    base: str
    """finetuned (theta_1) | zeroshot (theta_0) | midpoint (alpha = 1/2)."""
    alphas: tuple[float, ...]
    """Positions of the layer, 0 and 1 among them."""
    losses: np.ndarray
    """[L, A, n], one loss a probe example."""

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise ConfigError(f"base: '{self.base}' is none of {', '.join(BASES)}.{did_you_mean(self.base, BASES)}")
        if alpha_index(self.alphas, 0.0) is None or alpha_index(self.alphas, 1.0) is None:
            raise ConfigError(f"alphas of the single-layer paths: need 0 and 1, got {list(self.alphas)}.")
        shape = np.shape(self.losses)
        if len(shape) != 3 or shape[:2] != (len(self.layers), len(self.alphas)) or shape[2] == 0:
            raise ConfigError(f"losses: need [{len(self.layers)} layers, {len(self.alphas)} alphas, n], got {shape}.")


@dataclass(frozen=True)
class NoiseLosses:
    """Losses with layer l at ``alphas[a]`` plus Gaussian noise, the rest at theta_1.

    Raises ConfigError for arrays whose shapes do not fit each other, or a sigma that is not above 0.

    Source: Chatterji, Neyshabur and Sedghi 2020, arXiv 1912.00528.
    """

    layers: tuple[str, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    """Standard deviations in units of the layer's own weight rms, all > 0."""
    losses: np.ndarray
    """[L, A, S, n]."""
    distance_sq: np.ndarray
    """[L] squared ||theta_1 - theta_0|| of the layer."""
    weight_rms: np.ndarray
    """[L] root mean square weight of the layer."""

    def __post_init__(self) -> None:
        want = (len(self.layers), len(self.alphas), len(self.sigmas))
        if np.ndim(self.losses) != 4 or np.shape(self.losses)[:3] != want or np.shape(self.losses)[3] == 0:
            raise ConfigError(f"noise losses: need [{want[0]}, {want[1]}, {want[2]}, n], got {np.shape(self.losses)}.")
        if np.shape(self.distance_sq) != want[:1] or np.shape(self.weight_rms) != want[:1]:
            raise ConfigError(f"distance_sq and weight_rms: need [{want[0]} layers].")
        if not all(s > 0 for s in self.sigmas):
            raise ConfigError(f"sigmas: need to be above 0, got {list(self.sigmas)}.")


def _ends(losses: np.ndarray, alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    inside = np.array([0.0 <= a <= 1.0 for a in alphas])
    start, end = alpha_index(alphas, 0.0), alpha_index(alphas, 1.0)
    if start is None or end is None:
        raise ConfigError(f"alphas: need 0 and 1, got {list(alphas)}.")
    return losses[..., inside], np.asarray(alphas)[inside], losses[..., start], losses[..., end]


def instability(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Linear interpolation instability of each layer's own path.

    LII = max over alpha in [0, 1] of L(alpha) - (L(0) + L(1)) / 2. The ends take part in the maximum, so
    LII >= |L(0) - L(1)| / 2: ends of unequal loss alone make it positive, and it is 0 for a flat path only. ``barrier``
    is free of that part.

    Args:
        losses: [..., A] mean losses in nats.
        alphas: [A] with 0 and 1.

    Returns:
        [...], >= 0, in nats.

    Raises:
        ConfigError: alphas without 0 or without 1.

    Source: Frankle et al. 2020, arXiv 1912.05671; used by Abdollahpoorrostam 2024, arXiv 2410.16476.
    """
    inner, _, start, end = _ends(losses, alphas)
    return inner.max(axis=-1) - (start + end) / 2


def barrier(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Height of the loss above the chord: max over alpha in [0, 1] of L(alpha) - (1 - alpha) L(0) - alpha L(1); nats.

    Exactly 0 for every path whose loss is convex in alpha, also when the ends differ; equals LII when they do not.
    Shapes and Raises (ConfigError) as ``instability``.

    Sources: Vlaar and Frankle 2022, arXiv 2106.16004; layer-wise: Adilova et al. 2024, arXiv 2307.06966.
    """
    inner, at, start, end = _ends(losses, alphas)
    height = inner - ((1 - at) * start[..., None] + at * end[..., None])
    height[..., (at == 0) | (at == 1)] = 0.0
    return height.max(axis=-1)


def rewind(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """L(layer at theta_0) - L(layer at theta_1), the rest at the base: what the layer's own movement is worth, in nats.

    Base finetuned: the RISE of the loss when layer l goes back. Base zeroshot: the DROP of the loss when layer l alone
    goes forward (negative: going forward alone hurts). Positive always means that the movement lowers the ID loss.
    Shapes and Raises (ConfigError) as ``instability``.

    Source: Zhang, Bengio and Singer 2019, arXiv 1902.01996 (re-initialisation robustness).
    """
    _, _, start, end = _ends(losses, alphas)
    return start - end


def criticality(
    losses: np.ndarray, reference: np.ndarray, noise: NoiseLosses, slack: float = LOSS_SLACK
) -> tuple[np.ndarray, np.ndarray]:
    """Module criticality: how far a layer may go back towards theta_0 under noise before the loss rises.

    min over (alpha, sigma) with L(layer at alpha + N(0, sigma^2), rest at theta_1) <= L(theta_1) + slack of
    alpha^2 ||theta_1 - theta_0||^2 / sigma^2, sigma in weight units (``sigmas`` * ``weight_rms``).

    Args:
        losses: [..., L, A, S] mean losses.
        reference: [...] loss of theta_1 without noise.
        noise: the grid they belong to.
        slack: tolerated rise in nats (ours; the paper's epsilon).

    Returns:
        (score [..., L] >= 0, censored [..., L]); censored: not even the smallest noise at the largest alpha keeps the
        loss, the score is the largest value on the grid and the truth is above it. NaN where the layer has weight
        rms 0 (noise in units of nothing).

    Source: Chatterji, Neyshabur and Sedghi 2020, arXiv 1912.00528.
    """
    alphas, sigmas = np.asarray(noise.alphas), np.asarray(noise.sigmas)
    rms_sq = np.asarray(noise.weight_rms, dtype=float) ** 2
    usable = rms_sq > 0
    ratio = np.where(usable, np.asarray(noise.distance_sq, dtype=float) / np.where(usable, rms_sq, 1.0), np.nan)
    cost = ratio[:, None, None] * alphas[:, None] ** 2 / sigmas**2
    kept = losses <= (np.asarray(reference) + slack)[..., None, None, None]
    low = np.where(kept, cost, np.inf).min(axis=(-2, -1))
    censored = ~np.isfinite(low) & usable
    top = cost.max(axis=(-2, -1))
    return np.where(usable, np.where(censored, top, low), np.nan), censored
