"""Trace of the generalised Gauss-Newton blocks of a cross-entropy loss: the positive part of the curvature.

H = G + (second derivatives of the logits), G = sum_j w_j J_j' (diag(p_j) - p_j p_j') J_j with J_j the logits' Jacobian
of example j: positive semidefinite, so that it has a logarithm where the trace of an indefinite Hessian has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sharpscope.curvature.operator import Objective
from sharpscope.curvature.trace import TraceEstimate

__all__ = ["ClassificationObjective", "ggn_trace"]


class ClassificationObjective(Objective, Protocol):
    """A mean cross-entropy whose logits can be had."""

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        """What the softmax of batch i sees, [n_i, C]."""
        ...


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

    ``num_matvecs`` counts backward passes. Converged: stderr <= rtol * estimate.

    Source: Schraudolph 2002; Hutchinson 1990.
    """
    names = list(dict.fromkeys(n for block in blocks.values() for n in block))
    generator = torch.Generator().manual_seed(seed)
    samples = torch.zeros(0, len(blocks), dtype=torch.float64)
    wanted = min(max(pilot, 2), max_probes)
    while len(samples) < wanted:
        samples = torch.cat([samples, _probes(objective, theta, names, blocks, wanted - len(samples), generator)])
        if wanted > pilot or wanted == max_probes:
            break
        mean, stderr = samples.mean(0), samples.std(0) / math.sqrt(len(samples))
        ratio = torch.where(mean > 0, stderr / (rtol * mean), 0.0).max()
        wanted = int(min(math.ceil(len(samples) * float(ratio) ** 2), max_probes)) if ratio > 1 else wanted
    out = {}
    for k, layer in enumerate(blocks):
        value = float(samples[:, k].mean())
        error = float(samples[:, k].std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
        out[layer] = TraceEstimate(value, error, error <= rtol * value, len(samples))
    return out


def _probes(
    objective: ClassificationObjective,
    theta: Mapping[str, Tensor],
    names: Sequence[str],
    blocks: Mapping[str, Sequence[str]],
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """[count, blocks] samples of ||u_l||^2, batch outer and probe inner: one forward a batch."""
    params = {n: theta[n].detach().clone().requires_grad_() for n in names}
    full = {**theta, **params}
    totals = torch.zeros(count, len(blocks), dtype=torch.float64)
    for i, weight in enumerate(objective.weights):
        logits = objective.batch_logits(i, full)
        p = logits.detach().softmax(1)
        root = p.sqrt()
        for k in range(count):
            signs = torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8).to(p) * 2 - 1
            cotangent = root * signs - p * (root * signs).sum(1, keepdim=True)
            grads = torch.autograd.grad(
                logits, list(params.values()), cotangent, retain_graph=k + 1 < count, allow_unused=True
            )
            norms = {n: g.double().square().sum() for n, g in zip(names, grads, strict=True) if g is not None}
            for b, block in enumerate(blocks.values()):
                totals[k, b] += sum(float(norms[n]) for n in block if n in norms) * weight / len(p)
    return totals
