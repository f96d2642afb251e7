"""Laws of the methods that tune a part: CLIPFit, CoOp, KgCoOp, ContCoOp, R-Adapter."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair
from sharpscope.clip.prompts import ATTENTION, CTX
from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import Batch, Method, Prepared, Task
from sharpscope.finetuning.methods.clipfit import CLIPFit, clipfit_names
from sharpscope.finetuning.methods.contcoop import ContCoOp
from sharpscope.finetuning.methods.coop import CoOp, KgCoOp
from sharpscope.finetuning.methods.r_adapter import RAdapter, adapters_of, merged, mpm_nce
from sharpscope.finetuning.trainer import train
from sharpscope.layers import tower_of
from sharpscope.weights.checkpoint import write_checkpoint
from sharpscope.weights.theta import Theta

NAMES, TEMPLATES = ("star", "sea horse", "key"), ("a photo of a {}.",)
SMALL: dict[str, Any] = {"lr": 0.1, "steps": 3, "batch_size": 6, "warmup": 0.0, "shots": None}
METHODS: dict[str, Method] = {
    "clipfit": CLIPFit(**SMALL),
    "coop": CoOp(**SMALL),
    "kgcoop": KgCoOp(**SMALL),
    "contcoop": ContCoOp(**SMALL),
    "r-adapter": RAdapter(**{**SMALL, "lr": 0.01}, ema=0.5),
}


@pytest.fixture
def task(tiny_model: ClipModel, tiny_theta: Theta) -> Task:
    return Task(tiny_model, tiny_theta, NAMES, TEMPLATES, 6)


def batch(step: int = 0) -> Batch:
    images = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return Batch(images, torch.tensor([0, 1, 2, 0, 1, 1]), step=step)


def trained(method: Method, prepared: Prepared) -> Theta:
    (stage,) = prepared.stages
    fitted = train(
        prepared.theta, stage.trained, lambda t, s: prepared.losses(t, batch(s)).total, stage.recipe, ema=method.ema
    )
    return fitted.theta


def moved(before: Theta, after: Theta) -> set[str]:
    return {n for n in after if n not in before or not torch.equal(before[n], after[n])}


# ---------------------------------------------------------------------- what moves, where it starts
def test_clipfit_moves_text_mlp_biases_and_image_norms_only(task: Task) -> None:
    prepared = METHODS["clipfit"].prepare(task)
    after = trained(METHODS["clipfit"], prepared)
    blocks = [f"visual.transformer.resblocks.{i}.ln_{j}" for i in (0, 1) for j in (1, 2)]
    norms = {f"{n}.{p}" for n in ("visual.ln_pre", "visual.ln_post", *blocks) for p in ("weight", "bias")}
    assert moved(task.theta_0, after) == norms | {"transformer.resblocks.0.mlp.c_proj.bias"}
    assert set(after) == set(task.theta_0)


def test_clipfit_needs_what_it_trains(tiny_thetas: dict[str, Any]) -> None:
    model, _ = tiny_thetas["resnet"]  # batch norms only
    with pytest.raises(ConfigError, match="has no image layer norms to train"):
        clipfit_names(model)
    custom, _ = tiny_thetas["customtext"]
    assert "text.transformer.resblocks.0.mlp.c_proj.bias" in clipfit_names(custom)


@pytest.mark.parametrize("name", ["coop", "kgcoop", "contcoop"])
def test_prompts_leave_both_towers_alone(name: str, task: Task) -> None:
    method = METHODS[name]
    prepared = method.prepare(task)
    after = trained(method, prepared)
    added = {CTX, *ATTENTION} if name == "contcoop" else {CTX}
    assert moved(task.theta_0, after) == added
    assert CTX in moved(prepared.theta, after)
    if name == "contcoop":  # out starts at 0, and lets the others move as soon as it has moved
        assert moved(prepared.theta, after) == added


@pytest.mark.parametrize("name", ["coop", "contcoop"])
def test_a_context_for_every_class_starts_as_the_shared_one_and_is_moved_by_its_own_class(
    name: str, task: Task
) -> None:
    method = dataclasses.replace(METHODS[name], class_specific=True, strength=0.0)
    prepared, shared = method.prepare(task), METHODS[name].prepare(task)
    start = prepared.theta[CTX]
    assert start.shape == (3, 4, 16)
    assert all(torch.equal(own, shared.theta[CTX]) for own in start)
    torch.testing.assert_close(
        prepared.logits(prepared.theta, batch().images), shared.logits(shared.theta, batch().images)
    )
    after = trained(method, prepared)
    assert not any(torch.equal(after[CTX][i], after[CTX][j]) for i, j in ((0, 1), (1, 2), (0, 2)))
    # the class vector of one class hears of its own context alone
    vectors = prepared.export(after).tensors["head.weight"]
    mixed = {**after, CTX: torch.stack([after[CTX][0], start[1], start[2]])}
    other = prepared.export(mixed).tensors["head.weight"]
    torch.testing.assert_close(other[0], vectors[0])
    assert not torch.allclose(other[1], vectors[1], atol=1e-4)


@pytest.mark.parametrize("name", ["coop", "kgcoop", "contcoop", "clipfit"])
def test_training_starts_at_the_zero_shot_classifier_where_the_penalty_is_0(name: str, task: Task) -> None:
    prepared = METHODS[name].prepare(task)
    head = zero_shot_head(task.model, task.theta_0, NAMES, TEMPLATES)
    images, labels = batch().images, batch().labels
    logits = task.theta_0["logit_scale"].exp() * task.model.encode_image(task.theta_0, images) @ head.T
    found = prepared.losses(prepared.theta, batch())
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(prepared.logits(prepared.theta, images), logits)
    torch.testing.assert_close(found.fit, F.cross_entropy(logits, labels))
    if name == "coop":
        assert found.penalty is None
    else:
        assert found.penalty is not None
        assert float(found.penalty) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["kgcoop", "contcoop", "clipfit"])
def test_the_penalty_is_strength_times_the_mean_angle(name: str, task: Task) -> None:
    prepared = METHODS[name].prepare(task)
    after = trained(METHODS[name], prepared)
    exported = prepared.export(after).tensors
    start = zero_shot_head(task.model, task.theta_0, NAMES, TEMPLATES)
    own = exported if name == "clipfit" else None
    vectors = zero_shot_head(task.model, own, NAMES, TEMPLATES) if own else exported["head.weight"]
    cosines = [float(a @ b) for a, b in zip(vectors, start, strict=True)]
    penalty = prepared.losses(after, batch()).penalty
    assert penalty is not None
    assert float(penalty) == pytest.approx(8 * (1 - sum(cosines) / 3), rel=1e-3)
    assert float(penalty) > 1e-3


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize("name", METHODS)
def test_the_file_read_over_the_zero_shot_one_classifies_as_training_did(
    name: str, task: Task, tmp_path: Path, tiny_paths: dict[str, Path]
) -> None:
    prepared = METHODS[name].prepare(task)
    after = trained(METHODS[name], prepared)
    write_checkpoint(tmp_path / "zs.safetensors", task.theta_0)
    write_checkpoint(tmp_path / "ft.safetensors", *prepared.export(after))
    pair = load_pair(
        tmp_path / "zs.safetensors", tmp_path / "ft.safetensors", model=str(tiny_paths["vit"]), classnames=NAMES,
        templates=TEMPLATES,
    )  # fmt: skip
    prompts = name in ("coop", "kgcoop", "contcoop")
    assert pair.classifier.mode == ("stored" if prompts else "text")
    if prompts:
        assert pair.moving == ("head.weight",)
    images = batch().images
    torch.testing.assert_close(pair.classifier.logits(pair.theta_1, images), prepared.logits(after, images))
    torch.testing.assert_close(
        pair.classifier.logits(pair.theta_0, images), prepared.logits(prepared.theta, images), rtol=1e-4, atol=1e-5
    )


# ---------------------------------------------------------------------- R-Adapter
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {}, "learnt scale": {"scale": 0.1}, "low rank": {"rank": 3, "scale": -0.5}, "shift": {"bias": True},
    "low rank and shift": {"rank": 3, "scale": 2.0, "bias": True}, "rank above the width": {"rank": 16},
}  # fmt: skip
VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def adapted(task: Task, variant: str = "plain") -> Theta:
    """theta with random adapters of this kind, their scales as they start."""
    prepared, draw = RAdapter(**SMALL, **VARIANTS[variant]).prepare(task), torch.Generator().manual_seed(0)
    drawn = [n for n in prepared.stages[0].trained if not n.endswith(".s")]
    return prepared.theta | {n: 0.3 * torch.randn(prepared.theta[n].shape, generator=draw) for n in drawn}


def behind(z: torch.Tensor, theta: Theta, name: str, gain: float) -> torch.Tensor:
    """``z + g s (F z + c)`` written out, rows of z one after the other."""
    change = z
    for part in ("f", "d", "u"):
        if f"{name}.{part}.weight" in theta:
            own = theta.get(f"{name}.{part}.bias")
            change = F.linear(change, theta[f"{name}.{part}.weight"], own)
    return z + gain * theta.get(f"{name}.s", 1.0) * change


def test_adapters_are_in_both_towers_or_there_are_none(tiny_thetas: Any) -> None:
    """A tower of other names (a ResNet, timm's, EVA's) would stay as it is without a word, under the method's name."""
    for kind, (model, _) in tiny_thetas.items():
        if kind == "resnet":
            with pytest.raises(ConfigError, match="image tower of model .* only 2 layers of the text tower would be"):
                adapters_of(model)
            continue
        towers = {tower_of(layer) for layer, _ in adapters_of(model).values()}
        assert towers == {"image", "text"}


@VARIANT
def test_merged_adapters_equal_adapters_behind_the_layers(variant: str, task: Task) -> None:
    """open_clip's own module with the adapters hooked behind its layers."""
    model, places = task.model, adapters_of(task.model)
    theta = adapted(task, variant)
    assert len(places) == 2 * 3  # attention and MLP of two image blocks and one text block
    gains = dict(zip(places, (0.0, 1.25, 1.25, 0.0, 1.25, 1.0), strict=True))
    module = open_clip.CLIP(**copy.deepcopy(model.config))
    module.load_state_dict(task.theta_0)
    module.eval()
    for name, (layer, _) in places.items():
        inside = layer.rpartition(".")[0]  # the attention or the MLP, whose output is that of the layer

        def hook(_: Any, __: Any, output: Any, name: str = name) -> Any:
            if isinstance(output, tuple):
                return (behind(output[0], theta, name, gains[name]), *output[1:])
            return behind(output, theta, name, gains[name])

        module.get_submodule(inside).register_forward_hook(hook)
    whole = merged(theta, places, gains)
    assert set(whole) == set(task.theta_0)
    images, tokens = batch().images, model.tokenize(["a photo of a key", "star"])
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(whole, images), module.encode_image(images, normalize=True), rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            model.encode_text(whole, tokens), module.encode_text(tokens, normalize=True), rtol=1e-5, atol=1e-5
        )
    assert not torch.allclose(model.encode_text(whole, tokens), model.encode_text(task.theta_0, tokens), atol=1e-3)


def test_merged_adapters_equal_adapters_in_a_tower_of_timm(towers: Any) -> None:
    """Hooked behind ``attn.proj`` and ``mlp.fc2`` of a ViT with a gain behind each (LayerScale)."""
    model = towers["siglip"]
    theta_0 = {n: t + 0.1 * t.new_ones(t.shape) if n.endswith("gamma") else t for n, t in model.init(0).items()}
    theta = adapted(Task(model, theta_0, NAMES, TEMPLATES, 6), "low rank and shift")
    places = adapters_of(model)
    own = {n: layer for n, (layer, _) in places.items() if tower_of(n) == "image"}
    assert {layer.rpartition(".blocks.")[2][2:] for layer in own.values()} == {"attn.proj", "mlp.fc2"}
    images = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1))
    hooks = [
        model.image_part(layer).register_forward_hook(lambda _, __, z, n=name: behind(z, theta, n, 1.0))
        for name, layer in own.items()
    ]
    with torch.no_grad():
        by_hooks = model.encode_image(theta_0, images)
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(model.encode_image(merged(theta, places), images), by_hooks, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model.encode_image(theta_0, images), by_hooks, atol=1e-3)


@VARIANT
def test_every_kind_of_adapter_starts_at_theta_0_and_learns(variant: str, task: Task) -> None:
    method = RAdapter(**{**SMALL, "lr": 0.01}, ema=None, drop=0.0, **VARIANTS[variant])
    prepared, places = method.prepare(task), adapters_of(task.model)
    start = merged(prepared.theta, places)
    assert all(torch.equal(start[n], task.theta_0[n]) for n in task.theta_0)
    for name, matrix in ((n, t) for n, t in prepared.theta.items() if n.endswith(".d.weight")):
        assert 0.7 * (6 / sum(matrix.shape)) ** 0.5 < float(matrix.abs().max()) <= (6 / sum(matrix.shape)) ** 0.5, name
    after = trained(method, prepared)
    assert moved(prepared.theta, after) == set(prepared.stages[0].trained)
    kinds = {n.rpartition(".adapter_")[2].partition(".")[2] for n in prepared.stages[0].trained}
    assert kinds == {
        "plain": {"f.weight"}, "learnt scale": {"f.weight", "s"}, "low rank": {"d.weight", "u.weight", "s"},
        "shift": {"f.weight", "f.bias"}, "low rank and shift": {"d.weight", "u.weight", "u.bias", "s"},
        "rank above the width": {"f.weight"},
    }[variant]  # fmt: skip
    if method.rank == 3:
        whole = merged(after, places)
        for layer, _ in places.values():
            change = whole[f"{layer}.weight"] - task.theta_0[f"{layer}.weight"]
            assert int(torch.linalg.matrix_rank(change, rtol=1e-3)) in (1, 2, 3)


def test_a_shift_needs_a_bias_to_be_merged_into(task: Task) -> None:
    bare = {n: t for n, t in task.theta_0.items() if n != "visual.transformer.resblocks.1.mlp.c_proj.bias"}
    with pytest.raises(ConfigError, match=r"'visual.transformer.resblocks.1.mlp.c_proj' has no bias"):
        RAdapter(**SMALL, bias=True).prepare(dataclasses.replace(task, theta_0=bare))
    for wrong in ({"rank": 0}, {"scale": 0.0}):
        with pytest.raises(ConfigError, match="rank needs at least 1, and scale another number than 0"):
            RAdapter(**SMALL, **wrong)


@VARIANT
def test_rescaling_the_adapters_is_the_path(variant: str, task: Task) -> None:
    places, theta = adapters_of(task.model), adapted(task, variant)
    one, half = merged(theta, places), merged(theta, places, dict.fromkeys(places, 0.5))
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, torch.lerp(task.theta_0[name], one[name], 0.5))
    changed = {f"{layer}.{part}" for layer, _ in places.values() for part in ("weight", "bias")}
    assert moved(task.theta_0, one) == changed


@VARIANT
def test_the_reader_of_adapter_files_merges_alike(variant: str, task: Task, tmp_path: Path) -> None:
    """A file in the published code's names (matrices, learnt scale ``s``), evaluated with half of the change."""
    from sharpscope.weights.checkpoint import read_checkpoint

    places, theta = adapters_of(task.model), adapted(task, variant)
    write_checkpoint(tmp_path / "unmerged.safetensors", {f"{n}.s": torch.ones(1) for n in places} | theta)
    read = read_checkpoint(tmp_path / "unmerged.safetensors", adapter_scale=0.5).tensors
    for name, tensor in merged(theta, places, dict.fromkeys(places, 0.5)).items():
        torch.testing.assert_close(read[name], tensor)


def test_adapters_are_dropped_as_often_as_asked_and_the_first_loss_is_that_of_theta_0(task: Task) -> None:
    method = RAdapter(**{**SMALL, "drop": 0.5})
    prepared = method.prepare(task)
    start = [float(prepared.losses(prepared.theta, batch(s)).total.detach()) for s in (0, 1)]
    assert start[0] == pytest.approx(start[1])  # adapters of 0: dropped or not, the same (there is one template)
    theta = adapted(task)
    values = {round(float(prepared.losses(theta, batch(s)).total.detach()), 4) for s in range(8)}
    assert len(values) > 4  # 64 possible choices
    certain = RAdapter(**SMALL, drop=0.0).prepare(task)
    losses = [float(certain.losses(theta, batch(s)).total.detach()) for s in (0, 1)]
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="drop and smoothing"):
        RAdapter(**SMALL, drop=1.0).prepare(task)


def test_margin_nce_by_hand() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    labels, scale, margin, smoothing = torch.tensor([0, 1, 0]), torch.tensor(2.0), 0.1, 0.3
    same = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    target = torch.tensor([[0.35, 0.3, 0.35], [0.15, 0.7, 0.15], [0.35, 0.3, 0.35]])
    scores = torch.empty(3, 3)
    for i in range(3):
        for j in range(3):
            scores[i, j] = 2 * (images[i] @ texts[j] + (0 if same[i, j] else margin))
    total = 0.0
    for i in range(3):
        for j in range(3):
            total -= float(target[i, j] * torch.log(scores[i, j].exp() / scores[i].exp().sum()))
            total -= float(target[i, j] * torch.log(scores[j, i].exp() / scores[:, i].exp().sum()))
    found = mpm_nce(images, texts, labels, scale, margin, smoothing)
    assert float(found) == pytest.approx(total / 6)


def test_margin_nce_without_classes_margin_and_smoothing_is_clips_own_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(4, 5, generator=draw), dim=1) for _ in range(2))
    scale, unknown = torch.tensor(14.0), torch.full((4,), -1)
    logits = scale * images @ texts.T
    clip = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(mpm_nce(images, texts, unknown, scale, 0.0, 0.0), clip)
    # one class only: nothing is negative, the target is flat
    flat = mpm_nce(images, texts, torch.zeros(4, dtype=torch.long), scale, 0.5, 0.3)
    by_hand = -(logits.log_softmax(1).mean() + logits.log_softmax(0).mean()) / 2
    torch.testing.assert_close(flat, by_hand)
