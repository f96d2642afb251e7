"""v'Hv of one batch's loss, example by example: by tangents where the network allows it, else by double backward."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sharpscope.curvature.draws import SignStream, rademacher, words_for
from sharpscope.curvature.graphs import GradientGraph
from sharpscope.curvature.operator import Objective, Probes
from sharpscope.curvature.per_example import Signs, stands_alone
from sharpscope.curvature.tangents import stands_apart
from sharpscope.errors import NumericalError

__all__ = ["Forms"]

TOGETHER = 2**25
"""The largest number of signs that are unpacked at once, 128 MiB in float32. With a larger value the directions of
larger layers are drawn faster and take more memory."""


class _Block(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...


class _Engine(Protocol):
    """What the forms need of ``hvp.HessianEngine``."""

    objective: Objective
    params: dict[str, Tensor]
    dtype: torch.dtype
    device: torch.device

    @property
    def blocks(self) -> Mapping[str, _Block]: ...

    def graph(self, i: int, *, twice: bool = False) -> GradientGraph: ...

    def second(
        self, gradients: Sequence[Tensor], places: Sequence[Tensor], directions: Sequence[Tensor], layer: str
    ) -> tuple[Tensor, ...]: ...


class Forms:
    """The answers of an engine to ``Probes``.

    A layer all of whose parameters have directions of each example's own is answered by ONE forward tangent pass
    (``curvature.tangents``) where all operations behind it have a known second derivative, and by double backward where
    not. Which of the two it is follows from the forward pass of the batch. Both take the same directions from the
    generator, so that they agree up to rounding.

    ``crossed``: the parameters at whose places examples were found to see each other; they have shared directions.
    """

    def __init__(self, engine: _Engine) -> None:
        # A proxy: an engine that nobody holds any more is freed with its graphs at once, not by some later collection.
        self._engine: _Engine = weakref.proxy(engine)
        self._alone: dict[int, frozenset[str]] = {}
        self._apart: dict[int, frozenset[str]] = {}
        self._drawn: dict[tuple[int, str], list[int]] = {}
        """(batch, layer) -> the number of signs in each of the requests that make one direction."""
        self.crossed: frozenset[str] = frozenset()

    def of(self, i: int, graph: GradientGraph, layer: str, probes: Probes) -> Tensor:
        """v'Hv of batch i's mean loss along ``probes.count`` directions, float64 [units, count]."""
        alone, one = self.alone(i, graph), self._by_tangents
        if not self._tangential(i, graph, layer):
            if probes.before_head:
                raise NumericalError(f"{layer}: its curvature cannot be split at the embeddings.")
            one = self._by_products
            graph = graph if graph.twice else self._engine.graph(i, twice=True)
        found = []
        for _ in range(probes.count):
            signs = self._signs(probes, self._drawn.get((i, layer), ()))
            found.append(one(graph, layer, probes, signs, alone))
            self._drawn[i, layer] = signs.taken
        return torch.stack(found, dim=1)

    def words(self, i: int, graph: GradientGraph, layer: str) -> int:
        """How many words of random signs one direction of the layer takes in batch i, whatever else is asked of it."""
        alone, taken = self.alone(i, graph), [0]

        def counted(*shape: int) -> Tensor:
            taken.append(words_for(math.prod(shape)))
            return torch.ones((), dtype=self._engine.dtype, device=self._engine.device).expand(shape)

        if self._tangential(i, graph, layer):
            self._seeds(graph, layer, counted, weighted=False)
        else:
            graph = graph if graph.twice else self._engine.graph(i, twice=True)
            self._directions(graph, layer, counted, alone, weighted=False)
        return sum(taken)

    def before_head(self, i: int, graph: GradientGraph) -> frozenset[str]:
        """The parameters of batch i that ``Probes.before_head`` can be asked of."""
        self.alone(i, graph)
        return self._apart.get(i, frozenset()) & (
            graph.tangents.before_head if graph.tangents is not None else frozenset()
        )

    # ------------------------------------------------------------------ whose directions are whose
    def alone(self, i: int, graph: GradientGraph) -> frozenset[str]:
        """The parameters that get a direction of each example's own in batch i.

        Verified in every batch before its first use, since another batch may have other examples in it: batch norm in
        training mode, a contrastive loss, a graph's edges, a text tower or tokens in the first dimension all show. A
        tangent pass verifies what tangents cover (``stands_apart``), two products the rest (``stands_alone``), each for
        all layers together. In a batch of one example there is nothing to see; where all batches are such, shared
        directions are as good and cheaper.
        """
        if i not in self._alone:
            sizes: Sequence[int] = getattr(self._engine.objective, "batch_sizes", ())
            self._alone[i] = frozenset() if max(sizes, default=1) == 1 else self._verified(i, graph)
        return self._alone[i]

    def _verified(self, i: int, graph: GradientGraph) -> frozenset[str]:
        tangents, like = graph.tangents, graph.loss.detach()
        apart = tangents is not None and (tangents.examples == 1 or stands_apart(tangents, like))
        self._apart[i] = tangents.names & graph.tapped if tangents is not None and apart else frozenset()
        if graph.tapped <= self._apart[i]:
            return graph.tapped
        graph = graph if graph.twice else self._engine.graph(i, twice=True)
        pairs = [(tap, g) for tap, g in graph.taps if g.requires_grad]
        if not pairs or len(pairs[0][0].y) == 1:
            return graph.tapped
        generator = torch.Generator().manual_seed(0)
        alone = stands_alone(
            [g for _, g in pairs], [tap.y for tap, _ in pairs],
            lambda g: rademacher(g.shape, generator, device=g.device, dtype=g.dtype), len(pairs[0][0].y),
        )  # fmt: skip
        crossed = {name for (tap, _), own in zip(pairs, alone, strict=True) if not own for name in tap.names}
        self.crossed |= crossed
        return graph.tapped - crossed

    # ------------------------------------------------------------------ one direction for every example
    def _tangential(self, i: int, graph: GradientGraph, layer: str) -> bool:
        """Whether the layer is answered by a tangent pass in batch i, of which ``alone`` has been asked."""
        names = frozenset(self._engine.blocks[layer].names).intersection(graph.gradient)
        return graph.tangents is not None and bool(names) and names <= self._apart.get(i, frozenset())

    def _signs(self, probes: Probes, ahead: Sequence[int]) -> SignStream:
        """The signs of one direction; they are drawn together where they are known and not too many."""
        together = ahead if sum(ahead) <= TOGETHER else ()
        return SignStream(probes.generator, self._engine.device, self._engine.dtype, together)

    def _seeds(self, graph: GradientGraph, layer: str, signs: Signs, *, weighted: bool) -> dict[int, Tensor]:
        """The tangents of one direction at the outputs of the layer's taps, by slot."""
        assert graph.tangents is not None
        names = frozenset(self._engine.blocks[layer].names)
        return {
            slot: tap.tangent(signs, names.intersection(tap.names), weighted)
            for slot, tap in graph.tangents.taps(names)
        }

    def _by_tangents(
        self, graph: GradientGraph, layer: str, probes: Probes, signs: Signs, alone: frozenset[str]
    ) -> Tensor:
        """[examples]; no unit at all where the second derivative is 0 by construction."""
        assert graph.tangents is not None
        names = frozenset(self._engine.blocks[layer].names)
        seeds = self._seeds(graph, layer, signs, weighted=probes.weighted)
        if not seeds or (probes.before_head and not graph.tangents.bends(seeds)):
            return torch.zeros(0, dtype=torch.float64, device=self._engine.device)
        near = graph.tangents.means(names) if probes.before_head and not probes.weighted else ()
        return graph.tangents.forms(seeds, before_head=probes.before_head, near=near).sum(0)

    def _by_products(
        self, graph: GradientGraph, layer: str, probes: Probes, signs: Signs, alone: frozenset[str]
    ) -> Tensor:
        """Split into parts that add up to v'Hv, [parts].

        There is one part per example from the parameters whose examples can be separated, then one part from all
        other parameters together.
        """
        engine = self._engine
        pairs, examples = self._directions(graph, layer, signs, alone, weighted=probes.weighted)
        places, gradients, directions = zip(*pairs, strict=True) if pairs else ((), (), ())
        products = engine.second(gradients, places, directions, layer)
        if not pairs:  # no unit at all: the second derivative is 0 by construction, not by what was drawn
            return torch.zeros(0, dtype=torch.float64, device=engine.device)
        forms = [(v * hv).double() for v, hv in zip(directions, products, strict=True)]
        parts = [f.flatten(1).sum(1) for f in forms[:examples]]
        rest = [f.sum() for f in forms[examples:]]
        out = [torch.stack(parts).sum(0)] if parts else []
        return torch.cat([*out, torch.stack(rest).sum().view(1)] if rest else out)

    def _directions(
        self, graph: GradientGraph, layer: str, signs: Signs, alone: frozenset[str], *, weighted: bool
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], int]:
        """(tensor, gradient with respect to it, direction) of every place that one direction moves.

        Those where the examples have directions of their own come first; their number is returned with them.
        """
        engine, names = self._engine, self._engine.blocks[layer].names
        tapped = alone.intersection(names)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        for tap, g in graph.taps if tapped else ():
            if g.requires_grad and (moving := tapped.intersection(tap.names)):
                pairs.append((tap.y, g, tap.tangent(signs, moving, weighted)))
        examples = len(pairs)
        for name in names:
            if name not in tapped and name in graph.gradient and graph.gradient[name].requires_grad:
                v = signs(*engine.params[name].shape)
                v = v * engine.params[name].detach().abs() if weighted else v
                pairs.append((engine.params[name], graph.gradient[name], v))
        return pairs, examples
