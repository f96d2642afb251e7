"""How a tangent passes each operation of a forward pass, and what the operation's own curvature adds to v'Hv.

A linear operation maps the tangents x' of its inputs to that of its output. A ``Node`` also knows its second
derivative: with the adjoint a, the gradient of the loss with respect to its output y, it adds <a, y''[x', x']> to v'Hv.
The sums run over each example alone: a form has one entry per example, or several consecutive ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import torch
from torch import Tensor

from sharpscope.curvature.per_example import tensors_in

__all__ = [
    "Attention",
    "CrossEntropy",
    "Elementwise",
    "Moves",
    "Node",
    "Norm",
    "Operation",
    "Part",
    "Product",
    "Step",
    "Unit",
    "moving",
]

Moves = Sequence[Tensor | None]
"""The tangents of the inputs that can move, in the order of the call's arguments; None for one that does not move."""


class Operation:
    """A linear operation: ``tangent(moves)`` is the tangent of its output, or one for each of its outputs.

    ``selects``: whether every entry of the output is a sum of entries of different inputs, or one of them.
    """

    def __init__(self, tangent: Callable[[Moves], Any], selects: bool = False) -> None:
        self.tangent, self.selects = tangent, selects

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """The tensors of the forward pass that it keeps."""
        return ()


class Node(ABC):
    """An operation that is not linear.

    ``adjoin`` gives it the adjoint, without which it cannot be used; ``bend(moves)`` returns the tangent of its output
    and its form.
    """

    @abstractmethod
    def adjoin(self, adjoint: Tensor) -> None:
        """Take the gradient of the loss with respect to the output, and compute what all forms have in common."""

    @abstractmethod
    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        """(tangent of the output, <adjoint, y''[x', x']> by rows of the first dimension)."""

    def push(self, moves: Moves) -> Tensor:
        """The tangent of the output alone."""
        return self.bend(moves)[0]

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """The tensors of the forward and the backward pass that it keeps."""
        return tuple(tensors_in(vars(self)))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over all dimensions but the first."""
    return torch.linalg.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1))


def moving(moves: Moves) -> Tensor:
    """The tangent of the only input that can move."""
    (x,) = moves
    assert x is not None
    return x


class Part(IntEnum):
    """Where an operation stands: the cross-entropy, the rest of what lies behind the embedding, all before it."""

    LOSS, HEAD, BODY = range(3)


@dataclass(frozen=True, eq=False)
class Step:
    """An operation of a forward pass with its slots: of the inputs that can move, and of the outputs."""

    rule: Operation | Node
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    part: Part


# ------------------------------------------------------------------ nodes
class Elementwise(Node):
    """y = f(x): y' = f' x' and y'' = f'' x'^2."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first.detach(), second.detach()

    def adjoin(self, adjoint: Tensor) -> None:
        self.second = self.second * adjoint

    def bend(self, moves: Moves) -> tuple[Tensor, Tensor]:
        x = moving(moves)
        return self.first * x, _dot(x * self.second, x)

    def push(self, moves: Moves) -> Tensor:
        return self.first * moving(moves)

    def mean(self, variance: Tensor) -> Tensor:
        """The mean of the form over tangents whose entries have this variance."""
        return _dot(self.second, variance)


class Norm(Node):
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
        x = moving(moves)
        size, mean, r = x.shape[-1], x.mean(-1, keepdim=True), self.rstd[..., 0]
        s = torch.linalg.vecdot(self.xhat, x).div_(size)
        m = torch.linalg.vecdot(x, x).div_(size) - mean[..., 0].square()
        form = r * (self.along * (3 * s * s - m) - 2 * s * torch.linalg.vecdot(self.pulled, x))
        out = torch.addcmul(x - mean, self.xhat, s.unsqueeze(-1), value=-1).mul_(self.rstd).mul_(self.weight)
        return out, form.flatten(1).sum(1) if form.ndim > 1 else form

    def push(self, moves: Moves) -> Tensor:
        x = moving(moves)
        s = torch.linalg.vecdot(self.xhat, x).div_(x.shape[-1]).unsqueeze(-1)
        return torch.addcmul(x - x.mean(-1, keepdim=True), self.xhat, s, value=-1).mul_(self.rstd).mul_(self.weight)

    def mean(self, variance: Tensor) -> Tensor:
        """The mean of the form over tangents of this variance, uncorrelated within the last dimension."""
        size, total = variance.shape[-1], variance.sum(-1)
        s = torch.linalg.vecdot(self.xhat.square(), variance) / size**2
        m = total / size - total / size**2
        cross = torch.linalg.vecdot(self.xhat * self.pulled, variance) / size
        return _dot(self.rstd[..., 0], self.along * (3 * s - m) - 2 * cross)


class Attention(Node):
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

    def push(self, moves: Moves) -> Tensor:
        q, k, v = moves
        out = None if v is None else torch.bmm(self.p, v)
        s = None if q is None else torch.bmm(q, self.k.mT)
        if k is not None:
            s = torch.bmm(self.q, k.mT) if s is None else s.baddbmm_(self.q, k.mT)
        if s is not None:
            moved = s.mul_(self.p)
            part = torch.addcmul(torch.bmm(moved, self.v), moved.sum(-1, keepdim=True), self.out, value=-1)
            out = part if out is None else out.add_(part)
        assert out is not None
        return out

    def mean(self, gram: Tensor) -> Tensor:
        """The mean of the form over q', k' and v' that are uncorrelated and each have the covariance ``gram``.

        ``gram`` [n, T, T] is that of the tokens, for every entry of the last dimension alone; the queries are those of
        the first tokens.
        """
        gram = gram.repeat_interleave(len(self.q) // len(gram), 0)
        own = gram.diagonal(dim1=-2, dim2=-1)
        queries = own[:, : self.q.shape[1]].unsqueeze(-1)
        q, k = (torch.linalg.vecdot(x, x) for x in (self.q, self.k))
        square = queries * k.unsqueeze(-2) + q.unsqueeze(-1) * own.unsqueeze(-2)
        with_mean = queries * torch.bmm(torch.bmm(self.p, self.k), self.k.mT)
        with_mean = with_mean + q.unsqueeze(-1) * torch.bmm(self.p, gram)
        return _dot(self.scores, square - 2 * with_mean)


class Product(Node):
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


class Unit(Node):
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
        x = moving(moves)
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
        x = moving(moves)
        mean = torch.linalg.vecdot(self.p, x)
        return x.new_zeros(()), self.share * (torch.linalg.vecdot(self.p * x, x) - mean * mean)
