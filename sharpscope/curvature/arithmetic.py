"""The arithmetic of second derivatives: kernels that can be differentiated twice, and lower-precision products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpscope.clip.arithmetic import full_float32
from sharpscope.clip.model import no_fast_path
from sharpscope.curvature.draws import gaussian
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError
from sharpscope.seeds import derive

__all__ = ["ASYMMETRY", "in_precision", "precision_error", "second_order"]


@contextlib.contextmanager
def second_order(*, tf32: bool = False) -> Iterator[None]:
    """Kernels that can be differentiated twice, in full float32: enter it around every second-order computation.

    open_clip's default attention kernels have neither a double backward nor forward-mode derivatives; torch's math
    kernel has both. The fast path of nn.MultiheadAttention is switched off. TF32 is switched off unless ``tf32`` is set
    (``full_float32``). All settings are restored on leaving, also after an exception.
    """
    with full_float32(tf32=tf32), sdpa_kernel(SDPBackend.MATH), no_fast_path():
        yield


ASYMMETRY: dict[str, float | None] = {"full": None, "tf32": 0.05, "bf16": 0.2}
"""The largest relative asymmetry |u'Hv - v'Hu| at which a Hessian is still measured, for each arithmetic of its
products. None stands for the limit that follows from the dtype. A Hessian above the limit is not measured."""


class _HalfPrecision:
    """An objective whose forward pass runs under bf16 autocast; weights, sums and results stay in float32."""

    def __init__(self, objective: Any, device: str) -> None:
        self._objective, self._device = objective, device


def _half_precision(objective: Any, device: str) -> Any:
    """``objective`` under autocast, with every public name that it has and no other.

    The names stand in a class made for it, because protocols are asked of the class: since Python 3.12 ``isinstance``
    does not see what ``__getattr__`` would answer.
    """
    names = [n for n in dir(objective) if not n.startswith("_")]
    kind = type("HalfPrecision", (_HalfPrecision,), {n: _forwarded(n) for n in names})
    return kind(objective, device)


def _forwarded(name: str) -> Any:
    """The attribute ``name`` of an objective under autocast."""
    if name in ("batch_loss", "batch_logits"):

        def call(self: Any, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            with torch.autocast(self._device, torch.bfloat16, cache_enabled=False):
                found: Tensor = getattr(self._objective, name)(i, theta)
            return found.float()

        return call
    if name in ("rebatched", "suffix"):
        return lambda self, *what: _half_precision(getattr(self._objective, name)(*what), self._device)
    return property(lambda self: getattr(self._objective, name))


def in_precision(objective: Objective, precision: str, theta: Mapping[str, Tensor]) -> Objective:
    """The objective in the arithmetic ``precision``: full, tf32 (see ``second_order``) or bf16 (autocast).

    Weights, sums and results stay in float32. For tf32 the objective is returned unchanged, because TF32 is a setting
    of the GPU's kernels.

    Raises ConfigError for another precision.
    """
    if precision not in ASYMMETRY:
        raise ConfigError(f"precision: '{precision}' is none of {', '.join(ASYMMETRY)}.")
    if precision != "bf16":
        return objective
    half: Objective = _half_precision(objective, next(iter(theta.values())).device.type)
    return half


def precision_error(
    objective: Objective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    precision: str,
    *,
    seed: int = 0,
    memory: int | None = None,
) -> dict[str, float]:
    """||(H~ - H) v|| / ||H v|| of every block for one random vector v; 0 means exact.

    H~ is the Hessian block in the arithmetic ``precision``, H the same block in full precision.

    Args:
        objective, theta, blocks, memory: as for ``HessianEngine``.
        precision: full | tf32 | bf16.
        seed: the seed of v.

    Raises:
        ConfigError: an unknown precision, or a block with a name that is not a floating-point tensor.
        NumericalError: the loss or its gradient is not finite.
    """
    products = []
    for kind in ("full", precision):
        with second_order(tf32=kind == "tf32"):
            rough = in_precision(objective, kind, theta)
            engine = HessianEngine(rough, theta, blocks, memory=memory, use="products")
            requests = {}
            for layer, spec in engine.blocks.items():
                generator = torch.Generator().manual_seed(derive(seed, "precision", layer))
                requests[layer] = gaussian((spec.size, 1), generator, device=engine.device, dtype=engine.dtype)
            products.append(engine.products(requests))
    full, other = products
    return {n: float((other[n] - h).norm() / h.norm()) if float(h.norm()) else 0.0 for n, h in full.items()}
