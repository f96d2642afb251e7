"""Files that a command reads: whether they are there, and the lines of text files. Nothing heavy is imported for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sharpscope.errors import CheckpointError, DatasetError, did_you_mean, shown

__all__ = ["NO_PATH", "check_checkpoint", "lines_of", "looks_like_tag", "no_such_file"]

NO_PATH = ("hf-hub:", "hf_hub:", "local-dir:")
"""The beginnings of checkpoint arguments that are no paths of files: hub ids and folders."""
_TAG = re.compile(r"[\w-]{2,60}")


def check_checkpoint(source: str) -> None:
    """Raise CheckpointError where ``source`` is the path of a file that does not exist.

    A bare word can be one of open_clip's pretrained tags, which have a message of their own where open_clip is known.
    """
    if source.startswith(NO_PATH) or looks_like_tag(source):
        return
    if not Path(source).expanduser().exists():
        raise CheckpointError(no_such_file(source))


def looks_like_tag(text: str) -> bool:
    """Whether ``text`` has the form of a pretrained tag of open_clip, such as ``openai`` or ``ViT-B-32/openai``."""
    return _TAG.fullmatch(text.replace(":", "/").rpartition("/")[2]) is not None


def no_such_file(path: str) -> str:
    """The message for a checkpoint that is missing, with the nearest name in its folder."""
    source = os.path.expanduser(path)
    try:
        near = did_you_mean(os.path.basename(source), os.listdir(os.path.dirname(source) or "."))
    except OSError:
        near = ""
    return f"{shown(source, 200)}: no such file.{near}"


def lines_of(path: str | Path, what: str) -> tuple[str, ...]:
    """The lines of a UTF-8 text file (with or without BOM), stripped; DatasetError for a blank line or no such file."""
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DatasetError(f"{what}: {shown(path)}, line {line}: not UTF-8 text.") from e
    except (OSError, ValueError) as e:
        raise DatasetError(f"{what}: cannot read {shown(path)}: {getattr(e, 'strerror', None) or e}.") from e
    lines = [line.strip() for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n")]
    for number, content in enumerate(lines, 1):
        if not content:
            raise DatasetError(f"{what}: {shown(path)}, line {number}: the line is blank.")
    return tuple(lines)
