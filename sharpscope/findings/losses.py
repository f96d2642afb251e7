"""The losses from which straggler criteria are computed: on single-layer paths, and with noise on one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sharpscope.errors import ConfigError, did_you_mean
from sharpscope.findings.frames import alpha_index
from sharpscope.vocabulary import BASES, Base

__all__ = ["LayerLosses", "NoiseLosses", "above_chord", "between_ends", "chord"]


@dataclass(frozen=True)
class LayerLosses:
    """Losses on single-layer paths: only layer l is at ``alphas[a]``, every other layer stays at ``base``.

    Raises:
        ConfigError: an unknown base, alphas without 0 or 1, or losses of another shape.
    """

    layers: tuple[str, ...]
    base: Base
    """The position of the other layers; see ``vocabulary.BASES``."""
    alphas: tuple[float, ...]
    """Positions of the layer, 0 and 1 among them."""
    losses: np.ndarray
    """[L, A, n], one loss per probe example, in nats."""

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
    """Losses with layer l at ``alphas[a]`` plus Gaussian noise, and all other layers at theta_1.

    Raises:
        ConfigError: arrays whose shapes do not fit, or a sigma that is not above 0.
    """

    layers: tuple[str, ...]
    alphas: tuple[float, ...]
    sigmas: tuple[float, ...]
    """Standard deviations in units of the layer's own weight rms, all > 0."""
    losses: np.ndarray
    """[L, A, S, n], one loss per probe example, in nats."""
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
            raise ConfigError(f"sigmas: all must be above 0, got {list(self.sigmas)}.")


def between_ends(losses: np.ndarray, alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The part of a path between its two ends.

    Args:
        losses: [..., A] mean losses in nats.
        alphas: [A] with 0 and 1.

    Returns:
        (losses at the alphas within [0, 1], these alphas, loss at 0 [...], loss at 1 [...]).

    Raises:
        ConfigError: 0 or 1 is not among ``alphas``.
    """
    inside = np.array([0.0 <= a <= 1.0 for a in alphas])
    start, end = alpha_index(alphas, 0.0), alpha_index(alphas, 1.0)
    if start is None or end is None:
        raise ConfigError(f"alphas: need 0 and 1, got {list(alphas)}.")
    return losses[..., inside], np.asarray(alphas)[inside], losses[..., start], losses[..., end]


def chord(start: np.ndarray, end: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """The straight line (1 - alpha) start + alpha end between the values [...] at the two ends: [..., A]."""
    return (1 - alphas) * np.asarray(start)[..., None] + alphas * np.asarray(end)[..., None]


def above_chord(losses: np.ndarray, alphas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The height of a path above the chord between its ends, L(alpha) - (1 - alpha) L(0) - alpha L(1).

    Args:
        losses: [..., A] mean losses in nats.
        alphas: [A] with 0 and 1.

    Returns:
        (heights [..., A'] at the A' alphas within [0, 1], exactly 0 at both ends; these alphas).

    Raises:
        ConfigError: 0 or 1 is not among ``alphas``.
    """
    inner, at, start, end = between_ends(losses, alphas)
    height = inner - chord(start, end, at)
    height[..., (at == 0) | (at == 1)] = 0.0
    return height, at
