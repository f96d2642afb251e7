"""How far the layers of one checkpoint are from another one: the table ``changes``."""

from __future__ import annotations

import math

import pandas as pd

from sharpscope.layers import is_buffer, split_layers, tower_of
from sharpscope.tables.rows import table
from sharpscope.vocabulary import Granularity
from sharpscope.weights import InterpolationPath, Pair

__all__ = ["layer_changes"]


def layer_changes(pair: Pair, granularity: Granularity = "tensor") -> pd.DataFrame:
    """||theta_1 - theta_0||, ||theta_0|| and their quotient for every layer, in forward order.

    A head that only one end has is left out. ``relative`` is NaN for a layer of zeros in theta_0.

    Args:
        pair: the two checkpoints, ``weights.check_pair`` of them.
        granularity: what is one layer; tensor gives every bias and every norm by itself.

    Returns:
        The table ``changes`` of the schema.

    Source: Li et al. 2024 (CLIPFit, arXiv 2409.16718), the analysis of the change of parameters.
    """
    both = pair.facts["head_in"] in ("both", "none")
    path = InterpolationPath(pair.theta_0, pair.theta_1) if both else _headless(pair)
    shapes = {
        n: t.shape for n, t in pair.theta_0.items() if n in path.theta_0 and t.is_floating_point() and not is_buffer(n)
    }
    rows = []
    for layer in split_layers(shapes, granularity):
        distance = path.layer_distance(layer)
        norm = float(sum(path.theta_0[n].double().square().sum() for n in layer.params)) ** 0.5
        rows.append(
            {
                "layer": layer.name, "tower": layer.tower, "depth": layer.depth, "kind": layer.kind,
                "num_params": layer.num_params, "distance": distance, "norm_0": norm,
                "relative": distance / norm if norm else math.nan,
            }
        )  # fmt: skip
    return table("changes", rows)


def _headless(pair: Pair) -> InterpolationPath:
    zero, one = ({n: t for n, t in theta.items() if tower_of(n) != "head"} for theta in (pair.theta_0, pair.theta_1))
    return InterpolationPath(zero, one)
