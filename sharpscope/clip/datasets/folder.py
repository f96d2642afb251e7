"""Folders with one folder per class, like torchvision's ImageFolder, with CLIP_benchmark's files of class names and
prompts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS  # type: ignore[import-untyped]

from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import read_classnames, read_templates, spoken
from sharpscope.errors import DatasetError, shown

__all__ = ["CLASSNAMES", "TEMPLATES", "class_folders", "class_images", "find_folder", "own_texts"]

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
_SPLITS = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}


def find_folder(request: Request) -> Found:
    """``folder:PATH``: class folders in torchvision.ImageFolder's order (hidden folders left out).

    ``PATH`` may contain the split folders ``train``, ``val`` and ``test`` instead of class folders. It may also contain
    ``classnames.txt`` (one line for each class folder in sorted order, or their names) and
    ``zeroshot_classification_templates.txt``, as CLIP_benchmark writes them.
    """
    top = Path(request.root).expanduser() / Path(request.rest).expanduser()
    folder, split = top, None
    found = class_folders(top, request.spec)
    if found and set(found) <= set(_SPLITS):
        split = next((s for s in _SPLITS[request.split] if s in found), None)
        if split is None:
            raise DatasetError(f"data set {shown(request.spec)}: {shown(top)} has no split '{request.split}'.")
        folder = top / split
        found = class_folders(folder, request.spec)
    if not found:
        raise DatasetError(f"data set {shown(request.spec)}: {shown(folder)} holds no class folders.")
    paths, labels = class_images(folder, found)
    if not paths:
        known = ", ".join(IMG_EXTENSIONS)
        raise DatasetError(f"data set {shown(request.spec)}: no image files ({known}) under {shown(folder)}.")
    names, templates = own_texts(top)
    if names is not None and len(names) != len(found):
        raise DatasetError(
            f"{shown(top / CLASSNAMES)}: {len(names)} class names for {len(found)} class folders under {shown(folder)}."
        )
    classes = names or tuple(found if request.classnames else map(spoken, found))
    return Found(Files(folder, paths), labels, classes, str(folder), split, templates=templates)


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

    ``label(i)``: the label of the i-th of ``classes``. Links to folders are followed, as ImageFolder does.
    """
    paths: list[str] = []
    labels: list[int] = []
    for i, name in enumerate(classes):
        before = len(paths)
        for where, _, files in sorted(os.walk(folder / name, followlinks=True)):
            below = os.path.relpath(where, folder)
            paths += [os.path.join(below, f) for f in sorted(files) if f.lower().endswith(IMG_EXTENSIONS)]
        labels += [label(i)] * (len(paths) - before)
    return paths, np.array(labels, dtype=np.int64)


def own_texts(folder: Path) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """(class names, templates) from CLIP_benchmark's files in ``folder``; None for a file that does not exist."""
    names, templates = folder / CLASSNAMES, folder / TEMPLATES
    return (
        read_classnames(names) if names.is_file() else None,
        read_templates(templates) if templates.is_file() else None,
    )
