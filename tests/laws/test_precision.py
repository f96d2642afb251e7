"""Less than full precision: what it changes is measured, what it touches is put back."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.config.study import StudyConfig
from sharpscope.curvature.arithmetic import in_precision, precision_error, second_order
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.operator import Cuttable, Divisible
from sharpscope.errors import ConfigError
from sharpscope.layers import split_layers
from sharpscope.study.context import Context
from sharpscope.study.demo import demo_config
from sharpscope.study.manifest import manifest_of


class Attention:
    """Cross-entropy of a transformer layer on tokens."""

    weights = (1.0,)

    def __init__(self) -> None:
        gen = torch.Generator().manual_seed(0)
        self.net = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True).eval()
        self.x, self.y = torch.randn(32, 6, 16, generator=gen), torch.randint(0, 16, (32,), generator=gen)
        self.theta = {n: 0.3 * torch.randn(p.shape, generator=gen) for n, p in self.net.named_parameters()}

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.net, dict(theta), (self.x,)).mean(1)

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.y)


def product(objective: Any, theta: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    theta = {n: t.to(dtype) for n, t in theta.items()}
    with second_order():
        engine = HessianEngine(objective, theta, {"(all)": list(theta)})
        v = torch.randn(engine.blocks["(all)"].size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return engine.operator("(all)").matvec(v.to(dtype)).double()


def test_bf16_products_are_near_and_the_stated_error_is_their_distance() -> None:
    objective = Attention()
    half = in_precision(objective, "bf16", objective.theta)
    near, full = product(half, objective.theta), product(objective, objective.theta)
    error = float((near - full).norm() / full.norm())
    assert 1e-4 < error < 0.2  # eight bits of mantissa; the same bits would mean that nothing happened
    stated = precision_error(objective, objective.theta, {"(all)": list(objective.theta)}, "bf16")["(all)"]
    assert error / 3 < stated < 3 * error
    assert precision_error(objective, objective.theta, {"(all)": list(objective.theta)}, "full") == {"(all)": 0.0}
    double = Attention()
    double.net, double.x = double.net.double(), double.x.double()
    truth = product(double, objective.theta, torch.float64)
    assert float((full - truth).norm() / truth.norm()) < 1e-5  # float32 is the reference for good reason


def test_only_curvature_is_taken_in_less_than_full_precision() -> None:
    objective = Attention()
    layers = split_layers({n: t.shape for n, t in objective.theta.items()}, "block")
    measures = ("hessian_trace", "lambda_max", "ggn_trace", "sharpness_avg")
    rows = {}
    for precision in ("full", "tf32", "bf16"):
        settings = MeasureSettings(max_matvecs=20, noise_samples=2, precision=precision)
        found = measure_layers(objective, objective.theta, layers, measures, settings).rows
        rows[precision] = {(r["layer"], r["measure"]): r["estimate"] for r in found}
    assert rows["tf32"] == rows["full"]  # a CPU has none
    for key, value in rows["full"].items():
        if key[1] == "sharpness_avg":
            assert rows["bf16"][key] == value
        else:
            assert rows["bf16"][key] != value and rows["bf16"][key] == pytest.approx(value, rel=0.3)


def test_an_objective_in_bf16_can_be_cut_where_the_objective_can() -> None:
    objective = Attention()
    assert not isinstance(in_precision(objective, "bf16", objective.theta), Divisible)
    objective.batch_size = 32  # type: ignore[attr-defined]
    objective.rebatched = lambda size: Attention()  # type: ignore[attr-defined]
    half = in_precision(objective, "bf16", objective.theta)
    assert isinstance(half, Divisible) and not isinstance(half, Cuttable)
    # what isinstance asks for from Python 3.12 on, whatever Python runs this
    assert all(inspect.getattr_static(half, name) is not None for name in ("batch_size", "rebatched", "weights"))
    assert torch.equal(product(half.rebatched(16), objective.theta), product(half, objective.theta))


@pytest.mark.parametrize("tf32", [False, True])
def test_global_switches_are_set_inside_and_put_back_after_an_error(tf32: bool) -> None:
    backends: Any = torch.backends
    new, old = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul), (backends.cudnn, backends.cuda.matmul)

    def state() -> list[Any]:
        kernels = backends.cudnn.deterministic, backends.cudnn.benchmark, backends.mha.get_fastpath_enabled()
        return [*(s.fp32_precision for s in new), *(s.allow_tf32 for s in old), *kernels]

    before = state()
    with pytest.raises(RuntimeError, match="inside"), second_order(tf32=tf32):
        assert state() == [*["tf32" if tf32 else "ieee"] * 3, tf32, tf32, True, False, False]
        with backends.cudnn.flags(enabled=True):  # an older switch, which torch refuses where new ones say otherwise
            raise RuntimeError("inside")
    assert state() == before
    assert torch.get_float32_matmul_precision() == "highest"


def test_switches_that_the_caller_set_apart_are_put_back_apart() -> None:
    backends: Any = torch.backends
    before = backends.cudnn.rnn.fp32_precision
    try:
        backends.cudnn.rnn.fp32_precision = "ieee"  # from now on the old switch has no value
        with second_order():
            assert backends.cudnn.conv.fp32_precision == "ieee"
        assert (backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision) == ("tf32", "ieee")
    finally:
        backends.cudnn.rnn.fp32_precision = before


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ConfigError, match="precision: bf16 goes with dtype float32 only, got float64"):
        StudyConfig(precision="bf16", dtype="float64")
    with pytest.raises(ConfigError, match="precision: 'fp8' is none of full, tf32, bf16"):
        in_precision(Attention(), "fp8", {})


def test_the_manifest_of_a_run_states_the_error_of_every_layer() -> None:
    config = dataclasses.replace(
        demo_config(), pairs=demo_config().pairs[:1], alphas=(0.5,), probe_size=8, ood=(),
        granularity="block",
        measures=("hessian_trace",), perturbation_alphas=None, repair_alphas=(), max_matvecs=2, jobs=1, limit=16,
        precision="bf16", bootstrap=10,
    )  # fmt: skip
    contexts = {config.pairs[0].name: Context.load(config, config.pairs[0])}
    said = json.loads(json.dumps(manifest_of(config, contexts)))["precision"]
    assert said["kind"] == "bf16" and said["alpha"] == 0.5
    errors = said["hvp_error"]["success"]
    assert {"(all)", "visual.post", "head"} <= set(errors) and all(0 < e < 0.5 for e in errors.values())
    plain = dataclasses.replace(config, precision="full")
    assert "precision" not in manifest_of(plain, contexts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "limit"), [("tf32", 0.02), ("bf16", 0.2)])
def test_on_a_gpu_each_precision_has_an_error_of_its_size(precision: str, limit: float) -> None:
    objective = Attention()
    objective.net, objective.x, objective.y = objective.net.cuda(), objective.x.cuda(), objective.y.cuda()
    theta = {n: t.cuda() for n, t in objective.theta.items()}
    assert 0 < precision_error(objective, theta, {"(all)": list(theta)}, precision)["(all)"] < limit
