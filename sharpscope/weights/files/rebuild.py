"""torch's tensor rebuilders, written anew: what ``_rebuild_tensor_v2(storage, offset, size, ...)`` means."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import torch

from sharpscope.weights.files.inert import (
    DamagedPickleError,
    Inert,
    Name,
    OddTensor,
    PendingTensor,
    Storage,
    dtype_named,
    key_of,
)

__all__ = ["REBUILDERS", "rebuild", "storage_dtype"]

_STORAGES: Final[dict[str, torch.dtype]] = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
_QUANTISED: Final[dict[str, torch.dtype]] = {
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32, "QUInt4x2": torch.uint8,
    "QUInt2x4": torch.uint8,
}  # fmt: skip


def storage_dtype(kind: Any) -> tuple[torch.dtype | None, int]:
    """``(dtype, bytes an element)`` of ``torch.FloatStorage`` and its kin; dtype None for raw bytes."""
    found = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+)Storage", str(kind)) if isinstance(kind, Name) else None
    if found is None:
        raise DamagedPickleError("a storage of no known type")
    if found[1] == "Untyped":
        return None, 1
    dtype = _STORAGES.get(found[1]) or _QUANTISED.get(found[1])
    if dtype is None:
        raise DamagedPickleError("a storage of no known type")
    return dtype, dtype.itemsize


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> PendingTensor:
    if not isinstance(storage, Storage):
        raise DamagedPickleError("a tensor without a storage")
    return PendingTensor(storage, offset, tuple(size), tuple(stride), storage.dtype or torch.uint8)


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
    found = dtype_named(dtype.name) if isinstance(dtype, Name) and dtype.module == "torch" else None
    if not isinstance(storage, Storage) or found is None:
        raise DamagedPickleError("a tensor without storage or dtype")
    return PendingTensor(storage, offset, tuple(size), tuple(stride), found)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """A subclass of Tensor: the tensor that it wraps (its arguments cost no budget: they may be shared)."""
    name = str(function) if isinstance(function, Name) else "a tensor subclass"
    known = REBUILDERS.get(name) if name.startswith("torch._utils._rebuild_") else None
    return Inert(name) if known is None or not isinstance(args, tuple) else known(*args)


def _ordered(*args: Any) -> dict[Any, Any]:
    if not args:
        return {}
    (pairs,) = args
    return {key_of(k): v for k, v in (pairs.items() if isinstance(pairs, dict) else pairs)}


def _first_argument(*args: Any) -> Any:
    return args[0] if args else []


def _encoded(text: Any, *_: Any) -> Any:
    return text.encode("latin-1", "replace") if isinstance(text, str) else b""


def _odd(problem: str) -> Callable[..., OddTensor]:
    return lambda *_: OddTensor(problem)


_QUANTISED_TENSOR: Final = "quantised; dequantise it, curvature needs the original weights"
_SPARSE: Final = "a sparse tensor; store it dense (.to_dense())"
_META: Final = "a meta tensor, a shape without values; save the weights themselves"

REBUILDERS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_sparse_tensor": _odd(_SPARSE),
    "torch._utils._rebuild_sparse_csr_tensor": _odd(_SPARSE),
    "torch._utils._rebuild_nested_tensor": _odd("a nested tensor"),
    "torch._utils._rebuild_qtensor": _odd(_QUANTISED_TENSOR),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd(_META),
    "collections.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "builtins.dict": _ordered,
    "builtins.set": _first_argument,
    "builtins.frozenset": _first_argument,
    "builtins.list": _first_argument,
    "builtins.tuple": _first_argument,
    "__builtin__.set": _first_argument,
    "torch.Size": _first_argument,
    "_codecs.encode": _encoded,
    "torch.device": lambda *_: "a device",
    "torch.serialization._get_layout": lambda *_: "a layout",
    "torch.jit._pickle.build_intlist": _first_argument,
    "torch.jit._pickle.build_tensorlist": _first_argument,
    "torch.jit._pickle.build_doublelist": _first_argument,
    "torch.jit._pickle.build_boollist": _first_argument,
    "torch.jit._pickle.restore_type_tag": _first_argument,
}
"""Every function whose call in a pickle gives a value: plain containers, and tensors whose bytes stay in the file. Any
other call leaves an inert record of itself."""


def rebuild(name: str, args: tuple[Any, ...]) -> Any:
    """What ``name(*args)`` stands for, or NotImplemented for anything but a rebuilder."""
    known = REBUILDERS.get(name)
    return NotImplemented if known is None else known(*args)
