"""Two ways to the same number: torch.func beside the kept graph, power iteration beside Lanczos, SciPy beside both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import sharpscope
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.eigen import lanczos
from sharpscope.curvature.functional import FunctionalEngine, engine_for
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import DenseOperator, Probes, solve
from sharpscope.curvature.pairs import top_eigenpairs
from sharpscope.curvature.power import power_ends_steps, power_iteration
from sharpscope.curvature.slices import filter_normalized, random_direction
from sharpscope.errors import ConfigError, SharpscopeError
from sharpscope.layers import split_layers
from sharpscope.notebook import loss_slice


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(values: list[float], seed: int = 3) -> DenseOperator:
    """A symmetric matrix with the given eigenvalues in a random basis."""
    q, _ = torch.linalg.qr(draw(len(values), len(values), seed=seed))
    return DenseOperator(q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.mT)


X, Y = draw(9, 4, seed=2), torch.arange(9) % 3


def net() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(draw(*p.shape, seed=10 + i))
    return made


def cross_entropy(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


BATCHES = [(X[:5], Y[:5]), (X[5:], Y[5:])]


@pytest.fixture(scope="module")
def loss() -> sharpscope.ModuleLoss:
    return sharpscope.ModuleLoss(net(), cross_entropy, BATCHES)


# ------------------------------------------------------------------ torch.func
@pytest.mark.parametrize("kind", ["vit", "quickgelu", "resnet", "customtext"])
def test_both_routes_give_the_same_products_for_every_tensor_of_every_tower(kind: str, tiny_thetas: Any) -> None:
    model, weights = tiny_thetas[kind]
    theta = {n: t.double() if t.is_floating_point() else t for n, t in weights.items()}
    images = draw(3, 3, *model.image_size, seed=5)
    tokens = model.tokenize(["a circle", "a star", "some square"])

    class Contrastive:
        weights = (1.0,)

        def batch_loss(self, i: int, t: Mapping[str, Tensor]) -> Tensor:
            logits = 3 * model.encode_image(t, images) @ model.encode_text(t, tokens).mT
            return F.cross_entropy(logits, torch.arange(3))

    layers = split_layers({n: theta[n].shape for n in model.parameter_names}, "module")
    blocks = {x.name: x.params for x in layers}
    with second_order():
        engines = [engine_for(products)(Contrastive(), theta, blocks) for products in ("graph", "func")]
        assert engines[0].loss == pytest.approx(engines[1].loss, rel=1e-12)
        asked = {layer: draw(spec.size, 1, seed=i) for i, (layer, spec) in enumerate(engines[0].blocks.items())}
        one, two = (engine.products(asked) for engine in engines)
    assert any("ln_" in layer or "bn" in layer for layer in blocks)
    largest = max(float(p.norm()) for p in one.values())
    for layer in blocks:
        torch.testing.assert_close(two[layer], one[layer], rtol=1e-9, atol=1e-11 * largest)


def test_probes_of_torch_func_are_quadratic_forms_of_each_batch(loss: sharpscope.ModuleLoss) -> None:
    engine = FunctionalEngine(loss, loss.theta, {"0": ["0.weight", "0.bias"]})
    dense = engine.operator("0").matmat(torch.eye(30, dtype=torch.float64))
    forms = engine.operator("0").answer(Probes(40, torch.Generator().manual_seed(0)))
    assert forms.shape == (2, 40) and engine.units["0"] == (1, 1)
    error = float(forms.sum(0).std()) / 40**0.5
    assert abs(float(forms.sum(0).mean() - dense.trace())) < 4 * error


def test_a_study_of_either_route_gives_the_same_numbers(loss: sharpscope.ModuleLoss) -> None:
    measures = ["hessian_trace", "lambda_max", "relative_flatness", "gradient_curvature"]
    tables = [
        sharpscope.layer_curvature(
            net(), cross_entropy, BATCHES, measures=measures, rtol=1e-6, products=products, max_matvecs=500
        )
        for products in ("graph", "func")
    ]
    for column in ("layer", "measure", "status"):
        assert list(tables[0][column]) == list(tables[1][column])
    assert set(tables[0]["status"]) == {"ok"}
    np.testing.assert_allclose(tables[0]["estimate"], tables[1]["estimate"], rtol=1e-5)


class _Cosine(torch.autograd.Function):
    """A kernel with a forward derivative only."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.cos()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return -dx * ctx.saved_tensors[0].sin()


class _Sine(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * _Cosine.apply(*ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return dx * ctx.saved_tensors[0].cos()


class _Waves(nn.Module):
    def __init__(self, wave: Any) -> None:
        super().__init__()
        self.a, self.b, self.wave = nn.Linear(4, 3).double(), nn.Linear(3, 3).double(), wave
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(draw(*p.shape, seed=30 + i))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.wave(self.a(x)))


def test_torch_func_measures_a_module_that_the_graph_route_refuses() -> None:
    """A backward pass made of kernels that can be differentiated forwards only."""
    tables = {
        name: sharpscope.layer_curvature(
            _Waves(wave), cross_entropy, BATCHES, measures=["lambda_max"], rtol=1e-6, products=products
        ).set_index("layer")
        for name, wave, products in (
            ("refused", _Sine.apply, "graph"), ("func", _Sine.apply, "func"), ("truth", torch.sin, "graph"),
        )
    }  # fmt: skip
    assert tables["refused"].loc["a", "status"] == "failed"
    np.testing.assert_allclose(tables["func"]["estimate"], tables["truth"]["estimate"], rtol=1e-6)


# ------------------------------------------------------------------ power iteration
@pytest.mark.parametrize("values", [[5.0, 3, 1, 0.5, -2], [-5.0, 3, 1, 0.5, -2], [4.0, 1, 0.5, 0.2, 0.1]])
def test_power_iteration_and_lanczos_agree_within_their_residuals(values: list[float]) -> None:
    operator = spectrum([*values, *(0.01 * i for i in range(10))])
    common = {"dtype": operator.dtype, "device": operator.device, "seed": 0, "rtol": 1e-3}
    power = solve(power_ends_steps(operator.shape[0], max_matvecs=5000, **common), operator)
    ours = lanczos(operator, seed=0, rtol=1e-3)
    for end, truth in (("largest", max(*values, 0.09)), ("smallest", min(*values, 0.0))):
        one, two = getattr(power, end), getattr(ours, end)
        assert one.converged and two.converged and abs(one.value - two.value) <= one.residual + two.residual
        assert abs(one.value - truth) <= one.residual + 1e-12
        product = operator.matvec(one.vector)
        assert float((product - one.value * one.vector).norm()) == pytest.approx(one.residual, abs=1e-9)
    assert power.dominant.value == pytest.approx(max(values, key=abs), rel=1e-3)


def test_power_iteration_says_where_the_gap_is_too_small_for_it() -> None:
    close = spectrum([1.0, 0.98, *(0.01 * i for i in range(10))])
    found = power_iteration(close, seed=0, rtol=1e-4, max_matvecs=30)
    assert not found.converged and abs(found.value - 1) <= found.residual
    assert lanczos(close, seed=0, rtol=1e-4, max_matvecs=30).largest.converged
    mirrored = spectrum([1.0, -0.999, *(0.01 * i for i in range(10))])
    common = {"dtype": close.dtype, "device": close.device, "seed": 0, "rtol": 1e-3}
    both = solve(power_ends_steps(12, max_matvecs=60, **common), mirrored)
    assert not both.largest.converged and not both.smallest.converged
    one = solve(power_ends_steps(12, max_matvecs=60, ends=("dominant",), **common), spectrum([3.0, 1.0, *[0.1] * 10]))
    assert one.dominant.converged and one.dominant.num_matvecs < 20


def test_eigen_method_power_is_reachable_and_agrees_in_every_row(loss: sharpscope.ModuleLoss) -> None:
    layers = split_layers({n: t.shape for n, t in loss.theta.items()}, "module")
    measures = ["lambda_max", "lambda_min", "lambda_abs"]
    tables = {}
    for method in ("lanczos", "power"):
        settings = MeasureSettings(rtol=1e-3, max_matvecs=3000, eigen_method=method)
        result = measure_layers(loss, loss.theta, layers, measures, settings)
        tables[method] = result.rows
        assert set(result.warm) == {"(all)", *(x.name for x in layers)}
    for one, two in zip(tables["lanczos"], tables["power"], strict=True):
        assert one["status"] == two["status"] == "ok" and one["residual"] != two["residual"]
        assert abs(one["estimate"] - two["estimate"]) <= one["residual"] + two["residual"] + 1e-9
    with pytest.raises(ConfigError, match="eigen_method"):
        measure_layers(loss, loss.theta, layers, measures, MeasureSettings(eigen_method="arnoldi"))  # type: ignore[arg-type]


# ------------------------------------------------------------------ top eigenvectors
def test_top_eigenpairs_are_the_matrix_s_own() -> None:
    for values, top in (([5.0, 4, 3, 2, 1, -6, 0.5], [5, 4, 3, 2]), ([2.0] * 3 + [1.0] * 4, [2, 2, 1, 1])):
        operator = spectrum(values)  # the second: each start finds one vector of every distinct eigenvalue
        found = top_eigenpairs(operator, 4, seed=0, rtol=1e-8)
        np.testing.assert_allclose(found.values, top, rtol=1e-6)
        assert found.converged.all()
        torch.testing.assert_close(found.vectors @ found.vectors.mT, torch.eye(4).double())
        gap = operator.matmat(found.vectors.mT) - found.vectors.mT * torch.as_tensor(found.values)
        np.testing.assert_allclose(gap.norm(dim=0), found.residuals, atol=1e-9)
    spent = top_eigenpairs(spectrum([*(1 + 0.01 * i for i in range(40))]), 3, seed=0, rtol=1e-6, max_matvecs=5)
    assert not spent.converged.any() and spent.num_matvecs == 5
    for k in (0, 6):
        with pytest.raises(ConfigError, match="from 1 to 5"):
            top_eigenpairs(operator, k, seed=0, max_matvecs=5)


def test_layer_curvature_returns_the_eigenvectors_that_it_is_asked_for() -> None:
    details: dict[str, Any] = {}
    frame = sharpscope.layer_curvature(
        net(), cross_entropy, BATCHES, measures=["lambda_max"], rtol=1e-6, eigenvectors=3, details=details
    ).set_index("layer")
    pairs = details["eigenpairs"]
    assert set(pairs) == {"(all)", "0", "1", "3"} and pairs["0"].vectors.shape == (3, 30)
    for layer, found in pairs.items():
        assert found.values[0] == pytest.approx(frame.loc[layer, "estimate"], rel=1e-5)
        assert (np.diff(found.values) <= 0).all()
    for wrong in ({"eigenvectors": 2}, {"eigenvectors": -1, "details": {}}):
        with pytest.raises(ConfigError, match="eigenvectors"):
            sharpscope.layer_curvature(net(), cross_entropy, BATCHES, measures=["lambda_max"], **wrong)


# ------------------------------------------------------------------ the operator for notebooks
@pytest.mark.parametrize("products", ["graph", "func"])
def test_scipys_eigsh_on_the_exported_operator_is_lambda_max(loss: sharpscope.ModuleLoss, products: Any) -> None:
    exported = sharpscope.HessianOperator(loss, loss.theta, products=products)
    scipys = exported.to_scipy()
    assert scipys.shape == exported.shape and scipys.dtype == np.float64
    dense = exported.matmat(torch.eye(exported.shape[0], dtype=torch.float64)).numpy()
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    u = draw(exported.shape[0], seed=8).numpy()
    np.testing.assert_allclose(scipys @ u, dense @ u, atol=1e-12)
    np.testing.assert_allclose(scipys.T @ u, dense @ u, atol=1e-12)
    top = sla.eigsh(scipys, k=1, which="LA", return_eigenvectors=False)[0]
    assert top == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-9)
    assert lanczos(exported, seed=0, rtol=1e-8).largest.value == pytest.approx(top, rel=1e-6)
    frame = sharpscope.layer_curvature(net(), cross_entropy, BATCHES, measures=["lambda_max"], rtol=1e-6)
    assert frame.set_index("layer").loc["(all)", "estimate"] == pytest.approx(top, rel=1e-5)


def test_the_operator_keeps_the_dtype_and_leaves_out_what_the_loss_never_sees() -> None:
    class Half:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return theta["w"].pow(4).sum()

    theta = {"idle": torch.ones(3), "w": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}
    made = sharpscope.HessianOperator(Half(), theta)
    assert made.names == ("w",) and made.to_scipy().dtype == np.float32 and made.loss == 17
    np.testing.assert_allclose(made.to_scipy() @ np.eye(2, dtype=np.float32), np.diag([12.0, 48.0]))
    assert made.gradient.tolist() == [4, 32] and set(made.split(made.gradient)) == {"w"}
    assert sharpscope.HessianOperator(Half(), theta, ["idle", "w"]).shape == (5, 5)
    for wrong in ({"names": []}, {"names": ["count"]}, {"products": "graphs"}):
        with pytest.raises(SharpscopeError):
            sharpscope.HessianOperator(Half(), theta, **wrong)


def test_a_module_loss_does_not_see_what_happens_to_the_module_afterwards() -> None:
    module = nn.Sequential(net(), nn.Dropout(0.5))
    module.train()
    made = sharpscope.ModuleLoss(module, cross_entropy, BATCHES)
    before = float(made.batch_loss(0, made.theta))
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert module.training and float(made.batch_loss(0, made.theta)) == before
    assert made.batch_sizes == [5, 4] and made.batch_loss(0, made.theta).requires_grad is False


# ------------------------------------------------------------------ slices
def test_a_slice_of_a_quadratic_loss_is_its_parabola_on_a_line_and_in_a_plane() -> None:
    h, g, w = spectrum([3.0, 1.0, -0.5, 0.2]).matrix, draw(4, seed=6), draw(4, seed=7)

    class Quadratic:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return g @ theta["w"] + 0.5 * theta["w"] @ h @ theta["w"]

    d, e = draw(4, seed=8), draw(4, seed=9)
    line = loss_slice(Quadratic(), {"w": w}, {"w": d}, reach=2.0, points=5)
    assert list(line["step_1"]) == [-2, -1, 0, 1, 2] and line["step_2"].isna().all()
    start, slope, bend = (float(x) for x in (g @ w + 0.5 * w @ h @ w, g @ d + w @ h @ d, d @ h @ d))
    np.testing.assert_allclose(line["loss"], [start + a * slope + a * a * bend / 2 for a in line["step_1"]])
    plane = loss_slice(Quadratic(), {"w": w}, [{"w": d}, {"w": e}], reach=(0.0, 1.0), points=3)
    assert len(plane) == 9
    for a, b, value, _ in plane.itertuples(index=False):
        point = w + a * d + b * e
        assert value == pytest.approx(float(g @ point + 0.5 * point @ h @ point))


def test_a_slice_along_the_task_vector_is_the_path(tiny_thetas: Any) -> None:
    pair = sharpscope.load_pair("mini:zeroshot", "mini:success", model="mini")
    images = sharpscope.load_dataset("mini:photo", model=pair.model, split="train", limit=6)
    probe = sharpscope.Probe(pair.classifier, images, batch_size=4)
    path = pair.path()
    start, end = path.at(0.0), path.at(1.0)
    moves = {n: end[n] - start[n] for n in pair.moving}
    table = sharpscope.loss_slice(probe, start, moves, reach=(0.0, 1.0), points=3)
    for alpha, value in zip(table["step_1"], table["loss"], strict=True):
        assert value == pytest.approx(probe.loss(path.at(float(alpha))), rel=1e-5)
    spread = probe.sample_losses(path.at(0.5)).double()
    assert table["loss_stderr"][1] == pytest.approx(float(spread.std()) / 6**0.5, rel=0.5)


def test_filter_normalised_slices_do_not_see_how_the_weights_are_scaled(loss: sharpscope.ModuleLoss) -> None:
    class Relu:
        weights = (1.0,)

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            return F.cross_entropy((X @ theta["a"].mT).relu() @ theta["b"].mT, Y)

    theta = {"a": draw(5, 4, seed=1), "b": draw(3, 5, seed=2)}
    scaled = {"a": 6 * theta["a"], "b": theta["b"] / 6}
    d = random_direction(theta, ["a", "b"], seed=4)
    for how, same in (("filter", True), ("none", False)):
        one, two = (loss_slice(Relu(), t, d, points=5, normalize=how)["loss"] for t in (theta, scaled))
        assert np.allclose(one, two, rtol=1e-9) == same
    norms = {n: t.norm(dim=1) for n, t in filter_normalized(d, theta).items()}
    torch.testing.assert_close(norms, {n: t.norm(dim=1) for n, t in theta.items()})
    assert not filter_normalized({"v": torch.ones(3)}, {"v": torch.ones(3)})["v"].any()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"directions": []}, "directions"), ({"directions": [{"0.wieght": torch.ones(6, 4)}]}, "0.weight"),
        ({"directions": {"0.bias": torch.ones(5)}}, "shape"), ({"points": 1}, "points"), ({"reach": 0.0}, "reach"),
        ({"reach": (1.0, 0.0)}, "reach"), ({"normalize": "layer"}, "normalize"),
    ],
)  # fmt: skip
def test_a_slice_that_cannot_be_taken_is_refused(loss: sharpscope.ModuleLoss, given: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        loss_slice(loss, loss.theta, **{"directions": {"0.bias": torch.ones(6)}} | given)
    with pytest.raises(ConfigError, match="names"):
        random_direction(loss.theta, ["nothing"], seed=0)
