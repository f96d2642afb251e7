"""How much the loss rises within a finite radius: on average over random noise, and in the worst case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.ascent import Norm
from sharpscope.curvature.measures.rows import MeasureSettings, MeasureTable, Point
from sharpscope.curvature.normalized import with_normalized_logits
from sharpscope.curvature.operator import Objective
from sharpscope.curvature.perturbation import Noise, SharpnessEstimate, sharpness_avg, sharpness_max
from sharpscope.layers import Layer
from sharpscope.machine.team import team_of
from sharpscope.vocabulary import MEASURES

__all__ = ["add_rise", "loss_of", "radius_of", "take"]


class _Ball(NamedTuple):
    """The perturbations of one measure.

    ``norm``: the norm of the ball in which the worst case is searched; None for an average over ``noise``.
    ``adaptive``: whether each entry is perturbed in units of its own weight's magnitude.
    """

    norm: Norm | None
    adaptive: bool
    noise: Noise = "gaussian"


_BALLS: Final = {
    "sharpness_avg": _Ball(None, True),
    "sharpness_avg_absolute": _Ball(None, False),
    "sharpness_avg_linf": _Ball(None, True, "uniform"),
    "sharpness_avg_linf_absolute": _Ball(None, False, "uniform"),
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
        objective, note = loss_of(point)
        with torch.no_grad():
            base = team_of(objective).each(
                "losses", len(objective.weights), lambda i: float(objective.batch_loss(i, point.theta))
            )
        for measure in measures:
            for layer in point.layers:
                seed, rho = point.seed(measure, layer.name), radius_of(measure, point.settings)
                result = _rise(point, objective, layer, _BALLS[measure.partition("@")[0]], rho, seed, base)
                add_rise(table, layer.name, measure, result, seed=seed, rho=rho, note=note)
            point.progress(measure)


def loss_of(point: Point) -> tuple[Objective, str]:
    """(the loss that the measures of finite radius perturb, what their rows say of it)."""
    if not point.settings.normalize_logits:
        return point.objective, ""
    return with_normalized_logits(point.objective), "loss of normalised logits"


def radius_of(measure: str, settings: MeasureSettings) -> float:
    """The radius that the measure's name states, or else that of its setting."""
    about = MEASURES[measure]
    assert about.radius is not None
    return getattr(settings, about.radius) if about.rho is None else about.rho


def add_rise(
    table: MeasureTable, layer: str, measure: str, result: SharpnessEstimate, *, seed: int, rho: float, note: str
) -> None:
    """Add the row of a rise of the loss within the radius ``rho``."""
    table.add(
        layer, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
        num_matvecs=result.num_evaluations, rho=rho, stderr_images=result.stderr_images,
        untold="needs at least two batches of probe images", note=note if math.isfinite(result.estimate) else "",
    )  # fmt: skip


def _rise(
    point: Point, objective: Objective, layer: Layer, ball: _Ball, rho: float, seed: int, base: Sequence[float]
) -> SharpnessEstimate:
    """The rise of the loss of one layer; ``base``: the unperturbed loss of every batch."""
    settings = point.settings
    if ball.norm is None:
        return sharpness_avg(
            objective, point.theta, layer.params, rho=rho, seed=seed, adaptive=ball.adaptive,
            samples=settings.noise_samples, rtol=settings.rtol, base=base, noise=ball.noise,
        )  # fmt: skip
    return sharpness_max(
        objective, point.theta, layer.params, rho=rho, norm=ball.norm, adaptive=ball.adaptive,
        steps=settings.pgd_steps, seed=seed, random_start=settings.random_start,
    )  # fmt: skip
