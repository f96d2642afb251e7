"""v'Hv by one forward tangent pass: the number that double backward gives, or double backward itself."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.draws import rademacher
from sharpscope.curvature.ggn import GaussNewton, Residual
from sharpscope.curvature.graphs import plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.needed import needed
from sharpscope.curvature.operator import Objective, Probes
from sharpscope.curvature.tangents import Tangents
from sharpscope.layers import split_layers

open_clip = pytest.importorskip("open_clip")

VIT = {"image_size": 8, "patch_size": 4, "width": 8, "layers": 2, "head_width": 4}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 4, "patch_size": None}
TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}


@dataclass
class Classification:
    """The mean cross-entropy (or another ``loss``) of a module over batches of examples."""

    module: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    loss: Callable[..., Tensor] = F.cross_entropy

    @property
    def batch_sizes(self) -> list[int]:
        return [len(y) for _, y in self.batches]

    @property
    def batch_size(self) -> int:
        return max(self.batch_sizes)

    @property
    def weights(self) -> list[float]:
        return [n / sum(self.batch_sizes) for n in self.batch_sizes]

    @property
    def theta(self) -> dict[str, Tensor]:
        return {n: p.detach().double() for n, p in self.module.named_parameters()}

    @property
    def layers(self) -> dict[str, tuple[str, ...]]:
        return {x.name: x.params for x in split_layers({n: t.shape for n, t in self.theta.items()}, "module")}

    def rebatched(self, size: int) -> Classification:
        parts = [p for x, y in self.batches for p in zip(x.split(size), y.split(size), strict=True)]
        return Classification(self.module, parts, self.loss)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.module, dict(theta), (self.batches[i][0],))

    def batch_labels(self, i: int) -> Tensor:
        return self.batches[i][1]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return self.loss(self.batch_logits(i, theta), self.batches[i][1])


class Vision(nn.Module):
    """A small open_clip tower with a head on unit features."""

    def __init__(self, vision: Mapping[str, Any], quick: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            self.visual = open_clip.CLIP(6, dict(vision), TEXT, quick_gelu=quick).visual
            self.head = nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return 5 * self.head(F.normalize(self.visual(x), dim=-1))


def draw(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(side: int, sizes: Sequence[int] = (5, 3)) -> list[tuple[Tensor, Tensor]]:
    return [(draw(n, 3, side, side, seed=n), torch.arange(n) % 3) for n in sizes]


def net(*modules: nn.Module) -> nn.Sequential:
    made = nn.Sequential(*modules).double().eval()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(0.5 * draw(*p.shape, seed=10 + i))
    return made


def vectors(n: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [(draw(n, 4, seed=2) / 4, torch.arange(n) % 3)]


def engine(objective: Objective, **how: Any) -> HessianEngine:
    work: Any = getattr(objective, "objective", objective)
    with second_order():
        return HessianEngine(objective, work.theta, how.pop("blocks", work.layers), **how)


def forms(of: HessianEngine, layer: str, count: int = 1, weighted: bool = False) -> Tensor:
    with second_order():
        return of.operator(layer).answer(Probes(count, torch.Generator().manual_seed(1), weighted))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def covered(of: HessianEngine) -> frozenset[str]:
    """The layers that tangents answer in the first batch."""
    tangents = of.graph(0).tangents
    names = frozenset() if tangents is None else tangents.names
    return frozenset(x for x, spec in of.blocks.items() if names.issuperset(spec.names))


def same(found: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(found, truth, rtol=1e-11, atol=1e-12 * max(float(truth.abs().max()), 1e-3))


TOWERS = [
    pytest.param((VIT, False), id="class token"),
    pytest.param((VIT | {"ls_init_value": 0.1, "pool_type": "avg", "final_ln_after_pool": True}, True), id="mean"),
]


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: Any) -> Classification:
    return Classification(Vision(*request.param), images(8))


# ------------------------------------------------------------------ the number
def test_forms_are_those_of_double_backward_example_by_example_in_every_layer(tower: Classification) -> None:
    ours, theirs = engine(tower, use="probes"), engine(tower, use="products")
    assert covered(ours) == set(tower.layers) and not ours.twice and theirs.graph(0).tangents is None
    for layer in tower.layers:
        for weighted in (False, True):
            found = forms(ours, layer, weighted=weighted)
            assert found.shape == (8, 1)
            same(found, forms(theirs, layer, weighted=weighted))


def test_the_gauss_newton_part_and_the_rest_come_apart(tower: Classification) -> None:
    layers = list(tower.layers)[::3]
    both, split = engine(tower), [engine(f(tower), use="products") for f in (GaussNewton, Residual)]
    one = tower.batch_sizes[0]
    for layer in layers:
        tangents, names = both.graph(0).tangents, frozenset(tower.layers[layer])
        assert tangents is not None
        generator = torch.Generator().manual_seed(1)
        signs = lambda *s: rademacher(s, generator, dtype=torch.float64)  # noqa: E731, B023
        seeds = {slot: tap.tangent(signs, names.intersection(tap.names), False) for slot, tap in tangents.taps(names)}
        gauss_newton, head, body = tangents.forms(seeds)
        for part, reference in zip((gauss_newton, head + body), split, strict=True):
            same(tower.weights[0] * part, forms(reference, layer)[:one, 0])


def test_forms_are_second_differences_of_every_example_s_loss(tower: Classification) -> None:
    """Along one direction for all examples, which moves every entry of a tap's parameters by the same."""
    tangents, (x, y) = engine(tower).graph(0).tangents, tower.batches[0]
    assert tangents is not None
    for slot, tap in tangents.taps(tangents.names)[::3]:
        found = tangents.forms({slot: tap.tangent(ones, frozenset(tap.names), False)}).sum(0)

        def losses(step: float, names: Sequence[str] = tap.names) -> Tensor:
            moved = {n: t + step * (n in names) for n, t in tower.theta.items()}
            return F.cross_entropy(torch.func.functional_call(tower.module, moved, (x,)), y, reduction="none")

        h = 1e-4
        truth = (losses(h) - 2 * losses(0) + losses(-h)).detach() / h**2 / len(y)
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5 * float(truth.abs().max()) + 1e-7)


def test_the_parts_of_the_examples_add_up_to_the_product(tower: Classification) -> None:
    of = engine(tower, blocks={n: (n,) for n in tower.theta})
    for name in list(tower.theta)[::5]:
        total = torch.zeros((), dtype=torch.float64)
        for i, weight in enumerate(tower.weights):
            tangents = of.graph(i).tangents
            assert tangents is not None
            ((slot, tap),) = tangents.taps(frozenset([name]))
            total = total + weight * tangents.forms({slot: tap.tangent(ones, frozenset([name]), False)}).sum()
        v = ones(of.blocks[name].size)
        with second_order():
            same(total, v @ of.operator(name).matvec(v))


class Odd(nn.Module):
    """Everything that has a rule and does not stand in a tower: products, differences, quotients, a SiLU."""

    def __init__(self, length: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        c = torch.cat([(a * b)[:, :3], F.silu(a - b)[:, 3:] / 2], 1)
        c = c - c.mean(1, keepdim=True) + torch.stack([a, b], 1).sum(1).reshape(-1, 6).neg()
        return 3 * F.normalize(self.last(c) * (self.length * torch.ones(3).double()), dim=1)


@pytest.mark.parametrize(
    ("loss", "length"),
    [
        pytest.param(lambda f, y: F.cross_entropy(f, y, label_smoothing=0.2), 1.0, id="smoothed"),
        pytest.param(lambda f, y: F.cross_entropy(f, y, ignore_index=1), 1.0, id="ignored"),
        pytest.param(F.cross_entropy, 1e-13, id="too short to be normalised"),
    ],
)
def test_rules_that_no_tower_needs(loss: Callable[..., Tensor], length: float) -> None:
    module = Odd(length).double()
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(draw(*p.shape, seed=20 + i))
    work = Classification(module, vectors(), loss)
    ours, theirs = engine(work, use="probes"), engine(work, use="products")
    assert covered(ours) == set(work.layers) and not ours.twice
    for layer in work.layers:
        same(forms(ours, layer, 2), forms(theirs, layer, 2))


class Nearby(nn.Module):
    """Taps with a norm, an attention and a GELU right behind them, only views and sums in between."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Linear(2, 4), nn.Parameter(torch.zeros(3, 4))
        self.start, self.packed, self.wide, self.out = (
            nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3), nn.Linear(3, 5),
        )  # fmt: skip
        self.classes = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(self.patches(x).mT.reshape(-1, 4, 3).permute(0, 2, 1) + self.place)
        q, k, v = self.packed(x).view(-1, 3, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 3, 4)
        return 4 * self.classes(F.normalize(self.out(F.gelu(self.wide(x))).mean(1), dim=-1))


@pytest.mark.parametrize(
    ("layer", "node"), [("patches place", "Norm"), ("packed", "Attention"), ("wide", "Elementwise")]
)
def test_the_known_mean_of_the_nearest_operation_is_the_sum_over_all_unit_directions(layer: str, node: str) -> None:
    module = Nearby().double()
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(draw(*p.shape, seed=40 + i))
    work = Classification(module, [(draw(4, 3, 2, seed=3), torch.arange(4) % 3)])
    tangents = engine(work, blocks={"all": tuple(work.theta)}).graph(0).tangents
    assert tangents is not None
    names = frozenset(n for n in work.theta if n.split(".")[0] in layer.split())
    (near,) = tangents.means(names)
    assert type(near.node.rule).__name__ == node and len(near.taps) == len(layer.split())
    total = torch.zeros(4, dtype=torch.float64)
    for slot, tap in tangents.taps(names):
        for name in tap.names:
            for k in range(work.theta[name].numel()):
                unit = torch.zeros(work.theta[name].numel(), dtype=torch.float64).index_fill_(0, torch.tensor([k]), 1)

                def signs(*shape: int, shared: Tensor = unit, like: Tensor = work.theta[name]) -> Tensor:
                    """The matrix that all examples share is the unit direction; their own signs are 1."""
                    return shared.view(like.shape).mT if len(shape) == 2 else ones(*shape)

                if name == "place" or name.endswith("bias"):
                    shape = (4, 3, 4) if name == "place" else (4, 3, len(unit))
                    u = unit.view(3, 4).expand(shape) if name == "place" else unit.expand(shape)
                else:
                    u = tap.tangent(signs, frozenset([name]), False)
                whole = tangents.forms({slot: u}, before_head=True)
                others = tangents.forms({slot: u}, before_head=True, near=[near])
                total += (whole - others).sum(0) + near.mean
    same(near.mean, total)


# ------------------------------------------------------------------ whether it is possible at all
class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "answered"),
    [
        pytest.param(torch.tanh, {"3"}, id="a function without a rule"),
        pytest.param(Hidden.apply, set(), id="a function that no mode sees"),
        pytest.param(lambda x: x.clone().mul_(2), set(), id="in place"),
        pytest.param(torch.func.vmap(torch.sin), set(), id="vmap"),
        pytest.param(lambda x: x * x.mean(1, keepdim=True), {"3"}, id="a product of other shapes"),
        pytest.param(lambda x: x * 2, {"0", "1", "3"}, id="a function with one"),
    ],
)
def test_what_has_no_rule_falls_back_to_double_backward(
    function: Callable[[Tensor], Tensor], answered: set[str]
) -> None:
    work = Classification(net(nn.Linear(4, 5), nn.LayerNorm(5), Call(function), nn.Linear(5, 3)), vectors())
    ours, theirs = engine(work, use="probes"), engine(work, use="products")
    assert covered(ours) == answered and ours.twice == (len(answered) < 3)
    for layer in work.layers:
        found, truth = forms(ours, layer, 2), forms(theirs, layer, 2)
        same(found, truth)
        assert layer in answered or torch.equal(found, truth)


def test_a_resnet_falls_back_and_gives_the_same_bits() -> None:
    work = Classification(Vision(RESNET), images(32, (3,)))
    layers = dict(list(work.layers.items())[::6])
    ours, theirs = engine(work, blocks=layers, use="probes"), engine(work, blocks=layers, use="products")
    assert not covered(ours) and ours.twice
    assert all(torch.equal(forms(ours, layer), forms(theirs, layer)) for layer in layers)


@pytest.mark.parametrize("trouble", ["mean of the batch", "tokens first", "neighbours"])
def test_examples_that_see_each_other_in_known_operations_are_noticed(trouble: str) -> None:
    """Every operation has a rule; only the tangents themselves show whose row is whose."""
    near = torch.eye(4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64).roll(1, 0)
    mixed = {
        "mean of the batch": lambda x: x - x.mean(0, keepdim=True),
        "tokens first": lambda x: x.transpose(0, 1),
        "neighbours": lambda x: (near @ x.flatten(1)).reshape(4, 4, 4),
    }[trouble]
    body = [nn.Linear(5, 4), nn.GELU(), Call(mixed), nn.LayerNorm(4)]
    work = Classification(net(*body, nn.Linear(4, 3), Call(lambda x: x.reshape(4, 4, 3).mean(1))), [])
    work.batches = [(draw(4, 4, 5), torch.arange(4) % 3)]
    of = engine(work)
    assert covered(of) and "0.weight" not in of.by_example(0)
    assert forms(of, "0", 2).shape == (1, 2) and "see each other" in of.note("0")


# ------------------------------------------------------------------ as a part of the engine
def test_traces_alone_take_no_product_and_the_same_rows_come_out(
    tower: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = split_layers({n: t.shape for n, t in tower.theta.items()}, "block")

    def rows(wanted: Sequence[str], method: Any) -> list[dict[str, Any]]:
        settings = MeasureSettings(rtol=0.3, max_matvecs=6, trace_method=method)
        return measure_layers(tower, tower.theta, layers, wanted, settings).rows

    wanted = ("hessian_trace", "weighted_trace")
    with monkeypatch.context() as patch:
        patch.setattr(HessianEngine, "_product", None)
        found, split = rows(wanted, "per_example"), rows(wanted[:1], "controlled")
    with monkeypatch.context() as patch:
        patch.setattr(Tangents, "covers", lambda *_: False)
        patch.setattr("sharpscope.curvature.forms.stands_apart", lambda *_: False)
        truth = rows(wanted, "per_example")
    assert [r["num_matvecs"] for r in found] == [r["num_matvecs"] for r in truth]
    for ours, theirs in zip(found, truth, strict=True):
        for column in ("estimate", "stderr", "stderr_images"):
            assert ours[column] == pytest.approx(theirs[column], rel=1e-9), column
    for ours, theirs in zip(split, truth, strict=False):
        assert ours["layer"] == theirs["layer"] and math.isfinite(ours["stderr_images"])
        assert abs(ours["estimate"] - theirs["estimate"]) <= 4 * math.hypot(ours["stderr"], theirs["stderr"])


def test_adjoints_and_activations_count_in_the_plan_and_let_go_of_the_graph() -> None:
    work = Classification(Vision(VIT), images(8, (8,)))
    sizes = {}
    for use in ("probes", "products", "both"):
        of = engine(work, use=use)
        with second_order():
            least = needed(work, work.theta)
            _, plan = plan_memory(least, work.theta, list(work.theta), None, use)  # type: ignore[arg-type]
        assert plan.graph_bytes == of.graph_bytes
        sizes[use] = of.graph_bytes
    assert sizes["probes"] < 0.75 * sizes["products"] < sizes["products"] < sizes["both"]
    alive: list[weakref.ref[Tensor]] = []
    hook = work.module.visual.ln_post.register_forward_hook(lambda *seen: alive.append(weakref.ref(seen[-1])))
    tangents = engine(work, use="probes").graph(0).tangents
    hook.remove()
    gc.collect()
    assert alive and not any(ref() is not None for ref in alive)
    assert tangents is not None and not any(t.requires_grad for t in tangents.tensors)
    tight = engine(work, use="probes", memory=sizes["probes"])
    assert tight.plan.batches == 2 and tight.plan.kept == 0
    for layer in list(work.layers)[::4]:
        assert float(forms(tight, layer).sum()) == pytest.approx(float(forms(tight, layer).sum()), rel=1e-14)


def test_a_product_can_still_be_asked_for() -> None:
    work = Classification(Vision(VIT), images(8, (4,)))
    ours, theirs = engine(work, use="probes"), engine(work, use="products")
    layer = next(iter(work.layers))
    v = draw(ours.blocks[layer].size)
    with second_order():
        same(ours.operator(layer).matvec(v), theirs.operator(layer).matvec(v))
    same(forms(ours, layer), forms(theirs, layer))
