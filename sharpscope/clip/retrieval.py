"""R@k of images and captions: how often the right one is among the k nearest, from one pass over both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpscope.clip.datasets.captions import Captions
from sharpscope.clip.model import ClipModel
from sharpscope.errors import NumericalError, shown
from sharpscope.machine.arithmetic import full_float32
from sharpscope.scores import RETRIEVAL, Direction, Statistic, share

__all__ = ["Retrieved", "expected_hits", "retrieved", "retrieved_from"]

_AT_ONCE: Final = 2**24
"""The number of scores that are kept in memory at a time."""
Theta = Mapping[str, Tensor]


@dataclass(frozen=True)
class Retrieved:
    """What one model found on one set of captions, image by image, from which R@k follows.

    ``found``: metric -> float64 [n]. For i2t, whether one of the image's captions is among the k nearest to it. For
    t2i, the number of the image's captions that have it among their k nearest images. ``captions``: the number of
    captions of each image, [n]. The n images are the examples that intervals resample, each with its captions, while
    the images and captions among which is searched stay the whole set.
    """

    found: Mapping[str, NDArray[np.float64]]
    captions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.captions)

    def size(self, metric: str) -> int:
        """The number of images."""
        return len(self)

    def group_counts(self) -> list[tuple[int, int]]:
        """Images with captions are in no group."""
        return []

    def statistic(self, metric: str) -> Statistic | None:
        """R@k as the mean over images (i2t) or over captions (t2i); None for a metric of classes."""
        if metric not in RETRIEVAL:
            return None
        direction, _ = RETRIEVAL[metric]
        return share(self.found[metric], self.captions if direction == "t2i" else None)


def retrieved(
    model: ClipModel,
    theta: Theta,
    captions: Captions,
    batch_size: int = 128,
    *,
    progress: Callable[[int], object] = lambda images: None,
) -> Retrieved:
    """What ``theta``, with its image tower and its text tower, finds among the images and captions of ``captions``.

    It is computed on the device of ``theta``. ``progress``: called with the number of images of every batch.

    Raises:
        NumericalError: features that are not finite.
        PairMismatch: a tower is not whole.
    """
    with torch.inference_mode(), full_float32():
        images, numbers = [], []
        for pixels, labels in captions.images.batches(batch_size):
            images.append(model.encode_image(theta, pixels))
            numbers.append(labels)
            progress(len(labels))
        read = torch.cat(numbers)
        there = np.isin(captions.image_of, read.numpy())  # the captions of images that cannot be read are left out
        tokens = model.tokenize([t for t, kept in zip(captions.texts, there, strict=True) if kept])
        where = images[0].device
        texts = torch.cat([model.encode_text(theta, part.to(where)) for part in tokens.split(batch_size)])
        both = torch.cat(images), texts
        if not all(bool(torch.isfinite(f).all()) for f in both):
            raise NumericalError(f"{shown(captions.images.name)}: features are not finite.")
        place = {int(label): i for i, label in enumerate(read.tolist())}
        own = torch.tensor([place[int(i)] for i in captions.image_of[there]], dtype=torch.long)
        return retrieved_from(*both, own)


def retrieved_from(images: Tensor, texts: Tensor, image_of: Tensor) -> Retrieved:
    """What unit features [n, D] of images and [m, D] of captions find; ``image_of`` int64 [m]: each caption's image.

    i2t R@k is the share of images that have at least one of their captions among the k captions of largest cosine; t2i
    R@k the share of captions whose image is among the k images of largest cosine. Each is in [0, 1] and does not fall
    with k. Where a right and a wrong one have exactly the same cosine, every order of the tied ones counts equally
    (:func:`expected_hits`), so that R@k depends neither on the order of the set nor on that of the captions, and a
    model that says the same of every image scores as a random order does.

    Source: Radford et al. 2021, arXiv 2103.00020; LAION's CLIP_benchmark, zeroshot_retrieval, where the order of tied
    ones is left to torch.topk.
    """
    numbers, own = torch.arange(len(images), device=images.device), image_of.to(images.device)
    captions = np.bincount(image_of.cpu().numpy(), minlength=len(images))
    found: dict[str, NDArray[np.float64]] = {}
    sides: dict[Direction, tuple[Tensor, Tensor, Tensor, Tensor]] = {
        "i2t": (images, numbers, texts, own),
        "t2i": (texts, own, images, numbers),
    }
    for direction, side in sides.items():
        above, wrong, right = _ranks(*side)
        for metric, (its, k) in RETRIEVAL.items():
            if its == direction:
                hits = expected_hits(above, wrong, right, k)
                found[metric] = hits if its == "i2t" else _sums(image_of, hits, len(images))
    return Retrieved(found, captions)


def _sums(image_of: Tensor, values: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The sums of ``values`` [m] over the captions of each of n images."""
    sums = np.zeros(n)
    np.add.at(sums, image_of.cpu().numpy(), values)
    return sums


def _ranks(queries: Tensor, own: Tensor, items: Tensor, of: Tensor) -> list[NDArray[np.int64]]:
    """For each query, [q] each: how many wrong items lie above the best right one, how many wrong ones are tied with
    it, and how many right ones are (itself included). An item is right where its number ``of`` is the query's ``own``.
    """
    parts = []
    step = max(1, _AT_ONCE // len(items))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ items.T
        right = own[start : start + step, None] == of
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        tied = scores == best
        counts = ((scores > best), (tied & ~right), (tied & right))
        parts.append(torch.stack([c.sum(dim=1) for c in counts]))
    return list(torch.cat(parts, dim=1).cpu().numpy())


def expected_hits(
    above: NDArray[np.integer], wrong: NDArray[np.integer], right: NDArray[np.integer], k: int
) -> NDArray[np.float64]:
    """The probability that a right item is among the first ``k``, where the tied ones are in random order: [q].

    ``above``: wrong items that lie before; ``wrong``, ``right``: tied ones. Of the tied ones j = max(k - above, 0) are
    among the first k, and the probability is 1 - C(wrong, j) / C(wrong + right, j): 0 or 1 where nothing wrong is tied.
    """
    missed = np.ones(len(above))
    for i in range(k):  # the i-th of the tied ones is wrong too
        chance = np.maximum(wrong - i, 0) / np.maximum(wrong + right - i, 1)
        missed *= np.where(above + i < k, chance, 1.0)
    return 1 - missed
