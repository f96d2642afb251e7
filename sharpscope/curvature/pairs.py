"""The top eigenpairs of a symmetric operator: its k largest eigenvalues with their eigenvectors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sharpscope.curvature.eigen import Rows, first_vector, orthogonal, random_unit, tolerances
from sharpscope.curvature.operator import Estimator, SymmetricOperator, solve
from sharpscope.errors import ConfigError
from sharpscope.seeds import derive

__all__ = ["EigenPairs", "top_eigenpairs", "top_eigenpairs_steps"]


@dataclass(frozen=True)
class EigenPairs:
    """The k largest algebraic eigenvalues, ``values`` [k], descending, with unit eigenvectors ``vectors`` [k, p].

    ``residuals`` [k]: ||H v - lambda v||, in the unit of the eigenvalues; H certainly has an eigenvalue within this
    distance. ``converged`` [k]: whether the residual is within tolerance. ``num_matvecs``: the products spent on all k.
    """

    values: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    num_matvecs: int
    vectors: Tensor = field(repr=False, compare=False)


def top_eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    seed: int,
    rtol: float = 0.01,
    max_matvecs: int = 100,
    start: Tensor | None = None,
) -> EigenPairs:
    """The k largest eigenvalues and their eigenvectors by Lanczos with full reorthogonalisation.

    The iteration stops when the Ritz residual of each of the k largest Ritz values is at most ``rtol`` times its
    magnitude (or a tenth of the spectral radius, if that is larger). Where the Krylov space is exhausted before it
    holds k pairs, a new random direction continues it. Of equal eigenvalues fewer vectors may be found than there are,
    as by every method that starts from a single vector; the next smaller eigenvalues then take their places.

    Args:
        operator: shape [p, p].
        k: the number of eigenpairs, from 1 to p.
        seed: the seed of the random directions.
        rtol: relative tolerance, > 0.
        max_matvecs: the largest number of products, at least k. Where they are spent first, ``converged`` is False for
            the pairs that are not within tolerance. One vector [p] per product is kept in memory.
        start: a vector [p] near the wanted eigenvectors, e.g. the gradient; a random part is added.

    Raises:
        ConfigError: k below 1, above p or above ``max_matvecs``.
        NumericalError: where the operator raises it; a product that is not finite gives NaN values that have not
            converged.

    Source: Lanczos 1950, https://doi.org/10.6028/jres.045.026.
    """
    steps = top_eigenpairs_steps(
        operator.shape[0], k, dtype=operator.dtype, device=operator.device, seed=seed, rtol=rtol,
        max_matvecs=max_matvecs, start=start,
    )  # fmt: skip
    return solve(steps, operator)


def top_eigenpairs_steps(
    size: int,
    k: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    start: Tensor | None = None,
) -> Estimator[EigenPairs]:
    """``top_eigenpairs`` as a generator that yields the vectors whose products it needs (see ``operator.solve``).

    Raises ConfigError for a k out of range.
    """
    if not 1 <= k <= min(size, max_matvecs):
        raise ConfigError(
            f"eigenvectors: needs a number from 1 to {min(size, max_matvecs)} (the smaller of the layer's {size} "
            f"parameters and max_matvecs, {max_matvecs}), got {k}."
        )
    q = first_vector(size, seed, device, dtype, start)
    basis = Rows()
    diagonal: list[float] = []
    below: list[float] = []
    steps = min(size, max_matvecs)
    for step in range(1, steps + 1):
        basis.append(q)
        product = (yield q[:, None])[:, 0]
        if not torch.isfinite(product).all():
            nothing = np.full(k, math.nan)
            return EigenPairs(nothing, nothing, np.zeros(k, bool), step, q.new_full((k, size), math.nan))
        diagonal.append(float(q @ product))
        rest = orthogonal(product, basis)
        beta = float(rest.norm())
        closed = beta <= 10 * torch.finfo(dtype).eps * max(float(product.norm()), 1e-300) or step == size
        below.append(0.0 if closed else beta)
        if step >= k:
            values, mixing = eigh_tridiagonal(np.array(diagonal), np.array(below[:-1]))
            residuals = np.abs(below[-1] * mixing[-1, : -k - 1 : -1])
            radius = np.append(values[: -k - 1 : -1], values[0])  # the smallest, so that the radius is of both ends
            within = residuals <= tolerances(radius, rtol)[:k]
            if within.all() or step == steps:
                vectors = basis.combined(mixing[:, : -k - 1 : -1].copy())
                return EigenPairs(values[: -k - 1 : -1].copy(), residuals, within, step, vectors)
        if closed:
            rest = orthogonal(random_unit(size, derive(seed, "continued", step), device, dtype), basis)
            beta = float(rest.norm())
        q = rest / beta
    raise AssertionError("unreachable: the last step returns")
