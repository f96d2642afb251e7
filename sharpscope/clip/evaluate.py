"""From (theta, data set) to accuracy rows with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharpscope.clip.data import Dataset
from sharpscope.clip.head import Classifier
from sharpscope.errors import DatasetError, NumericalError

__all__ = ["accuracy_rows", "correct", "dataset_note", "mean_row", "wilson"]

Row = dict[str, Any]


def correct(
    classifier: Classifier,
    theta: Mapping[str, Tensor],
    dataset: Dataset,
    batch_size: int = 128,
    device: torch.device | str | None = None,
) -> NDArray[np.bool_]:
    """Whether the largest logit is the label's, for every example: bool [n] in the data set's order.

    Where the data set holds only some of the classes (``dataset.classes``: ImageNet-R, -A), the largest logit among
    these. ``device``: where to compute; default: where ``theta`` is. Raises NumericalError for logits that are not
    finite (an argmax of NaN would count as class 0) and DatasetError for labels out of range.
    """
    if int(dataset.labels.max()) >= len(classifier.classnames):
        raise DatasetError(
            f"{dataset.name}: label {int(dataset.labels.max())} is out of range for the classifier's "
            f"{len(classifier.classnames)} class names."
        )
    hits = []
    with torch.inference_mode():
        if device is not None:
            theta = {k: v.to(device) for k, v in theta.items()}
        theta = classifier.frozen(theta)
        for images, labels in dataset.batches(batch_size):
            logits = classifier.logits(theta, images)
            if not bool(torch.isfinite(logits).all()):
                raise NumericalError(f"{dataset.name}: logits are not finite.")
            hits.append((_predicted(logits, dataset.classes) == labels.to(logits.device)).cpu())
    return torch.cat(hits).numpy()


def _predicted(logits: Tensor, classes: tuple[int, ...] | None) -> Tensor:
    if classes is None:
        return logits.argmax(dim=1)
    among = torch.tensor(classes, device=logits.device)
    return among[logits[:, among].argmax(dim=1)]


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, ``k`` of ``n``.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), p = k/n, z the normal quantile of (1 + level)/2; inside
    [0, 1] and never of zero width. Raises ValueError unless 0 <= k <= n, n >= 1, 0 < level < 1. Source: Wilson 1927,
    J. Am. Stat. Assoc. 22:209-212.
    """
    if not (0 <= k <= n and n >= 1 and 0 < level < 1):
        raise ValueError(f"wilson: needs 0 <= k <= n, n >= 1 and 0 < level < 1; got k={k}, n={n}, level={level}.")
    z, p = NormalDist().inv_cdf((1 + level) / 2), k / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    centre, scale = p + z * z / (2 * n), 1 + z * z / n
    return (0.0 if k == 0 else (centre - half) / scale), (1.0 if k == n else (centre + half) / scale)


def accuracy_rows(
    pair: str,
    alpha: float,
    variant: str,
    arrays: Mapping[str, NDArray[np.bool_]],
    roles: Mapping[str, str],
    level: float = 0.95,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row of the accuracy table for each data set: top-1 as a fraction, with its Wilson interval.

    ``arrays``: data set name -> what :func:`correct` gave; ``roles``: data set name -> ``id`` or ``ood``.
    """
    rows = []
    for name, hits in arrays.items():
        k, n = int(hits.sum()), len(hits)
        low, high = wilson(k, n, level)
        note = (notes or {}).get(name, "")
        rows.append(_row(pair, alpha, variant, name, roles[name], k / n, low, high, n, note))
    return rows


def mean_row(
    pair: str,
    alpha: float,
    variant: str,
    arrays: Mapping[str, NDArray[np.bool_]],
    level: float = 0.95,
    role: str = "ood_mean",
) -> Row:
    """The row of the macro average over data sets: p = 1/K sum_k p_k, every set with the same weight whatever its size.

    Interval for independent sets by squaring and adding Wilson's: p - 1/K sqrt(sum (p_k - l_k)^2), and likewise above
    (Zou and Donner 2008, Stat. Med. 27:1693). For large sets it is the stratified normal interval; with p_k near 0 or 1
    it keeps its width. It speaks about other images of these sets, not about other sets. ``n``: examples in all.
    """
    if not arrays:
        raise ValueError("mean_row: needs at least one data set.")
    counts = [(int(hits.sum()), len(hits)) for hits in arrays.values()]
    parts = [(k / n, *wilson(k, n, level)) for k, n in counts]
    mean = sum(p for p, _, _ in parts) / len(parts)
    below = math.sqrt(sum((p - low) ** 2 for p, low, _ in parts)) / len(parts)
    above = math.sqrt(sum((high - p) ** 2 for p, _, high in parts)) / len(parts)
    n = sum(n for _, n in counts)
    return _row(pair, alpha, variant, "+".join(arrays), role, mean, mean - below, mean + above, n, "")


def dataset_note(dataset: Dataset) -> str:
    """What a reader of an accuracy must know of its data set: skipped images, a subset of the classes."""
    said = []
    if dataset.facts.get("skipped"):
        said.append(f"{dataset.facts['skipped']} unreadable images skipped")
    if dataset.classes is not None:
        said.append(f"among {len(dataset.classes)} of {len(dataset.classnames)} classes")
    return "; ".join(said)


def _row(
    pair: str,
    alpha: float,
    variant: str,
    dataset: str,
    role: str,
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
        "role": role,
        "metric": "top1",
        "estimate": estimate,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "note": note,
    }
