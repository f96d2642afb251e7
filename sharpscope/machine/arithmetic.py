"""The arithmetic of float32 on an accelerator: full precision, and kernels that give the same bits every time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

__all__ = ["full_float32"]


@contextlib.contextmanager
def full_float32(*, tf32: bool = False) -> Iterator[None]:
    """Products of float32 in float32, and cuDNN kernels that are the same in every call; a CPU knows nothing else.

    cuDNN takes TF32 for convolutions by default, whose mantissa has 10 bits: a loss would be wrong in its fourth digit,
    and a Hessian not symmetric. ``tf32``: take it for convolutions and matrix products all the same. Every switch, of
    torch's old names and of its new ones, is as before on leaving, also after an exception.
    """
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    new = (cudnn.conv, cudnn.rnn, matmul)
    old = (cudnn, matmul)
    before = [s.fp32_precision for s in new]
    before_old = [_read(functools.partial(getattr, s, "allow_tf32")) for s in old]
    chosen = cudnn.deterministic, cudnn.benchmark
    try:
        for s in old:  # first, since they set the new ones: torch refuses to read old switches that say something else
            s.allow_tf32 = tf32
        for s in new:
            s.fp32_precision = "tf32" if tf32 else "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = chosen
        for s, was in zip(old, before_old, strict=True):
            if was is not None:
                s.allow_tf32 = was
        for s, value in zip(new, before, strict=True):
            s.fp32_precision = value


def _read(switch: Callable[[], bool]) -> bool | None:
    """An old switch; None where the caller has set old and new ones to different things, so that it has no value."""
    try:
        return switch()
    except RuntimeError:
        return None
