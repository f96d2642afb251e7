"""The diagonal of the Fisher information: the expected square of each example's gradient, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from sharpscope.curvature.ggn import class_cotangent, sign_cotangents

__all__ = ["FEW_CLASSES", "FisherDiagonal", "diagonal_fisher"]

FEW_CLASSES: Final = 20
"""Up to this many classes the expectation over labels is exact, with one backward pass for each class and example. A
larger bound costs more passes and makes the diagonal of sets with more classes exact."""


class Examples(Protocol):
    """A classifier's logits on examples in batches that can be cut into single examples (``clip.Probe``)."""

    @property
    def weights(self) -> Sequence[float]: ...

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor: ...

    def rebatched(self, batch_size: int) -> Examples: ...


@dataclass(frozen=True)
class FisherDiagonal:
    """The diagonal of the Fisher information F at one set of weights.

    ``values``: name -> float32 tensor of the weight's shape, >= 0. ``trace``: its sum. ``stderr``: the standard error
    of the trace over draws of examples (and of signs). ``exact``: whether the expectation over labels is exact. ``n``:
    the number of examples.
    """

    values: dict[str, Tensor]
    trace: float
    stderr: float
    exact: bool
    n: int


def diagonal_fisher(
    objective: Examples, theta: Mapping[str, Tensor], names: Sequence[str], *, seed: int = 0
) -> FisherDiagonal:
    """diag F with F = 1/n sum_j E_{y ~ p_j} [g_j(y) g_j(y)'] and g_j(y) the gradient of -log p_j(y).

    The labels are the model's own, y ~ p, as in the paper, not the data's: with true labels ("empirical Fisher") the
    gradients of a fine-tuned model that fits its training data vanish, and with them its say in a merge.

    For a softmax, E_y [g g'] = J' (diag(p) - p p') J with J the derivative of the logits. Up to ``FEW_CLASSES`` classes
    the sum over labels is taken exactly. For more, one backward pass for each example with the cotangent B e, where B
    B' = diag(p) - p p' and e are random signs, gives an unbiased estimate; unlike a label drawn from p, it does not
    miss the rare labels that hold most of F where the model is confident. One gradient is taken for each example, from
    batches of one, so that any module will do.

    Args:
        objective: logits of examples that can be cut into batches of one.
        theta: named tensors; ``names``: those whose Fisher information is wanted.
        seed: the seed of the signs.

    Sources: Matena and Raffel 2022, arXiv 2111.09832, section 3 (expectation over the model's labels); Kunstner,
    Balles, Hennig 2019, arXiv 1905.12558 (against the empirical Fisher); Schraudolph 2002,
    https://doi.org/10.1162/08997660260028683 (F = G, random cotangents).
    """
    single = objective.rebatched(1)
    params = {n: theta[n].detach().clone().requires_grad_() for n in names}
    generator = torch.Generator().manual_seed(seed)
    totals = {n: torch.zeros_like(t, dtype=torch.float64, requires_grad=False) for n, t in params.items()}
    each: list[float] = []
    exact = True
    for i in range(len(single.weights)):
        logits = single.batch_logits(i, {**theta, **params})
        p = logits.detach().softmax(1)
        exact = p.shape[1] <= FEW_CLASSES
        square = 0.0
        for cotangent, last in _cotangents(p, exact, generator):
            grads = torch.autograd.grad(
                logits, list(params.values()), cotangent, retain_graph=not last, allow_unused=True
            )
            for name, g in zip(params, grads, strict=True):
                if g is not None:
                    own = g.double().square()
                    totals[name] += own
                    square += float(own.sum())
        each.append(square)
    n = len(each)
    values = {name: (total / n).float() for name, total in totals.items()}
    spread = torch.tensor(each, dtype=torch.float64)
    stderr = float(spread.std() / math.sqrt(n)) if n > 1 else math.nan
    return FisherDiagonal(values, float(spread.mean()), stderr, exact, n)


def _cotangents(p: Tensor, exact: bool, generator: torch.Generator) -> Iterator[tuple[Tensor, bool]]:
    """(cotangent of the logits [1, C], whether it is the last) whose squared gradients sum to E_y [g g'] on average."""
    if not exact:
        yield sign_cotangents(p, generator), True
        return
    for c in range(p.shape[1]):
        yield class_cotangent(p, c), c + 1 == p.shape[1]
