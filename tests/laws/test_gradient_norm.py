"""Laws of the gradient's norm: autograd's own, the root of the layers' squares, and its error over draws of images."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.imageerrors import error_over_images
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.layers import split_layers

NET = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
SHAPES = {n: tuple(p.shape) for n, p in NET.named_parameters()}
LAYERS = split_layers(SHAPES, "module")


def theta() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    return {n: torch.randn(*s, generator=g, dtype=torch.float64) / 2 for n, s in SHAPES.items()}


class Loss:
    """Cross-entropy on images x [n, 4], in two batches of different size."""

    def __init__(self, n: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(n, 4, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)
        cut = n // 4
        self.parts = ((x[:cut], y[:cut]), (x[cut:], y[cut:]))
        self.batch_sizes = (cut, n - cut)
        self.weights = (cut / n, 1 - cut / n)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(NET, dict(theta), (self.parts[i][0],))

    def batch_labels(self, i: int) -> Tensor:
        return self.parts[i][1]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.batch_labels(i))


def image_gradients(work: Loss) -> list[dict[str, Tensor]]:
    """The gradient of every image's own loss, one image at a time."""
    out = []
    for x, y in work.parts:
        for j in range(len(x)):
            params = {n: t.clone().requires_grad_() for n, t in theta().items()}
            loss = F.cross_entropy(torch.func.functional_call(NET, params, (x[j : j + 1],)), y[j : j + 1])
            out.append(dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)))
    return out


def test_the_norm_and_its_error_are_those_of_the_images_own_gradients() -> None:
    work = Loss(24, seed=0)
    each = image_gradients(work)
    rows = {r["layer"]: r for r in measure_layers(work, theta(), LAYERS, ("gradient_norm",)).rows}
    blocks = {x.name: x.params for x in LAYERS} | {"(all)": tuple(SHAPES)}
    assert set(rows) == set(blocks)
    for layer, names in blocks.items():
        g = torch.stack([torch.cat([one[n].flatten() for n in names]) for one in each])
        norm, row = float(g.mean(0).norm()), rows[layer]
        assert row["estimate"] == pytest.approx(norm, rel=1e-10) and row["stderr"] == 0 and row["n"] == 24
        assert row["status"] == "ok" and row["num_matvecs"] == 0 and row["converged"]
        slopes = (g @ g.mean(0)) / norm / 24  # what every image adds to the norm
        want = error_over_images((slopes[:6], slopes[6:]), work.weights, work.batch_sizes)
        assert row["stderr_images"] == pytest.approx(want, rel=1e-3) and want > 0
        assert row["share"] == pytest.approx(norm / rows["(all)"]["estimate"]) and math.isnan(row["per_param"])
    apart = [rows[x.name]["estimate"] for x in LAYERS]
    assert rows["(all)"]["estimate"] == pytest.approx(math.hypot(*apart), rel=1e-12)


def test_the_error_is_the_spread_over_draws_of_images() -> None:
    found = [measure_layers(Loss(64, seed=s), theta(), LAYERS, ("gradient_norm",)).rows[0] for s in range(100, 220)]
    spread = torch.tensor([r["estimate"] for r in found]).std()
    assert 0.8 < torch.tensor([r["stderr_images"] for r in found]).mean() / spread < 1.25


def test_a_layer_without_gradient_has_the_norm_zero_and_no_error() -> None:
    class Half(Loss):
        def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            fixed = {n: t.detach() if n.startswith("0.") else t for n, t in theta.items()}
            return super().batch_logits(i, fixed)

    rows = {r["layer"]: r for r in measure_layers(Half(16, seed=0), theta(), LAYERS, ("gradient_norm",)).rows}
    still = rows[LAYERS[0].name]
    assert still["estimate"] == 0 and math.isnan(still["stderr_images"]) and "the gradient is zero" in still["note"]
    assert rows["(all)"]["estimate"] == rows[LAYERS[1].name]["estimate"] > 0


def test_a_gradient_that_is_not_finite_fails_and_says_so() -> None:
    bad = theta() | {"2.bias": torch.full((3,), math.inf, dtype=torch.float64)}
    rows = measure_layers(Loss(16, seed=0), bad, LAYERS, ("gradient_norm",)).rows
    assert {r["status"] for r in rows} == {"failed"} and all("not finite" in r["note"] for r in rows)
