"""The operations that differ between a CPU and a GPU.

They are: naming a device, asking for free memory and releasing it, copying to the device without waiting, reading
several numbers by one copy, and waiting until the device has finished.
"""

from __future__ import annotations

import gc

import psutil
import torch
from torch import Tensor

__all__ = ["all_finite", "fits", "free_bytes", "name_of", "numbers", "onto", "release", "settle"]


def name_of(device: torch.device) -> str:
    """The device as results name it: the model of a GPU, or the kind of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be allocated where ``device`` computes.

    What torch holds in reserve on a GPU without using it counts as free.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


def fits(size: int, device: torch.device, share: float) -> bool:
    """Whether ``size`` bytes are at most a ``share`` of what is free on a GPU; always where the host computes."""
    return device.type != "cuda" or size <= share * free_bytes(device)


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``. Pinned memory lets the copy to a GPU run while the host does its next work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def numbers(*tensors: Tensor) -> list[float]:
    """All entries of small tensors, by one copy: the host waits for a device once and not for each of them."""
    return torch.cat([t.detach().double().reshape(-1) for t in tensors]).tolist()


def all_finite(*tensors: Tensor) -> Tensor:
    """Whether no entry of any tensor is infinite or NaN, as a tensor of no dimension on their device."""
    return torch.stack([torch.isfinite(t).all() for t in tensors]).all()


def release(device: torch.device) -> None:
    """Release memory to which nothing refers any more. Call it outside of an ``except`` block, because the error in it
    keeps references to the frames and their tensors."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def settle(device: torch.device) -> None:
    """Wait until the device has finished all queued work, so that a timer measures the work and not only its
    submission."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
