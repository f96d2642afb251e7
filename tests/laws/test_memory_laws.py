"""A memory budget decides how graphs are kept and batches cut, never the result."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.double_backward import analytic_kernels
from sharpscope.curvature.graphs import WORK, GradientGraph, differentiate, graph_bytes, plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureResult, MeasureSettings
from sharpscope.curvature.needed import TRIED
from sharpscope.curvature.operator import Probes
from sharpscope.layers import split_layers
from sharpscope.machine.team import ALONE
from sharpscope.study import compute as units
from sharpscope.study.context import Budget

MEASURES = ("hessian_trace", "lambda_max", "lambda_min", "gradient_curvature")


@dataclass
class Transformer:
    """Cross-entropy of a small transformer in ragged batches, counting gradient passes."""

    net: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    calls: list[int] = field(default_factory=list)

    @property
    def weights(self) -> list[float]:
        n = [len(y) for _, y in self.batches]
        return [k / sum(n) for k in n]

    @property
    def batch_size(self) -> int:
        return max(len(y) for _, y in self.batches)

    def rebatched(self, size: int) -> Transformer:
        parts = [p for x, y in self.batches for p in zip(x.split(size), y.split(size), strict=True)]
        return Transformer(self.net, parts, self.calls)

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        x, y = self.batches[i]
        if torch.is_grad_enabled():  # losses alone, for the error over draws of images, build no graph
            self.calls.append(len(y))
        return F.cross_entropy(torch.func.functional_call(self.net, dict(theta), (x,)).mean(1), y)


class Uncut:
    def __init__(self, inner: Transformer) -> None:
        self.weights, self.batch_loss, self.calls = inner.weights, inner.batch_loss, inner.calls


def problem(
    sizes: Sequence[int] = (8, 8, 3), dtype: torch.dtype = torch.float64
) -> tuple[Transformer, dict[str, Tensor]]:
    gen = torch.Generator().manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True).to(dtype).eval()
    theta = {
        n: 0.4 * torch.randn(p.shape, generator=gen, dtype=torch.float64).to(dtype) for n, p in net.named_parameters()
    }
    data = [(torch.randn(k, 5, 8, generator=gen).to(dtype), torch.randint(0, 8, (k,), generator=gen)) for k in sizes]
    return Transformer(net, data), theta


def whole(objective: object, theta: Mapping[str, Tensor], memory: int | None = None) -> HessianEngine:
    with second_order():
        return HessianEngine(
            objective, theta, {"(all)": list(theta), "mlp": [n for n in theta if "linear" in n]}, memory=memory
        )


def product(engine: HessianEngine, layer: str = "(all)") -> Tensor:
    v = torch.randn(engine.blocks[layer].size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with second_order():
        return engine.operator(layer).matvec(v.to(engine.device, engine.dtype))


def test_bytes_of_a_graph_are_those_that_autograd_packs_away() -> None:
    objective, theta = problem()
    params = {n: t.clone().requires_grad_() for n, t in theta.items()}
    packed: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        packed[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    kept = []  # storages of temporaries must not be used again under the same address while we count
    with second_order(), analytic_kernels(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = objective.batch_loss(0, params)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        kept += [loss, *grads]
    for t in kept:
        packed[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    for t in params.values():
        packed.pop(t.untyped_storage().data_ptr(), None)
    with second_order(), analytic_kernels():
        loss = objective.batch_loss(0, params)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    found = graph_bytes([loss, *grads], params.values())
    assert found > 0 and found == pytest.approx(sum(packed.values()), rel=0.02)


@pytest.mark.parametrize("size", [4, 5, 8, 16])
def test_graphs_of_two_and_three_examples_tell_those_of_any_other_batch(size: int) -> None:
    objective, theta = problem((size,))
    with second_order():
        _, plan = plan_memory(objective, theta, list(theta), None)
    assert plan.graph_bytes == whole(objective, theta).graph_bytes
    assert sorted(objective.calls) == [TRIED, 2, 3, size]  # nothing large was built for the plan


def test_the_budget_decides_what_is_kept_and_how_small_batches_get() -> None:
    objective, theta = problem((8, 8, 8))
    full = whole(objective, theta).graph_bytes
    kept = {}
    for slots in (0.2, 0.9, 1.5, 3.0, 3.4, 3.6):
        plan = whole(objective, theta, int(slots * full)).plan
        kept[slots] = (plan.batch_size, plan.batches, plan.kept)
        assert (1 + WORK) * plan.graph_bytes <= plan.memory or plan.batch_size == 1  # no smaller ones to be had
        assert plan.kept == 0 or (plan.kept + (plan.kept < 3) + WORK) * plan.graph_bytes <= plan.memory
    assert kept[3.6] == (8, 3, 3) and kept[3.4] == (8, 3, 1) and kept[3.0] == (8, 3, 0) and kept[1.5] == (8, 3, 0)
    assert kept[0.9][:2] == (4, 6) and kept[0.2][0] == 1 and kept[0.2][1] == 24
    assert whole(Uncut(objective), theta, 10).plan.kept == 0 and not whole(Uncut(objective), theta, 10).kept


def test_batches_are_not_cut_for_what_every_graph_holds_anyway() -> None:
    class WithText(Transformer):
        """A part that all examples share, as class vectors from a text tower, is in every batch's graph."""

        def rebatched(self, size: int) -> WithText:
            return WithText(self.net, super().rebatched(size).batches, self.calls)

        def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
            shared = (theta["linear1.weight"][:1] * torch.ones(4000, 1, dtype=torch.float64)).tanh().square().mean()
            return super().batch_loss(i, theta) + shared

    objective, theta = problem((8, 8))
    heavy = WithText(objective.net, objective.batches)
    size = whole(heavy, theta).graph_bytes
    assert size > 4 * whole(objective, theta).graph_bytes
    plan = whole(heavy, theta, size // 4).plan
    assert (plan.batch_size, plan.batches, plan.kept) == (8, 2, 0)


def test_results_do_not_depend_on_the_budget() -> None:
    objective, theta = problem()
    reference = whole(objective, theta)
    for layer in reference.blocks:
        truth = product(reference, layer)
        for slots in (10.0, 3.4, 1.6):  # all kept, one kept, none kept: the same batches, the same bits
            engine = whole(objective, theta, int(slots * reference.graph_bytes))
            assert engine.plan.batch_size == 8 and engine.kept == (slots == 10)
            assert torch.equal(product(engine, layer), truth) and engine.loss == reference.loss
            assert torch.equal(engine.gradient(layer), reference.gradient(layer))
        for slots in (0.9, 0.5, 0.1):  # micro-batches
            engine = whole(objective, theta, int(slots * reference.graph_bytes))
            assert engine.plan.batch_size < 8 and engine.plan.batches > 3
            torch.testing.assert_close(product(engine, layer), truth, rtol=1e-10, atol=1e-10 * float(truth.norm()))
            torch.testing.assert_close(engine.gradient(layer), reference.gradient(layer), rtol=1e-10, atol=1e-13)
            assert engine.loss == pytest.approx(reference.loss, rel=1e-12)


@pytest.mark.parametrize("slots", [10.0, 3.4, 1.6])
@pytest.mark.usefixtures("no_collection")
def test_no_graph_is_built_beside_more_than_are_kept_and_none_outlives_the_engine(
    slots: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, theta = problem()
    budget = int(slots * whole(objective, theta).graph_bytes)
    losses: list[weakref.ref[Tensor]] = []
    beside: list[int] = []

    def living() -> int:
        return sum(ref() is not None for ref in losses)

    def watched(*args: Any) -> GradientGraph:
        beside.append(living())
        graph = differentiate(*args)
        losses.append(weakref.ref(graph.loss))
        return graph

    monkeypatch.setattr("sharpscope.curvature.hvp.differentiate", watched)
    engine = whole(objective, theta, budget)
    product(engine)
    engine.answer({"signs": ("mlp", Probes(1, torch.Generator().manual_seed(0)))})
    kept = engine.plan.kept
    assert len(beside) == (3 if engine.kept else 9 - 2 * kept) and max(beside) <= (2 if engine.kept else kept)
    assert living() == kept
    del engine
    assert living() == 0


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is freed is freed because nobody holds it any more, not by the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_permuted_batches_and_examples_give_the_same_hessian() -> None:
    objective, theta = problem()
    truth = product(whole(objective, theta))
    turned = replace(objective, batches=[objective.batches[i] for i in (2, 0, 1)])
    x, y = (torch.cat(parts) for parts in zip(*objective.batches, strict=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    shuffled = Transformer(objective.net, list(zip(x[order].split(5), y[order].split(5), strict=True)))
    for other in (turned, shuffled):
        torch.testing.assert_close(product(whole(other, theta)), truth, rtol=1e-10, atol=1e-10 * float(truth.norm()))


@pytest.mark.parametrize("cut", [False, True])
def test_layers_advance_together_with_one_pass_over_the_data_a_step(cut: bool) -> None:
    objective, theta = problem((4, 4, 2))
    target = objective if cut else Uncut(objective)
    layers = split_layers({n: t.shape for n, t in theta.items()}, "tensor")
    settings = MeasureSettings(rtol=1e-9, max_matvecs=7)
    with_all = measure_layers(target, theta, layers, MEASURES, settings)
    calls = objective.calls.copy()
    watched = TRIED if cut else 4  # for rows that the loss does not read
    assert sorted(calls) == sorted([watched, 4, 4, 2])  # three graphs for everything
    objective.calls.clear()
    graph = whole(objective, theta).graph_bytes
    objective.calls.clear()
    rebuilt = measure_layers(target, theta, layers, MEASURES, replace(settings, memory=int(1.6 * graph)))
    assert rebuilt.rows == with_all.rows  # bit for bit
    assert rebuilt.facts["graphs_kept"] == 0 and with_all.facts["graphs_kept"] == 3
    # One for loss and gradient, one along the gradient, one for the first products of all traces, on which their
    # tolerance rests, one for each of at most 7 steps; and the first batch once more for the symmetry check.
    passes = 3 + max(r["num_matvecs"] for r in rebuilt.rows)
    # Graphs for both, for traces alone, and those of the engine.
    planned = [watched] + 3 * ([2, 3] if cut else [4])
    assert objective.calls[: len(planned)] == planned
    assert len(objective.calls) == 3 * passes + 1 + len(planned)


def test_traces_are_measured_apart_where_graphs_of_both_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ByExample(Transformer):
        @property
        def batch_sizes(self) -> list[int]:
            return [len(y) for _, y in self.batches]

        def rebatched(self, size: int) -> ByExample:
            return ByExample(self.net, super().rebatched(size).batches)

    plain, theta = problem((8, 8, 8))
    objective = ByExample(plain.net, plain.batches)
    layers = split_layers({n: t.shape for n, t in theta.items()}, "tensor")
    settings = MeasureSettings(rtol=1e-9, max_matvecs=7)
    with second_order():
        both, traces = (plan_memory(objective, theta, list(theta), None, u)[1].graph_bytes for u in ("both", "probes"))
    assert traces < 0.8 * both
    alone = [measure_layers(objective, theta, layers, m, settings) for m in (MEASURES[:1], MEASURES[1:])]
    built: list[str] = []

    def watched(*args: Any) -> GradientGraph:
        built.append(args[-1])
        return differentiate(*args)

    monkeypatch.setattr("sharpscope.curvature.hvp.differentiate", watched)
    room = int((3 + WORK) * 0.5 * (both + traces))
    result = measure_layers(objective, theta, layers, MEASURES, replace(settings, memory=room))
    assert built == ["probes"] * 3 + ["products"] * 3, "no graph is built anew"
    assert result.facts["graphs_kept"] == 3
    key = lambda row: (row["measure"], row["layer"])  # noqa: E731
    assert sorted(result.rows, key=key) == sorted([r for part in alone for r in part.rows], key=key)  # bit for bit


def test_no_graph_is_planned_for_products_by_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise AssertionError("this loss may have no graph of its gradient")

    objective, theta = problem((4, 2))
    layers = split_layers({n: t.shape for n, t in theta.items()}, "module")
    monkeypatch.setattr("sharpscope.curvature.measures.hessian.plan_memory", none)
    settings = MeasureSettings(max_matvecs=3, products="func", memory=1)
    rows = measure_layers(objective, theta, layers, MEASURES[:2], settings).rows
    assert rows and not any(r["status"] == "failed" for r in rows)


def test_out_of_memory_on_an_accelerator_halves_the_budget_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []

    def measure(*args: object, **more: object) -> MeasureResult:
        settings = args[4]
        assert isinstance(settings, MeasureSettings)
        seen.append(settings.memory)
        if len(seen) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return MeasureResult([], facts={"batch_size": 16})

    class Context:
        budget, device = Budget(1000), torch.device("cpu")
        settings = property(lambda self: MeasureSettings(memory=self.budget.bytes))
        layers, team_probe, pair = (), type("P", (), {"batch_size": 64}), type("Q", (), {"name": "p"})
        team = ALONE
        theta = staticmethod(lambda alpha: {})

    monkeypatch.setattr(units, "measure_layers", measure)
    context = Context()
    _, note = units._measure(context, 0.5, (), {}, lambda what: None)  # type: ignore[arg-type]
    assert seen == [1000, 500, 250] and note == "curvature used batches of 16 to fit in memory"
    units._measure(context, 0.6, (), {}, lambda what: None)  # type: ignore[arg-type]
    assert seen[3:] == [250], "the next alpha starts with what was enough"
    monkeypatch.setattr(units, "measure_layers", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(torch.OutOfMemoryError):
        units._measure(Context(), 0.5, (), {}, lambda what: None)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_products_are_the_same_and_the_count_is_what_is_allocated() -> None:
    objective, theta = problem(dtype=torch.float64)
    truth = product(whole(objective, theta))
    cuda = Transformer(objective.net.cuda(), [(x.cuda(), y.cuda()) for x, y in objective.batches])
    theta = {n: t.cuda() for n, t in theta.items()}
    before = torch.cuda.memory_allocated()
    engine = whole(cuda, theta)
    grown = torch.cuda.memory_allocated() - before
    torch.testing.assert_close(product(engine).cpu(), truth, rtol=1e-9, atol=1e-9 * float(truth.norm()))
    graphs = sum(graph_bytes([g.loss, *g.gradient.values()], engine.theta.values()) for g in engine._graphs if g)
    assert graphs <= grown * 1.5 + 2**20
