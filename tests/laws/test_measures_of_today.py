"""Laws of newer measures: relative flatness, geodesic sharpness, uniform noise, normalised logits, random starts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.attention import attention_heads
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.ascent import auto_pgd
from sharpscope.curvature.geodesic import Geometry, sharpness_geodesic
from sharpscope.curvature.hessianoperator import HessianOperator
from sharpscope.curvature.hvp import BlockSpec
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.relative import NeuronWeighted
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.normalized import with_normalized_logits
from sharpscope.curvature.perturbation import sharpness_avg, sharpness_max
from sharpscope.errors import ConfigError, NumericalError
from sharpscope.layers import split_layers

Theta = dict[str, Tensor]
WIDTH, HEADS, TOKENS = 6, 2, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Attention(nn.Module):
    """Self-attention on a few tokens, then a head on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attn(x, x, x, need_weights=False)[0].mean(1))


NET = Attention().double().eval()
X, Y = draw(8, TOKENS, WIDTH, seed=5), torch.arange(8) % 3
THETA: Theta = {n: draw(*p.shape, seed=i) / 2 for i, (n, p) in enumerate(NET.named_parameters())}
ATTENTION = [n for n in THETA if n.startswith("attn.")]
PARTS = ("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight")


class Loss:
    """The cross-entropy of a function of (theta, x) in two batches of different size."""

    weights = (0.25, 0.75)
    rows = (slice(0, 2), slice(2, 8))

    def __init__(self, forward=lambda theta, x: torch.func.functional_call(NET, dict(theta), (x,)), x: Tensor = X):
        self.forward, self.x = forward, x

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return self.forward(theta, self.x[self.rows[i]])

    def batch_labels(self, i: int) -> Tensor:
        return Y[self.rows[i]]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.batch_labels(i))

    def attention_heads(self) -> dict[str, int]:
        return attention_heads(NET)


def mixed(theta: Theta, size: float = 1.0) -> Theta:
    """The same function: each head's queries and keys, values and output mixed by invertible matrices."""
    h = WIDTH // HEADS
    a, b = (torch.eye(h).double() + size * draw(HEADS, h, h, seed=s) for s in (21, 22))
    by = torch.stack([a, torch.linalg.inv(a).mT, b])
    rows = theta[PARTS[0]].view(3, HEADS, h, WIDTH)
    bias = theta[PARTS[1]].view(3, HEADS, h, 1)
    out = theta[PARTS[2]].view(WIDTH, HEADS, h)
    return theta | {
        PARTS[0]: (by @ rows).reshape(3 * WIDTH, WIDTH),
        PARTS[1]: (by @ bias).reshape(-1),
        PARTS[2]: torch.einsum("dnh,nhk->dnk", out, torch.linalg.inv(b)).reshape(WIDTH, WIDTH),
    }


def mlp(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    hidden = (x.flatten(1) @ theta["a.weight"].mT).relu()
    return (hidden @ theta["b.weight"].mT + theta["b.bias"]).relu() @ theta["c.weight"].mT


MLP: Theta = {
    "a.weight": draw(5, TOKENS * WIDTH, seed=1),
    "b.weight": draw(7, 5, seed=2),
    "b.bias": draw(7, seed=3),
    "c.weight": draw(3, 7, seed=4),
}  # fmt: skip


def flatness(objective: Loss, theta: Theta, names: list[str]) -> float:
    """Relative flatness exactly, from as many products as there are coordinates."""
    operator = HessianOperator(objective, theta, names)
    spec = BlockSpec(tuple(names), tuple(theta[n].shape for n in names))
    weighted = NeuronWeighted(operator, spec, spec.join([theta[n] for n in names]))
    return float(weighted.matmat(torch.eye(weighted.shape[0], dtype=torch.float64)).trace())


# ------------------------------------------------------------------ relative flatness
def test_relative_flatness_is_its_double_sum_over_neurons() -> None:
    for name in ("a.weight", "b.weight", "c.weight"):  # wider than high, higher than wide
        w = MLP[name]
        d, m = w.shape
        dense = HessianOperator(Loss(mlp), MLP, [name]).matmat(torch.eye(w.numel(), dtype=torch.float64))
        truth = torch.einsum("sa,ta,sjtj->", w, w, dense.view(d, m, d, m))
        assert flatness(Loss(mlp), MLP, [name]) == pytest.approx(float(truth), rel=1e-9)
    whole = flatness(Loss(mlp), MLP, list(MLP))  # matrices add up, biases count 0
    assert whole == pytest.approx(sum(flatness(Loss(mlp), MLP, [n]) for n in MLP if n != "b.bias"), rel=1e-9)


def test_relative_flatness_survives_rescaled_layers_and_neurons_and_mixed_heads() -> None:
    scale = draw(7, seed=9).exp()
    layerwise = MLP | {"a.weight": 3 * MLP["a.weight"], "b.weight": MLP["b.weight"] / 3}
    neuronwise = MLP | {
        "b.weight": scale[:, None] * MLP["b.weight"],
        "b.bias": scale * MLP["b.bias"],
        "c.weight": MLP["c.weight"] / scale,
    }  # fmt: skip
    for name, other in (("a.weight", layerwise), ("b.weight", layerwise), ("b.weight", neuronwise)):
        assert flatness(Loss(mlp), other, [name]) == pytest.approx(flatness(Loss(mlp), MLP, [name]), rel=1e-9)
    with second_order():
        one, two = (flatness(Loss(), t, [PARTS[0]]) for t in (THETA, mixed(THETA)))
    assert one == pytest.approx(two, rel=1e-8)


def test_relative_flatness_of_a_study_states_an_error_that_holds() -> None:
    layers = split_layers({n: t.shape for n, t in MLP.items()}, "module")
    for method in ("per_example", "hutchinson", "hutchpp"):
        settings = MeasureSettings(rtol=0.05, max_matvecs=400, trace_method=method)
        for row in measure_layers(Loss(mlp), MLP, layers, ["relative_flatness"], settings).rows:
            names = list(MLP) if row["layer"] == "(all)" else [n for n in MLP if n.startswith(row["layer"])]
            assert abs(row["estimate"] - flatness(Loss(mlp), MLP, names)) <= 4 * row["stderr"] + 1e-9
            assert row["converged"] and math.isnan(row["per_param"])


# ------------------------------------------------------------------ geodesic sharpness
def test_geodesic_sharpness_does_not_change_when_heads_are_mixed_and_adaptive_sharpness_does() -> None:
    other = mixed(THETA)
    with second_order():
        assert float(Loss().batch_loss(1, other)) == pytest.approx(float(Loss().batch_loss(1, THETA)), rel=1e-9)
        for rho in (0.01, 0.5):
            one, two = (
                sharpness_geodesic(Loss(), t, ATTENTION, rho=rho, heads=attention_heads(NET), steps=6)
                for t in (THETA, other)
            )
            assert one[0].estimate == pytest.approx(two[0].estimate, rel=1e-6) and one[1] == HEADS
        plain = [sharpness_max(Loss(), t, ATTENTION, rho=0.1, norm="l2", steps=6).estimate for t in (THETA, other)]
    assert plain[0] != pytest.approx(plain[1], rel=0.1)


def test_geodesic_sharpness_at_small_rho_is_rho_times_the_norm_of_the_riemannian_gradient() -> None:
    geometry = Geometry(THETA, ATTENTION, attention_heads(NET))
    u = torch.zeros(len(geometry.free), dtype=torch.float64, requires_grad=True)
    with second_order():
        here = [float(Loss().batch_loss(i, THETA | geometry.at(u.detach()))) for i in (0, 1)]
        assert here == pytest.approx([float(Loss().batch_loss(i, THETA)) for i in (0, 1)], rel=1e-12)  # exp(0) = w
        slope = 0.0
        for i, weight in enumerate(Loss.weights):
            (gradient,) = torch.autograd.grad(Loss().batch_loss(i, THETA | geometry.at(u)), u)
            # the loss does not change along a mixing, so that its gradient is horizontal by itself
            torch.testing.assert_close(geometry.horizontal(gradient), gradient, rtol=1e-8, atol=1e-12)
            slope += weight * float(gradient.norm())
        for rho in (1e-3, 1e-4):
            found = sharpness_geodesic(Loss(), THETA, ATTENTION, rho=rho, heads=attention_heads(NET), steps=4)[0]
            assert found.estimate == pytest.approx(rho * slope, rel=10 * rho)


def test_horizontal_is_an_orthogonal_projection_that_takes_the_mixings_out() -> None:
    geometry = Geometry(THETA, ATTENTION, attention_heads(NET))
    v = draw(len(geometry.free), seed=7)
    flat = geometry.horizontal(v)
    torch.testing.assert_close(geometry.horizontal(flat), flat)
    assert abs(float(flat @ (v - flat))) < 1e-9 * float(v @ v)
    # What was taken out does not change the function to first order: the rise falls faster than its length.
    away = (v - flat) / float((v - flat).norm())
    with second_order():
        start = float(Loss().batch_loss(1, THETA))
        rises = [abs(float(Loss().batch_loss(1, THETA | geometry.at(e * away))) - start) for e in (2e-2, 1e-2)]
        ahead = abs(float(Loss().batch_loss(1, THETA | geometry.at(1e-2 * flat / float(flat.norm())))) - start)
    assert rises[0] > 3 * rises[1] and rises[1] < 0.05 * ahead


def test_geodesics_of_a_factor_with_one_row_are_logarithmic_spirals_to_second_order() -> None:
    """With one row the metric is |df|^2 / |f|^2, flat in (log |f|, angle): its geodesics are spirals."""
    from sharpscope.curvature.geodesic import _Pair

    f, g = draw(1, 1, 2, seed=1), draw(1, 1, 3, seed=2)
    pair = _Pair.of(f, g)
    radial = f[0, 0] / f.norm()
    across = torch.stack([-radial[1], radial[0]])
    errors = []
    for size in (0.1, 0.05):
        a, b = 0.8 * size, -0.6 * size
        u = (a * radial + b * across).view(1, 1, 2)
        end = pair.along((u, torch.zeros_like(g)))[0][0, 0]
        truth = f.norm() * math.exp(a) * (math.cos(b) * radial + math.sin(b) * across)
        errors.append(float((end - truth).norm()))
    assert errors[0] < 1e-3 and errors[0] / errors[1] == pytest.approx(8, rel=0.1)


def test_without_attention_it_is_adaptive_l2_sharpness_up_to_second_order_and_never_changes_with_scales() -> None:
    names = list(MLP)
    gaps = []
    for rho in (0.02, 0.01):
        geodesic, heads = sharpness_geodesic(Loss(mlp), MLP, names, rho=rho, heads={})
        ball = sharpness_max(Loss(mlp), MLP, names, rho=rho, norm="l2")
        assert heads == 0
        gaps.append(abs(geodesic.estimate - ball.estimate) / rho)
    assert gaps[0] < 0.1 * ball.estimate / 0.01 and gaps[1] < 0.7 * gaps[0]
    scaled = MLP | {"a.weight": 4 * MLP["a.weight"], "b.weight": MLP["b.weight"] / 4}
    pair = [sharpness_geodesic(Loss(mlp), t, names, rho=0.2, heads={})[0].estimate for t in (MLP, scaled)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-9)
    with_zero = MLP | {"b.bias": torch.zeros(7).double()}
    assert sharpness_geodesic(Loss(mlp), with_zero, ["b.bias"], rho=0.2, heads={})[0].estimate == 0.0


def test_a_layer_with_a_part_of_an_attention_is_undefined_and_says_so() -> None:
    with pytest.raises(ConfigError, match="granularity module"):
        Geometry(THETA, PARTS[:1], attention_heads(NET))
    flat = THETA | {PARTS[0]: torch.zeros_like(THETA[PARTS[0]]), PARTS[1]: torch.zeros_like(THETA[PARTS[1]])}
    with pytest.raises(NumericalError, match="full rank"):
        Geometry(flat, ATTENTION, attention_heads(NET))
    few = MeasureSettings(pgd_steps=2)
    for granularity, status in (("tensor", "undefined"), ("module", "ok")):
        layers = split_layers({n: t.shape for n, t in THETA.items()}, granularity)
        rows = {r["layer"]: r for r in measure_layers(Loss(), THETA, layers, ["sharpness_geodesic"], few).rows}
        inner = rows["attn.in_proj_weight" if granularity == "tensor" else "attn"]
        assert inner["status"] in (status, "not_converged") and (status == "undefined") == math.isnan(inner["estimate"])
        assert ("divided out" in inner["note"]) == (status == "ok")
        assert "no nn.MultiheadAttention" in rows["out.weight" if granularity == "tensor" else "out"]["note"]


# ------------------------------------------------------------------ radii, noise, starts, logits
def test_uniform_noise_at_small_rho_is_a_sixth_of_rho_squared_times_the_weighted_trace() -> None:
    half, w = draw(30, 30, seed=3), draw(30, seed=8)
    h = half @ half.mT  # not diagonal, so that a noise whose mean is not 0 shows

    class Quadratic:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return 0.5 * theta["w"] @ h @ theta["w"]

    for adaptive in (True, False):
        c = w.abs() if adaptive else torch.ones(30, dtype=torch.float64)
        truth = 0.01**2 / 6 * float((c * h.diagonal() * c).sum())
        found = sharpness_avg(
            Quadratic(), {"w": w}, ["w"], rho=0.01, seed=0, adaptive=adaptive, samples=2000, noise="uniform"
        )
        assert abs(found.estimate - truth) < 4 * found.stderr and found.stderr < 0.1 * truth


def test_several_radii_in_one_run_are_the_single_runs() -> None:
    layers = split_layers({n: t.shape for n, t in MLP.items()}, "module")
    grid = ["sharpness_max@0.01", "sharpness_max@0.002", "sharpness_max", "sharpness_avg@0.2"]
    few = MeasureSettings(pgd_steps=3, noise_samples=2, rho_linf=0.002)
    rows = measure_layers(Loss(mlp), MLP, layers, grid, few).rows
    kinds = list(dict.fromkeys((r["measure"], r["rho"]) for r in rows))
    assert kinds == [
        ("sharpness_avg@0.2", 0.2), ("sharpness_max", 0.002),
        ("sharpness_max@0.002", 0.002), ("sharpness_max@0.01", 0.01),
    ]  # fmt: skip
    by = {(r["measure"], r["layer"]): r for r in rows}
    for layer in ("(all)", "a", "b", "c"):
        assert by["sharpness_max", layer]["estimate"] == by["sharpness_max@0.002", layer]["estimate"]
        assert by["sharpness_max@0.01", layer]["estimate"] > by["sharpness_max@0.002", layer]["estimate"]
    (alone,) = {
        r["estimate"]
        for r in measure_layers(
            Loss(mlp), MLP, layers, ["sharpness_max"], MeasureSettings(pgd_steps=3, rho_linf=0.01)
        ).rows
        if r["layer"] == "b"
    }
    assert alone == by["sharpness_max@0.01", "b"]["estimate"]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_random_start_finds_the_maximum_of_a_linear_loss_and_leaves_a_stationary_point(norm: str) -> None:
    g, c = draw(20), draw(20, seed=6).abs()
    c[3] = 0.0
    found = auto_pgd(
        lambda d: (d @ g, g), c, rho=0.3, norm=norm, steps=20, random_start=True,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    truth = 0.3 * float((c * g).norm() if norm == "l2" else (c * g).abs().sum())
    assert found[0] == 0.0 and found[1] == pytest.approx(truth, rel=1e-9)
    seen: list[Tensor] = []
    auto_pgd(
        lambda d: (seen.append(d), (torch.zeros(()), torch.zeros_like(d)))[1], c, rho=0.3, norm=norm, steps=1,
        random_start=True, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    ratio = torch.where(c > 0, seen[1] / c.clamp_min(1e-30), 0.0)
    length = float(ratio.norm() if norm == "l2" else ratio.abs().max())
    assert not seen[0].any() and seen[1][3] == 0 and 0.2 < length <= 0.3 + 1e-12


def test_normalised_logits_do_not_know_the_scale_of_the_head() -> None:
    louder = MLP | {"c.weight": 5 * MLP["c.weight"]}
    normal = with_normalized_logits(Loss(mlp))
    f = Loss(mlp).batch_logits(1, MLP)
    f = f - f.mean(1, keepdim=True)
    truth = F.cross_entropy(f / f.norm(dim=1, keepdim=True), Y[2:])
    assert float(normal.batch_loss(1, MLP)) == pytest.approx(float(truth), rel=1e-12)
    layers = split_layers({n: t.shape for n, t in MLP.items()}, "module")
    for on in (True, False):
        settings = MeasureSettings(pgd_steps=3, noise_samples=2, normalize_logits=on)
        both = [
            measure_layers(Loss(mlp), t, layers, ["sharpness_avg", "sharpness_max"], settings).rows
            for t in (MLP, louder)
        ]
        for one, two in zip(*both, strict=True):
            assert (one["estimate"] == pytest.approx(two["estimate"], rel=1e-6)) == on
            assert ("loss of normalised logits" in one["note"]) == on

    class Bare:
        weights = (1.0,)
        batch_loss = Loss.batch_loss

    with pytest.raises(ConfigError, match="normalize_logits"):
        with_normalized_logits(Bare())
