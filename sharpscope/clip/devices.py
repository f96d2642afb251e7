"""What differs between a CPU and a GPU: memory that is free, memory that is given back, and waiting for work to end."""

from __future__ import annotations

import gc

import psutil
import torch
from torch import Tensor

__all__ = ["free_bytes", "name_of", "onto", "release", "settle"]


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


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more: call it outside of the ``except`` block, whose error holds frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was told, so that a clock shows the work and not its announcement."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def onto(batch: Tensor, device: torch.device) -> Tensor:
    """The batch on ``device``. Pinned memory lets the copy to a GPU run while the next batch is read."""
    if device.type != "cuda":
        return batch.to(device)
    return batch.pin_memory().to(device, non_blocking=True)
