"""Rewinding one layer: the loss that its own movement saves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sharpscope.findings.losses import between_ends

__all__ = ["rewind"]


def rewind(losses: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """L(layer at theta_0) - L(layer at theta_1), with all other layers at the base.

    With base finetuned this is the rise of the loss when the layer alone goes back. With base zeroshot it is the drop
    of the loss when the layer alone goes forward (negative if going forward alone hurts). A positive score always means
    that the layer's movement lowers the ID loss.

    Args:
        losses: [..., A] mean losses in nats.
        alphas: [A] with 0 and 1.

    Returns:
        [...] in nats.

    Raises:
        ConfigError: 0 or 1 is not among ``alphas``.

    Source: Zhang, Bengio and Singer 2019 (arXiv 1902.01996), re-initialisation robustness.
    """
    _, _, start, end = between_ends(losses, alphas)
    return start - end
