"""Folders with one folder per class, like torchvision's ImageFolder, with CLIP_benchmark's files of class names and
prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS  # type: ignore[import-untyped]

from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import (
    check_distinct,
    folded,
    match,
    read_classnames,
    read_templates,
    spoken,
    two_orders,
)
from sharpscope.config.specs import chosen_split, split_of
from sharpscope.errors import DatasetError, shown

__all__ = ["CLASSNAMES", "TEMPLATES", "class_folders", "class_images", "find_folder", "own_texts"]

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


def find_folder(request: Request) -> Found:
    """``folder:PATH``: class folders in torchvision.ImageFolder's order (hidden folders left out).

    ``PATH`` may contain split folders (``train``, ``val`` or ``valid``, ``test``) instead of class folders; the classes
    are then the class folders of all splits together, whichever split is read. ``PATH`` may also contain
    ``classnames.txt`` (the names of the class folders, or one line for each class folder in sorted order) and
    ``zeroshot_classification_templates.txt``, as CLIP_benchmark writes them.

    Raises ConfigError for a split that the spec names (``@train``) and that is not there, DatasetError for a mixture of
    split folders and class folders, two folders of the same class name, a folder that is reached twice through links,
    and names in an order that has two readings.
    """
    top = Path(request.root).expanduser() / Path(request.rest).expanduser()
    folder = top
    found = class_folders(top, request.spec)
    splits = _splits(top, found, request.spec)
    split = chosen_split(request.spec, request.split, splits, named=request.named)
    if splits:
        folder = top / str(split)
        found = sorted({c for s in splits for c in class_folders(top / s, request.spec)})
    there = class_folders(folder, request.spec)
    if not there:
        raise DatasetError(f"data set {shown(request.spec)}: {shown(folder)} holds no class folders.")
    paths, labels = class_images(folder, there, lambda i: found.index(there[i]))
    if not paths:
        known = ", ".join(IMG_EXTENSIONS)
        raise DatasetError(f"data set {shown(request.spec)}: no image files ({known}) under {shown(folder)}.")
    names, templates = own_texts(top)
    if names is None:
        check_distinct(found, str(folder))
        places, classes = list(range(len(found))), tuple(found if request.classnames else map(spoken, found))
    else:
        classes, places = _by_own_names(found, names, top)
    labels = np.array(places, dtype=np.int64)[labels]
    present = sorted(places[found.index(t)] for t in there)
    other = split is not None and split_of(split) != request.split
    filled = set(labels.tolist())
    bare = tuple(classes[p] for p in present if p not in filled)
    return Found(
        Files(folder, paths),
        labels,
        classes,
        str(folder),
        split,
        present=tuple(present) if len(present) < len(classes) else None,
        templates=templates,
        empty=bare,
        two_orders="" if names else two_orders(found),
        said=(f"there is no {request.split} split, so split {split} was read",) if other else (),
    )


def _splits(top: Path, found: list[str], spec: str) -> list[str]:
    """The folders among ``found`` that are splits; DatasetError where there are class folders beside them."""
    splits = [f for f in found if split_of(f) is not None]
    others = [f for f in found if f not in splits]
    if not others:
        return splits
    # One folder called train may also be a class. Its images are then in it, not in subfolders.
    if len(splits) > 1 or any(class_folders(top / s, spec) and not _holds_images(top / s) for s in splits):
        raise DatasetError(
            f"data set {shown(spec)}: {shown(top)} contains folders that may be splits ({shown(', '.join(splits))}) or "
            f"classes, beside the folder '{shown(others[0])}'.\n"
            f"Remedy: folder:{shown(spec.partition(':')[2])}/{shown(splits[0])} for that split, or move the others."
        )
    return []


def _holds_images(folder: Path) -> bool:
    return any(e.name.lower().endswith(IMG_EXTENSIONS) for e in os.scandir(folder) if not e.is_dir())


def _by_own_names(found: list[str], names: tuple[str, ...], top: Path) -> tuple[tuple[str, ...], list[int]]:
    """(class names, index of each folder's name among them), from the names in ``classnames.txt``."""
    file = top / CLASSNAMES
    known = {folded(n) for n in names}
    if len(names) != len(found) and not {folded(f) for f in found} <= known:
        raise DatasetError(
            f"{shown(file)}: {len(names)} class names for {len(found)} class folders under {shown(top)}."
        )
    classes, places, _ = match(found, names, str(file))
    return classes, places


def class_folders(folder: Path, spec: str) -> list[str]:
    """Names of the folders in ``folder``, sorted, without hidden ones; DatasetError where it cannot be read."""
    try:
        return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError as e:
        raise DatasetError(f"data set {shown(spec)}: cannot read the folder {shown(folder)}: {e.strerror or e}.") from e


def class_images(
    folder: Path, classes: list[str], label: Callable[[int], int] = lambda i: i
) -> tuple[list[str], np.ndarray]:
    """(paths below ``folder``, labels) of the image files in the folders ``classes``, in torchvision's order.

    ``label(i)``: the label of the i-th of ``classes``. Links to folders are followed, as ImageFolder does. Raises
    DatasetError where a folder is reached twice through links: its images would count twice, or under two labels.
    """
    paths: list[str] = []
    labels: list[int] = []
    seen: dict[tuple[int, int], str] = {}
    for i, name in enumerate(classes):
        before = len(paths)
        for where, files in sorted(_walked(folder, name, seen)):
            below = os.path.relpath(where, folder)
            paths += [os.path.join(below, f) for f in sorted(files) if f.lower().endswith(IMG_EXTENSIONS)]
        labels += [label(i)] * (len(paths) - before)
    return paths, np.array(labels, dtype=np.int64)


def _walked(folder: Path, name: str, seen: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str]]]:
    """(path, file names) of the folder ``name`` and of all folders in it; ``seen``: the folders visited so far."""
    above = os.stat(folder)
    seen.setdefault((above.st_dev, above.st_ino), os.curdir)
    for where, _, files in os.walk(folder / name, followlinks=True):
        status = os.stat(where)
        here = os.path.relpath(where, folder)
        before = seen.setdefault((status.st_dev, status.st_ino), here)
        if before != here:
            raise DatasetError(
                f"{shown(folder)}: {shown(before)} and {shown(here)} are the same folder through a link, "
                "so its images would count twice.\nRemedy: remove the link."
            )
        yield where, files


def own_texts(folder: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """(class names, templates) from CLIP_benchmark's files in ``folder``; None for a file that does not exist."""
    names, templates = folder / CLASSNAMES, folder / TEMPLATES
    return (
        read_classnames(names) if names.is_file() else None,
        read_templates(templates) if templates.is_file() else None,
    )
