"""What a fine-tuning learns from: batches of (images, labels, captions) by index, augmented where images are files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sharpscope.clip.data import Dataset

__all__ = ["DatasetExamples", "Examples", "TensorExamples"]


class Examples(Protocol):
    """Training examples: ``labels`` int64 [n], and any batch of them."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Sequence[str] | None]:
        """Normalised images [B, 3, H, W] (augmented as ``seed`` says) and their captions, where there are any."""
        ...


class TensorExamples:
    """Images in memory [n, 3, H, W], normalised."""

    def __init__(self, images: Tensor, labels: Tensor, captions: Sequence[str] | None = None) -> None:
        self.images, self.labels, self.captions = images, labels, captions

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, seed: int) -> tuple[Tensor, Sequence[str] | None]:
        words = None if self.captions is None else [self.captions[i] for i in indices.tolist()]
        return self.images[indices], words


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
