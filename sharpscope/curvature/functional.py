"""Hessian-vector products by torch.func: an independent second route, slower and without kept graphs.

H v = d/de grad L(theta + e v) at e = 0, that is ``jvp(grad)``, for several vectors at once by ``vmap``. Nothing is
kept between two products, and none of the kernels and graphs of ``HessianEngine`` is used. The products also exist
where a backward pass cannot be differentiated backwards again but can be differentiated forwards. ``jvp(grad)`` is
right through layer norm; other compositions (``jacrev``, ``torch.func.hessian``, ``grad(jvp)``) are silently wrong
there in torch 2.15 and are not used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature.draws import rademacher, skip_words, words_for
from sharpscope.curvature.graphs import MemoryPlan, Use
from sharpscope.curvature.hvp import HessianEngine, NoSecondDerivative, looked_at
from sharpscope.curvature.operator import Divisible, Objective, Probes
from sharpscope.errors import ConfigError, NumericalError, did_you_mean, shown
from sharpscope.vocabulary import Products

__all__ = ["FunctionalEngine", "engine_for"]

AT_ONCE = 8
"""The number of vectors whose products are computed together by ``vmap``. A larger number needs more memory."""


class FunctionalEngine(HessianEngine):
    """``HessianEngine`` with products by ``torch.func.jvp(torch.func.grad(...))``.

    ``Probes`` are answered with one direction per batch, because no graph tells the examples apart. ``memory`` and
    ``use`` are not needed, because no graph is kept. Arguments and errors are those of ``HessianEngine``.

    Source: Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147 (the derivative of the gradient along v).
    """

    def __init__(
        self,
        objective: Objective,
        theta: Mapping[str, Tensor],
        blocks: Mapping[str, Sequence[str]],
        *,
        memory: int | None = None,
        use: Use = "both",
    ) -> None:
        super().__init__(objective, theta, blocks)
        self.twice = True

    def _prepared(self, objective: Objective) -> Objective:
        return objective

    def _build(self) -> None:
        """Loss and gradient by first derivatives alone, in one pass over the batches."""
        batches = self.team.most(len(self.objective.weights))
        size = self.objective.batch_size if isinstance(self.objective, Divisible) else None
        self.plan = MemoryPlan(None, 0, size, batches, batches)

        def part() -> tuple[list[float], dict[str, Tensor]]:
            losses: list[Tensor] = []
            sums: dict[str, Tensor] = {}
            for i in self._own:
                loss = self.objective.batch_loss(i, self.theta)
                if loss.ndim != 0:
                    raise ConfigError(f"loss: must be a scalar, got shape {tuple(loss.shape)}.")
                losses.append(loss.detach())
                grads = torch.autograd.grad(loss, list(self.params.values()), allow_unused=True)
                for name, g in zip(self.params, grads, strict=True):
                    if g is not None:
                        own = self.objective.weights[i] * g
                        sums[name] = sums[name] + own if name in sums else own
            return looked_at(losses, sums), sums

        self._settle(*self.team.combine("the gradient", part))

    @property
    def graph_bytes(self) -> int:
        """Always 0, because this engine keeps no graph."""
        return 0

    def answer(self, requests: Mapping[str, tuple[str, Tensor | Probes]]) -> dict[str, Tensor]:
        """As ``HessianEngine.answer``; ``Probes`` have one row per batch.

        Raises NoSecondDerivative where torch has no forward derivative of the gradient, NumericalError for probes
        ``before_head``, which torch.func cannot tell from the others.
        """
        asked = {who: request for who, (_, request) in requests.items() if isinstance(request, Probes)}

        def part() -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
            sums: dict[str, Tensor] = {}
            units: dict[str, list[Tensor]] = {who: [] for who in asked}
            for i, weight in enumerate(self.objective.weights):
                if i not in self._own:  # draw as many words as the owner does, so that all generators agree
                    for who, probes in asked.items():
                        skip_words(words_for(self.blocks[requests[who][0]].size * probes.count), probes.generator)
                    continue
                for who, (layer, request) in requests.items():
                    if isinstance(request, Tensor):
                        own = weight * self._functional(i, layer, request)
                        sums[who] = sums[who] + own if who in sums else own
                    else:
                        units[who].append(weight * self._form(i, layer, request))
            return units, sums

        found, sums = self.team.combine("products", part)
        units = {who: [one.to(self.device) for parts in found for one in parts[who]] for who in asked}
        self.units |= {requests[who][0]: (1,) * len(parts) for who, parts in units.items()}
        for layer, request in requests.values():
            self.num_matvecs[layer] += request.shape[1] if isinstance(request, Tensor) else request.count
        return sums | {who: torch.stack(parts) for who, parts in units.items()}

    def of_one_batch(self, layer: str, vs: Tensor) -> Tensor:
        """As ``HessianEngine.of_one_batch``."""
        return self._functional(self._own[0], layer, vs)

    def _form(self, i: int, layer: str, probes: Probes) -> Tensor:
        """v'Hv of batch i's loss along ``probes.count`` directions that its examples share, float64 [count]."""
        if probes.before_head:
            raise NumericalError(f"{layer}: torch.func cannot separate the curvature of the embeddings from the rest.")
        v = rademacher((self.blocks[layer].size, probes.count), probes.generator).to(self.device, self.dtype)
        v = v * self.weights(layer).abs()[:, None] if probes.weighted else v
        return (v * self._functional(i, layer, v)).double().sum(0)

    def _functional(self, i: int, layer: str, vs: Tensor) -> Tensor:
        """H_i V for batch i's loss and V [p, k]."""
        spec = self.blocks[layer]
        fixed = {n: t.detach() for n, t in self.theta.items()}
        own = tuple(fixed[n] for n in spec.names)

        def loss(*tensors: Tensor) -> Tensor:
            return self.objective.batch_loss(i, {**fixed, **dict(zip(spec.names, tensors, strict=True))})

        gradient: Any = torch.func.grad(loss, argnums=tuple(range(len(own))))

        def product(v: Tensor) -> Tensor:
            return spec.join(torch.func.jvp(gradient, own, tuple(spec.split(v)))[1])

        try:
            with warnings.catch_warnings():  # torch scripts its forward derivatives when they are first used
                warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
                warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
                parts = [self._columns(product, part) for part in vs.split(AT_ONCE, dim=1)]
        except (torch.OutOfMemoryError, ConfigError):
            raise
        except RuntimeError as error:
            reason = shown(next(iter(str(error).splitlines()), ""), 200)
            raise NoSecondDerivative(f"{layer}: torch.func has no second derivative here: {reason}") from error
        return torch.cat(parts, dim=1).detach()

    @staticmethod
    def _columns(product: Any, vs: Tensor) -> Tensor:
        """Products with the columns of V [p, k], together where ``vmap`` can batch the loss's operations."""
        if vs.shape[1] > 1:
            try:
                together: Tensor = torch.func.vmap(product, in_dims=1, out_dims=1)(vs)
                return together
            except RuntimeError:  # an operation without a batching rule: one column after the other
                pass
        return torch.stack([product(v) for v in vs.unbind(1)], dim=1)

    def without_second_derivative(self) -> dict[str, str]:
        """{layer: torch's reason} of the layers without a product in the first batch."""
        reasons = {}
        for layer, spec in self.blocks.items():
            try:
                self._functional(0, layer, torch.ones(spec.size, 1, dtype=self.dtype, device=self.device))
            except NoSecondDerivative as error:
                reasons[layer] = str(error)
        return reasons


_ENGINES: dict[str, type[HessianEngine]] = {"graph": HessianEngine, "func": FunctionalEngine}


def engine_for(products: Products) -> type[HessianEngine]:
    """The engine of a way to compute products: graph | func.

    Raises ConfigError for another word.
    """
    if products not in _ENGINES:
        near = did_you_mean(str(products), _ENGINES)
        raise ConfigError(f"products: '{shown(products, 60)}' is none of {', '.join(_ENGINES)}.{near}")
    return _ENGINES[products]
