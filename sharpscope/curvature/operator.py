"""The symmetric operator that every estimator of this room works on, and how several advance together.

An estimator is written once, as a generator: it yields a matrix of vectors, is sent the products of its operator with
them, and returns a frozen result. ``solve`` feeds one estimator from one operator; ``solve_together`` advances many
estimators in lock step, so that one pass over the data serves every layer's request when the graphs of all batches do
not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from sharpscope.errors import NumericalError

__all__ = [
    "Cuttable",
    "DenseOperator",
    "Divisible",
    "Estimator",
    "FunctionOperator",
    "Objective",
    "SymmetricOperator",
    "check_symmetric",
    "solve",
    "solve_together",
]

T = TypeVar("T")
Estimator = Generator[Tensor, Tensor, T]
"""Yields V of shape [p, k], is sent H V of shape [p, k], returns its result."""


class Objective(Protocol):
    """A loss that is a mean over samples, cut into batches: L(theta) = sum_i weights[i] * batch_loss(i, theta).

    ``weights[i]`` is n_i / n: batches of unequal size count by their samples.
    """

    @property
    def weights(self) -> Sequence[float]: ...

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of batch i, a scalar that can be differentiated twice in theta."""
        ...


@runtime_checkable
class Cuttable(Protocol):
    """An objective that knows a cheaper way to its loss when only some tensors change."""

    def suffix(self, theta: Mapping[str, Tensor], names: Sequence[str]) -> Objective:
        """The same loss, bit for bit, for weights that differ from ``theta`` in ``names`` only."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """An objective whose examples can be cut into batches of another size: the same mean over the same samples."""

    @property
    def batch_size(self) -> int:
        """Examples in its largest batch."""
        ...

    def rebatched(self, batch_size: int) -> Objective:
        """The same loss in batches of at most ``batch_size`` examples, in the same order."""
        ...


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric matrix of shape [p, p], known by its products only."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def matvec(self, v: Tensor) -> Tensor:
        """H v for v of shape [p]."""
        ...

    def matmat(self, vs: Tensor) -> Tensor:
        """H V for V of shape [p, k]."""
        ...


class FunctionOperator:
    """A symmetric operator from a function ``v -> H v``; the default matmat takes the columns one by one."""

    def __init__(self, matvec: Callable[[Tensor], Tensor], size: int, *, dtype: torch.dtype = torch.float64) -> None:
        self._matvec = matvec
        self.shape = (size, size)
        self.dtype = dtype
        self.device = torch.device("cpu")

    def matvec(self, v: Tensor) -> Tensor:
        return self._matvec(v)

    def matmat(self, vs: Tensor) -> Tensor:
        return torch.stack([self._matvec(v) for v in vs.unbind(1)], dim=1)


class DenseOperator:
    """A symmetric operator from a matrix: the oracle of tests."""

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise NumericalError(f"operator: needs a square matrix, got shape {tuple(matrix.shape)}.")
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matrix @ v

    def matmat(self, vs: Tensor) -> Tensor:
        return self.matrix @ vs


def solve(estimator: Estimator[T], operator: SymmetricOperator) -> T:
    """Run one estimator to its end on one operator."""
    try:
        request = next(estimator)
        while True:
            request = estimator.send(operator.matmat(request))
    except StopIteration as stop:
        return stop.value


def solve_together(
    estimators: Mapping[str, Estimator[T]], products: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, T]:
    """Run many estimators in lock step: each round is ONE call of ``products`` with every open request, by name."""
    results: dict[str, T] = {}
    requests: dict[str, Tensor] = {}
    answers: Mapping[str, Tensor | None] = dict.fromkeys(estimators)
    while answers:
        requests = {}
        for name, answer in answers.items():
            try:
                requests[name] = next(estimators[name]) if answer is None else estimators[name].send(answer)
            except StopIteration as stop:
                results[name] = stop.value
        answers = products(requests) if requests else {}
    return {name: results[name] for name in estimators}


def check_symmetric(operator: SymmetricOperator, generator: torch.Generator, *, rtol: float | None = None) -> float:
    """|u'Hv - v'Hu| / (||u|| ||Hv|| + ||v|| ||Hu||) for random u, v; raises NumericalError above ``rtol``.

    A Hessian-vector product that came out of a wrong derivative formula is rarely symmetric: this catches it for the
    price of two products. The default tolerance is the square root of the dtype's precision.
    """
    uv = torch.randn(operator.shape[0], 2, generator=generator, dtype=torch.float64)
    uv = uv.to(operator.device, operator.dtype)
    huv = operator.matmat(uv)
    if not torch.isfinite(huv).all():
        raise NumericalError("operator: its product with a random vector is not finite.")
    a, b = (uv[:, 0] @ huv[:, 1]).item(), (uv[:, 1] @ huv[:, 0]).item()
    norms, hnorms = uv.norm(dim=0), huv.norm(dim=0)
    scale = (norms[0] * hnorms[1] + norms[1] * hnorms[0]).item()
    gap = abs(a - b) / scale if scale > 0 else 0.0
    limit = torch.finfo(operator.dtype).eps ** 0.5 if rtol is None else rtol
    if gap > limit:
        raise NumericalError(f"operator: not symmetric, |u'Hv - v'Hu| is {gap:.1e} of its scale (allowed {limit:.1e}).")
    return gap
