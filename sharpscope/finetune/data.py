"""What a fine-tuning learns from: batches of (images, captions) by index, image files augmented as open_clip does."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # type: ignore[import-untyped]

from sharpscope.clip.data import Dataset, load_dataset, stratified
from sharpscope.clip.model import ClipModel
from sharpscope.clip.sets.names import match
from sharpscope.errors import ConfigError, DatasetError, shown
from sharpscope.seeds import derive

__all__ = ["DatasetExamples", "Examples", "FileExamples", "TensorExamples", "crop_box", "load_examples"]

_SCALE = (0.9, 1.0)  # open_clip's image_transform(is_train=True), which WiSE-FT and FLYP train with
_RATIO = (3 / 4, 4 / 3)


class Examples(Protocol):
    """Training examples: ``labels`` int64 [n], and any batch of them."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Sequence[str] | None]:
        """Normalised images [B, 3, H, W] (augmented as ``seed`` says) and their captions, where there are any."""
        ...


class TensorExamples:
    """Images in memory [n, 3, H, W], normalised; never augmented."""

    def __init__(self, images: Tensor, labels: Tensor, captions: Sequence[str] | None = None) -> None:
        self.images, self.labels, self.captions = images, labels, captions

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Sequence[str] | None]:
        return self.images[indices], _picked(self.captions, indices)


class DatasetExamples:
    """The images of a data set as evaluation sees them: not augmented."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.labels = dataset, dataset.labels
        next(iter(dataset.batches(1)))  # has the source prepare all rows at once; batch by batch takes much longer

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Sequence[str] | None]:
        images, _ = next(iter(self.dataset.subset(indices).batches(len(indices))))
        return images, None


class FileExamples:
    """Image files, decoded when a batch asks for them; each time another random crop, unless ``augment`` is False.

    Augmentation is open_clip's for training: a random box of 90 to 100 % of the area and 3:4 to 4:3 in shape, resized
    to the model's input (bicubic). Without it: the model's own preprocessing, as in evaluation.
    """

    def __init__(
        self,
        paths: Sequence[str],
        labels: Tensor,
        model: ClipModel,
        captions: Sequence[str] | None = None,
        augment: bool = True,
    ) -> None:
        self.paths, self.labels, self.captions = list(paths), labels, captions
        self.model, self.augment = model, augment
        self._mean, self._std = (torch.tensor(v).view(-1, 1, 1) for v in (model.mean, model.std))
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Sequence[str] | None]:
        wanted = indices.tolist()
        pixels = torch.stack(list(self._pool.map(lambda i: self._pixels(i, derive(seed, i)), wanted)))
        return pixels.float().div_(255).sub_(self._mean).div_(self._std), _picked(self.captions, indices)

    def _pixels(self, i: int, seed: int) -> Tensor:
        """uint8 [3, H, W] of one file."""
        try:
            with open(self.paths[i], "rb") as file, Image.open(file) as opened:
                image: Image.Image = opened.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # a broken file raises what its format likes
            raise DatasetError(
                f"{shown(self.paths[i])}: cannot be read as an image ({shown(error, 80)}).\n"
                "Remedy: mend it or take it out of the training data."
            ) from None
        if self.augment:
            box = crop_box(image.size, torch.Generator().manual_seed(seed))
            height, width = self.model.image_size
            image = image.crop(box).resize((width, height), Image.Resampling.BICUBIC)
        else:
            for transform in self.model.geometry:
                image = transform(image)
        return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def crop_box(size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random box inside an image of ``size`` (width, height).

    Area uniform in 90 to 100 % of the image, log aspect ratio uniform between 3:4 and 4:3, ten tries; then the largest
    centred box of an allowed shape. Source: Szegedy et al. 2015 (1409.4842), as torchvision's RandomResizedCrop.
    """
    width, height = size
    for _ in range(10):
        area, ratio, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        target = width * height * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * area)
        shape = math.exp(math.log(_RATIO[0]) + (math.log(_RATIO[1]) - math.log(_RATIO[0])) * ratio)
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def load_examples(
    spec: str,
    model: ClipModel,
    *,
    data_root: str | Path | None = None,
    classnames: Sequence[str] | None = None,
    shots: int | None = None,
    augment: bool = True,
    seed: int = 0,
) -> tuple[Examples, tuple[str, ...]]:
    """Training examples of ``spec``, and the class names that their labels index.

    ``folder:PATH``: class folders of image files, augmented; ``csv:PATH``: image-caption pairs, in the columns that
    open_clip reads (``filepath``, ``title``; tab or comma; paths from the file's folder unless absolute; a column
    ``label`` is taken where there is one), augmented, for the contrastive methods; any other data set: its train split
    as it is. ``shots``: at most so many images a class, a fixed choice by ``seed``.
    Raises ConfigError and DatasetError as ``load_dataset``.
    """
    kind, _, rest = spec.partition(":")
    where = Path(data_root or ".").expanduser() / Path(rest).expanduser()
    if kind == "csv":
        if not classnames:
            raise ConfigError("classnames: captions name no classes; give those that the result is to tell apart.")
        return _captioned(where, model, len(classnames), augment), tuple(classnames)
    if kind == "folder":
        return _folder(spec, where, model, classnames, shots, augment, seed)
    dataset = load_dataset(spec, model=model, split="train", data_root=data_root, classnames=classnames)
    if shots is not None:
        dataset = dataset.subset(_few(dataset.labels, shots, seed))
    return DatasetExamples(dataset), dataset.classnames


def _folder(
    spec: str,
    where: Path,
    model: ClipModel,
    classnames: Sequence[str] | None,
    shots: int | None,
    augment: bool,
    seed: int,
) -> tuple[Examples, tuple[str, ...]]:
    try:
        found = sorted(e.name for e in os.scandir(where) if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        raise DatasetError(
            f"data set {shown(spec)}: cannot read the folder {shown(where)}: {error.strerror}."
        ) from None
    if not found:
        raise DatasetError(f"data set {shown(spec)}: {shown(where)} holds no class folders.")
    names, index, _ = match(found, classnames, str(where))
    places = dict(zip(found, index, strict=True))
    samples = make_dataset(str(where), places, extensions=IMG_EXTENSIONS, allow_empty=True)
    if not samples:
        raise DatasetError(
            f"data set {shown(spec)}: no image files ({', '.join(IMG_EXTENSIONS)}) under {shown(where)}."
        )
    labels = torch.tensor([label for _, label in samples])
    rows = list(range(len(samples))) if shots is None else _few(labels, shots, seed)
    return FileExamples([samples[i][0] for i in rows], labels[torch.tensor(rows)], model, augment=augment), names


def _captioned(path: Path, model: ClipModel, num_classes: int, augment: bool) -> FileExamples:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"captions: cannot read {shown(path)}: {shown(getattr(error, 'strerror', error))}."
        ) from None
    lines = text.splitlines()
    separator = "\t" if lines and "\t" in lines[0] else ","
    reader = csv.DictReader(lines, delimiter=separator)
    missing = [c for c in ("filepath", "title") if c not in (reader.fieldnames or ())]
    if missing:
        raise DatasetError(
            f"captions: {shown(path)} has no column {' and none '.join(missing)} in its first line.\n"
            "Remedy: a header line 'filepath<tab>title', one image a line."
        )
    paths, captions, labels = [], [], []
    for number, row in enumerate(reader, 2):
        label = row.get("label") or "-1"
        if not row["filepath"] or not row["title"] or not label.lstrip("-").isdigit() or int(label) >= num_classes:
            raise DatasetError(
                f"captions: {shown(path)}, line {number}: needs a file, a caption (and a label below {num_classes})."
            )
        paths.append(str(path.parent / row["filepath"]))
        captions.append(row["title"])
        labels.append(int(label))
    if not paths:
        raise DatasetError(f"captions: {shown(path)} names no images.")
    return FileExamples(paths, torch.tensor(labels), model, captions, augment)


def _few(labels: Tensor, shots: int, seed: int) -> list[int]:
    """At most ``shots`` indices a class, in the data's order."""
    if shots < 1:
        raise ConfigError(f"shots: needs at least one image a class, got {shots}.")
    taken: dict[int, int] = {}
    rows = []
    for i in stratified(labels, None, seed, "shots"):
        label = int(labels[i])
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= shots:
            rows.append(i)
    return sorted(rows)


def _picked(captions: Sequence[str] | None, indices: Tensor) -> list[str] | None:
    return None if captions is None else [captions[i] for i in indices.tolist()]
