"""What a tensor of a checkpoint has to be, before and after its bytes are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, CorruptCheckpoint, shown
from sharpscope.weights.files.inert import OddTensor, PendingTensor

__all__ = ["check_sizes", "checked", "tied_names"]

ACCEPTED: Final = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool,
)  # fmt: skip


def checked(name: object, value: object, source: str) -> torch.Tensor:
    """``value`` detached, if it is a dense tensor of plain numbers; otherwise a CheckpointError naming the key."""
    if not isinstance(name, str):
        raise CheckpointError(f"{source}: key {shown(repr(name))} is a {type(name).__name__}; tensors need names.")
    if isinstance(value, OddTensor):
        raise CheckpointError(f"{source}: '{shown(name)}' is {value.problem}.")
    if not isinstance(value, (torch.Tensor, PendingTensor)):
        raise CheckpointError(f"{source}: '{shown(name)}' is a {type(value).__name__}, not a tensor.")
    problem = None if isinstance(value, PendingTensor) else _odd_layout(value)
    dtype = value.dtype
    if problem is None and dtype not in ACCEPTED:
        if dtype.is_complex:
            problem = f"complex ({dtype}); a CLIP's weights are real"
        elif str(dtype).startswith(("torch.float8", "torch.float4", "torch.q")):
            problem = f"quantised ({dtype}); dequantise it, curvature needs the original weights"
        else:
            problem = f"of dtype {dtype}, which no CLIP has"
    if problem:
        raise CheckpointError(f"{source}: '{shown(name)}' is {problem}.")
    return value.read() if isinstance(value, PendingTensor) else value.detach()


def _odd_layout(value: torch.Tensor) -> str | None:
    """Why a live tensor is not a dense array of numbers (nested, sparse, meta); None if it is one."""
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return "a sparse tensor; store it dense (.to_dense())"
    if value.device.type == "meta":
        return "a meta tensor, a shape without values; save the weights themselves"
    return None


def check_sizes(state: Mapping[str, Any], source: str) -> None:
    """Refuse tensors that claim more than their bytes in the file hold (stride 0, overlaps), before any is made."""
    seen: set[tuple[Any, ...]] = set()
    stored: dict[int, int] = {}
    claimed = 0
    for name, value in state.items():
        if not isinstance(value, PendingTensor):
            continue
        size, held = value.numel() * value.dtype.itemsize, value.storage.nbytes
        if size > held:
            raise CorruptCheckpoint(
                f"{source}: '{shown(name)}' claims shape {list(value.shape)}, {size} bytes; the file has {held}."
            )
        view = (id(value.storage), value.offset, value.shape, value.stride, value.dtype)
        claimed += 0 if view in seen else size
        seen.add(view)
        stored[id(value.storage)] = held
    if claimed > 2 * sum(stored.values()):  # a transposed or sliced view or two are no attack
        raise CorruptCheckpoint(
            f"{source}: its tensors overlap: they claim {claimed} bytes, the file has {sum(stored.values())}."
        )


def tied_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """``{other name: first name}`` of the tensors that share memory, dtype, shape and strides."""
    first: dict[tuple[Any, ...], str] = {}
    ties: dict[str, str] = {}
    for name, t in tensors.items():
        if t.numel() == 0:
            continue
        known = first.setdefault((t.device, t.data_ptr(), t.dtype, t.shape, t.stride()), name)
        if known != name:
            ties[name] = known
    return ties
