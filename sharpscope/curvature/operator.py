"""The symmetric operator on which every estimator works, and how several estimators advance together.

An estimator is written once, as a generator: it yields a matrix of vectors, is sent the products of its operator with
them, and returns a frozen result. ``solve`` feeds one estimator from one operator; ``solve_together`` advances many
estimators in lock step, so that one pass over the data serves every layer's request when the graphs of all batches do
not fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from sharpscope.curvature.draws import gaussian, rademacher
from sharpscope.errors import NumericalError
from sharpscope.machine.devices import all_finite, numbers

__all__ = [
    "AnswersProbes",
    "Cuttable",
    "DenseOperator",
    "Divisible",
    "Estimator",
    "FunctionOperator",
    "Objective",
    "Probes",
    "SymmetricOperator",
    "check_symmetric",
    "inside",
    "solve",
    "solve_together",
]

T = TypeVar("T")
O = TypeVar("O", bound="Objective")  # noqa: E741


@dataclass(frozen=True)
class Probes:
    """A request for v' H v along ``count`` independent directions v of random signs, split into independent parts.

    The answer is float64 [units, count]. Its column sums are unbiased estimates of tr H. Entries of different rows or
    columns are uncorrelated, so that the variance of a column sum is the sum of the rows' variances. The Hessian of a
    mean over examples gives one row per example (see ``curvature.per_example``), any other operator a single row.

    Sources: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Wen et al. 2018, arXiv 1803.04386.
    """

    count: int
    generator: torch.Generator
    weighted: bool = False
    """Whether H is replaced by diag(c) H diag(c), with c the magnitudes of the parameters."""
    before_head: bool = False
    """Whether H is replaced by its part from the curvature of the embeddings (``curvature.embedding``), which only an
    engine can tell from the whole."""


Estimator = Generator[Tensor | Probes, Tensor, T]
"""A generator that yields the vectors V [p, k] whose products it needs and is sent H V [p, k], or yields ``Probes`` and
is sent their quadratic forms. Its return value is the result."""


class Objective(Protocol):
    """A loss that is a mean over samples, cut into batches: L(theta) = sum_i weights[i] * batch_loss(i, theta).

    ``weights[i]`` is n_i / n, so that every sample counts the same even where batches have unequal sizes.
    """

    @property
    def weights(self) -> Sequence[float]:
        """The batches' shares of the samples, n_i / n; they sum to 1."""
        ...

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """Mean loss of batch i, a scalar that can be differentiated twice with respect to theta."""
        ...


@runtime_checkable
class Cuttable(Protocol):
    """An objective that can compute its loss more cheaply when only some tensors change."""

    def suffix(self, theta: Mapping[str, Tensor], names: Sequence[str]) -> Objective:
        """The same loss, bit for bit, for weights that differ from ``theta`` only in ``names``."""
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
    """A symmetric matrix of shape [p, p] that is known only through its products with vectors."""

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of vectors and products."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of vectors and products."""
        ...

    def matvec(self, v: Tensor) -> Tensor:
        """H v for v of shape [p]."""
        ...

    def matmat(self, vs: Tensor) -> Tensor:
        """H V for V of shape [p, k]."""
        ...


class _Inside:
    """Another objective whose forward pass runs inside of something."""

    def __init__(self, objective: Any, run: Callable[..., Tensor]) -> None:
        self._objective, self._run = objective, run


def inside(
    objective: O,
    run: Callable[[Callable[..., Tensor], int, Mapping[str, Tensor]], Tensor],
    *,
    again: Sequence[str] = ("rebatched",),
) -> O:
    """``objective`` whose losses and logits are ``run(function, i, theta)`` in place of ``function(i, theta)``.

    ``again``: its methods that return an objective for which the same holds. It has every other public name of
    ``objective`` and no more. The names stand in a class made for it, because protocols are asked of the class: since
    Python 3.12 ``isinstance`` does not see what ``__getattr__`` would answer.
    """

    def forwarded(name: str) -> Any:
        if name in ("batch_loss", "batch_logits"):
            return lambda self, i, theta: self._run(getattr(self._objective, name), i, theta)
        if name in again:
            return lambda self, *what: inside(getattr(self._objective, name)(*what), self._run, again=again)
        return property(lambda self: getattr(self._objective, name))

    names = [n for n in dir(objective) if not n.startswith("_")]
    return cast(O, type("Inside", (_Inside,), {n: forwarded(n) for n in names})(objective, run))


@runtime_checkable
class AnswersProbes(Protocol):
    """An operator that can give every example its own direction."""

    def answer(self, request: Tensor | Probes) -> Tensor:
        """H V for a matrix V [p, k]; for ``Probes`` the quadratic forms [units, count] described there."""
        ...


class FunctionOperator:
    """A symmetric operator on the CPU from a function ``v -> H v`` of vectors [``size``].

    ``matmat`` calls the function for one column after the other; override it where several at once are cheaper.
    """

    def __init__(self, matvec: Callable[[Tensor], Tensor], size: int, *, dtype: torch.dtype = torch.float64) -> None:
        self._matvec = matvec
        self.shape = (size, size)
        self.dtype = dtype
        self.device = torch.device("cpu")

    def matvec(self, v: Tensor) -> Tensor:
        """H v for v of shape [p]."""
        return self._matvec(v)

    def matmat(self, vs: Tensor) -> Tensor:
        """H V for V of shape [p, k]."""
        return torch.stack([self._matvec(v) for v in vs.unbind(1)], dim=1)


class DenseOperator:
    """A symmetric operator from a matrix [p, p], against which tests compare.

    Raises NumericalError for anything that is not a square matrix.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise NumericalError(f"operator: needs a square matrix, got shape {tuple(matrix.shape)}.")
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matvec(self, v: Tensor) -> Tensor:
        """H v for v of shape [p]."""
        return self.matrix @ v

    def matmat(self, vs: Tensor) -> Tensor:
        """H V for V of shape [p, k]."""
        return self.matrix @ vs


def solve(estimator: Estimator[T], operator: SymmetricOperator) -> T:
    """Run one estimator to its end on one operator and return its result.

    Raises NumericalError where the estimator asks for a trace weighted by the parameters' magnitudes and the operator
    has no parameters.
    """
    try:
        request = next(estimator)
        while True:
            request = estimator.send(_answer(operator, request))
    except StopIteration as stop:
        return stop.value


def _answer(operator: SymmetricOperator, request: Tensor | Probes) -> Tensor:
    if isinstance(request, Tensor):
        return operator.matmat(request)
    if isinstance(operator, AnswersProbes):
        return operator.answer(request)
    if request.weighted:
        raise NumericalError("operator: a weighted trace needs parameters, which this operator does not have.")
    if request.before_head:
        raise NumericalError("operator: a part of the trace needs a network, which this operator does not have.")
    shape = operator.shape[0], request.count
    v = rademacher(shape, request.generator, device=operator.device, dtype=operator.dtype)
    return (v * operator.matmat(v)).double().sum(0, keepdim=True)


def solve_together(
    estimators: Mapping[str, Estimator[T]],
    products: Callable[[dict[str, Tensor | Probes]], Mapping[str, Tensor]],
) -> dict[str, T]:
    """Run many estimators in lock step: each round calls ``products`` ONCE, with the open requests of all estimators.

    Args:
        estimators: name -> estimator, e.g. ``trace.per_example_steps(...)``, ``eigen.lanczos_steps(...)``.
        products: {name: request} -> {name: answer}; a request is V [p, k], answered by H V, or ``Probes``.

    Returns the results by name.
    """
    results: dict[str, T] = {}
    requests: dict[str, Tensor | Probes] = {}
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
    """|u'Hv - v'Hu| / (||u|| ||Hv|| + ||v|| ||Hu||) for random u and v, in [0, 1]; 0 up to rounding for a Hessian.

    A wrong derivative formula rarely gives symmetric Hessian-vector products, so that this check usually finds it, at
    the price of two products.

    Args:
        operator: shape [p, p].
        generator: draws u and v.
        rtol: the largest value allowed; default: the square root of the dtype's machine epsilon.

    Raises:
        NumericalError: a value above ``rtol``, or a product that is not finite.
    """
    uv = gaussian((operator.shape[0], 2), generator, device=operator.device, dtype=operator.dtype)
    huv = operator.matmat(uv)
    norms, hnorms = uv.norm(dim=0), huv.norm(dim=0)
    finite, a, b, scale = numbers(
        all_finite(huv), uv[:, 0] @ huv[:, 1], uv[:, 1] @ huv[:, 0], norms[0] * hnorms[1] + norms[1] * hnorms[0]
    )
    if not finite:
        raise NumericalError("operator: the product with a random vector is not finite.")
    gap = abs(a - b) / scale if scale > 0 else 0.0
    limit = torch.finfo(operator.dtype).eps ** 0.5 if rtol is None else rtol
    if gap > limit:
        raise NumericalError(
            f"operator: it is not symmetric. |u'Hv - v'Hu| / (||u|| ||Hv|| + ||v|| ||Hu||) is {gap:.1e} and may be at "
            f"most {limit:.1e}."
        )
    return gap
