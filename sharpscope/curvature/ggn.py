"""The positive part of the curvature of a cross-entropy loss: generalised Gauss-Newton and Fisher, per layer.

H = G + R with G = sum_j w_j J_j' (diag(p_j) - p_j p_j') J_j, J_j the logits' Jacobian of example j: positive
semidefinite, so that it has a logarithm where the trace of an indefinite Hessian has none. R holds the curvature of the
logits themselves, sum_jc w_j (p_jc - y_jc) d^2 f_jc. For a softmax the Fisher information, E over labels drawn from p
of the gradient's outer product, is G (Martens 2020, arXiv 1412.1193).

``GaussNewton``, ``Fisher`` and ``Residual`` are losses whose Hessian AT the point where they are evaluated is that
matrix: given to ``hvp.HessianEngine`` they become operators per layer that every estimator takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sharpscope.curvature.operator import Divisible, Estimator, Objective
from sharpscope.curvature.trace import TraceEstimate
from sharpscope.seeds import derive

__all__ = [
    "ClassificationObjective",
    "Fisher",
    "GaussNewton",
    "Residual",
    "fisher_trace",
    "ggn_trace",
    "with_control",
]

EXACT_COST = 3
"""What a backward pass example by example costs at least, in backward passes of whole batches."""


class ClassificationObjective(Objective, Protocol):
    """A mean cross-entropy whose logits can be had."""

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """What the softmax of batch i sees, [n_i, C]."""
        ...

    def batch_labels(self, i: int) -> Tensor:
        """The classes of batch i, int64 [n_i]."""
        ...


# ------------------------------------------------------------------ as operators
@dataclass(frozen=True)
class _OfLogits:
    """Cut into the batches of ``objective``."""

    objective: ClassificationObjective

    @property
    def weights(self) -> Sequence[float]:
        return self.objective.weights

    @property
    def batch_sizes(self) -> Sequence[int]:
        sizes: Sequence[int] = self.objective.batch_sizes  # type: ignore[attr-defined]  # where it knows them
        return sizes


@dataclass(frozen=True)
class GaussNewton(_OfLogits):
    """1/2 mean_j d_j' (diag(p_j) - p_j p_j') d_j with d = f(theta) - f, p constant: its Hessian is G, its value 0."""

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        logits = self.objective.batch_logits(i, theta)
        p, d = logits.detach().softmax(1), logits - logits.detach()
        return ((p * d * d).sum() - (p * d).sum(1).square().sum()) / (2 * len(p))


@dataclass(frozen=True)
class Fisher(_OfLogits):
    """1/2 mean_js ((p_j - e_js)' d_j)^2, e_js one-hot: ``samples`` labels for each example, drawn from p.

    Its Hessian is the Monte Carlo Fisher information, with G as its mean over seeds; ``samples`` None takes the mean
    over all classes, which is G itself. ``empirical``: the examples' own labels instead, which is no estimate of the
    Fisher information away from a perfect fit (Kunstner, Balles, Hennig 2019, arXiv 1905.12558).
    """

    samples: int | None = None
    seed: int = 0
    empirical: bool = False

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        if self.samples is None and not self.empirical:
            return GaussNewton(self.objective).batch_loss(i, theta)
        logits = self.objective.batch_logits(i, theta)
        p, d = logits.detach().softmax(1), logits - logits.detach()
        if self.empirical:
            drawn = self.objective.batch_labels(i)[:, None]
        else:
            drawn = _labels(p, self.samples or 1, torch.Generator().manual_seed(derive(self.seed, "fisher", i)))
        slopes = (p * d).sum(1, keepdim=True) - d.gather(1, drawn)
        return slopes.square().mean() / 2


@dataclass(frozen=True)
class Residual(_OfLogits):
    """mean_j (p_j - y_j)' f_j(theta) with p constant: its gradient is the loss's own, its Hessian R = H - G."""

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        logits = self.objective.batch_logits(i, theta)
        labels = self.objective.batch_labels(i)[:, None]
        p = logits.detach().softmax(1)
        return ((p * logits).sum() - logits.gather(1, labels).sum()) / len(p)


def with_control(
    estimator: Estimator[TraceEstimate], control: TraceEstimate, *, rtol: float
) -> Estimator[TraceEstimate]:
    """tr H = tr G + tr(H - G): an estimator of tr R, sent products of ``Residual``, with ``control`` = tr G added.

    The errors are independent and add up in squares; ``converged``: the whole error is at most ``rtol`` times the sum.
    ``num_matvecs`` counts the products with R only (tr G costs one backward pass a probe for ALL layers together).
    benchmarks/control_variate.py says what it saves: 1.3 to 13 times fewer products on the embedded world, and all of
    them for a head that the logits are linear in.
    """
    rest = yield from estimator
    value, stderr = control.estimate + rest.estimate, math.hypot(control.stderr, rest.stderr)
    return TraceEstimate(value, stderr, stderr <= rtol * abs(value), rest.num_matvecs)


# ------------------------------------------------------------------ traces
def ggn_trace(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    *,
    seed: int,
    rtol: float = 0.05,
    max_probes: int = 100,
    pilot: int = 8,
) -> dict[str, TraceEstimate]:
    """tr G_ll for every block at the price of one backward pass a probe, all blocks together.

    With B B' = diag(p) - p p', B = diag(sqrt p) - p sqrt(p)', and independent signs e, u = J' B e has E||u_l||^2 = tr
    G_ll: one backward of <logits, B e> gives u for all parameters, without the cross-layer terms of a shared Hessian
    probe. The number of probes follows from a pilot, as in ``trace.hutchinson``, for the block that needs most.

    Few classes: where more than ``EXACT_COST`` probes a class would be needed (and allowed) and the objective can be
    cut into single examples, sum_jc ||J_j' b_jc||^2 is taken over all examples and classes instead, without error.

    ``num_matvecs`` counts backward passes over the data. Converged: stderr <= rtol * estimate.

    Source: Schraudolph 2002; Hutchinson 1990.
    """
    return _square_trace(objective, theta, blocks, _signs, seed, rtol, max_probes, pilot)


def fisher_trace(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    *,
    seed: int,
    rtol: float = 0.05,
    max_probes: int = 100,
    pilot: int = 8,
) -> dict[str, TraceEstimate]:
    """tr of the Fisher information E_{y ~ p}[g g'] of every block, labels drawn from the model's own p.

    One draw of a label for every example gives u = J'(p - e_y) with E||u_l||^2 = tr F_ll, as different examples' terms
    are independent with mean 0. For a softmax tr F = tr G: two estimators of one number, stopped and made exact for few
    classes in the same way.

    Source: Amari 1998; Kunstner, Balles, Hennig 2019, arXiv 1905.12558.
    """
    return _square_trace(objective, theta, blocks, _scores, seed, rtol, max_probes, pilot)


Draw = Callable[[Tensor, torch.Generator], Tensor]


def _signs(p: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8).to(p) * 2 - 1
    root = p.sqrt() * signs
    return root - p * root.sum(1, keepdim=True)


def _scores(p: Tensor, generator: torch.Generator) -> Tensor:
    return p.scatter_add(1, _labels(p, 1, generator), -torch.ones_like(p[:, :1]))


def _labels(p: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[n, count] classes drawn from the rows of p, by the inverse of their distribution function."""
    u = torch.rand(len(p), count, generator=generator, dtype=torch.float64).to(p.device)
    cumulative = p.double().cumsum(1)
    return torch.searchsorted(cumulative, u * cumulative[:, -1:]).clamp_(max=p.shape[1] - 1)


def _square_trace(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    draw: Draw,
    seed: int,
    rtol: float,
    max_probes: int,
    pilot: int,
) -> dict[str, TraceEstimate]:
    squares = _Squares(theta, blocks)
    generator = torch.Generator().manual_seed(seed)
    samples = torch.zeros(0, len(blocks), dtype=torch.float64)
    wanted = min(max(pilot, 2), max_probes)
    while len(samples) < wanted:
        more, classes = squares.sampled(objective, wanted - len(samples), lambda p: draw(p, generator))
        samples = torch.cat([samples, more])
        if wanted > pilot or wanted == max_probes:
            break
        mean, stderr = samples.mean(0), samples.std(0) / math.sqrt(len(samples))
        ratio = torch.where(mean > 0, stderr / (rtol * mean), 0.0).max()
        wanted = int(min(math.ceil(len(samples) * float(ratio) ** 2), max_probes)) if ratio > 1 else wanted
        if wanted > EXACT_COST * classes and isinstance(objective, Divisible):
            exact = squares.exact(objective.rebatched(1))  # type: ignore[arg-type]
            spent = len(samples) + classes
            return {x: TraceEstimate(v, 0.0, math.isfinite(v), spent) for x, v in zip(blocks, exact, strict=True)}
    out = {}
    for k, layer in enumerate(blocks):
        value = float(samples[:, k].mean())
        error = float(samples[:, k].std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
        out[layer] = TraceEstimate(value, error, error <= rtol * value, len(samples))
    return out


class _Squares:
    """||J' c||^2 of every block for cotangents c of the logits; everything stays on the device until the end."""

    def __init__(self, theta: Mapping[str, Tensor], blocks: Mapping[str, Sequence[str]]) -> None:
        names = list(dict.fromkeys(n for block in blocks.values() for n in block))
        self.params = {n: theta[n].detach().clone().requires_grad_() for n in names}
        self.theta = {**theta, **self.params}
        rows = [[float(n in set(block)) for n in names] for block in blocks.values()]
        self.members = torch.tensor(rows, dtype=torch.float64)

    def of(self, logits: Tensor, cotangent: Tensor, *, last: bool) -> Tensor:
        """[blocks], float64, on the device."""
        grads = torch.autograd.grad(
            logits, list(self.params.values()), cotangent, retain_graph=not last, allow_unused=True
        )
        zero = torch.zeros((), dtype=torch.float64, device=logits.device)
        norms = [zero if g is None else torch.linalg.vector_norm(g, dtype=torch.float64).square() for g in grads]
        return self.members.to(logits.device) @ torch.stack(norms)

    def sampled(
        self, objective: ClassificationObjective, count: int, draw: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, int]:
        """[count, blocks] samples, batch outer and probe inner (one forward a batch), and the number of classes."""
        totals: list[Tensor | float] = [0.0] * count
        classes = 0
        for i, weight in enumerate(objective.weights):
            logits = objective.batch_logits(i, self.theta)
            p, classes = logits.detach().softmax(1), logits.shape[1]
            for k in range(count):
                totals[k] = totals[k] + self.of(logits, draw(p), last=k + 1 == count) * (weight / len(p))
        return torch.stack([torch.as_tensor(t) for t in totals]).cpu(), classes

    def exact(self, singles: ClassificationObjective) -> list[float]:
        """sum_jc w_j ||J_j' b_jc||^2, example by example and class by class."""
        total = torch.zeros(len(self.members), dtype=torch.float64)
        for j, weight in enumerate(singles.weights):
            logits = singles.batch_logits(j, self.theta)
            p, classes = logits.detach().softmax(1), logits.shape[1]
            parts = []
            for c in range(classes):
                column = (torch.nn.functional.one_hot(torch.tensor([c], device=p.device), classes) - p) * p[:, c].sqrt()
                parts.append(self.of(logits, column, last=c + 1 == classes))
            total += weight * torch.stack(parts).sum(0).cpu()
        return total.tolist()
