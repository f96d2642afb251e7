"""Extreme eigenvalues of an operator whose neighbour's eigenvectors are known: the next point of a path.

Along alpha the outermost eigenvectors turn slowly. Starting from the neighbour's eigenvector, Lanczos needs only a few
products for the end of larger magnitude. The other end is, in the Hessian of a trained network, the edge of the bulk
(the many small eigenvalues that lie close together), and costs Lanczos many products. There the neighbour's eigenvector
gives the eigenvalue to within a few per cent at once. The neighbour's other large eigenvalues then tell which part of
the residual matters, and they precondition the next direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from sharpscope.machine.devices import all_finite, numbers

__all__ = ["tracked", "tracked_steps"]

RANDOM = 0.5
"""The length of the random vector that is added to the neighbour's eigenvector, which has length 1, to form the first
vector. A larger value detects more surely that another eigenvalue has overtaken the followed one, and costs more
products."""
FEWEST = 3
"""The smallest number of products for a followed end. With fewer, the random part has not been multiplied often enough
to show an eigenvector whose eigenvalue has overtaken the followed one."""
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

    The end that was larger in magnitude at the neighbour comes first: Lanczos with full reorthogonalisation starts from
    the neighbour's eigenvector plus a random part, and stops when the residual is at most ``rtol`` times the end's
    magnitude. If the other end is requested too, the neighbour's eigenvector of that end is added to the subspace. With
    (theta, x) the Ritz pair of this end and r = H x - theta x its residual, each further step adds

        t = r_0 + sum_k min(|theta| / |theta_k - theta|, 1 / NEAREST) c_k u_k,  c_k = u_k' r,  r_0 = r - sum_k c_k u_k,

    with the neighbour's Ritz pairs (theta_k, u_k). Up to scale, this multiplies r by the inverse of (H - theta) for an
    H that has these eigenpairs and is 0 on the rest. The second end stops when the estimated error
    sum_k min(|c_k|, c_k^2 / |theta_k - theta|) + ||r_0|| is at most ``rtol`` times the end's magnitude (or a tenth of
    the spectral radius, if that is larger). The component of r along a u_k whose eigenvalue is far away changes theta
    only in second order; r_0, about which the neighbour says nothing, counts in full.

    ``residual`` is the norm of r, which certainly bounds the distance to SOME eigenvalue. ``converged`` of the second
    end refers to the estimated error, not to the residual. An eigenvalue that overtakes the second end is noticed only
    through the residual. If its eigenvector does not mix with the followed one, the old eigenvector is followed and the
    crossing is not noticed (a random part at the second end cost two products and found no more crossings). Both ends
    were right nearly as often as by Lanczos alone, for two thirds of its products; benchmarks/README.md has the
    numbers.

    Args:
        operator: shape [p, p].
        space: the ``space`` of the neighbouring point's result.
        seed: the seed of the random part.
        rtol: relative tolerance, > 0.
        max_matvecs: the largest number of products. Where they are spent before the ends are within tolerance,
            ``converged`` is False.
        ends: the ends that have to converge, as for ``eigen.lanczos``.

    Raises NumericalError where the operator does; a product that is not finite gives NaN values that have not
    converged.

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
    """``tracked`` as a generator that yields the vectors whose products it needs (see ``operator.solve``)."""
    known = _Known(space.values, space.vectors.to(device, dtype))
    space = replace(space, vectors=known.vectors)
    order = space.order(ends)
    first, seeded = order[0], {order[0]}
    basis, images = Rows(), Rows()
    small = np.zeros((0, 0))
    start = space.ahead(first, device, dtype)
    step = start / torch.linalg.vector_norm(start) + RANDOM * random_unit(size, seed, device, dtype)
    new: Tensor | None = step / torch.linalg.vector_norm(step)
    while True:
        assert new is not None
        product = (yield new[:, None])[:, 0]
        basis.append(new)
        images.append(product)
        spent = len(basis)
        finite, *column = numbers(all_finite(product), basis.dot(product[:, None]))
        if not finite:
            bad = EigenEstimate(math.nan, math.nan, False, spent)
            return ExtremeEigenvalues(bad, bad)
        small = _bordered(small, np.array(column))
        values, mixing = np.linalg.eigh(small)
        theta = values[[0, -1]]
        x, hx = (rows.combined(mixing[:, [0, -1]]) for rows in (basis, images))
        r = hx - x * torch.from_numpy(theta).to(x, non_blocking=True)[:, None]
        r = r - basis.combined(basis.dot(r.mT))
        shares, rest, lengths = known.split(r)
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
                new = _outside(space.ahead(end, device, dtype), basis)
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
    """The neighbour's Ritz pairs (``values`` [k], rows of ``vectors`` [k, p]) as an approximation of the spectrum."""

    values: np.ndarray
    vectors: Tensor

    def split(self, r: Tensor) -> tuple[np.ndarray, Tensor, list[float]]:
        """Rows of residuals r [e, p] -> (their components along the known vectors [e, k], the rest [e, p], lengths).

        The lengths are those of the rows of r, then those of the rest, [2e].
        """
        shares = r @ self.vectors.mT
        rest = r - shares @ self.vectors
        found = numbers(shares, torch.linalg.vector_norm(torch.cat([r, rest]), dim=1))
        count = shares.numel()
        return np.array(found[:count]).reshape(shares.shape), rest, found[count:]

    def error(self, value: float, shares: np.ndarray, rest: float) -> float:
        """The estimated error of ``tracked``, with c_k = ``shares`` and ||r_0|| = ``rest``."""
        gaps = np.maximum(np.abs(self.values - value), np.finfo(float).tiny)
        return float(np.minimum(np.abs(shares), shares**2 / gaps).sum()) + rest

    def precondition(self, value: float, shares: np.ndarray, rest: Tensor) -> Tensor:
        """The next direction t [p], see ``tracked``."""
        gaps = np.maximum(np.abs(self.values - value), max(NEAREST * abs(value), np.finfo(float).tiny))
        return rest + torch.from_numpy(abs(value) / gaps * shares).to(rest, non_blocking=True) @ self.vectors


def _outside(v: Tensor, basis: Rows) -> Tensor | None:
    """The part of v [p] orthogonal to the basis, scaled to unit length; None where v lies in the span (``SPANNED``)."""
    lengths = [torch.linalg.vector_norm(v)]
    for _ in range(3):  # a residual is short compared with the basis vectors and needs a third Gram-Schmidt pass
        v = v / lengths[-1]
        v = v - basis.combined(basis.dot(v[:, None]))[0]
        lengths.append(torch.linalg.vector_norm(v))
    first, *rest = numbers(*lengths)
    return v / lengths[-1] if first > 0 and all(length >= SPANNED for length in rest) else None


def _bordered(small: np.ndarray, column: np.ndarray) -> np.ndarray:
    """The symmetric matrix with ``small`` in its upper left corner and ``column`` as its last row and column."""
    m = len(column)
    out = np.zeros((m, m))
    out[: m - 1, : m - 1] = small
    out[:, -1] = out[-1, :] = column
    return out
