"""Analytic SECOND derivatives of the operations that dominate a Hessian-vector product of a transformer.

Autograd differentiates the backward formulas of GELU, layer norm and attention as chains of some ten to thirty small
operations; the analytic formulas need a third of them. Inside ``analytic_kernels()`` every module uses these formulas
when a loss is computed; values, gradients and Hessians are the same up to rounding (tests/laws). Where an operation is
called in a way that they do not cover (dropout, masks that need a gradient, half precision), torch's own operation
runs.

Each forward pass also computes what the two derivatives need. The operations cannot be differentiated a third time and
raise ``ThirdDerivative`` if that is attempted. (torch's own ``once_differentiable`` would cut the graph instead, which
turns into a silent zero where unused inputs are allowed.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

__all__ = ["SelfAttention", "ThirdDerivative", "analytic_kernels", "attend", "gelu", "norm", "self_attention", "silu"]


class ThirdDerivative(RuntimeError):  # noqa: N818 - it names what was asked for
    """Raised on a third derivative. A loss that itself contains a gradient needs it and has to use torch's formulas."""


def _last(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for the backward of a backward: differentiating it again raises ThirdDerivative."""

    @functools.wraps(backward)
    def checked(*args: Any) -> Any:
        if torch.is_grad_enabled():
            raise ThirdDerivative("This operation has no third derivative: compute the loss without analytic_kernels.")
        return backward(*args)

    return checked


# ------------------------------------------------------------------ GELU
class _Gelu(torch.autograd.Function):
    """x Phi(x), with f' = Phi + x phi and f'' = (2 - x^2) phi."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        cdf = torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5)
        square = x * x
        phi = torch.exp(-0.5 * square).mul_(1 / math.sqrt(2 * math.pi))
        ctx.save_for_backward(x, torch.addcmul(cdf, x, phi), square.neg_().add_(2).mul_(phi))
        return cdf.mul_(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _slope(g, *ctx.saved_tensors)


class _Silu(torch.autograd.Function):
    """x s with s = sigmoid(x): f' = s + x s(1 - s), f'' = s(1 - s) (2 + x (1 - 2 s))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x)
        d = s * (1 - s)
        ctx.save_for_backward(x, torch.addcmul(s, x, d), d * (2 + x * (1 - 2 * s)))
        return s.mul_(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _slope(g, *ctx.saved_tensors)


def _slope(g: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """g f'(x); with gradients disabled, without the work for a further derivative."""
    return _Slope.apply(g, x, first, second) if torch.is_grad_enabled() else g * first


class _Slope(torch.autograd.Function):
    """g f'(x), whose derivatives are f'(x) with respect to g and g f''(x) with respect to x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, g * second)
        return g * first

    @staticmethod
    @_last
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor, Tensor, None, None]:
        first, bend = ctx.saved_tensors
        return c * first, c * bend, None, None


# ------------------------------------------------------------------ layer norm over the last dimension
class _Norm(torch.autograd.Function):
    """y = w * xhat + b, xhat = (x - mean) / sqrt(var + eps)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, (x.shape[-1],), w, b, eps)
        ctx.save_for_backward(x, w, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, w, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return (*_NormGradient.apply(g, x, w, mean, rstd), None)
        return (*_norm_backward(g.contiguous(), x, w, mean, rstd), None)


def _norm_backward(g: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
        g, x, (x.shape[-1],), mean, rstd, w, torch.zeros_like(w), [True, True, True]
    )
    return out


class _NormGradient(torch.autograd.Function):
    """(r P(w g), sum g xhat, sum g) with P u = u - mean(u) - xhat mean(u xhat), r = 1 / sqrt(var + eps).

    With c the cotangent of the first output gx, the gradient is w r P c with respect to g, and sum g r P c with respect
    to w. Since dr/dx = -r^2 xhat / n and dxhat/dx = r P, it is
    -r [r mean(w g xhat) P c + mean(c xhat) gx + xhat mean(c gx)] with respect to x.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g = g.contiguous()
        xhat = (x - mean).mul_(rstd)
        gx, gw, gb = _norm_backward(g, x, w, mean, rstd)
        h = _rows(g * w, xhat)
        ctx.save_for_backward(g, w, xhat, rstd, gx, h)
        ctx.set_materialize_grads(False)
        return gx, gw, gb

    @staticmethod
    @_last
    def backward(ctx: Any, c: Tensor | None, cw: Tensor | None, cb: Tensor | None) -> tuple[Tensor | None, ...]:
        g, w, xhat, rstd, gx, h = ctx.saved_tensors
        to_g = to_x = to_w = None
        if c is not None:
            a = _rows(c, xhat)
            p = torch.addcmul(c - c.mean(-1, keepdim=True), xhat, a, value=-1).mul_(rstd)  # r P c
            to_w = (g * p).flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
            to_x = torch.addcmul(p * h, gx, a).addcmul_(xhat, _rows(c, gx)).mul_(rstd.neg())
            to_g = p * w
        if cw is not None:
            u = g * cw
            more = torch.addcmul(u - u.mean(-1, keepdim=True), xhat, _rows(u, xhat), value=-1).mul_(rstd)
            to_x = more if to_x is None else to_x + more
            to_g = xhat * cw if to_g is None else to_g.addcmul_(xhat, cw)
        if cb is not None:
            to_g = cb.expand_as(g) if to_g is None else to_g + cb
        return to_g, to_x, to_w, None, None


def _rows(a: Tensor, b: Tensor) -> Tensor:
    """mean(a b) over the last dimension, which is kept with size 1."""
    return torch.linalg.vecdot(a, b).div_(a.shape[-1]).unsqueeze(-1)


# ------------------------------------------------------------------ attention
class _Attention(torch.autograd.Function):
    """softmax(scale q k' + mask) v, [N, T, d] each; the mask is a constant."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        scores = torch.bmm(q, k.mT).mul_(scale)
        a = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        ctx.save_for_backward(q, k, v, a)
        ctx.scale = scale
        return torch.bmm(a, v)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return (*_AttentionGradient.apply(g, *ctx.saved_tensors, ctx.scale), None, None)


class _AttentionGradient(torch.autograd.Function):
    """dV = A'G, dA = G V', dS = A (dA - rows(A dA)), dq = s dS k, dk = s dS' q."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        da = torch.bmm(g, v.mT)
        centred = da - torch.linalg.vecdot(a, da).unsqueeze(-1)
        ds = (a * centred).mul_(scale)
        ctx.save_for_backward(g, q, k, v, a, da, centred, ds)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        return torch.bmm(ds, k), torch.bmm(ds.mT, q), torch.bmm(a.mT, g)

    @staticmethod
    @_last
    def backward(ctx: Any, cq: Tensor | None, ck: Tensor | None, cv: Tensor | None) -> tuple[Tensor | None, ...]:
        g, q, k, v, a, da, centred, ds = ctx.saved_tensors
        e = None  # the cotangent of dS
        if cq is not None:
            e = torch.bmm(cq, k.mT)
        if ck is not None:
            e = torch.bmm(q, ck.mT) if e is None else e.baddbmm_(q, ck.mT)
        to_g = to_v = to_a = None
        if e is not None:
            e = e.mul_(ctx.scale)
            rows = torch.linalg.vecdot(a, e).unsqueeze(-1)
            f = a * (e - rows)
            to_a = torch.addcmul(e * centred, da, rows, value=-1)
            to_g, to_v = torch.bmm(f, v), torch.bmm(f.mT, g)
        if cv is not None:
            to_a = torch.bmm(g, cv.mT) if to_a is None else to_a.baddbmm_(g, cv.mT)
            to_g = torch.bmm(a, cv) if to_g is None else to_g.baddbmm_(a, cv)
        if to_a is None:
            return None, None, None, None, None, None
        s = (a * (to_a - torch.linalg.vecdot(a, to_a).unsqueeze(-1))).mul_(ctx.scale)
        to_q, to_k = torch.bmm(s, k), torch.bmm(s.mT, q)
        if ck is not None:
            to_q.baddbmm_(ds, ck)
        if cq is not None:
            to_k.baddbmm_(ds.mT, cq)
        return to_g, to_q, to_k, to_v, None, None


# ------------------------------------------------------------------ as functions that other modes see
def _seen(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator: every mode that watches the forward pass sees a call of the kernel as ONE operation.

    ``Function.apply`` itself passes modes by, and they would only see what its ``forward`` computes.
    """

    @functools.wraps(kernel)
    def call(*args: Any) -> Tensor:
        tensors = tuple(a for a in args if isinstance(a, Tensor))
        if has_torch_function(tensors):
            out: Tensor = handle_torch_function(call, tensors, *args)
            return out
        return kernel(*args)

    return call


@_seen
def gelu(x: Tensor) -> Tensor:
    """x Phi(x). Its node saves (x, f'(x), f''(x))."""
    out: Tensor = _Gelu.apply(x)
    return out


@_seen
def silu(x: Tensor) -> Tensor:
    """x sigmoid(x). Its node saves (x, f'(x), f''(x))."""
    out: Tensor = _Silu.apply(x)
    return out


@_seen
def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension. Its node saves (x, weight, mean, 1 / sqrt(var + eps))."""
    out: Tensor = _Norm.apply(x, weight, bias, eps)
    return out


@_seen
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k' + mask) v, [N, T, d] each. Its node saves (q, k, v, the softmax) and has ``scale``."""
    out: Tensor = _Attention.apply(q, k, v, mask, scale)
    return out


# ------------------------------------------------------------------ swapping them in
def _gelu(x: Tensor, approximate: str = "none") -> Tensor | None:
    return gelu(x) if approximate == "none" and _precise(x) else None


def _silu(x: Tensor, inplace: bool = False) -> Tensor | None:
    return silu(x) if not inplace and _precise(x) else None


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor | None:
    if weight is None or bias is None or len(shape) != 1 or not _precise(x, weight, bias):
        return None
    return norm(x, weight, bias, eps)


def _patches(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """A convolution whose windows do not overlap, computed as a matrix product."""
    kernel = tuple(weight.shape[2:])
    pair = lambda v: (v, v) if isinstance(v, int) else v if isinstance(v, str) else tuple(v)  # noqa: E731
    plain = pair(stride) == kernel and pair(padding) in ((0, 0), "valid") and pair(dilation) == (1, 1) and groups == 1
    if not plain or x.ndim != 4 or not _precise(x, weight):
        return None
    b, c, height, width = x.shape
    rows, columns = height // kernel[0], width // kernel[1]
    x = x[:, :, : rows * kernel[0], : columns * kernel[1]]
    tiles = (
        x.reshape(b, c, rows, kernel[0], columns, kernel[1]).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)
    )
    out = F.linear(tiles, weight.flatten(1), bias)
    return out.mT.reshape(b, -1, rows, columns)


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    if dropout_p or is_causal or enable_gqa or q.ndim != 4 or k.shape != v.shape or not _precise(q, k, v):
        return None
    mask = None
    if attn_mask is not None:
        if attn_mask.requires_grad or attn_mask.dtype != q.dtype:
            return None
        mask = attn_mask
        if mask.ndim > 2:
            mask = mask.expand(*q.shape[:-1], k.shape[-2]).flatten(0, 1)
    out = attend(*(t.flatten(0, 1) for t in (q, k, v)), mask, 1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return out.unflatten(0, q.shape[:2])


@dataclass(frozen=True)
class SelfAttention:
    """An attention of tokens ``x`` [B, T, E] on themselves, with one packed projection ``weight`` [3 E, E]."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    out_weight: Tensor
    out_bias: Tensor | None
    heads: int
    mask: Tensor | None


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dim: int,
    heads: int,
    weight: Tensor,
    bias: Tensor,
    *rest: Any,
    **more: Any,
) -> SelfAttention | None:
    """The arguments of ``F.multi_head_attention_forward`` with tokens [T, B, E], if they ask for no more than that."""
    names = ("bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias")
    given: Mapping[str, Any] = dict(zip(names, rest, strict=False)) | more
    mask = given.get("attn_mask")
    odd = ("bias_k", "bias_v", "add_zero_attn", "key_padding_mask", "use_separate_proj_weight", "is_causal")
    if (
        len(rest) > len(names)
        or query is not key
        or key is not value
        or query.ndim != 3
        or weight is None
        or bias is None
        or any(given.get(name) is not None and given[name] is not False for name in odd)
        or (given.get("training", True) and given.get("dropout_p", 0.0))
        or given.get("need_weights", True)
        or (mask is not None and (mask.ndim != 2 or mask.requires_grad or mask.dtype != query.dtype))
    ):
        return None
    out = given["out_proj_weight"], given["out_proj_bias"]
    return SelfAttention(query.transpose(0, 1), weight, bias, *out, heads, mask)


def _multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, None] | None:
    """Self-attention with one packed projection, [T, B, E], copied into heads once instead of by several transposes."""
    a = self_attention(*args, **kwargs)
    if a is None or not _precise(a.x, a.weight):
        return None
    batch, tokens, dim = a.x.shape
    packed = F.linear(a.x, a.weight, a.bias)
    q, k, v = (
        packed.view(batch, tokens, 3, a.heads, -1)
        .permute(2, 0, 3, 1, 4)
        .reshape(3, batch * a.heads, tokens, -1)
        .unbind(0)
    )
    out = attend(q, k, v, a.mask, 1 / math.sqrt(dim // a.heads))
    out = out.view(batch, a.heads, tokens, -1).transpose(1, 2).reshape(batch, tokens, dim)
    return F.linear(out, a.out_weight, a.out_bias).transpose(0, 1), None


def _precise(*tensors: Tensor) -> bool:
    """Whether all tensors have full precision, and neither a torch.func transform nor autocast is active."""
    return not torch._C._are_functorch_transforms_active() and all(
        t.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(t.device.type) for t in tensors
    )


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor | None:
    """g v / ||v||, of which torch's fused kernel has a wrong second derivative (its Hessian is not symmetric)."""
    if not _precise(v, g):
        return None
    along = tuple(i for i in range(v.ndim) if dim == -1 or i != dim)
    return v * (g / torch.linalg.vector_norm(v, dim=along, keepdim=True).view(g.shape))


_SWAPPED: dict[Callable[..., Any], Callable[..., Any]] = {
    F.gelu: _gelu,
    F.silu: _silu,
    F.layer_norm: _layer_norm,
    F.conv2d: _patches,
    F.scaled_dot_product_attention: _sdpa,
    F.multi_head_attention_forward: _multi_head,
    torch._weight_norm: _weight_norm,
}


class analytic_kernels(TorchFunctionMode):  # noqa: N801 - used as a context manager
    """While entered, the functions in ``_SWAPPED`` run with analytic second derivatives where these cover the call.

    Modes that are entered before it see the kernels ``gelu``, ``silu``, ``norm`` and ``attend`` and the other
    operations of which the swapped functions consist.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        ours = _SWAPPED.get(func)
        if ours is not None and torch.is_grad_enabled():
            out = ours(*args, **kwargs)
            if out is not None:
                return out
        return func(*args, **kwargs)
