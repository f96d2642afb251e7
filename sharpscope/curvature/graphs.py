"""Gradient graphs of batches: built, measured in bytes, and laid out in a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sharpscope.curvature.double_backward import ThirdDerivative, analytic_kernels
from sharpscope.curvature.operator import Divisible, Objective
from sharpscope.curvature.per_example import Tap, Taps, sole_readings
from sharpscope.curvature.tangents import Tangents, tangents_of
from sharpscope.curvature.tape import Tape
from sharpscope.errors import ConfigError
from sharpscope.machine.team import team_of

__all__ = [
    "WORK",
    "GradientGraph",
    "MemoryPlan",
    "Use",
    "differentiate",
    "graph_bytes",
    "kept_of",
    "once_differentiable",
    "plan_memory",
    "watched",
]

WORK = 0.5
"""The memory that one product needs beside the gradient graph it runs through, as a share of that graph's bytes. A
third was measured; a larger value leaves more room and keeps fewer graphs."""
TOGETHER = 3 / 4
"""The share of the memory for graphs that is used where not all of them fit. All layers advance together then, so that
the bases of all their eigenvalues take room as well; these took 25 GiB for ViT-B-32 and its 14 layers. With a larger
share fewer graphs are built anew."""
Use = Literal["products", "probes", "both"]
"""What graphs are built for: products Hv, which take a graph of the gradient; ``Probes`` v'Hv, which take the tensors
of ``tangents`` where the forward pass allows it; or both."""
_RAISES = "torch::autograd::Error"
"""The name of the node that torch puts where a second derivative does not exist."""


@dataclass(frozen=True)
class MemoryPlan:
    """How the gradient graphs of the batches are laid out in a memory budget.

    ``memory``: the budget in bytes, None for no limit. ``graph_bytes``: the bytes of the largest batch's graph.
    ``batch_size``: examples per batch, None where the objective is not ``Divisible``. ``batches``: the number of
    batches, in a ``Team`` the most that one process has. ``kept``: the number of batches whose graph is kept; the
    others are rebuilt in every round of products.
    """

    memory: int | None
    graph_bytes: int
    batch_size: int | None
    batches: int
    kept: int

    def __str__(self) -> str:
        size = "" if self.batch_size is None else f" of {self.batch_size}"
        how = "all kept" if self.kept == self.batches else f"{self.kept} kept, the others rebuilt for every step"
        limit = "" if self.memory is None else f", budget {_mib(self.memory)}"
        return f"{self.batches} gradient graphs{size} examples, {_mib(self.graph_bytes)} each, {how}{limit}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


@dataclass(frozen=True)
class GradientGraph:
    """The loss of one batch and its gradient, with the graph that a second derivative goes through.

    ``twice``: whether there is that graph. Without it, loss and gradient are plain numbers, and only ``tangents`` can
    be asked for second derivatives.
    """

    loss: Tensor
    gradient: dict[str, Tensor]
    taps: tuple[tuple[Tap, Tensor], ...] = ()
    """The taps at which parameters enter, each with the gradient of the loss with respect to the tap's output; none
    where ``twice`` is False."""
    tapped: frozenset[str] = frozenset()
    tangents: Tangents | None = None
    twice: bool = True

    @property
    def tensors(self) -> list[Tensor]:
        own = () if self.tangents is None else self.tangents.tensors
        return [self.loss, *self.gradient.values(), *(g for _, g in self.taps), *own]


def watched(
    function: Callable[[int, Mapping[str, Tensor]], Tensor],
    i: int,
    theta: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    examples: int | None,
    analytic: bool,
    tape: Tape | None = None,
) -> tuple[Tensor, tuple[Tap, ...]]:
    """``function(i, theta)``, and the taps of those ``params`` that enter it linearly, once and nowhere else.

    ``tape``: records the pass.

    The taps that Python calls show are kept only if autograd's graph shows no other reading of their parameters (see
    ``per_example.sole_readings``). There are no taps if ``examples``, the number of examples in the batch, is None.
    """
    taps = None if examples is None else Taps(params, examples)
    with taps or nullcontext(), tape or nullcontext(), analytic_kernels() if analytic else nullcontext():
        out = function(i, theta)
    if taps is None or not isinstance(out, Tensor):
        return out, ()
    places = tuple(t for t in taps.taps if set(t.names) <= taps.names)
    sole = sole_readings(out, places, params)
    return out, tuple(t for t in places if sole.issuperset(t.names))


def differentiate(
    objective: Objective,
    i: int,
    theta: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    analytic: bool,
    use: Use = "both",
) -> GradientGraph:
    """The loss of batch ``i`` and its gradient, from one forward pass.

    For the use "probes" no graph of the gradient is built where the tangents cover all ``params``.

    Raises ThirdDerivative where ``analytic`` kernels would be differentiated a third time, ConfigError for a loss that
    is not a scalar.
    """
    sizes: Sequence[int] | None = getattr(objective, "batch_sizes", None)
    examples = None if sizes is None else sizes[i]
    tape = Tape() if analytic and examples is not None and use != "products" else None
    loss, places = watched(objective.batch_loss, i, theta, params, examples, analytic, tape)
    if loss.ndim != 0:
        raise ConfigError(f"loss: must be a scalar, got shape {tuple(loss.shape)}.")
    tangents = None if tape is None or examples is None else tangents_of(tape, loss, places, examples)
    del tape  # it holds every tensor of the pass
    nodes = [] if tangents is None else tangents.nodes
    twice = use != "probes" or tangents is None or not tangents.covers(frozenset(params))
    inputs = [*params.values(), *(t.y for t in places), *nodes]
    grads = torch.autograd.grad(loss, inputs, create_graph=twice, allow_unused=True)
    gradient = {n: g for n, g in zip(params, grads, strict=False) if g is not None}
    at_taps = grads[len(params) : len(params) + len(places)]
    open_taps = tuple((t, g) for t, g in zip(places, at_taps, strict=True) if g is not None)
    if tangents is not None:
        tangents.adjoin(grads[len(params) + len(places) :])
    tapped = frozenset(n for t, _ in open_taps for n in t.names)
    return GradientGraph(
        loss if twice else loss.detach(), gradient, open_taps if twice else (), tapped, tangents, twice
    )


def once_differentiable(gradient: Mapping[str, Tensor]) -> frozenset[str]:
    """The parameters whose ``gradient`` comes through a backward that is marked once_differentiable.

    Autograd raises its error for such a backward only where the derivative goes through the node that stands for it.
    This node has no edge to any parameter, so that a second derivative is cut off there and is 0 without a word.
    """

    def passes(tensors: Iterable[Tensor]) -> bool:
        todo, seen = [t.grad_fn for t in tensors], set()
        while todo:
            node = todo.pop()
            if node is None or node in seen:
                continue
            if node.name() == _RAISES:
                return True
            seen.add(node)
            todo += [following for following, _ in node.next_functions]
        return False

    return frozenset(n for n, g in gradient.items() if passes([g])) if passes(gradient.values()) else frozenset()


def graph_bytes(tensors: Iterable[Tensor], known: Iterable[Tensor] = ()) -> int:
    """Bytes that ``tensors`` and all tensors saved in their autograd graph occupy, without the ``known`` tensors.

    Storages are counted, so that the number is exact and the same on every machine; memory that an allocator holds in
    reserve is not included.
    """
    storages: dict[int, int] = {}

    def take(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, (tuple, list)):
            for item in value:
                take(item)

    saved: dict[type, tuple[str, ...]] = {}
    todo, seen = [], set()
    for t in tensors:
        take(t)
        todo.append(t.grad_fn)
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = type(node)
        if kind not in saved:
            saved[kind] = tuple(a for a in dir(node) if a.startswith("_saved_") or a == "saved_tensors")
        for attribute in saved[kind]:
            take(getattr(node, attribute))
        todo += [following for following, _ in node.next_functions]
    for t in known:
        storages.pop(t.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def plan_memory(
    objective: Objective, theta: Mapping[str, Tensor], names: Sequence[str], memory: int | None, use: Use = "both"
) -> tuple[Objective, MemoryPlan]:
    """The objective in batches whose graphs fit into ``memory`` bytes, and a plan of how many graphs are kept.

    ``use``: what the graphs are built for. For "probes" alone they are smaller, where tangents cover all parameters.

    A graph grows linearly with its batch, so that the exact sizes for 2 and 3 examples predict all others before
    anything large is built. Batches are halved until one graph and the temporaries of a product (``WORK`` times a
    graph) fit. Of the graphs as many are kept as ``kept_of`` says. Halving ends where the part of a graph that does not
    depend on the batch size (a text tower, for example) outweighs the part of the examples. An objective that is not
    ``Divisible`` keeps its batches, and the graph of its first batch is measured.

    Raises ConfigError where the loss is not a scalar.
    """
    params = {n: theta[n].detach().clone().requires_grad_() for n in names}
    full = {**theta, **params}

    def measured(part: Objective) -> int:
        try:
            graph = differentiate(part, 0, full, params, True, use)
        except ThirdDerivative:
            graph = differentiate(part, 0, full, params, False, use)
        return graph_bytes(graph.tensors, full.values())

    size: int | None = None
    if isinstance(objective, Divisible) and objective.batch_size > 3:
        size = objective.batch_size
        two, three = (measured(objective.rebatched(n)) for n in (2, 3))
        each = three - two
        fixed = two - 2 * each
        limit = math.inf if memory is None else memory / (1 + WORK)
        while size > 1 and fixed + each * size > limit and each * size > fixed:
            size = -(-size // 2)
        one = fixed + each * size
        objective = objective if size == objective.batch_size else objective.rebatched(size)
    else:
        one = measured(objective)
        size = objective.batch_size if isinstance(objective, Divisible) else None
    batches = team_of(objective).most(len(objective.weights))
    return objective, MemoryPlan(memory, one, size, batches, kept_of(batches, one, memory))


def kept_of(batches: int, one: int, memory: int | None) -> int:
    """How many of so many batches are kept whose graphs take ``one`` byte count each, beside what a pass needs.

    All, if they fit into ``memory`` bytes; otherwise as many as leave room for the one that is being built anew, and
    for what all layers have to remember at once.
    """
    room = math.inf if memory is None else memory / max(one, 1) - WORK
    return batches if room >= batches else max(int(TOGETHER * room) - 1, 0)
