"""How far every tensor of a checkpoint moves from another one: the table ``changes``."""

from __future__ import annotations

import math
from pathlib import Path as FilePath

import pandas as pd

from sharpscope.clip.pair import resolve_checkpoint
from sharpscope.layers import is_buffer, split_layers
from sharpscope.tables.files import normalised
from sharpscope.tables.rows import table
from sharpscope.weights import check_pair, read_checkpoint
from sharpscope.weights.pair import alike_heads

__all__ = ["tensor_changes"]


def tensor_changes(a: str | FilePath, b: str | FilePath, *, weights: str | None = None) -> pd.DataFrame:
    """Change of every parameter tensor from ``a`` to ``b``: ||b - a||, ||a||, and their quotient.

    A partial file (Dassl, adapters) as ``b`` is laid over ``a``. A head that only one file has is left out.

    >>> changes = tensor_changes("mini:zeroshot", "mini:success")
    >>> list(changes.columns)[-3:], bool((changes["distance"] >= 0).all())
    (['distance', 'norm_0', 'relative'], True)

    Args:
        a, b: files, folders or hub ids, as for ``read_checkpoint``, or ``mini:NAME``.
        weights: key of the set of weights to read from a file that holds several, see ``read_checkpoint``.

    Returns:
        The table ``changes``: one row per tensor in forward order. ``relative`` is NaN for a tensor of zeros in ``a``.

    Raises:
        CheckpointError, CorruptCheckpoint, UnsafeCheckpoint: as for ``read_checkpoint``.
        PairMismatch: weights that do not fit each other.

    Source: Li et al. 2024 (CLIPFit, arXiv 2409.16718), the analysis of the change of parameters per layer.
    """
    first = read_checkpoint(resolve_checkpoint(a), partial=True, weights=weights)
    second = read_checkpoint(resolve_checkpoint(b), base=first, weights=weights)
    pair = check_pair(*alike_heads(first, second))
    both = {n: t for n, t in pair.theta_0.items() if n in pair.theta_1}
    shapes = {n: t.shape for n, t in both.items() if t.is_floating_point() and not is_buffer(n)}
    rows = []
    for layer in split_layers(shapes, "tensor"):
        (name,) = layer.params
        before = both[name].double()
        distance, norm = float((pair.theta_1[name].double() - before).norm()), float(before.norm())
        rows.append(
            {
                "layer": name, "tower": layer.tower, "depth": layer.depth, "kind": layer.kind,
                "num_params": layer.num_params, "distance": distance, "norm_0": norm,
                "relative": distance / norm if norm else math.nan,
            }
        )  # fmt: skip
    return normalised(table("changes", rows), "changes")
