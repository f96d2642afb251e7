"""The eleven data sets of CoOp, in the folders and with the split files that its authors publish."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from sharpscope.clip.datasets.folder import class_folders, class_images
from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import check_distinct, read_lines, spoken
from sharpscope.config.coopsets import COOP, CoopSet
from sharpscope.config.specs import chosen_split
from sharpscope.errors import DatasetError, shown

__all__ = ["find_coop"]

_SPLITS: Final = ("train", "val", "test")


def find_coop(request: Request) -> Found:
    """``coop:NAME``: train, val and test of CoOp's split file; class names and their order are the file's.

    A split file is JSON, ``{"train": [[path, label, name], ...], "val": ..., "test": ...}``, with paths below the set's
    folder of images. FGVC-Aircraft has the lists of its release (``images_variant_train.txt`` ...), ImageNet the
    folders ``images/train`` and ``images/val`` (its test split; it has no other val split) and ``classnames.txt``.

    ``shots`` images of each class are drawn from the train split by our own seed. CoOp draws them with Python's random
    numbers after others have been drawn, so which images those are is known only to its cached pickle files.

    Raises DatasetError for a file that is missing or of another form, naming the entry.
    """
    kind = COOP[request.rest]
    folder = Path(request.root).expanduser() / kind.folder
    if not folder.is_dir():
        raise DatasetError(
            f"data set {shown(request.spec)}: no folder {kind.folder} under the data root {shown(request.root)}.\n"
            "Remedy: --data-root is the folder that holds CoOp's data sets side by side (its DATASETS.md)."
        )
    if request.rest == "imagenet":
        return _imagenet(request, kind, folder)
    split = str(chosen_split(request.spec, request.split, _SPLITS, named=request.named))
    entries = _aircraft(folder) if request.rest == "aircraft" else _split_file(folder / kind.split_file)
    names = _names(entries, folder / kind.split_file if kind.split_file else folder / "variants.txt")
    paths, labels = [e[0] for e in entries[split]], [e[1] for e in entries[split]]
    return Found(
        Files(folder / kind.images, paths),
        np.array(labels, dtype=np.int64),
        names,
        str(folder),
        split,
        templates=(kind.template,),
        empty=tuple(names[c] for c in sorted(set(range(len(names))) - set(labels))),
    )


_Entries = dict[str, list[tuple[str, int, str]]]


def _split_file(file: Path) -> _Entries:
    """Split -> its (path, label, class name), in the file's order."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise DatasetError(f"{shown(file)}: cannot be read ({e.strerror or e}); CoOp's DATASETS.md links to it.") from e
    except (ValueError, RecursionError) as e:
        raise DatasetError(f"{shown(file)}: not JSON ({shown(e, 60)}).") from e
    if not isinstance(data, dict) or not all(isinstance(data.get(s), list) for s in _SPLITS):
        raise DatasetError(f"{shown(file)}: not a split file of CoOp, which has the lists train, val and test.")
    return {split: [_entry(e, f"{shown(file)}, {split}[{i}]") for i, e in enumerate(data[split])] for split in _SPLITS}


def _entry(entry: Any, where: str) -> tuple[str, int, str]:
    if isinstance(entry, list) and len(entry) == 3:
        path, label, name = entry
        number = int(label) if isinstance(label, str) and label.isdecimal() else label
        texts = isinstance(path, str) and isinstance(name, str) and name.strip()
        inside = texts and path and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
        if inside and type(number) is int and number >= 0:
            return path, number, name
    raise DatasetError(f"{where}: '{shown(entry, 60)}' is not of the form [path below the images, label, class name].")


def _names(entries: _Entries, file: Path) -> tuple[str, ...]:
    """The class names by label, from all splits together; DatasetError where they contradict each other."""
    name_of: dict[int, str] = {}
    for split in _SPLITS:
        for _, label, name in entries[split]:
            if name_of.setdefault(label, name) != name:
                raise DatasetError(
                    f"{shown(file)}: label {label} is '{shown(name_of[label], 40)}' at first and "
                    f"'{shown(name, 40)}' later."
                )
    if missing := sorted(set(range(max(name_of, default=0) + 1)) - set(name_of)):
        raise DatasetError(f"{shown(file)}: no image has label {missing[0]}, so that class has no name.")
    names = tuple(spoken(name_of[label]) for label in sorted(name_of))
    check_distinct(names, str(file))
    return names


def _aircraft(folder: Path) -> _Entries:
    """The lists of FGVC-Aircraft's release: an image's number and its variant on each line."""
    variants = read_lines(folder / "variants.txt", "class names")
    label = {name: i for i, name in enumerate(variants)}
    return {split: list(_variants(folder / f"images_variant_{split}.txt", label)) for split in _SPLITS}


def _variants(file: Path, label: Mapping[str, int]) -> Iterator[tuple[str, int, str]]:
    for line, text in enumerate(read_lines(file, "image list"), 1):
        number, _, variant = text.partition(" ")
        if variant not in label or "/" in number:
            raise DatasetError(f"{shown(file)}, line {line}: '{shown(text, 60)}' is not an image and a known variant.")
        yield f"{number}.jpg", label[variant], variant


def _imagenet(request: Request, kind: CoopSet, folder: Path) -> Found:
    split = str(chosen_split(request.spec, request.split, ("train", "test"), named=request.named))
    images = folder / kind.images / ("train" if split == "train" else "val")
    file = folder / "classnames.txt"
    named = dict(_wnid_and_name(text, i, file) for i, text in enumerate(read_lines(file, "class names"), 1))
    found = class_folders(images, request.spec)
    if unknown := [f for f in found if f not in named]:
        raise DatasetError(f"{shown(images)}: folder '{shown(unknown[0])}' is not in {shown(file.name)}.")
    ids = sorted(named)  # CoOp numbers the sorted folders
    paths, labels = class_images(images, found, lambda i: ids.index(found[i]))
    return Found(
        Files(images, paths),
        labels,
        tuple(named[w] for w in ids),
        str(images),
        split,
        indexed=True,
        codes=tuple(ids),
        templates=(kind.template,),
    )


def _wnid_and_name(text: str, line: int, file: Path) -> tuple[str, str]:
    wnid, _, name = text.partition(" ")
    if not name.strip():
        raise DatasetError(f"{shown(file)}, line {line}: '{shown(text, 60)}' is not of the form 'n01440764 tench'.")
    return wnid, name.strip()
