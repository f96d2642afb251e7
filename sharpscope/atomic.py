"""Writing files so that they are whole or absent, and saying what to do when the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sharpscope.errors import RunDirectoryError, shown

__all__ = [
    "host_name",
    "is_stale",
    "set_aside",
    "start_of",
    "write_all",
    "write_atomic",
    "write_once",
    "writing",
]

_FOREIGN_HOURS: Final = 24.0
"""Hours for which a temporary file made on ANOTHER host is left alone. This host cannot ask whether the process that
made it still lives; a larger value keeps the leftovers of a dead host longer."""

_TRY: Final = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some of your quota",
    errno.EROFS: "Choose an --out on a file system that can be written",
    errno.EACCES: "Choose another --out or change its permissions",
    errno.EPERM: "Choose another --out or change its permissions",
    errno.EMFILE: "Raise the limit of open files (ulimit -n)",
    errno.ENFILE: "Close other programs: the system has too many open files",
    errno.ENOTDIR: "Choose an --out whose parents are folders",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a RunDirectoryError that says what to do."""
    try:
        yield
    except OSError as error:
        remedy = _TRY.get(error.errno or 0, "Solve that")
        raise RunDirectoryError(
            f"{shown(path)}: cannot be written: {error.strerror or error}.\n"
            f"{remedy} and run the same command again: finished work is kept."
        ) from error


def write_all(handle: int, data: bytes) -> None:
    """Write all of ``data`` to an open file."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _temporary(path: Path, data: bytes) -> Path:
    """A new file with ``data``, on the disk, beside ``path``."""
    name = path.with_name(f".tmp-{host_name()}-{os.getpid()}-{secrets.token_hex(6)}")
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        try:
            write_all(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
    except BaseException:
        _forget(name)
        raise
    return name


def write_atomic(path: Path, data: bytes) -> None:
    """``data`` under the name ``path``, whole or not at all, and on the disk; raises RunDirectoryError."""
    with writing(path):
        temporary = _temporary(path, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            _forget(temporary)
            raise
        _sync_folder(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Like ``write_atomic``, but the first of several processes wins and the file of the others is dropped."""
    temporary = _temporary(path, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.replace(temporary, path)  # a file system without hard links
    finally:
        _forget(temporary)
    _sync_folder(path.parent)


def set_aside(path: Path) -> str:
    """Rename a damaged file to the first free ``NAME.bad``, ``NAME.1.bad`` ...; returns that name."""
    for number in itertools.count():
        aside = path.with_name(path.name + (".bad" if number == 0 else f".{number}.bad"))
        if not aside.exists():
            with writing(path), contextlib.suppress(FileNotFoundError):  # another process was first
                os.replace(path, aside)
            return aside.name
    raise AssertionError  # count() does not end


def _forget(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


def host_name() -> str:
    """This host's name in letters that fit a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "localhost"


def start_of(pid: int) -> str | None:
    """When process ``pid`` of this host started, as an opaque text; None if it does not live (a zombie does not)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    answer = subprocess.run(  # macOS and the BSDs
        ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return None if not answer or answer[0].startswith("Z") else " ".join(answer[1:])


def is_stale(path: Path) -> bool:
    """Whether the process that made this temporary file is gone."""
    parts = path.name.removeprefix(".tmp-").split("-")
    if len(parts) != 3 or not parts[1].isdigit():
        return False  # not ours
    if parts[0] == host_name():
        return start_of(int(parts[1])) is None
    return time.time() - path.stat().st_mtime > _FOREIGN_HOURS * 3600
