"""The mean form of the operation right behind a layer's own taps, in closed form.

The tangents that a tap injects have known second moments (``per_example.Spread``). Where nothing but arrangements of
entries lies between taps and an operation that is not linear, the mean of <a, y''[u, u]> over the injected tangents u
is known as well. It can take the place of the sampled value, whose noise then falls away together with that of the
terms between u and what flows in from the layer's other taps, whose mean is 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharpscope.curvature.nodes import Attention, Elementwise, Node, Norm, Step
from sharpscope.curvature.per_example import Tap, tensors_in

__all__ = ["Nearest", "known_means"]


@dataclass(frozen=True)
class Nearest:
    """The operation ``node`` right behind the ``taps`` (slots), and the mean of its form by examples, [examples]."""

    taps: frozenset[int]
    node: Step
    mean: Tensor


def known_means(
    steps: Sequence[Step], taps: Mapping[int, Tap], names: frozenset[str], examples: int
) -> tuple[Nearest, ...]:
    """The operations right behind the taps of ``names`` whose mean forms are known."""
    users: dict[int, list[Step]] = defaultdict(list)
    for step in steps:
        for slot in step.inputs:
            users[slot].append(step)
    groups: dict[int, dict[int, tuple[Step, ...]]] = defaultdict(dict)
    nodes: dict[int, Step] = {}
    for slot, tap in taps.items():
        found = _follow(slot, users)
        if tap.spread is not None and found is not None:
            chain, node = found
            groups[id(node)][slot], nodes[id(node)] = chain, node
    out = []
    for key, chains in groups.items():
        mean = _mean(nodes[key], chains, taps, names, examples)
        if mean is not None:
            out.append(Nearest(frozenset(chains), nodes[key], mean))
    return tuple(out)


def _follow(slot: int, users: Mapping[int, Sequence[Step]]) -> tuple[tuple[Step, ...], Step] | None:
    """What lies between a slot and the only node that it reaches by arrangements; None if there is no such node."""
    live, chain = {slot}, list[Step]()
    while True:
        if any(len(users.get(x, ())) != 1 for x in live):
            return None
        nexts = [users[x][0] for x in sorted(live)]
        step = next((s for s in nexts if not isinstance(s.rule, Node)), nexts[0])
        if isinstance(step.rule, Node):
            alone = all(s is step for s in nexts)
            return (tuple(chain), step) if alone and isinstance(step.rule, (Attention, Elementwise, Norm)) else None
        if not step.rule.selects:
            return None
        chain.append(step)
        live = (live - set(step.inputs)) | set(step.outputs)


def _mean(
    node: Step, chains: Mapping[int, Sequence[Step]], taps: Mapping[int, Tap], names: frozenset[str], examples: int
) -> Tensor | None:
    """The mean of the node's form by examples; None where the moments of its input are not known."""
    if isinstance(node.rule, Attention):
        ((slot, chain), *others) = chains.items()
        spread = taps[slot].spread
        assert spread is not None
        if others or spread.gram is None:
            return None
        gram = spread.gram(names)
        labels = torch.arange(gram.shape[0] * gram.shape[1], device=gram.device, dtype=torch.float64)
        labels = labels.view(*gram.shape[:2], 1)
        heads = _pushed({slot: labels.expand(spread.variance(names).shape)}, chain, node)
        if any(x is None for x in heads):
            return None
        same = [
            bool((x.view(examples, -1, *x.shape[1:]) == labels[:, : x.shape[1]].unsqueeze(1)).all())
            for x in heads
            if x is not None
        ]
        return node.rule.mean(gram).view(examples, -1).sum(1) if all(same) else None
    total: Tensor | None = None
    for slot, chain in chains.items():
        spread = taps[slot].spread
        assert spread is not None
        variance = spread.variance(names)
        if isinstance(node.rule, Norm):  # a row of the node has to be a row of the tap, or part of one
            rows = torch.arange(variance[..., 0].numel(), device=variance.device, dtype=torch.float64)
            (there,) = _pushed({slot: rows.view(*variance.shape[:-1], 1).expand(variance.shape)}, chain, node)
            if there is None or not bool((there == there[..., :1]).all()):
                return None
        (part,) = _pushed({slot: variance}, chain, node)
        if part is None:
            return None
        total = part if total is None else total + part
    assert isinstance(node.rule, (Elementwise, Norm)) and total is not None
    return node.rule.mean(total).view(examples, -1).sum(1)


def _pushed(seeds: Mapping[int, Tensor], chain: Iterable[Step], node: Step) -> list[Tensor | None]:
    """What arrives at the node when its taps' outputs are ``seeds``."""
    moves = dict(seeds)
    for step in chain:
        assert not isinstance(step.rule, Node)
        out = step.rule.tangent([moves.get(slot) for slot in step.inputs])
        moves |= dict(zip(step.outputs, tensors_in(out), strict=True))
    return [moves.get(slot) for slot in node.inputs]
