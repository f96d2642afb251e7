"""Extreme eigenvalues of a symmetric operator from products with it; each states its residual."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sharpscope.card import card
from sharpscope.curvature.draws import gaussian
from sharpscope.curvature.operator import Estimator, SymmetricOperator, solve
from sharpscope.machine.devices import all_finite, fits, numbers

__all__ = [
    "EigenEstimate",
    "End",
    "ExtremeEigenvalues",
    "RitzSpace",
    "Rows",
    "first_vector",
    "lanczos",
    "lanczos_steps",
    "orthogonal",
    "random_unit",
    "tolerances",
    "wanted_ends",
]

SMALL_END = 0.1
"""An end of the spectrum whose magnitude is below this share of the spectral radius is resolved to ``rtol`` times this
share of the radius, not to ``rtol`` times its own magnitude, because no Krylov method reaches a relative tolerance on
an eigenvalue near zero. A larger share stops earlier."""
KEPT = 24
"""The number of Ritz vectors, beside those of the two ends, that one point of the path hands to the next. More of them
make the next point's preconditioner better and take more memory."""
KEPT_BYTES = 2**28
"""Bytes that the Ritz vectors of one layer may take when they are handed on. The vectors of the two ends are kept in
any case."""
KEPT_SHARE = 1 / 32
"""The largest fraction of a GPU's free memory that the Ritz vectors may take which one layer hands to the next point of
the path; larger ones are kept in host memory. Each layer applies the fraction to what is still free: two dozen layers
at the limit take half of the memory."""
STEADY = 0.8
"""Two unit vectors at neighbouring points whose absolute inner product exceeds this value are taken for the same
eigenvector, which has turned a little. A larger value trusts fewer vectors."""
BLOCK = 8
"""The number of vectors that ``Rows`` allocates at a time; a basis grows by whole blocks and is never copied."""
BASIS_SHARE = 1 / 4
"""The largest fraction of a GPU's free memory that the next ``BLOCK`` vectors of a basis may take; larger blocks are
kept in host memory, from where every step copies them to the device. With a larger value fewer bases travel, and
products have less memory left."""


@dataclass(frozen=True)
class EigenEstimate:
    """One eigenvalue ``value`` = lambda, with its unit vector v = ``vector`` [p].

    ``residual`` = ||H v - lambda v||, in the unit of ``value``: H certainly has an eigenvalue within this distance of
    ``value``. ``converged``: whether the estimated error (for Lanczos and power iteration the residual itself) reached
    the tolerance. ``num_matvecs``: the number of products spent. Products alone cannot prove that the eigenvalue is the
    OUTERMOST one; benchmarks/README.md states how often it was.
    """

    value: float
    residual: float
    converged: bool
    num_matvecs: int
    vector: Tensor | None = field(default=None, repr=False, compare=False)

    def _repr_html_(self) -> str:
        facts = {"value": self.value, "residual": self.residual, "converged": self.converged}
        return card("Eigenvalue", facts | {"products": self.num_matvecs})


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """Both ends of the spectrum: the ``largest`` and the ``smallest`` algebraic eigenvalue.

    ``space``: Ritz pairs of the large eigenvalues, from which ``tracking.tracked`` starts at a neighbouring point.
    """

    largest: EigenEstimate
    smallest: EigenEstimate
    space: RitzSpace | None = field(default=None, repr=False, compare=False)

    @property
    def dominant(self) -> EigenEstimate:
        """The end of larger magnitude (with its sign), which is the one that power iteration finds."""
        return self.largest if abs(self.largest.value) >= abs(self.smallest.value) else self.smallest


class Rows:
    """A matrix [m, p] that grows by rows; its memory is allocated in blocks, so that no row is ever copied.

    Blocks lie on the device of the rows, or on the host where the device has no room for them (``BASIS_SHARE``): the
    basis of a whole ViT-L takes 1.2 GB a row. What is computed from them is computed on the device, block by block, so
    that no bit depends on where they lie.
    """

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._used = 0
        self._device = torch.device("cpu")

    def __len__(self) -> int:
        return self._used

    def append(self, row: Tensor) -> None:
        """Add one row [p]."""
        if self._used == BLOCK * len(self._blocks):
            self._device = row.device
            near = fits(BLOCK * row.nbytes, row.device, BASIS_SHARE)
            self._blocks.append(row.new_empty(BLOCK, len(row), device=row.device if near else "cpu"))
        self._blocks[-1][self._used % BLOCK] = row
        self._used += 1

    def _parts(self) -> Iterator[Tensor]:
        """The rows by blocks, one after the other on the device."""
        for i, block in enumerate(self._blocks):
            yield block[: self._used - BLOCK * i].to(self._device)

    def dot(self, columns: Tensor) -> Tensor:
        """[p, k] -> [m, k]: the inner products of the rows with the columns."""
        return torch.cat([part @ columns for part in self._parts()])

    def combined(self, columns: Tensor | np.ndarray) -> Tensor:
        """[m, k] -> [k, p]: for each column, the sum of the rows weighted by the column's entries."""
        mixing = torch.as_tensor(columns).to(self._device, self._blocks[0].dtype, non_blocking=True)
        parts = zip(self._parts(), mixing.split(BLOCK), strict=True)
        out = next((m.mT @ part) for part, m in parts)
        for part, m in parts:
            out = out + m.mT @ part
        return out


@dataclass(frozen=True)
class RitzSpace:
    """Ritz pairs of one point of a path, from which the next point starts.

    ``ends`` [2, p], ``outer`` [2]: Ritz vectors and values of the smallest and the largest eigenvalue. ``vectors``
    [k, p], ``values`` [k]: those of the other large eigenvalues. ``before`` [2, p]: the ``ends`` at the previous point.
    The tensors are on the operator's device, or on the host where that has no room for them (``KEPT_SHARE``). What is
    computed from them is computed on the device, so that no bit depends on where they were.

    Source: Parlett 1998, The Symmetric Eigenvalue Problem, ch. 11.
    """

    ends: Tensor
    outer: np.ndarray
    vectors: Tensor
    values: np.ndarray
    before: Tensor | None = None

    @classmethod
    def of(cls, values: np.ndarray, mixing: np.ndarray, basis: Rows, last: RitzSpace | None = None) -> RitzSpace:
        """From all Ritz values [m], ascending, and their vectors' coefficients [m, m] in the orthonormal ``basis``.

        A Ritz value counts as large if its magnitude exceeds half that of the end of smaller magnitude. Ritz pairs of
        the ``last`` point that these do not cover are kept as far as ``KEPT`` and ``KEPT_BYTES`` allow; their vectors
        have to be on the device of the basis.
        """
        ends = basis.combined(mixing[:, [0, -1]])
        bound = 0.5 * np.abs(values[[0, -1]]).min()
        most = min(KEPT, KEPT_BYTES // (ends[0].numel() * ends.element_size()))
        others = [i for i in range(1, len(values) - 1) if abs(values[i]) > bound]
        others = sorted(others, key=lambda i: -abs(values[i]))[:most]
        vectors, kept = list(basis.combined(mixing[:, others])), list(values[others])
        if last is not None and len(vectors) < most:
            found = [(value, v) for value, v in zip(last.values, _uncovered(last.vectors, vectors), strict=True)]
            kept += [value for value, v in found if v is not None]
            vectors += [v for _, v in found if v is not None]
        together = torch.stack(vectors[:most]) if vectors else ends[:0]
        before = None if last is None else last.ends
        return cls(ends, values[[0, -1]], together, np.array(kept[:most]), before).stored()

    def stored(self) -> RitzSpace:
        """The same, on the host where the device of ``ends`` has no room for all of it."""
        tensors = [t for t in (self.ends, self.vectors, self.before) if t is not None]
        if fits(sum(t.nbytes for t in tensors), self.ends.device, KEPT_SHARE):
            return self
        before = None if self.before is None else self.before.cpu()
        return replace(self, ends=self.ends.cpu(), vectors=self.vectors.cpu(), before=before)

    def order(self, ends: Sequence[End]) -> list[int]:
        """The indices (0 smallest, 1 largest) of the requested ``ends``, the end of larger magnitude first."""
        larger = int(np.abs(self.outer).argmax())
        asked = {{"smallest": 0, "largest": 1, "dominant": larger}[end] for end in ends}
        return sorted(asked, key=lambda i: i != larger)

    def ahead(self, end: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The Ritz vector [p] of an end, extrapolated linearly from the last two points to the next one, on ``device``.

        A vector that turned by more than 37 degrees (see ``STEADY``) probably belonged to another eigenvalue at the
        previous point; it is returned without extrapolation.
        """
        now = self.ends[end].to(device, dtype)
        then = now if self.before is None else self.before[end].to(device, dtype)
        cosine = float(now @ then)
        return 2 * now - math.copysign(1, cosine) * then if abs(cosine) > STEADY else now


def _uncovered(candidates: Tensor, vectors: Sequence[Tensor]) -> list[Tensor | None]:
    """Each row of ``candidates`` [k, p], orthogonalised against the orthonormal ``vectors`` and the rows before it,
    [p]; None in place of a row of which less than half the length remains. All rows are worked through before the host
    looks at the lengths.
    """
    taken, lengths = list(vectors), list[Tensor]()
    for v in candidates:
        for u in taken:
            v = v - (u @ v) * u
        lengths.append(v.norm())
        taken.append(torch.where(lengths[-1] > 0.5, v / lengths[-1], 0.0))
    new = taken[len(vectors) :]
    return [v if length > 0.5 else None for v, length in zip(new, numbers(*lengths), strict=True)] if new else []


def random_unit(size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A unit vector [p] of random direction, the same on every device."""
    q = gaussian((size,), torch.Generator().manual_seed(seed), device=device, dtype=dtype)
    return q / q.norm()


def first_vector(size: int, seed: int, device: torch.device, dtype: torch.dtype, start: Tensor | None) -> Tensor:
    """The unit vector [p] from which a Krylov space grows: ``start`` with a random part, or a random vector alone."""
    q = random_unit(size, seed, device, dtype)
    if start is None or not float(start.norm()) > 0:
        return q
    q = start.to(device, dtype) / start.norm() + 0.5 * q
    return q / q.norm()


def orthogonal(vector: Tensor, basis: Rows) -> Tensor:
    """The part [p] of ``vector`` outside the span of the orthonormal ``basis``."""
    for _ in range(2):  # classical Gram-Schmidt, twice is enough (Giraud et al. 2005)
        vector = vector - basis.combined(basis.dot(vector[:, None]))[0]
    return vector


def tolerances(ends: np.ndarray, rtol: float) -> np.ndarray:
    """Allowed errors of eigenvalues: ``rtol`` times the magnitude, or ``SMALL_END`` of the largest one's if larger."""
    allowed: np.ndarray = rtol * np.maximum(np.abs(ends), SMALL_END * np.abs(ends).max())
    return allowed


def wanted_ends(values: np.ndarray, errors: np.ndarray, ends: Sequence[End]) -> list[int]:
    """The indices (0 smallest, 1 largest) of the requested ``ends``; both while either of them may be dominant."""
    places = {"smallest": {0}, "largest": {1}, "dominant": {int(np.abs(values).argmax())}}
    minor = int(np.abs(values).argmin())
    if abs(values[minor]) + errors[minor] > np.abs(values).max():
        places["dominant"] = {0, 1}
    return sorted(set().union(*(places[end] for end in ends)))


End = Literal["largest", "smallest", "dominant"]


def lanczos(
    operator: SymmetricOperator,
    *,
    seed: int,
    rtol: float = 0.01,
    max_matvecs: int = 100,
    start: Tensor | None = None,
    ends: Sequence[End] = ("largest", "smallest"),
) -> ExtremeEigenvalues:
    """Both ends of the spectrum by Lanczos with full reorthogonalisation, one product per step.

    K_m = span{q, H q, ..., H^(m-1) q}; the extreme Ritz values of H on K_m approach both ends at once. The iteration
    stops when the Ritz residual of every end in ``ends`` is at most ``rtol`` times the end's magnitude (or a tenth of
    the spectral radius, if that is larger). On the layers of a fine-tuned CLIP the largest eigenvalue alone takes a
    third of the products that both ends take.

    The stopping rule uses only the residual, because sharper error estimates (residual^2 / gap, or the change over the
    last steps) stopped too early where many eigenvalues crowd at an end of the spectrum: these estimates were right in
    80 to 93 % of the cases, the residual in 98 %.

    Args:
        operator: shape [p, p].
        seed: the seed of the random part of the start vector.
        rtol: relative tolerance, > 0.
        max_matvecs: the largest number of products. Where they are spent before the ends are within tolerance,
            ``converged`` is False. One vector [p] per product is kept in memory.
        start: a vector [p] near the wanted eigenvectors, e.g. their sum at a neighbouring alpha, or the gradient, which
            lies near the outermost ones. A random part is always added, because the outermost eigenvector may be
            another one at the next alpha, and a start vector without a component along it would never find it.
        ends: the ends that have to converge: largest, smallest, dominant (the one of larger magnitude). The other end
            is returned as far as it was resolved by then, and its ``converged`` says whether it is within tolerance.

    Raises NumericalError where the operator does; a product that is not finite gives NaN values that have not
    converged.

    Sources: Lanczos 1950, https://doi.org/10.6028/jres.045.026; Parlett 1998, The Symmetric Eigenvalue Problem.
    """
    steps = lanczos_steps(
        operator.shape[0],
        dtype=operator.dtype,
        device=operator.device,
        seed=seed,
        rtol=rtol,
        max_matvecs=max_matvecs,
        start=start,
        ends=ends,
    )
    return solve(steps, operator)


def lanczos_steps(
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    start: Tensor | None = None,
    ends: Sequence[End] = ("largest", "smallest"),
    min_steps: int = 2,
) -> Estimator[ExtremeEigenvalues]:
    """``lanczos`` as a generator that yields the vectors whose products it needs (see ``operator.solve``)."""
    q = first_vector(size, seed, device, dtype, start)
    basis = Rows()
    alphas: list[float] = []
    betas: list[float] = []
    steps = min(size, max_matvecs)
    for step in range(1, steps + 1):
        basis.append(q)
        product = (yield q[:, None])[:, 0]
        rest = orthogonal(product, basis)
        finite, alpha, beta, length = numbers(all_finite(product), q @ product, rest.norm(), product.norm())
        if not finite:
            bad = EigenEstimate(math.nan, math.nan, False, step)
            return ExtremeEigenvalues(bad, bad)
        alphas.append(alpha)
        # A remainder at rounding level: the Krylov space is invariant and its Ritz values are exact.
        closed = beta <= 10 * torch.finfo(dtype).eps * max(length, 1e-300) or step == size
        betas.append(0.0 if closed else beta)
        values, vectors = eigh_tridiagonal(np.array(alphas), np.array(betas[:-1]))
        residuals = np.abs(betas[-1] * vectors[-1])[[0, -1]]
        within = residuals <= tolerances(values[[0, -1]], rtol)
        wanted = wanted_ends(values[[0, -1]], residuals, ends)
        if (step >= min_steps and within[wanted].all()) or closed or step == steps:
            outer = basis.combined(vectors[:, [0, -1]])
            smallest, largest = (
                EigenEstimate(float(values[-i]), float(residuals[i]), bool(within[i]), step, outer[i]) for i in (0, 1)
            )
            return ExtremeEigenvalues(largest, smallest, RitzSpace.of(values, vectors, basis))
        q = rest / beta
    raise AssertionError("unreachable: the last step returns")
