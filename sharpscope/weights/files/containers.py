"""The file formats: a file is recognised by its first bytes, never by its extension, and opened safely.

Nothing in a file is executed: there is no unpickler here, only :mod:`.pickles`. A refusal says what the file
looks like. Tensors stay in the file until they are asked for, so the file has to stay open until then.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from sharpscope.config.inputs import no_such_file
from sharpscope.errors import CheckpointError, CorruptCheckpoint, listing, shown
from sharpscope.weights.files import flaxfile, safetensorsfile
from sharpscope.weights.files.inert import Report
from sharpscope.weights.files.locations import DISTRIBUTED
from sharpscope.weights.files.torchfiles import LEGACY, read_legacy, read_raw_pickle, read_zip

__all__ = ["Content", "open_regular", "read_container"]


@dataclass(frozen=True)
class Content:
    """What a file holds: ``container`` (its format), ``value`` (the tensors inside are still in the file),
    ``metadata``, and ``report`` on what it would have imported."""

    container: str
    value: Any
    metadata: dict[str, str] = field(default_factory=dict)
    report: Report = field(default_factory=Report)


_LOOKS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x1f\x8b", "a gzip archive; unpack it (gunzip, tar xzf) and pass the checkpoint inside"),
    (b"BZh", "a bzip2 archive; unpack it and pass the checkpoint inside"),
    (b"\xfd7zXZ", "an xz archive; unpack it and pass the checkpoint inside"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it and pass the checkpoint inside"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it and pass the checkpoint inside"),
    (b"version https://git-lfs", "a git-lfs pointer, not the weights; fetch them with `git lfs pull`"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras); export the weights as safetensors"),
    (b"\x93NUMPY", "a numpy array; a checkpoint is a dictionary of named tensors"),
    (b"GGUF", "a GGUF file; its weights are quantised; pass the original ones"),
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
        raise CheckpointError(no_such_file(source)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{name}: cannot be read: {shown(reason)}.") from None
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        os.close(descriptor)
        if stat.S_ISDIR(before.st_mode) and os.path.isfile(os.path.join(source, ".metadata")):
            raise CheckpointError(f"{name}: {DISTRIBUTED}")
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


def read_container(handle: IO[bytes], size: int, source: str) -> Content:
    """What an open file holds; the content decides.

    Raises CheckpointError (says what the file looks like and what to do), CorruptCheckpoint, UnsafeCheckpoint.
    """
    handle.seek(0)
    head = handle.read(512)
    if size == 0:
        raise CheckpointError(f"{source}: is empty (0 bytes); download or save it again.")
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        container, value, report, _ = read_zip(handle, size, source)
        return Content(container, value, report=report)
    if safetensorsfile.looks_like(head):
        tensors, metadata = safetensorsfile.read_safetensors(handle, size, source)
        return Content("safetensors", tensors, metadata)
    if head.startswith(LEGACY):
        container, value, report = read_legacy(handle, size, source)
        return Content(container, value, report=report)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        container, value, report = read_raw_pickle(handle, size, source)
        return Content(container, value, report=report)
    if flaxfile.looks_like(head):
        return Content("flax msgpack", flaxfile.read_flax(handle, size, source))
    look = _look(head)
    if look:
        raise CheckpointError(f"{source}: is {look}.")
    if head[:1] in b"(}]c.i":  # a pickle of protocol 0 or 1 has no first bytes of its own
        with contextlib.suppress(CorruptCheckpoint):
            container, value, report = read_raw_pickle(handle, size, source)
            return Content(container, value, report=report)
    raise CheckpointError(
        f"{source}: is of no known format (it starts with {head[:8].hex(' ')}).\n"
        "Known are safetensors (also in shards), torch.save's files, TorchScript archives, pickles and flax's msgpack."
    )


def _look(head: bytes) -> str | None:
    """What a file that is no checkpoint is, and what to do about it; None where that is unknown."""
    for magic, meaning in _LOOKS:
        if head.startswith(magic):
            return meaning
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and pass the checkpoint inside"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "a web page, not a checkpoint: the download gave an error or login page"
    if text.startswith((b"{", b"[")):
        return "JSON text, not a checkpoint; pass the weights file beside it"
    return None


def _inside(folder: str) -> str:
    try:
        found = sorted(p.name for p in Path(folder).iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin"))
    except OSError:
        found = []
    return f" in it ({listing(found, 3)})" if found else " itself"
