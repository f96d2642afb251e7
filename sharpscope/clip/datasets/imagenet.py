"""ImageNet and its shifts, in the folders that WiSE-FT and model-soups read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sharpscope.clip.datasets.folder import class_folders, class_images
from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import read_json, read_lines, spoken
from sharpscope.clip.model import imagenet_classnames, imagenet_templates
from sharpscope.config.specs import FOLDERS
from sharpscope.errors import DatasetError, shown

__all__ = ["find_imagenet", "find_objectnet", "find_subset", "place", "wnids"]


@functools.cache
def wnids(kind: str = "imagenet") -> tuple[str, ...]:
    """WordNet ids of the classes of ``kind`` (imagenet, imagenet_a, imagenet_r), ordered by class number; from timm."""
    file = resources.files("timm").joinpath("data", "_info", f"{kind}_synsets.txt")
    return tuple(file.read_text(encoding="utf-8").split())


def place(request: Request) -> Path:
    """The set's folder under the data root; a DatasetError names the folders that were tried."""
    root = Path(request.root).expanduser()
    tried = [root / f for f in FOLDERS[request.kind]]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise DatasetError(
        f"data set {shown(request.spec)}: no folder {' or '.join(shown(t.name) for t in tried)} under the data root "
        f"{shown(root)}.\nRemedy: --data-root is the folder that holds {FOLDERS[request.kind][0]}/."
    )


def find_imagenet(request: Request) -> Found:
    """``imagenet``, ``imagenet-v2``, ``imagenet-a``, ``imagenet-r`` and ``imagenet-sketch``.

    ``imagenet`` reads the folder ``val_in_folder`` or ``val``; ``@train`` reads ``train``, and ``@FILE`` the images of
    ``train`` that an index file lists, one per line as ``n01440764/n01440764_10026.JPEG``. The folders of
    ``imagenet-v2`` are the class numbers 0 to 999. ``imagenet-a`` and ``imagenet-r`` have 200 classes each.
    """
    folder = place(request)
    kind = request.kind
    if kind == "imagenet":
        if request.split.endswith(".txt"):
            return _listed(request, folder / "train")
        folder = _split(request, folder)
    numbers = {str(i): i for i in range(1000)} if kind == "imagenet-v2" else {w: i for i, w in enumerate(wnids())}
    found = class_folders(folder, request.spec)
    if unknown := [f for f in found if f not in numbers]:
        what = "number of a class (0 to 999)" if kind == "imagenet-v2" else "WordNet id of an ImageNet class"
        raise DatasetError(f"{shown(folder)}: folder '{shown(unknown[0])}' is not the {what}.")
    if not found:
        raise DatasetError(
            f"{shown(folder)}: there are no class folders. The images of each class must lie in a folder of their own."
        )
    present = None
    if kind in ("imagenet-a", "imagenet-r"):
        present = tuple(sorted(numbers[w] for w in wnids(kind.replace("-", "_"))))
        if outside := [f for f in found if numbers[f] not in present]:
            raise DatasetError(
                f"{shown(folder)}: folder '{shown(outside[0])}' is not one of the 200 classes of {kind}."
            )
    found.sort(key=lambda f: numbers[f])
    paths, labels = class_images(folder, found, lambda i: numbers[found[i]])
    return _found(request, folder, paths, labels, present)


def find_objectnet(request: Request) -> Found:
    """``objectnet``: the 113 ObjectNet classes that ImageNet also has, each as one or several ImageNet classes.

    The correspondence is read from the folder ``mappings`` of ObjectNet's download. Each image's red border of 2 pixels
    is cut off.
    """
    folder = place(request)
    mapping = folder / "mappings"
    labels_of = {v: k for k, v in _json(mapping / "folder_to_objectnet_label.json").items()}
    number = {int(v): int(k) for k, v in _json(mapping / "pytorch_to_imagenet_2012_id.json").items()}
    words = {line: number.get(i) for i, line in enumerate(read_lines(mapping / "imagenet_to_label_2012_v2", "mapping"))}
    members: dict[str, list[int]] = {}
    for label, meant in _json(mapping / "objectnet_to_imagenet_1k.json").items():
        for word in str(meant).split("; "):
            index = words.get(word)
            if index is None or label not in labels_of:
                raise DatasetError(
                    f"{shown(mapping)}: '{shown(label)}' is mapped to '{shown(word)}', but one of the two is missing "
                    "from the other mapping files."
                )
            members.setdefault(labels_of[label], []).append(index)
    folders = sorted(members)
    projection = [-1] * 1000
    for target, name in enumerate(folders):
        for index in members[name]:
            projection[index] = target
    images = folder / "images"
    there = set(class_folders(images, request.spec))
    kept = [f for f in folders if f in there]
    paths, labels = class_images(images, kept, lambda i: folders.index(kept[i]))
    names = tuple(spoken(next(k for k, v in labels_of.items() if v == f)).lower() for f in folders)
    return Found(
        Files(images, paths),
        labels,
        imagenet_classnames(),
        str(images),
        "test",
        indexed=True,
        projection=tuple(projection),
        target_names=names,
        templates=imagenet_templates(),
        before=(_without_border,),
    )


def find_subset(request: Request) -> Found:
    """``subset:FILE``: classes that each unite several ImageNet classes, such as Entity-30 and Living-17 of BREEDS.

    FILE has one class per line, as ``name: n01629819 n01630670``. The images are those of ``imagenet/val``, or of
    ``imagenet/train`` with ``@train``. Source: Santurkar et al. 2021, arXiv 2008.04859.
    """
    path = Path(request.root).expanduser() / Path(request.rest).expanduser()
    folder = _split(request, place(_as_imagenet(request)))
    names: list[str] = []
    label: dict[str, int] = {}
    for line, text in enumerate(read_lines(path, "class list"), 1):
        name, colon, ids = text.rpartition(":")
        wanted = ids.replace(",", " ").split()
        bad = [w for w in wanted if w in label or w not in wnids()]
        if not colon or not name.strip() or not wanted or bad or name.strip() in names:
            why = f"'{shown(bad[0])}' is unknown or in two classes" if bad else "the form is 'name: wnid wnid ...'"
            raise DatasetError(f"{shown(path)}, line {line}: {why}.")
        label |= dict.fromkeys(wanted, len(names))
        names.append(name.strip())
    found = [f for f in class_folders(folder, request.spec) if f in label]
    if missing := sorted(label.keys() - set(found)):
        raise DatasetError(
            f"{shown(folder)}: {len(missing)} folders of {shown(path.name)} are missing: {missing[0]} ..."
        )
    paths, labels = class_images(folder, found, lambda i: label[found[i]])
    return Found(Files(folder, paths), labels, tuple(names), str(folder), request.split, indexed=True)


def _as_imagenet(request: Request) -> Request:
    return dataclasses.replace(request, kind="imagenet")


def _split(request: Request, folder: Path) -> Path:
    wanted = ("train",) if request.split == "train" else ("val_in_folder", "val")
    for name in wanted:
        if (folder / name).is_dir():
            return folder / name
    raise DatasetError(f"data set {shown(request.spec)}: {shown(folder)} has no folder {' or '.join(wanted)}.")


def _listed(request: Request, folder: Path) -> Found:
    """The images of ``train`` that an index file lists; other images are not read."""
    file = Path(request.root).expanduser() / request.split
    numbers = {w: i for i, w in enumerate(wnids())}
    paths = list(read_lines(file, "index file"))
    for line, path in enumerate(paths, 1):
        parts = path.split("/")
        if parts[0] not in numbers or len(parts) < 2 or ".." in parts:
            raise DatasetError(f"{shown(file)}, line {line}: '{shown(path)}' is not of the form n01440764/NAME.JPEG.")
    labels = np.array([numbers[p.partition("/")[0]] for p in paths], dtype=np.int64)
    return _found(request, folder, paths, labels, None)


def _found(request: Request, folder: Path, paths: Sequence[str], labels: Any, present: tuple[int, ...] | None) -> Found:
    return Found(
        Files(folder, paths),
        labels,
        imagenet_classnames(),
        str(folder),
        request.split,
        indexed=True,
        codes=wnids(),
        present=present,
        templates=imagenet_templates(),
    )


def _without_border(image: Image.Image, name: str) -> Image.Image:
    return image.crop((2, 2, image.width - 2, image.height - 2))


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, "ObjectNet's download")
