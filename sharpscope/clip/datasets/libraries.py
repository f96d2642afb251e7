"""Data sets that torchvision and Hugging Face's datasets library know how to read."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Indexed
from sharpscope.clip.datasets.names import spoken
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
    kind = getattr(datasets, request.rest)
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": str(Path(request.root).expanduser())}
    if "train" in takes:
        options["train"] = request.split == "train"
    elif "split" in takes:
        options["split"] = request.split
    if "download" in takes:
        options["download"] = False
    try:
        theirs = kind(**options)
    except (OSError, RuntimeError, ValueError, TypeError) as e:
        raise DatasetError(f"data set {shown(request.spec)}: {shown(e, 200)}") from e
    labels = next((getattr(theirs, a) for a in ("targets", "labels", "_labels", "y") if hasattr(theirs, a)), None)
    classes = getattr(theirs, "classes", None)
    if labels is None:
        raise ConfigError(f"data set {shown(request.spec)}: torchvision provides no list of class labels for it.")
    array = np.asarray(labels).astype(np.int64)
    if classes is None:
        classes = request.classnames or [str(i) for i in range(int(array.max()) + 1)]
    names = tuple(spoken(str(c)) for c in classes)
    images = Indexed(len(array), lambda i: theirs[i][0], request.rest)
    return Found(images, array, names, request.spec, request.split, indexed=True)


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
        if (path / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(str(path))[request.split]
        elif (path / "state.json").is_file():
            table = datasets.load_from_disk(str(path))
        else:
            table = datasets.load_dataset(str(path) if path.is_dir() else request.rest, split=request.split)
    except Exception as e:  # the library's many readers raise many kinds of errors
        raise DatasetError(f"data set {shown(request.spec)}: {shown(e, 200)}") from e
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
    return Found(images, array, names, request.spec, request.split, indexed=True)
