"""Rises of the loss within a finite radius: the mean over noise, and the worst case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sharpscope.curvature import perturbation as adaptive
from sharpscope.curvature.measures.rows import MeasureTable
from sharpscope.curvature.operator import Objective
from sharpscope.layers import Layer

__all__: list[str] = []


def finite_radius(
    objective: Objective, theta: Mapping[str, Tensor], layers: Sequence[Layer], measure: str, table: MeasureTable
) -> None:
    settings = table.settings
    is_adaptive = not measure.endswith("_absolute")
    with torch.no_grad():
        base = [float(objective.batch_loss(i, theta)) for i in range(len(objective.weights))]
    for x in layers:
        seed = table.seed(measure, x.name)
        if measure.startswith("sharpness_avg"):
            rho = settings.rho_avg
            result = adaptive.sharpness_avg(
                objective, theta, x.params, rho=rho, seed=seed, adaptive=is_adaptive, samples=settings.noise_samples,
                rtol=settings.rtol, base=base,
            )  # fmt: skip
        else:
            l2 = "_l2" in measure
            rho = settings.rho_l2 if l2 else settings.rho_linf
            result = adaptive.sharpness_max(
                objective, theta, x.params, rho=rho, norm="l2" if l2 else "linf", adaptive=is_adaptive,
                steps=settings.pgd_steps,
            )  # fmt: skip
        table.add(
            x.name, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
            num_matvecs=result.num_evaluations, rho=rho,
        )  # fmt: skip
