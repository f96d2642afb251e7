"""Relative flatness: the Hessian's trace weighted by the inner products of a layer's neurons."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sharpscope.curvature.hvp import BlockSpec
from sharpscope.curvature.measures.own import LayerAt, LayerValue, taken_by_layer
from sharpscope.curvature.operator import Estimator, FunctionOperator, SymmetricOperator, solve
from sharpscope.curvature.trace import TraceEstimate, hutchinson_steps, hutchpp_steps, xtrace_steps

__all__ = ["NeuronWeighted", "take"]

_METHODS: dict[str, Callable[..., Estimator[TraceEstimate]]] = {
    "hutchinson": hutchinson_steps,
    "hutchpp": hutchpp_steps,
}
"""The trace methods that see an operator only; for the others, whose directions belong to examples, XTrace is used."""


class NeuronWeighted(FunctionOperator):
    """M'HM for the weight matrices W [d, m] of a block, whose trace is the block's relative flatness.

    sum_{s,t} <w_s, w_t> tr H_st, over the rows w_s of W and the m x m blocks H_st of the Hessian in rows s and t,
    equals the trace of M'HM with M: Z -> W Z for Z [m, m]. Where d < m the same trace is that of S H S with
    S: Z -> (W W')^(1/2) Z for Z [d, m], which is smaller. A tensor of more than two dimensions (a convolution) is a
    matrix with one row per output channel. Vectors (biases, gains of norms) have no neurons and count 0.
    """

    def __init__(self, operator: SymmetricOperator, spec: BlockSpec, weights: Tensor) -> None:
        self._operator = operator
        self._places: list[tuple[slice, Tensor, tuple[int, int]]] = []  # (place in the block, factor, shape of Z)
        start = size = 0
        for shape, count, w in zip(spec.shapes, spec.sizes, spec.split(weights), strict=True):
            if len(shape) > 1 and count:
                w = w.reshape(shape[0], -1)
                d, m = w.shape
                factor = w if m <= d else _root(w @ w.mT)
                self._places.append((slice(start, start + count), factor, (factor.shape[1], m)))
                size += factor.shape[1] * m
            start += count
        super().__init__(self._weighted, size, dtype=operator.dtype)
        self.device, self._rows = operator.device, start

    def matmat(self, vs: Tensor) -> Tensor:
        """M'HM V for V [p, k], in one pass over the batches."""
        moved = vs.new_zeros(self._rows, vs.shape[1])
        sizes = [a * b for _, _, (a, b) in self._places]
        for part, (place, factor, shape) in zip(vs.split(sizes), self._places, strict=True):
            moved[place] = torch.einsum("da,abk->dbk", factor, part.view(*shape, -1)).reshape(-1, vs.shape[1])
        product = self._operator.matmat(moved)
        parts = [
            torch.einsum("da,dbk->abk", factor, product[place].view(len(factor), shape[1], -1)).reshape(-1, vs.shape[1])
            for place, factor, shape in self._places
        ]
        return torch.cat(parts)

    def _weighted(self, v: Tensor) -> Tensor:
        return self.matmat(v[:, None])[:, 0]


def _root(gram: Tensor) -> Tensor:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors @ (values.clamp_min(0).sqrt()[:, None] * vectors.mT)


def relative_flatness(layer: LayerAt) -> LayerValue:
    """sum_W sum_{s,t} <w_s, w_t> tr H_st over the layer's weight matrices W with rows w_s; layers add up.

    It does not change when a layer's rows are mixed by an invertible matrix that the next layer undoes: rescaled
    neurons of a ReLU network, or W_q -> A W_q with W_k -> A^-T W_k in attention. A query-key-value tensor in one piece
    counts as one matrix, and a matrix that is stored transposed (open_clip's ``proj``) has its inputs as rows. A layer
    without a matrix has the value 0. The trace is estimated by the study's trace method where that sees operators only
    (hutchinson, hutchpp), else by XTrace.

    Source: Petzka, Kamp, Adilova, Sminchisescu and Boley 2021, arXiv 2001.00939 (kappa_Tr).
    """
    spec = layer.operator.engine.blocks[layer.name]
    if all(len(shape) < 2 for shape in spec.shapes):
        return LayerValue(0.0, stderr=0.0)
    settings = layer.settings
    operator = NeuronWeighted(layer.operator, spec, layer.weights)
    steps = _METHODS.get(settings.trace_method, xtrace_steps)(
        operator.shape[0], seed=layer.seed, dtype=operator.dtype, device=operator.device, rtol=settings.rtol,
        max_matvecs=settings.max_matvecs,
    )  # fmt: skip
    found = solve(steps, operator)
    stderr = found.stderr if math.isfinite(found.estimate) else math.nan
    return LayerValue(found.estimate, stderr=stderr, converged=found.converged, num_matvecs=found.num_matvecs)


take = taken_by_layer(relative_flatness=relative_flatness)
