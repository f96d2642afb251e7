"""Images with captions in place of classes, in the layout of Karpathy's files for COCO and Flickr30k."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.datasets.found import Found, Request, assemble
from sharpscope.clip.datasets.images import Files
from sharpscope.config.specs import chosen_split
from sharpscope.errors import ConfigError, DatasetError, shown

__all__ = ["Captions", "captioned", "find_captions"]


@dataclass(frozen=True)
class Captions:
    """Images and captions that belong to each other.

    ``images``: the images, each of which is its own class, so that labels are numbers of images. ``texts``: the
    captions. ``image_of`` int64 [m]: the label of every caption's image.
    """

    images: Dataset
    texts: tuple[str, ...]
    image_of: NDArray[np.int64]

    @property
    def said(self) -> list[str]:
        """What a reader of R@k needs to know about the set."""
        facts = self.images.facts
        skipped = facts.get("skipped")
        return [*([f"{skipped} unreadable images skipped"] if skipped else []), *facts.get("said", ())]


@dataclass(frozen=True)
class _Entry:
    """One image of the file: its path below the folder of images, its split, and its captions."""

    path: str
    split: str
    texts: tuple[str, ...]


def find_captions(request: Request) -> Found:
    """``retrieval:FILE``: a JSON file with the captions of images, and the images beside it or under the data root.

    The file is ``{"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}], "dataset"}``; ``filepath`` (a
    folder) may be missing. The images are in the first of these folders that has the split's first image, with
    ``filepath`` or without: the file's own folder and the data root, and in each of these ``images``, NAME,
    NAME-images and NAME_images, where NAME is the file's ``dataset``. All captions of an image are taken (COCO's test
    split has 25,010 for 5,000 images); images without captions are left out.

    Raises DatasetError for a file that is missing or of another form, naming the entry, and where no folder has the
    images; ConfigError for a half of the classes, of which there are none.

    Source: Karpathy and Fei-Fei 2015, arXiv 1412.2306 (splits and files).
    """
    if request.half is not None:
        raise ConfigError(f"data set {shown(request.spec)}: captions have no classes, so there is no #{request.half}.")
    file = Path(request.root).expanduser() / Path(request.rest).expanduser()
    name, entries = _read(file)
    splits = tuple(dict.fromkeys(e.split for e in entries))
    split = chosen_split(request.spec, request.split, splits, named=request.named)
    own = [e for e in entries if e.split == split]
    kept = [e for e in own if e.texts]
    if not kept:
        raise DatasetError(f"data set {shown(request.spec)}: no image of split {shown(split)} has a caption.")
    folder, paths = _located(request, file, name, [e.path for e in kept])
    bare = len(own) - len(kept)
    return Found(
        Files(folder, paths),
        np.arange(len(kept)),
        tuple(e.path for e in kept),
        str(file),
        split,
        captions=tuple(e.texts for e in kept),
        said=(f"{bare} images without captions left out",) if bare else (),
    )


def captioned(found: Found, request: Request) -> Captions:
    """The images and captions of ``found``; at most ``limit`` images, chosen by the seed, with all their captions."""
    images = assemble(found, request)
    chosen = sorted(images.labels.tolist())
    texts = [(text, i) for i in chosen for text in found.captions[i]]
    return Captions(images, tuple(text for text, _ in texts), np.array([i for _, i in texts], dtype=np.int64))


# ---------------------------------------------------------------------- the file
def _read(file: Path) -> tuple[str, list[_Entry]]:
    """(name of the data set, its images)."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or "not UTF-8 text"
        raise DatasetError(f"captions: cannot read {shown(file)}: {why}.") from e
    except (ValueError, RecursionError) as e:
        raise DatasetError(f"captions: {shown(file)} is not JSON ({shown(e, 60)}).") from e
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list) or not images:
        raise DatasetError(
            f"captions: {shown(file)} has no list 'images'.\nRemedy: a file in the layout of Karpathy's "
            'dataset_coco.json: {"images": [{"filename", "split", "sentences": [{"raw"}]}]}.'
        )
    entries = [_entry(image, f"captions: {shown(file)}, images[{i}]") for i, image in enumerate(images)]
    path, count = Counter(e.path for e in entries).most_common(1)[0]
    if count > 1:
        raise DatasetError(f"captions: {shown(file)}: the image {shown(path)} is listed {count} times.")
    name = data.get("dataset")
    return name if isinstance(name, str) and _is_below(name) else "", entries


def _entry(image: Any, where: str) -> _Entry:
    if not isinstance(image, Mapping):
        raise DatasetError(f"{where}: '{shown(image, 60)}' is not an object.")
    filename, folder, split, sentences = (image.get(k) for k in ("filename", "filepath", "split", "sentences"))
    path = f"{folder}/{filename}" if isinstance(folder, str) and folder else filename
    if not isinstance(path, str) or not isinstance(filename, str) or not _is_below(path):
        raise DatasetError(f"{where}.filename: '{shown(path, 60)}' is not a path below the folder of images.")
    if not isinstance(split, str) or not split:
        raise DatasetError(f"{where}.split: '{shown(split, 60)}' is not the name of a split.")
    if not isinstance(sentences, list):
        raise DatasetError(f"{where}.sentences: '{shown(sentences, 60)}' is not a list.")
    texts = [s.get("raw") if isinstance(s, Mapping) else None for s in sentences]
    if bad := [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise DatasetError(f"{where}.sentences[{bad[0]}].raw: '{shown(texts[bad[0]], 60)}' is not a caption.")
    return _Entry(path, split, tuple(str(text) for text in texts))


def _is_below(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def _located(request: Request, file: Path, name: str, paths: list[str]) -> tuple[Path, list[str]]:
    """(folder of images, paths below it); DatasetError where no known folder has the first image."""
    plain = [p.rpartition("/")[2] for p in paths]
    below = ["", "images", *([name, f"{name}-images", f"{name}_images"] if name else [])]
    tried = [
        Path(base) / sub for base in dict.fromkeys((file.parent, Path(request.root).expanduser())) for sub in below
    ]
    for folder in tried:
        for listed in (paths, plain):
            if (folder / listed[0]).is_file():
                return folder, listed
    raise DatasetError(
        f"data set {shown(request.spec)}: the image {shown(paths[0])} is in none of the folders "
        f"{', '.join(shown(f) for f in tried)}.\nRemedy: --data-root is the folder of the images."
    )
