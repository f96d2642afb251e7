"""Rows that the loss does not read are not computed, which changes nothing; whatever reads them is computed in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from sharpscope.curvature import hvp
from sharpscope.curvature.arithmetic import in_precision, second_order
from sharpscope.curvature.draws import SignStream
from sharpscope.curvature.ggn import ggn_trace
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.needed import needed
from sharpscope.curvature.operator import Divisible, Objective, Probes

TOKENS, WIDTH = 5, 8


@dataclass
class Loss:
    net: nn.Module
    images: Tensor
    labels: Tensor
    weights: tuple[float, ...] = (1.0,)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return (len(self.labels),)

    @property
    def batch_size(self) -> int:
        return len(self.labels)

    @property
    def theta(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.net.named_parameters()}

    def rebatched(self, size: int) -> Loss:
        return Loss(self.net, self.images[:size], self.labels[:size])

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.net, dict(theta), (self.images,))

    def batch_labels(self, i: int) -> Tensor:
        return self.labels

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.labels)


def of(net: nn.Module, *shape: int, n: int = 6) -> Loss:
    g = torch.Generator().manual_seed(0)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return Loss(net, torch.randn(n, *shape, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g))


def tower(**more: Any) -> Loss:
    cfg = {"image_size": 8, "patch_size": 4, "width": WIDTH, "layers": 2, "head_width": 4, "mlp_ratio": 2.0, **more}
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    return of(open_clip.CLIP(embed_dim=3, vision_cfg=cfg, text_cfg=text).visual, 3, 8, 8)


class Rows(nn.Module):
    """Tokens that are mixed once, and an MLP with a residual sum behind it; ``read`` makes a feature of them."""

    def __init__(self, read: Callable[[Tensor], Tensor], mixed: bool = True) -> None:
        super().__init__()
        self.read, self.mixed = read, mixed
        self.mix = nn.Parameter(torch.empty(TOKENS, TOKENS))
        self.scale = nn.Parameter(torch.empty(WIDTH))
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix @ x
        x = x + self.down(F.gelu(self.up(self.norm(x)))) * self.scale
        return self.head(self.read(x))


class Widest(TorchFunctionMode):
    """The largest number of rows that F.linear gets from a batch of ``n``, by the shape of its weight."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.rows = n, dict[tuple[int, ...], int]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args[0]) == self.n and args[0].ndim == 3:
            shape = tuple(args[1].shape)
            self.rows[shape] = min(args[0].shape[1], self.rows.get(shape, 99))
        return func(*args, **(kwargs or {}))


def rows(loss: Objective, theta: Mapping[str, Tensor]) -> dict[tuple[int, ...], int]:
    with Widest(6) as seen:
        loss.batch_loss(0, {n: t.requires_grad_() for n, t in theta.items()})
    return seen.rows


UP, DOWN = (2 * WIDTH, WIDTH), (WIDTH, 2 * WIDTH)


@pytest.mark.parametrize(
    ("read", "count"),
    [
        (lambda x: x[:, 0], 1),
        (lambda x: x.select(1, 0), 1),
        (lambda x: x.to(x.dtype)[:, 0], 1),
        (lambda x: (x[:, 0], x[:, 1:])[0], 1),
        (lambda x: x[:, 0] + x[:, 0].tanh(), 1),
        (lambda x: x.mean(1), TOKENS),
        (lambda x: x[:, 1], TOKENS),
        (lambda x: x[:, -1], TOKENS),
        (lambda x: x[:, 0] + 0 * x.sum(1), TOKENS),
        (lambda x: x[:, 0] * x.shape[1], TOKENS),
        (lambda x: x[:, 0] * x.detach().max(), TOKENS),
        (lambda x: x[:, 0] * float(x.detach().sum().tanh()), TOKENS),
        (lambda x: x[torch.arange(len(x)), x.detach().sum(2).argmax(1)], TOKENS),
        (lambda x: x.flatten(1)[:, :WIDTH], TOKENS),
        (lambda x: x.softmax(1)[:, 0], TOKENS),
        (lambda x: x.add_(1)[:, 0], TOKENS),
    ],
)
def test_only_the_rows_that_are_read_are_computed(read: Callable[[Tensor], Tensor], count: int) -> None:
    loss = of(Rows(read), TOKENS, WIDTH)
    assert rows(needed(loss, loss.theta), loss.theta) == {UP: count, DOWN: count}
    assert rows(loss, loss.theta) == {UP: TOKENS, DOWN: TOKENS}


def engines(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> tuple[HessianEngine, HessianEngine]:
    """With the rows that are needed, and with all."""
    blocks = {n: (n,) for n in loss.theta} | {"(all)": tuple(loss.theta)}
    with second_order():
        ours = HessianEngine(loss, loss.theta, blocks)
        monkeypatch.setattr(hvp, "needed", lambda objective, theta: objective)
        return ours, HessianEngine(loss, loss.theta, blocks)


TOWERS = {
    "class token": {},
    "norm behind the pooling": {"final_ln_after_pool": True},
    "layer scale": {"ls_init_value": 0.5},
    "mean of tokens": {"pool_type": "avg"},
}


@pytest.mark.parametrize("kind", TOWERS)
def test_products_and_every_example_s_forms_are_those_of_all_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = tower(**TOWERS[kind])
    ours, full = engines(loss, monkeypatch)
    saved = ours.graph_bytes < full.graph_bytes
    assert saved == (kind != "mean of tokens")
    assert ours.loss == pytest.approx(full.loss, rel=1e-13)
    for layer, spec in ours.blocks.items():
        v = torch.randn(spec.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with second_order():
            truth = full.operator(layer).matvec(v)
            scale = float(full.operator("(all)").matvec(torch.ones(full.blocks["(all)"].size).double()).norm())
            torch.testing.assert_close(ours.operator(layer).matvec(v), truth, rtol=1e-9, atol=1e-12 * scale)
            a, b = (e.operator(layer).answer(Probes(2, torch.Generator().manual_seed(2))) for e in (ours, full))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * scale)
        torch.testing.assert_close(ours.gradient(layer), full.gradient(layer), rtol=1e-9, atol=1e-12 * scale)


def test_the_last_block_runs_for_the_class_token_alone_and_its_attention_gets_one_query() -> None:
    loss = tower()
    queries: list[tuple[int, int]] = []
    plain = F.scaled_dot_product_attention

    class Attentions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is plain:
                queries.append((args[0].shape[-2], args[1].shape[-2]))
            return func(*args, **(kwargs or {}))

    least = needed(loss, loss.theta)
    with Attentions():
        least.batch_loss(0, {n: t.requires_grad_() for n, t in loss.theta.items()})
    assert queries == [(1, TOKENS)], "that of the last block; torch computes the first one's inside"
    assert rows(least, loss.theta)[16, 8] == 1


def test_traces_of_the_gauss_newton_part_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = tower()
    blocks = {n: (n,) for n in loss.theta}
    with second_order():
        ours = ggn_trace(loss, loss.theta, blocks, seed=0)
        monkeypatch.setattr("sharpscope.curvature.ggn.needed", lambda objective, theta: objective)
        full = ggn_trace(loss, loss.theta, blocks, seed=0)
    for x, f in full.items():
        assert ours[x].estimate == pytest.approx(f.estimate, rel=1e-10, abs=1e-14)


def test_the_mean_of_the_last_attention_s_form_is_known_for_its_one_query() -> None:
    loss = tower()
    (block,) = {n.rsplit(".", 1)[0] for n in loss.theta if "resblocks.1" in n and "in_proj" in n}
    names = frozenset({f"{block}.in_proj_weight", f"{block}.in_proj_bias"})
    with second_order():
        engine = HessianEngine(loss, loss.theta, {"in": sorted(names)}, use="probes")
        tangents = engine.graph(0).tangents
        assert tangents is not None
        (near,) = tangents.means(names)
        generator, found = torch.Generator().manual_seed(0), []
        for _ in range(400):
            signs = SignStream(generator, torch.device("cpu"), torch.float64)
            seeds = {slot: tap.tangent(signs, names, False) for slot, tap in tangents.taps(names)}
            parts = [tangents.forms(seeds, before_head=True, near=k).sum(0) for k in ((), (near,))]
            found.append(torch.stack(parts))
    sampled, known = torch.stack(found).unbind(1)
    error = (sampled - known).std(0) / 400**0.5
    assert (sampled.std(0) > 0).all() and ((sampled - known).mean(0).abs() <= 5 * error).all()
    assert float(known.var(0).sum()) < float(sampled.var(0).sum()), "what is known need not be sampled"


def test_a_pass_that_makes_other_calls_is_computed_in_full() -> None:
    class Fickle(Rows):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 1 if len(x) > 2 else x)  # the passes that are watched have two examples

    loss = of(Fickle(lambda x: x[:, 0]), TOKENS, WIDTH)
    least = needed(loss, loss.theta)
    with Widest(2) as two:
        least.rebatched(2).batch_loss(0, {n: t.requires_grad_() for n, t in loss.theta.items()})
    assert two.rows == {UP: 1, DOWN: 1}
    with Widest(6) as six:
        found = least.batch_loss(0, {n: t.requires_grad_() for n, t in loss.theta.items()})
    assert torch.equal(found, loss.batch_loss(0, loss.theta)) and six.rows == {UP: TOKENS, DOWN: TOKENS}


def test_what_only_the_first_pass_does_is_no_hindrance() -> None:
    """As a model that moves its constants to a device when it is first used there."""

    class Lazy(Rows):
        constant: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.constant is None:
                self.constant = torch.ones(1, dtype=x.dtype).to(x.device).expand(WIDTH).contiguous()
            return super().forward(x * self.constant)

    loss = of(Lazy(lambda x: x[:, 0]), TOKENS, WIDTH)
    assert rows(needed(loss, loss.theta), loss.theta) == {UP: 1, DOWN: 1}


@pytest.mark.parametrize("with_gradients", [True, False])
def test_the_plan_does_not_depend_on_who_asks(with_gradients: bool) -> None:
    """Constants, and a pass without gradients, would take torch's fast path of attention."""
    loss = tower()
    with torch.set_grad_enabled(with_gradients):
        least = needed(loss, loss.theta)
    assert rows(least, loss.theta)[16, 8] == 1
    with torch.no_grad(), second_order(), Widest(6) as seen:
        least.batch_loss(0, loss.theta)
    assert seen.rows[16, 8] == 1


def test_it_is_the_same_objective_in_every_other_respect() -> None:
    loss = tower()
    least = needed(loss, loss.theta)
    assert isinstance(least, Divisible) and not hasattr(least, "suffix")
    assert least.batch_sizes == (6,) and least.weights == (1.0,) and torch.equal(least.batch_labels(0), loss.labels)
    assert needed(least, loss.theta) is least and needed(least.rebatched(3), loss.theta).batch_sizes == (3,)
    half = in_precision(least, "bf16", loss.theta)
    assert half.batch_logits(0, loss.theta).dtype == torch.float32 and half.batch_sizes == (6,)


def test_a_loss_that_cannot_be_watched_stays_as_it_is() -> None:
    class Broken(Loss):
        def rebatched(self, size: int) -> Loss:
            raise RuntimeError("no")

    loss = of(Rows(lambda x: x[:, 0]), TOKENS, WIDTH)
    broken = Broken(loss.net, loss.images, loss.labels)
    assert rows(needed(broken, loss.theta), loss.theta) == {UP: TOKENS, DOWN: TOKENS}
