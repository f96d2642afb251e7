"""Memory of a device that is free, and copies to it that nothing waits for."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor

__all__ = ["free_bytes", "onto"]


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be allocated where ``device`` computes.

    What torch holds in reserve on a GPU without using it counts as free.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + idle


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on ``device``. Pinned memory lets the copy to a GPU run while the host does its next work."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
