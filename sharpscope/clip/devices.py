"""What differs between a CPU and a GPU: its name, memory that is given back, and waiting for work to end."""

from __future__ import annotations

import gc

import torch

__all__ = ["name_of", "release", "settle"]


def name_of(device: torch.device) -> str:
    """The device as results name it: the model of a GPU, or the kind of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more: call it outside of the ``except`` block, whose error holds frames."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was told, so that a clock shows the work and not its announcement."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
