"""The engine: exact Hessian-vector products of a loss, for every layer, from one gradient graph per batch.

For each batch there is ONE forward pass and ONE gradient with ``create_graph=True`` for all parameters. The product of
layer l's Hessian block with v is the derivative of <g_l, v> with respect to the layer's own parameters, taken on that
graph (double backward, Pearlmutter 1994); autograd skips every operation that does not lead from g_l to them. Of
torch's ways to compute a Hessian, this is one of the few that are correct through layer_norm (see tests/laws).
``torch.compile`` cannot be used: graphs that AOTAutograd compiles have no second backward, and torch 2.15 does not
report that (the gradient appears to have a graph, from which the parameters are missing).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sharpscope.curvature.double_backward import ThirdDerivative
from sharpscope.curvature.draws import skip_words
from sharpscope.curvature.forms import Forms
from sharpscope.curvature.graphs import (
    GradientGraph,
    MemoryPlan,
    Use,
    differentiate,
    graph_bytes,
    once_differentiable,
    plan_memory,
)
from sharpscope.curvature.needed import needed
from sharpscope.curvature.operator import Objective, Probes
from sharpscope.errors import ConfigError, NumericalError, listing, shown
from sharpscope.machine.devices import all_finite, numbers
from sharpscope.machine.team import team_of

__all__ = ["BlockSpec", "HessianEngine", "LayerHessian", "NoSecondDerivative", "looked_at"]


@dataclass(frozen=True)
class BlockSpec:
    """The parameters of one layer, flattened and concatenated in the order of ``names``."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each parameter, in the order of ``names``."""
        return tuple(prod(s) for s in self.shapes)

    @property
    def size(self) -> int:
        """p, the number of elements of the block."""
        return sum(self.sizes)

    def split(self, v: Tensor) -> list[Tensor]:
        """[p] -> tensors of the parameters' shapes."""
        return [part.view(shape) for part, shape in zip(v.split(self.sizes), self.shapes, strict=True)]

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes -> [p]."""
        return torch.cat([t.reshape(-1) for t in tensors])


def looked_at(losses: Sequence[Tensor], gradients: Mapping[str, Tensor]) -> list[float]:
    """The losses, followed by 1.0 if they and all gradients are finite and by 0.0 if not. The host waits for the device
    only once, here."""
    return numbers(*losses, all_finite(*losses, *gradients.values()))


class HessianEngine:
    """Products with the Hessian blocks of ``objective`` at ``theta``, for all ``blocks`` at once.

    H = sum_i weights[i] * d^2 batch_loss(i) / d theta^2; block l is its diagonal block for the parameters of layer l.
    The estimators take ``engine.operator(layer)``. ``engine.loss`` and ``engine.gradient(layer)`` cost nothing extra.

    Args:
        objective: the loss, a mean over samples cut into batches. If it also has ``batch_sizes`` (the number of
            examples in every batch), trace estimators can give every example its own direction. If it has a ``team``
            of several processes, each computes its own batches, and all get the same answers.
        theta: named tensors; those named in a block become variables, all others are constants.
        blocks: layer name -> parameter names. Blocks may overlap, for example the whole model and its layers.
        memory: bytes that gradient graphs may take (see ``plan_memory``); None: all graphs are kept. Where the graphs
            of all batches need more, only some are kept and the others are rebuilt in every round of products, with
            bit-identical results. Where a single graph needs more, batches become smaller, which changes the results
            by rounding only.
        analytic: run GELU, layer norm, attention and patch embedding with analytic second derivatives (see
            ``curvature.double_backward``), which costs a quarter less and gives the same results up to rounding. For a
            loss that itself contains a gradient, autograd's own formulas are used all the same.
        use: what will be asked for, products, ``Probes`` or both: what the graphs are built for. Anything else can
            still be asked for, takes longer, and graphs that are built again for it take more memory than planned.

    Raises:
        ConfigError: a block names a tensor that does not exist or is not floating-point, or the loss is not a scalar.
        NumericalError: the loss or its gradient is not finite.

    Source: Pearlmutter 1994, https://doi.org/10.1162/neco.1994.6.1.147.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Mapping[str, Tensor],
        blocks: Mapping[str, Sequence[str]],
        *,
        memory: int | None = None,
        analytic: bool = True,
        use: Use = "both",
    ) -> None:
        self.analytic, self.use = analytic, use
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
        kinds = sorted({str(t.dtype).removeprefix("torch.") for t in self.params.values()})
        if len(kinds) > 1:
            raise ConfigError(
                f"layers: parameters of several dtypes ({', '.join(kinds)}) have no second derivatives in common.\n"
                "Measure the module in one: module.float() (precision='bf16' computes products in bfloat16)."
            )
        first = next(iter(self.params.values()))
        self.dtype, self.device = first.dtype, first.device
        self.num_matvecs = dict.fromkeys(self.blocks, 0)
        self.units: dict[str, tuple[int, ...]] = {}
        """Layer -> how many rows each batch gave in the last answer to ``Probes``."""
        self.objective = self._prepared(objective)
        self.team = team_of(objective)
        batches = self.team.most(len(objective.weights))
        self.plan = MemoryPlan(None, 0, None, batches, batches)
        if memory is not None:
            self.objective, self.plan = plan_memory(self.objective, theta, moving, memory, use)
        self._own = self.team.own(len(self.objective.weights))
        self._graphs: list[GradientGraph | None] = [None] * len(self.objective.weights)
        self._forms = Forms(self)
        self._words: dict[str, list[int]] = {}
        """Layer -> the words of random signs that one direction takes in every batch; asked for by teams only."""
        self.once: frozenset[str] = frozenset()
        """Parameters whose gradient cannot be differentiated again (``graphs.once_differentiable``)."""
        self.twice = False
        """Whether the graphs allow Hessian-vector products. If not, everything for which ``use`` stands is answered by
        tangent passes."""
        self._build()

    def _prepared(self, objective: Objective) -> Objective:
        """The loss as its graphs are built from it: without the rows that it does not read."""
        return needed(objective, self.theta) if self.analytic else objective

    # ------------------------------------------------------------------ graphs
    @property
    def kept(self) -> bool:
        """Whether the graphs of all batches are kept, so that none is ever rebuilt."""
        return self.plan.kept == self.plan.batches

    @property
    def graph_bytes(self) -> int:
        """Bytes of the first batch's gradient graph.

        Raises ConfigError where the loss is not a scalar.
        """
        return graph_bytes(self.graph(0).tensors, self.theta.values())

    def graph(self, i: int, *, twice: bool = False) -> GradientGraph:
        """The graph of batch i, kept or rebuilt; ``twice``: one that products can be taken of.

        Raises ConfigError where the loss is not a scalar.
        """
        kept = self._graphs[i]
        if kept is not None and (kept.twice or not twice):
            return kept
        if twice and self.use == "probes":  # further products will follow: build the other graphs for them too
            self.use = "both"
        try:
            graph = differentiate(self.objective, i, self.theta, self.params, self.analytic, self.use)
        except ThirdDerivative:  # the loss itself contains a gradient, so that only autograd's own formulas suffice
            self.analytic = False
            return self.graph(i, twice=twice)
        if graph.twice:
            self.once |= once_differentiable(graph.gradient)
        if kept is not None:
            self._graphs[i] = graph
        return graph

    def _build(self) -> None:
        """Compute loss and gradient in one pass over the batches, and keep as many graphs as planned."""

        def part() -> tuple[tuple[list[float], bool, frozenset[str]], dict[str, Tensor]]:
            losses: list[Tensor] = []
            sums: dict[str, Tensor] = {}
            for k, i in enumerate(self._own):
                graph = self.graph(i)
                losses.append(graph.loss.detach())
                self.twice |= graph.twice
                for name, g in graph.gradient.items():
                    own = self.objective.weights[i] * g.detach()
                    sums[name] = sums[name] + own if name in sums else own
                if k < self.plan.kept:
                    self._graphs[i] = graph
                del graph  # before the next one is built
            return (looked_at(losses, sums), self.twice, self.once), sums

        found, sums = self.team.combine("the gradient", part)
        self.twice, self.once = any(twice for _, twice, _ in found), frozenset().union(*(once for *_, once in found))
        self._settle([looked for looked, *_ in found], sums)

    def _settle(self, looked: Sequence[Sequence[float]], sums: dict[str, Tensor]) -> None:
        """Store the loss and the gradient from what ``looked_at`` returned in every process; raise NumericalError where
        one of them is not finite."""
        values = [value for *losses, _ in looked for value in losses]
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise NumericalError(f"The loss of batch {i} is {value}, so that no curvature can be measured.")
        if not all(finite for *_, finite in looked) or (self.team.several and not all_finite(*sums.values())):
            raise NumericalError("The gradient of the loss is not finite, so that no curvature can be measured.")
        self.loss = sum(w * v for w, v in zip(self.objective.weights, values, strict=True))
        self._gradient = sums
        self.unused = tuple(name for name in self.params if name not in sums)

    # ------------------------------------------------------------------ what estimators use
    def gradient(self, layer: str) -> Tensor:
        """The loss's gradient for one layer, [p]; zero where the loss does not depend on a parameter."""
        spec = self.blocks[layer]
        return spec.join([self._gradient.get(n, torch.zeros_like(self.params[n])) for n in spec.names])

    def weights(self, layer: str) -> Tensor:
        """The values of the layer's parameters, [p]."""
        spec = self.blocks[layer]
        return spec.join([self.params[n].detach() for n in spec.names])

    def products(self, requests: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """H_ll V_l for every requested layer: {layer: [p_l, k_l]} -> the same shapes, in one pass over the batches.

        Raises ConfigError where the loss is not a scalar.
        """
        answers = self.answer({layer: (layer, request) for layer, request in requests.items()})
        return dict(answers)

    def answer(self, requests: Mapping[str, tuple[str, Tensor | Probes]]) -> dict[str, Tensor]:
        """Answer the requests of several estimators, {estimator: (layer, request)}, in one pass over the batches.

        A matrix V [p_l, k] is answered by H_ll V. ``Probes`` are answered by [units, count], whose column sums are
        independent unbiased estimates of the trace (see ``operator.Probes``): one row per example for the parameters
        that enter the forward pass linearly and once (see ``curvature.per_example``), one row per batch for the others.

        Raises ConfigError where the loss is not a scalar.
        """
        # Every column is contiguous in memory, so that its product has the same bits whatever the other requests are.
        columns = {
            who: [v.contiguous() for v in request.unbind(1)]
            for who, (_, request) in requests.items()
            if isinstance(request, Tensor)
        }
        self._count_words([layer for layer, request in requests.values() if isinstance(request, Probes)])
        found, sums = self.team.combine("products", lambda: self._part(requests, columns))
        units: dict[str, list[Tensor]] = {who: [] for who in requests if who not in columns}
        for parts, crossed in found:
            self._forms.crossed |= crossed
            for who in units:
                units[who] += [part.to(self.device) for part in parts[who]]
        self.units |= {requests[who][0]: tuple(len(part) for part in parts) for who, parts in units.items()}
        for layer, request in requests.values():
            self.num_matvecs[layer] += request.shape[1] if isinstance(request, Tensor) else request.count
        return sums | {who: torch.cat(parts) for who, parts in units.items()}

    def _part(
        self, requests: Mapping[str, tuple[str, Tensor | Probes]], columns: Mapping[str, Sequence[Tensor]]
    ) -> tuple[tuple[dict[str, list[Tensor]], frozenset[str]], dict[str, Tensor]]:
        """The answers of this process's batches: to ``Probes`` one entry per batch, to vectors (``columns``) their sum
        over the batches."""
        sums: dict[str, Tensor] = {}
        units: dict[str, list[Tensor]] = {who: [] for who in requests if who not in columns}
        for i, weight in enumerate(self.objective.weights):
            if i not in self._own:  # draw as many words as the owner does, so that all generators agree
                for who in units:
                    layer, request = requests[who]
                    assert isinstance(request, Probes)
                    skip_words(request.count * self._words[layer][i], request.generator)
                continue
            graph = self.graph(i, twice=bool(columns))
            for who, (layer, request) in requests.items():
                if isinstance(request, Tensor):
                    part = weight * self._columns_of(graph, layer, columns[who])
                    sums[who] = sums[who] + part if who in sums else part
                else:
                    units[who].append(weight * self._forms.of(i, graph, layer, request))
            del graph
        return (units, self._forms.crossed), sums

    def of_one_batch(self, layer: str, vs: Tensor) -> Tensor:
        """H_ll V [p, k] of the loss of one batch, the first that this process has.

        Raises ConfigError where the loss is not a scalar.
        """
        return self._columns_of(self.graph(self._own[0], twice=True), layer, vs.unbind(1))

    def _columns_of(self, graph: GradientGraph, layer: str, columns: Sequence[Tensor]) -> Tensor:
        return torch.stack([self._product(graph, layer, v) for v in columns], dim=1)

    def _count_words(self, layers: Sequence[str]) -> None:
        """Ask the other processes how many random words one direction of these layers takes in each of their
        batches."""
        new = [layer for layer in dict.fromkeys(layers) if layer not in self._words]
        if not self.team.several or not new:
            return

        def count(i: int) -> list[int]:
            graph = self.graph(i)
            return [self._forms.words(i, graph, layer) for layer in new]

        counts = self.team.each("words", len(self.objective.weights), count)
        self._words |= {layer: list(every) for layer, every in zip(new, zip(*counts, strict=True), strict=True)}

    def by_example(self, i: int) -> frozenset[str]:
        """The parameters that get a direction of each example's own in batch i (``Forms.alone``).

        Raises ConfigError where the loss of the batch is not a scalar.
        """
        return self._forms.alone(i, self.graph(i))

    def before_head(self) -> frozenset[str]:
        """The parameters that ``Probes.before_head`` can be asked of."""
        batches = len(self.objective.weights)
        return frozenset.intersection(
            *self.team.each("the head", batches, lambda i: self._forms.before_head(i, self.graph(i)))
        )

    def note(self, layer: str) -> str:
        """What a row of the layer's per-example trace has to say of its directions; empty where it is as usual."""
        crossed = self._forms.crossed.intersection(self.blocks[layer].names)
        return "the examples of a batch see each other: directions are shared by a batch" if crossed else ""

    def second(
        self, gradients: Sequence[Tensor], places: Sequence[Tensor], directions: Sequence[Tensor], layer: str
    ) -> tuple[Tensor, ...]:
        """The derivatives of <gradients, directions> at the places, zeros where there are none.

        Raises NoSecondDerivative with torch's own reason.
        """
        self._check_twice(layer)
        return _second(gradients, places, directions, layer) if gradients else ()

    def _check_twice(self, layer: str) -> None:
        if lost := self.once.intersection(self.blocks[layer].names):
            raise NoSecondDerivative(
                f"{layer}: torch has no second derivative here: the gradient of {listing(sorted(lost), 2)} comes "
                "through a backward that is marked once_differentiable."
            )

    def _product(self, graph: GradientGraph, layer: str, v: Tensor) -> Tensor:
        spec = self.blocks[layer]
        pairs = [
            (graph.gradient[n], part) for n, part in zip(spec.names, spec.split(v), strict=True) if n in graph.gradient
        ]
        # A gradient that does not depend on any parameter (a linear loss) has no graph: its second derivative is zero.
        pairs = [(g, part) for g, part in pairs if g.requires_grad]
        inputs = [self.params[n] for n in spec.names]
        self._check_twice(layer)
        if not pairs:
            return torch.zeros_like(v)
        outputs, cotangents = zip(*pairs, strict=True)
        products = self.second(outputs, inputs, cotangents, layer)
        return spec.join(products)

    def without_second_derivative(self) -> dict[str, str]:
        """{layer: torch's reason} of the layers whose gradient cannot be differentiated again in the first batch."""
        graph, reasons = self.graph(0, twice=True), {}
        for layer, spec in self.blocks.items():
            try:
                self._product(graph, layer, torch.ones(spec.size, dtype=self.dtype, device=self.device))
            except NoSecondDerivative as error:
                reasons[layer] = str(error)
        return reasons

    def operator(self, layer: str) -> LayerHessian:
        """The Hessian block of one layer as a SymmetricOperator."""
        return LayerHessian(self, layer)


def _second(
    gradients: Sequence[Tensor], places: Sequence[Tensor], directions: Sequence[Tensor], layer: str
) -> tuple[Tensor, ...]:
    """The derivatives of <gradients, directions> at the places, zeros where there are none.

    Raises NoSecondDerivative with torch's own reason.
    """
    try:
        return torch.autograd.grad(
            gradients, places, directions, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    except (ThirdDerivative, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # the derivative of ... is not implemented; once_differentiable; a compiled backward
        reason = shown(next(iter(str(error).splitlines()), ""), 200)
        raise NoSecondDerivative(f"{layer}: torch has no second derivative here: {reason}") from error


class NoSecondDerivative(NumericalError):  # noqa: N818 - what is missing
    """A layer whose gradient cannot be differentiated again; other layers may still have one."""


class LayerHessian:
    """One layer's Hessian block H_ll, [p, p], as a symmetric operator."""

    def __init__(self, engine: HessianEngine, layer: str) -> None:
        self.engine, self.layer = engine, layer
        size = engine.blocks[layer].size
        self.shape = (size, size)
        self.dtype, self.device = engine.dtype, engine.device

    def matvec(self, v: Tensor) -> Tensor:
        """H_ll v for v of shape [p]."""
        return self.matmat(v[:, None])[:, 0]

    def matmat(self, vs: Tensor) -> Tensor:
        """H_ll V for V of shape [p, k], in one pass over the batches."""
        return self.answer(vs)

    def answer(self, request: Tensor | Probes) -> Tensor:
        """H_ll V for a matrix V [p, k], or [units, count] for ``Probes``."""
        return self.engine.answer({self.layer: (self.layer, request)})[self.layer]

    def __repr__(self) -> str:
        return f"LayerHessian({self.layer!r}, size={self.shape[0]}, dtype={self.dtype})"
