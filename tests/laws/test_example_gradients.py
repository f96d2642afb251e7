"""Gauss-Newton traces from the gradient norms of single examples: closed forms, whatever the net, and honest errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.ggn import fisher_trace, ggn_trace
from sharpscope.curvature.graphs import watched
from sharpscope.curvature.needed import TRIED
from sharpscope.curvature.trace import TraceEstimate

open_clip = pytest.importorskip("open_clip")


@dataclass
class Classification:
    """Cross-entropy of a module over ragged batches; can be cut into others, and counts its forward passes."""

    net: nn.Module
    batches: Sequence[tuple[Tensor, Tensor]]
    calls: list[int] = field(default_factory=list)

    @property
    def batch_sizes(self) -> list[int]:
        return [len(y) for _, y in self.batches]

    @property
    def weights(self) -> list[float]:
        return [k / sum(self.batch_sizes) for k in self.batch_sizes]

    @property
    def batch_size(self) -> int:
        return max(self.batch_sizes)

    @property
    def theta(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.net.named_parameters()}

    def rebatched(self, size: int) -> Classification:
        parts = [p for x, y in self.batches for p in zip(x.split(size), y.split(size), strict=True)]
        return Classification(self.net, parts, self.calls)

    def batch_logits(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        self.calls.append(len(self.batches[i][1]))
        return torch.func.functional_call(self.net, dict(theta), (self.batches[i][0],))

    def batch_labels(self, i: int) -> Tensor:
        return self.batches[i][1]

    def batch_loss(self, i: int, theta: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.batch_logits(i, theta), self.batches[i][1])


class Uncut:
    """The same without the right to be cut."""

    def __init__(self, inner: Classification) -> None:
        self.weights, self.batch_sizes, self.theta = inner.weights, inner.batch_sizes, inner.theta
        self.batch_logits, self.batch_labels = inner.batch_logits, inner.batch_labels


def work(net: nn.Module, sizes: Sequence[int], *shape: int, classes: int = 3) -> Classification:
    """Weights that are nowhere degenerate and the same in every run (constants keep their offset), and data."""
    g = torch.Generator().manual_seed(5)
    net = net.double().eval()
    with torch.no_grad():
        for p in net.parameters():
            offset = p.flatten()[0] if bool((p == p.flatten()[0]).all()) and p.numel() > 1 else 0.0
            p.copy_(offset + 0.4 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    draw = lambda n: torch.randn(n, *shape, generator=g, dtype=torch.float64)  # noqa: E731
    return Classification(net, [(draw(n), torch.randint(0, classes, (n,), generator=g)) for n in sizes])


def jacobian_traces(objective: Classification) -> dict[str, float]:
    """tr sum_j w_j J_j' (diag p_j - p_j p_j') J_j of every tensor, from the Jacobian of the batch, written out."""
    theta = objective.theta
    out = dict.fromkeys(theta, 0.0)
    for i, weight in enumerate(objective.weights):
        leaves = {n: t.clone().requires_grad_() for n, t in theta.items()}
        logits = objective.batch_logits(i, leaves)
        p = logits.detach().softmax(1)
        for row, q in zip(logits, p, strict=True):
            rows = [torch.autograd.grad(z, list(leaves.values()), retain_graph=True, allow_unused=True) for z in row]
            for name, jac in zip(leaves, zip(*rows, strict=True), strict=True):
                if jac[0] is not None:
                    j = torch.stack([r.reshape(-1) for r in jac])
                    inner = torch.diag(q) - torch.outer(q, q)
                    out[name] += weight / len(p) * float(torch.trace(j.mT @ inner @ j))
    return out


def blocks_of(theta: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    return {"(all)": tuple(theta), **{n: (n,) for n in theta}}


def exact(objective: object, **how: object) -> dict[str, TraceEstimate]:
    with second_order():
        return ggn_trace(objective, objective.theta, blocks_of(objective.theta), seed=0, **how)


def same(found: Mapping[str, TraceEstimate], truth: Mapping[str, float]) -> None:
    whole = sum(truth.values())
    assert whole > 0
    for name, value in {**truth, "(all)": whole}.items():
        # a key's bias has no gradient at all: rounding is all that there is to compare with
        assert found[name].estimate == pytest.approx(value, rel=1e-10, abs=1e-13 * whole), name
        assert (found[name].stderr, found[name].converged) == (0.0, True)


# ------------------------------------------------------------------ every kind of place
class Tokens(nn.Module):
    """Class token, positions, layer norm, products with and without tokens, a scale, a projection by @."""

    def __init__(self, width: int, out: int = 3) -> None:
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(5, width))
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Linear(width, 7)
        self.scale = nn.Parameter(torch.ones(7))
        self.projection = nn.Parameter(torch.zeros(7, 4))
        self.head = nn.Linear(4, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.token.view(1, 1, -1).expand(len(x), 1, -1), x], dim=1)
        x = self.norm(x + self.positions)
        return self.head(torch.tanh(torch.tanh(self.mlp(x)).mul(self.scale)[:, :2].sum(1) @ self.projection))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 2, stride=2),
        nn.Tanh(), nn.Conv2d(5, 3, 2, dilation=2, bias=False), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


def vision() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return open_clip.CLIP(
            embed_dim=3,
            vision_cfg={"image_size": 8, "patch_size": 4, "width": 8, "layers": 2, "head_width": 4},
            text_cfg={"context_length": 4, "vocab_size": 8, "width": 16, "heads": 1, "layers": 1},
        ).visual


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), (6,)),
    "tokens, narrow": (lambda: Tokens(2), (4, 5)),  # ||sum_t g_t x_t'|| from the matrix itself
    "tokens, wide": (lambda: Tokens(40), (4, 5)),  # and from the inner products of tokens
    "convolutions": (convolutions, (2, 8, 8)),
    "open_clip ViT": (vision, (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_every_tensor_s_trace_is_that_of_its_jacobian_in_as_many_passes_as_classes(name: str) -> None:
    make, shape = NETS[name]
    objective = work(make(), (5, 1, 3), *shape)
    truth = jacobian_traces(objective)
    objective.calls.clear()
    found = exact(objective)
    same(found, truth)
    assert found["(all)"].num_matvecs == 3
    watched = [TRIED] * (1 if objective.calls[1] != TRIED else 4)  # for rows that the loss does not read
    assert objective.calls == [*watched, 5, 5, 1, 3]  # one look at what sees what; no example is cut out


def test_the_norms_at_the_places_are_those_of_the_examples_gradients() -> None:
    objective = work(Tokens(6), (4,), 4, 5)
    params = {n: t.requires_grad_() for n, t in objective.theta.items()}
    logits, taps = watched(objective.batch_logits, 0, params, params, 4, analytic=True)
    cotangent = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = torch.autograd.grad(logits, [t.y for t in taps], cotangent, retain_graph=True)
    found = {k: v for t, g in zip(taps, at, strict=True) for k, v in t.squares(g, frozenset(t.names)).items()}
    assert set(found) == set(params)
    for j in range(4):
        grads = torch.autograd.grad(logits[j] @ cotangent[j], list(params.values()), retain_graph=True)
        for name, g in zip(params, grads, strict=True):
            assert found[name].dtype == torch.float64
            assert float(found[name][j]) == pytest.approx(float(g.square().sum()), rel=1e-12), name
    assert all(not t.squares(g, frozenset()) for t, g in zip(taps, at, strict=True))


def test_batches_and_their_order_do_not_matter() -> None:
    objective = work(Tokens(6), (4, 3, 2), 4, 5)
    truth = {k: v.estimate for k, v in exact(objective).items()}
    turned = Classification(objective.net, [objective.batches[i] for i in (2, 0, 1)])
    for other in (turned, objective.rebatched(2), objective.rebatched(1)):
        for name, found in exact(other).items():
            assert found.estimate == pytest.approx(truth[name], rel=1e-12)


# ------------------------------------------------------------------ what cannot be had at places
class Odd(nn.Module):
    """One matrix used twice, one parameter through a sine, beside what is tapped."""

    def __init__(self, out: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.tied = nn.Parameter(torch.zeros(4, 4))
        self.odd = nn.Parameter(torch.ones(4))
        self.idle = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(4, out)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(F.linear(torch.tanh(F.linear(x, self.tied)), self.tied)) * self.odd.sin())


class Normed(nn.Module):
    """Batch norm in training mode: each example sees the others, up to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = (
            nn.Linear(5, 4),
            nn.BatchNorm1d(4, track_running_stats=False),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))))


class TokensFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x.transpose(0, 1))).sum(0))


def test_a_parameter_used_twice_or_otherwise_is_taken_example_by_example_and_no_other() -> None:
    objective = work(Odd(), (4, 3), 5)
    truth = jacobian_traces(objective)
    objective.calls.clear()
    found = exact(objective, rtol=1e-9, max_probes=100)
    same(found, truth)
    assert truth["idle"] == 0 and truth["tied"] > 0 and objective.calls.count(1) == 7


@pytest.mark.parametrize("name", ["first.weight", "tied", "odd", "(all)"])
def test_where_the_objective_cannot_be_cut_they_are_sampled_beside_the_exact_others(name: str) -> None:
    objective = work(Odd(), (4, 3), 5)
    truth = jacobian_traces(objective)
    truth["(all)"] = sum(truth.values())
    found = exact(Uncut(objective), rtol=0.02, max_probes=4000)[name]
    if name == "first.weight":
        assert (found.stderr, found.estimate) == (0.0, pytest.approx(truth[name], rel=1e-12))
    else:
        assert found.converged and 0 < abs(found.estimate - truth[name]) <= 4 * found.stderr


@pytest.mark.parametrize("size", [4, 5, 1])
def test_examples_that_see_each_other_are_noticed(size: int) -> None:
    """Four tokens and four examples: a first dimension that looks like the examples', in the first batch or later."""
    tokens = work(TokensFirst(), (size, 4), 4, 5)
    truth = jacobian_traces(tokens)
    tokens.calls.clear()
    same(exact(tokens, rtol=1e-9, max_probes=100), truth)
    assert tokens.calls[-size - 4 :] == [1] * (size + 4) and tokens.calls.count(4) > 1  # sampled, then cut
    normed = work(Normed(), (6,), 5)
    normed.net.train()
    truth = jacobian_traces(normed)
    found = exact(Uncut(normed), rtol=0.03, max_probes=4000)
    assert found["head.weight"].stderr == 0 and found["head.weight"].estimate == pytest.approx(truth["head.weight"])
    # of a batch that sees itself, the Gauss-Newton block has terms between examples' logits and one Jacobian for each
    assert abs(found["first.weight"].estimate - truth["first.weight"]) <= 4 * found["first.weight"].stderr
    assert found["first.weight"].stderr > 0


def test_several_rows_of_logits_for_an_example_are_rows_of_the_softmax_each() -> None:
    """A loss over all tokens: no place has a row a row of logits, and none is assumed."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.first(x)).cumsum(1)).flatten(0, 1)

    objective = work(Dense(), (4, 2), 2, 5)
    same(exact(objective, rtol=1e-9, max_probes=100), jacobian_traces(objective))


# ------------------------------------------------------------------ many classes
MANY = 20


@pytest.mark.parametrize("estimate", [ggn_trace, fisher_trace])
@pytest.mark.parametrize("net", ["tapped", "odd"])
def test_sampled_estimates_are_unbiased_and_their_intervals_hold_over_200_seeds(
    estimate: Callable[..., dict[str, TraceEstimate]], net: str
) -> None:
    module = Odd(MANY) if net == "odd" else nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, MANY))
    objective = work(module, (5, 2), 5, classes=MANY)
    truth = jacobian_traces(objective)
    layer = ("first.weight", "tied") if net == "odd" else ("0.weight", "0.bias")
    value = sum(truth[n] for n in layer)
    theta = objective.theta
    # dearer to settle than what may be spent: every seed samples, and most stop at the tolerance
    found = [estimate(objective, theta, {"x": layer}, seed=s, rtol=0.15, max_probes=MANY - 1)["x"] for s in range(200)]
    assert all(f.stderr > 0 for f in found) and len({f.num_matvecs for f in found}) > 1
    covered = sum(abs(f.estimate - value) <= 1.96 * f.stderr for f in found)
    assert covered >= 183  # 190 expected; a fair 95 % interval falls below 183 once in 500
    bias = sum(f.estimate for f in found) / 200 - value
    assert abs(bias) <= 4 * math.sqrt(sum(f.stderr**2 for f in found)) / 200


def test_signs_of_the_examples_own_need_fewer_probes_than_a_batch_s_sum() -> None:
    objective = work(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, MANY)), (40, 24), 5, classes=MANY)
    theta, blocks = objective.theta, {"x": ("0.weight",)}
    alone = ggn_trace(Uncut(objective), theta, blocks, seed=0, rtol=0.05, max_probes=MANY - 1)["x"]
    summed = Uncut(objective)
    del summed.batch_sizes
    together = ggn_trace(summed, theta, blocks, seed=0, rtol=0.05, max_probes=4000)["x"]
    assert alone.converged and together.converged and together.num_matvecs > 2 * alone.num_matvecs


def test_what_the_tolerance_needs_is_settled_where_that_is_cheaper() -> None:
    objective = work(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, MANY)), (9, 5), 5, classes=MANY)
    found = exact(objective, rtol=1e-3, max_probes=200)
    same(found, jacobian_traces(objective))
    assert MANY < found["(all)"].num_matvecs < MANY + 10  # a few to see that it would take more, then all columns
    few = exact(objective, rtol=1e-3, max_probes=12)
    assert few["(all)"].num_matvecs == 12 and not few["(all)"].converged and few["(all)"].stderr > 0
