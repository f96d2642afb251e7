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
from sharpscope.curvature.images import added, by_batch, error_over_images

DRAWS = 60
MEASURES = ("hessian_trace", "weighted_trace", "ggn_trace", "fisher_trace", "lambda_max", "sharpness_avg", "sharpness_max")


class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(4, 5), nn.Linear(5, classes)
        self.scale = nn.Parameter(torch.tensor(1.5))  # used in no place of an image's own

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.high(torch.tanh(self.low(x)))


def images(seed: int, n: int, classes: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    size = torch.rand(n, 1, generator=g, dtype=torch.float64) ** -0.3  # some images weigh more than others
    return size * torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(0, classes, (n,), generator=g)


def measured(seed: int, *, n: int = 48, batch: int = 6, classes: int = 3, **how: Any) -> pd.DataFrame:
    x, y = images(seed, n, classes)
    table = layer_curvature(
        Small(classes).double(), lambda m, b: F.cross_entropy(m(b[0]), b[1]), list(zip(x.split(batch), y.split(batch), strict=True)),
        logits=lambda m, b: (m(b[0]), b[1]), seed=seed, **{"measures": MEASURES, "max_matvecs": 60, "pgd_steps": 5, **how},
    )  # fmt: skip
    return table.set_index(["layer", "measure"])


@pytest.fixture(scope="module")
def draws() -> list[pd.DataFrame]:
    return [measured(seed) for seed in range(DRAWS)]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("layer", ["low", "high", "(all)"])
def test_the_stated_error_is_the_spread_over_draws_of_images(draws: list[pd.DataFrame], layer: str, measure: str) -> None:
    rows = [table.loc[(layer, measure)] for table in draws]
    spread = np.std([r["estimate"] for r in rows], ddof=1)
    stated = math.sqrt(np.mean([r["stderr_images"] ** 2 for r in rows]))
    assert 0.75 <= stated / spread <= 1.35, (stated, spread)  # 60 draws know the spread to 9 %
    assert all(r["n"] == 48 for r in rows)
    if measure == "hessian_trace" and layer == "(all)":
        own = math.sqrt(np.mean([r["stderr"] ** 2 for r in rows]))
        assert own < 0.6 * spread  # what the table stated before says nothing of other images


def test_one_batch_is_enough_where_images_are_told_apart_and_says_so_where_not() -> None:
    table = measured(0, batch=48, measures=("hessian_trace", "lambda_max", "sharpness_avg", "gradient_curvature"))
    assert (table.loc[("low", "hessian_trace"), "stderr_images"]) > 0 and table.loc[("low", "hessian_trace"), "note"] == ""
    assert table.loc[("high", "lambda_max"), "stderr_images"] > 0
    for measure in ("sharpness_avg", "gradient_curvature"):
        assert math.isnan(table.loc[("low", measure), "stderr_images"]) and "no stderr_images" in table.loc[("low", measure), "note"]


def test_contributions_are_cut_added_and_weighed_by_hand() -> None:
    units = torch.tensor([1.0, 3.0, 5.0, 2.0], dtype=torch.float64)
    cut = by_batch(units, (2, 2), (2, 1))  # the second batch: one image and what the others share
    assert [c.tolist() for c in cut] == [[1.0, 3.0], [7.0]]
    assert [c.tolist() for c in added([cut, (torch.tensor([1.0]), torch.tensor([1.0]))])] == [[5.0], [8.0]]
    values = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64) / 4
    error = error_over_images((values[:3], values[3:]), (0.75, 0.25), (3, 1))
    assert error == pytest.approx(float((4 * values).std() / 2) * 3.18244630528 / 1.95996398454, rel=1e-9)
    assert math.isnan(error_over_images((torch.ones(1),), (1.0,), None))
