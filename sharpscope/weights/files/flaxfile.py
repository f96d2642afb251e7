"""flax's msgpack checkpoints: a tree of dictionaries with arrays as leaves, read without flax, msgpack or a copy.

Format: msgpack (https://github.com/msgpack/msgpack/blob/master/spec.md) with flax's extension types 1 (an array: shape,
dtype, bytes in C order), 2 (a complex number) and 3 (a numpy scalar: an array again).
"""

from __future__ import annotations

import math
import struct
from typing import IO, Any, Final

import torch

from sharpscope.errors import CorruptCheckpoint, shown
from sharpscope.weights.files.inert import (
    MAX_NAME,
    DamagedPickleError,
    OddTensor,
    PendingTensor,
    Storage,
    dtype_named,
    like_tensor,
)
from sharpscope.weights.files.regions import Blob, Budget, Region
from sharpscope.weights.files.torchfiles import copied

__all__ = ["looks_like", "read_flax"]

MAX_DEPTH: Final = 40
_INTEGERS: Final = {
    0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: "b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q", 0xCA: ">f", 0xCB: ">d"
}  # fmt: skip
_BINARY: Final = {0xC4: "B", 0xC5: ">H", 0xC6: ">I"}
_TEXT: Final = {0xD9: "B", 0xDA: ">H", 0xDB: ">I"}
_ARRAY: Final = {0xDC: ">H", 0xDD: ">I"}
_MAP: Final = {0xDE: ">H", 0xDF: ">I"}
_EXTENSION: Final = {0xC7: "B", 0xC8: ">H", 0xC9: ">I"}


def looks_like(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a msgpack map with a text as its first key."""
    if len(head) < 2:
        return False
    key = head[1:] if 0x81 <= head[0] <= 0x8F else head[3:] if head[0] == 0xDE else head[5:] if head[0] == 0xDF else b""
    return key[:1] != b"" and (0xA1 <= key[0] <= 0xBF or key[0] in _TEXT)


def read_flax(handle: IO[bytes], size: int, source: str) -> dict[str, Any]:
    """The tree as a flat dictionary, its names joined with dots; raises CorruptCheckpoint."""
    region = Region(handle, 0, size)
    try:
        tree = _value(region, Budget(), 0, source)
        if region.position != size:
            raise DamagedPickleError("bytes follow its end")
        return _flat(tree)
    except (DamagedPickleError, ValueError, TypeError, struct.error, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{source}: looks like msgpack (flax), but is damaged or cut off ({shown(error)}); copy it again."
        ) from None


def _number(region: Region, form: str) -> Any:
    return struct.unpack(form, region.exactly(struct.calcsize(form)))[0]


def _value(region: Region, budget: Budget, depth: int, source: str) -> Any:
    budget.spend(60)
    if depth > MAX_DEPTH:
        raise DamagedPickleError("nested too deeply")
    code = region.exactly(1)[0]
    if code <= 0x7F or code >= 0xE0:
        return code if code <= 0x7F else code - 256
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code]
    if code in _INTEGERS:
        return _number(region, _INTEGERS[code])
    if 0xA0 <= code <= 0xBF or code in _TEXT:
        length = code & 0x1F if code <= 0xBF else _number(region, _TEXT[code])
        budget.spend(4 * length + 60)
        return region.exactly(length).decode()
    if code in _BINARY:
        return Blob(region.skip(_number(region, _BINARY[code])))
    if 0x90 <= code <= 0x9F or code in _ARRAY:
        length = code & 0x0F if code <= 0x9F else _number(region, _ARRAY[code])
        return [_value(region, budget, depth + 1, source) for _ in range(length)]
    if 0x80 <= code <= 0x8F or code in _MAP:
        length = code & 0x0F if code <= 0x8F else _number(region, _MAP[code])
        return _map(region, budget, length, depth, source)
    if code in _EXTENSION or 0xD4 <= code <= 0xD8:
        length = _number(region, _EXTENSION[code]) if code in _EXTENSION else 1 << (code - 0xD4)
        kind = _number(region, "b")
        return _extension(region.skip(length), budget, depth, kind, source)
    raise DamagedPickleError(f"code {code:#x} does not exist")


def _map(region: Region, budget: Budget, length: int, depth: int, source: str) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(length):
        key = _value(region, budget, depth + 1, source)
        if not isinstance(key, str) or key in tree:
            raise DamagedPickleError("a key that is not text, or appears twice")
        budget.spend(200)
        tree[key] = _value(region, budget, depth + 1, source)
    return tree


def _extension(region: Region, budget: Budget, depth: int, kind: int, source: str) -> Any:
    if kind == 2:
        return OddTensor("a complex number; a CLIP's weights are real")
    if kind not in (1, 3):
        raise DamagedPickleError(f"extension {kind} is not one of flax's")
    budget.spend(600)
    parts = _value(region, budget, depth + 1, source)
    if region.position != region.end or not isinstance(parts, list) or len(parts) != 3:
        raise DamagedPickleError("an array without its shape, dtype and bytes")
    shape, name, data = parts
    dtype = dtype_named(name) if isinstance(name, str) else None
    if dtype is None:
        return OddTensor(f"of dtype {shown(name, 30)}, which no CLIP has")
    if not isinstance(shape, list) or not isinstance(data, Blob):
        raise DamagedPickleError("an array without its shape, dtype and bytes")
    place = data.region
    storage = Storage(dtype, place.end - place.position, lambda: copied(place, source))
    made = PendingTensor(storage, 0, tuple(shape), _strides(shape), dtype)
    if made.numel() * dtype.itemsize != storage.nbytes:
        raise DamagedPickleError("an array whose size does not match its shape")
    return made


def _whole(shape: list[Any]) -> bool:
    return len(shape) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def _joined(chunks: dict[str, Any]) -> PendingTensor:
    """An array of more than 1 GB, which flax cuts: {shape: {"0": n, ...}, chunks: {"0": flat piece, ...}}."""
    shape, held = chunks.get("shape"), chunks.get("chunks")
    if not isinstance(shape, dict) or not isinstance(held, dict) or not held:
        raise DamagedPickleError("a chunked array without shape and chunks")
    sizes: list[Any] = [shape.get(str(i)) for i in range(len(shape))]
    pieces = [held.get(str(i)) for i in range(len(held))]
    good = [p for p in pieces if isinstance(p, PendingTensor) and p.dtype == getattr(pieces[0], "dtype", None)]
    if len(good) != len(pieces) or not _whole(sizes):
        raise DamagedPickleError("a chunked array with missing chunks")
    nbytes = sum(p.storage.nbytes for p in good)

    def read() -> torch.Tensor:
        whole, at = torch.empty(nbytes, dtype=torch.uint8), 0
        for piece in good:
            whole[at : at + piece.storage.nbytes] = piece.storage.fresh()
            at += piece.storage.nbytes
        return whole

    dtype = good[0].dtype
    made = PendingTensor(Storage(dtype, nbytes, read), 0, tuple(sizes), _strides(sizes), dtype)
    if made.numel() * dtype.itemsize != nbytes:
        raise DamagedPickleError("a chunked array whose size does not match its shape")
    return made


def _strides(shape: list[Any]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) if _whole(shape) else -1 for i in range(len(shape)))


def _flat(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise DamagedPickleError("its outermost value is not a dictionary")
    flat: dict[str, Any] = {}
    open_: list[tuple[str, Any]] = [("", tree)]
    while open_:
        name, value = open_.pop()
        if len(name) > MAX_NAME:
            raise DamagedPickleError("a name of thousands of characters")
        if isinstance(value, dict):
            if "__msgpack_chunked_array__" in value:
                value = _joined(value)
            else:
                open_ += [(f"{name}.{k}" if name else k, v) for k, v in reversed(value.items())]
                continue
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name.endswith("logit_scale"):
            flat[name] = torch.tensor(float(value))
        elif like_tensor(value):
            flat[name] = value
    return flat
