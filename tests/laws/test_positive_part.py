"""Gauss-Newton and Fisher: closed forms, identities between them, and what the Hessian adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.ggn import Fisher, GaussNewton, Residual, fisher_trace, ggn_trace
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.layers import split_layers


@dataclass
class Classification:
    """Cross-entropy of a module over ragged batches; can be cut into others."""

    net: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]

    @property
    def weights(self) -> list[float]:
        n = [len(y) for _, y in self.batches]
        return [k / sum(n) for k in n]

    @property
    def batch_size(self) -> int:
        return max(len(y) for _, y in self.batches)

    def rebatched(self, size: int) -> Classification:
        parts = [p for x, y in self.batches for p in zip(x.split(size), y.split(size), strict=True)]
        return Classification(self.net, parts)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.net, dict(theta), (self.batches[i][0],))

    def batch_labels(self, i: int) -> Tensor:
        return self.batches[i][1]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.batches[i][1])


class Uncut:
    """The same without the right to be cut."""

    def __init__(self, inner: Classification) -> None:
        self.weights, self.batch_loss = inner.weights, inner.batch_loss
        self.batch_logits, self.batch_labels = inner.batch_logits, inner.batch_labels


def problem(net: nn.Module, n: int = 10, classes: int = 3, seed: int = 0) -> tuple[Classification, dict[str, Tensor]]:
    gen = torch.Generator().manual_seed(seed)
    theta = {k: 0.7 * torch.randn(p.shape, generator=gen, dtype=torch.float64) for k, p in net.named_parameters()}
    x = torch.randn(n, 4, generator=gen, dtype=torch.float64)
    y = torch.randint(0, classes, (n,), generator=gen)
    return Classification(net, [(x[:7], y[:7]), (x[7:], y[7:])]), theta


@pytest.fixture
def curved() -> tuple[Classification, dict[str, Tensor]]:
    return problem(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 3)))


def blocks_of(theta: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    return {"(all)": tuple(theta), "first": ("0.weight", "0.bias"), "last": ("3.weight", "3.bias")}


def dense(objective: object, theta: Mapping[str, Tensor], names: Sequence[str], **how: object) -> Tensor:
    engine = HessianEngine(objective, theta, {"b": names}, **how)
    return engine.operator("b").matmat(torch.eye(engine.blocks["b"].size, dtype=torch.float64))


def jacobian_form(objective: Classification, theta: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """sum_j w_j J_j' (diag p_j - p_j p_j') J_j from Jacobians, written out."""
    out = torch.zeros((), dtype=torch.float64)
    leaves = {n: theta[n].clone().requires_grad_() for n in names}
    for i, weight in enumerate(objective.weights):
        logits = objective.batch_logits(i, {**theta, **leaves})
        p = logits.detach().softmax(1)
        for j in range(len(p)):
            rows = [torch.autograd.grad(z, list(leaves.values()), retain_graph=True) for z in logits[j]]
            jac = torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])
            out = out + weight / len(p) * jac.mT @ (torch.diag(p[j]) - torch.outer(p[j], p[j])) @ jac
    return out


def test_gauss_newton_is_the_jacobian_form_and_the_hessian_is_it_plus_the_residual(curved) -> None:
    objective, theta = curved
    for names in blocks_of(theta).values():
        truth = jacobian_form(objective, theta, names)
        found = dense(GaussNewton(objective), theta, names)
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-13)
        assert torch.linalg.eigvalsh(found)[0] > -1e-12
        rest = dense(Residual(objective), theta, names)
        torch.testing.assert_close(found + rest, dense(objective, theta, names), rtol=1e-10, atol=1e-12)
        assert (rest.norm() > 1e-3) == (names != ("3.weight", "3.bias"))  # the logits are linear in the last layer


def test_a_network_linear_in_its_parameters_has_its_gauss_newton_as_hessian() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, 8, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.sin(), x.cos()], dim=1) @ self.w.mT

    objective, theta = problem(Features())
    h, g = dense(objective, theta, ["w"]), dense(GaussNewton(objective), theta, ["w"])
    torch.testing.assert_close(h, g, rtol=1e-11, atol=1e-13)
    assert dense(Residual(objective), theta, ["w"]).abs().max() < 1e-14


def test_fisher_is_gauss_newton_in_expectation_and_empirical_fisher_is_not(curved) -> None:
    objective, theta = curved
    names = list(theta)
    g = dense(GaussNewton(objective), theta, names)
    torch.testing.assert_close(dense(Fisher(objective), theta, names), g, rtol=1e-12, atol=1e-14)
    draws = torch.stack([dense(Fisher(objective, samples=200, seed=s), theta, names) for s in range(12)])
    mean, stderr = draws.mean(0), draws.std(0) / 12**0.5
    assert ((mean - g).abs() <= 6 * stderr + 1e-12).all() and stderr.norm() < 0.05 * g.norm()
    gradients = []
    for j in range(10):
        leaves = {n: theta[n].clone().requires_grad_() for n in names}
        loss = objective.rebatched(1).batch_loss(j, leaves)
        gradients.append(torch.cat([x.reshape(-1) for x in torch.autograd.grad(loss, list(leaves.values()))]))
    truth = torch.stack(gradients).mT @ torch.stack(gradients) / 10
    empirical = dense(Fisher(objective, empirical=True), theta, names)
    torch.testing.assert_close(empirical, truth, rtol=1e-11, atol=1e-13)
    assert (empirical - g).norm() > 0.1 * g.norm()


def test_softmax_regression_has_a_kronecker_gauss_newton() -> None:
    objective, theta = problem(nn.Linear(4, 3, bias=False))
    x = torch.cat([b[0] for b in objective.batches])
    p = (x @ theta["weight"].mT).softmax(1)
    truth = (
        sum(torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(a, a)) for q, a in zip(p, x, strict=True)) / 10
    )
    torch.testing.assert_close(dense(GaussNewton(objective), theta, ["weight"]), truth, rtol=1e-12, atol=1e-14)


# ------------------------------------------------------------------ traces without taps: this loss names no examples
@pytest.mark.parametrize("estimate", [ggn_trace, fisher_trace])
def test_traces_are_exact_for_few_classes_and_sampled_with_their_error_else(curved, estimate) -> None:
    objective, theta = curved
    blocks = blocks_of(theta)
    truth = {x: float(jacobian_form(objective, theta, names).trace()) for x, names in blocks.items()}
    exact = estimate(objective, theta, blocks, seed=0, rtol=0.01, max_probes=1000)
    sampled = estimate(Uncut(objective), theta, blocks, seed=0, rtol=0.03, max_probes=3000)
    for layer, value in truth.items():
        assert exact[layer].estimate == pytest.approx(value, rel=1e-10)
        assert (exact[layer].stderr, exact[layer].converged) == (0.0, True)
        assert 2 + 3 <= exact[layer].num_matvecs <= 16 + 3  # some to see that it would take more, then three columns
        assert 0 < abs(sampled[layer].estimate - value) <= 4 * sampled[layer].stderr
        assert sampled[layer].stderr < 0.05 * value and sampled[layer].num_matvecs > 100
    few = estimate(objective, theta, blocks, seed=0, rtol=0.01, max_probes=9)  # dearer than all that may be spent
    assert few["first"].stderr > 0 and not few["first"].converged and few["first"].num_matvecs == 9


def test_fisher_trace_states_an_interval_that_holds_over_200_seeds() -> None:
    objective, theta = problem(nn.Linear(4, 3, bias=False), n=20)
    truth = float(dense(GaussNewton(objective), theta, ["weight"]).trace())
    hits = 0
    for seed in range(200):
        found = fisher_trace(Uncut(objective), theta, {"w": ["weight"]}, seed=seed, max_probes=60, rtol=0.1, pilot=16)[
            "w"
        ]
        hits += abs(found.estimate - truth) <= 2 * found.stderr
    assert hits >= 180, hits


# ------------------------------------------------------------------ in the registry
def test_measures_of_the_positive_part_and_along_the_gradient(curved) -> None:
    objective, theta = curved
    layers = split_layers({n: t.shape for n, t in theta.items()}, "module")
    wanted = ("ggn_trace", "fisher_trace", "gradient_curvature", "gradient_alignment")
    rows = measure_layers(objective, theta, layers, wanted, MeasureSettings(rtol=0.001, max_matvecs=5000)).rows
    table = {(r["layer"], r["measure"]): r for r in rows}
    assert len(table) == 4 * (len(layers) + 1)
    for name, params in {"(all)": list(theta), **{x.name: list(x.params) for x in layers}}.items():
        leaves = {n: theta[n].clone().requires_grad_() for n in params}
        loss = sum(w * objective.batch_loss(i, {**theta, **leaves}) for i, w in enumerate(objective.weights))
        g = torch.cat([x.reshape(-1) for x in torch.autograd.grad(loss, list(leaves.values()))])
        hg = dense(objective, theta, params) @ g
        assert table[name, "gradient_curvature"]["estimate"] == pytest.approx(float(g @ hg / (g @ g)), rel=1e-9)
        cosine = float(g @ hg / (g.norm() * hg.norm()))
        assert table[name, "gradient_alignment"]["estimate"] == pytest.approx(cosine, rel=1e-9)
        assert -1 <= cosine <= 1 and table[name, "gradient_alignment"]["num_matvecs"] == 1
        for measure in ("ggn_trace", "fisher_trace"):
            value = float(jacobian_form(objective, theta, params).trace())
            assert table[name, measure]["estimate"] == pytest.approx(value, rel=1e-9)


def test_along_a_zero_gradient_there_is_no_curvature_to_speak_of() -> None:
    class Bowl:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return theta["a.weight"].square().sum() + (theta["b.weight"] * torch.ones(2, dtype=torch.float64)).sum()

    theta = {"a.weight": torch.zeros(2, dtype=torch.float64), "b.weight": torch.ones(2, dtype=torch.float64)}
    layers = split_layers({n: t.shape for n, t in theta.items()}, "module")
    rows = measure_layers(Bowl(), theta, layers, ("gradient_curvature", "gradient_alignment")).rows
    found = {(r["layer"], r["measure"]): r for r in rows}
    for measure in ("gradient_curvature", "gradient_alignment"):
        assert found["a", measure]["status"] == "undefined" and "zero" in found["a", measure]["note"]
        assert found["b", measure]["estimate"] == 0.0 and found["b", measure]["status"] == "ok"  # linear: no curvature
