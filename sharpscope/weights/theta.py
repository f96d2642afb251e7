"""theta, the named tensors of one model: how they are cast, and how they get to where they are needed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

__all__ = ["HALF_TYPES", "Theta", "cast", "on_device", "without_halves"]

Theta = dict[str, torch.Tensor]
"""Tensors by name, in open_clip's names where they are a CLIP's."""

HALF_TYPES = (torch.float16, torch.bfloat16)
"""Types in which checkpoints are stored, but no path is computed."""


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``tensor`` in ``dtype`` where it holds floating-point numbers; counts and masks stay as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def on_device(theta: Mapping[str, torch.Tensor], device: torch.device | str, dtype: torch.dtype | None = None) -> Theta:
    """theta on ``device``; with ``dtype``, its floating-point tensors in that type. Tensors that need no change are
    shared."""
    return {n: (t if dtype is None else cast(t, dtype)).to(device) for n, t in theta.items()}


def without_halves(theta: Mapping[str, torch.Tensor]) -> Theta:
    """theta with its float16 and bfloat16 tensors as float32, which holds each of their numbers exactly."""
    return {n: t.float() if t.dtype in HALF_TYPES else t for n, t in theta.items()}
