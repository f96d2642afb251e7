"""Claims on units of work: who works on what, and which holders are dead.

A claim is a file that names a process. On this host a process is dead when no process has its id and start time. Of a
process on another host its heartbeat tells: a thread of the holder renews the claim file every ``BEAT_SECONDS``, and an
observer that has seen no change for ``SILENCE_SECONDS`` takes the holder for dead. Only the observer's own monotonic
clock is read for that, so a host whose clock is wrong does no harm.

Claims only save work: two processes that compute the same unit write the same bytes to the same name. A shared file
system without locks, or a holder that is cut off and comes back, costs a second computation and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from sharpscope.atomic import host_name, start_of, write_all, writing
from sharpscope.errors import shown
from sharpscope.study.unitfile import file_name

__all__ = ["BEAT_SECONDS", "SILENCE_SECONDS", "Claim", "Claims", "Holder"]

BEAT_SECONDS: Final = 20.0
"""The seconds between two renewals of a claim. With a smaller value files are written more often."""
SILENCE_SECONDS: Final = 180.0
"""Seconds without a change after which a claim of another host counts as that of a dead process: eight renewals have
then failed. With a smaller value the work of a dead process is taken over sooner, and a slow file server more often
makes two processes compute the same unit."""


@dataclass(frozen=True)
class Holder:
    """The process that a claim names, alive or dead, as the claim file shows it at one instant.

    ``since`` is the time of the claim by that process's clock, as text. ``renewed`` is the file's time in nanoseconds:
    its last renewal, by a clock that may be the file server's or that of the holder's host.
    """

    host: str
    pid: int
    start: str | None
    since: str
    token: str = field(repr=False)
    renewed: int = field(repr=False)

    def __str__(self) -> str:
        return f"process {self.pid} on {shown(self.host, 60)}"

    @property
    def is_here(self) -> bool:
        """Whether the process runs on this host."""
        return self.host == host_name()


@dataclass(frozen=True, eq=False)
class Claim:
    """The right of this process to work on ``key``: a context manager that releases it, also after an exception."""

    key: str
    _path: Path
    _text: bytes
    _claims: Claims

    def release(self) -> None:
        """Remove the claim, unless another process has taken it over in the meantime."""
        self._claims.heart.forget(self._path)
        try:
            with self._claims.locked():
                self._remove()
        except OSError:  # without the lock another process may just have taken it over: its work is done twice at worst
            with contextlib.suppress(OSError):
                self._remove()

    def _remove(self) -> None:
        if self._path.read_bytes() == self._text:
            self._path.unlink()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class Claims:
    """The claims in ``folder``, as one observer sees them. ``clock`` gives seconds that never go back."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._heard: dict[str, tuple[Holder, float]] = {}
        self.heart = _Heart()

    def take(self, key: str) -> Claim | None:
        """A claim on ``key``, or None when another live process has one. Raises RunDirectoryError."""
        path, text = self._path(key), json.dumps({"key": key, **_myself(), "token": secrets.token_hex(8)}).encode()
        with writing(path), self.locked():
            if path.exists():
                if self.holder(key) is not None:
                    return None
                path.unlink(missing_ok=True)
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:  # there are no locks here, and another process was faster
                return None
            try:
                write_all(handle, text)
            finally:
                os.close(handle)
        self.heart.keep(path, text)
        return Claim(key, path, text, self)

    def holder(self, key: str) -> Holder | None:
        """The process that holds a live claim on ``key``, or None."""
        holder = self.read(key)
        if holder is None or (holder.is_here and start_of(holder.pid) != holder.start):
            return None
        return holder if holder.is_here or not self._silent(key, holder) else None

    def read(self, key: str) -> Holder | None:
        """The process that the claim on ``key`` names, alive or dead, or None where there is no claim."""
        try:
            with self._path(key).open("rb") as file:  # opening makes a network file system ask its server again
                claim, renewed = json.loads(file.read()), os.fstat(file.fileno()).st_mtime_ns
            since, token = str(claim.get("since", "")), str(claim.get("token", ""))
            return Holder(str(claim["host"]), int(claim["pid"]), claim["start"], since, token, renewed)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # no claim, or an incomplete one of a dead process: live ones write under the lock

    def _silent(self, key: str, holder: Holder) -> bool:
        """Whether this observer has seen the claim of ``holder`` unchanged for so long that ``holder`` must be dead."""
        now = self._clock()
        known, since = self._heard.get(key, (None, now))
        if known != holder:
            self._heard[key] = holder, now
            return False
        return now - since > SILENCE_SECONDS

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock on claims, which the kernel releases when a process dies, where the file system has locks."""
        handle = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _path(self, key: str) -> Path:
        return self._folder / f"{file_name(key)}.claim"


class _Heart:
    """Renews the claims of this process, from a thread that lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Path, bytes] = {}
        self._beating = False

    def keep(self, path: Path, text: bytes) -> None:
        with self._lock:
            self._held[path] = text
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._beat, name="claims", daemon=True).start()

    def forget(self, path: Path) -> None:
        with self._lock:
            self._held.pop(path, None)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            with self._lock:
                if not self._held:
                    self._beating = False
                    return
                held = dict(self._held)
            for path, text in held.items():
                # What cannot be renewed falls silent; a claim that another process has taken over is left to it.
                with contextlib.suppress(OSError):
                    if path.read_bytes() == text:
                        os.utime(path)


def _myself() -> dict[str, str | int | None]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": host_name(), "pid": os.getpid(), "start": start_of(os.getpid()), "since": now}
