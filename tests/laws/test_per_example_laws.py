"""A direction of its own for every example: the same mean, n probes for one product, and honest about when not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.draws import rademacher
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import DenseOperator, Probes
from sharpscope.curvature.trace import hutchinson, per_example_trace

open_clip = pytest.importorskip("open_clip")


@dataclass
class Loss:
    """Mean cross-entropy (or ``loss``) of a module over batches."""

    module: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    loss: Callable[..., Tensor] = F.cross_entropy

    @property
    def batch_sizes(self) -> list[int]:
        return [len(x) for x, _ in self.batches]

    @property
    def weights(self) -> list[float]:
        return [n / sum(self.batch_sizes) for n in self.batch_sizes]

    @property
    def theta(self) -> dict[str, Tensor]:
        return {n: p.detach().double() for n, p in self.module.named_parameters()}

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        x, y = self.batches[i]
        return self.loss(torch.func.functional_call(self.module, dict(theta), (x,)), y)

    def engine(self, *, blocks: Mapping[str, Sequence[str]] | None = None, **how: object) -> HessianEngine:
        blocks = {n: (n,) for n in self.theta} if blocks is None else blocks
        with second_order():
            return HessianEngine(self, self.theta, blocks, **how)  # type: ignore[arg-type]


def data(sizes: Sequence[int], *shape: int, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    draw = lambda n: torch.randn(n, *shape, generator=g, dtype=torch.float64)  # noqa: E731
    return [(draw(n), torch.randint(0, classes, (n,), generator=g)) for n in sizes]


class Vision(nn.Module):
    """A small open_clip ViT or ResNet with a head; every kind of place where parameters enter."""

    def __init__(self, vision: dict[str, object]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            text = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1}
            self.visual = open_clip.CLIP(embed_dim=6, vision_cfg=vision, text_cfg=text).visual
            self.head = nn.Linear(6, 3)
        self.logit_scale = nn.Parameter(torch.tensor(0.5))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.logit_scale.exp() * self.head(F.normalize(self.visual(x), dim=-1))


VIT = {"image_size": 8, "patch_size": 4, "width": 8, "layers": 2, "head_width": 4}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "head_width": 4, "patch_size": None}


@pytest.mark.parametrize(
    ("vision", "image", "shared"),
    [
        pytest.param(VIT, 8, {"logit_scale"}, id="ViT"),
        pytest.param(VIT | {"ls_init_value": 0.1}, 8, {"logit_scale"}, id="ViT with layer scale"),
        pytest.param(RESNET, 32, None, id="ResNet"),
    ],
)
def test_every_tensor_s_mean_is_its_trace_whatever_the_batches(
    vision: dict[str, object], image: int, shared: set[str] | None
) -> None:
    loss = Loss(Vision(vision), data([5, 3], 3, image, image))
    engine = loss.engine()
    assert engine.by_example(0)
    graph = engine.graph(0)
    assert shared is None or set(engine.params) - graph.tapped == shared
    generator = torch.Generator().manual_seed(1)
    small = [n for n in engine.blocks if engine.blocks[n].size <= 64]
    names = ["logit_scale", *small[1 :: len(small) // 9]]
    assert len(names) > 8 and small[0] == "logit_scale"
    for name in names:
        truth = sum(_diagonal(engine, name))
        parts = engine.operator(name).answer(Probes(30, generator))
        assert parts.shape == (8 if name in graph.tapped else 2, 30)
        estimate = parts.sum(0)
        stderr = float(parts.var(1).sum() / 30) ** 0.5
        assert abs(float(estimate.mean()) - truth) <= 5 * stderr + 1e-9, name


def _diagonal(engine: HessianEngine, name: str) -> list[float]:
    size = engine.blocks[name].size
    return engine.operator(name).matmat(torch.eye(size, dtype=torch.float64)).diagonal().tolist()


def test_weighted_by_the_magnitudes_of_the_parameters() -> None:
    loss = Loss(Vision(VIT), data([6], 3, 8, 8))
    engine = loss.engine()
    generator = torch.Generator().manual_seed(2)
    for name in list(engine.blocks)[:12]:
        truth = float((torch.tensor(_diagonal(engine, name)) * engine.weights(name) ** 2).sum())
        parts = engine.operator(name).answer(Probes(40, generator, weighted=True))
        stderr = float(parts.var(1).sum() / 40) ** 0.5
        assert abs(float(parts.sum(0).mean()) - truth) <= 5 * stderr + 1e-9, name


def test_examples_that_agree_count_as_that_many_probes() -> None:
    """n copies of one example: the variance of a shared direction over n."""
    (x, y), n = data([1], 3, 8, 8)[0], 16
    loss = Loss(Vision(VIT), [(x.expand(n, -1, -1, -1), y.expand(n))])
    engine = loss.engine(blocks={"mlp": ["visual.transformer.resblocks.0.mlp.c_fc.weight"]})
    size = engine.blocks["mlp"].size
    h = engine.operator("mlp").matmat(torch.eye(size, dtype=torch.float64))
    shared = 2 * float((h**2).sum() - (h.diagonal() ** 2).sum())
    estimates = engine.operator("mlp").answer(Probes(400, torch.Generator().manual_seed(0))).sum(0)
    # the variance of 400 values is known to sqrt(2 / 400) = 7 %
    assert float(estimates.var()) == pytest.approx(shared / n, rel=0.3)


@pytest.mark.parametrize("trouble", ["batch norm in training", "contrastive", "tokens first"])
def test_examples_that_see_each_other_are_noticed(trouble: str) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 4, 5, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    net: nn.Module = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)).double()
    loss: Callable[..., Tensor] = F.cross_entropy
    if trouble == "batch norm in training":
        net = nn.Sequential(nn.Flatten(), nn.Linear(20, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    elif trouble == "contrastive":
        loss = lambda z, y: F.cross_entropy(z @ z.mT, torch.arange(4))  # noqa: E731
    else:  # as many tokens as examples, in the first dimension

        class TokensFirst(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mix = nn.Linear(5, 3).double()

            def forward(self, x: Tensor) -> Tensor:
                return torch.tanh(self.mix(x.transpose(0, 1))).mean(0)

        net = TokensFirst()
    work = Loss(net, [(x, y)], loss)
    engine = work.engine()
    assert not engine.by_example(0)
    name = next(n for n in engine.blocks if n.endswith("weight"))
    parts = engine.operator(name).answer(Probes(200, torch.Generator().manual_seed(1)))
    assert parts.shape == (1, 200)
    stderr = float(parts.std()) / 200**0.5
    assert abs(float(parts.mean()) - sum(_diagonal(engine, name))) <= 5 * stderr + 1e-9


@pytest.mark.parametrize("sizes", [(6, 4), (1, 4)])
def test_as_many_tokens_as_examples_in_a_later_batch_deceive_nobody(sizes: tuple[int, int]) -> None:
    class TokensFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(5, 3).double()
            self.head = nn.Linear(3, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.mix(x.transpose(0, 1))).mean(0))

    engine = Loss(TokensFirst(), data(sizes, 4, 5)).engine()  # four tokens, and four examples in the second batch
    parts = engine.operator("mix.weight").answer(Probes(300, torch.Generator().manual_seed(1)))
    assert parts.shape == (2, 300)
    assert (
        abs(float(parts.sum(0).mean()) - sum(_diagonal(engine, "mix.weight")))
        <= 5 * float(parts.sum(0).std()) / 300**0.5
    )


def test_a_parameter_used_twice_overwritten_or_otherwise_is_left_to_shared_directions() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.overwritten = nn.Linear(5, 5).double()
            self.tied = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)).double())
            self.odd = nn.Parameter(torch.ones(5).double())
            self.last = nn.Linear(5, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.overwritten(x).mul_(2).tanh()
            return self.last(torch.tanh(F.linear(torch.tanh(F.linear(x, self.tied)), self.tied)) * self.odd.sin())

    engine = Loss(Tied(), data([7], 5)).engine()
    assert engine.by_example(0)
    assert engine.graph(0).tapped == {"last.weight", "last.bias"}
    parts = engine.operator("tied").answer(Probes(300, torch.Generator().manual_seed(1)))
    assert parts.shape == (1, 300)
    assert abs(float(parts.mean()) - sum(_diagonal(engine, "tied"))) <= 5 * float(parts.std()) / 300**0.5


def test_kept_and_rebuilt_graphs_give_the_same_bits() -> None:
    loss = Loss(Vision(VIT), data([5, 5, 3], 3, 8, 8))
    ask = lambda engine: engine.operator("head.weight").answer(Probes(3, torch.Generator().manual_seed(4)))  # noqa: E731
    assert torch.equal(ask(loss.engine()), ask(loss.engine(memory=1)))


class Examples(DenseOperator):
    """The mean of one matrix an example, which can give each a direction of its own."""

    def __init__(self, n: int, size: int, tail: float) -> None:
        g = torch.Generator().manual_seed(n)
        common = torch.randn(1, size, 4, generator=g, dtype=torch.float64)
        own = torch.randn(n, size, 4, generator=g, dtype=torch.float64)
        heavy = torch.rand(n, 1, 1, generator=g, dtype=torch.float64) ** -tail  # few examples carry most of it
        self.each = heavy * ((common + own) @ (common + own).mT - 2 * own @ own.mT / size)
        super().__init__(self.each.mean(0))

    def answer(self, request: Tensor | Probes) -> Tensor:
        if isinstance(request, Tensor):
            return self.matrix @ request
        n, size, _ = self.each.shape
        v = rademacher((n, size, request.count), request.generator).double()
        return (v * (self.each @ v)).sum(1) / n


@pytest.mark.parametrize(("n", "tail"), [(64, 0.0), (64, 0.6), (8, 0.3), (1, 0.0), (256, 1.0)])
def test_estimate_covers_the_trace_at_least_nominally_over_200_seeds(n: int, tail: float) -> None:
    operator = Examples(n, 40, tail)
    truth = float(operator.matrix.trace())
    found = [per_example_trace(operator, seed=s, rtol=0.1, max_matvecs=39) for s in range(200)]
    covered = sum(abs(f.estimate - truth) <= 1.96 * f.stderr for f in found)
    assert covered >= 183  # 190 expected; a fair 95 % interval falls below 183 once in 500
    bias = sum(f.estimate for f in found) / 200 - truth
    assert abs(bias) <= 4 * sum(f.stderr**2 for f in found) ** 0.5 / 200  # looking before stopping biases nothing
    reference = [hutchinson(DenseOperator(operator.matrix), seed=s, rtol=0.1, max_matvecs=39) for s in range(50)]
    if n == 64:
        assert sum(f.num_matvecs for f in found) / 200 < 0.5 * sum(f.num_matvecs for f in reference) / 50


def test_an_operator_without_examples_is_probed_as_by_hutchinson() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(60, 60, generator=g, dtype=torch.float64)
    operator = DenseOperator(a @ a.mT)
    found = per_example_trace(operator, seed=0, rtol=0.05, max_matvecs=50)
    assert abs(found.estimate - float(operator.matrix.trace())) <= 4 * found.stderr
    assert found.num_matvecs <= 50
    scale = torch.rand(2, generator=g, dtype=torch.float64)
    small = DenseOperator(torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64)))
    exact = per_example_trace(small, seed=0, scale=scale)
    assert exact.stderr == 0.0
    assert exact.estimate == pytest.approx(float(3 * scale[0] ** 2 - scale[1] ** 2))
