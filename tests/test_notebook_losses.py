"""Losses, modules and loaders of the kinds that users bring: the dense Hessian's numbers, or a reason why not."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from sharpscope import layer_curvature
from sharpscope.errors import ConfigError, NonDeterministicProbe, NumericalError

Loss = Callable[[nn.Module, Any], Tensor]
Batch = tuple[Tensor, ...]
WIDE = 16


def draws() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(24, 6, generator=g) + 1, torch.randint(0, 3, (24,), generator=g)


X, Y = draws()
BATCHES: list[Batch] = [(X[:16], Y[:16]), (X[16:], Y[16:])]


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        return make()


def net(width: int = 6) -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)))  # type: ignore[return-value]


def loss(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(module(batch[0]), batch[1])


def dense(module: nn.Module, loss: Loss, batches: Sequence[Batch]) -> dict[str, float]:
    """{parameter, or (all): trace of its block}, by torch's own double backward in float64."""
    module = copy.deepcopy(module).eval().double()
    double = [tuple(t.double() if t.is_floating_point() else t for t in b) for b in batches]
    n = sum(len(b[0]) for b in batches)
    params = dict(module.named_parameters())
    total = sum(len(b[0]) / n * loss(module, b) for b in double)
    grads = torch.autograd.grad(total, list(params.values()), create_graph=True, allow_unused=True)  # type: ignore[arg-type]
    out = {}
    for (name, p), g in zip(params.items(), grads, strict=True):
        rows = [torch.autograd.grad(e, p, retain_graph=True)[0].reshape(-1)[i] for i, e in enumerate(g.reshape(-1))]
        out[name] = float(torch.stack(rows).sum())
    return {"(all)": sum(out.values()), **out}


def table(module: nn.Module, loss: Loss, batches: Any, measure: str = "hessian_trace", **how: Any) -> pd.DataFrame:
    settings = {"granularity": "tensor", "measures": (measure,), "max_matvecs": 60, **how}
    return layer_curvature(module, loss, batches, **settings).set_index("layer")


def agrees(found: pd.DataFrame, truth: dict[str, float]) -> None:
    """Every row is there and within five standard errors, or rounding."""
    assert set(found.index) == set(truth)
    for layer, value in truth.items():
        row = found.loc[layer]
        assert abs(row["estimate"] - value) <= 5 * row["stderr"] + 1e-3 * abs(truth["(all)"]), (layer, row, value)


# ------------------------------------------------------------------ examples that see each other in some batch
def supervised_contrastive(module: nn.Module, batch: Batch) -> Tensor:
    """An example without a partner of its class is left out."""
    keep = torch.stack([(batch[1] == c).sum() > 1 for c in batch[1]])
    z, label = F.normalize(module(batch[0]), dim=1)[keep], batch[1][keep]
    own = torch.eye(len(z), dtype=torch.bool)
    pairs = (label[:, None] == label[None]) & ~own
    return -((5 * z @ z.T).masked_fill(own, -1e9).log_softmax(1) * pairs).sum() / pairs.sum()


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.high(edges @ torch.tanh(self.low(x)))


class Normalised(nn.Module):
    """Batch norm with the batch's own statistics, for the examples that are not masked."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, WIDE), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.low(x)
        rest = h[1:]
        rest = (rest - rest.mean(0)) / (rest.var(0) + 1e-3).sqrt()
        return self.high(torch.tanh(torch.cat([h[:1], rest])))


def pairs_of_labels() -> Tensor:
    alone = Y.clone()
    alone[0] = 7
    return alone


EDGES = [(X[:8], Y[:8], torch.eye(8)), (X[8:], Y[8:], torch.full((16, 16), 1 / 16))]
SEEING: dict[str, tuple[Callable[[], nn.Module], Loss, list[Batch]]] = {
    "contrastive, the first alone": (lambda: net(WIDE), supervised_contrastive, [(X, pairs_of_labels())]),
    "graph, edges later": (lambda: seeded(Graph), lambda m, b: F.cross_entropy(m(b[0], b[2]), b[1]), EDGES),  # type: ignore[dict-item]
    "masked batch norm": (lambda: seeded(Normalised), loss, [(X, Y)]),
}


@pytest.mark.parametrize("name", SEEING)
def test_examples_that_see_each_other_share_their_directions_and_the_row_says_so(name: str) -> None:
    make, own_loss, batches = SEEING[name]
    found = table(make(), own_loss, batches)
    agrees(found, dense(make(), own_loss, batches))
    low = next(n for n in found.index if n.endswith("weight"))
    assert "see each other" in found.loc[low, "note"] and "see each other" in found.loc["(all)", "note"]


# ------------------------------------------------------------------ weights that are read again
class Fourth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.pow(4).sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 4 * g * ctx.saved_tensors[0] ** 3


class ProductWith(torch.autograd.Function):
    """x W' by a Function of its own, as a decoder that shares the encoder's weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w.T, x.T @ g


AGAIN: dict[str, Callable[[nn.Module, Batch], Tensor]] = {
    "autograd.Function": lambda m, b: 0.3 * Fourth.apply(m[0].weight),  # type: ignore[no-untyped-call, index]
    "vmap": lambda m, b: 0.3 * torch.vmap(lambda row: row.pow(4).sum())(m[0].weight).sum(),  # type: ignore[index]
    "vmap of jacrev": lambda m, b: 0.3 * torch.vmap(torch.func.jacrev(m))(b[0]).square().sum((1, 2)).mean(),
    "jvp": lambda m, b: torch.func.jvp(lambda w: w.pow(4).sum(), (m[0].weight,), (m[0].weight.detach(),))[1],  # type: ignore[index]
    "tied decoder": lambda m, b: (ProductWith.apply(torch.tanh(m[0](b[0])), m[0].weight) - b[0]).square().mean(),  # type: ignore[no-untyped-call, index]
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own jvp calls it
@pytest.mark.parametrize("name", AGAIN)
def test_a_weight_that_is_read_again_where_no_watcher_sees_it_is_measured_with_both_readings(name: str) -> None:
    def twice(module: nn.Module, batch: Batch) -> Tensor:
        return loss(module, batch) + AGAIN[name](module, batch)

    agrees(table(net(WIDE), twice, BATCHES), dense(net(WIDE), twice, BATCHES))


# ------------------------------------------------------------------ derivatives that are not the loss's own
class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.dropout(x, 0.1, training=True))


def test_two_losses_that_differ_are_refused() -> None:
    with pytest.raises(NonDeterministicProbe, match="same batch differ"):
        table(Noisy(), loss, BATCHES)


class Detaching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - torch.tanh(ctx.x) ** 2)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](Detaching.apply(self.net[0](x)))  # type: ignore[no-untyped-call]


def test_a_backward_that_detaches_what_it_saved_is_refused_with_the_layers_name() -> None:
    with pytest.raises(NumericalError, match=r"net\.0\.weight.*Linear"):
        table(Custom(), loss, BATCHES)


def own_target(module: nn.Module, batch: Batch) -> Tensor:
    z = F.normalize(module(batch[0]), dim=1)
    with torch.no_grad():
        other = F.normalize(module(1.1 * batch[0]), dim=1)
    return -(z * other * F.normalize(module(0.9 * batch[0]).detach(), dim=1)).sum(1).mean()


def test_what_a_loss_detaches_on_purpose_is_a_constant() -> None:
    agrees(table(net(), own_target, BATCHES), dense(net(), own_target, BATCHES))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](checkpoint(lambda h: self.net[1](self.net[0](h)), x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("measure", ["hessian_trace", "sharpness_max_absolute"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_number(reentrant: bool, measure: str) -> None:
    plain = table(net(), loss, BATCHES, measure, pgd_steps=4)
    found = table(Checkpointed(reentrant), loss, BATCHES, measure, pgd_steps=4)
    assert found["estimate"].to_dict() == pytest.approx(
        {k if k == "(all)" else f"net.{k}": v for k, v in plain["estimate"].items()}
    )
    assert (
        torch.utils.checkpoint.checkpoint is checkpoint
        and "Function" in torch.utils.checkpoint.CheckpointFunction.__name__
    )


class Listing(nn.Module):
    """One layer's gradient cannot be differentiated again."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.aux = net(), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), self.aux(x)


def alignment(module: nn.Module, batch: Batch) -> Tensor:
    logits, aux = module(batch[0])
    n = len(aux)
    steps = aux.log_softmax(1)[None].expand(4, -1, -1)
    targets, ones = torch.ones(n, 1, dtype=torch.long), torch.ones(n, dtype=torch.long)
    return F.cross_entropy(logits, batch[1]) + F.ctc_loss(steps, targets, 4 * ones, ones)


def test_a_layer_without_a_second_derivative_costs_no_other_row() -> None:
    measures = ("hessian_trace", "lambda_max", "sharpness_avg")
    rows = layer_curvature(seeded(Listing), alignment, BATCHES, measures=measures, density=["aux"], details=(got := {}))
    rows = rows.set_index(["measure", "layer"])
    plain = layer_curvature(seeded(Listing).net, loss, BATCHES).set_index(["measure", "layer"])
    for measure in ("hessian_trace", "lambda_max"):
        for layer in ("aux", "(all)"):
            assert rows.loc[(measure, layer), "status"] == "failed"
            assert "second derivative" in rows.loc[(measure, layer), "note"]
        for layer in ("0", "2"):
            own = rows.loc[(measure, f"net.{layer}"), "estimate"]
            assert own == pytest.approx(plain.loc[(measure, layer), "estimate"], rel=0.2)
    assert (rows.loc["sharpness_avg", "status"] != "failed").all()
    assert (got["density"]["status"] == "failed").all()


# ------------------------------------------------------------------ batches
def reused() -> Iterator[Batch]:
    images, labels = torch.empty(8, 6), torch.empty(8, dtype=torch.long)
    for i in range(3):
        images.copy_(X[8 * i : 8 * i + 8])
        labels.copy_(Y[8 * i : 8 * i + 8])
        yield images, labels


def test_a_loader_that_reuses_its_memory() -> None:
    agrees(table(net(), loss, reused()), dense(net(), loss, BATCHES))
    with pytest.raises(ConfigError, match="same tensors.*memory"):
        table(net(), loss, list(reused()))


@pytest.mark.parametrize("more", [0.0, 0.3])
def test_a_sum_over_several_batches_is_refused(more: float) -> None:
    def summed(module: nn.Module, batch: Batch) -> Tensor:
        weights = module[0].weight.square().sum()  # type: ignore[index]
        return F.cross_entropy(module(batch[0]), batch[1], reduction="sum") + more * weights

    with pytest.raises(ConfigError, match="sum over the examples.*\n.*reduction"):
        table(net(), summed, BATCHES)
    agrees(table(net(), summed, BATCHES[:1]), dense(net(), summed, BATCHES[:1]))


def test_a_mean_over_tokens_needs_what_a_batch_counts() -> None:
    padded = Y.clone()
    padded[2:9] = -100
    batches = [(X[:16], padded[:16]), (X[16:], padded[16:])]
    with pytest.raises(ConfigError, match="examples="):
        table(net(), loss, batches)
    found = table(net(), loss, batches, examples=lambda batch: (batch[1] >= 0).sum())
    agrees(found, dense(net(), loss, [(X, padded)]))


def contrastive(module: nn.Module, batch: Batch) -> Tensor:
    z = F.normalize(module(batch[0]), dim=1)
    return F.cross_entropy(5 * z @ z.T, torch.arange(len(z)))


def test_losses_that_are_no_mean_because_examples_see_each_other_are_taken_batch_by_batch() -> None:
    agrees(table(net(), contrastive, BATCHES), dense(net(), contrastive, BATCHES))


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, Any, str]] = {
    "a tuple": (net, lambda m, b: (loss(m, b), 1), BATCHES, r"loss\(module, batch\) must return .* tuple"),
    "a float": (net, lambda m, b: loss(m, b).item(), BATCHES, r"returned float.*\.item\(\)"),
    "detached": (net, lambda m, b: loss(m, b).detach(), BATCHES, "no gradient"),
    "not a function of a batch": (net, nn.CrossEntropyLoss(), BATCHES, r"loss\(module, batch\) raised TypeError"),
    "no batches": (net, loss, [], "batches: there are none"),
    "an empty batch": (net, loss, [(X[:0], Y[:0])], "no examples"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), loss, BATCHES, "0.weight.*no shape yet"),
    "half": (lambda: net().bfloat16(), loss, BATCHES, r"bfloat16.*\n.*float\(\)"),
    "mixed": (lambda: nn.Sequential(net().bfloat16(), nn.Linear(3, 3)), loss, BATCHES, "bfloat16, float32"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_with_its_reason(name: str) -> None:
    make, own_loss, batches, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason) as caught:
        table(make(), own_loss, batches)
    assert str(caught.value).count("\n") < 3


class Waves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.waves, self.out = nn.Parameter(torch.ones(6, 4, dtype=torch.complex64)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x.to(self.waves.dtype) @ self.waves).abs())


def test_a_complex_parameter_is_named_and_frozen_ones_can_be_left_out() -> None:
    waves = Waves()
    with pytest.raises(ConfigError, match="'waves' is complex"):
        table(waves, loss, BATCHES)
    waves.waves.requires_grad_(False)
    assert list(table(waves, loss, BATCHES, trainable_only=True).index) == ["(all)", "out.weight", "out.bias"]


# ------------------------------------------------------------------ modules
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_what_wraps_a_module_is_no_part_of_the_layers_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    found, plain = (table(m, loss, BATCHES, granularity="module") for m in (wrap(net()), net()))
    assert found["estimate"].to_dict() == plain["estimate"].to_dict()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_callers_no_grad_or_inference_mode_does_not_reach_inside(mode: Callable[[], Any]) -> None:
    with mode():
        found = table(net(), loss, [(x.clone(), y.clone()) for x, y in BATCHES])
    assert found["estimate"].to_dict() == table(net(), loss, BATCHES)["estimate"].to_dict()


class Words(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(10, 4, sparse=sparse), nn.Linear(4, 3)
        self.nothing = nn.Parameter(torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(x.abs().long().clamp(max=9)).mean(1)))


def test_sparse_embeddings_are_measured_as_dense_ones_and_an_empty_parameter_is_no_layer() -> None:
    sparse, plain = (seeded(lambda s=s: Words(s)) for s in (True, False))  # type: ignore[misc]
    found = table(sparse, loss, BATCHES)
    assert sparse.words.sparse
    assert found["estimate"].to_dict() == table(plain, loss, BATCHES)["estimate"].to_dict()
    assert "nothing" not in found.index and "words.weight" in found.index


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.norm = net(), nn.BatchNorm1d(6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        with torch.no_grad():
            self.calls += 1
        return self.net(self.norm(x))


def test_buffers_modes_and_random_states_come_back() -> None:
    module = Counting().train()
    module.norm.eval()
    before, state = {n: b.clone() for n, b in module.named_buffers()}, torch.random.get_rng_state()
    table(module, loss, [(X, Y)])
    assert all(torch.equal(before[n], b) for n, b in module.named_buffers())
    assert module.training and not module.norm.training and torch.equal(state, torch.random.get_rng_state())


class Cell(nn.Module):
    """A layer that keeps its state on itself."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.low, self.keeps, self.state = nn.Linear(6, 6), keeps, torch.zeros(())

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        self.state = torch.tanh(self.low(x) + 0.5 * (self.state if self.keeps else state))
        return x if self.keeps else self.state


class Unrolled(nn.Module):
    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.cell, self.out = Cell(keeps), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        start = self.cell.state = torch.zeros(len(x), 6)
        if self.cell.keeps:
            self.cell(x, start), self.cell(x, start)
            return self.out(self.cell.state)
        return self.out(self.cell(x, self.cell(x, start)))


def test_finite_perturbations_of_a_module_that_keeps_its_state_on_itself() -> None:
    found, plain = (table(seeded(lambda k=k: Unrolled(k)), loss, BATCHES, "sharpness_avg") for k in (True, False))  # type: ignore[misc]
    assert found["estimate"].to_dict() == plain["estimate"].to_dict()


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), nn.Linear(6, 3)
        self.more = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        h = self.layer(words, src_key_padding_mask=padding)
        return self.out(self.more(h, h, h, need_weights=False)[0].mean(1))


def test_attention_with_padding_and_with_biases_of_keys_and_values() -> None:
    words, padding = torch.stack([X[:12]] * 4, 1) + torch.arange(4)[:, None], torch.zeros(12, 4, dtype=torch.bool)
    padding[::2, 3:] = True
    batches = [(words, Y[:12], padding)]

    def masked(module: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(module(batch[0], batch[2]), batch[1])

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        truth = dense(seeded(Padded), masked, batches)  # type: ignore[arg-type]
    agrees(table(seeded(Padded), masked, batches, max_matvecs=20), truth)  # type: ignore[arg-type]


def test_weight_norm_has_the_second_derivative_of_its_formula() -> None:
    normed = net()
    nn.utils.parametrizations.weight_norm(normed[0])
    direction = normed.get_parameter("0.parametrizations.weight.original1")
    length = normed.get_parameter("0.parametrizations.weight.original0")

    def written_out(module: nn.Module, batch: Batch) -> Tensor:
        get = module.get_parameter  # of plain torch below, where they are parameters
        v, size = get("0.parametrizations.weight.original1"), get("0.parametrizations.weight.original0")
        h = F.linear(batch[0], v * size / v.norm(dim=1, keepdim=True), get("0.bias"))
        return F.cross_entropy(F.linear(torch.tanh(h), get("2.weight"), get("2.bias")), batch[1])

    assert direction.shape == (6, 6) and length.shape == (6, 1)
    agrees(table(normed, loss, BATCHES), dense(normed, written_out, BATCHES))


class Once(torch.autograd.Function):
    """tanh, whose backward torch may not differentiate."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.tanh(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0] ** 2)


@pytest.mark.parametrize("trace_method", ["per_example", "hutchinson"])
def test_a_layer_without_a_second_derivative_fails_alone(trace_method: str) -> None:
    measures = ("hessian_trace", "lambda_max", "sharpness_avg")
    once = nn.Sequential(OrderedDict(low=nn.Linear(6, 6), act=FromFunction(Once.apply), high=nn.Linear(6, 3)))
    plain = nn.Sequential(OrderedDict(low=nn.Linear(6, 6), act=nn.Tanh(), high=nn.Linear(6, 3)))
    plain.load_state_dict(once.state_dict())
    found, true = (
        layer_curvature(m, loss, BATCHES, measures=measures, trace_method=trace_method).set_index(["layer", "measure"])
        for m in (once, plain)
    )
    for measure in measures:
        assert found.loc[("high", measure), "estimate"] == pytest.approx(true.loc[("high", measure), "estimate"])
        for layer in ("low", "(all)"):
            row = found.loc[(layer, measure)]
            if measure == "sharpness_avg":  # needs no derivative at all
                assert row["estimate"] == pytest.approx(true.loc[(layer, measure), "estimate"])
            else:  # torch itself cuts the graph there and gives 0
                assert row["status"] == "failed" and "once_differentiable" in row["note"]


class FromFunction(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ------------------------------------------------------------------ what else can be had
def test_density_and_eigenvectors_of_a_module() -> None:
    module, details = net().double(), {}
    batches = [(x.double(), y) for x, y in BATCHES]
    rows = layer_curvature(
        module, loss, batches, measures=("lambda_max",), rtol=1e-6, density=["(all)"], details=details
    ).set_index("layer")
    for layer, found in details["eigenvectors"].items():
        vector = found["lambda_max"]
        own = dict(module.named_parameters())
        total = sum(len(b[0]) / 24 * loss(module, b) for b in batches)
        names = list(vector)
        grads = torch.autograd.grad(total, [own[n] for n in names], create_graph=True)  # type: ignore[arg-type]
        products = torch.autograd.grad(grads, [own[n] for n in names], [vector[n] for n in names])
        for n, hv in zip(names, products, strict=True):
            torch.testing.assert_close(hv, rows.loc[layer, "estimate"] * vector[n], rtol=0, atol=1e-4)
    assert set(details["eigenvectors"]) == {"(all)", "0", "2"}
    spectrum = details["density"]
    assert set(spectrum["layer"]) == {"(all)"} and (spectrum["density"] >= 0).all()
    with pytest.raises(ConfigError, match="'first' is no layer"):
        layer_curvature(module, loss, batches, density=["first"], details=details)
    with pytest.raises(ConfigError, match="details="):
        layer_curvature(module, loss, batches, density=["(all)"])
