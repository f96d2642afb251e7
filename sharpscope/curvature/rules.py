"""The rules: which ``nodes.Operation`` or ``nodes.Node`` a recorded call of a function is.

``operation(call, can_move)`` is the only use. A function that has no rule, or is called in a way that its rule does not
cover, is no error: whoever asks then uses double backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature import double_backward
from sharpscope.curvature.nodes import (
    Attention,
    CrossEntropy,
    Elementwise,
    Moves,
    Node,
    Norm,
    Operation,
    Product,
    Unit,
    moving,
)
from sharpscope.curvature.per_example import tensors_in
from sharpscope.curvature.tape import Call

__all__ = ["operation"]

Rule = Callable[[Call, Callable[[Any], bool]], Operation | Node | None]
"""A function of a call and of a predicate that tells which of the arguments can move. ``moves`` has these, in order."""


def operation(call: Call, can_move: Callable[[Any], bool]) -> Operation | Node | None:
    """The rule of a call whose arguments in part ``can_move``; None where none covers it."""
    rule = _RULES.get(call.function)
    return None if rule is None or not call.args else rule(call, can_move)


def _same(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """A function that is linear in its first argument and takes no other that moves."""
    function = _RESHAPED.get(call.function, call.function)
    first, *others = call.args
    if not can_move(first) or any(can_move(t) for t in tensors_in((others, call.kwargs))):
        return None
    if any(isinstance(a, torch.dtype) for a in (*others, *call.kwargs.values())):
        return None
    fixed, named = [_constant(a) for a in others], {k: _constant(a) for k, a in call.kwargs.items()}
    return Operation(lambda moves: function(moves[0], *fixed, **named), selects=call.function in _SELECT)


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _sum(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """a + b or a - b."""
    if len(call.args) != 2 or call.kwargs:
        return None
    can = [can_move(a) for a in call.args]
    shape, sign = call.out.shape, -1 if call.function in _DIFFERENCES else 1
    if can == [True, True]:

        def both(moves: Moves) -> Tensor:
            a, b = moves
            if a is None or b is None:
                return (cast(Tensor, b) * sign if a is None else a).expand(shape)
            return a + b if sign > 0 else a - b

        return Operation(both, selects=sign > 0)
    factor = 1 if can[0] else sign
    return Operation(lambda moves: (moving(moves) * factor if factor < 0 else moving(moves)).expand(shape), factor > 0)


def _cat(call: Call, can_move: Callable[[Any], bool]) -> Operation:
    """Tensors joined along a dimension; those that do not move have the tangent 0."""
    parts, *others = call.args
    can, shapes = [can_move(t) for t in parts], [t.shape for t in parts]
    function, named = call.function, dict(call.kwargs)

    def joined(moves: Moves) -> Any:
        given, like = iter(moves), next(m for m in moves if m is not None)
        ins = [next(given) if c else None for c in can]
        whole = [like.new_zeros(s) if m is None else m for m, s in zip(ins, shapes, strict=True)]
        return function(whole, *others, **named)

    return Operation(joined, selects=True)


def _mul(call: Call, can_move: Callable[[Any], bool]) -> Operation | Node | None:
    if len(call.args) != 2 or call.kwargs:
        return None
    a, b = call.args
    if can_move(a) and can_move(b):
        return Product(a, b) if a.shape == b.shape and a.ndim else None
    return _scale(_constant(b) if can_move(a) else _constant(a), call.out.shape)


def _div(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    if len(call.args) != 2 or call.kwargs or can_move(call.args[1]):
        return None
    return _scale(1 / _constant(call.args[1]), call.out.shape)


def _scale(by: Any, shape: torch.Size) -> Operation:
    return Operation(lambda moves: (moving(moves) * by).expand(shape))


def _linear(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """x W' + b with W and b constant."""
    x, weight = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs.get("weight")
    rest = tensors_in((call.args[1:], call.kwargs))
    if not can_move(x) or not isinstance(weight, Tensor) or any(can_move(t) for t in rest):
        return None
    fixed = weight.detach()
    return Operation(lambda moves: F.linear(moving(moves), fixed))


def _matmul(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """a b with one of them constant."""
    if len(call.args) != 2 or call.kwargs or all(can_move(a) for a in call.args):
        return None
    a, b = (_constant(t) for t in call.args)
    if can_move(call.args[0]):
        return Operation(lambda moves: moving(moves) @ b)
    return Operation(lambda moves: a @ moving(moves))


def _kernel(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    """An elementwise function whose node saves (x, f', f'')."""
    _, first, second = call.out.grad_fn.saved_tensors
    return Elementwise(first, second)


def _sigmoid(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    s = call.out.detach()
    first = s * (1 - s)
    return Elementwise(first, first * (1 - 2 * s)) if len(call.args) == 1 and not call.kwargs else None


def _layer_norm(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    can = [can_move(a) for a in call.args[:3]]
    return Norm(*call.out.grad_fn.saved_tensors) if can == [True, False, False] else None


def _attention(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    node = call.out.grad_fn
    q, k, v, p = node.saved_tensors
    return Attention(q, k, v, p, call.out, node.scale) if all(map(can_move, call.args[:3])) else None


def _normalize(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    """F.normalize(x, p=2, dim=-1)."""
    given = dict(zip(("input", "p", "dim", "eps", "out"), call.args, strict=False)) | dict(call.kwargs)
    x = given["input"]
    last = given.get("dim", 1) in (-1, x.ndim - 1)
    plain = given.get("p", 2.0) == 2 and last and given.get("out") is None and x.ndim > 1
    return Unit(x, call.out, given.get("eps", 1e-12)) if plain else None


def _cross_entropy(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    """The mean over [n, C] logits with classes as labels; smoothed labels have the same second derivative."""
    names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    given = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    logits, labels = given["input"], given["target"]
    odd = any(given.get(k) is not None for k in ("weight", "size_average", "reduce"))
    if odd or given.get("reduction", "mean") != "mean" or logits.ndim != 2 or labels.ndim != 1 or can_move(labels):
        return None
    return CrossEntropy(logits, labels, given.get("ignore_index", -100))


_T: Any = Tensor
_RESHAPED: dict[Any, Callable[..., Any]] = {_T.view: _T.reshape}
"""What is called on a tangent in place of a function that needs a certain memory layout: a tangent may be laid out
differently from its tensor, so that ``view`` would fail."""
_DIFFERENCES = (torch.sub, _T.sub, _T.__sub__)
_SELECT = frozenset({
    _T.view, _T.reshape, torch.reshape, _T.flatten, torch.flatten, _T.unflatten, torch.unflatten, _T.permute,
    torch.permute, _T.transpose, torch.transpose, _T.t, _T.mT.__get__, _T.T.__get__, _T.squeeze, torch.squeeze,
    _T.unsqueeze, torch.unsqueeze, _T.contiguous, _T.clone, torch.clone, _T.select, _T.narrow, _T.unbind, torch.unbind,
    _T.chunk, torch.chunk, _T.split, torch.split, _T.movedim, torch.movedim,
})  # fmt: skip
"""Functions that only arrange the entries of their argument."""
_MIX = frozenset({
    _T.expand, _T.__getitem__, _T.mean, torch.mean, _T.sum, torch.sum, _T.neg, torch.neg, _T.__neg__, _T.gather,
    torch.gather,
})  # fmt: skip
"""Other functions that are linear in their first argument."""
_RULES: dict[Any, Rule] = {
    **dict.fromkeys((*_SELECT, *_MIX), _same),
    **dict.fromkeys((torch.add, _T.add, _T.__add__, _T.__radd__, *_DIFFERENCES), _sum),
    **dict.fromkeys((torch.cat, torch.stack), _cat),
    **dict.fromkeys((torch.mul, _T.mul, _T.__mul__, _T.__rmul__), _mul),
    **dict.fromkeys((torch.div, _T.div, _T.__truediv__), _div),
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, _T.matmul, _T.__matmul__, torch.mm, torch.bmm, _T.bmm), _matmul),
    **dict.fromkeys((double_backward.gelu, double_backward.silu), _kernel),
    **dict.fromkeys((torch.sigmoid, _T.sigmoid), _sigmoid),
    double_backward.norm: _layer_norm,
    double_backward.attend: _attention,
    F.normalize: _normalize,
    F.cross_entropy: _cross_entropy,
}
