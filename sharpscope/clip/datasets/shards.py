"""Tar shards in webdataset's layout, as CLIP_benchmark exports them; they are indexed once and never unpacked."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sharpscope.clip.datasets.folder import own_texts
from sharpscope.clip.datasets.found import Found, Request, numbered
from sharpscope.clip.datasets.images import opened
from sharpscope.config.specs import chosen_split
from sharpscope.errors import DatasetError, shown

__all__ = ["find_shards"]

_IMAGES = (".webp", ".png", ".jpg", ".jpeg")
_LABEL_BYTES = 32
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_Part = tuple[str, int, int]  # shard, offset, bytes


class _Members:
    """Image members of shards."""

    def __init__(self, parts: Sequence[_Part], names: Sequence[str]) -> None:
        self.parts, self.names = parts, names

    def __len__(self) -> int:
        return len(self.parts)

    def name(self, i: int) -> str:
        return self.names[i]

    def open(self, i: int) -> Image.Image:
        return opened(_read(self.parts[i]))


def find_shards(request: Request) -> Found:
    """``wds:PATH``: a folder of tar shards, or the shards themselves (``PATH/{00..09}.tar``).

    The folder contains ``SPLIT/{0..N}.tar``, ``SPLIT/nshards.txt``, ``classnames.txt`` and
    ``zeroshot_classification_templates.txt``. Every sample is an image (webp, png, jpg, jpeg) and a ``.cls`` member
    with its label as text. Member names only identify samples: no file is written, and links and devices are skipped.
    """
    path = Path(request.root).expanduser() / Path(request.rest).expanduser()
    if path.name.endswith(".tar"):
        chosen_split(request.spec, request.split, (), named=request.named)  # named shards have no splits
        shards, split = _expanded(str(path)), None
        tops = [path.parent, path.parent.parent]
    else:
        shards, split = _counted(path / request.split), request.split
        tops = [path]
    parts: list[_Part] = []
    names: list[str] = []
    labels: list[int] = []
    for shard in shards:
        for key, image, label in _samples(shard):
            parts.append(image)
            names.append(f"{os.path.basename(shard)}/{key}")
            labels.append(label)
    if not parts:
        raise DatasetError(f"data set {shown(request.spec)}: no images in {shown(shards[0])}.")
    classes, templates = next((t for t in map(own_texts, tops) if t[0] or t[1]), (None, None))
    array = np.array(labels, dtype=np.int64)
    return Found(
        _Members(parts, names),
        array,
        classes or numbered(request, max(labels) + 1),
        str(path),
        split,
        indexed=True,
        templates=templates,
        unnamed=classes is None,
    )


def _expanded(pattern: str) -> list[str]:
    """The files of a brace pattern; the numbers of {00..09} keep their leading zeros."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    return [pattern[: found.start()] + str(n).zfill(len(first)) + pattern[found.end() :] for n in numbers]


def _counted(folder: Path) -> list[str]:
    file = folder / "nshards.txt"
    try:
        count = int(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise DatasetError(f"{shown(file)}: cannot be read ({e.strerror or e}); CLIP_benchmark writes it.") from e
    except ValueError as e:
        raise DatasetError(f"{shown(file)}: the file must hold the number of shards.") from e
    if not 1 <= count <= 1_000_000:
        raise DatasetError(f"{shown(file)}: {count} shards; there must be between 1 and 1,000,000.")
    return [str(folder / f"{i}.tar") for i in range(count)]


def _samples(shard: str) -> Iterator[tuple[str, _Part, int]]:
    """(key, image, label) of every sample, in the shard's order; DatasetError for an incomplete sample."""
    images: dict[str, _Part] = {}
    labels: dict[str, int] = {}
    for name, part in _files(shard):
        stem, dot, extension = os.path.basename(name).partition(".")
        key, kind = os.path.join(os.path.dirname(name), stem), (dot + extension).lower()
        if kind not in (*_IMAGES, ".cls"):
            continue
        if key in (labels if kind == ".cls" else images):
            what = "label" if kind == ".cls" else "image"
            raise DatasetError(f"{shown(shard)}: member '{shown(name)}' is a second {what} of one sample.")
        if kind != ".cls":
            images[key] = part
            continue
        text = _read(part) if part[2] <= _LABEL_BYTES else b"?"
        try:
            labels[key] = int(text)
        except ValueError:
            raise DatasetError(f"{shown(shard)}: member '{shown(name)}' does not hold an integer label.") from None
    if lonely := images.keys() ^ labels.keys():
        key = min(lonely)
        raise DatasetError(f"{shown(shard)}: sample '{shown(key)}' has no {'label' if key in images else 'image'}.")
    yield from ((key, part, labels[key]) for key, part in images.items())


def _files(shard: str) -> Iterator[tuple[str, _Part]]:
    try:
        size = os.path.getsize(shard)
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                if member.size < 0 or member.offset_data + member.size > size:
                    raise DatasetError(f"{shown(shard)}: the file ends within member '{shown(member.name)}'.")
                yield member.name, (shard, member.offset_data, member.size)
    except OSError as e:
        raise DatasetError(f"{shown(shard)}: cannot be read: {e.strerror or e}.") from e
    except (tarfile.TarError, ValueError, OverflowError) as e:
        with open(shard, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        hint = " It is gzipped: unpack it with gunzip first." if packed else ""
        raise DatasetError(f"{shown(shard)}: not a tar archive, or a damaged one ({shown(e)}).{hint}") from e


def _read(part: _Part) -> bytes:
    shard, offset, size = part
    with open(shard, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) != size:
        raise OSError("cut off")
    return data
