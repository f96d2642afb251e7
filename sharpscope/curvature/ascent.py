"""Auto-PGD: the search for the perturbation within a ball that raises a loss most."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from sharpscope.machine.devices import numbers

__all__ = ["Norm", "auto_pgd", "auto_pgd_checkpoints", "project", "random_point"]

Norm = Literal["l2", "linf"]


def auto_pgd(
    loss_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]],
    c: Tensor,
    *,
    rho: float,
    norm: Norm,
    steps: int,
    generator: torch.Generator,
    random_start: bool = False,
    onto: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, float, bool]:
    """(loss at delta = 0, its worst rise within ||delta / c||_p <= rho, whether the search had settled).

    Args:
        loss_and_gradient: delta [p] -> (loss, a tensor of no dimension, its gradient [p]).
        c: the ball's semi-axes [p] in units of rho; where c = 0, delta stays 0.
        rho, norm, steps: as for ``perturbation.sharpness_max``.
        generator: draws directions where the gradient is exactly zero, and the random start.
        random_start: start from a random point of the ball instead of delta = 0, whose loss still counts as one that
            was found.
        onto: the orthogonal projection onto the linear subspace in which delta is searched; None: all of space.

    Sources: Croce and Hein 2020, arXiv 2003.01690; Andriushchenko et al. 2023, arXiv 2302.07011.
    """

    def inside(delta: Tensor) -> Tensor:
        return project(delta if onto is None else onto(delta), c, rho, norm)

    def look(delta: Tensor) -> tuple[float, Tensor | None]:
        """The loss at delta and its gradient, which is None where it is exactly zero. This is the only place where a
        step waits for the device, because the loss decides which point is best and whether the step is halved.
        """
        loss, gradient = loss_and_gradient(delta)
        value, rises = numbers(loss, (c * gradient).any())
        return value, gradient if rises else None

    def ascend(gradient: Tensor | None) -> Tensor:
        """The direction of steepest ascent of unit size in the norm of delta / c; a random one where there is none."""
        if gradient is None:
            gradient = torch.randn(c.shape, generator=generator, dtype=torch.float64).to(c)
        if norm == "linf":
            return c * gradient.sign()
        scaled = c * gradient
        length = scaled.norm()
        return torch.where(length > 0, c * scaled / length, 0.0)

    delta = previous = torch.zeros_like(c)
    start, gradient = look(delta)
    best, best_delta, best_gradient = start, delta, gradient
    loss = start
    if random_start:
        delta = previous = inside(random_point(c, rho, norm, generator))
        loss, gradient = look(delta)
        if loss > best:
            best, best_delta, best_gradient = loss, delta, gradient
    history = [best]
    step, last_step, last_best = 2 * rho, 2 * rho, best
    checkpoints = auto_pgd_checkpoints(steps)
    improved, since = 0, 0
    for k in range(steps):
        target = inside(delta + step * ascend(gradient))
        moved = target if k == 0 else inside(delta + 0.75 * (target - delta) + 0.25 * (delta - previous))
        previous, delta = delta, moved
        last, (loss, gradient) = loss, look(delta)
        improved += loss > last
        since += 1
        if loss > best:
            best, best_delta, best_gradient = loss, delta, gradient
        history.append(best)
        if k + 1 in checkpoints:
            stuck = step == last_step and best == last_best
            last_step, last_best = step, best
            if improved < 0.75 * since or stuck:
                step, loss = step / 2, best
                delta = previous = best_delta
                gradient = best_gradient
            improved = since = 0
    late = history[-1 - max(steps // 4, 1)]
    return start, best - start, best - late <= 0.01 * max(best - start, 0.0)


def random_point(c: Tensor, rho: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """A random point of the ball: uniform in the box for linf, in a uniform direction on the sphere for l2."""
    if norm == "linf":
        return rho * c * (2 * torch.rand(c.shape, generator=generator, dtype=torch.float64) - 1).to(c)
    z = torch.randn(c.shape, generator=generator, dtype=torch.float64).to(c)
    return rho * c * z / torch.where(c > 0, z, 0.0).norm().clamp_min(torch.finfo(c.dtype).tiny)


def project(delta: Tensor, c: Tensor, rho: float, norm: Norm) -> Tensor:
    """The nearest point of ||delta / c||_p <= rho along the ray (l2) or by coordinate (linf); 0 where c = 0."""
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -rho * c), rho * c)
    inside = torch.where(c > 0, delta / torch.where(c > 0, c, 1.0), 0.0)
    length = inside.norm()
    return c * inside * torch.where(length > rho, rho / length, 1.0)


def auto_pgd_checkpoints(steps: int) -> frozenset[int]:
    """The steps after which Auto-PGD reconsiders: ceil(p_j * steps).

    p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06).

    >>> sorted(auto_pgd_checkpoints(20))
    [5, 9, 12, 14, 16, 18, 19, 20]
    """
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return frozenset(math.ceil(round(steps * q, 9)) for q in p[1:] if q <= 1)
