"""What interpolation costs in loss, as columns beside sharpness: LII, barrier and rewind of pairs and their layers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from sharpscope.findings.criteria import loss_scores
from sharpscope.findings.frames import alpha_index
from sharpscope.findings.sharpness import Cube
from sharpscope.tables.rows import ordered, unique_in_order
from sharpscope.vocabulary import ALL, CRITERIA, GROUP_TITLES

__all__ = ["path_costs", "with_costs"]

_COLUMNS = ("pair", "layer", "measure", "value")


def path_costs(path: pd.DataFrame, stragglers: pd.DataFrame | None = None) -> pd.DataFrame:
    """What interpolation costs every pair, and every layer that was moved alone, in nats of probe loss.

    The measures are sharpscope's own straggler criteria of single-layer paths (instability, which is the LII, barrier
    and rewind). For the whole model, the layer ``(all)``, they are taken of the losses on the pair's whole path. For a
    layer they are the scores of the stragglers table, at the criterion's first base there.

    Args:
        path: the path table.
        stragglers: the stragglers table, or None for the whole model alone.

    Returns:
        Columns pair, layer, measure, value. A whole path without alpha = 0 or 1, or with a loss that is not finite, has
        the value NaN.

    Raises:
        ConfigError: a criterion does not give one number for a path (sharpscope's own always do).

    Sources: Frankle et al. 2020, arXiv 1912.05671 (LII; used by Abdollahpoorrostam 2024, arXiv 2410.16476); Vlaar and
    Frankle 2022, arXiv 2106.16004 (barrier); Zhang, Bengio and Singer 2019, arXiv 1902.01996 (rewind).
    """
    names = [c.name for c in CRITERIA.values() if c.of == "path" and c.name not in CRITERIA.origins]
    rows: list[tuple[str, str, str, float]] = []
    for pair in unique_in_order(path["pair"]):
        own = path[path["pair"] == pair]
        alphas, losses = own["alpha"].astype(float).tolist(), own["loss"].to_numpy(dtype=float)
        whole = np.isfinite(losses).all() and None not in (alpha_index(alphas, 0.0), alpha_index(alphas, 1.0))
        for name in names:
            rows.append((str(pair), ALL, name, float(loss_scores(name, losses, alphas)) if whole else math.nan))
    if stragglers is not None:
        for (pair, criterion), own in stragglers.groupby(["pair", "criterion"], sort=False):
            if criterion in names:
                of = str(pair), str(criterion)
                first = own[own["base"] == own["base"].iloc[0]]
                rows += [(of[0], x, of[1], float(v)) for x, v in zip(first["layer"], first["score"], strict=True)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def with_costs(cube: Cube, costs: pd.DataFrame) -> Cube:
    """``cube`` and the measures of ``costs`` (see ``path_costs``) behind its own, the same value at every alpha."""
    measures = unique_in_order(costs["measure"])
    layers = ordered([*cube.layers, *costs["layer"]], tuple(GROUP_TITLES))
    shape = (len(cube.measures) + len(measures), len(layers), len(cube.pairs), len(cube.alphas))
    values, present = np.full(shape, np.nan), np.zeros(shape[:2], dtype=bool)
    old = [layers.index(name) for name in cube.layers]
    values[: len(cube.measures), old], present[: len(cube.measures), old] = cube.values, cube.present
    place = {pair: i for i, pair in enumerate(cube.pairs)}
    for pair, layer, measure, value in costs[list(_COLUMNS)].itertuples(index=False, name=None):
        if pair in place:
            m, at = len(cube.measures) + measures.index(measure), layers.index(layer)
            values[m, at, place[pair]], present[m, at] = value, True
    return dataclasses.replace(
        cube, measures=(*cube.measures, *measures), layers=tuple(layers), values=values, present=present
    )
