"""A record of a forward pass: which functions were called, on which tensors, in which order.

Autograd's graph knows how to go backwards only. To push a tangent FORWARDS through a pass that has already run, the
calls themselves are needed. ``Tape`` records every call whose result depends on something that requires a gradient. It
is complete or says that it is not (``broken``): a tensor that appears out of nowhere (from an autograd.Function, a
scripted function, under a torch.func transform) or is overwritten in place makes the record worthless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sharpscope.curvature.per_example import tensors_in

__all__ = ["Call", "Tape"]


@dataclass(frozen=True)
class Call:
    """One call ``out = function(*args, **kwargs)``; ``inputs`` and ``outputs`` are the slots of its tensors.

    A slot is the number of a tensor that requires a gradient. Other tensors are constants and have none.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Tape(TorchFunctionMode):
    """A context manager that records the calls of a forward pass in ``calls``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._seen: dict[int, tuple[int, Tensor, int]] = {}  # id -> slot, the tensor (which keeps its id), version
        self._tensors: list[Tensor] = []
        self._lost = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            with torch._C.DisableTorchFunction():
                self._record(func, args, kwargs, out)
        return out

    def _record(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        outs = [t for t in tensors_in(out) if t.requires_grad]
        if not outs:
            return  # no derivative is taken of it
        inputs = tuple(self._slot(t) for t in tensors_in((args, kwargs)) if t.requires_grad)
        if all(self._known(t) for t in outs):
            return  # the argument itself, as from contiguous()
        if any(t.is_leaf or torch.is_autocast_enabled(t.device.type) for t in outs):
            self._lost = True
        outputs = tuple(self._new(t) for t in outs)
        self.calls.append(Call(func, args, kwargs, out, inputs, outputs))

    def _known(self, t: Tensor) -> bool:
        return id(t) in self._seen and self._seen[id(t)][2] == t._version

    def _slot(self, t: Tensor) -> int:
        if id(t) not in self._seen:
            self._lost |= not t.is_leaf  # it was made by something that no mode sees
            return self._new(t)
        return self._seen[id(t)][0]

    def _new(self, t: Tensor) -> int:
        self._lost |= id(t) in self._seen  # the same tensor with other values: it was overwritten
        self._seen[id(t)] = (len(self._tensors), t, t._version)
        self._tensors.append(t)
        return self._seen[id(t)][0]

    @property
    def broken(self) -> bool:
        """Whether a tensor came out of nowhere, was overwritten in place, or autocast chose its dtype."""
        return self._lost or any(t._version != version for _, t, version in self._seen.values())

    def tensor(self, slot: int) -> Tensor:
        """The tensor of a slot."""
        return self._tensors[slot]

    def slot(self, t: Tensor) -> int | None:
        """The slot of a tensor; None if it is not on the tape."""
        return self._seen[id(t)][0] if id(t) in self._seen else None
