"""Slices of the loss: its values on a line or in a plane through one point, along given directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.images import ImageLosses, batch_sizes, error_over_images
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = ["filter_normalized", "loss_slice", "random_direction"]

Direction = Mapping[str, Tensor]


def loss_slice(
    objective: Objective,
    theta: Mapping[str, Tensor],
    directions: Direction | Sequence[Direction],
    *,
    reach: float | tuple[float, float] = 1.0,
    points: int = 21,
    normalize: Literal["none", "filter"] = "none",
) -> pd.DataFrame:
    """The loss at theta + a d_1, or at theta + a d_1 + b d_2, for steps a and b on a regular grid.

    Along theta_1 - theta_0 from theta_0 the step is the alpha of the path. Along a unit eigenvector of the Hessian the
    loss is L + a g'v + a^2 lambda / 2 near 0.

    Args:
        objective: the loss, e.g. a ``Probe`` or a ``ModuleLoss``.
        theta: the named tensors through which the slice goes.
        directions: one direction {parameter: tensor of its shape}, or a list of one or two; parameters that it does not
            name do not move.
        reach: the largest |step|, > 0; a pair (from, to) for steps that are not symmetric about theta. A larger reach
            shows more of the loss and less of its curvature at theta.
        points: the number of steps along each direction, >= 2. An odd number includes the middle.
        normalize: none: the directions as they are; filter: each filter (row of a matrix, output channel of a
            convolution) gets the norm of theta's own, and vectors do not move, so that slices of networks whose weights
            are scaled differently can be compared (see ``filter_normalized``).

    Returns:
        A table with the columns step_1, step_2 (missing on a line), loss (nats for a cross-entropy) and loss_stderr
        (over draws of images; NaN where the loss does not tell them apart and has a single batch).

    Raises:
        ConfigError: a direction with an unknown name or another shape, no direction or more than two, a reach or a
            number of points out of range, an unknown ``normalize``.

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, arXiv 1712.09913.
    """
    given = [directions] if isinstance(directions, Mapping) else list(directions)
    if len(given) not in (1, 2):
        raise ConfigError(f"directions: a slice has one direction or two, got {len(given)}.")
    if normalize not in ("none", "filter"):
        raise ConfigError(f"normalize: '{shown(normalize, 60)}' is none of none, filter.")
    low, high = reach if isinstance(reach, tuple) else (-reach, reach)
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or points < 2:
        raise ConfigError(
            f"reach, points: need a positive number (or from < to) and at least 2, got {shown(reach, 60)} and {points}."
        )
    moves = [_checked(d, theta) for d in given]
    if normalize == "filter":
        moves = [filter_normalized(d, theta) for d in moves]
    steps = np.linspace(low, high, points)
    rows = []
    with torch.no_grad(), second_order():
        losses = ImageLosses(objective, theta)
        for at in product(steps, repeat=len(moves)):
            moved = dict(theta)
            for step, direction in zip(at, moves, strict=True):
                moved |= {n: moved[n] + step * d for n, d in direction.items()}
            parts = losses.at(moved)
            error = error_over_images(parts, objective.weights, batch_sizes(objective))
            rows.append((at[0], at[1] if len(at) > 1 else math.nan, sum(float(p.sum()) for p in parts), error))
    return pd.DataFrame(rows, columns=["step_1", "step_2", "loss", "loss_stderr"])


def _checked(direction: Direction, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The direction on the device and in the dtype of ``theta``."""
    for name, d in direction.items():
        if name not in theta:
            raise ConfigError(f"directions: '{shown(name)}' is no tensor of theta.{did_you_mean(name, theta)}")
        if d.shape != theta[name].shape:
            raise ConfigError(
                f"directions: '{shown(name)}' has the shape {tuple(d.shape)}, theta's is {tuple(theta[name].shape)}."
            )
    return {n: d.detach().to(theta[n]) for n, d in direction.items()}


def random_direction(theta: Mapping[str, Tensor], names: Sequence[str], *, seed: int) -> dict[str, Tensor]:
    """Independent standard normal numbers in the shape of every named tensor, the same on every device.

    Raises ConfigError for a name that is no floating-point tensor of ``theta``.

    Source: Li et al. 2018, arXiv 1712.09913 (random directions, to be used with ``normalize="filter"``).
    """
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        if name not in theta or not theta[name].is_floating_point():
            raise ConfigError(f"names: '{shown(name)}' is no floating-point tensor of theta.")
    return {n: torch.randn(theta[n].shape, generator=generator, dtype=torch.float64).to(theta[n]) for n in names}


def filter_normalized(direction: Direction, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every filter of ``direction`` scaled to the norm of the same filter of ``theta``; vectors become 0.

    d_f <- d_f ||theta_f|| / ||d_f|| for each row f of a matrix (output channel of a convolution); a filter of d that is
    0 stays 0. Biases and gains of norms, which are vectors, do not move.

    Source: Li et al. 2018, arXiv 1712.09913, section 4.
    """
    out = {}
    for name, d in direction.items():
        if d.ndim < 2:
            out[name] = torch.zeros_like(d)
            continue
        own, wanted = (t.reshape(len(t), -1).norm(dim=1) for t in (d, theta[name]))
        factor = torch.where(own > 0, wanted / torch.where(own > 0, own, 1.0), 0.0)
        out[name] = d * factor.view(-1, *[1] * (d.ndim - 1))
    return out
