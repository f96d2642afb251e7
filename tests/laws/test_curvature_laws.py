"""What the curvature of a loss must be, whatever computes it: closed forms, finite differences, invariances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.ascent import project
from sharpscope.curvature.density import spectral_density
from sharpscope.curvature.eigen import lanczos
from sharpscope.curvature.ggn import ggn_trace
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import DenseOperator, FunctionOperator, check_symmetric, solve, solve_together
from sharpscope.curvature.perturbation import sharpness_avg, sharpness_max
from sharpscope.curvature.power import power_iteration
from sharpscope.curvature.trace import hutchinson, hutchinson_steps, hutchpp, scaled, xtrace, xtrace_steps
from sharpscope.errors import NumericalError
from sharpscope.layers import split_layers


@dataclass
class Batched:
    """A cross-entropy (or any) loss of ``forward(theta, x)`` over batches of unequal size."""

    forward: object
    batches: Sequence[tuple[Tensor, Tensor]]
    loss: object = F.cross_entropy

    @property
    def weights(self) -> list[float]:
        n = [len(x) for x, _ in self.batches]
        return [k / sum(n) for k in n]

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return self.forward(theta, self.batches[i][0])

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return self.loss(self.batch_logits(i, theta), self.batches[i][1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def dense(engine: HessianEngine, layer: str) -> Tensor:
    return engine.operator(layer).matmat(torch.eye(engine.blocks[layer].size, dtype=engine.dtype))


def spectrum(values: Sequence[float], seed: int = 3) -> DenseOperator:
    """A symmetric matrix with the given eigenvalues in a random basis."""
    n = len(values)
    q, _ = torch.linalg.qr(draw(n, n, seed=seed))
    return DenseOperator(q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.mT)


# ------------------------------------------------------------------ closed forms
def test_linear_regression_hessian_is_2_xtx_over_n_with_ragged_batches() -> None:
    x, y = draw(10, 4), draw(10, seed=5)
    objective = Batched(lambda t, a: a @ t["w"], [(x[:8], y[:8]), (x[8:], y[8:])], F.mse_loss)
    engine = HessianEngine(objective, {"w": draw(4, seed=9)}, {"w": ["w"]})
    torch.testing.assert_close(dense(engine, "w"), 2 * x.mT @ x / 10, rtol=1e-12, atol=1e-12)


def test_logistic_regression_hessian_is_x_s_x_over_n() -> None:
    x, y, w = draw(12, 3), labels(12, 2).double(), draw(3, seed=2)
    objective = Batched(lambda t, a: a @ t["w"], [(x, y)], F.binary_cross_entropy_with_logits)
    s = torch.sigmoid(x @ w)
    engine = HessianEngine(objective, {"w": w}, {"w": ["w"]})
    torch.testing.assert_close(dense(engine, "w"), x.mT @ (x * (s * (1 - s))[:, None]) / 12, rtol=1e-12, atol=1e-12)


def test_softmax_regression_hessian_is_a_mean_of_kronecker_products_and_equals_its_ggn() -> None:
    x, y, w = draw(9, 3), labels(9, 4), draw(4, 3, seed=2)
    objective = Batched(lambda t, a: a @ t["w"].mT, [(x[:5], y[:5]), (x[5:], y[5:])])
    p = (x @ w.mT).softmax(1)
    truth = sum(torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(a, a)) for q, a in zip(p, x, strict=True)) / 9
    engine = HessianEngine(objective, {"w": w}, {"w": ["w"]})
    torch.testing.assert_close(dense(engine, "w"), truth, rtol=1e-12, atol=1e-12)
    estimate = ggn_trace(objective, {"w": w}, {"w": ["w"]}, seed=0, rtol=0.01, max_probes=4000)["w"]
    assert estimate.converged and estimate.stderr > 0
    assert abs(estimate.estimate - truth.trace()) < 4 * estimate.stderr


def test_a_linear_loss_has_zero_hessian_and_says_so_exactly() -> None:
    objective = Batched(lambda t, a: a @ t["w"], [(draw(6, 3), draw(6))], lambda z, y: (z * y).mean())
    engine = HessianEngine(objective, {"w": draw(3), "idle": draw(2)}, {"w": ["w"], "both": ["w", "idle"]})
    operator = engine.operator("both")
    ends = lanczos(operator, seed=0)
    assert engine.unused == ("idle",)
    assert (ends.largest.value, ends.largest.residual, ends.largest.converged) == (0.0, 0.0, True)
    trace = hutchinson(operator, seed=0)
    assert (trace.estimate, trace.stderr, trace.converged) == (0.0, 0.0, True)


# ------------------------------------------------------------------ a real CLIP, layer norms included
@pytest.fixture(scope="module")
def tiny_clip() -> tuple[Batched, dict[str, Tensor]]:
    torch.set_num_threads(1)
    model = ClipModel.load("mini")
    theta = {k: (v.double() if v.is_floating_point() else v) for k, v in model.init(0).items()}
    gen = torch.Generator().manual_seed(7)
    for k, v in theta.items():  # layer norms away from (1, 0), where mistakes would hide
        if "ln_" in k:
            theta[k] = v + 0.3 * torch.randn(v.shape, generator=gen, dtype=v.dtype)
    theta["head.weight"] = F.normalize(draw(5, 64, seed=4), dim=1)
    images = torch.rand(6, 3, 32, 32, generator=gen, dtype=torch.float64) * 2 - 1
    y = labels(6, 5)

    def forward(t: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return 14.0 * model.encode_image(t, x, normalize=True) @ t["head.weight"].mT

    keep = {k: v for k, v in theta.items() if k.startswith(("visual.", "head."))}
    return Batched(forward, [(images[:4], y[:4]), (images[4:], y[4:])]), keep


def test_engine_agrees_with_central_differences_of_the_gradient_for_every_tensor(tiny_clip) -> None:
    objective, theta = tiny_clip
    blocks = {x.name: x.params for x in split_layers({k: v.shape for k, v in theta.items()}, "tensor")}
    step = 1e-5
    with second_order():
        engine = HessianEngine(objective, theta, blocks)
        for i, (layer, spec) in enumerate(engine.blocks.items()):
            v = draw(spec.size, seed=i)
            v = v / v.norm()
            sides = []
            for sign in (1, -1):
                moved = theta | {n: theta[n] + sign * step * p for n, p in zip(spec.names, spec.split(v), strict=True)}
                leaves = {n: moved[n].clone().requires_grad_() for n in spec.names}
                loss = sum(w * objective.batch_loss(b, moved | leaves) for b, w in enumerate(objective.weights))
                sides.append(spec.join(torch.autograd.grad(loss, list(leaves.values()))))
            slope = (sides[0] - sides[1]) / (2 * step)
            product = engine.operator(layer).matvec(v)
            scale = max(product.norm().item(), 1e-3)
            assert (product - slope).norm() / scale < 1e-6, layer


def test_engine_agrees_with_the_dense_block_hessian(tiny_clip) -> None:
    objective, theta = tiny_clip
    names = ["visual.ln_post.weight", "visual.ln_post.bias", "visual.transformer.resblocks.3.ln_2.weight"]
    leaves = [theta[n].clone().requires_grad_() for n in names]
    with second_order():
        moved = theta | dict(zip(names, leaves, strict=True))
        loss = sum(w * objective.batch_loss(b, moved) for b, w in enumerate(objective.weights))
        grads = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves, create_graph=True)])
        truth = torch.stack(
            [torch.cat([r.reshape(-1) for r in torch.autograd.grad(g, leaves, retain_graph=True)]) for g in grads]
        )
        engine = HessianEngine(objective, theta, {"block": names})
        product = dense(engine, "block")
        torch.testing.assert_close(product, truth, rtol=1e-9, atol=1e-11)
        eigenvalues = torch.linalg.eigvalsh(truth)
        ends = lanczos(engine.operator("block"), seed=0, rtol=1e-8)
        trace = hutchinson(engine.operator("block"), seed=0, rtol=1e-6, max_matvecs=10_000)
    assert ends.largest.value == pytest.approx(eigenvalues[-1].item(), rel=1e-6)
    assert ends.smallest.value == pytest.approx(eigenvalues[0].item(), rel=1e-6)
    assert trace.stderr == 0 and trace.estimate == pytest.approx(eigenvalues.sum().item(), rel=1e-9)


def test_hessian_is_symmetric_and_blocks_are_blocks_of_the_whole(tiny_clip) -> None:
    objective, theta = tiny_clip
    layers = split_layers({k: v.shape for k, v in theta.items()}, "block")
    everything = [n for x in layers for n in x.params]
    with second_order():
        engine = HessianEngine(objective, theta, {"(all)": everything} | {x.name: x.params for x in layers})
        assert check_symmetric(engine.operator("(all)"), torch.Generator().manual_seed(0)) < 1e-12
        layer = layers[2]
        spec, whole = engine.blocks[layer.name], engine.blocks["(all)"]
        v = draw(spec.size)
        padded = dict(zip(spec.names, spec.split(v), strict=True))
        full = whole.join(
            [padded.get(n, torch.zeros(s)).double() for n, s in zip(whole.names, whole.shapes, strict=True)]
        )
        product = dict(zip(whole.names, whole.split(engine.operator("(all)").matvec(full)), strict=True))
        torch.testing.assert_close(
            engine.operator(layer.name).matvec(v), spec.join([product[n] for n in spec.names]), rtol=1e-9, atol=1e-12
        )


def test_hessian_does_not_depend_on_batch_size_batch_order_or_memory(tiny_clip) -> None:
    objective, theta = tiny_clip
    x = torch.cat([b[0] for b in objective.batches])
    y = torch.cat([b[1] for b in objective.batches])
    one = Batched(objective.forward, [(x, y)])
    turned = Batched(objective.forward, list(reversed(objective.batches)))
    names = [n for n in theta if "resblocks.1" in n]
    with second_order():
        engines = [HessianEngine(o, theta, {"b": names}) for o in (objective, one, turned)]
        rebuilt = HessianEngine(objective, theta, {"b": names}, memory=-1)
        v = draw(engines[0].blocks["b"].size)
        first, *others = [e.operator("b").matvec(v) for e in engines]
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-10, atol=1e-12)
        assert not rebuilt.kept and engines[0].kept
        assert torch.equal(rebuilt.operator("b").matvec(v), first)
        assert rebuilt.loss == engines[0].loss


def test_inputs_keep_their_values_and_need_no_gradient(tiny_clip) -> None:
    objective, theta = tiny_clip
    before = {k: v.clone() for k, v in theta.items()}
    with second_order():
        engine = HessianEngine(objective, theta, {"head": ["head.weight"]})
        lanczos(engine.operator("head"), seed=0, max_matvecs=4)
        sharpness_max(objective, theta, ["head.weight"], rho=0.1, steps=3)
    assert all(torch.equal(before[k], theta[k]) and not theta[k].requires_grad and theta[k].grad is None for k in theta)


# ------------------------------------------------------------------ eigenvalues
SPECTRA = {
    "positive": [float(i) for i in range(1, 41)],
    "dominant negative": [-50.0, *np.linspace(-1, 10, 39)],
    "repeated": [7.0] * 10 + [-2.0] * 5 + [0.0] * 25,
    "clustered top": [10.0, 9.99, 9.98, *np.linspace(0, 1, 37)],
    "identity": [3.0] * 12,
    "one parameter": [-4.0],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_lanczos_finds_both_ends_and_bounds_its_error(name: str) -> None:
    values = SPECTRA[name]
    operator = spectrum(values)
    ends = lanczos(operator, seed=1, rtol=1e-3)
    for end, truth in ((ends.largest, max(values)), (ends.smallest, min(values))):
        assert end.converged
        assert abs(end.value - truth) <= max(1e-3 * max(abs(truth), 0.1 * np.abs(values).max()), 1e-10)
        assert min(abs(end.value - v) for v in values) <= end.residual + 1e-10  # the residual is a certain bound
        assert (operator.matvec(end.vector) - end.value * end.vector).norm() == pytest.approx(end.residual, abs=1e-8)
    assert abs(ends.dominant.value) == pytest.approx(max(map(abs, values)), rel=2e-3)


def test_lanczos_agrees_with_scipy_and_power_iteration() -> None:
    a = draw(60, 60)
    operator = DenseOperator((a + a.mT) / 2)
    low, high = sla.eigsh(operator.matrix.numpy(), k=2, which="BE", return_eigenvectors=False)
    ends = lanczos(operator, seed=0, rtol=1e-8, max_matvecs=60)
    assert ends.largest.value == pytest.approx(high, rel=1e-8) and ends.smallest.value == pytest.approx(low, rel=1e-8)
    top = power_iteration(operator, seed=0, rtol=1e-4, max_matvecs=20_000)
    other = power_iteration(operator, seed=0, rtol=1e-4, max_matvecs=20_000, shift=top.value)
    assert top.converged and top.value == pytest.approx(ends.dominant.value, rel=1e-4)
    assert other.value == pytest.approx(min(low, high, key=lambda v: -abs(v - top.value)), rel=1e-3)


def test_a_spent_budget_is_not_called_converged() -> None:
    operator = spectrum(list(np.linspace(0, 1, 200)))
    ends = lanczos(operator, seed=0, rtol=1e-10, max_matvecs=4)
    assert not ends.largest.converged and ends.largest.num_matvecs == 4 and ends.largest.residual > 0
    assert not power_iteration(operator, seed=0, rtol=1e-10, max_matvecs=4).converged
    assert not hutchinson(operator, seed=0, rtol=1e-4, max_matvecs=20).converged


def test_only_the_ends_that_are_asked_for_have_to_converge() -> None:
    operator = spectrum([-20.0, 10.0, 5.0, *np.linspace(-0.5, 0.5, 300)])
    both = lanczos(operator, seed=0, rtol=1e-3)
    dominant = lanczos(operator, seed=0, rtol=1e-3, ends=["dominant"])
    assert dominant.dominant.converged and dominant.dominant.value == pytest.approx(-20.0, rel=1e-3)
    assert dominant.largest.num_matvecs < both.largest.num_matvecs
    crowded = spectrum([10.0, 5.0, *np.linspace(-0.5, 0.5, 300)])  # the lower end is the edge of a bulk
    largest, smallest = (lanczos(crowded, seed=0, rtol=1e-3, ends=[end]) for end in ("largest", "smallest"))
    assert largest.largest.converged and largest.largest.value == pytest.approx(10.0, rel=1e-3)
    assert smallest.smallest.converged and smallest.smallest.value == pytest.approx(-0.5, abs=1e-3)
    assert largest.largest.num_matvecs < 0.5 * smallest.smallest.num_matvecs
    assert not largest.smallest.converged  # and says so


def test_a_warm_start_saves_products_and_cannot_hide_a_new_eigenvector() -> None:
    values = [100.0, 60.0, *np.linspace(-1, 1, 298)]
    operator = spectrum(values)
    cold = lanczos(operator, seed=0, rtol=1e-4)
    warm = lanczos(operator, seed=0, rtol=1e-4, start=cold.largest.vector + cold.smallest.vector)
    assert warm.largest.num_matvecs < cold.largest.num_matvecs
    second = torch.linalg.eigh(operator.matrix).eigenvectors[:, -2]  # an eigenvector, but not the top one
    assert lanczos(operator, seed=0, rtol=1e-4, start=second).largest.value == pytest.approx(100.0, rel=1e-3)


def test_an_operator_that_is_not_symmetric_or_not_finite_is_refused() -> None:
    a = draw(8, 8)
    with pytest.raises(NumericalError, match="not symmetric"):
        check_symmetric(DenseOperator(a), torch.Generator().manual_seed(0))
    broken = FunctionOperator(lambda v: v * float("nan"), 8)
    with pytest.raises(NumericalError, match="not finite"):
        check_symmetric(broken, torch.Generator().manual_seed(0))
    ends = lanczos(broken, seed=0)
    assert np.isnan(ends.largest.value) and not ends.largest.converged
    assert not hutchinson(broken, seed=0).converged


# ------------------------------------------------------------------ traces
def test_trace_is_exact_for_small_layers_and_for_diagonal_operators() -> None:
    small = spectrum([5.0, -3.0])
    exact = hutchinson(small, seed=0, scale=torch.tensor([2.0, 0.5]))
    assert exact.estimate == pytest.approx(2.0) and exact.stderr == 0.0 and exact.num_matvecs == 2
    weights = torch.tensor([4.0, 0.25], dtype=torch.float64)
    assert exact.weighted == (pytest.approx(float((weights * small.matrix.diagonal()).sum())), 0.0)
    diagonal = DenseOperator(torch.diag(draw(50)))
    estimate = hutchinson(diagonal, seed=0)
    assert estimate.estimate == pytest.approx(float(diagonal.matrix.trace()), rel=1e-12)
    assert 8 < estimate.num_matvecs <= 100  # that the variance is 0 cannot be known from a pilot of 8


def decaying(n: int = 120) -> DenseOperator:
    return spectrum([100.0 * 0.8**i - 1.0 for i in range(n)])


def test_xtrace_is_exact_up_to_rank_and_far_better_than_hutchinson_on_decaying_spectra() -> None:
    low_rank = spectrum([5.0, 3.0, -2.0] + [0.0] * 97)
    assert xtrace(low_rank, seed=0, num_matvecs=20).estimate == pytest.approx(6.0, rel=1e-9)
    operator = decaying()
    truth = float(operator.matrix.trace())
    errors = {
        method: np.sqrt(np.mean([(method(seed) - truth) ** 2 for seed in range(40)]))
        for method in (
            lambda s: xtrace(operator, seed=s, num_matvecs=40).estimate,
            lambda s: hutchinson(operator, seed=s, rtol=1e-9, max_matvecs=40, pilot=40).estimate,
        )
    }
    good, plain = errors.values()
    assert good < plain / 5


def test_adaptive_xtrace_uses_every_product_again_and_stops_at_its_tolerance() -> None:
    operator = decaying(208)  # a multiple of 16: torch draws the same normals in parts as in one go
    whole = xtrace(operator, seed=3, num_matvecs=48)
    asked: list[int] = []
    counted = FunctionOperator(lambda v: (asked.append(1), operator.matvec(v))[1], 208)
    grown = xtrace(counted, seed=3, num_matvecs=48, rtol=1e-12, adaptive=True)
    # the same test vectors and the same span: the estimate of one step, whatever the way there
    assert grown.estimate == pytest.approx(whole.estimate, rel=1e-9) and grown.stderr == pytest.approx(whole.stderr)
    assert len(asked) == grown.num_matvecs == 48 and not grown.converged
    loose = xtrace(operator, seed=3, num_matvecs=190, rtol=0.2, adaptive=True)
    assert loose.converged and loose.num_matvecs < 190 and loose.stderr <= 0.2 * abs(loose.estimate)


def test_hutchpp_is_exact_on_low_rank_and_scaled_estimators_see_the_scaled_operator() -> None:
    low_rank = spectrum([5.0, 3.0, -2.0] + [0.0] * 97)
    found = hutchpp(low_rank, seed=0, max_matvecs=30)
    assert found.estimate == pytest.approx(6.0, rel=1e-9) and found.converged
    c = draw(100, seed=12)
    steps = xtrace_steps(100, dtype=torch.float64, device=torch.device("cpu"), seed=0, max_matvecs=20, rtol=0.1)
    weighted = solve(scaled(steps, c), low_rank)
    assert weighted.estimate == pytest.approx(float((c**2 * low_rank.matrix.diagonal()).sum()), rel=1e-9)


@pytest.mark.parametrize("kind", ["cold", "warm"])
def test_a_bulk_at_zero_does_not_pass_for_the_lower_end(kind: str) -> None:
    """After a few steps a Ritz vector in the null space has a residual near zero: that is no lower end."""
    wrong = 0
    for seed in range(40):
        values = [20.0, 9.0, 6.0, 4.0, 2.0, -1.5, -2.5] + [0.01 * (i % 7 - 3) for i in range(400)]
        operator = spectrum(values, seed=seed)
        start = None
        if kind == "warm":  # what a neighbouring alpha hands over: nearly right above, useless below
            top = torch.linalg.eigh(operator.matrix)[1][:, -1]
            start = top + 0.3 * draw(len(values), seed=seed) / len(values) ** 0.5
        ends = lanczos(operator, seed=seed, rtol=0.01, start=start)
        assert ends.largest.converged and ends.smallest.converged
        wrong += abs(ends.smallest.value + 2.5) > 0.025 or abs(ends.largest.value - 20) > 0.2
    assert wrong <= 2, wrong


METHODS = ["hutchinson", "hutchinson weighted", "xtrace", "xtrace adaptive", "hutchpp", "ggn"]


@pytest.mark.parametrize("method", METHODS)
def test_stated_intervals_cover_the_truth_at_least_nominally_over_200_seeds(method: str) -> None:
    operator = decaying(80)
    scale = draw(80, seed=11).abs()
    truth = float(operator.matrix.trace())
    x, y, w = draw(20, 6), labels(20, 5), draw(5, 6, seed=2)
    softmax = Batched(lambda t, a: a @ t["w"].mT, [(x, y)])
    if method == "hutchinson weighted":
        truth = float((scale**2 * operator.matrix.diagonal()).sum())
    if method == "ggn":
        p = (x @ w.mT).softmax(1)
        truth = float(((p - p**2).sum(1) * x.square().sum(1)).mean())
    hits = 0
    for seed in range(200):
        if method == "xtrace":
            result = xtrace(operator, seed=seed, num_matvecs=32)
            value, stderr = result.estimate, result.stderr
        elif method == "xtrace adaptive":
            result = xtrace(operator, seed=seed, num_matvecs=64, rtol=0.01, adaptive=True)
            value, stderr = result.estimate, result.stderr
        elif method == "hutchpp":
            result = hutchpp(operator, seed=seed, max_matvecs=60, rtol=0.01)
            value, stderr = result.estimate, result.stderr
        elif method == "ggn":
            result = ggn_trace(softmax, {"w": w}, {"w": ["w"]}, seed=seed, rtol=0.1, max_probes=400, pilot=16)["w"]
            value, stderr = result.estimate, result.stderr
        else:
            result = hutchinson(operator, seed=seed, rtol=0.2, max_matvecs=70, pilot=16, scale=scale)
            value, stderr = result.weighted if "weighted" in method else (result.estimate, result.stderr)
        hits += abs(value - truth) <= 2 * stderr
    # Two standard errors: 95.4 % for a normal; a binomial of 200 draws at 95.4 % falls below 180 once in 1,000.
    assert hits >= 180, hits


def test_trace_seeds_decide_everything() -> None:
    operator = decaying()
    assert hutchinson(operator, seed=4) == hutchinson(operator, seed=4) != hutchinson(operator, seed=5)


def test_estimators_advance_together_and_give_the_same_bits_as_alone() -> None:
    operators = {"a": decaying(60), "b": spectrum(list(np.linspace(-1, 3, 30)))}
    rounds = []

    def products(requests: dict[str, Tensor]) -> dict[str, Tensor]:
        rounds.append(set(requests))
        return {k: operators[k].matmat(v) for k, v in requests.items()}

    common = {"dtype": torch.float64, "device": torch.device("cpu"), "seed": 0, "rtol": 0.1, "max_matvecs": 25}
    together = solve_together({k: hutchinson_steps(o.shape[0], **common) for k, o in operators.items()}, products)
    assert together == {k: hutchinson(o, seed=0, rtol=0.1, max_matvecs=25) for k, o in operators.items()}
    assert rounds[0] == {"a", "b"} and len(rounds) == max(r.num_matvecs for r in together.values())


def test_spectral_density_moments_are_those_of_the_operator() -> None:
    operator = decaying(100)
    density = spectral_density(operator, seed=0, steps=15, runs=64)
    for k in (1, 2):
        value, stderr = density.moment(k)
        truth = float(torch.linalg.matrix_power(operator.matrix, k).trace()) / 100
        assert abs(value - truth) < 4 * stderr
    grid = np.linspace(-20, 130, 2000)
    curve, _ = density(grid, width=2.0)
    assert np.trapezoid(curve, grid) == pytest.approx(1.0, abs=1e-3)


def test_spectral_density_of_a_diagonal_operator_is_a_sum_of_gaussians() -> None:
    values = [-3.0] * 20 + [0.0] * 60 + [5.0] * 15 + [11.0] * 5
    density = spectral_density(DenseOperator(torch.diag(torch.tensor(values, dtype=torch.float64))), seed=1, runs=200)
    assert density.num_matvecs <= 200 * 5  # four different eigenvalues: the Krylov space closes and says so
    grid, width = density.grid()
    curve, stderr = density(grid, width=width)
    truth = sum(np.exp(-0.5 * ((grid - v) / width) ** 2) for v in values) / (len(values) * width * np.sqrt(2 * np.pi))
    assert (np.abs(curve - truth) <= 5 * stderr + 1e-6).all() and stderr.max() < 0.05 * truth.max()
    assert width == pytest.approx(0.02 * 14) and np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    for k in (1, 2):
        value, error = density.moment(k)
        assert abs(value - np.mean(np.array(values) ** k)) <= 4 * error
    flat = spectral_density(spectrum([2.0] * 7), seed=0, runs=2)
    assert flat.num_matvecs == 2 and flat.grid()[1] == pytest.approx(0.02)


# ------------------------------------------------------------------ finite radius
def quadratic(h: Tensor) -> Batched:
    return Batched(lambda t, x: t["w"], [(torch.zeros(1, 1), torch.zeros(1))], lambda w, y: 0.5 * w @ h @ w)


def test_average_sharpness_at_small_rho_is_half_rho_squared_times_the_weighted_trace() -> None:
    h, w = decaying(30).matrix, draw(30, seed=8)
    for adaptive in (True, False):
        c = w.abs() if adaptive else torch.ones(30, dtype=torch.float64)
        truth = 0.5 * 0.01**2 * float((c * h.diagonal() * c).sum())
        found = sharpness_avg(quadratic(h), {"w": w}, ["w"], rho=0.01, seed=0, adaptive=adaptive, samples=4000)
        assert abs(found.estimate - truth) < 4 * found.stderr and found.stderr < 0.1 * truth


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_worst_case_of_a_linear_loss_is_the_dual_norm(norm: str, adaptive: bool) -> None:
    g, w = draw(20), draw(20, seed=6)
    w[3] = 0.0  # a zero weight must not become 0/0, and stays
    objective = Batched(lambda t, x: t["w"], [(torch.zeros(1, 1), torch.zeros(1))], lambda z, y: z @ g)
    c = w.abs() if adaptive else torch.ones_like(w)
    truth = 0.3 * float((c * g).norm() if norm == "l2" else (c * g).abs().sum())
    found = sharpness_max(objective, {"w": w}, ["w"], rho=0.3, norm=norm, adaptive=adaptive)
    assert found.estimate == pytest.approx(truth, rel=1e-9) and found.converged


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_worst_case_on_a_quadratic_matches_its_trust_region_solution_or_a_vertex(norm: str) -> None:
    values = [4.0, 1.0, -2.0, 0.5]
    h, w = spectrum(values).matrix, draw(4, seed=6)
    found = sharpness_max(quadratic(h), {"w": w}, ["w"], rho=0.5, norm=norm, adaptive=False, steps=200)
    if norm == "l2":  # the maximum on the sphere: (mu - H) delta = H w with mu >= lambda_max, ||delta|| = rho
        low, high = 4.0, 1e4
        for _ in range(200):
            mu = (low + high) / 2
            delta = torch.linalg.solve(mu * torch.eye(4, dtype=torch.float64) - h, h @ w)
            low, high = (mu, high) if delta.norm() > 0.5 else (low, mu)
        truth = float(0.5 * (w + delta) @ h @ (w + delta) - 0.5 * w @ h @ w)
    else:
        vertices = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5], dtype=torch.float64)] * 4)
        truth = max(float(0.5 * (w + d) @ h @ (w + d) - 0.5 * w @ h @ w) for d in vertices)
        assert found.estimate <= truth + 1e-9
    assert found.estimate == pytest.approx(truth, rel=1e-3)


def test_adaptive_sharpness_does_not_change_when_parameters_are_rescaled() -> None:
    x, y = draw(16, 5), labels(16, 3)
    a, b = draw(4, 5, seed=1), draw(3, 4, seed=2)
    objective = Batched(lambda t, z: (z @ t["a"].mT).relu() @ t["b"].mT, [(x[:10], y[:10]), (x[10:], y[10:])])
    one, two = {"a": a, "b": b}, {"a": 8.0 * a, "b": b / 8.0}  # the same function
    for names in (["a"], ["b"], ["a", "b"]):
        for kind in ("avg", "l2", "linf"):
            if kind == "avg":
                pair = [sharpness_avg(objective, t, names, rho=0.3, seed=3).estimate for t in (one, two)]
            else:
                pair = [sharpness_max(objective, t, names, rho=0.1, norm=kind).estimate for t in (one, two)]
            assert pair[0] == pytest.approx(pair[1], rel=1e-9)
    plain = [sharpness_max(objective, t, ["a"], rho=0.1, norm="l2", adaptive=False).estimate for t in (one, two)]
    assert plain[0] != pytest.approx(plain[1], rel=0.1)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_lands_in_the_set_leaves_its_points_alone_and_handles_zero_axes(norm: str) -> None:
    c = draw(10).abs()
    c[2] = 0
    for seed, size in ((1, 10.0), (2, 0.01)):
        delta = size * c * draw(10, seed=seed)
        out = project(delta, c, 0.4, norm)
        inside = torch.where(c > 0, out / c.clamp_min(1e-30), 0.0)
        radius = inside.norm() if norm == "l2" else inside.abs().max()
        assert radius <= 0.4 + 1e-12 and out[2] == 0
        if size < 0.1:
            torch.testing.assert_close(out, delta)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_worst_case_at_small_rho_is_rho_times_the_dual_norm_of_the_scaled_gradient(norm: str) -> None:
    x, y = draw(16, 5), labels(16, 3)
    objective = Batched(lambda t, z: (z @ t["a"].mT).tanh() @ t["b"].mT, [(x, y)])
    theta = {"a": draw(4, 5, seed=1), "b": draw(3, 4, seed=2)}
    leaf = theta["a"].clone().requires_grad_()
    (g,) = torch.autograd.grad(objective.batch_loss(0, {**theta, "a": leaf}), leaf)
    scaled_gradient = (theta["a"].abs() * g).flatten()
    dual = float(scaled_gradient.norm() if norm == "l2" else scaled_gradient.abs().sum())
    errors = []
    for rho in (1e-3, 1e-4):
        found = sharpness_max(objective, theta, ["a"], rho=rho, norm=norm)
        errors.append(abs(found.estimate / (rho * dual) - 1))
    assert errors[0] < 0.05 and errors[1] < 0.005  # the next term is of order rho


def test_zero_weights_biases_and_parameters_that_the_loss_never_sees() -> None:
    x, y = draw(12, 4), labels(12, 3)
    objective = Batched(lambda t, z: z @ t["w"].mT + t["b"], [(x[:8], y[:8]), (x[8:], y[8:])])
    theta = {"w": draw(3, 4, seed=3), "b": torch.zeros(3).double(), "idle": draw(5, seed=4)}
    theta["w"][1] = 0.0
    for names in (["b"], ["idle"], ["w", "b", "idle"]):
        for found in (
            sharpness_avg(objective, theta, names, rho=0.3, seed=0),
            sharpness_max(objective, theta, names, rho=0.3, norm="l2"),
            sharpness_max(objective, theta, names, rho=0.3, norm="linf"),
        ):
            assert np.isfinite(found.estimate)
            assert (found.estimate == 0) == (
                names != ["w", "b", "idle"]
            )  # |w| = 0 does not move, nor does what is idle
    moved = sharpness_max(objective, theta, ["b"], rho=0.3, adaptive=False)
    assert moved.estimate > 0  # a plain ball has no such points
    engine = HessianEngine(objective, theta, {"idle": ["idle"], "b": ["b"], "mixed": ["idle", "b"]})
    assert engine.unused == ("idle",) and not engine.operator("idle").matvec(draw(5)).any()
    product = engine.operator("mixed").matvec(torch.cat([draw(5), draw(3)]))
    assert torch.equal(product[5:], engine.operator("b").matvec(draw(3))) and not product[:5].any()


def test_a_layer_of_one_parameter_is_its_second_derivative() -> None:
    x, y, w = draw(10), labels(10, 2).double(), torch.tensor(0.7, dtype=torch.float64)
    objective = Batched(lambda t, a: a * t["w"], [(x[:7], y[:7]), (x[7:], y[7:])], F.binary_cross_entropy_with_logits)
    truth = float((x**2 * torch.sigmoid(x * w) * torch.sigmoid(-x * w)).mean())
    operator = HessianEngine(objective, {"w": w}, {"w": ["w"]}).operator("w")
    assert operator.shape == (1, 1)
    ends = lanczos(operator, seed=0)
    trace = hutchinson(operator, seed=0)
    assert ends.largest.value == pytest.approx(truth, rel=1e-12) == ends.smallest.value
    assert trace.estimate == pytest.approx(truth, rel=1e-12) and trace.stderr == 0
