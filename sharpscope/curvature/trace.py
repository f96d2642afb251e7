"""Estimators of a symmetric operator's trace that need only products with it; each states its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor

from sharpscope.card import card
from sharpscope.curvature.draws import rademacher
from sharpscope.curvature.operator import Estimator, Probes, SymmetricOperator, solve
from sharpscope.machine.devices import all_finite, numbers

__all__ = [
    "FIRST",
    "Pilot",
    "Pooled",
    "TraceEstimate",
    "hutchinson",
    "hutchinson_steps",
    "hutchpp",
    "hutchpp_steps",
    "per_example_steps",
    "per_example_trace",
    "pooled",
    "scaled",
    "student",
    "xtrace",
    "xtrace_steps",
]

T = TypeVar("T")

FIRST = 2
"""The number of products that ``per_example`` takes before it first checks its error. A variance needs at least two."""
ENOUGH = 10.0
"""With at least this many degrees of freedom an estimated error is trusted, both to stop and to predict how many
products are still needed."""
LARGEST = 2.0
"""The largest variance of v'Hv, 2 sum_{i != j} H_ij^2, as a multiple of (tr H)^2, for a positive semidefinite H."""
WIDENING = 1.15
"""The factor by which Student's intervals are widened. The quadratic form v'Hv of a few large eigenvalues is skewed: in
simulations (tests/laws) the plain 95 % interval covered 91 to 94 %."""
_PILOT = 8
"""The number of probes of the first stage of ``hutchinson`` and of ``hutchpp``'s remainder."""
XTRACE_INFLATION = math.sqrt(2)
"""The factor by which XTrace's standard error is widened, see ``xtrace``. A larger value covers more and costs more
products."""
XTRACE_FIRST = 24
"""The number of products that an adaptive XTrace takes before it first checks its error."""
XTRACE_LEAST = 6
"""With at least this many test vectors XTrace's estimated error is trusted; with fewer it never counts as converged."""


@dataclass(frozen=True)
class TraceEstimate:
    """A trace with its uncertainty.

    ``stderr``: one standard error, in the unit of ``estimate``; 0 where the trace is exact (one product per
    coordinate). ``converged``: whether stderr <= rtol * |estimate| was reached. ``num_matvecs``: the number of products
    spent. ``weighted``: the estimate of tr(diag(c) H diag(c)) and its standard error, where ``c`` was given.
    ``contributions``: what the examples add to the estimate, one tensor per batch (see ``curvature.imageerrors``), or a
    single tensor of all units where the operator does not name its batches; None where products cannot separate
    examples. ``blur``: the variance that random directions give to the sum of ``contributions`` but not to the
    estimate, because the estimate was computed exactly.
    """

    estimate: float
    stderr: float
    converged: bool
    num_matvecs: int
    weighted: tuple[float, float] | None = None
    contributions: tuple[Tensor, ...] | None = field(default=None, repr=False, compare=False)
    blur: float = field(default=0.0, repr=False, compare=False)

    def _repr_html_(self) -> str:
        facts = {"trace": self.estimate, "standard error": self.stderr, "converged": self.converged}
        return card("Trace", facts | {"products": self.num_matvecs})


def per_example_trace(
    operator: SymmetricOperator, *, seed: int, rtol: float = 0.05, max_matvecs: int = 100, scale: Tensor | None = None
) -> TraceEstimate:
    """Hutchinson's estimator with an independent direction of random signs for every example: n probes per product.

    tr H = 1/n sum_j E[v_j' H_j v_j] for a loss that is a mean over examples j. With off(H) the matrix H without its
    diagonal, the variance is 2/n^2 sum_j ||off(H_j)||^2 instead of 2 ||off(1/n sum_j H_j)||^2 for a shared direction:
    n times less where all H_j are equal (``curvature.per_example`` describes the computation). Only the numbers
    v_j' H_j v_j are asked for, one for each example: what counts as a product here is one forward tangent pass where
    the network allows it (``curvature.tangents``). Two products give every
    example two values and thus n degrees of freedom for the variance, from which the number of further products follows
    as in ``hutchinson``.

    ``stderr`` is that of ``pooled``, so that estimate +- 1.96 stderr covers 95 %, for a single example too. On an
    operator that cannot separate examples this is Hutchinson's estimator. Where as many products as coordinates would
    be needed, the trace is computed exactly from unit vectors.

    Args:
        operator: shape [p, p].
        seed: the seed of the directions.
        rtol: relative tolerance, > 0. Half the tolerance costs about four times the products.
        max_matvecs: the largest number of products, >= 2.
        scale: where given, the magnitudes c of the layer's parameters, shape [p]; tr(diag(c) H diag(c)) is estimated
            instead of tr H.

    Raises:
        NumericalError: ``scale`` for an operator without known parameters, or an error of the operator's products.
            Products that are not finite give a NaN estimate that has not converged.

    Sources: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Wen et al. 2018, arXiv 1803.04386 (own signs);
    Stein 1945, https://doi.org/10.1214/aoms/1177731088 (two stages); Satterthwaite 1946, Biometrics Bulletin 2.
    """
    steps = per_example_steps(
        operator.shape[0],
        dtype=operator.dtype,
        device=operator.device,
        seed=seed,
        rtol=rtol,
        max_matvecs=max_matvecs,
        scale=scale,
    )
    return solve(steps, operator)


@dataclass
class Pilot:
    """The first products of ``per_example_steps``, taken before it begins, and the generator that drew them.

    From the pilots of all layers follows how large the whole trace is, and so how small a layer's error has to be.
    """

    generator: torch.Generator
    parts: Tensor = field(default_factory=lambda: torch.empty(0, FIRST))

    def request(self, weighted: bool, before_head: bool) -> Probes:
        return Probes(FIRST, self.generator, weighted, before_head)

    @property
    def mean(self) -> float:
        """The trace, or the part of it that is sampled, as far as the first products tell."""
        return float(self.parts.double().sum()) / FIRST


def per_example_steps(
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    scale: Tensor | None = None,
    offset: tuple[float, float] = (0.0, 0.0),
    before_head: bool = False,
    atol: float = 0.0,
    pilot: Pilot | None = None,
) -> Estimator[TraceEstimate]:
    """``per_example_trace`` as a generator that yields requests for its products (see ``operator.solve``).

    ``offset``: a part of the trace that is known from elsewhere, and its standard error, which must be independent of
    the products. The result is the sum of both parts, with the error of the sum, and the sum has to reach ``rtol``.
    Therefore a part that is small compared with ``offset`` needs few products, for example H - G compared with G.
    ``before_head``: ask for the part of H from the curvature of the embeddings only; ``offset`` is then the other part
    (``curvature.embedding``). Where unit vectors are used, they give the trace of H itself.
    ``atol``: a standard error that is small enough whatever the trace is; the tolerance is the larger of it and
    ``rtol`` times the trace. ``pilot``: the first products, if they were taken already (``Pilot``).
    """
    known, blur = offset
    square, weighted = None if scale is None else scale.double() ** 2, scale is not None
    beside = (0.0, 0.0) if before_head else offset
    if size <= FIRST:
        return _shifted((yield from _exactly(size, dtype, device, square, 0)), beside, rtol, atol)
    most = max(max_matvecs, FIRST)
    if pilot is None:
        pilot = Pilot(torch.Generator().manual_seed(seed))
        pilot.parts = yield pilot.request(weighted, before_head)
    # A few numbers: one copy to the host serves all that is asked of them.
    generator, parts = pilot.generator, pilot.parts.double().cpu()
    while True:
        count, found = parts.shape[1], pooled(parts)
        mean, stderr = known + found.mean, math.hypot(blur, found.stderr)
        tolerance = max(rtol * abs(mean), atol)
        within = stderr <= tolerance and found.freedom >= ENOUGH
        # An error that is not known yet (few degrees of freedom) says little about how many products are needed.
        needed = found.needed(tolerance**2 - blur**2)
        adds = (parts.mean(1),)
        if not math.isfinite(mean) or within or count >= most:
            return TraceEstimate(mean, stderr, within, count, contributions=adds)
        if needed >= size and count + size <= most:
            exact = yield from _exactly(size, dtype, device, square, count)
            exact = replace(exact, contributions=adds, blur=float(parts.var(1).sum()) / count)
            return _shifted(exact, beside, rtol, atol)
        wanted = min(needed, most, math.inf if found.freedom >= ENOUGH else 2 * count)
        probes = Probes(max(math.ceil(wanted) - count, 1), generator, weighted, before_head)
        parts = torch.cat([parts, (yield probes).double().cpu()], 1)


def _exactly(
    size: int, dtype: torch.dtype, device: torch.device, square: Tensor | None, spent: int
) -> Estimator[TraceEstimate]:
    """The exact trace from one product per coordinate; where ``square`` is given, the weighted trace instead."""
    exact = yield from _exact(size, dtype, device, square, spent)
    return exact if exact.weighted is None else replace(exact, estimate=exact.weighted[0], weighted=None)


def _shifted(exact: TraceEstimate, offset: tuple[float, float], rtol: float, atol: float) -> TraceEstimate:
    value, stderr = exact.estimate + offset[0], math.hypot(exact.stderr, offset[1])
    within = exact.converged and stderr <= max(rtol * abs(value), atol)
    return replace(exact, estimate=value, stderr=stderr, converged=within)


@dataclass(frozen=True)
class Pooled:
    """The mean of column sums: ``mean``, its standard error ``stderr``, and the error's degrees of freedom ``freedom``.

    ``sampled``, ``assumed``: the parts of stderr^2 that fall as 1 / count and as 1 / count^2, times count and count^2.
    """

    mean: float
    stderr: float
    freedom: float
    sampled: float
    assumed: float

    def needed(self, room: float) -> float:
        """The number k of columns that brings stderr^2 down to ``room``: sampled / k + assumed / k^2 = room.

        Where every value so far is 0, it is the number of zeros that is believed.
        """
        if self.stderr == 0:
            return 0.0 if self.freedom >= ENOUGH else ENOUGH + 1
        if not room > 0:
            return math.inf
        linear = self.sampled / (2 * room)
        return linear + math.sqrt(linear**2 + self.assumed / room)


def pooled(parts: Tensor) -> Pooled:
    """The mean of the column sums of ``parts`` [units, count], count >= 2, with its error.

    Each row is an independent unit with its own variance, observed ``count`` >= 2 times. The variances of the units add
    up, with the degrees of freedom of Satterthwaite 1946. The error is widened by Student's t and ``WIDENING``, so that
    the mean +- 1.96 times the error covers 95 %.

    A sampled variance of 0 does not prove a variance of 0. The form v'Hv is a polynomial of degree 2 in the signs v,
    and such a polynomial, unless it is constant, differs from any given value with a probability of at least 1/4
    (Schwartz and Zippel). With equally likely classes, or where few entries hold the curvature, a few products
    therefore agree by chance. To guard against this, the variance of each unit is estimated from its ``count`` values
    and from one further observation, ``LARGEST`` times the square of the unit's mean: the largest variance that a
    positive semidefinite matrix can have. The influence of this observation on stderr^2 falls as 1 / count^2. Where all
    values are 0, there are count - 1 degrees of freedom, as for a single unit. Where there are no units at all (an
    operator that is 0 by construction), the result 0 is certain.

    Sources: Satterthwaite 1946, Biometrics Bulletin 2; Schwartz 1980, https://doi.org/10.1145/322217.322225.
    """
    units, count = parts.shape
    if units == 0:
        return Pooled(0.0, 0.0, math.inf, 0.0, 0.0)
    variances, guesses = parts.var(1, correction=1), LARGEST * parts.mean(1).square()
    variances, guesses = (count - 1) / count * variances, guesses / count
    together = variances + guesses
    largest = float(together.max())
    shares = together / largest  # their squares do not underflow
    freedom = (count - 1) * (float(shares.sum() ** 2 / shares.square().sum()) if largest > 0 else 1.0)
    factor = WIDENING * student(freedom)
    sampled, assumed = (factor**2 * float(x.sum()) for x in (variances, count * guesses))
    return Pooled(
        float(parts.sum()) / count, factor * math.sqrt(float(together.sum()) / count), freedom, sampled, assumed
    )


def student(freedom: float) -> float:
    """By what 1.96 standard errors have to grow to cover 95 % where the error has few degrees of freedom, >= 1."""
    return float(student_t.ppf(0.975, max(freedom, 1.0)) / norm.ppf(0.975))


def hutchinson(
    operator: SymmetricOperator,
    *,
    seed: int,
    rtol: float = 0.05,
    max_matvecs: int = 100,
    pilot: int = _PILOT,
    scale: Tensor | None = None,
) -> TraceEstimate:
    """Hutchinson's estimator with Rademacher probes and a two-stage stopping rule.

    tr H = E[v' H v] for v with independent signs; the variance of v' H v is 2 * sum_{i != j} H_ij^2. The first
    ``pilot`` probes give an estimate of this variance, and thus the number of probes that brings the standard error
    (that of ``pooled``) down to ``rtol`` * |estimate|. An error with fewer than ``ENOUGH`` degrees of freedom does not
    stop the estimator. Where as many products as coordinates would be needed, the trace is computed exactly from unit
    vectors.

    Args:
        operator: shape [p, p].
        seed: the seed of the probes.
        rtol: relative tolerance, > 0. Half the tolerance costs about four times the products.
        max_matvecs: the largest number of products, >= 1.
        pilot: number of probes in the first stage, >= 2.
        scale: c, shape [p]; where given, tr(diag(c) H diag(c)) is also estimated, from the same products, as
            sum_i c_i^2 v_i (H v)_i.

    Raises NumericalError where the operator does; products that are not finite give a NaN estimate that has not
    converged.

    Sources: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Stein 1945,
    https://doi.org/10.1214/aoms/1177731088.
    """
    steps = hutchinson_steps(
        operator.shape[0],
        dtype=operator.dtype,
        device=operator.device,
        seed=seed,
        rtol=rtol,
        max_matvecs=max_matvecs,
        pilot=pilot,
        scale=scale,
    )
    return solve(steps, operator)


def hutchinson_steps(
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    pilot: int = _PILOT,
    scale: Tensor | None = None,
) -> Estimator[TraceEstimate]:
    """``hutchinson`` as a generator that yields the vectors whose products it needs (see ``operator.solve``)."""
    generator = torch.Generator().manual_seed(seed)
    square = None if scale is None else (scale.double() ** 2).to(device)
    pilot = min(max(pilot, 2), max(max_matvecs, 1))
    if size <= pilot:
        return (yield from _exact(size, dtype, device, square, 0))
    plain, weighted = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    wanted = pilot
    while True:
        found: list[tuple[Tensor, ...]] = []
        for _ in range(wanted - len(plain)):
            v = rademacher((size, 1), generator, device=device, dtype=dtype)
            product = (v * (yield v)).double()[:, 0]
            found.append((product.sum(), *(() if square is None else ((square * product).sum(),))))
        new = torch.stack([torch.stack(column) for column in zip(*found, strict=True)]).cpu()
        plain = torch.cat([plain, new[0]])
        weighted = weighted if square is None else torch.cat([weighted, new[1]])
        mean, stderr, within, needed = _look(plain, rtol)
        if within or wanted >= max_matvecs or not math.isfinite(mean):
            break
        if needed >= size and len(plain) + size <= max_matvecs:
            return (yield from _exact(size, dtype, device, square, len(plain)))
        wanted = int(min(max(math.ceil(min(needed, max_matvecs)), len(plain) + 1), max_matvecs))
    return TraceEstimate(mean, stderr, within, len(plain), None if square is None else _look(weighted, rtol)[:2])


def _look(samples: Tensor, rtol: float, known: float = 0.0) -> tuple[float, float, bool, float]:
    """(estimate, stderr, whether that is within rtol, how many samples it takes) of ``known`` + the samples' mean."""
    if len(samples) < 2:
        return known + float(samples.mean()), math.nan, False, math.inf
    found = pooled(samples[None])
    mean = known + found.mean
    minor = float(samples.abs().max()) < rtol * abs(mean)  # no sample could have moved ``known`` out of tolerance
    within = found.stderr <= rtol * abs(mean) and (found.freedom >= ENOUGH or minor)
    return mean, found.stderr, within, found.needed((rtol * mean) ** 2)


def _exact(
    size: int, dtype: torch.dtype, device: torch.device, square: Tensor | None, spent: int
) -> Estimator[TraceEstimate]:
    """The exact trace from one product per coordinate, without sampling error."""
    diagonal = torch.zeros(size, dtype=torch.float64, device=device)
    for i in range(size):
        unit = torch.zeros(size, 1, dtype=dtype, device=device)
        unit[i] = 1
        diagonal[i] = (yield unit)[i, 0]
    diagonal = diagonal.cpu()
    weighted = None if square is None else (float((square.cpu() * diagonal).sum()), 0.0)
    return TraceEstimate(float(diagonal.sum()), 0.0, bool(torch.isfinite(diagonal).all()), spent + size, weighted)


def xtrace(
    operator: SymmetricOperator, *, seed: int, num_matvecs: int = 100, rtol: float = 0.05, adaptive: bool = False
) -> TraceEstimate:
    """XTrace: the exchangeable estimator, exact on the dominant eigenspace, with its own error estimate.

    Omega are m test vectors and Q is an orthonormal basis of H Omega. For each column i of Omega, the trace of H on the
    span of the other columns' products is exact, and column i gives a Hutchinson estimate of the remainder; the
    estimate is the mean of the m sums. The standard error is sqrt(2) times Student's factor times the standard
    deviation of the m sums divided by sqrt(m). The factor sqrt(2) is needed because the m sums share their basis:
    without it, the paper's figure was 10 to 40 % below the true error in our simulations (tests/laws check the
    coverage). With fewer than ``XTRACE_LEAST`` test vectors the estimate never counts as converged. The test vectors
    are uniform on the sphere, and the remainder is rescaled to the dimension of the complement.

    Args:
        operator: shape [p, p].
        seed: the seed of the test vectors.
        num_matvecs: the total number of products (rounded down to an even number, at least 4). With p or more the trace
            is exact. The memory grows with it: twice as many float64 vectors [p] are kept.
        rtol: tolerance for ``converged``.
        adaptive: start with ``XTRACE_FIRST`` products and double their number, using all earlier products again, until
            the stated error is within ``rtol`` or ``num_matvecs`` are spent.

    Raises NumericalError where the operator does; products that are not finite give a NaN estimate that has not
    converged.

    Source: Epperly, Tropp, Webber 2024, arXiv 2301.07825.
    """
    steps = xtrace_steps(
        operator.shape[0],
        dtype=operator.dtype,
        device=operator.device,
        seed=seed,
        max_matvecs=num_matvecs,
        rtol=rtol,
        first=XTRACE_FIRST if adaptive else num_matvecs,
    )
    return solve(steps, operator)


def xtrace_steps(
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    max_matvecs: int,
    rtol: float,
    first: int = XTRACE_FIRST,
) -> Estimator[TraceEstimate]:
    """``xtrace`` as a generator that yields the vectors whose products it needs (see ``operator.solve``).

    ``first``: the number of products before the first check of the error.
    """
    most = max(max_matvecs // 2, 2)
    m = min(max(first // 2, 2), most)
    generator = torch.Generator().manual_seed(seed)
    omega, y, q, z = (torch.zeros(size, 0, dtype=torch.float64, device=device) for _ in range(4))
    r = torch.zeros(0, 0, dtype=torch.float64, device=device)
    while True:
        spent = 2 * omega.shape[1]
        if size <= 2 * m - spent:
            return (yield from _exact(size, dtype, device, None, spent))
        new = torch.randn(m - omega.shape[1], size, generator=generator, dtype=torch.float64).mT
        new = (new * (math.sqrt(size) / new.norm(dim=0))).to(device)
        image = (yield new.to(dtype)).double()
        q_new, r = _extend(q, r, image)
        z = torch.cat([z, (yield q_new.to(dtype)).double()], dim=1)
        omega, y, q = (torch.cat(parts, dim=1) for parts in ((omega, new), (y, image), (q, q_new)))
        finite, smallest, largest = numbers(all_finite(z), r.diagonal().abs().min(), r.abs().max())
        if not finite or smallest <= torch.finfo(torch.float64).eps * largest:
            # H Omega has less than full rank: Q spans the range of H and tr(Q'HQ) is the whole trace.
            value = float((q * z).sum()) if finite else math.nan
            return TraceEstimate(value, 0.0 if finite else math.nan, bool(finite), 2 * m)
        values = _exchangeable(omega, y, q, r, z).cpu()
        mean, spread = float(values.mean()), float(values.std(correction=1)) / math.sqrt(m)
        stderr = XTRACE_INFLATION * student(m - 1) * spread
        within = stderr <= rtol * abs(mean) and m >= XTRACE_LEAST
        if within or m == most:
            return TraceEstimate(mean, stderr, within, 2 * m)
        m = min(2 * m, most)


def _extend(q: Tensor, r: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The QR decomposition of [Y, image] from Q R = Y: the new columns of Q, and the whole new R."""
    above = q.mT @ image
    rest = image - q @ above
    again = q.mT @ rest
    q_new, corner = torch.linalg.qr(rest - q @ again)
    top = torch.cat([r, above + again], dim=1)
    bottom = torch.cat([torch.zeros(corner.shape[0], r.shape[1], dtype=r.dtype, device=r.device), corner], dim=1)
    return q_new, torch.cat([top, bottom])


def _exchangeable(omega: Tensor, y: Tensor, q: Tensor, r: Tensor, z: Tensor) -> Tensor:
    """The m single estimates. Without column i the basis is Q (I - s_i s_i'), s_i the unit i-th column of R^-T."""
    size, m = omega.shape
    s = torch.linalg.solve_triangular(r.mT, torch.eye(m, dtype=r.dtype, device=r.device), upper=False)
    s = s / s.norm(dim=0)
    h, w, t = q.mT @ z, q.mT @ omega, z.mT @ omega
    x = w - s * (s * w).sum(0)
    rest = (omega * y).sum(0) - 2 * (t * x).sum(0) + (x * (h @ x)).sum(0)
    left = size - (x**2).sum(0)  # ||(I - P_i) omega_i||^2, as ||omega_i||^2 = size
    return h.trace() - (s * (h @ s)).sum(0) + rest * (size - m + 1) / left


def hutchpp(operator: SymmetricOperator, *, seed: int, max_matvecs: int = 100, rtol: float = 0.05) -> TraceEstimate:
    """Hutch++: the exact trace on the range of a sketch, plus Hutchinson's estimate of the remainder.

    tr H = tr(Q'HQ) + tr((I - QQ')H(I - QQ')), Q an orthonormal basis of H S for random signs S. A third of
    ``max_matvecs`` is spent on H S, a third on H Q, and at most the rest on the remainder, whose number of probes
    follows from a pilot as in ``hutchinson``. The standard error is that of the remainder, because the first part is
    exact.

    Args:
        operator: shape [p, p].
        seed: the seed of sketch and probes.
        max_matvecs: the largest number of products.
        rtol: relative tolerance, > 0.

    Raises NumericalError where the operator does; products that are not finite give a NaN estimate that has not
    converged.

    Source: Meyer, Musco, Musco, Woodruff 2021, arXiv 2010.09649.
    """
    steps = hutchpp_steps(
        operator.shape[0], dtype=operator.dtype, device=operator.device, seed=seed, max_matvecs=max_matvecs, rtol=rtol
    )
    return solve(steps, operator)


def hutchpp_steps(
    size: int, *, dtype: torch.dtype, device: torch.device, seed: int, max_matvecs: int, rtol: float
) -> Estimator[TraceEstimate]:
    """``hutchpp`` as a generator that yields the vectors whose products it needs (see ``operator.solve``)."""
    k = max(max_matvecs // 3, 1)
    if size <= 3 * k:
        return (yield from _exact(size, dtype, device, None, 0))
    generator = torch.Generator().manual_seed(seed)
    image = (yield rademacher((size, k), generator, device=device, dtype=dtype)).double()
    if not torch.isfinite(image).all():
        return TraceEstimate(math.nan, math.nan, False, k)
    q, _ = torch.linalg.qr(image)
    captured = float((q * (yield q.to(dtype)).double()).sum())
    samples = torch.zeros(0, dtype=torch.float64)
    room = max(max_matvecs - 2 * k, 1)
    wanted = min(_PILOT, room)
    while True:
        found = []
        for _ in range(wanted - len(samples)):
            v = rademacher((size, 1), generator, device=device, dtype=torch.float64)
            v = v - q @ (q.mT @ v)
            found.append((v * (yield v.to(dtype)).double()).sum())
        samples = torch.cat([samples, torch.stack(found).cpu()])
        mean, stderr, within, needed = _look(samples, rtol, captured)
        if within or wanted >= room or not math.isfinite(mean):
            return TraceEstimate(mean, stderr, within, 2 * k + len(samples))
        wanted = int(min(max(math.ceil(min(needed, room)), len(samples) + 1), room))


def scaled(estimator: Estimator[T], scale: Tensor) -> Estimator[T]:
    """``estimator`` applied to diag(c) H diag(c), c = ``scale``, while its requests are answered by products with H.

    The estimator may yield vectors, but no ``Probes``.
    """
    try:
        request = next(estimator)
        while True:
            assert isinstance(request, Tensor)
            column = scale.to(request)[:, None]
            request = estimator.send(column * (yield column * request))
    except StopIteration as stop:
        result: T = stop.value
        return result
