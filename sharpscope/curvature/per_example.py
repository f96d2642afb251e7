"""The operations at which parameters enter a forward pass ("taps"), which give every example its own direction and
gradient.

A loss that is a mean over examples has H = 1/n sum_j H_j. Hutchinson's v'Hv uses one direction v for all examples. With
an independent direction v_j for each example, 1/n sum_j v_j' H_j v_j has the same mean, tr H, and averages n
independent probes instead of one, at the price of one product. No parameter is copied. Where a parameter enters
linearly, y_j = W x_j + b, moving W by V_j moves y_j by V_j x_j, so that the second derivative of the loss along V_j is
its second derivative with respect to y_j along V_j x_j (the local reparametrisation of Kingma et al. 2015, 1506.02557).
The directions are V_j = V * r_j s_j', elementwise, with shared signs V and signs r_j, s_j of each example (flipout, Wen
et al. 2018, 1803.04386). Then all V_j x_j cost one matrix product, every V_j is a matrix of independent signs, and the
v_j' H_j v_j of two examples are uncorrelated.

The same taps give gradients. The gradient g_j with respect to y_j gives the gradient g_j x_j' with respect to W and its
norm ||g_j|| ||x_j||, for every example of a batch from one backward pass that forms no parameter's gradient (Goodfellow
2015, 1510.01799; for tokens Li et al. 2022, 2110.05679).

``Taps`` watches a forward pass and records these operations. A parameter that enters by another operation, or twice,
gets directions that all examples of a batch share.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

__all__ = ["Signs", "Squares", "Tap", "Taps"]

Signs = Callable[..., Tensor]
"""A function from a shape to independent random signs, +1 or -1, of that shape."""

Tangent = Callable[[Signs, frozenset[str], bool], Tensor]
"""A function of (signs, the parameters that move, whether each moves in units of its own magnitude). It returns the
tangent of the tap's output y when these parameters move in a random direction that differs between examples."""


Squares = Callable[[Tensor, frozenset[str]], dict[str, Tensor]]
"""A function of (the gradient with respect to y, some parameters). For each of these parameters that enters at y, it
returns the squared norm of every example's gradient, float64 [examples]."""


@dataclass(frozen=True)
class Tap:
    """One operation with the output ``y`` [examples, ...] and the parameters ``names`` that enter it linearly."""

    y: Tensor
    names: tuple[str, ...]
    tangent: Tangent
    squares: Squares

    def __post_init__(self) -> None:
        object.__setattr__(self, "_version", self.y._version)

    @property
    def overwritten(self) -> bool:
        """Whether ``y`` was changed in place afterwards, so that it no longer is the output of the operation."""
        return bool(self.y._version != self._version)  # type: ignore[attr-defined]


class Taps(TorchFunctionMode):
    """A context manager that records the taps of ``params`` in a forward pass of ``n`` examples.

    ``taps``: the taps that were found. ``names``: the parameters that enter at exactly one tap and nowhere else. The
    caller has to check that the first dimension of a tap counts the examples, and that no example's output depends on
    another example.
    """

    def __init__(self, params: Mapping[str, Tensor], n: int) -> None:
        super().__init__()
        self._of = {t.untyped_storage().data_ptr(): (name, t.numel()) for name, t in params.items()}
        self._n = n
        self._found: list[Tap] = []
        self._entered: dict[str, int] = {}

    @property
    def names(self) -> frozenset[str]:
        tapped = {name for tap in self.taps for name in tap.names}
        return frozenset(name for name in tapped if self._entered[name] == 1)

    @property
    def taps(self) -> tuple[Tap, ...]:
        return tuple(tap for tap in self._found if not tap.overwritten)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("inplace"):  # an in-place activation would overwrite a tap; out of place it gives the same values
            kwargs = {**kwargs, "inplace": False}
        out = func(*args, **kwargs)
        self.see(func, args, kwargs, out)
        return out

    def see(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Record how ``out = func(*args, **kwargs)`` used the parameters."""
        used = {name for t in _tensors((args, kwargs)) if (name := self._name(t, whole=False)) is not None}
        if not used or not any(t.requires_grad for t in _tensors(out)):
            return
        place = _PLACES.get(func)
        tap = place(self, out, args, kwargs) if place is not None and isinstance(out, Tensor) else None
        known = tap is not None and used == set(tap.names)
        if tap is not None and known:
            self._found.append(tap)
        elif isinstance(out, Tensor) and self._name(out, whole=False) is not None:
            return  # a view of a parameter is not a use of it
        for name in used:
            self._entered[name] = self._entered.get(name, 0) + (1 if known else 2)

    def _name(self, t: Any, *, whole: bool = True) -> str | None:
        """The name of the parameter of which ``t`` is a view; ``whole``: only where the view has all its elements."""
        if not isinstance(t, Tensor) or not t.requires_grad or any(t is tap.y for tap in self._found):
            return None  # y of _repeated shares the parameter's memory, and is recorded as a tap already
        name, size = self._of.get(t.untyped_storage().data_ptr(), (None, 0))
        return name if not whole or t.numel() == size else None

    def _examples(self, *tensors: Any) -> bool:
        """Whether each argument is a tensor with one row per example, and not a parameter."""
        return all(
            isinstance(t, Tensor) and t.ndim > 1 and t.shape[0] == self._n and self._name(t, whole=False) is None
            for t in tensors
        )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _tensors(item)]
    return [t for item in value.values() for t in _tensors(item)] if isinstance(value, Mapping) else []


# ------------------------------------------------------------------ kinds of taps
def _linear(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = x W' + b."""
    given = _bound(_linear_signature, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    return _product(taps, y, x, weight.mT, bias) if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _matmul(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = x P."""
    if len(args) != 2 or kwargs or not isinstance(args[1], Tensor) or args[1].ndim != 2:
        return None
    return _product(taps, y, args[0], args[1], None)


def _product(taps: Taps, y: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tap | None:
    weight_name, bias_name = taps._name(matrix), taps._name(bias)
    if weight_name is None or not taps._examples(x, y) or (bias is not None and bias.requires_grad and not bias_name):
        return None
    x, matrix = x.detach(), matrix.detach()
    bias = None if bias is None else bias.detach()
    between = (1,) * (x.ndim - 2)

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        n, rows = len(x), signs(len(x), *between, matrix.shape[1])
        out = None
        if weight_name in moving:
            shared = signs(*matrix.shape) * (matrix.abs() if by_magnitude else 1)
            out = ((x * signs(n, *between, matrix.shape[0])) @ shared) * rows
        if bias_name in moving and bias is not None:
            own = signs(n, *between, matrix.shape[1]) * (bias.abs() if by_magnitude else 1)
            out = own.expand_as(y) if out is None else out + own
        assert out is not None
        return out

    def squares(g: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        tokens = g.reshape(len(g), -1, g.shape[-1])
        out = {}
        if weight_name in wanted:
            out[weight_name] = _squared_products(x.reshape(len(g), -1, x.shape[-1]), tokens)
        if bias_name in wanted and bias_name:
            out[bias_name] = _squared(tokens, (1, g.shape[-1]))
        return out

    return Tap(y, tuple(n for n in (weight_name, bias_name) if n), tangent, squares)


def _squared_products(x: Tensor, g: Tensor) -> Tensor:
    """||sum_t g_t x_t'||_F^2 of every example, x [n, T, I] and g [n, T, O].

    The sum is either formed as a matrix, with T I O operations, or computed as sum_tt' (g_t.g_t')(x_t.x_t'), with
    T^2 (I + O) operations. The cheaper of the two also needs less memory than x and g together.
    """
    tokens, inputs, outputs = *x.shape[1:], g.shape[2]
    x = x.to(g.dtype)
    if tokens * (inputs + outputs) < inputs * outputs:
        return _inner(x @ x.mT, g @ g.mT)
    matrix = x.mT @ g
    return _inner(matrix, matrix)


def _squared(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """||g_j||^2 of every example, after g_j is summed over the dimensions along which the parameter was broadcast."""
    total = g.sum_to_size(len(g), *shape)
    return _inner(total, total)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a_j, b_j> of every example, summed in the dtype of a, because float64 sums would take 25 times as long."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double()


def _layer_norm(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = w xhat + b, where xhat is x normalised over the last dimensions."""
    given = _bound(_layer_norm_signature, args, kwargs)
    x, shape, eps = given["input"], tuple(given["normalized_shape"]), given["eps"]
    ones = (1,) * (x.ndim - 1 - len(shape))
    return _affine(
        taps, y, x, lambda: F.layer_norm(x.detach(), shape, eps=eps), given["weight"], given["bias"], (*ones, *shape)
    )


def _batch_norm(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = w xhat + b, where xhat is x normalised by the running statistics, channels in the second dimension."""
    given = _bound(_batch_norm_signature, args, kwargs)
    if given["training"]:
        return None
    x, mean, var, eps = given["input"], given["running_mean"], given["running_var"], given["eps"]
    ones = (1,) * (x.ndim - 2)
    return _affine(
        taps, y, x, lambda: F.batch_norm(x.detach(), mean, var, eps=eps), given["weight"], given["bias"],
        (x.shape[1], *ones),
    )  # fmt: skip


def _affine(
    taps: Taps,
    y: Tensor,
    x: Tensor,
    normal: Callable[[], Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, ...],
) -> Tap | None:
    names = taps._name(weight), taps._name(bias)
    if not any(names) or not taps._examples(x, y):
        return None
    parts = [(name, t.detach()) for name, t in zip(names, (weight, bias), strict=True) if name and t is not None]

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        out = torch.zeros_like(y)
        for name, t in parts:
            if name in moving:
                own = signs(len(x), *shape) * (t.abs().view(shape) if by_magnitude else 1)
                out = out + (own * normal() if name == names[0] else own)
        return out

    def squares(g: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        own = [name for name, _ in parts if name in wanted]
        return {name: _squared(g * normal() if name == names[0] else g, shape) for name in own}

    return Tap(y, tuple(name for name, _ in parts), tangent, squares)


def _convolution(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """A convolution as a matrix product of its windows; each entry of a window gets its own sign."""
    given = _bound(_convolution_signature, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given["bias"]
    name, bias_name = taps._name(weight), taps._name(bias)
    if (
        given["groups"] != 1
        or name is None
        or isinstance(given["padding"], str)
        or not taps._examples(x, y)
        or (bias is not None and bias.requires_grad and not bias_name)
    ):
        return None
    x, weight = x.detach(), weight.detach()
    bias = None if bias is None else bias.detach()
    how = {k: given[k] for k in ("dilation", "padding", "stride")}

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        n, channels = len(x), weight.shape[0]
        out = torch.zeros_like(y)
        if name in moving:
            windows = F.unfold(x, weight.shape[2:], **how)  # [n, I k k, places]
            shared = signs(*weight.shape) * (weight.abs() if by_magnitude else 1)
            out = (shared.flatten(1) @ (windows * signs(n, windows.shape[1], 1))).view_as(y)
            out = out * signs(n, channels, 1, 1)
        if bias_name in moving and bias is not None:
            own = signs(n, channels, 1, 1)
            out = out + (own * bias.abs().view(-1, 1, 1) if by_magnitude else own)
        return out

    def squares(g: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        out = {}
        if name in wanted:
            out[name] = _squared_products(F.unfold(x, weight.shape[2:], **how).mT, g.flatten(2).mT)
        if bias_name in wanted and bias_name:
            out[bias_name] = _squared(g, (g.shape[1], 1, 1))
        return out

    return Tap(y, tuple(n for n in (name, bias_name) if n), tangent, squares)


def _added(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = x + p, where p is the same for every example."""
    x, p, name = _operands(taps, args, kwargs)
    if name is None or not taps._examples(x, y):
        return None
    return _own(y, name, p, lambda own: own.expand_as(y), lambda g: g)


def _scaled(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = x p, elementwise."""
    x, p, name = _operands(taps, args, kwargs)
    if name is None or not taps._examples(x, y):
        return None
    x = x.detach()
    return _own(y, name, p, lambda own: x * own, lambda g: x * g)


def _repeated(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = p for every example."""
    p = args[0]
    name = taps._name(p)
    if name is None or y.ndim < 2 or y.shape[0] != taps._n or y.shape[1:] != p.shape[-y.ndim + 1 :]:
        return None
    return _own(y, name, p, lambda own: own, lambda g: g)


def _own(
    y: Tensor, name: str, p: Tensor, apply: Callable[[Tensor], Tensor], transposed: Callable[[Tensor], Tensor]
) -> Tap | None:
    """The tap of y = apply(p), with a separate p for each example.

    ``transposed``: a gradient with respect to y -> the gradient with respect to p before it is summed over the
    dimensions along which p was broadcast.
    """
    p = p.detach()
    if p.ndim == y.ndim and p.shape[0] != 1:
        return None
    shape = (1,) * (y.ndim - p.ndim) + tuple(p.shape)

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        own = signs(len(y), *shape[1:])
        return apply(own * p.abs().view(shape) if by_magnitude else own)

    def squares(g: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        return {name: _squared(transposed(g), shape[1:])} if name in wanted else {}

    return Tap(y, (name,), tangent, squares)


def _operands(taps: Taps, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any, str | None]:
    if len(args) != 2 or kwargs or not all(isinstance(a, Tensor) for a in args):
        return None, None, None
    x, p = args if taps._name(args[1]) else (args[1], args[0])
    return x, p, taps._name(p)


# ------------------------------------------------------------------ signatures, and the function of each operation
def _bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


_linear_signature = inspect.signature(lambda input, weight, bias=None: None)
_layer_norm_signature = inspect.signature(F.layer_norm)
_batch_norm_signature = inspect.signature(F.batch_norm)
_convolution_signature = inspect.signature(
    lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: None
)

_PLACES: dict[Any, Callable[[Taps, Tensor, tuple[Any, ...], Mapping[str, Any]], Tap | None]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.conv2d: _convolution,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm), _matmul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _added),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _scaled),
    Tensor.expand: _repeated,
}
