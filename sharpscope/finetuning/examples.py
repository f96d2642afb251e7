"""Training data: batches of images, labels and captions, by their indices in any data set."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from sharpscope.clip.datasets.augment import OPEN_CLIP, Augmentation
from sharpscope.clip.datasets.dataset import Dataset, stratified
from sharpscope.clip.datasets.images import Decoded, Files
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, DatasetError, shown

__all__ = ["DatasetExamples", "Drawn", "Examples", "TensorExamples", "caption_rows", "load_examples"]


_LABEL: Final = re.compile(r"-1|[0-9]+")
"""A class, or -1 for none."""


_BREAK: Final = re.compile("\r\n|\r|\n")
"""The line breaks of a table; Unicode's other line breaks are part of the text."""


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
    """The images of a data set, augmented where it was loaded with ``augment``.

    ``labels``: the class labels of image-caption pairs; in their data set every pair is a class, named by its caption.
    """

    def __init__(self, dataset: Dataset, labels: Tensor | None = None) -> None:
        self.dataset, self.labels = dataset, labels
        if not dataset.facts["streamed"]:
            next(iter(dataset.batches(1)))  # has the embedded world draw all rows at once; one by one takes much longer

    def __len__(self) -> int:
        return self.dataset.listed

    @property
    def augmented(self) -> bool:
        """Whether a seed changes the pictures."""
        return bool(self.dataset.facts.get("augmented"))

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
        bare = ", ".join(shown(name, 40) for name in facts["without_images"][:3]) if self.labels is None else ""
        said = []
        if names:
            count = f"{facts['skipped']} of {len(self)}"
            said.append(f"note: {count} images cannot be read and were left out ({names})")
        if bare:
            said.append(f"note: there is no readable image of class {bare}, so nothing was learnt about it")
        return "\n".join(said)


def load_examples(
    spec: str,
    model: ClipModel,
    *,
    data_root: str | Path | None = None,
    classnames: Sequence[str] | None = None,
    shots: int | None = None,
    augment: Augmentation | None = OPEN_CLIP,
    seed: int = 0,
) -> tuple[DatasetExamples, tuple[str, ...]]:
    """Training examples of ``spec``, and the class names that their labels index.

    Any data set of ``load_dataset``, its train split unless the spec names another; or ``csv:PATH``: image-caption
    pairs for the contrastive methods, in the columns that open_clip reads (``filepath``, ``title``; tab or comma; paths
    from the file's folder unless absolute; a column ``label`` is taken where there is one). ``augment``: what
    happens to each image each time; arrays and the embedded world stay as they are. ``shots``: largest number of images
    per class, a fixed choice by ``seed``. Raises ConfigError and DatasetError as ``load_dataset``.
    """
    kind, _, rest = spec.partition(":")
    augment = augment if augment is not None and augment.changes else None
    if kind == "csv":
        if not classnames:
            raise ConfigError("classnames: captions name no classes; give those that the model has to tell apart.")
        path = Path(data_root or ".").expanduser() / Path(rest).expanduser()
        return _captioned(path, model, len(classnames), augment), tuple(classnames)
    dataset = load_dataset(
        spec, model=model, split="train", data_root=data_root, classnames=classnames, augment=augment or False
    )
    if dataset.projection is not None:
        raise ConfigError(
            f"data set {shown(spec)}: its {len(dataset.target_names)} classes are not among the "
            f"{len(dataset.classnames)} class names.\nRemedy: give classnames that are the data set's own."
        )
    if shots is not None:
        dataset = dataset.subset(_few(dataset.labels, shots, seed))
    return DatasetExamples(dataset), dataset.classnames


def _captioned(path: Path, model: ClipModel, num_classes: int, augment: Augmentation | None) -> DatasetExamples:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"captions: cannot read {shown(path)}: {shown(getattr(error, 'strerror', error))}."
        ) from None
    paths, captions, labels = [], [], []
    for line, row in caption_rows(text, path):
        label = row.get("label") or "-1"
        if not row["filepath"] or not row["title"] or not _LABEL.fullmatch(label) or int(label) >= num_classes:
            raise DatasetError(
                f"captions: {shown(path)}, line {line}: needs a file and a caption, and a label (if any) "
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
        facts={"streamed": True, "augmented": augment is not None},
    )
    return DatasetExamples(pairs, torch.tensor(labels))


def caption_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of its first line, fields by column) of every row of a table with a header line.

    Raises DatasetError, naming the line, for a row that does not have one field per column (a caption with a comma and
    without quotation marks) and for a quotation mark that is not closed in its row, so that it would swallow the next
    rows.
    """
    separator = "\t" if "\t" in text.partition("\n")[0] else ","
    word = "tab" if separator == "\t" else "comma"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DatasetError(
                f"captions: {shown(path)}, line {line}: {shown(error)}.\nRemedy: put a caption that begins with "
                'a quotation mark into quotation marks, and double the marks inside it ("").'
            ) from None
        if fields is None:
            return
        if columns is None:
            columns = fields
            if missing := [c for c in ("filepath", "title") if c not in columns]:
                raise DatasetError(
                    f"captions: {shown(path)} has no column {' and no '.join(missing)} in its first line.\n"
                    "Remedy: a header line 'filepath<tab>title', then one image per line."
                )
            continue
        if not fields:
            continue
        # A line inside a caption has the form of a row, so the quotation mark before it was probably never closed.
        if any(part.count(separator) >= len(columns) - 1 for f in fields for part in _BREAK.split(f)[1:]):
            raise DatasetError(
                f"captions: {shown(path)}, line {line}: a quotation mark is not closed in its row.\n"
                'Remedy: close it, or double it ("") where it is part of the caption.'
            )
        if len(fields) != len(columns):
            raise DatasetError(
                f"captions: {shown(path)}, line {line}: the row has {len(fields)} fields, but there are {len(columns)} "
                f"columns.\nRemedy: put a caption that contains a {word} into quotation marks."
            )
        yield line, dict(zip(columns, fields, strict=True))


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
