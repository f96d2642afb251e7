"""How much the loss rises within a finite radius: on average over random noise, and in the worst case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.measures.rows import MeasureTable, Point
from sharpscope.curvature.perturbation import Norm, SharpnessEstimate, sharpness_avg, sharpness_max
from sharpscope.layers import Layer

__all__ = ["take"]


class _Ball(NamedTuple):
    """The perturbations of one measure.

    ``norm``: the norm of the ball in which the worst case is searched; None for the average over noise. ``adaptive``:
    whether each entry is perturbed in units of its own weight's magnitude.
    """

    norm: Norm | None
    adaptive: bool


_BALLS: Final = {
    "sharpness_avg": _Ball(None, True),
    "sharpness_avg_absolute": _Ball(None, False),
    "sharpness_max": _Ball("linf", True),
    "sharpness_max_absolute": _Ball("linf", False),
    "sharpness_max_l2": _Ball("l2", True),
    "sharpness_max_l2_absolute": _Ball("l2", False),
}


def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
    """Add the rows of ``measures``; every layer is perturbed on its own.

    The losses are computed in full precision whatever the settings say, because their differences are small.
    """
    with second_order():
        with torch.no_grad():
            base = [float(point.objective.batch_loss(i, point.theta)) for i in range(len(point.objective.weights))]
        for measure in measures:
            for layer in point.layers:
                seed = point.seed(measure, layer.name)
                result, rho = _rise(point, layer, _BALLS[measure], seed, base)
                table.add(
                    layer.name, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
                    num_matvecs=result.num_evaluations, rho=rho, stderr_images=result.stderr_images,
                    untold="needs two batches of the probe at least",
                )  # fmt: skip
            point.progress(measure)


def _rise(point: Point, layer: Layer, ball: _Ball, seed: int, base: Sequence[float]) -> tuple[SharpnessEstimate, float]:
    """(rise of the loss, radius) of one layer; ``base``: the unperturbed loss of every batch."""
    settings = point.settings
    if ball.norm is None:
        rho = settings.rho_avg
        found = sharpness_avg(
            point.objective, point.theta, layer.params, rho=rho, seed=seed, adaptive=ball.adaptive,
            samples=settings.noise_samples, rtol=settings.rtol, base=base,
        )  # fmt: skip
        return found, rho
    rho = settings.rho_l2 if ball.norm == "l2" else settings.rho_linf
    found = sharpness_max(
        point.objective, point.theta, layer.params, rho=rho, norm=ball.norm, adaptive=ball.adaptive,
        steps=settings.pgd_steps, seed=seed,
    )  # fmt: skip
    return found, rho
