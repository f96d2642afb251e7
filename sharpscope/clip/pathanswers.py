"""What the points of a path answer to the images of data sets, every point in one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from sharpscope.clip.answering import FeatureCache, answers
from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.metrics import Answers
from sharpscope.clip.pair import LoadedPair
from sharpscope.layers import tower_of
from sharpscope.scores import PathAnswers, Predictions
from sharpscope.weights.path import InterpolationPath
from sharpscope.weights.theta import on_device

__all__ = ["answers_along", "judged_by", "seen_along"]


def answers_along(
    pair: LoadedPair,
    path: InterpolationPath,
    alphas: Sequence[float],
    datasets: Mapping[str, Dataset],
    *,
    batch_size: int = 128,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] = lambda images: None,
) -> dict[str, list[Answers]]:
    """Data set -> the answers of every point, in the order of ``alphas``; see ``clip.accuracy.answers``.

    Where the image tower does not move, every image is encoded once.
    """
    out: dict[str, list[Answers]] = {name: [] for name in datasets}
    cache = None if any(tower_of(n) == "image" for n in pair.moving) else FeatureCache()
    for alpha in alphas:
        theta = path.at(alpha) if device is None else on_device(path.at(alpha), device)
        for name, dataset in datasets.items():
            given = answers(pair.classifier, theta, dataset, batch_size, device, cache=cache, progress=progress)
            out[name].append(given)
    return out


def seen_along(points: Sequence[Answers], *, labelled: bool = True) -> PathAnswers:
    """Predictions and confidences of every point; without ``labelled`` the labels are left out and never looked at."""
    return PathAnswers(
        np.stack([p.predicted for p in points]),
        np.stack([p.confidence for p in points]),
        points[0].labels if labelled else None,
    )


def judged_by(points: Sequence[Answers], metric: str) -> np.ndarray | Predictions:
    """What findings judge a set by: bool [A, n] for top1, else the predictions with their ``metric``."""
    if metric == "top1":
        return np.stack([p.correct for p in points])
    first = points[0]
    groups = first.groups if first.frames is None else first.frames
    return Predictions(metric, first.labels, np.stack([p.predicted for p in points]), groups)
