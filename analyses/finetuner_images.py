"""Which test images every fine-tuned model gets right, and the comparison's table over other draws of these images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = ["read_right", "resampled", "write_right"]

Right = Mapping[str, Sequence[np.ndarray]]
"""Column of the comparison's table -> for each of its test sets, which images are right: bool [n]."""


def write_right(path: Path, right: Right) -> None:
    """Keep ``right`` as a file."""
    arrays = {f"{column}/{i}": np.asarray(hits) for column, sets in right.items() for i, hits in enumerate(sets)}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def read_right(path: Path) -> dict[str, list[np.ndarray]]:
    """What ``write_right`` kept."""
    right: dict[str, list[np.ndarray]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:  # in the order in which they were kept
            right.setdefault(key.partition("/")[0], []).append(arrays[key])
    return right


def resampled(table: pd.DataFrame, right: Mapping[tuple[str, str], Right], count: int, seed: int) -> list[pd.DataFrame]:
    """``table`` as ``count`` other draws of the test images would give it, by the bootstrap.

    All models are judged on the same images, so that one draw serves every method, seed and point of a path: the
    differences between models are paired. Images are drawn within each set; a column is the mean over its sets.

    Args:
        table: one row per (method, seed); the columns of ``right`` are made anew, all others are dropped.
        right: (method, seed) -> its images.
        count: number of draws.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    weights: dict[tuple[str, int], np.ndarray] = {}
    made: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key, columns in right.items():
        for column, sets in columns.items():
            parts = []
            for i, hits in enumerate(sets):
                of = column.partition("_")[0], i  # id or ood: the same images in all columns of one role
                if of not in weights:
                    weights[of] = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=count) / len(hits)
                parts.append(weights[of] @ hits.astype(float))
            made.setdefault(key, {})[column] = np.mean(parts, axis=0)
    rows = [(method, seed) for method, seed in zip(table["method"], table["seed"], strict=True)]
    return [
        pd.DataFrame([{"method": m, "seed": s, **{c: v[b] for c, v in made[m, s].items()}} for m, s in rows])
        for b in range(count)
    ]
