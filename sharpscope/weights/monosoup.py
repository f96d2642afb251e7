"""MonoSoup: the singular directions of each matrix's change, reweighted by a rule without free parameters."""

from __future__ import annotations

import math
from typing import Final

import torch

__all__ = ["monosoup_edit"]

LEAST_CHANGE: Final = 1e-6
"""A matrix whose change has less than this fraction of its own norm is left as it was fine-tuned, as in the authors'
code; a larger bound leaves more matrices alone."""


def monosoup_edit(zero: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    """The MonoSoup edit of one tensor: theta_0 + lambda_high * high + lambda_low * low, in the dtype of ``one``.

    The change theta_1 - theta_0, as a matrix [rows, all other dimensions], is split into high, its k largest singular
    directions, and low, the rest. k is the effective rank exp(H) rounded up, with H the entropy of the singular values
    divided by their sum. With P the share of high in the squared norm and rho = (sigma_(k+1) / sigma_1)^2,

        lambda_low = rho + (1 - rho) sqrt(1 - P),    lambda_high = 1 - lambda_low.

    Where k is the full rank, low is empty and the edit is theta_1 up to rounding. Tensors of one dimension (biases,
    gains) and matrices that hardly moved (``LEAST_CHANGE``) are theta_1's.

    Source: Abdollahpoorrostam et al. 2026, arXiv 2602.09689; the version "freevariance", which is the default of the
    authors' code (github.com/alirezaabdollahpour/MonoSoup, MonoSoup.py, commit 7439b69).
    """
    if one.ndim < 2:
        return one
    delta = (one - zero).flatten(1)
    change, own = float(torch.linalg.vector_norm(delta)), float(torch.linalg.vector_norm(zero))
    if change == 0 or change < LEAST_CHANGE * own:
        return one
    u, sigma, v = torch.linalg.svd(delta, full_matrices=False)
    k, low = _rule(sigma.double())
    high = (u[:, :k] * sigma[:k]) @ v[:k]
    return zero + ((1 - low) * high + low * (delta - high)).reshape(zero.shape)


def _rule(sigma: torch.Tensor) -> tuple[int, float]:
    """(k, lambda_low) from the singular values [r], the largest first."""
    shares = sigma / sigma.sum()
    k = min(math.ceil(math.exp(float(torch.special.entr(shares).sum()))), len(sigma))
    energy = sigma.square()
    rho = float(energy[k] / energy[0]) if k < len(sigma) else 0.0
    outside = min(max(1 - float(energy[:k].sum() / energy.sum()), 0.0), 1.0)
    return k, rho + (1 - rho) * math.sqrt(outside)
