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

``Taps`` watches a forward pass and records these operations. ``sole_readings`` proves on autograd's graph that a
parameter reaches the loss through its tap alone; ``stands_alone`` verifies that no example of a batch depends on
another. A parameter that fails either check gets directions that all examples of a batch share.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from sharpscope.curvature import double_backward
from sharpscope.machine.devices import onto

__all__ = ["Inner", "Signs", "Spread", "Tap", "Taps", "sole_readings", "stands_alone", "tensors_in"]

SCALES = 13
"""The number of scales, 2^-6 ... 2^6, from which ``stands_alone`` draws one for each example. Two examples with the
same scale cannot reveal whether they see each other."""

Signs = Callable[..., Tensor]
"""A function from a shape to independent random signs, +1 or -1, of that shape."""

Tangent = Callable[[Signs, frozenset[str], bool], Tensor]
"""A function of (signs, the parameters that move, whether each moves in units of its own magnitude). It returns the
tangent of the tap's output y when these parameters move in a random direction that differs between examples."""


Inner = Callable[[Tensor, Tensor, frozenset[str]], dict[str, Tensor]]
"""A function of (two gradients a and b with respect to y, some parameters). For each of these parameters that enters at
y, it returns the inner product of every example's two gradients, float64 [examples]."""


@dataclass(frozen=True)
class Spread:
    """The second moments of a tap's tangent for independent signs, as functions of the parameters that move.

    ``variance``: of each entry of y. Entries that differ in the last dimension are uncorrelated. ``gram``: for y of
    shape [n, T, O], the covariance of y_t and y_t', the same for every entry of the last dimension, [n, T, T].
    """

    variance: Callable[[frozenset[str]], Tensor]
    gram: Callable[[frozenset[str]], Tensor] | None = None


@dataclass(frozen=True)
class Tap:
    """One operation with the output ``y`` [examples, ...] and the parameters ``names`` that enter it linearly."""

    y: Tensor
    names: tuple[str, ...]
    tangent: Tangent
    inner: Inner
    saved: tuple[Tensor, ...] = ()
    """The tensors of the forward pass that ``tangent`` and ``inner`` read."""
    spread: Spread | None = None
    """The moments of the tangent, where they are known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_version", self.y._version)

    def squares(self, g: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
        """{parameter: squared norm of every example's gradient, float64 [examples]} from the gradient ``g`` at y."""
        return self.inner(g, g, names)

    def released(self) -> Tap:
        """The tap without the tensor y, which holds on to the graph of the forward pass."""
        return replace(self, y=self.y.new_empty(0))

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
        if torch._C._are_functorch_transforms_active():
            return  # under vmap or jacrev a tensor is no row of the batch; ``sole_readings`` sees what is read there
        used = {name for t in tensors_in((args, kwargs)) if (name := self._name(t, whole=False)) is not None}
        if not used or not any(t.requires_grad for t in tensors_in(out)):
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
        if not isinstance(t, Tensor) or t.layout is not torch.strided or not t.requires_grad:
            return None
        if any(t is tap.y for tap in self._found):
            return None  # y of _repeated shares the parameter's memory, and is recorded as a tap already
        name, size = self._of.get(t.untyped_storage().data_ptr(), (None, 0))
        return name if not whole or t.numel() == size else None

    def _examples(self, *tensors: Any) -> bool:
        """Whether each argument is a tensor with one row per example, and not a parameter."""
        return all(
            isinstance(t, Tensor) and t.ndim > 1 and t.shape[0] == self._n and self._name(t, whole=False) is None
            for t in tensors
        )


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings, in their order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item)]
    return [t for item in value.values() for t in tensors_in(item)] if isinstance(value, Mapping) else []


# ------------------------------------------------------------------ what has to hold at a place
def sole_readings(out: Tensor, taps: Sequence[Tap], params: Mapping[str, Tensor]) -> frozenset[str]:
    """The parameters that reach ``out`` through the tap that names them, and by no other way.

    Proved on autograd's graph, which has an edge for everything that a derivative is taken of: readings inside an
    autograd.Function, under vmap, in a scripted function or by forward-mode derivatives are in it, though no watcher of
    Python calls sees them. A parameter passes if from its leaf on every node has one consumer, up to the tap's output.
    """
    consumers: Counter[Any] = Counter()
    only: dict[Any, Any] = {}
    todo = [out.grad_fn]
    seen = {None, out.grad_fn}
    while todo:
        node = todo.pop()
        for following, _ in node.next_functions if node is not None else ():
            if following is None:
                continue
            consumers[following] += 1
            only[following] = node
            if following not in seen:
                seen.add(following)
                todo.append(following)
    leaves = {id(node.variable): node for node in seen if node is not None and hasattr(node, "variable")}
    passed = set()
    for tap in taps:
        for name in tap.names:
            node = leaves.get(id(params[name]))
            while node is not None and node is not tap.y.grad_fn:
                node = only[node] if consumers[node] == 1 else None
            if node is not None:
                passed.add(name)
    return frozenset(passed)


def stands_alone(
    outputs: Sequence[Tensor], places: Sequence[Tensor], draw: Callable[[Tensor], Tensor], examples: int
) -> list[bool]:
    """Whether row j of the derivatives at each place comes from row j of the ``outputs`` alone.

    P(c) are the derivatives of <outputs, c> at the places, c drawn by ``draw``. If no example sees another, scaling the
    rows of c by r scales those of P by r, and exactly so in floating point where r_j is a power of two: one wrong entry
    for any two examples shows, unless all pairs that see each other have drawn the same of ``SCALES`` scales. What is
    allowed for is the rounding of sums whose order changes from call to call (on a GPU).
    """
    cotangents = [draw(t) for t in outputs]
    plain = _derivatives(outputs, places, cotangents)
    # Not in place: the derivative at a place that is an output is the cotangent itself.
    scaled = _derivatives(outputs, places, [c * _row_scales(examples, c) for c in cotangents])
    alone: list[Tensor] = []
    for p, q in zip(plain, scaled, strict=True):
        gap = torch.linalg.vector_norm(q / _row_scales(examples, q) - p)
        eps = min(torch.finfo(p.dtype).eps, torch.finfo(torch.float32).eps)  # scaling is exact in half precision too
        alone.append(gap <= 64 * eps * torch.linalg.vector_norm(p))
    return torch.stack(alone).tolist()


def _derivatives(outputs: Sequence[Tensor], places: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.autograd.grad(
        outputs, places, cotangents, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _row_scales(examples: int, like: Tensor) -> Tensor:
    """A power of two for every example, [examples, 1, ...]; the first and the last differ."""
    powers = torch.randint(0, SCALES, (examples,), generator=torch.Generator().manual_seed(1)) - SCALES // 2
    powers[0], powers[-1] = -1, 1  # two examples never draw the same
    return onto(torch.exp2(powers.double()), like.device).to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


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
    between, whole = (1,) * (x.ndim - 2), y.shape

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        n, rows = len(x), signs(len(x), *between, matrix.shape[1])
        out = None
        if weight_name in moving:
            shared = signs(*matrix.shape) * (matrix.abs() if by_magnitude else 1)
            out = ((x * signs(n, *between, matrix.shape[0])) @ shared) * rows
        if bias_name in moving and bias is not None:
            own = signs(n, *between, matrix.shape[1]) * (bias.abs() if by_magnitude else 1)
            out = own.expand(whole) if out is None else out + own
        assert out is not None
        return out

    products = _Products(x.reshape(len(x), -1, x.shape[-1]))

    def inner(a: Tensor, b: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        ours = [g.reshape(len(g), -1, g.shape[-1]) for g in ((a,) if a is b else (a, b))]
        out = {}
        if weight_name in wanted:
            out[weight_name] = products(ours[0], ours[-1])
        if bias_name in wanted and bias_name:
            out[bias_name] = _broadcast(ours[0], ours[-1], (1, a.shape[-1]))
        return out

    def gram(moving: frozenset[str]) -> Tensor:
        total = x @ x.mT if weight_name in moving else x.new_zeros(*x.shape[:-1], x.shape[-2])
        return total + (bias_name in moving)

    def variance(moving: frozenset[str]) -> Tensor:
        total = torch.linalg.vecdot(x, x) if weight_name in moving else x.new_zeros(x.shape[:-1])
        return (total + (bias_name in moving)).unsqueeze(-1).expand(whole)

    names, spread = tuple(n for n in (weight_name, bias_name) if n), Spread(variance, gram if x.ndim == 3 else None)
    return Tap(y, names, tangent, inner, (x,), spread)


class _Products:
    """<sum_t a_t x_t', sum_t b_t x_t'> of every example, x [n, T, I], a and b [n, T, O].

    The sums are either formed as matrices, with T I O operations, or their product is computed as
    sum_tt' (a_t.b_t')(x_t.x_t'), with T^2 (I + O) operations, of which those with I are only needed once. The cheaper
    of the two also needs less memory than x and a together.
    """

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._gram: Tensor | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        tokens, inputs, outputs = *self.x.shape[1:], a.shape[2]
        x = self.x.to(a.dtype)
        if tokens * (inputs + outputs) < inputs * outputs:
            if self._gram is None:
                self._gram = x @ x.mT
            return _inner(self._gram, a @ b.mT)
        matrix = x.mT @ a
        return _inner(matrix, matrix if a is b else x.mT @ b)


def _broadcast(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> Tensor:
    """<a_j, b_j> of every example, both summed over the dimensions along which the parameter was broadcast."""
    total = a.sum_to_size(len(a), *shape)
    return _inner(total, total if a is b else b.sum_to_size(len(b), *shape))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """<a_j, b_j> of every example, summed in the dtype of a, because float64 sums would take 25 times as long."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).double()


def _layer_norm(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = w xhat + b, where xhat is x normalised over the last dimensions."""
    given = _bound(_layer_norm_signature, args, kwargs)
    return _normalized(taps, y, given["input"], given["normalized_shape"], given["weight"], given["bias"], given["eps"])


def _norm(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """The same over the last dimension, with analytic derivatives (``double_backward.norm``)."""
    x, weight, bias, eps = args
    return _normalized(taps, y, x, x.shape[-1:], weight, bias, eps)


def _normalized(
    taps: Taps, y: Tensor, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tap | None:
    fixed, shape = x.detach(), tuple(shape)
    ones = (1,) * (x.ndim - 1 - len(shape))
    return _affine(taps, y, x, lambda: F.layer_norm(fixed, shape, eps=eps), weight, bias, (*ones, *shape))


def _batch_norm(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = w xhat + b, where xhat is x normalised by the running statistics, channels in the second dimension."""
    given = _bound(_batch_norm_signature, args, kwargs)
    if given["training"]:
        return None
    x, mean, var, eps = given["input"], given["running_mean"], given["running_var"], given["eps"]
    fixed, ones = x.detach(), (1,) * (x.ndim - 2)
    return _affine(
        taps, y, x, lambda: F.batch_norm(fixed, mean, var, eps=eps), given["weight"], given["bias"],
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
    n, whole, saved = len(x), y.shape, x.detach()

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        out = None
        for name, t in parts:
            if name in moving:
                own = signs(n, *shape) * (t.abs().view(shape) if by_magnitude else 1)
                part = own * normal() if name == names[0] else own.expand(whole)
                out = part if out is None else out + part
        assert out is not None
        return out

    def inner(a: Tensor, b: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        out = {}
        for name, _ in parts:
            if name in wanted:
                by = normal() if name == names[0] else None
                left = a if by is None else a * by
                out[name] = _broadcast(left, left if a is b else b if by is None else b * by, shape)
        return out

    return Tap(y, tuple(name for name, _ in parts), tangent, inner, (saved,))


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
    whole = y.shape

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        n, channels = len(x), weight.shape[0]
        out = x.new_zeros(whole)
        if name in moving:
            windows = F.unfold(x, weight.shape[2:], **how)  # [n, I k k, places]
            shared = signs(*weight.shape) * (weight.abs() if by_magnitude else 1)
            out = (shared.flatten(1) @ (windows * signs(n, windows.shape[1], 1))).view(whole)
            out = out * signs(n, channels, 1, 1)
        if bias_name in moving and bias is not None:
            own = signs(n, channels, 1, 1)
            out = out + (own * bias.abs().view(-1, 1, 1) if by_magnitude else own)
        return out

    def inner(a: Tensor, b: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        out = {}
        if name in wanted:
            left = a.flatten(2).mT
            products = _Products(F.unfold(x, weight.shape[2:], **how).mT)
            out[name] = products(left, left if a is b else b.flatten(2).mT)
        if bias_name in wanted and bias_name:
            out[bias_name] = _broadcast(a, b, (a.shape[1], 1, 1))
        return out

    return Tap(y, tuple(n for n in (name, bias_name) if n), tangent, inner, (x,))


def _added(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = x + p, where p is the same for every example."""
    x, p, name = _operands(taps, args, kwargs)
    if name is None or not taps._examples(x, y):
        return None
    whole = y.shape
    return _own(y, name, p, lambda own: own.expand(whole), lambda g: g)


def _scaled(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = x p, elementwise."""
    x, p, name = _operands(taps, args, kwargs)
    if name is None or not taps._examples(x, y):
        return None
    x = x.detach()
    return _own(y, name, p, lambda own: x * own, lambda g: x * g, (x,))


def _repeated(taps: Taps, y: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tap | None:
    """y = p for every example."""
    p = args[0]
    name = taps._name(p)
    if name is None or y.ndim < 2 or y.shape[0] != taps._n or y.shape[1:] != p.shape[-y.ndim + 1 :]:
        return None
    return _own(y, name, p, lambda own: own, lambda g: g)


def _own(
    y: Tensor,
    name: str,
    p: Tensor,
    apply: Callable[[Tensor], Tensor],
    transposed: Callable[[Tensor], Tensor],
    saved: tuple[Tensor, ...] = (),
) -> Tap | None:
    """The tap of y = apply(p), with a separate p for each example.

    ``transposed``: a gradient with respect to y -> the gradient with respect to p before it is summed over the
    dimensions along which p was broadcast.
    """
    p = p.detach()
    if p.ndim == y.ndim and p.shape[0] != 1:
        return None
    n, shape = len(y), (1,) * (y.ndim - p.ndim) + tuple(p.shape)

    def tangent(signs: Signs, moving: frozenset[str], by_magnitude: bool) -> Tensor:
        own = signs(n, *shape[1:])
        return apply(own * p.abs().view(shape) if by_magnitude else own)

    def inner(a: Tensor, b: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        if name not in wanted:
            return {}
        left = transposed(a)
        return {name: _broadcast(left, left if a is b else transposed(b), shape[1:])}

    def variance(moving: frozenset[str]) -> Tensor:
        return apply(p.new_ones(n, *shape[1:])).square().expand(whole)

    whole = y.shape
    spread = Spread(variance) if p.ndim and p.shape[-1] == y.shape[-1] else None
    return Tap(y, (name,), tangent, inner, saved, spread)


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
    double_backward.norm: _norm,
    F.batch_norm: _batch_norm,
    F.conv2d: _convolution,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm), _matmul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _added),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _scaled),
    Tensor.expand: _repeated,
}
