"""The run directory: finished units of work, each in a file with its own checksum, and everything derived from them.

Only this module and ``study.claims`` write into a run directory. Three rules keep the directory intact whatever happens
to the process:

* a file appears under its name complete or not at all (temporary file in the same folder, fsync, ``os.replace``);
* a unit file contains the SHA-256 of its key and contents; a file that does not match is renamed to ``.bad``, and its
  unit then counts as missing;
* claims (``study.claims``) only save work: two processes that compute the same unit write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from sharpscope.atomic import is_stale, set_aside, write_atomic, write_once, writing
from sharpscope.config.spellings import current_keys
from sharpscope.errors import RunDirectoryError, shown
from sharpscope.study.claims import Claim, Claims, Holder
from sharpscope.study.log import Log, through_json
from sharpscope.study.unitfile import Unit, decode, encode, file_name

__all__ = ["RunDirectory"]

_FORMAT: Final = "sharpscope-run/1"
_MADE_BEFORE: Final = frozenset({"checkpoints", "slurm"})
"""The folders that a run directory may contain before its manifest is written: the fine-tuned files of a sweep, and the
files of a submission to a scheduler."""
_OWN: Final = frozenset({"manifest.json", "units", "claims", "log.jsonl"})
_SAID_LATER: Final = ("contents",)
"""Parts of the identity that older directories lack. There they are not compared."""


@dataclass(frozen=True, eq=False)
class RunDirectory:
    """``manifest.json``, ``units/``, ``claims/``, ``log.jsonl`` and the derived files of one run; see ``open``."""

    root: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, root: str | os.PathLike[str], identity: dict[str, Any], manifest: dict[str, Any]) -> RunDirectory:
        """The run directory at ``root``, which is made if it does not exist.

        Args:
            root: the folder.
            identity: everything that determines the numbers (config, hashes of the inputs, version). A directory
                belongs to one identity.
            manifest: further facts about the run, which may differ from one start to the next; ``manifest.json`` keeps
                those of the first start.

        Raises:
            RunDirectoryError: the directory has another identity (the message names the differences), the folder holds
                something else, or the disk refuses.
        """
        root = Path(root)
        identity, manifest = through_json(identity), through_json(manifest)
        if root.exists() and not root.is_dir():
            raise RunDirectoryError(f"{shown(root)}: is a file, not a run directory. Choose another --out.")
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            if not (root / "manifest.json").exists():
                _refuse_strangers(root)
                text = json.dumps({"format": _FORMAT, "identity": identity, **manifest}, indent=2) + "\n"
                write_once(root / "manifest.json", text.encode())
        stored = _read_manifest(root)
        unsaid = {key for key in _SAID_LATER if key not in stored["identity"]}
        identity = {k: v for k, v in identity.items() if k not in unsaid}
        if difference := _difference(stored["identity"], identity):
            others = stored["identity"] | {"ranks": identity.get("ranks")} != identity
            again = "" if others else "Start as many ranks as there (torchrun --nproc-per-node). Or: "
            raise RunDirectoryError(
                f"{shown(root)}: belongs to another experiment: {difference}.\n"
                f"{again}Choose another --out, or remove the folder if you no longer need it."
            )
        run = cls(root, stored)
        with writing(root):
            for folder in ("units", "claims"):
                (root / folder).mkdir(exist_ok=True)
            run._clean()
        _ = run.history  # failures count from here on
        return run

    @classmethod
    def existing(cls, root: str | os.PathLike[str]) -> RunDirectory:
        """The run directory at ``root`` whatever its identity, in order to write its derived files again."""
        return cls(Path(root), _read_manifest(Path(root)))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the numbers of this run, as given to ``open`` (in JSON types)."""
        return self.manifest["identity"]

    # -- units ---------------------------------------------------------------------------------------------------------

    def load(self, key: str) -> Unit | None:
        """The finished unit ``key``, or None when it is missing or its file is damaged (and then renamed ``.bad``)."""
        try:
            return self.peek(key)
        except ValueError as error:
            aside = set_aside(self._unit_path(key))
            self.log("damaged_unit", key=key, kept_as=aside, reason=shown(error))
            return None

    def peek(self, key: str) -> Unit | None:
        """The finished unit ``key``, or None when it is missing. Nothing is written; a damaged file is a ValueError."""
        path = self._unit_path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunDirectoryError(f"{shown(path)}: cannot be read: {error.strerror}.") from error
        try:
            return decode(key, data)
        except (ValueError, KeyError, TypeError, OSError, EOFError, RecursionError, zipfile.BadZipFile) as error:
            raise ValueError(shown(error)) from error

    def has(self, key: str) -> bool:
        """Whether there is a file of the unit ``key``, whole or damaged."""
        return self._unit_path(key).exists()

    def save(self, key: str, unit: Unit) -> None:
        """Write the unit ``key`` atomically; saving it again replaces it. Raises RunDirectoryError."""
        write_atomic(self._unit_path(key), encode(key, unit))

    # -- claims --------------------------------------------------------------------------------------------------------

    def claim(self, key: str) -> Claim | None:
        """The right to work on ``key``, or None when another live process has it, or the unit is done or has failed.

        A failure counts if it happened after this process opened the directory: it would fail here as well. Use it as
        ``with claim: run.save(claim.key, ...)``. The claim of a dead process is taken over; ``study.claims`` says which
        are dead.
        """
        claim = self.claims.take(key)
        if claim is not None and (self.has(key) or key in self.history.failures()):  # its last holder was here before
            claim.release()
            return None
        return claim

    def holder(self, key: str) -> Holder | None:
        """The process that holds a live claim on ``key``, or None."""
        return self.claims.holder(key)

    @cached_property
    def claims(self) -> Claims:
        """The claims on the units of this run."""
        return Claims(self.root / "claims")

    # -- derived files and the log -------------------------------------------------------------------------------------

    def write(self, relpath: str, data: bytes) -> Path:
        """Write a derived file (``tables/path.csv``) atomically below the root; returns its path."""
        parts = Path(relpath).parts
        if not parts or Path(relpath).is_absolute() or ".." in parts or parts[0] in _OWN:
            raise ValueError(f"{relpath!r} is not a path for a derived file of a run directory")
        path = self.root / relpath
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        return path

    def log(self, event: str, **fields: Any) -> None:
        """Append one line to ``log.jsonl`` (time, process, event, fields) with a single write."""
        self.history.add(event, **fields)

    @cached_property
    def history(self) -> Log:
        """The log of this run."""
        return Log(self.root / "log.jsonl")

    # -- inside --------------------------------------------------------------------------------------------------------

    def _unit_path(self, key: str) -> Path:
        return self.root / "units" / f"{file_name(key)}.unit"

    def _clean(self) -> None:
        """Remove the temporary files of dead processes and add the newline to an incomplete last line of the log."""
        for path in self.root.rglob(".tmp-*"):
            with contextlib.suppress(OSError):
                if is_stale(path):
                    path.unlink()
        log = self.root / "log.jsonl"
        if log.exists() and log.stat().st_size:
            with log.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


def _refuse_strangers(root: Path) -> None:
    names = sorted(p.name for p in root.iterdir() if not p.name.startswith(".") and p.name not in _MADE_BEFORE)
    if names:
        raise RunDirectoryError(
            f"{shown(root)}: holds {shown(names[0], 40)} but no manifest.json, so it is not a run directory. "
            "Choose another --out."
        )


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunDirectoryError(f"{shown(root)}: is not a run directory (it has no manifest.json).") from error
    except OSError as error:
        raise RunDirectoryError(f"{shown(path)}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise RunDirectoryError(f"{shown(path)}: is damaged ({shown(error, 60)}). Choose another --out.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT or "identity" not in manifest:
        raise RunDirectoryError(f"{shown(path)}: is not the manifest of a {_FORMAT} directory. Choose another --out.")
    for part in (manifest, manifest["identity"]):
        if isinstance(part, dict) and isinstance(part.get("config"), dict):
            part["config"] = current_keys(part["config"])
    return manifest


def _difference(there: Any, here: Any) -> str:
    old, new = dict(_leaves(there)), dict(_leaves(here))
    lines = [
        f"{shown(name, 60)} is {_brief(old, name)} there, {_brief(new, name)} here"
        for name in dict.fromkeys([*new, *old])
        if old.get(name) != new.get(name)
    ]
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    inner: Iterable[tuple[object, Any]] = ()
    if isinstance(value, dict) and value:
        inner = value.items()
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        inner = enumerate(value)
    else:
        yield name, json.dumps(value)
    for key, item in inner:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))


def _brief(leaves: dict[str, str], name: str) -> str:
    return shown(leaves[name], 50) if name in leaves else "not set"
