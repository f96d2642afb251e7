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
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature.draws import rademacher
from sharpscope.curvature.means import Nearest, known_means
from sharpscope.curvature.nodes import CrossEntropy, Node, Operation, Part, Step
from sharpscope.curvature.per_example import Tap, tensors_in
from sharpscope.curvature.rules import operation
from sharpscope.curvature.tape import Call, Tape
from sharpscope.machine.devices import onto

__all__ = ["Embedding", "Tangents", "stands_apart", "tangents_of"]


@dataclass(frozen=True)
class _Route:
    """The steps from some taps to the last operation that is not linear, each with the slots that it uses last."""

    steps: tuple[tuple[Step, tuple[int, ...]], ...]
    moving: frozenset[int]


class Tangents:
    """The forward pass of a batch of ``examples``, through which tangents can be pushed from its ``taps``.

    ``names``: the parameters that enter at these taps. ``nodes``: the outputs of the operations that are not linear;
    ``adjoin`` has to be called with the loss's gradient with respect to each before any form is asked for.
    ``embedding``: where the head begins, until ``adjoin``. ``before_head``: the parameters that enter before it.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        taps: Mapping[int, Tap],
        curved: Container[int],
        nodes: Sequence[Tensor],
        examples: int,
        embedding: Embedding | None,
    ) -> None:
        self._steps, self._taps, self._curved, self.examples = tuple(steps), dict(taps), curved, examples
        self.names = frozenset(n for tap in taps.values() for n in tap.names)
        self.nodes, self.embedding = list(nodes), embedding
        self.before_head = self.names & (embedding.names if embedding is not None else frozenset())
        self._routes: dict[tuple[bool, tuple[int, ...]], _Route] = {}
        self._means: dict[frozenset[str], tuple[Nearest, ...]] = {}

    def adjoin(self, adjoints: Sequence[Tensor]) -> None:
        """Take the gradients of the loss with respect to ``nodes``, and let go of the graph."""
        rules = [s.rule for s in self._steps if isinstance(s.rule, Node)]
        for rule, a in zip(rules, adjoints, strict=True):
            rule.adjoin(a.detach())
        self.nodes, self.embedding = [], None
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
        return slot in self._route(tuple(seeds), False).moving

    def bends(self, seeds: Iterable[int]) -> bool:
        """Whether tangents at ``seeds`` meet an operation before the head that is not linear."""
        return any(isinstance(step.rule, Node) for step, _ in self._route(tuple(seeds), True).steps)

    def forms(
        self,
        seeds: Mapping[int, Tensor],
        *,
        before_head: bool = False,
        near: Sequence[Nearest] = (),
        seen: list[Tensor] | None = None,
    ) -> Tensor:
        """The parts of v'Hv of the mean loss by examples, float64 [3, examples]; they add up to v'Hv.

        They come from the cross-entropy (v'Gv), from the other operations of the head, and from all operations before
        it. Where the head begins is said by ``embedding``; without one, it is the cross-entropy alone.

        Args:
            seeds: the tangents that the directions v give to the outputs of taps, by slot.
            before_head: leave out the first two parts, which are then 0.
            near: operations whose form of the directions that enter right before them is replaced by its mean; terms
                between these and other directions are left out.
            seen: takes the tangents of all taps that the pass comes through.
        """
        known = {id(x.node): x for x in near}
        own = {slot: u for slot, u in seeds.items() if any(slot in x.taps for x in near)}
        moves = {slot: u for slot, u in seeds.items() if slot not in own}
        like = next(iter(seeds.values()))
        parts = like.new_zeros(len(Part), self.examples, dtype=torch.float64)
        for step, last in self._route(tuple(seeds), before_head).steps:
            for flow in (own, moves):
                given = [flow.get(slot) for slot in step.inputs]
                if isinstance(step.rule, Node):
                    if flow is own:
                        continue  # it joins the others here
                    form, out = self._node(step, step.rule, given, own, known.get(id(step)))
                    parts[step.part] += form
                elif any(x is not None for x in given):
                    out = step.rule.tangent(given)
                else:
                    continue
                for slot, tangent in zip(step.outputs, tensors_in(out), strict=True):
                    flow[slot] = flow[slot] + tangent if slot in flow else tangent
                    if seen is not None and slot in self._taps:
                        seen.append(flow[slot])
                for slot in last:
                    flow.pop(slot, None)
        return parts

    def _node(
        self, step: Step, rule: Node, given: Sequence[Tensor | None], own: dict[int, Tensor], known: Nearest | None
    ) -> tuple[Tensor, Tensor]:
        """The node's form by examples, and the tangent of its output."""
        if known is None:
            out, form = rule.bend(given)
            return form.reshape(self.examples, -1).sum(1), out
        joined = [
            a if b is None else b if a is None else a + b for a, b in zip(given, map(own.get, step.inputs), strict=True)
        ]
        if all(x is None for x in given):
            return known.mean, rule.push(joined)
        return known.mean + rule.bend(given)[1].reshape(self.examples, -1).sum(1), rule.push(joined)

    def means(self, names: frozenset[str]) -> tuple[Nearest, ...]:
        """The operations before the head and right behind the taps of these parameters whose mean forms are known."""
        if names not in self._means:
            body = [step for step in self._steps if step.part is Part.BODY]
            self._means[names] = known_means(body, dict(self.taps(names)), names, self.examples)
        return self._means[names]

    def _route(self, seeds: tuple[int, ...], before_head: bool) -> _Route:
        if (before_head, seeds) not in self._routes:
            moving, taken = set(seeds), list[Step]()
            for step in self._steps:
                if moving.intersection(step.inputs) and (step.part is Part.BODY or not before_head):
                    moving.update(step.outputs)
                    taken.append(step)
            steps, kept = list[tuple[Step, tuple[int, ...]]](), set[int]()
            leads = not before_head
            for step in reversed(taken):
                leads |= isinstance(step.rule, Node)  # what follows the last node of the body is not needed
                if leads:
                    used = set(step.inputs).intersection(moving)
                    steps.append((step, tuple(used - kept)))
                    kept |= used
            self._routes[before_head, seeds] = _Route(tuple(reversed(steps)), frozenset(moving))
        return self._routes[before_head, seeds]


# ------------------------------------------------------------------ from a recorded pass
@dataclass(frozen=True)
class _Use:
    """A recorded call in which something can move: its rule, and the slots that can."""

    call: Call
    rule: Operation | Node | None
    inputs: tuple[int, ...]

    @property
    def outputs(self) -> tuple[int, ...]:
        return self.call.outputs


def tangents_of(tape: Tape, loss: Tensor, taps: Sequence[Tap], examples: int) -> Tangents | None:
    """What the ``tape`` of a forward pass to ``loss`` allows; None where it allows nothing."""
    end, slots = tape.slot(loss), {slot: tap for tap in taps if (slot := tape.slot(tap.y)) is not None}
    if end is None or tape.broken or not slots:
        return None
    moving, uses = set(slots), list[_Use]()
    for call in tape.calls:
        inputs = tuple(slot for slot in call.inputs if slot in moving)
        if inputs:
            rule = operation(call, lambda t: isinstance(t, Tensor) and tape.slot(t) in moving)
            uses.append(_Use(call, rule, inputs))
            moving.update(call.outputs)
    reaching, curved, bent, blind, kept = {end}, set[int](), set[int](), set[int](), list[_Use]()
    for use in reversed(uses):
        if not reaching.intersection(use.outputs):
            continue
        reaching.update(use.inputs)
        loss_like = isinstance(use.rule, CrossEntropy)
        ends = loss_like and curved.intersection(use.outputs)  # the tangent of a cross-entropy is not computed
        if use.rule is None or ends or blind.intersection(use.outputs):
            blind.update(use.inputs)
        elif isinstance(use.rule, Node) or curved.intersection(use.outputs):
            curved.update(use.inputs)
            kept.append(use)
            if bent.intersection(use.outputs) or (isinstance(use.rule, Node) and not loss_like):
                bent.update(use.inputs)
    own = {slot: tap for slot, tap in slots.items() if slot not in blind}
    if not own:
        return None
    embedding = _embedding(tape, end, kept, {slot: tap for slot, tap in own.items() if slot in bent}, examples)
    behind = set() if embedding is None else {id(call) for call in embedding.calls}
    steps = []
    for use in reversed(kept):
        part = Part.HEAD if id(use.call) in behind else Part.BODY
        part = Part.LOSS if isinstance(use.rule, CrossEntropy) else part
        assert use.rule is not None
        steps.append(Step(use.rule, use.inputs, use.outputs, part))
    nodes = [tape.tensor(s.outputs[0]) for s in steps if isinstance(s.rule, Node)]
    return Tangents(steps, own, curved, nodes, examples, embedding)


@dataclass(frozen=True)
class Embedding:
    """The rows z [n, e] through which alone the loss depends on the parameters ``names``.

    ``taps``: where these enter. ``calls``: the head, all operations from z to the loss, the last one first.
    """

    z: Tensor
    taps: tuple[Tap, ...]
    calls: tuple[Call, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(n for tap in self.taps for n in tap.names)

    def curvature(self) -> Tensor:
        """The second derivatives M_j of the mean loss with respect to each row of z, [n, e, e].

        The head is run again from z and differentiated twice, for one column of all M_j at a time.
        """
        with torch.enable_grad():
            z = self.z.detach().requires_grad_()
            known: dict[int, Tensor] = {id(self.z): z}
            for call in reversed(self.calls):
                known[id(call.out)] = call.function(*_exchanged(call.args, known), **_exchanged(call.kwargs, known))
            (g,) = torch.autograd.grad(known[id(self.calls[0].out)], z, create_graph=True)
        columns = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        return torch.stack(
            [torch.autograd.grad(g, z, column.expand_as(z), retain_graph=True)[0] for column in columns], dim=-1
        )


def _exchanged(value: Any, known: Mapping[int, Tensor]) -> Any:
    """The arguments of a call with the ``known`` tensors exchanged and all others as constants."""
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else value.detach()
    if isinstance(value, Mapping):
        return {k: _exchanged(v, known) for k, v in value.items()}
    return type(value)(_exchanged(v, known) for v in value) if isinstance(value, (tuple, list)) else value


def _embedding(tape: Tape, end: int, uses: Sequence[_Use], taps: Mapping[int, Tap], examples: int) -> Embedding | None:
    """The earliest rows before an operation that is not linear which as many ``taps`` as possible pass through."""
    made_by = {slot: use for use in uses for slot in use.outputs}
    best: tuple[int, int, frozenset[int]] | None = None
    slot, head = end, list[Call]()
    while slot in made_by and len(made_by[slot].inputs) == len(made_by[slot].outputs) == 1:
        use = made_by[slot]
        head.append(use.call)
        slot = use.inputs[0]
        rows = tape.tensor(slot)
        if isinstance(use.rule, Node) and rows.ndim == 2 and len(rows) == examples:
            before = _before(slot, made_by) & taps.keys()
            if before and (best is None or len(before) >= len(best[2])):
                best = slot, len(head), before
    if best is None:
        return None
    slot, length, before = best
    return Embedding(tape.tensor(slot), tuple(t for s, t in taps.items() if s in before), tuple(head[:length]))


def _before(slot: int, made_by: Mapping[int, _Use]) -> frozenset[int]:
    """The slots on which ``slot`` depends, and itself."""
    todo, seen = [slot], {slot}
    while todo:
        use = made_by.get(todo.pop())
        new = set(use.inputs) - seen if use is not None else set()
        todo += new
        seen |= new
    return frozenset(seen)


def stands_apart(tangents: Tangents, like: Tensor) -> bool:
    """Whether an example's tangents and form come from its own directions alone.

    Directions of 0 for some of the examples then give these tangents of exactly 0 at every tap, and forms of exactly 0.
    A network whose rows are no examples (tokens first), or whose examples see each other, has others. Of two examples
    that see each other, a round has one move and the other not with a probability of 1/2, and for two examples in all
    always; small batches take more rounds.

    ``like``: a tensor of the dtype and on the device of the pass.
    """
    n, generator = tangents.examples, torch.Generator().manual_seed(0)
    signs = lambda *shape: rademacher(shape, generator, device=like.device, dtype=like.dtype)  # noqa: E731
    leaks: list[Tensor] = []
    for _ in range(1 + 8 // n):
        order = onto(torch.randperm(n, generator=generator), like.device)
        quiet = order[: n // 2]
        moving = torch.ones(n, dtype=like.dtype, device=like.device).index_fill_(0, quiet, 0)
        seeds: dict[int, Tensor] = {}
        for slot, tap in tangents.taps(tangents.names):
            if not tangents.reached(slot, seeds):
                u = tap.tangent(signs, frozenset(tap.names), False)
                seeds[slot] = u * moving.view(-1, *(1,) * (u.ndim - 1))
        if seeds:
            seen = list(seeds.values())
            seen += tangents.forms(seeds, seen=seen)
            leaks += [t.index_select(0, quiet).count_nonzero() for t in seen]
    return not leaks or not bool(torch.stack(leaks).any())
