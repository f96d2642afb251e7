"""The point of the plain path that has the same ID accuracy as another model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["match_plain"]


def match_plain(
    id_path: np.ndarray, ood_path: np.ndarray, alphas: Sequence[float], wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The point of the plain path that has a given ID accuracy: linear between alphas, FIRST crossing from alpha = 0.

    Several alphas fit if the ID accuracy is not monotone. The smallest of them is taken, which needs ID data only.
    Where the path never has the wanted accuracy, the nearest accuracy that it has is used.

    Args:
        id_path, ood_path: [..., A] accuracies of the plain path.
        alphas: [A] increasing.
        wanted: [..., K] ID accuracies to be matched.

    Returns:
        (alpha [..., K], OOD accuracy there [..., K], inside [..., K] whether the path has that ID accuracy).
    """
    grid = np.asarray(alphas, dtype=float)
    low, high = id_path.min(axis=-1)[..., None], id_path.max(axis=-1)[..., None]
    inside = (wanted >= low - 1e-12) & (wanted <= high + 1e-12)
    gap = id_path[..., None, :] - np.clip(wanted, low, high)[..., None]
    if len(grid) == 1:
        shape = gap.shape[:-1]
        return np.broadcast_to(grid[0], shape), np.broadcast_to(ood_path[..., :1], shape), inside
    crosses = gap[..., :-1] * gap[..., 1:] <= 0
    first = crosses.argmax(axis=-1)[..., None]
    here = np.take_along_axis(gap, first, axis=-1)
    there = np.take_along_axis(gap, first + 1, axis=-1)
    # The step is 0 where the left end has the wanted value, and also where both ends of the segment have it.
    step = np.where(here == there, 0.0, here / np.where(here == there, 1.0, here - there))[..., 0]
    left = first[..., 0]
    ood = np.broadcast_to(ood_path[..., None, :], gap.shape)
    before = np.take_along_axis(ood, first, axis=-1)[..., 0]
    after = np.take_along_axis(ood, first + 1, axis=-1)[..., 0]
    return grid[left] + step * (grid[left + 1] - grid[left]), before + step * (after - before), inside
