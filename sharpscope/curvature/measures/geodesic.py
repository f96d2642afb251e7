"""Geodesic sharpness of every layer, with what it covers of the layer's symmetries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.geodesic import sharpness_geodesic
from sharpscope.curvature.measures.perturbation import add_rise, loss_of, radius_of
from sharpscope.curvature.measures.rows import MeasureTable, Point
from sharpscope.errors import ConfigError, NumericalError

__all__ = ["take"]


def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
    """Add the rows of ``measures``, which differ in their radius only.

    A layer that holds a part of an attention's tensors, or a head without full rank, has the status ``undefined``. The
    note says how many heads' symmetries are divided out; a layer without attention that is known has none.
    """
    source: Any = point.objective
    heads: dict[str, int] = source.attention_heads() if hasattr(source, "attention_heads") else {}
    with second_order():
        objective, said = loss_of(point)
        for measure in measures:
            rho = radius_of(measure, point.settings)
            for layer in point.layers:
                seed = point.seed(measure, layer.name)
                try:
                    found, covered = sharpness_geodesic(
                        objective, point.theta, layer.params, rho=rho, heads=heads, steps=point.settings.pgd_steps,
                        seed=seed, random_start=point.settings.random_start,
                    )  # fmt: skip
                except (ConfigError, NumericalError) as error:
                    why = " ".join(str(error).split("\n"))
                    table.add(
                        layer.name, measure, math.nan, seed=seed, converged=False, status="undefined", note=why, rho=rho
                    )
                    continue
                note = "; ".join(x for x in (said, _coverage(covered)) if x)
                add_rise(table, layer.name, measure, found, seed=seed, rho=rho, note=note)
            point.progress(measure)


def _coverage(heads: int) -> str:
    if heads:
        return f"the symmetries of {heads} attention head{'s' * (heads > 1)} are divided out"
    return "no nn.MultiheadAttention in this layer: only rescalings of its weights count as symmetries"
