"""Loss barrier on a layer's own path."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharpscope.findings.losses import above_chord

__all__ = ["barrier"]


def barrier(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Height of the loss above the chord: max over alpha in [0, 1] of L(alpha) - (1 - alpha) L(0) - alpha L(1).

    Exactly 0 for every path whose loss is convex in alpha, also when the ends differ; equals ``instability`` when the
    ends have the same loss.

    Args:
        losses: [..., A] mean losses in nats.
        alphas: [A] with 0 and 1.

    Returns:
        [...], >= 0.

    Raises:
        ConfigError: 0 or 1 is not among ``alphas``.

    Source: Vlaar and Frankle 2022 (arXiv 2106.16004); layer-wise Adilova et al. 2024 (arXiv 2307.06966).
    """
    height, _ = above_chord(losses, alphas)
    return np.asarray(height.max(axis=-1))
