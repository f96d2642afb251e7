"""Gradient graphs of batches: built, measured in bytes, and laid out in a memory budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature.double_backward import ThirdDerivative, analytic_kernels
from sharpscope.curvature.operator import Divisible, Objective
from sharpscope.curvature.per_example import Tap, Taps, sole_readings
from sharpscope.errors import ConfigError

__all__ = ["WORK", "GradientGraph", "MemoryPlan", "differentiate", "graph_bytes", "plan_memory", "watched"]

WORK = 0.5
"""What a product needs beside the graph that it goes through, in graphs of that size (a third was seen)."""


@dataclass(frozen=True)
class MemoryPlan:
    """What a memory budget makes of the batches: how large they are, and of how many the gradient graph is kept.

    ``graph_bytes``: of the largest batch's graph; ``batch_size``: None where the objective cannot be cut.
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
    """The loss of one batch and its gradient, both with the graph that a second derivative goes through."""

    loss: Tensor
    gradient: dict[str, Tensor]
    taps: tuple[tuple[Tap, Tensor], ...] = ()
    """Where parameters enter, with the loss's gradient there."""
    tapped: frozenset[str] = frozenset()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.loss, *self.gradient.values(), *(g for _, g in self.taps)]


def watched(
    function: Callable[[int, Mapping[str, Tensor]], Tensor],
    i: int,
    theta: Mapping[str, Tensor],
    params: Mapping[str, Tensor],
    examples: int | None,
    analytic: bool,
) -> tuple[Tensor, tuple[Tap, ...]]:
    """``function(i, theta)`` and where ``params`` enter it linearly and nowhere else (none if ``examples`` is None).

    Places that the call's Python shows, less those whose parameters autograd's graph shows to be read elsewhere too.
    """
    taps = None if examples is None else Taps(params, examples)
    with taps or nullcontext(), analytic_kernels(taps) if analytic else nullcontext():
        out = function(i, theta)
    if taps is None or not isinstance(out, Tensor):
        return out, ()
    places = tuple(t for t in taps.taps if set(t.names) <= taps.names)
    sole = sole_readings(out, places, params)
    return out, tuple(t for t in places if sole.issuperset(t.names))


def differentiate(
    objective: Objective, i: int, theta: Mapping[str, Tensor], params: Mapping[str, Tensor], analytic: bool
) -> GradientGraph:
    """One forward and one gradient of batch ``i``; raises ThirdDerivative where ``analytic`` cannot do it."""
    sizes: Sequence[int] | None = getattr(objective, "batch_sizes", None)
    loss, places = watched(objective.batch_loss, i, theta, params, None if sizes is None else sizes[i], analytic)
    if loss.ndim != 0:
        raise ConfigError(f"loss: must be a scalar, got shape {tuple(loss.shape)}.")
    inputs = [*params.values(), *(t.y for t in places)]
    grads = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
    gradient = {n: g for n, g in zip(params, grads, strict=False) if g is not None}
    open_taps = tuple((t, g) for t, g in zip(places, grads[len(params) :], strict=True) if g is not None)
    return GradientGraph(loss, gradient, open_taps, frozenset(n for t, _ in open_taps for n in t.names))


def graph_bytes(tensors: Iterable[Tensor], known: Iterable[Tensor] = ()) -> int:
    """Bytes that ``tensors`` and everything their autograd graph has saved keep alive, without the ``known`` tensors.

    Counted storage by storage: exact, the same on every machine, and blind to what an allocator holds in reserve.
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
    objective: Objective, theta: Mapping[str, Tensor], names: Sequence[str], memory: int | None
) -> tuple[Objective, MemoryPlan]:
    """The objective in batches whose graphs fit into ``memory`` bytes, and how many of them can be kept.

    A graph grows linearly with its batch: those of 2 and of 3 examples, counted exactly, tell all others before
    anything large is built. Batches are halved until one graph and the temporaries of a product (``WORK`` graphs) fit;
    all graphs are kept where they fit beside those, else as many as leave room for the one that is being rebuilt.
    Halving ends where what every graph holds whatever its batch (a text tower) outweighs the examples.
    Objectives that are not ``Divisible`` keep their batches, and their first one's graph is measured.

    Raises ConfigError where the loss is no scalar.
    """
    params = {n: theta[n].detach().clone().requires_grad_() for n in names}
    full = {**theta, **params}

    def measured(part: Objective) -> int:
        try:
            graph = differentiate(part, 0, full, params, analytic=True)
        except ThirdDerivative:
            graph = differentiate(part, 0, full, params, analytic=False)
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
    batches = len(objective.weights)
    room = math.inf if memory is None else memory / max(one, 1) - WORK
    kept = batches if room >= batches else max(int(room) - 1, 0)
    return objective, MemoryPlan(memory, one, size, batches, kept)
