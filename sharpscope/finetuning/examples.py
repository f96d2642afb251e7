"""Training data: batches of images, labels and captions, by their indices in any data set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sharpscope.clip.datasets.dataset import Dataset, stratified
from sharpscope.clip.datasets.images import Decoded, Files
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError, shown

__all__ = ["DatasetExamples", "Drawn", "Examples", "TensorExamples", "load_examples"]


class Drawn(NamedTuple):
    """The examples of a batch that could be read, row by row."""

    images: Tensor
    """float32 [B, 3, H, W], normalised."""
    labels: Tensor
    """int64 [B]."""
    captions: list[str] | None = None


class Examples(Protocol):
    """Training examples, read batch by batch."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, seed: int) -> Drawn:
        """The examples at ``indices``, augmented as ``seed`` says, without those that cannot be read."""
        ...


class TensorExamples:
    """Images in memory [n, 3, H, W], normalised, and their labels int64 [n]; never augmented."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, seed: int) -> Drawn:
        return Drawn(self.images[indices], self.labels[indices])


class DatasetExamples:
    """The images of a data set, random crops where it was loaded with ``augment``.

    ``labels``: the class labels of image-caption pairs; in their data set every pair is a class, named by its caption.
    """

    def __init__(self, dataset: Dataset, labels: Tensor | None = None) -> None:
        self.dataset, self.labels = dataset, labels
        if not dataset.facts["streamed"]:
            next(iter(dataset.batches(1)))  # has the embedded world draw all rows at once; one by one takes much longer

    def __len__(self) -> int:
        return self.dataset.listed

    def batch(self, indices: Tensor, seed: int) -> Drawn:
        images, labels = self.dataset.take(indices, seed)
        if self.labels is None:
            return Drawn(images, labels)
        return Drawn(images, self.labels[labels], [self.dataset.classnames[i] for i in labels.tolist()])

    @property
    def skipped(self) -> str:
        """What could not be read so far, in words; empty if all could be read."""
        facts = self.dataset.facts
        names = ", ".join(shown(name, 60) for name in facts["skipped_names"][:3])
        return (
            f"note: {facts['skipped']} of {len(self)} images cannot be read and were left out ({names})"
            if names
            else ""
        )


def load_examples(
    spec: str,
    model: ClipModel,
    *,
    data_root: str | Path | None = None,
    classnames: Sequence[str] | None = None,
    shots: int | None = None,
    augment: bool = True,
    seed: int = 0,
) -> tuple[DatasetExamples, tuple[str, ...]]:
    """Training examples of ``spec``, and the class names that their labels index.

    Any data set of ``load_dataset``, its train split unless the spec names another; or ``csv:PATH``: image-caption
    pairs for the contrastive methods, in the columns that open_clip reads (``filepath``, ``title``; tab or comma; paths
    from the file's folder unless absolute; a column ``label`` is taken where there is one). ``augment``: a random crop
    of each image each time; arrays and the embedded world have none. ``shots``: largest number of images per class, a
    fixed choice by ``seed``. Raises ConfigError and DatasetError as ``load_dataset``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "csv":
        if not classnames:
            raise ConfigError("classnames: captions name no classes; give those that the model has to tell apart.")
        path = Path(data_root or ".").expanduser() / Path(rest).expanduser()
        return _captioned(path, model, len(classnames), augment), tuple(classnames)
    dataset = load_dataset(
        spec, model=model, split="train", data_root=data_root, classnames=classnames, augment=augment
    )
    if dataset.projection is not None:
        raise ConfigError(
            f"data set {shown(spec)}: its {len(dataset.target_names)} classes are not among the "
            f"{len(dataset.classnames)} class names.\nRemedy: give classnames that are the data set's own."
        )
    if shots is not None:
        dataset = dataset.subset(_few(dataset.labels, shots, seed))
    return DatasetExamples(dataset), dataset.classnames


def _captioned(path: Path, model: ClipModel, num_classes: int, augment: bool) -> DatasetExamples:
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
            f"captions: {shown(path)} has no column {' and no '.join(missing)} in its first line.\n"
            "Remedy: a header line 'filepath<tab>title', then one image per line."
        )
    paths, captions, labels = [], [], []
    for number, row in enumerate(reader, 2):
        label = row.get("label") or "-1"
        if not row["filepath"] or not row["title"] or not label.lstrip("-").isdigit() or int(label) >= num_classes:
            raise DatasetError(
                f"captions: {shown(path)}, line {number}: needs a file and a caption, and a label (if any) "
                f"below {num_classes}."
            )
        paths.append(row["filepath"])
        captions.append(row["title"])
        labels.append(int(label))
    if not paths:
        raise DatasetError(f"captions: {shown(path)} names no images.")
    pairs = Dataset(
        f"csv:{path}",
        captions,
        torch.arange(len(paths)),
        Decoded(Files(path.parent, paths), model, augment=augment),
        mean=model.mean,
        std=model.std,
        facts={"streamed": True},
    )
    return DatasetExamples(pairs, torch.tensor(labels))


def _few(labels: Tensor, shots: int, seed: int) -> list[int]:
    """At most ``shots`` indices per class, in the data's order."""
    if shots < 1:
        raise ConfigError(f"shots: needs at least one image per class, got {shots}.")
    taken: dict[int, int] = {}
    rows = []
    for i in stratified(labels, None, seed, "shots"):
        label = int(labels[i])
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= shots:
            rows.append(i)
    return sorted(rows)
