"""Data sets that torchvision and Hugging Face's datasets library know how to read."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from sharpscope.clip.datasets.found import Found, Request, numbered
from sharpscope.clip.datasets.images import Indexed
from sharpscope.clip.datasets.names import spoken
from sharpscope.config.specs import WORDS, chosen_split
from sharpscope.errors import ConfigError, DatasetError, did_you_mean, shown

__all__ = ["find_hf", "find_torchvision"]


def find_torchvision(request: Request) -> Found:
    """``torchvision:NAME`` (``@SPLIT``): a classification set of torchvision below the data root.

    Nothing is downloaded.
    """
    from torchvision import datasets  # type: ignore[import-untyped]

    if request.rest not in datasets.__all__:
        raise ConfigError(
            f"data set: torchvision has no '{shown(request.rest)}'.{did_you_mean(request.rest, datasets.__all__)}"
        )
    try:
        theirs, split = _opened(getattr(datasets, request.rest), request)
    except (OSError, RuntimeError, ValueError, TypeError) as e:
        raise DatasetError(f"data set {shown(request.spec)}: {shown(e, 200)}") from e
    labels = next((getattr(theirs, a) for a in ("targets", "labels", "_labels", "y") if hasattr(theirs, a)), None)
    classes = getattr(theirs, "classes", None)
    if labels is None:
        raise ConfigError(f"data set {shown(request.spec)}: torchvision provides no list of class labels for it.")
    array = np.asarray(labels).astype(np.int64)
    names = numbered(request, int(array.max()) + 1) if classes is None else tuple(spoken(str(c)) for c in classes)
    images = Indexed(len(array), lambda i: theirs[i][0], request.rest)
    return Found(
        images,
        array,
        names,
        request.spec,
        split,
        indexed=True,
        unnamed=classes is None,
        said=() if split else ("the set has no splits, so all of its images were read",),
    )


def _opened(kind: Any, request: Request) -> tuple[Any, str | None]:
    """(the data set, the name of the split that it holds, or None where ``kind`` has no splits)."""
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": str(Path(request.root).expanduser())}
    if "download" in takes:
        options["download"] = False
    if "train" in takes:
        split = chosen_split(request.spec, request.split, ("train", "test"), named=request.named)
        return kind(**options, train=split == "train"), split
    if "split" not in takes:
        return kind(**options), chosen_split(request.spec, request.split, (), named=request.named)
    words = [request.split]  # torchvision raises a ValueError for an unknown split, which lists the known ones
    if not request.named:
        words += [w for w in WORDS.get(request.split, ()) if w != request.split]  # Country211 says valid
        words += WORDS["val"] if request.split == "test" else ()  # ImageNet has no test images with labels
    unknown: list[ValueError] = []
    for word in words:
        try:
            return kind(**options, split=word), word
        except ValueError as e:
            unknown.append(e)
    raise unknown[0]


def find_hf(request: Request) -> Found:
    """``hf:NAME`` (``@SPLIT``): a data set of the library ``datasets``.

    NAME is a folder below the data root (saved by the library, or of image files) or a name on the Hugging Face hub.
    The first image column and the first class label column are used.
    """
    try:
        datasets: Any = importlib.import_module("datasets")  # an extra, not installed everywhere
    except ImportError as e:
        raise ConfigError(
            f"data set {shown(request.spec)}: it needs the package datasets (pip install 'sharpscope[hf]')."
        ) from e
    path = Path(request.root).expanduser() / request.rest
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            table = datasets.load_from_disk(str(path))
        elif request.named:
            table = datasets.load_dataset(str(path) if path.is_dir() else request.rest, split=request.split)
        else:
            table = datasets.load_dataset(str(path) if path.is_dir() else request.rest)
    except Exception as e:  # the library's many readers raise many kinds of errors
        raise DatasetError(f"data set {shown(request.spec)}: {shown(e, 200)}") from e
    split: str | None = request.split
    if isinstance(table, dict):
        split = chosen_split(request.spec, request.split, tuple(table), named=request.named)
        table = table[str(split)]
    elif not request.named or (path / "state.json").is_file():  # a single table without splits
        split = chosen_split(request.spec, request.split, (), named=request.named)
    features = table.features
    image = next((n for n, f in features.items() if isinstance(f, datasets.Image)), None)
    label = next((n for n, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
    if image is None or label is None:
        raise DatasetError(
            f"data set {shown(request.spec)}: it needs an image column and a class label column; its columns are "
            f"{shown(', '.join(features))}."
        )
    names = tuple(spoken(n) for n in features[label].names)
    array = np.asarray(table[label], dtype=np.int64)
    images = Indexed(len(array), lambda i: table[i][image], request.rest)
    said = () if split else ("the set has no splits, so all of its images were read",)
    return Found(images, array, names, request.spec, split, indexed=True, said=said)
