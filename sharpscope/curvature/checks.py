"""Whether the derivatives of somebody's loss are its derivatives: gradients and products against differences."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sharpscope.curvature.double_backward import ThirdDerivative
from sharpscope.curvature.graphs import GradientGraph, differentiate, once_differentiable
from sharpscope.curvature.operator import Objective
from sharpscope.errors import NumericalError, listing

__all__ = ["STEPS", "check_derivatives"]

STEPS = (1e-8, 1e-3)
"""The step lengths of the finite differences, relative to the weights. In float64 the first is so short that it crosses
hardly any kink of a ReLU; the second is long enough to be seen through operations that round to float32."""
ALLOWED = 1e-3
"""The largest relative difference at which two derivatives count as equal."""
NOISE = 10.0
"""The error allowed for a finite difference, as a multiple of the disagreement between two step lengths."""


def check_derivatives(
    objective: Objective, theta: Mapping[str, Tensor], kinds: Mapping[str, Sequence[str]], *, steps: Sequence[float]
) -> None:
    """Raise NumericalError where autograd's derivatives of the first batch's loss are not the loss's own.

    For the parameters of each kind of layer, along one random direction v in units of their own size: the slope g'v
    against (L(+h v) - L(-h v)) / 2h, and the product H v against (g(+h v) - g(-h v)) / 2h, both on these parameters.
    What the loss itself detaches, or computes without gradients, is held constant on both sides. A kind is refused if
    all of the ``steps`` h disagree by more than ``ALLOWED`` and the error that steps h and 2 h show of the difference.

    The cost: one product and four gradients of one batch for each kind.
    """
    constants = _Constants()

    class Held:
        weights = (1.0,)
        batch_sizes = (None,)

        def batch_loss(self, i: int, moved: Mapping[str, Tensor]) -> Tensor:
            with constants:
                return objective.batch_loss(i, moved)

    names = [n for names in kinds.values() for n in names]

    def at(change: Mapping[str, Tensor]) -> tuple[GradientGraph, dict[str, Tensor]]:
        params = {n: (theta[n].detach() + change.get(n, 0)).requires_grad_() for n in names}
        constants.rewind()
        try:
            return differentiate(Held(), 0, {**theta, **params}, params, analytic=True), params
        except ThirdDerivative:
            constants.rewind()
            return differentiate(Held(), 0, {**theta, **params}, params, analytic=False), params

    here, params = at({})
    constants.replay = True
    generator = torch.Generator().manual_seed(0)
    for kind, own in kinds.items():
        v = {n: _direction(theta[n], generator) for n in own}
        slope, product = _ours(here, {n: params[n] for n in own}, v)
        wrong = ""
        for h in steps:
            looks = [_differences(at, own, v, k * h) for k in (1, 2)]
            wrong = _disagreement(slope, product, here, v, looks)
            if not wrong:
                break
        if wrong:
            raise NumericalError(
                f"loss: {wrong} of {listing(own, 3)} ({kind}), by a difference of two evaluations.\n"
                "A custom backward that detaches what it saved, or reentrant checkpointing, does that: no number of "
                "this loss can be trusted.\nWrite the backward with operations that torch differentiates, or use "
                "use_reentrant=False."
            )


def _direction(w: Tensor, generator: torch.Generator) -> Tensor:
    size = w.detach().double().square().mean().sqrt().item() if w.numel() else 0.0
    return torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w) * (size or 1.0)


def _ours(graph: GradientGraph, own: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> tuple[float, Tensor | None]:
    """(g'v, H v on ``own``); None for a product that torch does not have, which the measures say of each layer."""
    slope = sum(float((graph.gradient[n].detach() * v[n]).double().sum()) for n in own if n in graph.gradient)
    if once_differentiable({n: graph.gradient[n] for n in own if n in graph.gradient}):
        return slope, None
    pairs = [(graph.gradient[n], v[n]) for n in own if n in graph.gradient and graph.gradient[n].requires_grad]
    if not pairs:
        return slope, torch.zeros(sum(v[n].numel() for n in own), dtype=torch.float64)
    try:
        products = torch.autograd.grad(
            [g for g, _ in pairs], list(own.values()), [d for _, d in pairs],
            retain_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
    except RuntimeError:
        return slope, None
    return slope, torch.cat([p.double().reshape(-1) for p in products]).cpu()


def _differences(
    at: Callable[[Mapping[str, Tensor]], tuple[GradientGraph, Any]],
    own: Sequence[str],
    v: Mapping[str, Tensor],
    h: float,
) -> tuple[float, Tensor]:
    ends = []
    for sign in (1, -1):
        graph, _ = at({n: sign * h * d for n, d in v.items()})
        gradient = [graph.gradient[n].detach() if n in graph.gradient else torch.zeros_like(v[n]) for n in own]
        ends.append((float(graph.loss.detach()), torch.cat([g.double().reshape(-1) for g in gradient]).cpu()))
    (loss_up, up), (loss_down, down) = ends
    return (loss_up - loss_down) / (2 * h), (up - down) / (2 * h)


def _disagreement(
    slope: float,
    product: Tensor | None,
    here: GradientGraph,
    v: Mapping[str, Tensor],
    looks: Sequence[tuple[float, Tensor]],
) -> str:
    (rise, bend), (rise2, bend2) = looks
    pieces = [(here.gradient[n].detach() * d).double().norm().item() for n, d in v.items() if n in here.gradient]
    size = sum(p * p for p in pieces) ** 0.5 + abs(slope)
    blur = 1e-5 * abs(float(here.loss.detach()))
    if abs(rise - slope) > ALLOWED * max(size, abs(rise)) + NOISE * abs(rise - rise2) + blur:
        return f"the loss rises by {rise:.3g} where its gradient says {slope:.3g} along a direction"
    if product is None:
        return ""
    off, scale = float((product - bend).norm()), max(float(product.norm()), float(bend.norm()))
    if off > ALLOWED * scale + NOISE * float((bend - bend2).norm()) + blur * 1e-3:
        return f"the gradient changes otherwise than the second derivative says (off by {off / scale:.0%})"
    return ""


_DETACHING = (torch.detach, torch.Tensor.detach, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.data.__get__)  # type: ignore[attr-defined]


class _Constants(TorchFunctionMode):
    """Notes what a loss makes constant, by detaching or without gradients, and gives the same again later.

    What runs without gradients inside an autograd.Function is no constant: its backward answers for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replay = False
        self._noted: list[Any] = []
        self._rest: Iterator[Any] = iter(())

    def rewind(self) -> None:
        """Start of another evaluation."""
        if self.replay:
            self._rest = iter(self._noted)
        else:
            self._noted.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        silent = func in _DETACHING or (not torch.is_grad_enabled() and _computes(func))
        if not silent or not _varies((args, tuple(kwargs.values()))) or _in_function(sys._getframe(1)):
            return func(*args, **kwargs)
        if self.replay and (noted := next(self._rest, None)) is not None:
            return noted
        out = func(*args, **kwargs)
        if not self.replay:
            self._noted.append(out.detach().clone() if isinstance(out, Tensor) else out)
        return out


def _computes(func: Callable[..., Any]) -> bool:
    name = getattr(func, "__name__", "")
    return name not in ("__get__", "__set__", "requires_grad_") and not (name.endswith("_") and name[:2] != "__")


def _varies(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.requires_grad
    return isinstance(value, (tuple, list)) and any(map(_varies, value))


def _in_function(frame: FrameType | None) -> bool:
    """Whether a call comes from the forward of an autograd.Function, whose apply leaves no frame of its own."""
    forwards = {id(code) for code in _forwards(torch.autograd.Function)}
    while frame is not None:
        if id(frame.f_code) in forwards:
            return True
        frame = frame.f_back
    return False


def _forwards(function: type) -> Iterator[CodeType]:
    code = getattr(inspect.unwrap(function.forward), "__code__", None)  # type: ignore[attr-defined]
    if code is not None:
        yield code
    derived: type
    for derived in function.__subclasses__():
        yield from _forwards(derived)
