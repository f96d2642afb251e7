"""What comes before a change is computed once: the same bits, whatever the architecture does on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.prefix import Prefix
from sharpscope.clip.probe import Probe
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.perturbation import sharpness_avg, sharpness_max
from sharpscope.layers import Layer, split_layers

NAMES = ("cup", "key", "fish")
CASES = (("vit", "stored"), ("vit", "text"), ("resnet", "zeroshot"), ("customtext", "text"))
Thetas = dict[str, tuple[ClipModel, dict[str, Tensor]]]


def setting(thetas: Thetas, kind: str, mode: str, sizes: int = 4) -> tuple[Probe, dict[str, Tensor], list[Layer]]:
    model, theta = thetas[kind]
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, *model.image_size), dtype=np.uint8)
    data = Dataset("toy", NAMES, torch.arange(7) % 3, Memory(torch.from_numpy(pixels)), mean=(0.5,) * 3, std=(0.5,) * 3)
    classifier = Classifier(model, mode, NAMES)  # type: ignore[arg-type]
    theta = classifier.attach(theta)
    layers = split_layers({n: theta[n].shape for n in classifier.reached(theta)}, "module")
    return Probe(classifier, data, size=7, batch_size=sizes), theta, list(layers)


class Plain:
    """The same probe that does not know what it could save."""

    def __init__(self, probe: Probe) -> None:
        self.weights, self.batch_loss = probe.weights, probe.batch_loss


@pytest.mark.parametrize(("kind", "mode"), CASES)
def test_loss_and_gradient_of_a_changed_layer_are_the_same_bits(tiny_thetas: Thetas, kind: str, mode: str) -> None:
    probe, theta, layers = setting(tiny_thetas, kind, mode)
    skipped = []
    with second_order():
        for layer in layers:
            suffix = probe.suffix(theta, layer.params)
            for i, scale in ((0, 1.1), (1, 0.7), (1, 1.0)):
                leaves = {n: (scale * theta[n]).requires_grad_() for n in layer.params}
                losses = [o.batch_loss(i, {**theta, **leaves}) for o in (suffix, probe)]
                assert torch.equal(*losses), (layer.name, i)
                ours, theirs = (torch.autograd.grad(x, list(leaves.values())) for x in losses)
                assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), layer.name
            skipped.append(len(suffix._prefix))  # type: ignore[attr-defined]
    assert max(skipped) >= 2 and skipped[0] == 0
    for module in (probe.classifier.model._image, probe.classifier.model._text):
        assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def work(objective: Any, theta: Mapping[str, Tensor], layer: Layer) -> int:
    moved = {**theta, **{n: 1.1 * theta[n] for n in layer.params}}
    with second_order(), torch.no_grad():
        objective.batch_loss(0, moved)  # notes the prefix
        with FlopCounterMode(display=False) as count:
            objective.batch_loss(0, moved)
    return int(count.get_total_flops())


def test_only_what_follows_the_change_is_computed(tiny_thetas: Thetas) -> None:
    probe, theta, layers = setting(tiny_thetas, "vit", "text")
    whole = work(probe, theta, layers[0])
    spent = {x.name: work(probe.suffix(theta, x.params), theta, x) for x in layers}
    image = [x for x in layers if x.tower == "image"]
    blocks = [spent[x.name] for x in image if "resblocks" in x.name]
    assert blocks == sorted(blocks, reverse=True) and blocks[-1] < 0.4 * blocks[0] and blocks[0] < whole / 2  # no text
    text = [spent[x.name] for x in layers if x.tower == "text" and "resblocks" in x.name]
    assert text == sorted(text, reverse=True) and all(s < whole for s in text)
    everything = Layer("(all)", tuple(n for x in layers for n in x.params), "image", 0, "block", 1)
    assert work(probe.suffix(theta, everything.params), theta, everything) == whole


def test_sharpness_is_the_same_with_and_without(tiny_thetas: Thetas) -> None:
    probe, theta, layers = setting(tiny_thetas, "vit", "text")
    with second_order():
        for layer in layers[2::4]:
            for measure, how in (
                (sharpness_avg, {"rho": 0.1, "seed": 3, "samples": 2}),
                (sharpness_max, {"rho": 0.01, "steps": 4}),
                (sharpness_max, {"rho": 0.1, "steps": 4, "norm": "l2"}),
            ):
                shared = measure(probe, theta, layer.params, **how)  # type: ignore[operator]
                assert shared == measure(Plain(probe), theta, layer.params, **how), layer.name  # type: ignore[operator]
                assert shared.estimate != 0


def test_the_registry_takes_the_cheap_way(tiny_thetas: Thetas) -> None:
    probe, theta, layers = setting(tiny_thetas, "vit", "zeroshot")
    spent, rows = [], []
    for objective in (probe, Plain(probe)):
        with FlopCounterMode(display=False) as count:
            result = measure_layers(objective, theta, layers[5:], ("sharpness_avg",), MeasureSettings(noise_samples=3))
        spent.append(count.get_total_flops())
        # the plain objective does not tell how many images its batches hold, which the error over images needs
        rows.append([{k: v for k, v in row.items() if k not in ("n", "stderr_images", "note")} for row in result.rows])
    assert repr(rows[0]) == repr(rows[1]) and spent[0] < 0.75 * spent[1]


# ------------------------------------------------------------------ modules that make it hard
class Writes(nn.Module):
    """In-place operations on outputs and inputs of submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h += x  # writes into what a returned
        self.act(h)  # writes into its input, its output is thrown away
        return self.c(self.b(h).mul_(2))


class ReadsAhead(nn.Module):
    """Uses a later module's weight before that module is called, and a module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) @ self.c.weight
        return self.c(self.b(self.a(self.b(h))))


class Several(nn.Module):
    """Submodules that return two tensors, a dict, or only their input; and a list of modules."""

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.sin(), x.cos()

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x.exp()}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.same = nn.Linear(3, 3), nn.Identity()
        self.list = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh())])
        self.pair, self.c = Several.Pair(), nn.Linear(3, 3)
        self.named, self.d = Several.Named(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.same(self.a(x))
        for m in self.list:
            h = m(h)
        s, c = self.pair(h)
        return self.d(self.named(self.c(s + c))["x"])


@pytest.mark.parametrize("kind", [Writes, ReadsAhead, Several])
def test_modules_that_write_in_place_read_ahead_or_return_several_tensors(kind: type[nn.Module]) -> None:
    net = kind().double().eval()
    gen = torch.Generator().manual_seed(0)
    theta = {n: torch.randn(p.shape, generator=gen, dtype=torch.float64) for n, p in net.named_parameters()}
    x = torch.randn(5, 3, generator=gen, dtype=torch.float64)
    call = lambda t: torch.func.functional_call(net, t, (x,))  # noqa: E731
    noted = {}
    for name in ("a", "b", "c", "d", "list.0", "list.1.0"):
        params = [n for n in theta if n.startswith(f"{name}.")]
        if not params:
            continue
        prefix = Prefix(net, params)
        with prefix.recording([theta[n] for n in params]):
            first = call(theta)
        assert torch.equal(first, call(theta))
        for scale in (1.0, 1.3, 0.2, 1.3):
            moved = {**theta, **{n: scale * theta[n] for n in params}}
            with prefix.replaying():
                found = call(moved)
            assert torch.equal(found, call(moved)), name
        noted[name] = len(prefix)
    assert noted == {
        Writes: {"a": 0, "b": 2, "c": 3}, ReadsAhead: {"a": 0, "b": 1, "c": 1},
        Several: {"a": 0, "list.0": 2, "list.1.0": 3, "c": 5, "d": 6},
    }[kind]  # fmt: skip


def test_a_module_with_a_forward_of_its_own_keeps_it() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mine = lambda x: x + 1  # noqa: E731
    net[0].forward = mine
    prefix = Prefix(net, ["1.weight"])
    with prefix.recording([net[1].weight]):
        first = net(torch.ones(1, 2))
    with prefix.replaying():
        assert torch.equal(net(torch.ones(1, 2)), first)
    assert net[0].forward is mine and len(prefix) == 1 and "forward" not in vars(net[1])
