"""The error of a mean over images in the population that they were drawn from.

A curvature that is measured on n images has two errors. One is that of the estimate ON THESE IMAGES: random directions,
an iteration that was stopped. The other is that of the quantity OVER DRAWS OF n IMAGES: for a loss that is a mean over
images, each of them adds its own part, and the spread of these parts says how far other images would have led.

``Contributions``: a tensor for each batch, [n_i] of what its images add to the estimate, or [1] of what the batch adds
as a whole, where its images cannot be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.operator import Objective
from sharpscope.curvature.trace import student
from sharpscope.machine.devices import numbers
from sharpscope.machine.team import team_of

__all__ = ["Contributions", "ImageLosses", "added", "batch_sizes", "by_batch", "error_over_images", "told_apart"]

Contributions = tuple[Tensor, ...]

RISE = 2e-3
"""The step of a second difference is chosen such that the loss rises by this fraction of itself (of 1 nat, if the loss
is smaller); rounding in float32 is then about a per cent of the rise. With a larger value the loss deviates more from a
parabola over the step."""
AGREES = 0.2
"""The mean of the finite differences may differ from the exactly known slope or curvature by this relative amount;
otherwise the differences are not used."""
FARTHEST = 1e-2
"""The longest step along a gradient, as a fraction of the norm of the weights that move (of 1, if the norm is smaller).
With a larger value rounding disturbs the slopes of a flat loss less and the curvature of the loss disturbs them
more."""


def batch_sizes(objective: Objective) -> tuple[int, ...] | None:
    """Examples in every batch; None where the objective does not know."""
    sizes: Sequence[int] | None = getattr(objective, "batch_sizes", None)
    return None if sizes is None else tuple(sizes)


def by_batch(units: Tensor, rows: Sequence[int], sizes: Sequence[int] | None) -> Contributions:
    """Units [sum(rows)] of ``operator.Probes``, ``rows[i]`` of them from batch i, as contributions.

    A batch that gave a row an image keeps them; of one that gave others, the sum is taken. No row: its images add 0.
    """
    out = []
    for i, part in enumerate(units.split(list(rows))):
        if sizes is not None and len(part) == 0:
            part = part.new_zeros(sizes[i])
        out.append(part if sizes is not None and len(part) == sizes[i] else part.sum().view(1))
    return tuple(out)


def added(terms: Sequence[Contributions]) -> Contributions:
    """The contributions to a sum: image by image where every term tells them apart, else batch by batch."""
    return tuple(
        torch.stack(parts).sum(0)
        if len({len(p) for p in parts}) == 1
        else torch.stack([p.sum() for p in parts]).sum().view(1)
        for parts in zip(*terms, strict=True)
    )


def told_apart(contributions: Contributions, sizes: Sequence[int] | None) -> bool:
    """Whether every batch has one contribution an image."""
    return sizes is not None and all(len(c) == n for c, n in zip(contributions, sizes, strict=True))


def error_over_images(
    contributions: Contributions, weights: Sequence[float], sizes: Sequence[int] | None, *, blur: float = 0.0
) -> float:
    """Standard error of the sum of ``contributions`` over other draws of as many images; NaN for a single unit.

    sqrt(U / (U - 1) sum_u (c_u - s_u sum_v c_v)^2) with the share s_u of the images that unit u stands for: U images
    where all batches tell them apart, else U batches. Widened by Student's t at U - 1 degrees of freedom, so that the
    estimate +- 1.96 times it covers 95 %. The spread of the c_u holds what random directions add to each: the error is
    that of both.

    Args:
        contributions: one tensor a batch.
        weights: the batches' shares of the images.
        sizes: images in every batch, where known.
        blur: what random directions add to the variance of the sum of c_u, if the estimate itself has no such error; at
            most half of the variance is taken off for it.

    Source: Cochran 1977, Sampling Techniques, ch. 6 (ratio of means).
    """
    if sizes is not None and told_apart(contributions, sizes):
        c = torch.cat(contributions).double()
        share = torch.cat([torch.full((n,), w / n, dtype=torch.float64) for w, n in zip(weights, sizes, strict=True)])
    else:
        c = torch.stack([part.double().sum() for part in contributions])
        share = torch.tensor(list(weights), dtype=torch.float64)
    count = len(c)
    if count < 2:
        return math.nan
    variance = count / (count - 1) * float((c - share * c.sum()).square().sum())
    return student(count - 1) * math.sqrt(max(variance - blur, variance / 2))


class ImageLosses:
    """The loss of every image around ``theta``; of every batch, where the losses of images cannot be had.

    Images are told apart where the objective gives logits and labels whose mean cross-entropy is its loss.
    """

    def __init__(self, objective: Objective, theta: Mapping[str, Tensor]) -> None:
        self.objective, self.theta = objective, theta
        self._single = hasattr(objective, "batch_logits") and hasattr(objective, "batch_labels")
        if self._single:
            own = self._at(0, theta).sum() / objective.weights[0]
            with torch.no_grad():
                loss = objective.batch_loss(0, theta).double()
            self._single = bool(torch.isclose(own, loss, rtol=1e-3, atol=1e-5))
        self.here = self.at(theta)

    def at(self, theta: Mapping[str, Tensor]) -> Contributions:
        """What every image adds to the mean loss at ``theta``, float64."""
        count = len(self.objective.weights)
        parts = team_of(self.objective).each("losses", count, lambda i: self._at(i, theta))
        return torch.cat(parts).cpu().split([len(part) for part in parts])  # one copy for all batches

    @torch.no_grad()
    def _at(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        objective: Any = self.objective
        if self._single:
            logits = objective.batch_logits(i, theta).double()
            loss = F.cross_entropy(logits, objective.batch_labels(i), reduction="none")
        else:
            loss = objective.batch_loss(i, theta).double().view(1)
        return loss * (objective.weights[i] / len(loss))

    def slopes(self, directions: Mapping[str, Tensor], slope: float) -> Contributions | None:
        """What each image adds to v'g along the unit vector v of ``directions``, from two evaluations of the loss.

        [l_j(theta + e v) - l_j(theta - e v)] / 2e for the loss l_j of every image. The step e changes the loss by
        ``RISE`` of itself, and is at most ``FARTHEST`` of the weights' norm. The ``slope`` v'g is known exactly: None
        where the sum misses it by more than ``AGREES``, or where it is 0.
        """
        if not slope or not math.isfinite(slope):
            return None
        size = max(abs(sum(float(part.sum()) for part in self.here)), 1.0)
        length = math.sqrt(sum(numbers(*(self.theta[n].double().square().sum() for n in directions))))
        step = min(RISE * size / abs(slope), FARTHEST * max(length, 1.0))
        moved = [{n: self.theta[n] + s * v.to(self.theta[n]) for n, v in directions.items()} for s in (step, -step)]
        ahead, back = (self.at({**self.theta, **m}) for m in moved)
        out = tuple((a - b) / (2 * step) for a, b in zip(ahead, back, strict=True))
        total = sum(float(part.sum()) for part in out)
        return out if abs(total - slope) <= AGREES * abs(slope) else None

    def along(self, directions: Mapping[str, Tensor], curvature: float) -> Contributions | None:
        """What each image adds to v'Hv along the unit vector v of ``directions``, from two evaluations of the loss.

        [l_j(theta + e v) - 2 l_j(theta) + l_j(theta - e v)] / e^2 for the loss l_j of every image, e such that the
        loss rises by ``RISE`` of itself. The ``curvature`` v'Hv is known exactly: None where the sum misses it by more
        than ``AGREES`` (the loss has a kink, rounding), or where it is 0.

        To first order, the change of an eigenvalue with the images is that of v'Hv at its eigenvector v.

        Source: Kato 1966, Perturbation Theory for Linear Operators, ch. II.
        """
        if not curvature or not math.isfinite(curvature):
            return None
        size = max(abs(sum(float(part.sum()) for part in self.here)), 1.0)
        step = math.sqrt(2 * RISE * size / abs(curvature))
        moved = [{n: self.theta[n] + s * v.to(self.theta[n]) for n, v in directions.items()} for s in (step, -step)]
        ahead, back = (self.at({**self.theta, **m}) for m in moved)
        out = tuple((a - 2 * m + b) / step**2 for a, m, b in zip(ahead, self.here, back, strict=True))
        total = sum(float(part.sum()) for part in out)
        return out if abs(total - curvature) <= AGREES * abs(curvature) else None
