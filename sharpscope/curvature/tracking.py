"""Extreme eigenvalues of an operator that is near one whose eigenvectors are known: the next point of a path.

Along alpha the outermost eigenvectors turn slowly. The larger end costs Lanczos a few products from there; the other
one, which is the edge of a bulk in the Hessian of a trained network, costs it many. There the neighbour's vector is
within a few per cent at once, and what the neighbour knew of the other large eigenvalues tells which part of a residual
matters, and preconditions the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sharpscope.curvature.eigen import (
    EigenEstimate,
    End,
    ExtremeEigenvalues,
    RitzSpace,
    Rows,
    random_unit,
    tolerances,
    wanted_ends,
)
from sharpscope.curvature.operator import Estimator, SymmetricOperator, solve

__all__ = ["tracked", "tracked_steps"]

RANDOM = 0.5
"""The length of the random part of the first vector, beside the neighbour's eigenvector of length 1. A larger value
finds a vector that has overtaken the followed one more surely and costs more products."""
FEWEST = 3
"""The fewest products of a followed end. With fewer the random part has not been multiplied often enough to show a
vector that has overtaken the followed one."""
NEAREST = 0.3
"""The preconditioner divides by |theta_k - theta|; a gap smaller than this share of |theta| is replaced by that share,
because a division by a smaller number would let one direction drown all others."""
SPANNED = 1e-4
"""A unit vector whose part orthogonal to the basis is shorter than this counts as inside its span."""


def tracked(
    operator: SymmetricOperator,
    space: RitzSpace,
    *,
    seed: int,
    rtol: float = 0.01,
    max_matvecs: int = 100,
    ends: Sequence[End] = ("largest", "smallest"),
) -> ExtremeEigenvalues:
    """Both ends of the spectrum by Lanczos, then Davidson's method, from the ``space`` of a neighbouring operator.

    The end that was larger in magnitude comes first, by Lanczos with full reorthogonalisation from the neighbour's
    vector and a random part, until its residual is at most ``rtol`` times its magnitude. Then the subspace V takes in
    the neighbour's vector of the other end, if that is asked for, and grows by its preconditioned residual
    r = H x - theta x,

        t = r_0 + sum_k min(|theta| / |theta_k - theta|, 1 / NEAREST) c_k u_k,  c_k = u_k' r,  r_0 = r - sum_k c_k u_k,

    with the neighbour's Ritz pairs (theta_k, u_k): up to scale the inverse of (H - theta) for an H that has these
    eigenpairs and is 0 on the rest. It stops when the error sum_k min(|c_k|, c_k^2 / |theta_k - theta|) + ||r_0|| is at
    most ``rtol`` times the magnitude (at least a tenth of the radius): what lies along a vector whose eigenvalue is far
    moves this one in second order only, and the rest, of which nothing is known, counts in full.

    ``residual`` is the norm of r, a certain bound on the distance to SOME eigenvalue; ``converged`` of the second end
    means this estimated error, not the residual. A vector that overtakes the followed one at the second end is noticed
    by the residual only: where both are eigenvectors all along and cross, the old one is followed on (a random part
    there cost two products and found no more). benchmarks/README.md says how often both ends were right: nearly as
    often as by Lanczos alone, for two thirds of its products.

    Args:
        operator: shape [p, p].
        space: of the neighbour, as its result's ``space``.
        seed: of the random part.
        rtol: relative tolerance, > 0.
        max_matvecs: products at most; spent before the ends are within tolerance: ``converged`` is False.
        ends: which have to converge, as for ``eigen.lanczos``.

    Raises NumericalError through the operator; a product that is not finite gives NaN, which has not converged.

    Sources: Davidson 1975, https://doi.org/10.1016/0021-9991(75)90065-0; Morgan and Scott 1986,
    https://doi.org/10.1137/0907054; Parlett, The Symmetric Eigenvalue Problem, 1998, ch. 11.
    """
    steps = tracked_steps(
        operator.shape[0],
        space,
        dtype=operator.dtype,
        device=operator.device,
        seed=seed,
        rtol=rtol,
        max_matvecs=max_matvecs,
        ends=ends,
    )
    return solve(steps, operator)


def tracked_steps(
    size: int,
    space: RitzSpace,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    ends: Sequence[End] = ("largest", "smallest"),
) -> Estimator[ExtremeEigenvalues]:
    """``tracked`` as an estimator that asks for its products (see ``operator.solve``)."""
    known = _Known(space.values, space.vectors.to(device, dtype))
    order = space.order(ends)
    first, seeded = order[0], {order[0]}
    basis, images = Rows(), Rows()
    small = np.zeros((0, 0))
    start = space.ahead(first).to(device, dtype)
    step = start / torch.linalg.vector_norm(start) + RANDOM * random_unit(size, seed, device, dtype)
    new: Tensor | None = step / torch.linalg.vector_norm(step)
    while True:
        assert new is not None
        product = (yield new[:, None])[:, 0]
        if not torch.isfinite(product).all():
            bad = EigenEstimate(math.nan, math.nan, False, len(basis) + 1)
            return ExtremeEigenvalues(bad, bad)
        basis.append(new)
        images.append(product)
        small = _bordered(small, basis.dot(product[:, None])[:, 0].double().cpu().numpy())
        spent = len(basis)
        values, mixing = np.linalg.eigh(small)
        theta = values[[0, -1]]
        x, hx = (rows.combined(mixing[:, [0, -1]]) for rows in (basis, images))
        r = hx - x * torch.from_numpy(theta).to(x)[:, None]
        r = r - basis.combined(basis.dot(r.mT))
        shares, rest = known.split(r)
        lengths = torch.linalg.vector_norm(torch.cat([r, rest]), dim=1).double().tolist()
        errors = [lengths[i] if i == first else known.error(theta[i], shares[i], lengths[2 + i]) for i in (0, 1)]
        within = errors <= tolerances(theta, rtol)
        wanted = wanted_ends(theta, np.array(errors), ends)
        early = spent < FEWEST
        lacking = [i for i in wanted if early or not within[i] or (i not in seeded and i in order)]
        new = None
        if lacking and spent < min(max_matvecs, size):
            end = first if first in lacking else lacking[0]
            if end not in seeded:
                seeded.add(end)
                new = _outside(space.ahead(end).to(device, dtype), basis)
            if new is None:
                t = r[end] if end == first else known.precondition(theta[end], shares[end], rest[end])
                new = _outside(t, basis)
        if new is None:
            smallest, largest = (
                EigenEstimate(float(theta[i]), lengths[i], bool(within[i]), spent, x[i]) for i in (0, 1)
            )
            return ExtremeEigenvalues(largest, smallest, RitzSpace.of(values, mixing, basis, space))


@dataclass(frozen=True)
class _Known:
    """What the neighbour's Ritz pairs, rows of ``vectors`` [k, p], say of the spectrum."""

    values: np.ndarray
    vectors: Tensor

    def split(self, r: Tensor) -> tuple[np.ndarray, Tensor]:
        """Rows of residuals [e, p] -> their components along the known vectors [e, k], and the rest [e, p]."""
        shares = r @ self.vectors.mT
        return shares.double().cpu().numpy(), r - shares @ self.vectors

    def error(self, value: float, shares: np.ndarray, rest: float) -> float:
        """sum_k min(|c_k|, c_k^2 / |theta_k - value|) + ||r_0||, ``rest`` the norm of r_0."""
        gaps = np.maximum(np.abs(self.values - value), np.finfo(float).tiny)
        return float(np.minimum(np.abs(shares), shares**2 / gaps).sum()) + rest

    def precondition(self, value: float, shares: np.ndarray, rest: Tensor) -> Tensor:
        """[p]: t of ``tracked``, the next direction."""
        gaps = np.maximum(np.abs(self.values - value), max(NEAREST * abs(value), np.finfo(float).tiny))
        return rest + torch.from_numpy(abs(value) / gaps * shares).to(rest) @ self.vectors


def _outside(v: Tensor, basis: Rows) -> Tensor | None:
    """The unit vector of what of v [p] lies outside the basis' span; None where nothing does."""
    length = float(torch.linalg.vector_norm(v))
    for _ in range(3):  # a residual is small beside the basis: it takes one more than Gram-Schmidt's two
        if not length > 0:
            return None
        v = v / length
        v = v - basis.combined(basis.dot(v[:, None]))[0]
        length = float(torch.linalg.vector_norm(v))
        if length < SPANNED:
            return None
    return v / length


def _bordered(small: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The symmetric matrix with ``small`` in its upper left corner and ``column`` as its last row and column."""
    m = len(column)
    out = np.zeros((m, m))
    out[: m - 1, : m - 1] = small
    out[:, -1] = out[-1, :] = column
    return out
