"""A pair is checked before anything is interpolated; what was done to make it fit is recorded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpscope.errors import IdenticalPair, NonFiniteWeights, PairMismatch
from sharpscope.layers import tower_of
from sharpscope.weights.checkpoint import checkpoint_of
from sharpscope.weights.compare import check_model, describe
from sharpscope.weights.pair import check_pair

Thetas = dict[str, tuple[Any, dict[str, Tensor]]]
KINDS = ["vit", "resnet", "customtext"]


def _tuned(theta: dict[str, Tensor], scale: float = 0.01) -> dict[str, Tensor]:
    return {n: t * (1 + scale) if tower_of(n) == "image" and t.is_floating_point() else t for n, t in theta.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_moves_is_found(tiny_thetas: Thetas, kind: str) -> None:
    model, theta = tiny_thetas[kind]
    pair = check_pair(theta, _tuned(theta))
    image = {n for n in model.parameter_names if tower_of(n) == "image"}
    assert set(pair.moving) == image
    assert pair.facts["moving_towers"] == ["image"]
    assert pair.facts["num_moving"] == sum(theta[n].numel() for n in image)
    assert pair.moving == check_pair(theta, _tuned(theta), parameter_names=model.parameter_names).moving
    expected = 0.01 * math.sqrt(sum(float(theta[n].double().square().sum()) for n in image))
    assert pair.facts["distance"] == pytest.approx(expected, rel=1e-4)


def test_inputs_are_not_modified_and_checkpoints_are_kept(tiny_theta: dict[str, Tensor]) -> None:
    zero = checkpoint_of({n: t.clone() for n, t in tiny_theta.items()})
    tuned = {n: t.half() if t.is_floating_point() else t for n, t in _tuned(tiny_theta).items()}
    before = dict(tuned)
    pair = check_pair(zero, tuned)
    assert pair.zeroshot is zero and pair.finetuned is None
    assert all(tuned[n] is before[n] for n in before) and tuned["visual.proj"].dtype == torch.float16


def test_mixed_precision_is_promoted_and_recorded(tiny_theta: dict[str, Tensor]) -> None:
    half = {n: t.half() for n, t in _tuned(tiny_theta).items()}
    pair = check_pair(tiny_theta, half)
    assert pair.facts["promoted"] == {"float16+float32": len(tiny_theta)}
    assert {t.dtype for t in (*pair.theta_0.values(), *pair.theta_1.values())} == {torch.float32}
    assert torch.equal(pair.theta_1["visual.proj"], half["visual.proj"].float())
    both = check_pair({n: t.half() for n, t in tiny_theta.items()}, half)
    assert both.facts["promoted"] == {} and both.theta_0["visual.proj"].dtype == torch.float16
    mixed = check_pair({n: t.bfloat16() for n, t in tiny_theta.items()}, half)
    assert mixed.theta_0["visual.proj"].dtype == torch.float32


def test_an_integer_beside_a_float_is_refused(tiny_theta: dict[str, Tensor]) -> None:
    with pytest.raises(PairMismatch, match=r"'visual\.proj'"):
        check_pair(tiny_theta, tiny_theta | {"visual.proj": torch.ones_like(tiny_theta["visual.proj"]).long()})


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_text_tower_that_is_gone_is_taken_from_theta_0(tiny_thetas: Thetas, kind: str) -> None:
    _, theta = tiny_thetas[kind]
    image = {n: t for n, t in _tuned(theta).items() if tower_of(n) == "image"} | {"head.weight": torch.ones(3, 12)}
    pair = check_pair(theta, image)
    text = [n for n in theta if tower_of(n) == "text"]
    assert pair.facts["filled"] == {"scale": 1, "text": len(text)}
    assert all(pair.theta_1[n] is pair.theta_0[n] for n in text)
    assert pair.facts["head_in"] == "finetuned" and "head.weight" not in pair.theta_0
    assert list(pair.theta_1)[:-1] == list(pair.theta_0)


def test_leftovers_of_a_text_tower_have_to_be_theta_0s(tiny_theta: dict[str, Tensor]) -> None:
    gone = {n: t for n, t in _tuned(tiny_theta).items() if not n.startswith("transformer.")}
    pair = check_pair(tiny_theta, gone)
    assert pair.facts["filled"] == {"text": sum(n.startswith("transformer.") for n in tiny_theta)}
    halved = check_pair({n: t.half() for n, t in tiny_theta.items()}, {n: t.half().float() for n, t in gone.items()})
    assert halved.facts["filled"] == pair.facts["filled"]
    with pytest.raises(PairMismatch, match="only in the first: transformer"):
        check_pair(tiny_theta, gone | {"ln_final.weight": gone["ln_final.weight"] + 1})


def test_a_text_tower_gone_in_part_is_refused(tiny_theta: dict[str, Tensor]) -> None:
    part = {n: t for n, t in _tuned(tiny_theta).items() if "mlp" not in n or tower_of(n) != "text"}
    with pytest.raises(PairMismatch, match=r"only in the first: transformer\.resblocks\.0\.mlp"):
        check_pair(tiny_theta, part)


def test_a_text_tower_that_only_the_fine_tuned_has_is_refused(tiny_theta: dict[str, Tensor]) -> None:
    image = {n: t for n, t in tiny_theta.items() if tower_of(n) == "image"}
    with pytest.raises(PairMismatch, match="only in the second"):
        check_pair(image, _tuned(tiny_theta))


def test_identical_weights_are_nothing_to_interpolate(tiny_thetas: Thetas) -> None:
    _, theta = tiny_thetas["resnet"]
    with pytest.raises(IdenticalPair, match="nothing to interpolate"):
        check_pair(theta, {n: t.clone() for n, t in theta.items()})
    counted = {n: t + 1 if n.endswith("num_batches_tracked") else t for n, t in theta.items()}
    with pytest.raises(IdenticalPair):
        check_pair(theta, counted)


def test_statistics_alone_move_the_path_but_are_no_parameters(tiny_thetas: Thetas) -> None:
    _, theta = tiny_thetas["resnet"]
    pair = check_pair(theta, {n: t + 1 if n.endswith("running_mean") else t for n, t in theta.items()})
    assert pair.moving == ()


def test_a_head_in_one_of_the_two_is_no_mismatch_but_other_classes_are(tiny_theta: dict[str, Tensor]) -> None:
    head = {"head.weight": torch.ones(3, 12)}
    pair = check_pair(tiny_theta, tiny_theta | head)  # a linear probe: the encoder did not move
    assert pair.moving == () and pair.facts["head_in"] == "finetuned"
    both = check_pair(tiny_theta | head, tiny_theta | {"head.weight": torch.zeros(3, 12)})
    assert both.moving == ("head.weight",) and both.facts["head_in"] == "both"
    with pytest.raises(PairMismatch, match=r"head\.weight \(first \[3, 12\], second \[5, 12\]\)"):
        check_pair(tiny_theta | head, tiny_theta | {"head.weight": torch.zeros(5, 12)})
    with pytest.raises(PairMismatch, match=r"head\.bias"):
        check_pair(tiny_theta | head, tiny_theta | {"head.weight": torch.zeros(3, 12), "head.bias": torch.zeros(3)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_values_that_are_not_finite_are_named_and_counted(tiny_theta: dict[str, Tensor], bad: float, side: int) -> None:
    thetas = [tiny_theta, _tuned(tiny_theta)]
    broken = thetas[side]["visual.proj"].clone()
    broken[0, :3] = bad
    thetas[side] = thetas[side] | {"visual.proj": broken}
    with pytest.raises(NonFiniteWeights, match=rf"theta_{side}: 3 of 192 values of 'visual\.proj'"):
        check_pair(*thetas)


def test_masks_may_be_minus_infinite_and_may_be_missing(tiny_theta: dict[str, Tensor]) -> None:
    mask = {"attn_mask": torch.full((4, 4), -math.inf).triu(1)}
    assert check_pair(tiny_theta | mask, _tuned(tiny_theta) | mask).facts["dropped"] == []
    pair = check_pair(tiny_theta | mask, _tuned(tiny_theta))
    assert pair.facts["dropped"] == ["attn_mask"] and "attn_mask" not in pair.theta_0
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteWeights, match="of 16 values of 'attn_mask'"):
            check_pair(tiny_theta | {"attn_mask": torch.full((4, 4), bad)}, _tuned(tiny_theta) | mask)


def test_a_mismatch_names_at_most_ten_tensors_and_both_architectures(tiny_thetas: Thetas) -> None:
    with pytest.raises(PairMismatch) as error:
        check_pair(tiny_thetas["vit"][1], tiny_thetas["resnet"][1])
    text = str(error.value)
    names = {n for _, theta in tiny_thetas.values() for n in theta}
    shown = [word for word in text.replace(",", " ").split() if word in names]
    assert 4 <= len(shown) <= 10 and len(text.splitlines()) <= 3
    assert "a ViT (width 16, 2 blocks, patch 8, 16 px)" in text and "a ResNet (width 8, stages 1-1-1-1, 32 px)" in text


def test_hostile_names_are_escaped(tiny_theta: dict[str, Tensor]) -> None:
    with pytest.raises(PairMismatch) as error:
        check_pair(tiny_theta, tiny_theta | {"visual.\x1b[2J\nx": torch.ones(1)})
    assert "\x1b" not in str(error.value) and "\\x1b[2J\\nx" in str(error.value)


def test_tied_tensors_move_once(tiny_theta: dict[str, Tensor]) -> None:
    tuned = _tuned(tiny_theta)
    tie = "visual.zz_twin"
    pair = check_pair(tiny_theta | {tie: tiny_theta["visual.proj"]}, tuned | {tie: tuned["visual.proj"]})
    assert pair.facts["tied"] == {tie: "visual.proj"} and tie not in pair.moving
    assert pair.facts["num_moving"] == check_pair(tiny_theta, tuned).facts["num_moving"]


# ------------------------------------------------------------------ against a model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_model_fit_it(tiny_thetas: Thetas, kind: str) -> None:
    model, theta = tiny_thetas[kind]
    check_model(theta | {"head.weight": torch.ones(3, 12)}, model.shapes, kind)


def test_what_open_clip_would_resize_is_refused(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["vit"]
    grown = theta | {"visual.positional_embedding": torch.ones(17, 16)}
    with pytest.raises(PairMismatch, match=r"positional_embedding \(model \[5, 16\], file \[17, 16\]\)") as error:
        check_model(grown, model.shapes, "tiny", source="b.pt")
    first, second, third = str(error.value).splitlines()  # what both are, then the tensors, then the remedy
    assert first.startswith("b.pt does not fit model 'tiny': it looks like a ViT (") and "32 px" in first
    assert second.startswith("Tensors: 1 of another shape: ") and third.startswith("Remedy: another --model; ")


def test_missing_and_unknown_tensors_are_refused(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["vit"]
    with pytest.raises(PairMismatch, match=r"1 missing: visual\.proj; 1 unknown to the model: visual\.pro"):
        check_model({n.replace("visual.proj", "visual.pro"): t for n, t in theta.items()}, model.shapes, "tiny")


def test_a_tower_that_is_not_required_may_be_missing_but_not_misshapen(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["vit"]
    image = {n: t for n, t in theta.items() if tower_of(n) == "image"}
    with pytest.raises(PairMismatch, match="missing"):
        check_model(image, model.shapes, "tiny")
    check_model(image, model.shapes, "tiny", require=("image",))
    with pytest.raises(PairMismatch, match="ln_final"):
        check_model(image | {"ln_final.weight": torch.ones(3)}, model.shapes, "tiny", require=("image",))


VIT = "visual.transformer.resblocks.{}.ln_1.weight"


@pytest.mark.parametrize(
    ("width", "blocks", "patch", "cells", "name"),
    [
        (768, 12, 32, 50, "ViT-B-32"),
        (768, 12, 16, 197, "ViT-B-16"),
        (1024, 24, 14, 577, "ViT-L-14-336"),
        (1280, 32, 14, 257, "ViT-H-14"),
    ],
)
def test_known_architectures_are_recognised(width: int, blocks: int, patch: int, cells: int, name: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {VIT.format(i): (width,) for i in range(blocks)}
    shapes |= {"visual.conv1.weight": (width, 3, patch, patch), "visual.positional_embedding": (cells, width)}
    assert describe(shapes).startswith(name + ": ")
    assert describe({VIT.format(0): (7,)}).startswith("an unknown image tower (1 blocks)")


def test_resnets_are_recognised_by_their_stages() -> None:
    stages = enumerate((3, 4, 6, 3), start=1)
    shapes = {f"visual.layer{s}.{i}.conv1.weight": (64 * 2 ** (s - 1), 64, 1, 1) for s, n in stages for i in range(n)}
    shapes |= {"visual.attnpool.positional_embedding": (50, 2048), "visual.attnpool.c_proj.weight": (1024, 2048)}
    text = "RN50: a ResNet (width 64, stages 3-4-6-3, 224 px), embedding 1024, no text tower"
    assert describe(shapes) == text


# ------------------------------------------------------------------ half precision

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("widened", [False, True])
def test_a_tower_saved_in_half_precision_does_not_move(
    tiny_theta: dict[str, Tensor], kind: torch.dtype, widened: bool
) -> None:
    """A law: what moves is what was trained, whichever end's text tower was rounded; both ends get the exact one."""
    exact = {n: t + 1e-3 * torch.randn(t.shape) for n, t in tiny_theta.items()}  # no values of half precision
    tuned = _tuned(exact)

    def rounded(theta: dict[str, Tensor]) -> dict[str, Tensor]:
        half = {n: t if tower_of(n) == "image" else t.to(kind) for n, t in theta.items()}
        return {n: t.float() for n, t in half.items()} if widened else half

    for pair in (check_pair(exact, rounded(tuned)), check_pair(rounded(exact), tuned)):
        assert pair.facts["moving_towers"][0] == "image" and pair.facts["rounded"]["text"] > 10
        assert {tower_of(n) for n in pair.moving} <= {"image", "scale"}
        text = [n for n in exact if tower_of(n) == "text"]
        assert all(torch.equal(t[n], exact[n]) for n in text for t in (pair.theta_0, pair.theta_1))
    assert {tower_of(n) for n in check_pair(exact, rounded(tuned)).moving} == {"image"}


def test_what_moved_by_less_than_half_precision_tells_still_moves(tiny_theta: dict[str, Tensor]) -> None:
    """theta_0 in float16 is exact (OpenAI's files): a bias that was trained from it moves, however little."""
    zero = {n: t.half() for n, t in tiny_theta.items()}
    one = {n: t.float() for n, t in zero.items()}
    name = next(n for n in one if tower_of(n) == "text" and n.endswith("ln_1.weight"))
    one[name] = one[name] * (1 + 1e-5)
    assert torch.equal(one[name].half(), zero[name])
    pair = check_pair(zero, one)
    assert pair.moving == (name,) and pair.facts["rounded"] == {}


def test_a_rounded_copy_is_nothing_to_interpolate(tiny_theta: dict[str, Tensor]) -> None:
    exact = {n: t + 1e-3 * torch.randn(t.shape) for n, t in tiny_theta.items()}
    with pytest.raises(IdenticalPair, match="within the rounding"):
        check_pair(exact, {n: t.half() for n, t in exact.items()})
    large = {**exact, "visual.proj": torch.full_like(exact["visual.proj"], 1e6)}
    with pytest.raises(NonFiniteWeights, match="visual.proj"):  # overflow is no rounding
        check_pair(large, {n: t.half() for n, t in large.items()})


def test_what_an_architecture_is_said_to_be() -> None:
    """CoCa's decoder is no part of its text tower, ConvNeXt's downsampling no block, SigLIP's embedding a Linear's."""
    body = {"visual.conv1.weight": (768, 3, 32, 32), "text.token_embedding.weight": (49408, 512)}
    body |= {f"visual.transformer.resblocks.{i}.ln_1.weight": (768,) for i in range(12)}
    body |= {f"text.transformer.resblocks.{i}.ln_1.weight": (512,) for i in range(12)}
    body |= {f"text_decoder.resblocks.{i}.ln_1.weight": (512,) for i in range(12)}
    said = describe(body)
    assert said.startswith("coca_ViT-B-32") and "width 512, 12 blocks" in said and "which the logits do not use" in said
    trunk = {"visual.trunk.stem.0.weight": (128, 3, 4, 4)}
    for stage, count in enumerate((3, 3, 27, 3)):
        trunk |= {f"visual.trunk.stages.{stage}.blocks.{i}.conv_dw.weight": (1, 1, 7, 7) for i in range(count)}
        trunk |= {f"visual.trunk.stages.{stage}.downsample.1.weight": (1, 1, 2, 2)}
    assert "ConvNeXt, 36 blocks" in describe(trunk)
    assert "embedding 768" in describe({"visual.trunk.a": (1,), "text.text_projection.weight": (768, 1152)})


def test_a_logit_scale_of_shape_1_is_a_scalar(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["vit"]
    sharded = checkpoint_of({**_tuned(theta), "logit_scale": theta["logit_scale"].reshape(1)})
    assert sharded.tensors["logit_scale"].shape == () and sharded.facts["scalars"] == ["logit_scale"]
    assert check_pair(theta, sharded).facts["moving_towers"] == ["image"]
    check_model(theta, {**model.shapes, "logit_scale": (1,)}, "nonscalar")
