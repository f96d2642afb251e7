"""Law: ``stderr_images`` is the standard deviation over independent draws of images; ``stderr`` is not.

A small network, its images drawn again and again from one population: the stated error has to agree with the spread of
the estimates, for traces, eigenvalues and rises within a radius, and for a layer that all images share.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope import layer_curvature
from sharpscope.curvature.imageerrors import added, by_batch, error_over_images
from sharpscope.curvature.perturbation import sharpness_avg, sharpness_max

DRAWS = 32
MEASURES = ("hessian_trace", "weighted_trace", "ggn_trace", "fisher_trace", "lambda_max")


class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(4, 5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(torch.tanh(self.low(x)))


def images(seed: int, n: int, classes: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(n, 1, generator=g, dtype=torch.float64) ** -0.3  # some images weigh more than others
    shift = torch.tensor([2.0, 0, 0, 0], dtype=torch.float64)  # keeps the largest eigenvalue apart from the others
    return size * torch.randn(n, 4, generator=g, dtype=torch.float64) + shift, torch.randint(
        0, classes, (n,), generator=g
    )


def measured(seed: int, *, n: int = 48, batch: int = 48, classes: int = 3, **how: Any) -> pd.DataFrame:
    x, y = images(seed, n, classes)
    table = layer_curvature(
        Small(classes).double(), lambda m, b: F.cross_entropy(m(b[0]), b[1]),
        list(zip(x.split(batch), y.split(batch), strict=True)),
        logits=lambda m, b: (m(b[0]), b[1]), seed=seed,
        **{"measures": MEASURES, "max_matvecs": 20, "rtol": 0.1, "pgd_steps": 3, **how},
    )  # fmt: skip
    return table.set_index(["layer", "measure"])


@pytest.fixture(scope="module")
def draws() -> list[pd.DataFrame]:
    return [measured(seed) for seed in range(DRAWS)]


def test_the_error_over_images_holds_that_of_the_estimate(draws: list[pd.DataFrame]) -> None:
    rough = [measured(seed, n=6, rtol=0.9, max_matvecs=2) for seed in range(8)]  # few directions on few images
    for table in (*draws, *rough):
        rows = table[["stderr_images", "stderr"]].dropna()
        assert len(rows) >= 3
        assert (rows["stderr_images"] >= rows["stderr"]).all()


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("layer", ["low", "high", "(all)"])
def test_the_stated_error_is_the_spread_over_draws_of_images(
    draws: list[pd.DataFrame], layer: str, measure: str
) -> None:
    rows = [table.loc[(layer, measure)] for table in draws]
    spread = np.std([r["estimate"] for r in rows], ddof=1)
    stated = math.sqrt(np.mean([r["stderr_images"] ** 2 for r in rows]))
    assert 0.7 <= stated / spread <= 1.4, (stated, spread)  # 32 draws know the spread to 13 %
    assert all(r["n"] == 48 for r in rows)
    if measure == "hessian_trace" and layer == "(all)":
        own = math.sqrt(np.mean([r["stderr"] ** 2 for r in rows]))
        assert own < 0.6 * spread  # what the table stated before says nothing of other images


class Bowls:
    """The mean over images of a_j ||w||^2 / 2, in batches of 2."""

    def __init__(self, a: Tensor) -> None:
        self.parts = a.split(2)
        self.weights = [len(part) / len(a) for part in self.parts]

    def batch_loss(self, i: int, theta: dict[str, Tensor]) -> Tensor:
        return self.parts[i].mean() * theta["w"].square().sum() / 2


@pytest.mark.parametrize("worst", [False, True])
def test_so_is_that_of_a_rise_within_a_radius_from_its_batches(worst: bool) -> None:
    theta, found = {"w": torch.ones(30, dtype=torch.float64)}, []
    for seed in range(DRAWS):
        bowls = Bowls(-torch.rand(48, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64).log())
        found.append(
            sharpness_max(bowls, theta, ["w"], rho=0.1, steps=2)
            if worst
            else sharpness_avg(bowls, theta, ["w"], rho=0.3, seed=seed, samples=24)
        )
    spread = np.std([f.estimate for f in found], ddof=1)
    stated = math.sqrt(np.mean([f.stderr_images**2 for f in found]))
    assert 0.75 <= stated / spread <= 1.4, (stated, spread)  # Student's factor of 23 degrees of freedom is 1.06
    equal = sharpness_avg(Bowls(torch.ones(8, dtype=torch.float64)), theta, ["w"], rho=0.3, seed=0)
    assert equal.stderr_images == pytest.approx(equal.stderr) and equal.stderr > 0  # the noise moves all batches alike
    alone = sharpness_avg(Bowls(torch.ones(2, dtype=torch.float64)), theta, ["w"], rho=0.3, seed=0)
    assert math.isnan(alone.stderr_images)  # one batch


def test_one_batch_is_enough_where_images_are_told_apart_and_says_so_where_not() -> None:
    table = measured(0, batch=48, measures=("hessian_trace", "lambda_max", "sharpness_avg", "gradient_curvature"))
    trace = table.loc[("low", "hessian_trace")]
    assert trace["stderr_images"] > 0 and "stderr_images" not in trace["note"]
    assert table.loc[("high", "lambda_max"), "stderr_images"] > 0
    for measure in ("sharpness_avg", "gradient_curvature"):
        assert (
            math.isnan(table.loc[("low", measure), "stderr_images"])
            and "no stderr_images" in table.loc[("low", measure), "note"]
        )


def test_contributions_are_cut_added_and_weighed_by_hand() -> None:
    units = torch.tensor([1.0, 3.0, 5.0, 2.0], dtype=torch.float64)
    cut = by_batch(units, (2, 2), (2, 1))  # the second batch: one image and what the others share
    assert [c.tolist() for c in cut] == [[1.0, 3.0], [7.0]]
    assert [c.tolist() for c in added([cut, (torch.tensor([1.0]), torch.tensor([1.0]))])] == [[5.0], [8.0]]
    values = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64) / 4
    error = error_over_images((values[:3], values[3:]), (0.75, 0.25), (3, 1))
    assert error == pytest.approx(float((4 * values).std() / 2) * 3.18244630528 / 1.95996398454, rel=1e-9)
    # what random directions add to the spread is taken off, at most half of it
    variance = float((4 * values).var() / 4)
    for blur, left in ((0.25, 0.75), (0.9, 0.5)):
        less = error_over_images((values[:3], values[3:]), (0.75, 0.25), (3, 1), blur=blur * variance)
        assert less == pytest.approx(error * left**0.5, rel=1e-9)
    assert math.isnan(error_over_images((torch.ones(1),), (1.0,), None))
