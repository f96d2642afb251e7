"""Law: where a loss is flat, or flat to the last bit, a rise of 0 is stated only after a search, or with an error."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sharpscope.curvature.perturbation import sharpness_avg, sharpness_max

Theta = dict[str, Tensor]
WEIGHTS = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)


class Function:
    """The same loss in two batches."""

    weights = (0.25, 0.75)

    def __init__(self, loss: Callable[[Theta], Tensor]) -> None:
        self.loss = loss

    def batch_loss(self, i: int, theta: Theta) -> Tensor:
        return self.loss(theta)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_worst_case_around_a_minimum_is_found_though_the_gradient_there_is_zero(norm: str) -> None:
    bowl = Function(lambda t: (t["w"] - WEIGHTS).square().sum() / 2)
    found = sharpness_max(bowl, {"w": WEIGHTS.clone()}, ["w"], rho=0.1, norm=norm, adaptive=False, steps=20)  # type: ignore[arg-type]
    assert found.estimate == pytest.approx(0.1**2 / 2 * (1 if norm == "l2" else 4), rel=1e-9) and found.converged
    again, other = (sharpness_max(bowl, {"w": WEIGHTS}, ["w"], rho=0.1, norm="l2", seed=s) for s in (0, 1))
    assert again == sharpness_max(bowl, {"w": WEIGHTS}, ["w"], rho=0.1, norm="l2", seed=0) and again != other


def test_around_a_saddle_the_search_leaves_along_a_direction_that_rises() -> None:
    curvatures = torch.tensor([3.0, -5.0, -4.0, -2.0], dtype=torch.float64)
    saddle = Function(lambda t: (curvatures * (t["w"] - WEIGHTS).square()).sum() / 2)
    found = sharpness_max(saddle, {"w": WEIGHTS}, ["w"], rho=0.1, norm="l2", adaptive=False, steps=100)
    assert found.estimate == pytest.approx(3 * 0.1**2 / 2, rel=0.02)


def test_around_a_maximum_nothing_rises_and_the_search_ends_there() -> None:
    hill = Function(lambda t: -(t["w"] - WEIGHTS).square().sum() / 2)
    found = sharpness_max(hill, {"w": WEIGHTS}, ["w"], rho=0.1, norm="l2", adaptive=False)
    assert found.estimate == 0 and found.converged


def test_a_rise_below_the_losses_resolution_is_no_certain_zero() -> None:
    flat = Function(lambda t: 3 + 1e-10 * t["w"].square().sum())
    theta = {"w": WEIGHTS.float()}
    spacing = 3 * torch.finfo(torch.float32).eps
    for found in (
        sharpness_avg(flat, theta, ["w"], rho=0.1, seed=0),
        sharpness_max(flat, theta, ["w"], rho=0.1),
    ):
        assert found.estimate == 0 and found.stderr == pytest.approx(spacing) and found.stderr_images >= found.stderr
    assert not sharpness_avg(flat, theta, ["w"], rho=0.1, seed=0).converged
    truth = 1e-10 * 0.1**2 * float(WEIGHTS.square().sum())
    fine = sharpness_avg(flat, {"w": WEIGHTS}, ["w"], rho=0.1, seed=0, samples=400)
    assert abs(fine.estimate - truth) <= 1.96 * fine.stderr and fine.stderr < 0.5 * truth  # float64 resolves it


@pytest.mark.parametrize("why", ["the loss does not depend on it", "no weight moves"])
def test_a_rise_that_is_zero_for_certain_is_stated_without_an_error(why: str) -> None:
    if why == "no weight moves":  # |w| = 0
        loss, theta = Function(lambda t: 3 + t["w"].sum()), {"w": torch.zeros(4)}
    else:
        loss, theta = Function(lambda t: t["v"].sum()), {"w": torch.ones(4), "v": torch.ones(1, requires_grad=True)}
    for found in (sharpness_avg(loss, theta, ["w"], rho=0.1, seed=0), sharpness_max(loss, theta, ["w"], rho=0.1)):
        assert (found.estimate, found.stderr, found.converged) == (0, 0, True)
        assert not math.isnan(found.stderr_images) and found.stderr_images == 0
