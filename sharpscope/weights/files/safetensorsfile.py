"""safetensors in and out: a JSON header and the tensors' bytes; read tensor by tensor, written with equal bytes."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any, Final

import torch

from sharpscope.errors import CorruptCheckpoint, shown
from sharpscope.weights.files.inert import DamagedPickleError, OddTensor, PendingTensor, Storage
from sharpscope.weights.files.regions import Region
from sharpscope.weights.files.torchfiles import copied

__all__ = ["looks_like", "read_safetensors", "serialise", "unique_keys"]

MAX_HEADER: Final = 2 * 2**20
"""The most bytes that a header may have: some 15,000 tensors, where a CLIP has at most 3,000. Parsed JSON may take 25
times its size in memory."""

_DTYPES: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_ODD: Final[dict[str, tuple[int, str]]] = {
    "F8_E4M3": (1, "quantised (float8_e4m3fn); dequantise it, curvature needs the original weights"),
    "F8_E5M2": (1, "quantised (float8_e5m2); dequantise it, curvature needs the original weights"),
    "F8_E8M0": (1, "quantised (float8_e8m0fnu); dequantise it, curvature needs the original weights"),
    "C64": (8, "complex (torch.complex64); a CLIP's weights are real"),
    "U16": (2, "of dtype torch.uint16, which no CLIP has"),
    "U32": (4, "of dtype torch.uint32, which no CLIP has"),
    "U64": (8, "of dtype torch.uint64, which no CLIP has"),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a safetensors file."""
    return len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**40


def read_safetensors(handle: IO[bytes], size: int, source: str) -> tuple[dict[str, Any], dict[str, str]]:
    """``(tensors, metadata)``; the tensors' bytes stay in the file until they are asked for.

    Raises CorruptCheckpoint where the header is damaged, lies about sizes, or does not account for every byte.
    """
    handle.seek(0)
    length = struct.unpack("<Q", handle.read(8))[0]
    if length > size - 8:
        raise CorruptCheckpoint(
            f"{source}: is cut off inside its header ({size} bytes are left); download or copy it again."
        )
    if length > MAX_HEADER:
        raise CorruptCheckpoint(f"{source}: claims a header of {length} bytes; no CLIP has as many tensors.")
    try:
        header = json.loads(handle.read(length), object_pairs_hook=unique_keys)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata is not a dictionary of texts")
        spans = {name: _span(name, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, DamagedPickleError) as error:
        raise CorruptCheckpoint(
            f"{source}: its safetensors header is damaged ({shown(error)}); copy it again."
        ) from None
    base, end = 8 + length, 0
    for name, (start, stop, _, _) in sorted(spans.items(), key=lambda item: item[1][:2]):
        if start != end:
            raise CorruptCheckpoint(
                f"{source}: '{shown(name)}' overlaps another tensor, or leaves a gap; copy it again."
            )
        end = stop
    if base + end != size:
        what = "is cut off: its" if base + end > size else "is too long: its"
        raise CorruptCheckpoint(
            f"{source}: {what} header promises {base + end} bytes, it has {size}; download or copy it again."
        )
    tensors = {n: _pending(handle, base, *span, source) for n, span in spans.items()}
    return tensors, metadata


def _span(name: str, entry: Any) -> tuple[int, int, str, tuple[int, ...]]:
    """(start, end, dtype, shape) of one entry of the header."""
    (start, end), kind, shape = entry["data_offsets"], entry["dtype"], entry["shape"]
    if not all(type(n) is int and 0 <= n < 2**48 for n in (start, end, *shape)):
        raise ValueError(f"'{shown(name)}' has an impossible shape or position")
    width = _DTYPES[kind].itemsize if kind in _DTYPES else _ODD[kind][0]
    if end - start != width * math.prod(shape):
        raise ValueError(f"'{shown(name)}' has a size that does not match its shape")
    return start, end, kind, tuple(shape)


def _pending(
    handle: IO[bytes], base: int, start: int, end: int, kind: str, shape: tuple[int, ...], source: str
) -> PendingTensor | OddTensor:
    if kind in _ODD:
        return OddTensor(_ODD[kind][1])
    region = Region(handle, base + start, base + end)
    storage = Storage(_DTYPES[kind], end - start, lambda: copied(region, source))
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return PendingTensor(storage, 0, shape, strides, _DTYPES[kind])


def serialise(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The safetensors bytes of ``tensors``, piece by piece; equal input gives equal bytes (not so in the library).

    Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes; the widest types first, for
        alignment.
    """
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text))
    yield text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: a dictionary, or ValueError where a key appears twice."""
    repeated = [k for k, n in Counter(k for k, _ in pairs).items() if n > 1]
    if repeated:
        raise ValueError(f"'{shown(repeated[0])}' appears twice")
    return dict(pairs)
