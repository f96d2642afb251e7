"""Laws of LoRA: it starts at theta_0, changes its targets alone by a low rank, and merging changes no output."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning.blocks import PARTS, Linear, linears_of
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import fit
from sharpscope.finetuning.method import Batch, Prepared, Task
from sharpscope.finetuning.methods.lora import LoRA, dropped, factors_of, lora_merged
from sharpscope.finetuning.registry import configured
from sharpscope.finetuning.run import finetune
from sharpscope.layers import tower_of
from sharpscope.weights.checkpoint import read_checkpoint, write_checkpoint
from sharpscope.weights.theta import Theta

SMALL: dict[str, Any] = {"lr": 0.05, "steps": 4, "batch_size": 4, "shots": None}
EVERYWHERE: Any = {"targets": tuple(PARTS)}


def filled(prepared: Prepared) -> Theta:
    """theta with random numbers for A and B."""
    draw = torch.Generator().manual_seed(0)
    names = prepared.stages[0].trained
    return prepared.theta | {n: torch.randn(prepared.theta[n].shape, generator=draw) for n in names}


def groups(theta: Theta, linear: Linear) -> tuple[Tensor, ...]:
    return theta[linear.weight].chunk(linear.count)


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_it_starts_at_theta_0_bit_for_bit(kind: str, towers: Any, tiny_thetas: Any) -> None:
    model, theta = (towers[kind], towers[kind].init(0)) if kind in towers else tiny_thetas[kind]
    method = LoRA(**SMALL, **EVERYWHERE)
    prepared = method.prepare(Task(model, theta, ("circle", "star"), ("a {}",), 12))
    start = prepared.export(prepared.theta).tensors
    assert set(start) == set(theta) and all(torch.equal(start[n], theta[n]) for n in theta)
    trained = [prepared.theta[n] for n in prepared.stages[0].trained]
    assert all(bool(a.any()) and not bool(b.any()) for a, b in zip(trained[::2], trained[1::2], strict=True))
    bound = [a.shape[1] ** -0.5 for a in trained[::2]]
    assert all(0.5 * b < float(a.abs().max()) <= b for a, b in zip(trained[::2], bound, strict=True))


def test_the_first_loss_is_that_of_the_zero_shot_classifier(task: Task, examples: TensorExamples) -> None:
    prepared = LoRA(**SMALL).prepare(task)
    head = zero_shot_head(task.model, task.theta_0, task.classnames, task.templates)
    logits = task.theta_0["logit_scale"].exp() * task.model.encode_image(task.theta_0, examples.images) @ head.T
    found = prepared.losses(prepared.theta, Batch(examples.images, examples.labels))
    torch.testing.assert_close(found.total, F.cross_entropy(logits, examples.labels))


@pytest.mark.parametrize(
    ("targets", "towers"),
    [(("q", "k", "v"), "both"), (("v",), "image"), (("o", "mlp_in"), "text"), (("mlp_out",), "both")],
)  # fmt: skip
def test_the_targets_alone_change_by_the_rank(targets: Any, towers: Any, task: Task, examples: TensorExamples) -> None:
    method = LoRA(**SMALL, targets=targets, towers=towers, rank=3)
    fitted = fit(method, task, examples)
    exported = fitted.exported.tensors
    wanted = {"both": {"image", "text"}}.get(towers, {towers})
    chosen = [one for one in linears_of(task.model, targets, "lora") if tower_of(one.weight) in wanted]
    assert {one.part for one in chosen} == set(targets)
    assert {n for n in exported if not torch.equal(exported[n], task.theta_0[n])} == {one.weight for one in chosen}
    for one in chosen:
        changes = [a - b for a, b in zip(groups(exported, one), groups(task.theta_0, one), strict=True)]
        assert int(torch.linalg.matrix_rank(changes[one.index], rtol=1e-3)) in (1, 2, 3)
        others = {i for i, _ in enumerate(changes)} - {c.index for c in chosen if c.weight == one.weight}
        assert not any(bool(changes[i].any()) for i in others)  # of a packed weight, the rows of its targets alone


class Unmerged(nn.Module):
    """Attention with a branch ``s B (A x)`` beside each projection, written out; no weight is changed."""

    def __init__(self, own: nn.MultiheadAttention, theta: Theta, name: str, scale: float) -> None:
        super().__init__()
        self.own, self.theta, self.name, self.scale = own, theta, name, scale
        self.batch_first = own.batch_first

    def branch(self, x: Tensor, weight: str, part: str) -> Tensor:
        name = f"{self.name}.{weight}.{part}.lora_"
        return self.scale * (x @ self.theta[f"{name}A"].T) @ self.theta[f"{name}B"].T

    def forward(self, x: Tensor, *_: Any, attn_mask: Tensor | None = None, **__: Any) -> tuple[Tensor, None]:
        batch = x if self.batch_first else x.transpose(0, 1)
        packed = F.linear(batch, self.own.in_proj_weight, self.own.in_proj_bias).chunk(3, -1)
        q, k, v = (
            (y + self.branch(batch, "in_proj_weight", p)).unflatten(-1, (self.own.num_heads, -1)).transpose(1, 2)
            for p, y in zip("qkv", packed, strict=True)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        out = F.linear(mixed, self.own.out_proj.weight, self.own.out_proj.bias)
        out = out + self.branch(mixed, "out_proj.weight", "o")
        return out if self.batch_first else out.transpose(0, 1), None


def test_merged_weights_equal_branches_beside_the_layers(task: Task, examples: TensorExamples) -> None:
    model, method = task.model, LoRA(**SMALL, targets=("q", "k", "v", "o"), alpha=0.7)
    theta = filled(method.prepare(task))
    whole = lora_merged(theta, linears_of(model, method.targets, "lora"), method.scale)
    assert set(whole) == set(task.theta_0)
    module = open_clip.CLIP(**copy.deepcopy(model.config))
    module.load_state_dict(task.theta_0)
    module.eval()
    for name, block in list(module.named_modules()):
        if isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
            block.attn = Unmerged(block.attn, theta, f"{name}.attn", 0.7 / 2**0.5)
    tokens = model.tokenize(["a photo of a key", "star"])
    with torch.no_grad():
        images = module.encode_image(examples.images, normalize=True)
        texts = module.encode_text(tokens, normalize=True)
        torch.testing.assert_close(model.encode_image(whole, examples.images), images, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.encode_text(whole, tokens), texts, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model.encode_text(task.theta_0, tokens), texts, atol=1e-2)


def test_the_reader_of_lora_files_merges_alike(task: Task, tmp_path: Path) -> None:
    """The same A and B as an unmerged file in loralib's names, read and merged by ``weights/adapters.py``."""
    method = LoRA(**SMALL, targets=("q", "k", "v", "o"), rank=3, scaling="rank", alpha=1.5)
    prepared = method.prepare(task)
    theta = filled(prepared)
    words = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    theirs: Theta = {}
    for one in linears_of(task.model, method.targets, "lora"):
        for kind, name in zip("AB", factors_of(one), strict=True):
            theirs[f"{one.block}.attn.{words[one.part]}.lora_{kind}"] = theta[name]
    write_checkpoint(tmp_path / "base.safetensors", task.theta_0)
    write_checkpoint(tmp_path / "lora.safetensors", theirs)
    read = read_checkpoint(tmp_path / "lora.safetensors", base=read_checkpoint(tmp_path / "base.safetensors"),
                           adapter_scale=0.5)  # fmt: skip
    for name, tensor in prepared.export(theta).tensors.items():
        torch.testing.assert_close(read.tensors[name], tensor, rtol=1e-5, atol=1e-5)


def test_the_scale_is_alpha_over_the_rank_or_its_root() -> None:
    assert LoRA(rank=16, alpha=8).scale == 2
    assert LoRA(rank=16, alpha=8, scaling="rank").scale == 0.5


def test_dropout_leaves_out_inputs_and_keeps_the_mean(task: Task, examples: TensorExamples) -> None:
    linears = linears_of(task.model, ("q",), "lora")
    theta = filled(LoRA(**SMALL, targets=("q",)).prepare(task))
    generator, (down, up) = torch.Generator().manual_seed(0), factors_of(linears[0])
    draws = torch.stack([dropped(theta, linears, 0.25, generator)[down] for _ in range(2000)])
    factors = (draws / theta[down] * 0.75).round(decimals=4)
    assert factors.unique().tolist() == [0, 1]
    assert bool((factors == factors[:, :1]).all())  # an input is left out of every row of A
    factors = factors / 0.75
    torch.testing.assert_close(factors.mean((0, 1)), torch.ones(16), rtol=0, atol=0.06)  # sd .58 / sqrt(2000) = .013
    assert torch.equal(dropped(theta, linears, 0.25, generator)[up], theta[up])
    for share, distinct in ((0.0, 1), (0.5, 4)):
        prepared = LoRA(**SMALL, dropout=share).prepare(task)
        whole = filled(prepared)
        batches = [Batch(examples.images, examples.labels, step=step) for step in range(4)]
        assert len({float(prepared.losses(whole, b).total.detach()) for b in batches}) == distinct


def test_a_bad_setting_is_refused(tiny_thetas: Any, task: Task) -> None:
    for wrong, complaint in (
        ({"rank": 0}, "rank needs at least 1"),
        ({"dropout": 1.0}, "dropout a number from 0 to below 1"),
        ({"targets": []}, "targets needs some of q, k, v, o"),
        ({"targets": ["q", "q"]}, "each once"),
        ({"targets": ["query"]}, "targets.*'query' is none of q, k, v"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            configured("lora", wrong)
    model, theta = tiny_thetas["resnet"]
    resnet = dataclasses.replace(task, model=model, theta_0=theta)
    with pytest.raises(ConfigError, match=r"lora: the image tower .* only 3 layers of the text tower would be adapted"):
        LoRA(**SMALL).prepare(resnet)
    assert len(LoRA(**SMALL, towers="text").prepare(resnet).stages[0].trained) == 6  # the text tower alone, if asked


def test_the_layers_are_found_by_the_names_of_evas_gated_blocks() -> None:
    """Separate q, k and v, and two layers into the MLP; a captioning decoder and 1 x 1 convolutions are left alone."""
    block = "visual.trunk.blocks.0."
    own = {"attn.q_proj": (6, 6), "attn.k_proj": (6, 6), "attn.v_proj": (6, 6), "attn.proj": (6, 6),
           "mlp.fc1_g": (8, 6), "mlp.fc1_x": (8, 6), "mlp.fc2": (6, 8), "norm1": (6,)}  # fmt: skip
    image = {f"{block}{name}.weight": shape for name, shape in own.items()}
    text = {"transformer.resblocks.0.attn.in_proj_weight": (18, 6)}
    decoder = {f"text_decoder.{name.partition('.')[2]}": shape for name, shape in text.items()}

    def model(shapes: dict[str, Any]) -> Any:
        return SimpleNamespace(
            name="eva", shapes=shapes, parameter_names=[*shapes], image_names=[*image], text_names=[*text]
        )

    packed = linears_of(model(decoder | image | text), ("v",), "lora", ("text",))
    assert packed == (Linear("transformer.resblocks.0", "v", next(iter(text)), 2, 3, 6, 6),)
    found = linears_of(model(image), tuple(PARTS), "lora", ("image",))
    assert [(one.part, one.weight.removeprefix(block)) for one in found] == [
        ("q", "attn.q_proj.weight"), ("k", "attn.k_proj.weight"), ("v", "attn.v_proj.weight"),
        ("o", "attn.proj.weight"), ("mlp_in", "mlp.fc1_g.weight"), ("mlp_in", "mlp.fc1_x.weight"),
        ("mlp_out", "mlp.fc2.weight"),
    ]  # fmt: skip
    assert {(one.index, one.count, one.outputs, one.inputs) for one in found} == {
        (0, 1, 6, 6),
        (0, 1, 8, 6),
        (0, 1, 6, 8),
    }
    convolution = image | {f"{block}mlp.fc2.weight": (6, 8, 1, 1)}
    with pytest.raises(ConfigError, match="block 'visual.trunk.blocks.0' without a linear layer out of the MLP, so"):
        linears_of(model(convolution), ("o", "mlp_out"), "r-adapter", ("image",))


def test_the_file_is_whole_and_says_what_was_trained(tmp_path: Path) -> None:
    tuned = finetune(
        "mini:zeroshot", "mini:photo", "lora", model="mini", out=tmp_path, steps=2, batch_size=16, shots=1,
        templates=["a photo of a {}."], targets=["v"], progress=False,
    )  # fmt: skip
    assert tuned.path is not None
    read = read_checkpoint(tuned.path)
    model = ClipModel.load("mini")
    assert set(read.tensors) == set(model.shapes)
    told = json.loads(read.facts["metadata"]["sharpscope.finetuning"])
    assert told["lora"]["scale"] == pytest.approx(2**-0.5) and told["hyperparameters"]["targets"] == ["v"]
    assert all("in_proj_weight" in name for name in told["lora"]["weights"])
