"""v'Hv of every example from ONE forward tangent pass through a forward pass that has already run.

With x' the tangents of all activations along a direction v, and the adjoints a of one ordinary backward pass,

    v'Hv = sum over the operations that are not linear of <a, y''[x', x']>.

No product Hv and no graph of the gradient is needed, and every example's share comes for free, because the sum runs
over each example's own activations. The operation's second derivatives are those of ``nodes``; the cross-entropy's own
share is the Gauss-Newton part v'Gv, so that v'Gv and v'(H - G)v come apart as well. What the directions are is
decided at the taps (``per_example``).

Whether this is possible is read off the forward pass (``tape``): every operation on the way from a tap to the loss
must have a rule. Where one has none, double backward answers.

Source: the second-order forward mode, Griewank and Walther 2008, Evaluating Derivatives, ch. 13.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharpscope.curvature.nodes import CrossEntropy, Node, Operation, operation
from sharpscope.curvature.operator import rademacher
from sharpscope.curvature.per_example import Tap, tensors_in
from sharpscope.curvature.tape import Tape

__all__ = ["Tangents", "stands_apart", "tangents_of"]


@dataclass(frozen=True)
class _Step:
    """An operation with its slots: those of the inputs that can move, and those of the outputs."""

    rule: Operation | Node
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class _Route:
    """The steps from some taps to the last operation that is not linear, each with the slots that it uses last."""

    steps: tuple[tuple[_Step, tuple[int, ...]], ...]
    moving: frozenset[int]


class Tangents:
    """The forward pass of a batch of ``examples``, through which tangents can be pushed from its ``taps``.

    ``names``: the parameters that enter at these taps. ``nodes``: the outputs of the operations that are not linear;
    ``adjoin`` has to be called with the loss's gradient with respect to each before any form is asked for.
    """

    def __init__(
        self,
        steps: Sequence[_Step],
        taps: Mapping[int, Tap],
        curved: Container[int],
        outputs: Mapping[int, Tensor],
        examples: int,
    ) -> None:
        self._steps, self._taps, self._curved, self.examples = tuple(steps), dict(taps), curved, examples
        self.names = frozenset(n for tap in taps.values() for n in tap.names)
        self.nodes = [outputs[s.outputs[0]] for s in steps if isinstance(s.rule, Node)]
        self._routes: dict[tuple[int, ...], _Route] = {}

    def adjoin(self, adjoints: Sequence[Tensor]) -> None:
        """Take the gradients of the loss with respect to ``nodes``, and let go of the graph."""
        rules = [s.rule for s in self._steps if isinstance(s.rule, Node)]
        for rule, a in zip(rules, adjoints, strict=True):
            rule.adjoin(a.detach())
        self.nodes = []
        self._taps = {slot: tap.released() for slot, tap in self._taps.items()}

    @property
    def tensors(self) -> Iterator[Tensor]:
        """All tensors that are kept."""
        for step in self._steps:
            yield from step.rule.saved
        for tap in self._taps.values():
            yield from tap.saved

    def covers(self, names: frozenset[str]) -> bool:
        """Whether directions of these parameters can be pushed to the loss."""
        return names <= self.names

    def taps(self, names: frozenset[str]) -> list[tuple[int, Tap]]:
        """The taps of these parameters with their slots, in the order of the forward pass.

        Those of which the loss is a linear function are left out, as their second derivatives are 0.
        """
        taps = self._taps.items()
        return [(slot, tap) for slot, tap in taps if slot in self._curved and names.intersection(tap.names)]

    def reached(self, slot: int, seeds: Iterable[int]) -> bool:
        """Whether tangents at ``seeds`` move this slot."""
        return slot in self._route(tuple(seeds)).moving

    def forms(self, seeds: Mapping[int, Tensor], seen: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(v'Gv, v'(H - G)v) of the mean loss by examples, float64 [examples] each.

        ``seeds``: the tangents that the directions v give to the outputs of taps, by slot. ``seen``: takes the tangents
        of all taps that the pass comes through.
        """
        moves = dict(seeds)
        like = next(iter(seeds.values()))
        parts = [like.new_zeros(self.examples, dtype=torch.float64) for _ in range(2)]
        for step, last in self._route(tuple(seeds)).steps:
            given = [moves.get(slot) for slot in step.inputs]
            if isinstance(step.rule, Node):
                out, form = step.rule.bend(given)
                parts[not isinstance(step.rule, CrossEntropy)] += form.reshape(self.examples, -1).sum(1)
            else:
                out = step.rule.tangent(given)
            for slot, tangent in zip(step.outputs, tensors_in(out), strict=True):
                moves[slot] = moves[slot] + tangent if slot in moves else tangent
                if seen is not None and slot in self._taps:
                    seen.append(moves[slot])
            for slot in last:
                del moves[slot]
        return parts[0], parts[1]

    def _route(self, seeds: tuple[int, ...]) -> _Route:
        if seeds not in self._routes:
            moving, taken = set(seeds), list[_Step]()
            for step in self._steps:
                if moving.intersection(step.inputs):
                    moving.update(step.outputs)
                    taken.append(step)
            steps, kept = list[tuple[_Step, tuple[int, ...]]](), set[int]()
            for step in reversed(taken):
                used = set(step.inputs).intersection(moving)
                steps.append((step, tuple(used - kept)))
                kept |= used
            self._routes[seeds] = _Route(tuple(reversed(steps)), frozenset(moving))
        return self._routes[seeds]


def tangents_of(tape: Tape, loss: Tensor, taps: Sequence[Tap], examples: int) -> Tangents | None:
    """What the ``tape`` of a forward pass to ``loss`` allows; None where it allows nothing."""
    end, slots = tape.slot(loss), {slot: tap for tap in taps if (slot := tape.slot(tap.y)) is not None}
    if end is None or tape.broken or not slots:
        return None
    moving = set(slots)
    steps: list[tuple[Operation | Node | None, tuple[int, ...], tuple[int, ...]]] = []
    outputs: dict[int, Tensor] = {}
    for call in tape.calls:
        inputs = tuple(slot for slot in call.inputs if slot in moving)
        if inputs:
            rule = operation(call, lambda t: isinstance(t, Tensor) and tape.slot(t) in moving)
            steps.append((rule, inputs, call.outputs))
            moving.update(call.outputs)
            outputs |= {call.outputs[0]: next(t for t in tensors_in(call.out) if t.requires_grad)}
    reaching, curved, blind, kept = {end}, set[int](), set[int](), []
    for rule, ins, outs in reversed(steps):
        if not reaching.intersection(outs):
            continue
        reaching.update(ins)
        ends = isinstance(rule, CrossEntropy) and curved.intersection(outs)  # its own tangent is not computed
        if rule is None or ends or blind.intersection(outs):
            blind.update(ins)
        elif isinstance(rule, Node) or curved.intersection(outs):
            curved.update(ins)
            kept.append(_Step(rule, ins, outs))
    own = {slot: tap for slot, tap in slots.items() if slot not in blind}
    return Tangents(kept[::-1], own, curved, outputs, examples) if own else None


def stands_apart(tangents: Tangents, like: Tensor) -> bool:
    """Whether an example's tangents and form come from its own directions alone.

    Directions of 0 for some of the examples then give these tangents of exactly 0 at every tap, and forms of exactly 0.
    A network whose rows are no examples (tokens first), or whose examples see each other, has others. Of two examples
    that see each other, a round has one move and the other not with a probability of 1/2, and for two examples in all
    always; small batches take more rounds.

    ``like``: a tensor of the dtype and on the device of the pass.
    """
    n, generator = tangents.examples, torch.Generator().manual_seed(0)
    signs = lambda *shape: rademacher(shape, generator).to(like)  # noqa: E731
    leaks: list[Tensor] = []
    for _ in range(1 + 8 // n):
        order = torch.randperm(n, generator=generator).to(like.device)
        quiet = order[: n // 2]
        moving = torch.ones(n, dtype=like.dtype, device=like.device).index_fill_(0, quiet, 0)
        seeds: dict[int, Tensor] = {}
        for slot, tap in tangents.taps(tangents.names):
            if not tangents.reached(slot, seeds):
                u = tap.tangent(signs, frozenset(tap.names), False)
                seeds[slot] = u * moving.view(-1, *(1,) * (u.ndim - 1))
        if seeds:
            seen = list(seeds.values())
            seen += tangents.forms(seeds, seen)
            leaks += [t.index_select(0, quiet).count_nonzero() for t in seen]
    return not leaks or not bool(torch.stack(leaks).any())
