"""The arithmetic of second derivatives: kernels that can be differentiated twice, and lower-precision products."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpscope.clip.model import no_fast_path
from sharpscope.curvature.draws import gaussian
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import Objective, inside
from sharpscope.errors import ConfigError
from sharpscope.machine.arithmetic import full_float32
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
    device = next(iter(theta.values())).device.type

    def half(function: Callable[..., Tensor], i: int, at: Mapping[str, Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            return function(i, at).float()

    return inside(objective, half, again=("rebatched", "suffix"))


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
