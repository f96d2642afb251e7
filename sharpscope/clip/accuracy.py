"""Scores, answers and accuracy rows with intervals of theta on data sets, each in one pass over the images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.head import Classifier
from sharpscope.clip.metrics import Answers, Scored, estimates
from sharpscope.errors import DatasetError, NumericalError, shown
from sharpscope.tables.rows import mean_row
from sharpscope.vocabulary import DEFAULT_GROUP, OOD_MEAN

__all__ = [
    "FeatureCache",
    "accuracy_rows",
    "answers",
    "answers_of",
    "correct",
    "dataset_note",
    "logits",
    "mean_rows",
    "reported",
]

Row = dict[str, Any]
Theta = Mapping[str, Tensor]
Progress = Callable[[int], object]
Seen = Callable[[Tensor, Tensor], object]
_NO_REGION = "Other"


class FeatureCache:
    """Keeps the image features of the last image tower, so that another head on the same tower needs no forward pass.

    This also serves another alpha of a pair whose image tower does not change. A tower is identified by the SHA-256 of
    its tensors; the features of any other tower are dropped. At most ``limit`` bytes of features are kept, on the CPU
    and bit for bit; those of a data set that does not fit are computed each time.
    """

    def __init__(self, limit: int = 2 * 2**30) -> None:
        self.limit = limit
        self._tower = b""
        self._kept: dict[tuple[Dataset, int], list[tuple[Tensor, Tensor]]] = {}

    def batches(
        self, classifier: Classifier, theta: Theta, dataset: Dataset, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(features [B, D], labels [B]) of every batch, from memory where they have been kept."""
        tower = _digest(classifier, theta)
        if tower != self._tower:
            self._tower, self._kept = tower, {}
        key = (dataset, batch_size)
        if key in self._kept:
            device = theta[classifier.model.image_names[0]].device
            yield from ((features.to(device), labels) for features, labels in self._kept[key])
            return
        taken = sum(f.nbytes for parts in self._kept.values() for f, _ in parts)
        parts: list[tuple[Tensor, Tensor]] | None = []
        for features, labels in _features(classifier, theta, dataset, batch_size):
            taken += features.nbytes
            if taken > self.limit:
                parts = None
            if parts is not None:
                parts.append((features.cpu(), labels))
            yield features, labels
        if parts is not None:
            self._kept[key] = parts


def _digest(classifier: Classifier, theta: Theta) -> bytes:
    sha = hashlib.sha256(f"{id(classifier.model)} {classifier.normalize}".encode())
    for name in classifier.model.image_names:
        if name in theta:
            value = theta[name].detach().cpu().contiguous()
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return sha.digest()


def _features(
    classifier: Classifier, theta: Theta, dataset: Dataset, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in dataset.batches(batch_size):
        yield classifier.features(theta, images), labels


# ---------------------------------------------------------------------- what a model answers
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
    """The model's answers to every image of ``dataset``, in the data set's order, from one streamed pass.

    Scores are the logits of the classes that the set can contain (``Dataset.project``; ImageNet-R has 200, ObjectNet
    113), and confidences are their softmax. ``device``: where to compute; None: on the device of ``theta``. ``cache``:
    keeps image features for the next call. ``progress``: called with the number of images of every batch. ``seen``:
    called with the features [B, D] that the head reads and the scores [B, T] of every batch. Raises NumericalError for
    logits that are not finite (an argmax of NaN would count as class 0), DatasetError for labels out of the
    classifier's range.
    """
    parts = []
    for features, scores, labels in _scores(classifier, theta, dataset, batch_size, device, cache):
        parts.append(Answers.of(scores, labels))
        seen(features, scores)
        progress(len(labels))
    return _joined(parts, dataset)


def correct(
    classifier: Classifier,
    theta: Theta,
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
) -> NDArray[np.bool_]:
    """Whether the class with the largest score is the label: bool [n], in the data set's order; see ``answers``."""
    return answers(classifier, theta, dataset, batch_size, device).correct


def logits(
    classifier: Classifier,
    theta: Theta,
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    *,
    cache: FeatureCache | None = None,
    progress: Progress = lambda images: None,
) -> tuple[Tensor, Tensor]:
    """(scores [n, T], labels int64 [n] among the T classes), on the CPU, for combining the outputs of several models.

    Scores are logits after ``Dataset.project``; classes that the set cannot contain have -inf. The scores of all images
    are kept in memory, n T numbers (200 MB for ImageNet in float32). Arguments and errors are those of ``answers``.
    """
    parts = []
    for _, scores, labels in _scores(classifier, theta, dataset, batch_size, device, cache):
        parts.append((scores.cpu(), labels.cpu()))
        progress(len(labels))
    return torch.cat([s for s, _ in parts]), torch.cat([y for _, y in parts])


def _scores(
    classifier: Classifier,
    theta: Theta,
    dataset: Dataset,
    batch_size: int,
    device: torch.device | str | None,
    cache: FeatureCache | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(features, scores over the set's classes, labels among these classes) of every batch."""
    _check_labels(classifier, dataset)
    with torch.inference_mode():
        if device is not None:
            theta = {k: v.to(device) for k, v in theta.items()}
        theta = classifier.frozen(theta)
        stream = _features if cache is None else cache.batches
        for features, labels in stream(classifier, theta, dataset, batch_size):
            out = classifier.logits_of(theta, features)
            if not bool(torch.isfinite(out).all()):
                raise NumericalError(f"{dataset.name}: logits are not finite.")
            yield features, dataset.project(out), labels


def _check_labels(classifier: Classifier, dataset: Dataset) -> None:
    last = int(dataset.labels.max()) if dataset.classes is None else max(*dataset.classes, int(dataset.labels.max()))
    if dataset.projection is None and last >= len(classifier.classnames):
        raise DatasetError(
            f"{dataset.name}: label {last} is out of range for the classifier's "
            f"{len(classifier.classnames)} class names."
        )
    dataset.check_classes(classifier.classnames)


def answers_of(scores: Tensor, labels: Tensor, dataset: Dataset) -> Answers:
    """The answers that ``scores`` [n, T] give to all images of ``dataset``, with ``labels`` [n]; see ``logits``."""
    return _joined([Answers.of(scores, labels)], dataset)


def _joined(parts: Sequence[Answers], dataset: Dataset) -> Answers:
    """The answers of all batches of ``dataset``, with its groups, frames and further right labels."""
    frames = dataset.frames
    if frames is None:
        return Answers.joined(parts, _group_numbers(dataset))
    return Answers.joined(parts, None, frames.numbers.numpy(), frames.also.numpy())


def _group_numbers(dataset: Dataset) -> NDArray[np.int64] | None:
    """The group of every image, -1 in FMoW's region Other, which WILDS does not count in the worst region."""
    if dataset.groups is None:
        return None
    groups = dataset.groups.numpy().copy()
    if _NO_REGION in dataset.group_names:
        groups[groups == dataset.group_names.index(_NO_REGION)] = -1
    return groups


# ---------------------------------------------------------------------- rows
def reported(dataset: Dataset, more: Iterable[str] = ()) -> tuple[str, ...]:
    """The metrics that a data set's rows report: those usual for the set (the first is primary), top1, and ``more``."""
    return tuple(dict.fromkeys([*dataset.metrics, "top1", *more]))


def accuracy_rows(
    pair: str,
    alpha: float,
    variant: str,
    given: Mapping[str, Scored],
    roles: Mapping[str, str],
    metrics: Mapping[str, Sequence[str]] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
    notes: Mapping[str, str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Rows of the accuracy table: every metric of every data set, with its interval (``metrics.estimates``).

    ``given``: data set name -> ``answers``. ``roles``: name -> ``id`` or ``ood``. ``groups``: name of an OOD set -> its
    group (default: ``DEFAULT_GROUP``). ``metrics``: name -> the metrics to
    report, the first of which is primary (default: top1). A metric that is not defined for a set has no row.
    """
    rows = []
    for name, one in given.items():
        wanted = ("top1",) if metrics is None else metrics[name]
        group = (groups or {}).get(name, DEFAULT_GROUP) if roles[name] == "ood" else ""
        found = estimates(one, wanted, level=level, bootstrap=bootstrap, seed=seed, key=(pair, alpha, variant, name))
        for metric, (value, low, high) in found.items():
            said = [
                (notes or {}).get(name, ""),
                "" if math.isfinite(low) else "no interval: the bootstrap replicates do not differ",
                ""
                if not math.isfinite(low) or low <= value <= high
                else f"the interval is corrected for the bias of {metric} and excludes the estimate",
            ]
            note = "; ".join(x for x in said if x)
            row = _row(pair, alpha, variant, name, group, roles[name], metric, value, low, high, one.size(metric), note)
            rows.append(row | {"primary": metric == wanted[0]})
    return rows


def mean_rows(rows: Sequence[Row], role: str = "ood", to: str = OOD_MEAN) -> list[Row]:
    """The macro average over the data sets of ``role`` as rows of role ``to``; see ``tables.rows.mean_row``.

    Every ``group`` of sets has means of its own: one row for the mean of the sets' primary metrics, and one for each
    other metric that all of its sets have.
    """
    own = [r for r in rows if r["role"] == role]
    groups = dict.fromkeys(r["group"] for r in own)
    return [row for group in groups for row in _means([r for r in own if r["group"] == group], to)]


def _means(own: Sequence[Row], to: str) -> list[Row]:
    names = list(dict.fromkeys(r["dataset"] for r in own))
    first = [r for r in own if r["primary"]]
    kinds = list(dict.fromkeys(r["metric"] for r in first))
    out = [_mean(first, to) | {"primary": True}]
    for metric in dict.fromkeys(r["metric"] for r in own):
        parts = [r for r in own if r["metric"] == metric]
        if len(parts) == len(names) and kinds != [metric]:
            out.append(_mean(parts, to) | {"primary": False})
    return out


def _mean(parts: Sequence[Row], role: str) -> Row:
    row = mean_row(parts, role)
    known = math.isfinite(row["ci_low"]) and math.isfinite(row["ci_high"])
    said = [row["note"], "" if known else "no interval: at least one of the averaged data sets has none"]
    return row | {"note": "; ".join(x for x in said if x)}


def dataset_note(dataset: Dataset) -> str:
    """What a reader of an accuracy needs to know about its data set.

    Skipped images, classes without images, which classes compete, and how labels got their names where that was not by
    the names themselves.
    """
    facts = dataset.facts
    said = []
    if facts.get("skipped"):
        said.append(f"{facts['skipped']} unreadable images skipped")
    if bare := facts.get("without_images"):
        some = ", ".join(f"'{shown(name, 40)}'" for name in bare[:3]) + ", ..." * (len(bare) > 3)
        said.append(f"no readable image of class {some}")
    if dataset.classes is not None:
        said.append(f"scored among {len(dataset.classes)} of {len(dataset.classnames)} classes")
    if dataset.projection is not None:
        said.append(
            f"scored among {len(dataset.target_names)} classes, each by the largest logit of its member classes"
        )
    if bare := [dataset.target_names[t] for t in dataset.targets_without_class]:
        said.append(f"the head has no class for '{shown(', '.join(bare), 200)}': images of these count as wrong")
    said += facts.get("said", ())
    return "; ".join(said)


def _row(
    pair: str,
    alpha: float,
    variant: str,
    dataset: str,
    group: str,
    role: str,
    metric: str,
    estimate: float,
    low: float,
    high: float,
    n: int,
    note: str,
) -> Row:
    return {
        "pair": pair,
        "alpha": alpha,
        "variant": variant,
        "dataset": dataset,
        "group": group,
        "role": role,
        "metric": metric,
        "estimate": estimate,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "note": note,
    }
