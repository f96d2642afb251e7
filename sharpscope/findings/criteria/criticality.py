"""Module criticality: how far a layer can go back, and how much noise it tolerates, without a rise of the loss."""

from __future__ import annotations

from typing import Final

import numpy as np

from sharpscope.findings.losses import NoiseLosses

__all__ = ["LOSS_SLACK", "criticality"]

LOSS_SLACK: Final = 0.15
"""The rise of the probe loss in nats that criticality tolerates (our choice: the paper leaves its epsilon open). With a
larger value layers tolerate more noise and their scores fall."""


def criticality(
    losses: np.ndarray, reference: np.ndarray, noise: NoiseLosses, slack: float = LOSS_SLACK
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest squared movement of a layer, in units of the noise variance, at which the loss does not rise too much.

    The score is the minimum of alpha^2 ||theta_1 - theta_0||^2 / sigma^2 over all (alpha, sigma) of the grid with
    L(layer at alpha + N(0, sigma^2), other layers at theta_1) <= L(theta_1) + slack. Sigma is in units of the weights
    (``sigmas`` * ``weight_rms``).

    Args:
        losses: [..., L, A, S] mean losses in nats.
        reference: [...] loss of theta_1 without noise.
        noise: the grid of positions and noise levels that ``losses`` belong to.
        slack: tolerated rise of the loss in nats (the paper's epsilon; the value is our choice).

    Returns:
        (score [..., L] >= 0, censored [..., L]). ``censored`` is True where the loss rises beyond the slack everywhere
        on the grid; the score is then the largest value on the grid, a lower bound of the true one. The score is NaN
        for a layer whose weights are all 0, because noise in units of their rms is undefined there.

    Source: Chatterji, Neyshabur and Sedghi 2020 (arXiv 1912.00528).
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
