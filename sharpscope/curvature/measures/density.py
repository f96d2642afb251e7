"""The density table: where the eigenvalues of chosen layers lie at one point of the path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sharpscope.curvature.arithmetic import in_precision, second_order
from sharpscope.curvature.density import spectral_density_steps
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import Objective, solve_together
from sharpscope.errors import NumericalError
from sharpscope.layers import Layer
from sharpscope.seeds import derive
from sharpscope.vocabulary import ALL

__all__ = ["measure_density"]


def measure_density(
    objective: Objective,
    theta: Mapping[str, Tensor],
    layers: Sequence[Layer],
    names: Sequence[str],
    settings: MeasureSettings | None = None,
    *,
    key: Sequence[object] = (),
) -> list[dict[str, Any]]:
    """Rows of the density table (without pair and alpha) for the layers ``names``, which may include ``(all)``.

    The density comes from stochastic Lanczos quadrature and is smoothed by a Gaussian; every row states the Gaussian's
    standard deviation as ``width`` (see ``density.WIDTH``). A layer whose density cannot be computed has one row with
    status ``failed`` and the reason in ``note``.
    """
    settings = settings or MeasureSettings()
    blocks = {ALL: tuple(n for x in layers for n in x.params)} | {x.name: x.params for x in layers}
    seeds = {name: derive(settings.seed, *key, "density", name) for name in names}

    def row(name: str, spent: int, status: str = "ok", note: str = "", **numbers: float) -> dict[str, Any]:
        none = dict.fromkeys(("value", "density", "stderr", "width"), math.nan)
        size = sum(theta[n].numel() for n in blocks[name])
        about = {"num_params": size, "num_matvecs": spent, "seed": seeds[name], "status": status, "note": note}
        return {"layer": name} | none | numbers | about

    rows: list[dict[str, Any]] = []
    with second_order(tf32=settings.precision == "tf32"):
        rough = in_precision(objective, settings.precision, theta)
        try:
            engine = engine_for(settings.products)(
                rough, theta, {n: blocks[n] for n in names}, memory=settings.memory, use="products"
            )
        except NumericalError as error:
            return [row(name, 0, "failed", str(error)) for name in names]
        work = {
            name: spectral_density_steps(
                engine.blocks[name].size, dtype=engine.dtype, device=engine.device, seed=seeds[name],
                steps=settings.density_steps, runs=settings.density_runs,
            )
            for name in names
        }  # fmt: skip
        try:
            asked = solve_together(work, lambda open_: engine.answer({n: (n, request) for n, request in open_.items()}))
        except NumericalError as error:
            return [row(name, 0, "failed", str(error)) for name in names]
    for name, found in asked.items():
        if not np.isfinite(found.nodes).all():
            rows.append(row(name, found.num_matvecs, "failed", "a Hessian-vector product is not finite"))
            continue
        grid, width = found.grid()
        rows += [
            row(name, found.num_matvecs, value=float(x), density=float(d), stderr=float(e), width=width)
            for x, d, e in zip(grid, *found(grid, width=width), strict=True)
        ]
    return rows
