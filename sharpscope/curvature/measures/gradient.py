"""The norm of the loss's gradient with respect to each layer's weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.imageerrors import batch_sizes, error_over_images
from sharpscope.curvature.measures.rows import ONE_UNIT, MeasureTable, Point
from sharpscope.errors import NumericalError
from sharpscope.machine.team import team_of
from sharpscope.vocabulary import ALL

__all__ = ["take"]

_MEASURE = "gradient_norm"


def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
    """Add the rows of ||dL/dw_l|| of every layer l: one backward pass over the probe, in full precision, serves all.

    The norms of layers without a common parameter combine as the root of the sum of their squares. The norm of a mean
    gradient is too large by chance: its expected square exceeds the square of the true norm by the trace of the
    gradients' covariance divided by the number of images.

    The error over draws of images comes from the slopes u'g_j of every image's loss along the unit gradient u, whose
    mean is the norm (delta method; two evaluations of the loss per layer). It says nothing of the excess above, and is
    too small where the norm is no larger than the error itself.
    """
    with second_order():
        try:
            gradient = _gradient(point)
        except NumericalError as error:
            table.fail(measures, str(error))
            return
        for layer in point.layers:
            own = {n: gradient[n] for n in layer.params}
            norm = math.sqrt(math.fsum(float(g.double().square().sum()) for g in own.values()))
            spread, why = _over_images(point, own, norm)
            table.add(layer.name, _MEASURE, norm, seed=0, converged=True, stderr=0.0, stderr_images=spread, untold=why)
    point.progress("gradient")


def _gradient(point: Point) -> dict[str, Tensor]:
    """The gradient of the probe's loss, tensor by tensor; zero where the loss does not depend on a tensor."""
    whole = next(x for x in point.layers if x.name == ALL)
    params = {n: point.theta[n].detach().clone().requires_grad_() for n in whole.params}
    team = team_of(point.objective)

    def part() -> tuple[None, dict[str, Tensor]]:
        sums = {n: torch.zeros_like(point.theta[n]) for n in params}
        for i in team.own(len(point.objective.weights)):
            loss = point.objective.batch_loss(i, {**point.theta, **params})
            found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            for name, g in zip(params, found, strict=True):
                if g is not None:
                    sums[name] += point.objective.weights[i] * g
        return None, sums

    _, sums = team.combine("the gradient", part)
    if not all(torch.isfinite(g).all() for g in sums.values()):
        raise NumericalError("The gradient of the loss is not finite.")
    return sums


def _over_images(point: Point, gradient: Mapping[str, Tensor], norm: float) -> tuple[float, str]:
    """The error of the norm over draws of images; and why it is NaN."""
    if norm == 0:
        return math.nan, "the gradient is zero"
    adds = point.image_losses.slopes({n: g / norm for n, g in gradient.items()}, norm)
    if adds is None:
        return math.nan, "the loss is not linear along the gradient over the step of the finite difference"
    return error_over_images(adds, point.objective.weights, batch_sizes(point.objective)), ONE_UNIT
