"""What points of weight space answer to the images of a data set, every image read once for all of the points."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.head import Classifier
from sharpscope.clip.metrics import Answers, Judged
from sharpscope.errors import DatasetError, NumericalError
from sharpscope.machine.arithmetic import full_float32

__all__ = ["FeatureCache", "answers", "answers_each", "answers_of", "correct", "logits"]

Theta = Mapping[str, Tensor]
Progress = Callable[[int], object]
Seen = Callable[[Tensor, Tensor], object]
_NO_REGION = "Other"


class FeatureCache:
    """Keeps the image features of the last image tower, so that another head on the same tower needs no forward pass.

    This also serves another alpha of a pair whose image tower does not change. A tower is identified by the SHA-256 of
    its tensors, which must not change in place between two calls; the features of any other tower are dropped. At most
    ``limit`` bytes of features are kept, on the CPU and bit for bit; those of a data set that does not fit are computed
    each time.
    """

    def __init__(self, limit: int = 2 * 2**30) -> None:
        self.limit = limit
        self._tower = b""
        self._read: tuple[object, list[weakref.ref[Tensor]]] = None, []
        self._kept: dict[tuple[Dataset, int], list[tuple[Tensor, Tensor]]] = {}

    def batches(
        self, classifier: Classifier, theta: Theta, dataset: Dataset, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [B, D], labels [B]) of every batch, from memory where they have been kept."""
        self._take(classifier, theta)
        key = (dataset, batch_size)
        device = _device(classifier, theta)
        if key in self._kept:
            yield from ((features.to(device), labels) for features, labels in self._kept[key])
            return
        taken = sum(f.nbytes for parts in self._kept.values() for f, _ in parts)
        parts: list[tuple[Tensor, Tensor]] | None = []
        for images, labels in dataset.batches(batch_size, device):
            features = classifier.features(theta, images)
            taken += features.nbytes
            if taken > self.limit:
                parts = None
            if parts is not None:
                parts.append((features.cpu(), labels))
            yield features, labels
        if parts is not None:
            self._kept[key] = parts

    def _take(self, classifier: Classifier, theta: Theta) -> None:
        """Forget the features of another tower; the very tensors that were read last are not read again."""
        tensors = [theta[n] for n in classifier.model.image_names if n in theta]
        reader = id(classifier.model), classifier.normalize
        before, last = self._read
        if before == reader and len(last) == len(tensors) and all(map(_is, last, tensors)):
            return
        tower = _digest(classifier, theta)
        if tower != self._tower:
            self._tower, self._kept = tower, {}
        self._read = reader, [weakref.ref(t) for t in tensors]


def _is(last: weakref.ref[Tensor], tensor: Tensor) -> bool:
    return last() is tensor


def _digest(classifier: Classifier, theta: Theta) -> bytes:
    sha = hashlib.sha256(f"{id(classifier.model)} {classifier.normalize}".encode())
    for name in classifier.model.image_names:
        if name in theta:
            value = theta[name].detach().cpu().contiguous()
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.digest()


def _device(classifier: Classifier, theta: Theta) -> torch.device:
    """Where the image tower is, and images therefore have to be; the CPU for a theta without one, which is refused."""
    return next((theta[n].device for n in classifier.model.image_names if n in theta), torch.device("cpu"))


# ---------------------------------------------------------------------- one point
def answers(
    classifier: Classifier,
    theta: Theta,
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    *,
    cache: FeatureCache | None = None,
    progress: Progress = lambda images: None,
    seen: Seen = lambda features, scores: None,
) -> Answers:
    """The answers of one model; see ``answers_each``."""
    (given,) = answers_each(
        classifier, [theta], dataset, batch_size, device, cache=cache, progress=progress, seen=[seen]
    )
    return given


def correct(
    classifier: Classifier,
    theta: Theta,
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
) -> NDArray[np.bool_]:
    """Whether the class with the largest score is the label, bool [n] in the set's order; see ``answers_each``."""
    return answers(classifier, theta, dataset, batch_size, device).correct


def logits(
    classifier: Classifier,
    theta: Theta,
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    *,
    progress: Progress = lambda images: None,
) -> tuple[Tensor, Tensor]:
    """(scores [n, T], labels int64 [n] among the T classes), on the CPU, for combining the outputs of several models.

    Scores are logits after ``Dataset.project``; classes that the set cannot contain have -inf. The scores of all images
    are kept in memory, n T numbers (200 MB for ImageNet in float32). Arguments and errors are those of
    ``answers_each``.
    """
    parts = []
    for _, _, scores, labels in _scores(classifier, [theta], dataset, batch_size, device, None):
        parts.append((scores.cpu(), labels))
        progress(len(labels))
    return torch.cat([s for s, _ in parts]), torch.cat([y for _, y in parts])


# ---------------------------------------------------------------------- several points
def answers_each(
    classifier: Classifier,
    thetas: Sequence[Theta],
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    *,
    cache: FeatureCache | None = None,
    progress: Progress = lambda images: None,
    seen: Sequence[Seen] = (),
) -> list[Answers]:
    """The answers of every theta to every image of ``dataset``, in the data set's order, from one pass over the images.

    Scores are the logits of the classes that the set can contain (``Dataset.project``; ImageNet-R has 200, ObjectNet
    113), and confidences are their softmax. Every theta's answers are those that it has alone, bit for bit.

    Args:
        classifier: how all of the thetas are read.
        thetas: points of weight space; all of them are in memory at once.
        dataset: the images and their labels.
        batch_size: the number of images in a batch.
        device: where to compute; None: where the first theta is.
        cache: keeps image features for the next call. With several thetas it is used where these have one image tower.
        progress: called with the number of images of every batch, once all thetas have answered.
        seen: for every theta a function that is called with the features [B, D] that the head reads and the scores
            [B, T] of every batch; empty: none.

    Raises:
        NumericalError: logits that are not finite (an argmax of NaN would count as class 0).
        DatasetError: labels out of the classifier's range.
    """
    parts: list[list[Judged]] = [[] for _ in thetas]
    for i, features, scores, labels in _scores(classifier, thetas, dataset, batch_size, device, cache):
        parts[i].append(Judged.of(scores, labels))
        if seen:
            seen[i](features, scores)
        if i == len(thetas) - 1:
            progress(len(labels))
    return [_joined(own, dataset) for own in parts]


def _scores(
    classifier: Classifier,
    thetas: Sequence[Theta],
    dataset: Dataset,
    batch_size: int,
    device: torch.device | str | None,
    cache: FeatureCache | None,
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(the theta's place, features, scores over the set's classes, labels) of every batch, for every theta in turn."""
    _check_labels(classifier, dataset)
    with torch.inference_mode(), full_float32():
        if device is not None:
            thetas = [{k: v.to(device) for k, v in theta.items()} for theta in thetas]
        read = [classifier.frozen(theta) for theta in thetas]
        # Whether logits are finite is looked at once, at the end: to look at every batch would wait for it.
        finite: list[list[Tensor]] = [[] for _ in read]
        for every, labels in _features(classifier, read, dataset, batch_size, cache):
            for i, (theta, features) in enumerate(zip(read, every, strict=False)):
                out = classifier.logits_of(theta, features)
                finite[i].append(torch.isfinite(out).all())
                yield i, features, dataset.project(out), labels
        if not all(bool(torch.stack(own).all()) for own in finite):
            raise NumericalError(f"{dataset.name}: logits are not finite.")


def _features(
    classifier: Classifier, thetas: Sequence[Theta], dataset: Dataset, batch_size: int, cache: FeatureCache | None
) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
    """(the features of every theta, computed as they are taken; labels) of every batch.

    Thetas with one image tower share their features.
    """
    one = _one_tower(classifier, thetas)
    if one and cache is not None:
        for features, labels in cache.batches(classifier, thetas[0], dataset, batch_size):
            yield repeat(features), labels
        return
    for images, labels in dataset.batches(batch_size, _device(classifier, thetas[0])):
        if one:
            yield repeat(classifier.features(thetas[0], images)), labels
        else:
            yield map(classifier.features, thetas, repeat(images)), labels


def _one_tower(classifier: Classifier, thetas: Sequence[Theta]) -> bool:
    """Whether all ``thetas`` have the first one's image tower."""
    first = thetas[0]
    names = [n for n in classifier.model.image_names if n in first]
    return all(
        theta[n] is first[n] or (theta[n].shape == first[n].shape and torch.equal(theta[n], first[n]))
        for theta in thetas[1:]
        for n in names
    )


def _check_labels(classifier: Classifier, dataset: Dataset) -> None:
    last = int(dataset.labels.max()) if dataset.classes is None else max(*dataset.classes, int(dataset.labels.max()))
    if dataset.projection is None and last >= len(classifier.classnames):
        raise DatasetError(
            f"{dataset.name}: label {last} is out of range for the classifier's "
            f"{len(classifier.classnames)} class names."
        )
    dataset.check_classes(classifier.classnames)


# ---------------------------------------------------------------------- answers of scores
def answers_of(scores: Tensor, labels: Tensor, dataset: Dataset) -> Answers:
    """The answers that ``scores`` [n, T] give to all images of ``dataset``, with ``labels`` [n]; see ``logits``."""
    return _joined([Judged.of(scores, labels)], dataset)


def _joined(batches: Sequence[Judged], dataset: Dataset) -> Answers:
    """The answers to all batches of ``dataset``, with its groups, frames and further right labels."""
    frames = dataset.frames
    if frames is None:
        return Answers.joined(batches, _group_numbers(dataset))
    return Answers.joined(batches, None, frames.numbers.numpy(), frames.also.numpy())


def _group_numbers(dataset: Dataset) -> NDArray[np.int64] | None:
    """The group of every image, -1 in FMoW's region Other, which WILDS does not count in the worst region."""
    if dataset.groups is None:
        return None
    groups = dataset.groups.numpy().copy()
    if _NO_REGION in dataset.group_names:
        groups[groups == dataset.group_names.index(_NO_REGION)] = -1
    return groups
