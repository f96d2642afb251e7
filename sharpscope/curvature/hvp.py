"""The engine: exact Hessian-vector products of a loss, for every layer, out of one kept gradient graph.

For each batch there is ONE forward and ONE gradient with ``create_graph=True`` for all parameters; the product of layer
l's Hessian block with v is the derivative of <g_l, v> with respect to the layer's own parameters on that kept graph
(double backward, Pearlmutter 1994), and autograd prunes everything that does not lead from g_l to them. Of torch's
routes to a Hessian this is one of the few that are right through layer_norm (see tests/laws).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod

import psutil
import torch
from torch import Tensor

from sharpscope.curvature.kernels import ThirdDerivative, analytic_kernels
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError, NumericalError

__all__ = ["BlockSpec", "HessianEngine", "LayerHessian", "memory_in_use"]


@dataclass(frozen=True)
class BlockSpec:
    """Parameters that make one layer, flattened one after the other in the order of ``names``."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(prod(s) for s in self.shapes)

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def split(self, v: Tensor) -> list[Tensor]:
        """[p] -> tensors of the parameters' shapes."""
        return [part.view(shape) for part, shape in zip(v.split(self.sizes), self.shapes, strict=True)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes -> [p]."""
        return torch.cat([t.reshape(-1) for t in tensors])


@dataclass(frozen=True)
class _Graph:
    loss: Tensor
    gradient: dict[str, Tensor]


class HessianEngine:
    """Products with the Hessian blocks of ``objective`` at ``theta``, for all ``blocks`` at once.

    H = sum_i weights[i] * d^2 batch_loss(i) / d theta^2; block l is its diagonal block for the parameters of layer l.

    Args:
        objective: the loss, a mean over samples cut into batches.
        theta: named tensors; those named in a block become variables, all others are constants.
        blocks: layer name -> parameter names. Blocks may overlap (the whole model beside its layers).
        memory: bytes that kept graphs may take; where those of all batches need more, graphs are rebuilt batch by
            batch, once for every round of products. None: keep everything. The results are the same bits either way.
        analytic: run GELU, layer norm, attention and patch embedding with written-out second derivatives (see
            ``kernels``): a quarter cheaper, the same up to rounding. A loss that itself contains a gradient falls back.

    Raises:
        ConfigError: a block names a tensor that is not there or not floating.
        NumericalError: loss or gradient is not finite.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Mapping[str, Tensor],
        blocks: Mapping[str, Sequence[str]],
        *,
        memory: int | None = None,
        analytic: bool = True,
    ) -> None:
        self.objective, self.analytic = objective, analytic
        moving = list(dict.fromkeys(name for names in blocks.values() for name in names))
        for name in moving:
            if name not in theta or not theta[name].is_floating_point():
                raise ConfigError(f"layers: '{name}' is not a floating-point tensor of this model.")
        self.params = {name: theta[name].detach().clone().requires_grad_() for name in moving}
        self.theta = {**theta, **self.params}
        self.blocks = {
            layer: BlockSpec(tuple(names), tuple(self.params[n].shape for n in names))
            for layer, names in blocks.items()
        }
        first = next(iter(self.params.values()))
        self.dtype, self.device = first.dtype, first.device
        self.num_matvecs = dict.fromkeys(self.blocks, 0)
        self._graphs: list[_Graph | None] = [None] * len(objective.weights)
        self._build(memory)

    # ------------------------------------------------------------------ graphs
    def _graph(self, i: int) -> _Graph:
        kept = self._graphs[i]
        return kept if kept is not None else self._differentiate(i)

    def _differentiate(self, i: int) -> _Graph:
        with analytic_kernels() if self.analytic else nullcontext():
            loss = self.objective.batch_loss(i, self.theta)
        if loss.ndim != 0:
            raise ConfigError(f"loss: must be a scalar, got shape {tuple(loss.shape)}.")
        if not torch.isfinite(loss):
            raise NumericalError(f"loss of batch {i} is {loss.item()}: no curvature there.")
        try:
            grads = torch.autograd.grad(loss, list(self.params.values()), create_graph=True, allow_unused=True)
        except ThirdDerivative:  # the loss contains a gradient itself: only autograd's own formulas go that far
            self.analytic = False
            return self._differentiate(i)
        return _Graph(loss, {n: g for n, g in zip(self.params, grads, strict=True) if g is not None})

    def _build(self, memory: int | None) -> None:
        """One pass: loss and gradient, keeping as many graphs as ``memory`` allows (measured on the first)."""
        total = torch.zeros((), dtype=torch.float64)
        sums: dict[str, Tensor] = {}
        before = memory_in_use(self.device)
        keep = True
        self.graph_bytes = 0
        for i, weight in enumerate(self.objective.weights):
            graph = self._differentiate(i)
            total += weight * graph.loss.detach().double().cpu()
            for name, g in graph.gradient.items():
                part = weight * g.detach()
                sums[name] = sums[name] + part if name in sums else part
            if i == 0:
                self.graph_bytes = max(memory_in_use(self.device) - before, 0)
                keep = memory is None or self.graph_bytes * len(self.objective.weights) <= memory
            if keep:
                self._graphs[i] = graph
        self.kept = keep
        self.loss = total.item()
        self._gradient = sums
        if not all(torch.isfinite(g).all() for g in sums.values()):
            raise NumericalError("gradient of the loss is not finite: no curvature there.")
        self.unused = tuple(name for name in self.params if name not in sums)

    # ------------------------------------------------------------------ what estimators use
    def gradient(self, layer: str) -> Tensor:
        """The loss's gradient for one layer, [p]; zero where the loss does not depend on a parameter."""
        spec = self.blocks[layer]
        return spec.join([self._gradient.get(n, torch.zeros_like(self.params[n])) for n in spec.names])

    def weights(self, layer: str) -> Tensor:
        """The layer's parameters themselves, [p]."""
        spec = self.blocks[layer]
        return spec.join([self.params[n].detach() for n in spec.names])

    def products(self, requests: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H_ll V_l for every requested layer: {layer: [p_l, k_l]} -> the same shapes, in one pass over the batches."""
        sums: dict[str, Tensor] = {}
        for i, weight in enumerate(self.objective.weights):
            graph = self._graph(i)
            for layer, vectors in requests.items():
                part = weight * torch.stack([self._product(graph, layer, v) for v in vectors.unbind(1)], dim=1)
                sums[layer] = sums[layer] + part if layer in sums else part
            del graph
        for layer, vectors in requests.items():
            self.num_matvecs[layer] += vectors.shape[1]
        return sums

    def _product(self, graph: _Graph, layer: str, v: Tensor) -> Tensor:
        spec = self.blocks[layer]
        pairs = [
            (graph.gradient[n], part) for n, part in zip(spec.names, spec.split(v), strict=True) if n in graph.gradient
        ]
        # A gradient that does not depend on any parameter (a linear loss) has no graph: its second derivative is zero.
        pairs = [(g, part) for g, part in pairs if g.requires_grad]
        inputs = [self.params[n] for n in spec.names]
        if not pairs:
            return torch.zeros_like(v)
        outputs, cotangents = zip(*pairs, strict=True)
        products = torch.autograd.grad(
            outputs, inputs, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return spec.join(products)

    def operator(self, layer: str) -> LayerHessian:
        """The Hessian block of one layer as a SymmetricOperator."""
        return LayerHessian(self, layer)


class LayerHessian:
    """One layer's Hessian block H_ll, [p, p], as a symmetric operator."""

    def __init__(self, engine: HessianEngine, layer: str) -> None:
        self.engine, self.layer = engine, layer
        size = engine.blocks[layer].size
        self.shape = (size, size)
        self.dtype, self.device = engine.dtype, engine.device

    def matvec(self, v: Tensor) -> Tensor:
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, vs: Tensor) -> Tensor:
        return self.engine.products({self.layer: vs})[self.layer]

    def __repr__(self) -> str:
        return f"LayerHessian({self.layer!r}, size={self.shape[0]}, dtype={self.dtype})"


def memory_in_use(device: torch.device) -> int:
    """Bytes this process holds on ``device`` (resident set on a CPU, allocator's count on CUDA)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
