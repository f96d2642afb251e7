"""``log.jsonl`` of a run: what happened and when, one JSON object a line, appended to by every process of the run."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sharpscope.atomic import writing

__all__ = ["Log", "failures_in", "through_json"]


class Log:
    """The log at ``path``, which is made by its first event."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._failures: dict[str, str] = {}
        self._read = path.stat().st_size if path.exists() else 0

    def add(self, event: str, **fields: Any) -> None:
        """Append one line (time, process, event, fields) with a single write. Raises RunDirectoryError."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps(through_json({"time": now, "pid": os.getpid(), "event": event, **fields})) + "\n"
        with writing(self.path):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                if os.write(handle, line.encode()) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(handle)

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event so far, in order; a line that a kill has cut off is passed over."""
        with contextlib.suppress(FileNotFoundError):
            yield from _events(self.path.read_bytes())

    def failures(self) -> dict[str, str]:
        """Key -> reason of the units that have failed since this object was made, in this process or another one."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read += len(new)
            self._failures = failures_in(_events(new), self._failures)
        return self._failures


def failures_in(events: Iterable[dict[str, Any]], before: dict[str, str] | None = None) -> dict[str, str]:
    """Key -> reason of the units that failed in ``events`` and have not been finished since.

    ``before``: those that had failed already.
    """
    failed = dict(before or {})
    for event in events:
        if event["event"] == "failed":
            failed[event["key"]] = event["reason"]
        elif event["event"] == "unit":
            failed.pop(event["key"], None)
    return failed


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` after a round trip through JSON (lists for tuples, Python numbers), so that a restart compares equal."""

    def default(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        raise TypeError(f"{type(value).__name__} cannot be written into a manifest or log")

    return json.loads(json.dumps(data, default=default))


def _events(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and "event" in event:
                yield event
