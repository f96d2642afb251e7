"""Slices of the loss: its values on a line or in a plane through one point, along given directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.imageerrors import ImageLosses, batch_sizes, error_over_images
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = ["Direction", "Normalization", "filter_normalized", "random_direction", "slice_rows"]

Normalization = Literal["none", "filter"]
Direction = Mapping[str, Tensor]
"""A change of named tensors: {parameter: tensor of its shape}."""


def slice_rows(
    objective: Objective,
    theta: Mapping[str, Tensor],
    directions: Direction | Sequence[Direction],
    *,
    reach: float | tuple[float, float] = 1.0,
    points: int = 21,
    normalize: Normalization = "none",
) -> list[dict[str, float]]:
    """The rows of the table that ``sharpscope.loss_slice`` returns; arguments and errors are described there.

    Raises ConfigError.

    Source: Li, Xu, Taylor, Studer and Goldstein 2018, arXiv 1712.09913.
    """
    given = [directions] if isinstance(directions, Mapping) else list(directions)
    if len(given) not in (1, 2):
        raise ConfigError(f"directions: a slice has one direction or two, got {len(given)}.")
    if normalize not in get_args(Normalization):
        raise ConfigError(f"normalize: '{shown(normalize, 60)}' is none of {', '.join(get_args(Normalization))}.")
    low, high = reach if isinstance(reach, tuple) else (-reach, reach)
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or points < 2:
        raise ConfigError(
            f"reach, points: need a positive number (or from < to) and at least 2, got {shown(reach, 60)} and {points}."
        )
    moves = [_checked(d, theta) for d in given]
    if normalize == "filter":
        moves = [filter_normalized(d, theta) for d in moves]
    steps = np.linspace(low, high, points)
    rows: list[dict[str, float]] = []
    with torch.no_grad(), second_order():
        losses = ImageLosses(objective, theta)
        for at in product(steps, repeat=len(moves)):
            moved = dict(theta)
            for step, direction in zip(at, moves, strict=True):
                moved |= {n: moved[n] + step * d for n, d in direction.items()}
            parts = losses.at(moved)
            error = error_over_images(parts, objective.weights, batch_sizes(objective))
            rows.append({
                "step_1": float(at[0]), "step_2": float(at[1]) if len(at) > 1 else math.nan,
                "loss": sum(float(p.sum()) for p in parts), "loss_stderr": error,
            })  # fmt: skip
    return rows


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
