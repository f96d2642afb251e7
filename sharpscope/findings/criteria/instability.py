"""Linear interpolation instability of a layer's own path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharpscope.findings.losses import between_ends

__all__ = ["forced_part", "instability"]


def instability(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """LII = max over alpha in [0, 1] of L(alpha) - (L(0) + L(1)) / 2.

    The maximum includes the ends, so LII >= |L(0) - L(1)| / 2: two ends of different loss already make it positive
    (``forced_part``). It is 0 only if the ends have equal loss and the loss nowhere exceeds it. ``barrier`` does not
    contain that part.

    Args:
        losses: [..., A] mean losses in nats.
        alphas: [A] with 0 and 1.

    Returns:
        [...], >= 0.

    Raises:
        ConfigError: 0 or 1 is not among ``alphas``.

    Source: Frankle et al. 2020 (arXiv 1912.05671); used by Abdollahpoorrostam 2024 (arXiv 2410.16476).
    """
    inner, _, start, end = between_ends(losses, alphas)
    return inner.max(axis=-1) - (start + end) / 2


def forced_part(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """|L(0) - L(1)| / 2 [...]: the part of ``instability`` that comes from the different losses of the two ends alone.

    Arguments and errors are those of ``instability``.
    """
    _, _, start, end = between_ends(losses, alphas)
    return np.abs(start - end) / 2
