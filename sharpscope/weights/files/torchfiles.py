"""torch's own files: the zip of ``torch.save``, TorchScript archives, legacy files, and raw pickles of modules.

All four are a pickle beside the bytes of its tensors; the pickle goes through :mod:`.pickles`, which runs nothing, and
the bytes are read tensor by tensor, only those that are asked for. ``torch.load`` and ``torch.jit.load`` are not used.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections import Counter
from typing import IO, Any, Final

import numpy as np
import torch

from sharpscope.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint, listing, shown
from sharpscope.weights.files.inert import DamagedPickleError, LongLineError, Report, Storage
from sharpscope.weights.files.pickles import Machine
from sharpscope.weights.files.rebuild import rebuild, storage_dtype
from sharpscope.weights.files.regions import Blob, Budget, LongText, Region

__all__ = ["LEGACY", "MAX_DIRECTORY", "copied", "read_legacy", "read_raw_pickle", "read_zip"]

LEGACY: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of torch's format before version 1.6: a pickle of its magic number."""
SLACK: Final = 16 * 2**20
"""An archive may unpack to twice its own size plus so many bytes; a larger value lets larger zip bombs pass."""
MAX_DIRECTORY: Final = 4 * 2**20
"""The most bytes that the directory of a zip archive may have: some 30,000 tensors, where a CLIP has at most 3,000."""
MAX_PICKLE: Final = 16 * 2**20
"""The most bytes that data.pkl may have; that of a training checkpoint of 1,000 tensors has about 1 MB."""

Read = tuple[str, Any, Report]
"""(The container, what the pickle holds, and the report on what it wanted to import.)"""


# ---------------------------------------------------------------------- zip archives
def read_zip(handle: IO[bytes], size: int, source: str) -> tuple[str, Any, Report, zipfile.ZipFile]:
    """``(container, content, report, archive)``; tensors are read from the archive later, which has to stay open."""
    try:
        archive = zipfile.ZipFile(_Wary(handle, source))
        _check_directory(archive, size, source)
        container, root = _root(archive, source)
        content, report = _read_data_pkl(archive, root, source)
    except CheckpointError:
        raise
    except zipfile.BadZipFile as error:
        what = "the directory at its end is missing" if "not a zip" in str(error) else shown(error)
        raise CorruptCheckpoint(f"{source}: is cut off or damaged ({what}); download or copy it again.") from None
    except Exception as error:  # zipfile lets UnicodeDecodeError, NotImplementedError ... through on damaged bytes
        raise CorruptCheckpoint(
            f"{source}: is a damaged or cut off zip archive ({shown(error)}); download or copy it again."
        ) from None
    return container, content, report, archive


class _Wary:
    """The file as zipfile sees it: a directory of millions of entries, each to become an object, is not read."""

    def __init__(self, handle: IO[bytes], source: str) -> None:
        self.handle, self.source = handle, source
        self.seek, self.tell, self.seekable = handle.seek, handle.tell, handle.seekable

    def read(self, count: int = -1) -> bytes:
        """``handle.read``; zipfile asks for the rest only at the end of the file, for the longest comment."""
        if count > MAX_DIRECTORY:
            raise CorruptCheckpoint(
                f"{self.source}: its archive claims a directory of {count} bytes; no CLIP has as many tensors."
            )
        return self.handle.read(MAX_DIRECTORY if count < 0 else count)


def _check_directory(archive: zipfile.ZipFile, size: int, source: str) -> None:
    """Judge the archive by its directory alone: before a byte is unpacked, a bomb has cost nothing."""
    entries = archive.infolist()
    names = [e.filename for e in entries]
    repeated = [n for n, count in Counter(names).items() if count > 1]
    if repeated:
        raise CorruptCheckpoint(f"{source}: its archive holds '{shown(repeated[0])}' twice; save the file again.")
    for entry in entries:
        name = entry.filename
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise CorruptCheckpoint(
                f"{source}: its archive names a path outside itself ('{shown(name)}'); do not use it."
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise CorruptCheckpoint(f"{source}: '{shown(name)}' in its archive is encrypted or packed unusually.")
    unpacked = sum(e.file_size for e in entries)
    if unpacked > 2 * size + SLACK:
        raise CorruptCheckpoint(
            f"{source}: its {size} bytes claim to unpack to {unpacked}: a zip bomb, not a checkpoint; do not use it."
        )


def _root(archive: zipfile.ZipFile, source: str) -> tuple[str, str]:
    names = archive.namelist()
    pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"{source}: is a zip archive, but not a checkpoint: {_zip_looks(names)}.")
    root = pickles[0].split("/", 1)[0]
    script = any(n.startswith((f"{root}/code/", f"{root}/constants.pkl")) for n in names)
    order = f"{root}/byteorder"
    if order in names and _entry(archive, order, 16) != b"little":
        raise CorruptCheckpoint(f"{source}: was written on a big-endian machine; save it again on a little-endian one.")
    return "TorchScript archive" if script else "torch zip", root


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as stream:  # reading to the end checks the checksum
        data = stream.read(limit)
        if stream.read(1):
            raise DamagedPickleError(f"{name} is too long")
    return data


def _read_data_pkl(archive: zipfile.ZipFile, root: str, source: str) -> tuple[Any, Report]:
    data = _entry(archive, f"{root}/data.pkl", MAX_PICKLE)
    storages: dict[str, Storage] = {}

    def persistent(pid: Any) -> Any:
        kind, storage, key, _, numel = _pid(pid)
        if kind == "module":
            return storage
        dtype, width = storage_dtype(storage)
        info = archive.NameToInfo.get(f"{root}/data/{key}")
        if info is None or type(numel) is not int or info.file_size != numel * width:
            raise DamagedPickleError(f"storage {shown(key, 20)} is missing or of another size")
        if key not in storages:
            storages[key] = Storage(dtype, info.file_size, lambda: _unpack(archive, info, source))
        elif storages[key].dtype != dtype:
            raise DamagedPickleError(f"storage {shown(key, 20)} has two types")
        return storages[key]

    report = Report()
    nested = _Nested(report, Budget())
    return _run(Region(io.BytesIO(data), 0, len(data)), nested, persistent, source), report


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> torch.Tensor:
    data = np.empty(info.file_size, dtype=np.uint8)
    try:
        with archive.open(info) as stream:
            view = data.data
            while len(view):
                piece = stream.read(min(len(view), 2**20))
                if not piece:
                    raise EOFError("it is shorter than it claims")
                view[: len(piece)] = piece
                view = view[len(piece) :]
            if stream.read(1):  # the checksum is compared at the end
                raise EOFError("it is longer than it claims")
    except Exception as error:
        raise CorruptCheckpoint(
            f"{source}: '{shown(info.filename)}' is damaged ({shown(error)}); download or copy the file again."
        ) from None
    return torch.from_numpy(data)


def _zip_looks(names: list[str]) -> str:
    if names and all(n.endswith(".npy") for n in names):
        return "it holds numpy arrays (.npz)"
    inside = [n for n in names if n.endswith((".pt", ".pth", ".bin", ".safetensors", ".ckpt"))]
    if inside:
        return f"unpack it and pass what is inside ({listing(inside, 3)})"
    return f"torch.save's data.pkl is missing; it holds {listing(names, 3)}" if names else "it holds nothing"


# ---------------------------------------------------------------------- files that are pickles
def read_legacy(handle: IO[bytes], size: int, source: str) -> Read:
    """A file of torch before 1.6 (or ``_use_new_zipfile_serialization=False``)."""
    nested = _Nested(Report(), Budget())
    content = _guarded(lambda: _legacy(Region(handle, 0, size), nested), nested, source)
    return "legacy torch file", content, nested.report


def read_raw_pickle(handle: IO[bytes], size: int, source: str) -> Read:
    """A plain pickle, of a whole module most often: its tensors are legacy files inside it."""
    nested = _Nested(Report(), Budget())
    region = Region(handle, 0, size)
    content = _run(region, nested, None, source)
    if region.position != size:
        raise CorruptCheckpoint(
            f"{source}: {size - region.position} bytes follow the end of its pickle; copy it again."
        )
    return "raw pickle", content, nested.report


class _Nested:
    """``_load_from_bytes`` in a pickle: its bytes are a legacy file with one storage, read like any other."""

    def __init__(self, report: Report, budget: Budget, depth: int = 0) -> None:
        self.report, self.budget, self.depth = report, budget, depth
        self.storages: dict[tuple[int, int], Any] = {}

    def reduce(self, name: str, args: tuple[Any, ...]) -> Any:
        if name != "torch.storage._load_from_bytes":
            return rebuild(name, args)
        (data,) = args
        if self.depth:
            self.report.unsafe["torch.storage._load_from_bytes inside another"] = None
            return NotImplemented
        if isinstance(data, bytes):
            return self._storage(Region(io.BytesIO(data), 0, len(data)))
        if not isinstance(data, (Blob, LongText)):
            raise DamagedPickleError("a storage that is not bytes")
        place = data.region.position, data.region.end
        if place not in self.storages:  # the same bytes named a thousand times are one storage, not a thousand
            region = Region(data.region.handle, *place)
            if isinstance(data, LongText):
                decoded = data.as_bytes()
                region = Region(io.BytesIO(decoded), 0, len(decoded))
            self.storages[place] = self._storage(region)
        return self.storages[place]

    def _storage(self, region: Region) -> Any:
        return _legacy(region, _Nested(self.report, self.budget, depth=1))


def _legacy(region: Region, nested: _Nested) -> Any:
    """The content of a legacy file: magic number, version, system, the object, storage keys, then their bytes."""

    def value(persistent: Any = None) -> Any:
        return Machine(region, nested.report, nested.budget, nested.reduce, persistent).run()

    if region.exactly(len(LEGACY)) != LEGACY:
        raise DamagedPickleError("not torch's magic number")
    if value() != 1001:
        raise DamagedPickleError("an unknown version of torch's format")
    system = value()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise DamagedPickleError("written on a big-endian machine")
    places: dict[str, tuple[Storage, int, int]] = {}
    regions: dict[str, Region] = {}

    def persistent(pid: Any) -> Any:
        kind, storage, key, view, numel = _pid(pid)
        if kind == "module":
            return storage
        dtype, width = storage_dtype(storage)
        if type(numel) is not int or not 0 <= numel * width <= region.end or view is not None:
            raise DamagedPickleError("a storage larger than the file, or a view of one")
        if key not in places:
            made = Storage(dtype, numel * width, lambda: copied(regions[key], "the file"))
            places[key] = (made, numel, width)
        elif places[key][0].dtype != dtype or places[key][1] != numel:
            raise DamagedPickleError("a storage with two types")
        return places[key][0]

    content = value(persistent)
    keys = value()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(places):
        raise DamagedPickleError("its storages are not those that its tensors need")
    for key in keys:
        _, numel, width = places[key]
        if struct.unpack("<q", region.exactly(8))[0] != numel:
            raise DamagedPickleError("a storage of another size than its tensors need")
        regions[key] = region.skip(numel * width)
    if region.position != region.end:
        raise DamagedPickleError("bytes follow its end")
    return content


def copied(region: Region, source: str) -> torch.Tensor:
    """The bytes of ``region`` in memory, uint8 [n]."""
    data = np.empty(region.end - region.position, dtype=np.uint8)
    view = data.data
    region.handle.seek(region.position)
    while len(view):
        piece = region.handle.read(min(len(view), 2**20))
        if not piece:
            raise CorruptCheckpoint(f"{source}: became shorter while it was read.")
        view[: len(piece)] = piece
        view = view[len(piece) :]
    return torch.from_numpy(data)


def _pid(pid: Any) -> tuple[str, Any, str, Any, Any]:
    """``(kind, storage type, key, view, numel)`` of torch's persistent ids, of both formats."""
    if not isinstance(pid, tuple) or len(pid) < 2 or pid[0] not in ("storage", "module"):
        raise DamagedPickleError("a persistent id that is not torch's")
    if pid[0] == "module":  # a class with its source text, in files before torch 1.0
        return "module", pid[1], "", None, 0
    if len(pid) not in (5, 6) or not isinstance(pid[2], str) or not pid[2].isalnum():
        raise DamagedPickleError("a persistent id that is not torch's")
    return "storage", pid[1], pid[2], pid[5] if len(pid) == 6 else None, pid[4]


# ---------------------------------------------------------------------- what a failed read says
def _run(region: Region, nested: _Nested, persistent: Any, source: str) -> Any:
    def value() -> Any:
        return Machine(region, nested.report, nested.budget, nested.reduce, persistent).run()

    return _guarded(value, nested, source)


def _guarded(read: Any, nested: _Nested, source: str) -> Any:
    """The result of ``read()``; raises UnsafeCheckpoint for unsafe names, damaged or not, else CorruptCheckpoint."""
    damage: Exception | None = None
    content: Any = None
    try:
        content = read()
    except (DamagedPickleError, struct.error, TypeError, ValueError, KeyError, IndexError, RecursionError) as error:
        damage = error
    if nested.report.unsafe:
        raise UnsafeCheckpoint(
            f"{source}: opening it would import, and may run, {listing(nested.report.unsafe)}.\n"
            "Refused, nothing was run: such names can run code or reach files, or are not known to be harmless.\n"
            "If the file is yours, save its weights alone: torch.save(model.state_dict(), FILE)."
        )
    if isinstance(damage, LongLineError):
        raise CheckpointError(
            f"{source}: is a pickle of protocol 0, which writes tensors as text; those are not read.\n"
            "Remedy: save the weights with the program that wrote them: torch.save(model.state_dict(), FILE)."
        )
    if damage is not None:
        reason = shown(damage) if isinstance(damage, DamagedPickleError) else type(damage).__name__
        raise CorruptCheckpoint(f"{source}: is damaged or cut off ({reason}); download or save it again.")
    return content
