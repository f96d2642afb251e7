"""How a tangent passes each operation of a forward pass, and what the operation's own curvature adds to v'Hv.

``operation(call, moves)`` turns a recorded call into an ``Operation``; None where no rule covers the call. A linear
operation maps the tangents x' of its inputs to that of its output. A ``Node`` also knows its second derivative: with
the adjoint a, the gradient of the loss with respect to its output y, it adds <a, y''[x', x']> to v'Hv. The sums run
over each example alone: a form has one entry per example, or several consecutive ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature import double_backward
from sharpscope.curvature.per_example import tensors_in
from sharpscope.curvature.tape import Call

__all__ = ["CrossEntropy", "Node", "Operation", "operation"]

Moves = Sequence[Tensor | None]
"""The tangents of the inputs that can move, in the order of the call's arguments; None for one that does not move."""


class Operation:
    """A linear operation: ``tangent(moves)`` is the tangent of its output, or one for each of its outputs."""

    def __init__(self, tangent: Callable[[Moves], Any]) -> None:
        self.tangent = tangent

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """The tensors of the forward pass that it keeps."""
        return ()


class Node:
    """An operation that is not linear.

    ``adjoin`` gives it the adjoint, without which it cannot be used; ``bend(moves)`` returns the tangent of its output
    and its form.
    """

    def adjoin(self, adjoint: Tensor) -> None:
        """Take the gradient of the loss with respect to the output, and compute what all forms have in common."""
        raise NotImplementedError

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        """(tangent of the output, <adjoint, y''[x', x']> by rows of the first dimension)."""
        raise NotImplementedError

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """The tensors of the forward and the backward pass that it keeps."""
        return tuple(tensors_in(vars(self)))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over all dimensions but the first."""
    return torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))


def _moving(moves: Moves) -> Tensor:
    (x,) = moves
    assert x is not None
    return x


# ------------------------------------------------------------------ nodes
class _Elementwise(Node):
    """y = f(x): y' = f' x' and y'' = f'' x'^2."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first.detach(), second.detach()

    def adjoin(self, adjoint: Tensor) -> None:
        self.second = self.second * adjoint

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        x = _moving(moves)
        return self.first * x, _dot(x * self.second, x)


class _Norm(Node):
    """y = w xhat + b, xhat = r (x - mean), r = 1 / sqrt(var + eps), over the last dimension of size d.

    With s = mean(xhat x'), D = x' - mean(x') and m = mean(D^2):  y' = w r (D - s xhat)  and
    <a, y''> = r <w r a, xhat> (3 s^2 - m) - 2 r s <w r a, D>.
    """

    def __init__(self, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> None:
        self.weight, self.rstd = weight.detach(), rstd.detach()
        self.xhat = (x.detach() - mean.detach()).mul_(self.rstd)

    def adjoin(self, adjoint: Tensor) -> None:
        pulled = adjoint * self.weight * self.rstd
        self.along = torch.linalg.vecdot(pulled, self.xhat)
        self.pulled = pulled.sub_(pulled.mean(-1, keepdim=True))

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        x = _moving(moves)
        size, mean, r = x.shape[-1], x.mean(-1, keepdim=True), self.rstd[..., 0]
        s = torch.linalg.vecdot(self.xhat, x).div_(size)
        m = torch.linalg.vecdot(x, x).div_(size) - mean[..., 0].square()
        form = r * (self.along * (3 * s * s - m) - 2 * s * torch.linalg.vecdot(self.pulled, x))
        out = torch.addcmul(x - mean, self.xhat, s.unsqueeze(-1), value=-1).mul_(self.rstd).mul_(self.weight)
        return out, form.flatten(1).sum(1) if form.ndim > 1 else form


class _Attention(Node):
    """O = P v with P = softmax(S), S = scale q k' + mask.

    With S' = scale (q' k' + q k') and its mean m = rows(P S'):  O' = (P S') v - m O + P v'  and
    <a, O''> = sum aS ((S' - m)^2 + 2 scale q'.k') + 2 <a, (P S') v' - m P v'>, where aS is the adjoint of S.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, p: Tensor, out: Tensor, scale: float) -> None:
        self.q, self.k, self.v, self.p, self.out = (t.detach() for t in (q * scale, k * scale, v, p, out))
        self.scale = scale

    def adjoin(self, adjoint: Tensor) -> None:
        back = torch.bmm(adjoint, self.v.mT)
        self.adjoint = adjoint
        self.scores = back.sub_(torch.linalg.vecdot(self.p, back).unsqueeze(-1)).mul_(self.p)

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        q, k, v = moves
        weighted = None if v is None else torch.bmm(self.p, v)  # P v'
        s = None if q is None else torch.bmm(q, self.k.mT)
        if k is not None:
            s = torch.bmm(self.q, k.mT) if s is None else s.baddbmm_(self.q, k.mT)
        if s is None:
            assert weighted is not None
            return weighted, weighted.new_zeros(len(weighted))
        moved = self.p * s
        mean = moved.sum(-1, keepdim=True)
        s = s.sub_(mean)
        form = _dot(s * self.scores, s)
        if q is not None and k is not None:
            form = form + (2 * self.scale) * _dot(torch.bmm(self.scores, k), q)
        out = torch.addcmul(torch.bmm(moved, self.v), mean, self.out, value=-1)
        if v is not None and weighted is not None:
            form = form + 2 * _dot(torch.addcmul(torch.bmm(moved, v), mean, weighted, value=-1), self.adjoint)
            out = out.add_(weighted)
        return out, form


class _Product(Node):
    """y = a b, elementwise: y' = a' b + a b' and y'' = 2 a' b'."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a.detach(), b.detach()

    def adjoin(self, adjoint: Tensor) -> None:
        self.adjoint = adjoint

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        a, b = moves
        if a is None or b is None:
            out = a * self.b if a is not None else self.a * cast(Tensor, b)
            return out, out.new_zeros(len(out))
        form = 2 * _dot(a * self.adjoint, b)
        return torch.addcmul(a * self.b, self.a, b), form


class _Unit(Node):
    """y = x / |x| over the last dimension (x / eps where |x| < eps).

    With t = y.x':  y' = (x' - t y) / |x|  and  y'' = -(2 t y' + (|x'|^2 - t^2) y / |x|) / |x|.
    """

    def __init__(self, x: Tensor, y: Tensor, eps: float) -> None:
        length = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
        self.y, self.length = y.detach(), length.clamp_min(eps)
        self.bent = (length > eps).to(x)

    def adjoin(self, adjoint: Tensor) -> None:
        self.adjoint = adjoint

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        x = _moving(moves)
        t = torch.linalg.vecdot(self.y, x).unsqueeze(-1) * self.bent
        out = (x - t * self.y) / self.length
        square = torch.linalg.vecdot(x, x).unsqueeze(-1) * self.bent - t * t
        return out, -_dot(self.adjoint, (2 * t * out + square * self.y / self.length) / self.length)


class CrossEntropy(Node):
    """The mean cross-entropy of logits f with classes: <a, y''> = a / n (sum p f'^2 - (sum p f')^2)."""

    def __init__(self, logits: Tensor, labels: Tensor, ignored: int) -> None:
        self.p = logits.detach().softmax(1)
        counted = labels.ne(ignored).to(self.p)
        self.share = counted / counted.sum()

    def adjoin(self, adjoint: Tensor) -> None:
        self.share = self.share * adjoint

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        x = _moving(moves)
        mean = torch.linalg.vecdot(self.p, x)
        return x.new_zeros(()), self.share * (torch.linalg.vecdot(self.p * x, x) - mean * mean)


# ------------------------------------------------------------------ which rule a call has
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
    return Operation(lambda moves: function(moves[0], *fixed, **named))


def _constant(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _sum(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """a + b or a - b."""
    if len(call.args) != 2 or call.kwargs:
        return None
    moving = [can_move(a) for a in call.args]
    shape, sign = call.out.shape, -1 if call.function in _DIFFERENCES else 1
    if moving == [True, True]:

        def both(moves: Moves) -> Tensor:
            a, b = moves
            if a is None or b is None:
                return (cast(Tensor, b) * sign if a is None else a).expand(shape)
            return a + b if sign > 0 else a - b

        return Operation(both)
    factor = 1 if moving[0] else sign
    return Operation(lambda moves: (_moving(moves) * factor if factor < 0 else _moving(moves)).expand(shape))


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

    return Operation(joined)


def _mul(call: Call, can_move: Callable[[Any], bool]) -> Operation | Node | None:
    if len(call.args) != 2 or call.kwargs:
        return None
    a, b = call.args
    if can_move(a) and can_move(b):
        return _Product(a, b) if a.shape == b.shape and a.ndim else None
    return _scale(_constant(b) if can_move(a) else _constant(a), call.out.shape)


def _div(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    if len(call.args) != 2 or call.kwargs or can_move(call.args[1]):
        return None
    return _scale(1 / _constant(call.args[1]), call.out.shape)


def _scale(by: Any, shape: torch.Size) -> Operation:
    return Operation(lambda moves: (_moving(moves) * by).expand(shape))


def _linear(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """x W' + b with W and b constant."""
    x, weight = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs.get("weight")
    rest = tensors_in((call.args[1:], call.kwargs))
    if not can_move(x) or not isinstance(weight, Tensor) or any(can_move(t) for t in rest):
        return None
    fixed = weight.detach()
    return Operation(lambda moves: F.linear(_moving(moves), fixed))


def _matmul(call: Call, can_move: Callable[[Any], bool]) -> Operation | None:
    """a b with one of them constant."""
    if len(call.args) != 2 or call.kwargs or all(can_move(a) for a in call.args):
        return None
    a, b = (_constant(t) for t in call.args)
    if can_move(call.args[0]):
        return Operation(lambda moves: _moving(moves) @ b)
    return Operation(lambda moves: a @ _moving(moves))


def _kernel(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    """An elementwise function whose node saves (x, f', f'')."""
    _, first, second = call.out.grad_fn.saved_tensors
    return _Elementwise(first, second)


def _sigmoid(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    s = call.out.detach()
    first = s * (1 - s)
    return _Elementwise(first, first * (1 - 2 * s)) if len(call.args) == 1 and not call.kwargs else None


def _layer_norm(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    moving = [can_move(a) for a in call.args[:3]]
    return _Norm(*call.out.grad_fn.saved_tensors) if moving == [True, False, False] else None


def _attention(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    node = call.out.grad_fn
    q, k, v, p = node.saved_tensors
    return _Attention(q, k, v, p, call.out, node.scale) if all(map(can_move, call.args[:3])) else None


def _normalize(call: Call, can_move: Callable[[Any], bool]) -> Node | None:
    """F.normalize(x, p=2, dim=-1)."""
    given = dict(zip(("input", "p", "dim", "eps", "out"), call.args, strict=False)) | dict(call.kwargs)
    x = given["input"]
    last = given.get("dim", 1) in (-1, x.ndim - 1)
    plain = given.get("p", 2.0) == 2 and last and given.get("out") is None and x.ndim > 1
    return _Unit(x, call.out, given.get("eps", 1e-12)) if plain else None


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
"""A tangent may lie in memory otherwise than the tensor it belongs to, so that it has no such view."""
_DIFFERENCES = (torch.sub, _T.sub, _T.__sub__)
_RULES: dict[Any, Rule] = {
    **dict.fromkeys(
        (
            _T.view,
            _T.reshape,
            torch.reshape,
            _T.flatten,
            torch.flatten,
            _T.unflatten,
            torch.unflatten,
            _T.permute,
            torch.permute,
            _T.transpose,
            torch.transpose,
            _T.t,
            _T.mT.__get__,
            _T.T.__get__,
            _T.squeeze,
            torch.squeeze,
            _T.unsqueeze,
            torch.unsqueeze,
            _T.expand,
            _T.contiguous,
            _T.clone,
            torch.clone,
            _T.__getitem__,
            _T.select,
            _T.narrow,
            _T.unbind,
            torch.unbind,
            _T.chunk,
            torch.chunk,
            _T.split,
            torch.split,
            _T.movedim,
            torch.movedim,
            _T.mean,
            torch.mean,
            _T.sum,
            torch.sum,
            _T.neg,
            torch.neg,
            _T.__neg__,
            _T.gather,
            torch.gather,
        ),
        _same,
    ),
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
