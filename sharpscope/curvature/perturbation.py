"""Sharpness at a finite radius: how much the loss rises when one layer is perturbed, on average and at worst.

The perturbation delta lies in an ellipsoid (or box) with semi-axes rho * c. c = |w| makes the sharpness invariant to
rescaling the parameters (adaptive), and c = 1 gives the plain ball. Sources: Kwon et al. 2021, arXiv 2102.11600;
Andriushchenko et al. 2023, arXiv 2302.07011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor

from sharpscope.card import card
from sharpscope.curvature.ascent import Norm, auto_pgd, random_point
from sharpscope.curvature.draws import gaussian, uniform
from sharpscope.curvature.imageerrors import error_over_images
from sharpscope.curvature.operator import Cuttable, Objective
from sharpscope.curvature.trace import student
from sharpscope.machine.devices import free_bytes
from sharpscope.machine.team import team_of
from sharpscope.seeds import derive

__all__ = ["Found", "SharpnessEstimate", "gathered", "searched", "sharpness_avg", "sharpness_max", "without_prefix"]

Noise = Literal["gaussian", "uniform"]
Found = tuple[float, float, bool]
"""What ``ascent.auto_pgd`` finds in a batch: its loss at delta = 0, its worst rise, whether the search had settled."""
_Searched = tuple[Tensor, Tensor, list[Found]]
"""The state of a process's generator before and after its batches, and the results of the batches."""

NOISE_SHARE = 1 / 4
"""The share of the free memory of the device up to which all noise draws of a layer are kept there. They then serve one
batch after the other, each of which runs the part of the forward pass before the layer once. The draws of a larger
layer are made and used one after the other, each for all batches."""


@dataclass(frozen=True)
class SharpnessEstimate:
    """A rise of the loss, in the loss's own unit (nats for a cross-entropy).

    ``stderr``: the standard error, over noise draws for the average, over batches for the worst case (NaN for a single
    draw or batch). It includes the loss's resolution, the distance of two neighbouring floating-point numbers at the
    loss: a rise below it shows as 0 although it is not. ``converged``: for the average, stderr <= rtol * |estimate|;
    for the worst case, the last quarter of the steps raised the best value by at most 1 % of the rise.
    ``num_evaluations``: how often the loss was evaluated, for the average on all batches each time, for the worst case
    on one batch each time. ``stderr_images``: the standard error over other draws of as many images, from the rises of
    the batches (NaN for a single batch); for the average it includes ``stderr``.
    """

    estimate: float
    stderr: float
    converged: bool
    num_evaluations: int
    stderr_images: float = math.nan

    def _repr_html_(self) -> str:
        errors = {"standard error": self.stderr, "standard error over draws of images": self.stderr_images}
        known = {name: value for name, value in errors.items() if not math.isnan(value)}
        facts = {"rise of the loss": self.estimate, **known, "converged": self.converged}
        return card("Sharpness", facts | {"evaluations": self.num_evaluations})


def sharpness_avg(
    objective: Objective,
    theta: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    rho: float,
    seed: int,
    adaptive: bool = True,
    samples: int = 8,
    rtol: float = 0.05,
    base: Sequence[float] | None = None,
    noise: Noise = "gaussian",
) -> SharpnessEstimate:
    """E_batch E_delta [L(w + delta) - L(w)], delta ~ N(0, rho^2 diag(c^2)) on the named parameters only.

    With uniform noise, delta is uniform in the box |delta / c| <= rho, of which ``sharpness_max`` in the l-infinity
    ball is the worst case. Every draw is used with both signs (an antithetic pair), which cancels the first-order term
    <g, delta> exactly. For small rho the result approaches rho^2 / 2 * tr(diag(c) H diag(c)), with uniform noise rho^2
    / 6 times that trace. Where the objective is ``Cuttable``, the part of
    the forward pass before the layer is computed only once per batch.

    Args:
        objective, theta: the loss and the named tensors at which it is perturbed.
        names: the layer's parameters.
        rho: radius, > 0, in units of c. A larger radius perturbs more.
        seed: the seed of the noise.
        adaptive: c = |w|, which makes the result invariant to rescaling the parameters; False: c = 1.
        samples: number of noise draws, >= 1, each of which costs two evaluations per batch. Two or more give a
            standard error.
        rtol: tolerance for ``converged``: stderr <= rtol * |estimate|.
        base: the unperturbed loss of every batch; None: it is computed.
        noise: the distribution of delta / (rho c), gaussian (standard normal) or uniform (in [-1, 1]).

    Sources: Andriushchenko et al. 2023, arXiv 2302.07011; Kwon et al. 2021, arXiv 2102.11600 (adaptive).
    """
    flat = {n: theta[n].detach() for n in names}
    size = sum(w.nbytes for w in flat.values())
    kept = samples * size <= NOISE_SHARE * free_bytes(next(iter(flat.values())).device)

    @lru_cache(maxsize=samples if kept else 1)
    def drawn(s: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(derive(seed, "noise", s))
        return {n: _noise(w, rho, adaptive, noise, generator) for n, w in flat.items()}

    team = team_of(objective)
    batches = team.own(len(objective.weights))
    pairs = [(i, s) for i in batches for s in range(samples)]
    # Only the last batch's prefix is remembered, so that it is of no use where the batches change in every step.
    target = without_prefix(objective, theta, names) if kept else objective

    @torch.no_grad()
    def part() -> list[tuple[Tensor | float, Tensor]]:
        """(a batch's loss at delta = 0, its part of each draw's rise [samples]) for this process's batches."""
        starts = {i: objective.batch_loss(i, theta) if base is None else base[i] for i in batches}
        # kept on the device, so that no step waits for a transfer to the CPU
        rises: dict[int, list[Tensor | float]] = {i: [0.0] * samples for i in batches}
        for i, s in pairs if kept else sorted(pairs, key=itemgetter(1)):
            for sign in (1, -1):
                moved = {**theta, **{n: w + sign * drawn(s)[n] for n, w in flat.items()}}
                rise = objective.weights[i] * (target.batch_loss(i, moved).double() - starts[i]) / 2
                rises[i][s] = rises[i][s] + rise
        rows = [torch.stack([torch.as_tensor(r, dtype=torch.float64) for r in row]) for row in rises.values()]
        return list(zip(starts.values(), torch.stack(rows).cpu(), strict=True))

    starts, parts = zip(*(one for found in team.gather("rises", part) for one in found), strict=True)
    each = torch.stack(parts)
    values = each.sum(0)
    mean = float(values.mean())
    stderr = student(samples - 1) * float(values.std()) / math.sqrt(samples) if samples > 1 else math.nan
    stderr = math.hypot(stderr, _resolution(target, theta, names, starts, adaptive, moved=bool(each.any())))
    # The same noise moves all batches: what it does to their sum does not show in their spread.
    images = math.hypot(error_over_images(tuple(each.mean(1, keepdim=True)), objective.weights, None), stderr)
    return SharpnessEstimate(mean, stderr, stderr <= rtol * abs(mean), 2 * samples, images)


def without_prefix(objective: Objective, theta: Mapping[str, Tensor], names: Sequence[str]) -> Objective:
    """The objective for weights that differ from ``theta`` only in ``names``, in its cheaper form where it has one."""
    return objective.suffix(theta, names) if isinstance(objective, Cuttable) else objective


def _resolution(
    objective: Objective,
    theta: Mapping[str, Tensor],
    names: Sequence[str],
    starts: Sequence[Tensor | float],
    adaptive: bool,
    *,
    moved: bool,
) -> float:
    """The distance of two neighbouring floating-point numbers at the loss, the mean of ``starts`` [batches].

    0 where a rise of 0 is certain: no weight could be perturbed (c = 0), or the loss depends on none that could.
    ``moved``: whether any evaluation differed from its batch's start, which proves that the loss depends on them.
    """
    free = [n for n in names if not adaptive or theta[n].any()]
    if not moved and not any(
        team_of(objective).each("floor", len(objective.weights), lambda i: _depends(objective, i, theta, free))
    ):
        return 0.0
    eps = torch.finfo(theta[names[0]].dtype).eps
    return eps * sum(w * abs(float(start)) for w, start in zip(objective.weights, starts, strict=True))


def _depends(objective: Objective, i: int, theta: Mapping[str, Tensor], names: Sequence[str]) -> bool:
    """Whether batch i's loss is computed from any of the ``names``, according to autograd's graph."""
    own = {n: theta[n].detach().requires_grad_() for n in names}
    with torch.enable_grad():
        loss = objective.batch_loss(i, {**theta, **own})
    if not own or not loss.requires_grad:
        return False
    return any(g is not None for g in torch.autograd.grad(loss, list(own.values()), allow_unused=True))


def _noise(w: Tensor, rho: float, adaptive: bool, noise: Noise, generator: torch.Generator) -> Tensor:
    draw = uniform if noise == "uniform" else gaussian
    z = draw(w.shape, generator, device=w.device, dtype=w.dtype)
    return rho * (w.abs() * z if adaptive else z)


def sharpness_max(
    objective: Objective,
    theta: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    rho: float,
    norm: Norm = "linf",
    adaptive: bool = True,
    steps: int = 20,
    seed: int = 0,
    random_start: bool = False,
) -> SharpnessEstimate:
    """E_batch [ max_{||delta / c||_p <= rho} L(w + delta) - L(w) ] by Auto-PGD from delta = 0.

    The result is a lower bound of the maximum. The first step has length 2 rho, the momentum is 0.75. At each of the
    ``auto_pgd_checkpoints`` the step is halved and the search returns to the best delta so far, if fewer than 75 % of
    the steps since the last checkpoint raised the loss, or if neither the step nor the best value has changed since
    then. Where the gradient is exactly zero, as at a stationary point, the step goes in a random direction instead,
    because the search would never leave such a point. Zero weights have c = 0 and are not perturbed. All steps share
    the part of the forward pass before the layer, as in ``sharpness_avg``.

    Args:
        objective, theta: the loss and the named tensors at which it is perturbed.
        names: the layer's parameters.
        rho: radius, > 0, in units of c. A larger radius allows a larger rise.
        norm: the norm of the ball, linf | l2.
        adaptive: c = |w|, which makes the result invariant to rescaling the parameters; False: c = 1.
        steps: number of search steps, >= 1. More steps usually find a larger rise and cost one gradient per batch each.
        seed: the seed of the random directions at stationary points and of the random start.
        random_start: whether the search starts from a random point of the ball instead of delta = 0.

    Sources: Croce and Hein 2020, arXiv 2003.01690; Andriushchenko et al. 2023, arXiv 2302.07011.
    """
    target = without_prefix(objective, theta, names)
    w = torch.cat([theta[n].detach().reshape(-1) for n in names])
    c = w.abs() if adaptive else torch.ones_like(w)

    def search(i: int, generator: torch.Generator) -> Found:
        return auto_pgd(
            lambda delta: _loss_and_gradient(target, i, theta, names, w + delta),
            c, rho=rho, norm=norm, steps=steps, generator=generator, random_start=random_start,
        )  # fmt: skip

    def skip(generator: torch.Generator) -> None:
        if random_start:
            random_point(c, rho, norm, generator)

    found = searched(objective, search, skip, seed)
    return gathered(target, theta, names, found, evaluations=steps + 1 + random_start, adaptive=adaptive)


def _loss_and_gradient(
    objective: Objective, i: int, theta: Mapping[str, Tensor], names: Sequence[str], point: Tensor
) -> tuple[Tensor, Tensor]:
    """Batch i's loss and its gradient [p] where the named tensors have the entries ``point`` [p]."""
    point = point.requires_grad_()
    sizes = [theta[n].numel() for n in names]
    parts = {n: part.view(theta[n].shape) for n, part in zip(names, point.split(sizes), strict=True)}
    loss = objective.batch_loss(i, {**theta, **parts})
    if not loss.requires_grad:  # the loss does not depend on these parameters
        return loss, torch.zeros_like(point)
    (gradient,) = torch.autograd.grad(loss, point, allow_unused=True)
    return loss.detach(), torch.zeros_like(point) if gradient is None else gradient


def searched(
    objective: Objective,
    search: Callable[[int, torch.Generator], Found],
    skip: Callable[[torch.Generator], object],
    seed: int,
) -> list[Found]:
    """What ``search`` finds in every batch; the batches draw from one generator, one after the other.

    How much a batch draws is known only once it has been searched. A process of a team therefore takes it at first that
    every batch before its own draws what ``skip`` does, and searches again where that proves wrong.
    """
    team = team_of(objective)
    own = team.own(len(objective.weights))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(own.start):
        skip(generator)

    def from_state(state: Tensor) -> _Searched:
        generator.set_state(state)
        found = [search(i, generator) for i in own]
        return state, generator.get_state(), found

    heard = team.gather("a search", lambda: from_state(generator.get_state()))
    while wrong := [r for r in range(1, team.size) if not torch.equal(heard[r][0], heard[r - 1][1])]:
        mine, before = heard[team.rank], heard[team.rank - 1][1]

        def again(mine: _Searched = mine, before: Tensor = before) -> _Searched:
            if team.rank not in wrong:
                return mine
            drawn = not torch.equal(mine[0], mine[1])
            return from_state(before) if drawn else (before, before, mine[2])

        heard = team.gather("a search", again)
    return [one for *_, found in heard for one in found]


def gathered(
    objective: Objective,
    theta: Mapping[str, Tensor],
    names: Sequence[str],
    found: Sequence[Found],
    *,
    evaluations: int,
    adaptive: bool,
) -> SharpnessEstimate:
    """The mean over batches of what ``ascent.auto_pgd`` found in each, after ``evaluations`` of its loss."""
    starts, rises, settled = zip(*found, strict=True)
    weights = torch.tensor(list(objective.weights), dtype=torch.float64)
    values = torch.tensor(rises, dtype=torch.float64)
    mean = float((weights * values).sum())
    n = len(rises)
    stderr = math.sqrt(float((weights**2 * (values - mean) ** 2).sum()) * n / (n - 1)) if n > 1 else math.nan
    floor = _resolution(objective, theta, names, starts, adaptive, moved=bool(values.any()))
    stderr = math.hypot(stderr, floor)
    images = math.hypot(error_over_images(tuple((weights * values).view(-1, 1)), objective.weights, None), floor)
    return SharpnessEstimate(mean, stderr, all(settled) and math.isfinite(mean), n * evaluations, images)
