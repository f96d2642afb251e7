"""Forward passes that compute only those rows of their last operations which the loss reads.

A vision transformer computes all its tokens to the end, and its embedding is the class token ``x[:, 0]``. Behind the
last attention, tokens no longer see each other: layer norm, MLP and residual sums work on each row alone. ``needed``
finds the operations whose output is read at row 0 and nowhere else, and lets them run on that row; the last attention
gets one query. In a block of width d these hold 9 of 12 d^2 multiplications a token. Every derivative that goes through
the last block, which is that of every layer, then takes as much less.

What is read where is found by watching one forward pass. That nothing else was read is verified by another, which
computes only these rows and has to give the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from sharpscope.curvature.double_backward import self_attention
from sharpscope.curvature.operator import Divisible, Objective, inside
from sharpscope.curvature.per_example import tensors_in
from sharpscope.machine.arithmetic import full_float32

__all__ = ["needed"]

O = TypeVar("O", bound=Objective)  # noqa: E741

TRIED = 2
"""The number of examples of the two forward passes that are watched, where an objective is ``Divisible``."""


@dataclass(frozen=True)
class _Call:
    """``out = function(*args, **kwargs)``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any


@dataclass(frozen=True)
class _Cut:
    """How a call runs for the first row alone: ``function`` on arguments that are cut, or ``instead`` on whole ones.

    ``cut``: {position of an argument [n, T, ...] that is cut to row 0: its shape without n}.
    """

    function: Callable[..., Any]
    cut: Mapping[int, torch.Size]
    instead: Callable[..., Any] | None = None

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is not self.function or any(args[k].shape[1:] != shape for k, shape in self.cut.items()):
            raise _Changed
        args = tuple(a.narrow(1, 0, 1) if k in self.cut else a for k, a in enumerate(args))
        return (self.instead or func)(*args, **kwargs)


Plan = Mapping[int, _Cut]
"""Which of a forward pass's calls, by their number, run for the first row alone."""


class _Changed(Exception):  # noqa: N818 - what happened
    """A pass that makes other calls than the one that was watched."""


class _Overwritten(Exception):  # noqa: N818 - what happened
    """A pass that overwrites what it made, so that nobody can tell what was read."""


class _Watch(TorchFunctionMode):
    """Records the calls of a forward pass, as the modules make them. Raises _Overwritten where one is in place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _HARMLESS:
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        before = [t._version for t in given]
        out = func(*args, **kwargs)
        if [t._version for t in given] != before:
            raise _Overwritten
        self.calls.append(_Call(func, args, kwargs, out))
        return out


class _Only(TorchFunctionMode):
    """Runs a forward pass by a plan. Raises _Changed where a call is not the one that was planned."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan, self._number = plan, -1

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _HARMLESS:
            return func(*args, **kwargs)
        self._number += 1
        cut = self._plan.get(self._number)
        return func(*args, **kwargs) if cut is None else cut(func, args, kwargs)


def needed(objective: O, theta: Mapping[str, Tensor]) -> O:
    """``objective`` with forward passes that compute only the rows which its loss reads.

    Loss and derivatives are the same up to rounding. A batch whose forward pass makes other calls than the first one is
    computed in full. An objective that has been here once is returned as it is.

    Args:
        objective: any loss.
        theta: named tensors at which it can be computed.
    """
    looked_at = isinstance(getattr(objective, "_run", None), _ByPlan)
    return objective if looked_at else inside(objective, _ByPlan(_plan(objective, theta)))


@torch.enable_grad()
@full_float32()
def _plan(objective: Any, theta: Mapping[str, Tensor]) -> Plan:
    """The plan for the passes of ``objective``, verified by passes of one batch; empty where nothing can be saved."""
    # As variables: for constants torch's attention takes a shortcut that no pass with a derivative takes.
    theta = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in theta.items()}
    try:
        tried = objective.rebatched(TRIED) if isinstance(objective, Divisible) else objective
        try:
            return _verified(tried, theta)
        except _Changed:  # what is done in a first pass alone, as moving a constant to a device, is done now
            return _verified(tried, theta)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a foreign model raises when it is watched, or when its rows are cut
        return {}


def _verified(objective: Any, theta: Mapping[str, Tensor]) -> Plan:
    watch = _Watch()
    with watch:
        loss = objective.batch_loss(0, theta)
    plan = _planned(watch.calls, loss)
    if not any(cut.function is F.linear for cut in plan.values()):
        return {}
    found = {"batch_loss": loss}
    if hasattr(objective, "batch_logits"):
        found["batch_logits"] = objective.batch_logits(0, theta)
    for name, full in found.items():
        with _Only(plan):
            cut = getattr(objective, name)(0, theta)
        torch.testing.assert_close(cut, full, rtol=1e-3, atol=1e-5)
    return plan


class _ByPlan:
    """Runs a forward pass by a plan, and in full where it turns out to be another one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __call__(self, function: Callable[..., Tensor], i: int, theta: Mapping[str, Tensor]) -> Tensor:
        try:
            with _Only(self._plan) if self._plan else nullcontext():
                return function(i, theta)
        except _Changed:
            return function(i, theta)


# ------------------------------------------------------------------ what is read where
def _planned(calls: Sequence[_Call], loss: Tensor) -> Plan:
    """The calls whose output reaches the loss through its first row alone, and through nothing but such calls.

    Worked out from the loss backwards: a tensor is needed in full where any call reads it in full. Then forwards: an
    argument is cut where the call that made it was not.
    """
    whole, rows = {id(loss)}, dict[int, int]()  # tensors that are needed in full | {in row 0 of: this dimension}
    cuts: dict[int, tuple[int, ...]] = {}  # call -> its arguments of which it needs the first row
    for number, call in reversed(list(enumerate(calls))):
        given, outs = tensors_in((call.args, call.kwargs)), tensors_in(call.out)
        if not outs:
            whole.update(map(id, given))  # a shape, a number
            continue
        if any(o is t for o in outs for t in given):
            continue  # the argument itself, as from contiguous()
        wanted: dict[int, int] = {}  # position of an argument -> the dimension whose row 0 is needed
        if not whole.isdisjoint(map(id, outs)):
            wanted = {0: 1} if _selects(call) else {}
        elif (dim := rows.get(id(outs[0]))) is not None:
            wanted = _arguments(call, dim)
            if wanted or (dim == 0 and _attends(call)):
                cuts[number] = tuple(wanted)
        else:
            continue  # the loss does not depend on it
        own = {id(call.args[k]): dim for k, dim in wanted.items()}
        whole.update(i for i, dim in own.items() if rows.setdefault(i, dim) != dim)
        whole.update(id(t) for t in given if id(t) not in own)
    plan, made = dict[int, _Cut](), set[int]()
    for number, arguments in sorted(cuts.items()):
        call = calls[number]
        full = {k: call.args[k].shape[1:] for k in arguments if id(call.args[k]) not in made}
        if full and call.function in _TURNS:
            continue  # what it turns was not cut
        plan[number] = _Cut(call.function, full, None if arguments else _first_query)
        made.update(map(id, tensors_in(call.out)))
    return plan


def _selects(call: _Call) -> bool:
    """Whether the call is x[:, 0] or x.select(1, 0)."""
    if call.function is Tensor.__getitem__:
        index = call.args[1]
        return isinstance(index, tuple) and list(map(type, index)) == [slice, int] and index == (slice(None), 0)
    return call.function in (Tensor.select, torch.select) and call.args[1:] == (1, 0)


def _arguments(call: _Call, dim: int) -> dict[int, int]:
    """{position of an argument: dimension}, whose row 0 is all that row 0 of dimension ``dim`` of the output needs.

    Empty where no rule says so. Rows stand in the second of at least three dimensions, in the first one where they are
    turned.
    """
    x, function, out = call.args[0] if call.args else None, call.function, call.out
    if not isinstance(x, Tensor) or not isinstance(out, Tensor) or out.ndim < 3 or out.shape[dim] < 2:
        return {}
    if function in _TURNS:
        return {0: 1 - dim} if not call.kwargs and sorted(call.args[1:]) == [0, 1] else {}
    if dim != 1:
        return {}
    if function in _UNARY:
        return {0: 1} if not tensors_in((call.args[1:], call.kwargs)) else {}
    if function is F.linear:
        return {0: 1}
    if function is F.layer_norm:
        shape = call.args[1] if len(call.args) > 1 else call.kwargs["normalized_shape"]
        return {0: 1} if len(shape) <= x.ndim - 2 else {}
    if function in _ELEMENTWISE and not tensors_in(call.kwargs):
        tensors = {k: t for k, t in enumerate(call.args) if isinstance(t, Tensor)}
        own = {k: 1 for k, t in tensors.items() if t.ndim == out.ndim and t.shape[1] == out.shape[1]}
        fixed = [t for k, t in tensors.items() if k not in own]
        return own if all(t.ndim < out.ndim - 1 or t.shape[1 - out.ndim] == 1 for t in fixed) else {}
    return {}


def _attends(call: _Call) -> bool:
    """Whether the call is a self-attention that ``_first_query`` can replace."""
    if call.function is not F.multi_head_attention_forward or call.args[0].shape[0] < 2:
        return False
    return self_attention(*call.args, **call.kwargs) is not None


def _first_query(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """The first token's row [1, n, E] of a self-attention over tokens [T, n, E]."""
    a = self_attention(*args, **kwargs)
    if a is None:
        raise _Changed
    packed = F.linear(a.x, a.weight, a.bias)  # in one, because a parameter that is read twice is told apart by no tap
    q, k, v = packed.unflatten(-1, (3, a.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    mask = None if a.mask is None else a.mask.narrow(0, 0, 1)
    out = F.scaled_dot_product_attention(q.narrow(2, 0, 1), k, v, mask)
    return F.linear(out.transpose(1, 2).flatten(2), a.out_weight, a.out_bias).transpose(0, 1), None


_T: Any = Tensor
_HARMLESS: Collection[Any] = frozenset({
    _T.dtype.__get__, _T.device.__get__, _T.ndim.__get__, _T.requires_grad.__get__, _T.layout.__get__,
    _T.is_cuda.__get__, _T.is_nested.__get__, _T.dim, _T.is_floating_point,
})  # fmt: skip
"""What may be asked of a tensor without reading its rows; such calls have no number."""
_UNARY: Collection[Any] = frozenset({
    F.gelu, F.relu, F.silu, F.dropout, torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh, torch.relu, Tensor.relu,
    Tensor.to, Tensor.float, Tensor.contiguous, Tensor.clone,
})  # fmt: skip
_TURNS: Collection[Any] = frozenset({torch.transpose, Tensor.transpose})
_ELEMENTWISE: Collection[Any] = frozenset({
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__, torch.mul,
    Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__,
})  # fmt: skip
