"""layer_curvature on the models that people bring: convolutions with batch norm, perceptrons, Hugging Face outputs."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from sharpscope import layer_curvature
from sharpscope.layers import module_layers

EXACT = {"rtol": 1e-7, "max_matvecs": 2000, "trace_method": "hutchinson"}
Loss = Callable[[nn.Module, Any], Tensor]


class Residual(nn.Module):
    """A ResNet in small: convolutions, batch norm, an in-place ReLU, a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)).add_(h))
        return self.fc(h.mean((2, 3)))


class Hub(nn.Module):
    """What a Hugging Face model looks like: named inputs, an output with a loss, tied embeddings, a dead head."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.dense, self.LayerNorm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight = self.embeddings.weight
        self.pooler = nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        h = self.LayerNorm(F.gelu(self.dense(self.embeddings(input_ids).mean(1))))
        logits = self.decoder(h)
        return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


def filled(net: nn.Module) -> nn.Module:
    gen = torch.Generator().manual_seed(1)
    net = net.double()
    with torch.no_grad():
        for n, t in [*net.named_parameters(), *net.named_buffers()]:
            if t.is_floating_point():
                noise = 0.6 * torch.randn(t.shape, generator=gen, dtype=t.dtype)
                t.copy_(noise.abs() + 0.5 if n.endswith("running_var") else noise)
    return net


def images() -> DataLoader[Any]:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, 4, 4, generator=gen, dtype=torch.float64)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (7,), generator=gen)), batch_size=4)


def rows() -> DataLoader[Any]:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(9, 5, generator=gen, dtype=torch.float64)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (9,), generator=gen)), batch_size=4)


def tokens() -> list[Any]:
    gen = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(0, 7, (10, 3), generator=gen), torch.randint(0, 7, (10,), generator=gen)
    parts = zip(ids.split(4), labels.split(4), strict=True)
    return [UserDict({"input_ids": i, "labels": y}) for i, y in parts]  # as transformers' BatchEncoding


def plain(net: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(net(batch[0]), batch[1])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], Loss, Callable[[], Any], Callable[[nn.Module, Any], Any]]] = {
    "residual network": (Residual, plain, images, lambda net, b: (net(b[0]), b[1])),
    "perceptron": (perceptron, plain, rows, lambda net, b: (net(b[0]), b[1])),
    "hub": (Hub, lambda net, b: net(**b).loss, tokens, lambda net, b: (net(**b).logits, b["labels"])),
}


def dense(net: nn.Module, loss: Loss, batches: list[Any], names: list[str]) -> Tensor:
    """The Hessian block by double backward of torch's own formulas, batches weighed by their examples."""
    params = [dict(net.named_parameters())[n] for n in names]
    sizes = [len(next(iter(b.values())) if isinstance(b, UserDict) else b[0]) for b in batches]
    total = sum(n * loss(net, b) for n, b in zip(sizes, batches, strict=True)) / sum(sizes)
    grads = torch.autograd.grad(total, params, create_graph=True, materialize_grads=True, allow_unused=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    out = []
    for g in flat:
        if not g.requires_grad:  # a parameter that the loss never sees
            out.append(torch.zeros(len(flat), dtype=g.dtype))
            continue
        row = torch.autograd.grad(g, params, retain_graph=True, materialize_grads=True, allow_unused=True)
        out.append(torch.cat([r.reshape(-1) for r in row]))
    return torch.stack(out)


@pytest.mark.parametrize("name", CASES)
def test_every_layer_has_the_trace_and_both_ends_of_its_dense_block(name: str) -> None:
    make, loss, data, logits = CASES[name]
    net, batches = filled(make()), list(data())
    net.train()
    before = {n: t.detach().clone() for n, t in net.state_dict().items()}
    measures = ("hessian_trace", "lambda_max", "lambda_min", "ggn_trace", "sharpness_avg")
    table = layer_curvature(net, loss, data(), measures=measures, logits=logits, noise_samples=2, **EXACT)
    assert net.training and all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    net.eval()
    layers = module_layers({n: p.shape for n, p in net.named_parameters()})
    assert len(layers) >= 2 and {"(all)", *(x.name for x in layers)} == set(table["layer"])
    found = table.set_index(["layer", "measure"])
    for layer, names in ((x.name, list(x.params)) for x in layers):
        block = dense(net, loss, batches, names)
        ends = torch.linalg.eigvalsh(block)
        scale = max(float(ends.abs().max()), 1e-12)
        assert found.loc[(layer, "hessian_trace"), "estimate"] == pytest.approx(float(block.trace()), abs=1e-7 * scale)
        assert found.loc[(layer, "lambda_max"), "estimate"] == pytest.approx(float(ends[-1]), abs=1e-5 * scale)
        assert found.loc[(layer, "lambda_min"), "estimate"] == pytest.approx(float(ends[0]), abs=1e-5 * scale)
        assert found.loc[(layer, "ggn_trace"), "stderr"] >= 0
        if layer == "pooler":  # the loss never sees it
            own = found.loc[layer]["estimate"]
            assert (own == 0).all()


def test_default_settings_give_error_bars_that_hold() -> None:
    net, batches = filled(Residual()).eval(), list(images())
    table = layer_curvature(net, plain, images(), rtol=0.05, seed=2).set_index(["layer", "measure"])
    for layer in ("conv1", "conv2", "fc"):
        names = [n for n, _ in net.named_parameters() if n.startswith(f"{layer}.")]
        truth = float(dense(net, plain, batches, names).trace())
        row = table.loc[(layer, "hessian_trace")]
        assert abs(row["estimate"] - truth) <= 4 * row["stderr"] + 1e-9


def test_a_measure_that_needs_logits_says_so_without_them() -> None:
    table = layer_curvature(filled(perceptron()), plain, rows(), measures=("ggn_trace",))
    assert (table["status"] == "failed").all() and (
        table["note"] == "the loss provides no logits, which this measure needs"
    ).all()


def test_layers_of_any_module_have_its_own_names_and_no_place_in_a_clip() -> None:
    """In the module's own order; a CLIP's model keeps towers, depths and kinds."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))
            block = {"fc": (3, 3), "out": (3, 3)}
            self.layers = nn.ModuleList(
                [nn.Sequential(OrderedDict({n: nn.Linear(*s) for n, s in block.items()})) for _ in range(2)]
            )
            self.classifier = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + self.token + layer(x)
            return self.classifier(x)

    net, batch = filled(Encoder()), (torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0]))
    names = {
        "module": ["token", "layers.0.fc", "layers.0.out", "layers.1.fc", "layers.1.out", "classifier"],
        "block": ["token", "layers.0", "layers.1", "classifier"],
        "tensor": [n for n, _ in net.named_parameters()],
    }
    for granularity, expected in names.items():
        table = layer_curvature(
            net, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch], granularity=granularity,
            measures=("gradient_norm",),
        )  # fmt: skip
        assert list(table["layer"]) == ["(all)", *expected]
        assert (table[["tower", "kind"]] == "").all(axis=None) and table["depth"].isna().all()


def test_a_clip_keeps_its_towers() -> None:
    text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "head_width": 4}
    clip = open_clip.CLIP(embed_dim=4, vision_cfg=vision, text_cfg=text)
    table = layer_curvature(
        clip, lambda m, b: m.encode_image(b).square().mean(), [torch.randn(2, 3, 16, 16)], granularity="block",
        measures=("gradient_norm",),
    ).set_index("layer")  # fmt: skip
    assert table.loc["visual.stem", "tower"] == "image" and table.loc["text.stem", "tower"] == "text"
    assert table.loc["visual.transformer.resblocks.0", "depth"] == 1
