"""The file formats: what a file is, told by its first bytes and never by its extension, and how it is opened safely.

Nothing in a file is executed: no unpickler but torch's ``weights_only`` one is ever started, and only on a zip archive
whose directory, checksums and import list were read before. What is refused is refused by what it looks like.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from sharpscope.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint, did_you_mean, shown
from sharpscope.weights.naming import listing
from sharpscope.weights.pickles import scan_pickle, unsafe_names

__all__ = ["open_regular", "read_container", "serialise"]

SLACK: Final = 16 * 2**20
"""Bytes that an archive may unpack to beyond twice its own size."""
MAX_HEADER: Final = 4 * 2**20
"""Longest header of a safetensors file, or directory of a zip archive: some 30,000 tensors, a CLIP has at most
3,000."""

_LEGACY_TORCH: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_RESAVE: Final = "Save its state_dict() with torch.save or safetensors where you trust the file, and pass that."

_LOOKS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x1f\x8b", "a gzip archive; unpack it (gunzip, tar xzf) and pass the checkpoint inside"),
    (b"BZh", "a bzip2 archive; unpack it and pass the checkpoint inside"),
    (b"\xfd7zXZ", "an xz archive; unpack it and pass the checkpoint inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it and pass the checkpoint inside"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it and pass the checkpoint inside"),
    (b"version https://git-lfs", "a git-lfs pointer, not the weights; fetch them with `git lfs pull`"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras); export the weights as safetensors"),
    (b"\x93NUMPY", "a numpy array; a checkpoint is a dictionary of named tensors"),
    (b"GGUF", "a GGUF file; its weights are quantised, take the original ones"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], int, str]]:
    """Open ``path`` if it is a regular file: ``(handle, size in bytes, path as shown in messages)``.

    Raises CheckpointError for what is missing, unreadable, a folder, FIFO, socket or device (without blocking on it),
    and when the file was changed while it was open.
    """
    source = os.path.expanduser(os.fspath(path))
    name = shown(source, 200)
    try:
        descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file.{_near(source)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{name}: cannot be read: {shown(reason)}.") from None
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        os.close(descriptor)
        if stat.S_ISDIR(before.st_mode):
            raise CheckpointError(f"{name}: is a folder; pass the checkpoint file{_inside(source)}.")
        raise CheckpointError(
            f"{name}: is a FIFO, socket or device, no regular file; save the checkpoint to disk first."
        )
    with open(descriptor, "rb") as handle:
        yield handle, before.st_size, name
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise CheckpointError(f"{name}: changed while it was read; wait until it is written and try again.")


def read_container(handle: IO[bytes], size: int, source: str) -> tuple[str, object, dict[str, str]]:
    """``(container, content, metadata)`` of an open file; container is ``safetensors`` or ``torch zip``.

    Raises CheckpointError (says what the file looks like and what to do), CorruptCheckpoint, UnsafeCheckpoint.
    """
    handle.seek(0)
    head = handle.read(512)
    if size == 0:
        raise CheckpointError(f"{source}: is empty (0 bytes); download or save it again.")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "torch zip", _read_torch_zip(handle, size, source), {}
    if _is_safetensors(head):
        return ("safetensors", *_read_safetensors(handle, size, source))
    raise _refusal(handle, size, head, source)


def serialise(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes]:
    """The safetensors bytes of ``tensors``, piece by piece; equal input gives equal bytes (the library's own do not).

    Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes; the widest types first, for
        alignment.
    """
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _SAFE_DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text))
    yield text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


_SAFE_DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _is_safetensors(head: bytes) -> bool:
    return len(head) >= 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**40


def _read_safetensors(handle: IO[bytes], size: int, source: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    handle.seek(0)
    length = struct.unpack("<Q", handle.read(8))[0]
    if length > size - 8:
        raise CorruptCheckpoint(
            f"{source}: is cut off inside its header ({size} bytes are left); download or copy it again."
        )
    if length > MAX_HEADER:
        raise CorruptCheckpoint(f"{source}: claims a header of {length} bytes; no CLIP has as many tensors.")
    try:
        header = json.loads(handle.read(length), object_pairs_hook=_unique)
        entries = {k: v for k, v in header.items() if k != "__metadata__"}
        metadata = header.get("__metadata__") or {}
        promised = 8 + length + max((int(v["data_offsets"][1]) for v in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{source}: its safetensors header is damaged ({shown(error)}); copy it again."
        ) from None
    if promised > size:
        raise CorruptCheckpoint(
            f"{source}: is cut off: its header promises {promised} bytes, it has {size}; download or copy it again."
        )
    handle.seek(0)
    try:
        return safetensors.torch.load(handle.read()), metadata
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise CorruptCheckpoint(f"{source}: is no valid safetensors file ({shown(error)}); copy it again.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [k for k, n in Counter(k for k, _ in pairs).items() if n > 1]
    if repeated:
        raise ValueError(f"'{shown(repeated[0])}' appears twice")
    return dict(pairs)


def _read_torch_zip(handle: IO[bytes], size: int, source: str) -> object:
    try:
        _check_directory_size(handle, size, source)
        with zipfile.ZipFile(handle) as archive:
            _check_directory(archive, size, source)
            damaged = archive.testzip()
            if damaged is not None:
                raise CorruptCheckpoint(
                    f"{source}: '{shown(damaged)}' fails its checksum; download or copy the file again."
                )
            _check_pickle(archive, source)
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # zipfile lets UnicodeDecodeError, ValueError, NotImplementedError ... through on damaged bytes
        raise CorruptCheckpoint(
            f"{source}: is a damaged or cut off zip archive ({shown(error)}); copy it again."
        ) from None
    handle.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on sparse and quantised tensors, which are refused by name afterwards
            return torch.load(handle, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        reason = shown(str(error).split("\n", 1)[0], 160)
        raise CorruptCheckpoint(f"{source}: torch cannot read it ({reason}); download or save it again.") from None


def _check_directory_size(handle: IO[bytes], size: int, source: str) -> None:
    """Refuse a directory of millions of entries before zipfile turns each into an object."""
    start = max(0, size - 65_535 - 22 - 76)  # the longest comment, the end record, the zip64 records before it
    handle.seek(start)
    tail = handle.read(size - start)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 22:
        raise CorruptCheckpoint(
            f"{source}: is cut off: the directory at its end is missing; download or copy it again."
        )
    length = struct.unpack_from("<L", tail, end + 12)[0]
    large = tail.rfind(b"PK\x06\x06", 0, end)
    if length == 0xFFFFFFFF and large >= 0 and len(tail) >= large + 48:
        length = struct.unpack_from("<Q", tail, large + 40)[0]
    if length > MAX_HEADER:
        raise CorruptCheckpoint(
            f"{source}: its archive claims a directory of {length} bytes; no CLIP has as many tensors."
        )


def _check_directory(archive: zipfile.ZipFile, size: int, source: str) -> None:
    """Judge the archive by its directory alone: before a byte is unpacked, a bomb has cost nothing."""
    entries = archive.infolist()
    names = [e.filename for e in entries]
    repeated = [n for n, count in Counter(names).items() if count > 1]
    if repeated:
        raise CorruptCheckpoint(f"{source}: its archive holds '{shown(repeated[0])}' twice; save the file again.")
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise CorruptCheckpoint(
                f"{source}: its archive names a path outside itself ('{shown(name)}'); do not use it."
            )
    unpacked = sum(e.file_size for e in entries)
    if unpacked > 2 * size + SLACK:
        raise CorruptCheckpoint(
            f"{source}: {size} bytes that claim to unpack to {unpacked}: a zip bomb, not a checkpoint; do not use it."
        )


def _check_pickle(archive: zipfile.ZipFile, source: str) -> None:
    names = archive.namelist()
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{source}: is a zip archive, but no checkpoint: {_zip_looks(names)}.")
    root = pickles[0].split("/", 1)[0]
    if any(n.startswith((f"{root}/code/", f"{root}/constants.pkl")) for n in names):
        raise CheckpointError(
            f"{source}: is a TorchScript archive (OpenAI's releases are): a program with its weights inside.\n{_RESAVE}"
        )
    info = archive.getinfo(pickles[0])
    with archive.open(info) as stream:
        scan = scan_pickle(stream, info.file_size)
    refused = unsafe_names(scan)
    if refused:
        raise _unsafe(refused, source)
    if not scan.complete:
        raise CorruptCheckpoint(f"{source}: its list of tensors (data.pkl) is damaged; download or save it again.")


def _zip_looks(names: list[str]) -> str:
    if names and all(n.endswith(".npy") for n in names):
        return "it holds numpy arrays (.npz)"
    inside = [n for n in names if n.endswith((".pt", ".pth", ".bin", ".safetensors", ".ckpt"))]
    if inside:
        return f"unpack it and pass what is inside ({listing(inside, 3)})"
    return f"torch.save's data.pkl is missing; it holds {listing(names, 3)}" if names else "it holds nothing"


def _unsafe(names: tuple[str, ...], source: str) -> UnsafeCheckpoint:
    whole = any(n.startswith(("torch.nn.modules.", "torch.jit.")) for n in names)
    what = "is a whole pickled module; opening it would import" if whole else "opening it would import, and may run,"
    return UnsafeCheckpoint(f"{source}: {what} {listing(names)}.\nRefused, nothing was run. {_RESAVE}")


def _refusal(handle: IO[bytes], size: int, head: bytes, source: str) -> CheckpointError:
    """The error for a file that is no known checkpoint, by what it looks like."""
    for magic, meaning in _LOOKS:
        if head.startswith(magic):
            return CheckpointError(f"{source}: is {meaning}.")
    if head[257:262] == b"ustar":
        return CheckpointError(f"{source}: is a tar archive; unpack it and pass the checkpoint inside.")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return CheckpointError(f"{source}: is a web page, not a checkpoint: the download gave an error or login page.")
    if text.startswith((b"{", b"[")):
        return CheckpointError(
            f"{source}: is JSON text, not a checkpoint; pass the file with the weights that lies beside it."
        )
    legacy = head.startswith(_LEGACY_TORCH)
    handle.seek(0)
    scan = scan_pickle(handle, size, pickles=5 if legacy else 1)
    if legacy or head[:1] == b"\x80" or (scan.complete and scan.names):
        refused = unsafe_names(scan)
        if refused:
            return _unsafe(refused, source)
        kind = "a legacy torch file (torch < 1.6)" if legacy else "a raw pickle"
        return CheckpointError(
            f"{source}: is {kind}{'' if scan.complete else ', cut off or damaged'}, which is not opened.\n{_RESAVE}"
        )
    if head[:1] and (0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return CheckpointError(
            f"{source}: looks like msgpack (flax); export the weights with open_clip's names as safetensors."
        )
    return CheckpointError(
        f"{source}: is of no known format (it starts with {head[:8].hex(' ')}).\n"
        "Known are safetensors files and the zip files that torch.save writes."
    )


def _near(source: str) -> str:
    try:
        return did_you_mean(os.path.basename(source), os.listdir(os.path.dirname(source) or "."))
    except OSError:
        return ""


def _inside(folder: str) -> str:
    try:
        found = sorted(p.name for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin"))
    except OSError:
        found = []
    return f" in it ({listing(found, 3)})" if found else " itself"
