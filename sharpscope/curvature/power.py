"""Power iteration: extreme eigenvalues of a symmetric operator one at a time, as a reference for Lanczos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sharpscope.curvature.eigen import (
    SMALL_END,
    EigenEstimate,
    End,
    ExtremeEigenvalues,
    RitzSpace,
    random_unit,
)
from sharpscope.curvature.operator import Estimator, SymmetricOperator, solve
from sharpscope.machine.devices import numbers

__all__ = ["power_ends_steps", "power_iteration", "power_steps"]


def power_iteration(
    operator: SymmetricOperator,
    *,
    seed: int,
    rtol: float = 0.01,
    max_matvecs: int = 1000,
    shift: float = 0.0,
    start: Tensor | None = None,
) -> EigenEstimate:
    """The eigenvalue of H farthest from ``shift``, by power iteration on H - shift I; a slow reference for ``lanczos``.

    v <- (H - shift I) v / ||.||, lambda = v' H v; it stops at ||H v - lambda v|| <= rtol * |lambda|. With shift 0 the
    result is the eigenvalue of largest magnitude, whatever its sign. With the shift at that eigenvalue, the result is
    the other end of the spectrum.

    Args:
        operator: shape [p, p].
        seed: the seed of the start vector.
        rtol: relative tolerance, > 0.
        max_matvecs: the largest number of products. Where they are spent first, ``converged`` is False.
        shift: in the unit of the eigenvalues.
        start: a vector [p] to start from instead of a random one.

    Raises NumericalError where the operator does; a product that is not finite gives NaN values that have not
    converged.

    Source: von Mises and Pollaczek-Geiringer 1929, Zeitschrift fuer Angewandte Mathematik und Mechanik 9.
    """
    steps = power_steps(
        operator.shape[0], dtype=operator.dtype, device=operator.device, seed=seed, rtol=rtol, max_matvecs=max_matvecs,
        shift=shift, start=start,
    )  # fmt: skip
    return solve(steps, operator)


def power_steps(
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    shift: float = 0.0,
    start: Tensor | None = None,
    atol: float = 0.0,
) -> Estimator[EigenEstimate]:
    """``power_iteration`` as a generator that yields the vectors whose products it needs (see ``operator.solve``).

    A residual of at most ``atol`` counts as converged as well.
    """
    v = random_unit(size, seed, device, dtype) if start is None else start.to(device, dtype)
    v = v / v.norm()
    value = residual = math.nan
    for step in range(1, max_matvecs + 1):
        product = (yield v[:, None])[:, 0]
        found, shifted = v @ product, product - shift * v
        value, residual, norm = numbers(found, (product - found * v).norm(), shifted.norm())
        if not math.isfinite(residual):
            return EigenEstimate(math.nan, math.nan, False, step)
        if residual <= max(rtol * abs(value), atol):
            return EigenEstimate(value, residual, True, step, v)
        if norm == 0.0:  # v is an eigenvector at the shift itself: nothing lies farther
            return EigenEstimate(value, residual, residual == 0.0, step, v)
        v, last = shifted / norm, v
    return EigenEstimate(value, residual, False, max_matvecs, last)


def power_ends_steps(
    size: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    rtol: float,
    max_matvecs: int,
    ends: Sequence[End] = ("largest", "smallest"),
) -> Estimator[ExtremeEigenvalues]:
    """Both ends of the spectrum by two power iterations, as a generator (see ``operator.solve``).

    The first finds the end of larger magnitude. The second, with its shift there, finds the other end; it is left out
    where ``ends`` does not ask for that end. Both share ``max_matvecs``. The other end is resolved as by Lanczos, to
    ``rtol`` times its magnitude or a tenth of the larger one's. Where the first iteration spends the budget, as with
    two eigenvalues of opposite sign and nearly equal magnitude, a single product is left for the second.
    """
    common = {"dtype": dtype, "device": device, "seed": seed, "rtol": rtol}
    first = yield from power_steps(size, max_matvecs=max_matvecs, **common)  # type: ignore[arg-type]
    other = first
    if set(ends) - {"dominant", "largest" if first.value >= 0 else "smallest"} and math.isfinite(first.value):
        left, atol = max(max_matvecs - first.num_matvecs, 1), rtol * SMALL_END * abs(first.value)
        found = yield from power_steps(size, max_matvecs=left, shift=first.value, atol=atol, **common)  # type: ignore[arg-type]
        spent = first.num_matvecs + found.num_matvecs
        other = replace(found, num_matvecs=spent)
    smallest, largest = sorted((first, other), key=lambda e: e.value)
    if smallest.vector is None or largest.vector is None:
        return ExtremeEigenvalues(largest, smallest)
    pair = torch.stack([smallest.vector, largest.vector])
    space = RitzSpace(pair, np.array([smallest.value, largest.value]), pair[:0], np.zeros(0))
    return ExtremeEigenvalues(largest, smallest, space.stored())
