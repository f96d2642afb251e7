"""open_clip as a function of named tensors: the same features, derivatives to second order, nothing global touched."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import CLIP, CustomTextCLIP

from sharpscope.clip.model import ClipModel
from sharpscope.curvature.arithmetic import second_order
from sharpscope.errors import ConfigError, PairMismatch
from sharpscope.weights.compare import check_model

KINDS = ("vit", "quickgelu", "resnet", "customtext")
Thetas = dict[str, tuple[ClipModel, dict[str, torch.Tensor]]]


def reference(model: ClipModel, theta: dict[str, torch.Tensor]) -> torch.nn.Module:
    """open_clip's own module of the same config and weights, in eval mode."""
    cfg = copy.deepcopy(model.config)
    module = (CustomTextCLIP if cfg.pop("custom_text", False) else CLIP)(**cfg)
    module.load_state_dict(theta)
    return module.eval()


def images_for(model: ClipModel, n: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 3, *model.image_size, generator=torch.Generator().manual_seed(1)).to(dtype)


def double(theta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in theta.items()}


# ---------------------------------------------------------------------- the same function as open_clip's
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_open_clip(kind: str, normalize: bool, tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas[kind]
    module, x, tokens = reference(model, theta), images_for(model), model.tokenize(["a photo of a cup", "a key"])
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode_image(theta, x, normalize), module.encode_image(x, normalize), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(
            model.encode_text(theta, tokens, normalize), module.encode_text(tokens, normalize), rtol=1e-5, atol=1e-6
        )


def test_quick_gelu_is_another_function(tiny_thetas: Thetas) -> None:
    (plain, theta), (quick, _) = tiny_thetas["vit"], tiny_thetas["quickgelu"]
    x = images_for(plain)
    assert (plain.encode_image(theta, x) - quick.encode_image(theta, x)).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_init_is_open_clips_own_and_leaves_the_global_rng(kind: str, tiny_paths: dict[str, Path]) -> None:
    model = ClipModel.load(str(tiny_paths[kind]))
    before = torch.get_rng_state()
    theta = model.init(7)
    assert torch.equal(torch.get_rng_state(), before)
    cfg = copy.deepcopy(model.config)
    kind_of_clip = CustomTextCLIP if cfg.pop("custom_text", False) else CLIP
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = kind_of_clip(**cfg).state_dict()
    assert list(theta) == list(expected) == list(model.shapes)
    assert all(torch.equal(theta[k], v) for k, v in expected.items())
    assert not any(v.requires_grad for v in theta.values())


def test_shapes_split_into_parameters_and_buffers(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["resnet"]
    assert set(model.parameter_names) | set(model.buffer_names) == set(model.shapes) == set(theta)
    assert "visual.bn1.running_mean" in model.buffer_names
    assert "visual.bn1.weight" in model.parameter_names
    assert all(model.shapes[k] == v.shape for k, v in theta.items())


# ---------------------------------------------------------------------- derivatives
def gradient(loss: Any, names: list[str], theta: dict[str, torch.Tensor], create_graph: bool = False) -> Any:
    leaves = {k: theta[k].detach().requires_grad_() for k in names}
    value = loss({**theta, **leaves})
    return list(leaves.values()), torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph)


@pytest.mark.parametrize(
    ("kind", "tower"), [("vit", "image"), ("vit", "text"), ("resnet", "image"), ("customtext", "text")]
)
def test_double_backward_equals_central_differences_for_every_tensor(
    kind: str, tower: str, tiny_thetas: Thetas
) -> None:
    model, theta = tiny_thetas[kind][0], double(tiny_thetas[kind][1])
    generator = torch.Generator().manual_seed(2)
    x, tokens = images_for(model, dtype=torch.float64), model.tokenize(["a photo of a cup", "a key", "ring"])
    target = torch.randn(3, 12, generator=generator, dtype=torch.float64)

    def loss(t: dict[str, torch.Tensor]) -> torch.Tensor:
        z = model.encode_image(t, x) if tower == "image" else model.encode_text(t, tokens)
        return (z * target).sum().exp().log1p()

    own = model.image_names if tower == "image" else model.text_names
    names = [k for k in model.parameter_names if k in own]
    with second_order():
        leaves, g = gradient(loss, names, theta, create_graph=True)
        for name, leaf, g_l in zip(names, leaves, g, strict=True):
            v = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
            (hv,) = torch.autograd.grad(g_l, leaf, v, retain_graph=True)
            eps = 1e-5 / float(v.norm())
            up, down = (gradient(loss, [name], {**theta, name: leaf.detach() + s * eps * v})[1][0] for s in (1, -1))
            differences = (up - down) / (2 * eps)
            scale = max(float(differences.abs().max()), 1e-3)
            assert float((hv - differences).abs().max()) < 1e-5 * scale, name


def test_float32_second_derivatives_follow_float64(tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]) -> None:
    names = [k for k in tiny_model.parameter_names if k in tiny_model.image_names]

    def hv(theta: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        x = images_for(tiny_model, dtype=dtype)
        with second_order():
            leaves, g = gradient(lambda t: tiny_model.encode_image(t, x)[:, 0].pow(3).sum(), names, theta, True)
            ones = [torch.ones_like(p) for p in leaves]
            return torch.cat([h.flatten() for h in torch.autograd.grad(g, leaves, ones)]).double()

    exact, single = hv(double(tiny_theta), torch.float64), hv(tiny_theta, torch.float32)
    assert float((exact - single).norm()) < 1e-4 * float(exact.norm())


def test_gradients_work_without_second_order_and_agree(
    tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]
) -> None:
    x, names = images_for(tiny_model), [k for k in tiny_model.parameter_names if k in tiny_model.image_names]

    def loss(t: dict[str, torch.Tensor]) -> torch.Tensor:
        return tiny_model.encode_image(t, x)[:, 0].sum()

    plain = gradient(loss, names, tiny_theta)[1]
    with second_order():
        exact = gradient(loss, names, tiny_theta)[1]
    for a, b in zip(plain, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_same_route_with_and_without_gradients(tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]) -> None:
    x = images_for(tiny_model)
    leaves = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in tiny_theta.items()}
    with torch.no_grad():
        without = tiny_model.encode_image(tiny_theta, x)
    torch.testing.assert_close(tiny_model.encode_image(leaves, x).detach(), without, rtol=1e-5, atol=1e-6)


def test_inference_first_does_not_spoil_gradients(
    tiny_paths: dict[str, Path], tiny_theta: dict[str, torch.Tensor]
) -> None:
    model = ClipModel.load(str(tiny_paths["vit"]))  # fresh: its causal mask has not been moved anywhere yet
    theta = double(tiny_theta)  # so that the mask has to be converted
    with torch.inference_mode():
        model.encode_text(theta, model.tokenize(["a cup"]))
    tokens = model.tokenize(["a cup"])
    name = "transformer.resblocks.0.attn.in_proj_weight"
    _, (g,) = gradient(lambda t: model.encode_text(t, tokens)[:, 0].sum(), [name], theta)
    assert float(g.abs().max()) > 0


# ---------------------------------------------------------------------- nothing changes behind one's back
def flags() -> tuple[Any, ...]:
    cuda, cudnn, mha = torch.backends.cuda, torch.backends.cudnn, torch.backends.mha
    return (
        cuda.math_sdp_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        mha.get_fastpath_enabled(),
        cudnn.conv.fp32_precision,
        cuda.matmul.fp32_precision,
    )


def test_second_order_restores_every_flag_also_after_an_exception() -> None:
    before = flags()
    with second_order():
        assert flags() == (True, False, False, False, "ieee", "ieee")
    assert flags() == before
    with pytest.raises(ZeroDivisionError), second_order():
        _ = 1 / 0
    assert flags() == before
    assert torch.backends.cudnn.allow_tf32 in (True, False)  # torch refuses to say when old and new settings disagree


def test_fast_path_setting_of_the_user_survives(tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        for setting in (True, False):
            torch.backends.mha.set_fastpath_enabled(setting)
            tiny_model.encode_image(tiny_theta, images_for(tiny_model))
            with pytest.raises(PairMismatch):
                tiny_model.encode_image({}, images_for(tiny_model))
            assert torch.backends.mha.get_fastpath_enabled() is setting
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_running_statistics_are_used_and_never_updated(tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas["resnet"]
    copies = {k: v.clone() for k, v in theta.items()}
    x = images_for(model, 5)
    whole = model.encode_image(theta, x)
    torch.testing.assert_close(model.encode_image(theta, x[:1]), whole[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(copies[k], v) for k, v in theta.items())
    shifted = {**theta, "visual.bn1.running_mean": theta["visual.bn1.running_mean"] + 1}
    assert not torch.allclose(model.encode_image(shifted, x), whole)


def test_patch_dropout_is_off(tiny_paths: dict[str, Path], tmp_path: Path, tiny_theta: dict[str, torch.Tensor]) -> None:
    config = json.loads(tiny_paths["vit"].read_text())
    config["vision_cfg"]["patch_dropout"] = 0.5
    (tmp_path / "dropout.json").write_text(json.dumps(config))
    model, plain = ClipModel.load(str(tmp_path / "dropout.json")), ClipModel.load(str(tiny_paths["vit"]))
    x = images_for(model)
    assert torch.equal(model.encode_image(tiny_theta, x), plain.encode_image(tiny_theta, x))


def test_live_module_is_only_looked_at(tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]) -> None:
    module = reference(tiny_model, tiny_theta).train()
    module.visual.proj.requires_grad_(False)
    module.visual.conv1.weight.grad = torch.ones_like(module.visual.conv1.weight)
    model = ClipModel.from_module(module)
    theta = ClipModel.theta_of(module)
    x, tokens = images_for(tiny_model), tiny_model.tokenize(["a cup"])
    assert torch.equal(model.encode_image(theta, x), tiny_model.encode_image(tiny_theta, x))
    assert torch.equal(model.encode_text(theta, tokens), tiny_model.encode_text(tiny_theta, tokens))
    theta["visual.proj"].zero_()
    assert torch.equal(module.visual.proj, tiny_theta["visual.proj"])
    assert all(m.training for m in module.modules())
    assert [p.requires_grad for p in module.parameters()].count(False) == 1
    assert torch.equal(module.visual.conv1.weight.grad, torch.ones_like(module.visual.conv1.weight))
    with pytest.raises(ConfigError, match="no config"):
        model.init(0)


# ---------------------------------------------------------------------- loading
@pytest.mark.parametrize("name", ["ViT-L-14", "RN50", "coca_ViT-B-32"])
def test_names_cost_no_memory_and_no_random_numbers(name: str) -> None:
    before = torch.get_rng_state()
    model = ClipModel.load(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(t.is_meta for t in model._image.state_dict().values())
    assert sum(t.numel() for t in model._constants.values()) < 20_000
    assert not any(m.training for m in model._image.clip.modules())


def test_mean_and_std_are_the_published_ones() -> None:
    assert ClipModel.load("ViT-B-32").mean == open_clip.OPENAI_DATASET_MEAN
    assert ClipModel.load("ViT-B-16-SigLIP").mean == (0.5, 0.5, 0.5)


def test_nested_config_with_its_preprocessing(tiny_paths: dict[str, Path]) -> None:
    model = ClipModel.load(str(tiny_paths["nested"]))
    assert (model.mean, model.std, model.image_size) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (16, 16))
    assert model.shapes == ClipModel.load(str(tiny_paths["vit"])).shapes


def test_config_is_never_written_into(tiny_paths: dict[str, Path]) -> None:
    model = ClipModel.load(str(tiny_paths["customtext"]))
    model.init(0)
    model.config["text_cfg"]["width"] = 99
    assert model.config == json.loads(tiny_paths["customtext"].read_text())


def test_mini_is_the_embedded_world() -> None:
    model = ClipModel.load("mini")
    assert model.image_size == (32, 32)
    assert model.mean == model.std == (0.5, 0.5, 0.5)
    tokens = model.tokenize(["a photo of a lightning", "xyz"])
    assert tokens.shape == (2, 16)
    assert int(tokens.max()) == model.shapes["token_embedding.weight"][0] - 1  # the end-of-text token is the last one
    assert model.init(0).keys() == model.shapes.keys()


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'ViT-B-32'"):
        ClipModel.load("ViT-B32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an open_clip config JSON"),
        ("[1]", "embed_dim, vision_cfg, text_cfg"),
        ('{"embed_dim": 4}', "embed_dim, vision_cfg, text_cfg"),
        ('{"embed_dim": 4, "vision_cfg": 3, "text_cfg": {}}', "must be objects"),
        ('{"embed_dim": 4, "vision_cfg": {"wdth": 8}, "text_cfg": {}}', "wdth"),
        ('{"embed_dim": 4, "vision_cfg": {}, "text_cfg": {"hf_model_name": "roberta-base"}}', "from_module"),
    ],
)
def test_bad_config_is_one_config_error(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        ClipModel.load(str(tmp_path / "c.json"))
    assert len(str(caught.value).splitlines()) <= 3


def test_missing_config_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        ClipModel.load(str(tmp_path / "nowhere.json"))


def test_tokenizer_that_does_not_fit_the_tower_is_refused(tiny_paths: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads(tiny_paths["vit"].read_text())
    del config["text_cfg"]["tokenizer_kwargs"]  # now open_clip's own 49408 tokens, in a tower of 708
    (tmp_path / "c.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="49408"):
        ClipModel.load(str(tmp_path / "c.json")).tokenize(["a cup"])


def test_tokenizer_that_cannot_be_had_names_itself(tiny_paths: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads(tiny_paths["vit"].read_text())
    config["text_cfg"]["tokenizer_kwargs"]["bpe_path"] = "gone.txt.gz"
    (tmp_path / "c.json").write_text(json.dumps(config))
    model = ClipModel.load(str(tmp_path / "c.json"))
    assert model.encode_image(model.init(0), images_for(model)).shape == (3, 12)
    with pytest.raises(ConfigError, match=r"gone\.txt\.gz"):
        model.tokenize(["a cup"])


# ---------------------------------------------------------------------- theta that does not fit
def test_missing_tensors_are_named(tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]) -> None:
    del tiny_theta["visual.proj"]
    with pytest.raises(PairMismatch, match=r"lacks 1 tensors.*visual\.proj"):
        tiny_model.encode_image(tiny_theta, images_for(tiny_model))


def test_one_tower_is_enough_for_its_features(tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]) -> None:
    visual = {k: v for k, v in tiny_theta.items() if k.startswith("visual.")}
    x = images_for(tiny_model)
    assert torch.equal(tiny_model.encode_image(visual, x), tiny_model.encode_image(tiny_theta, x))
    with pytest.raises(PairMismatch, match="lacks .* positional_embedding"):
        tiny_model.encode_text(visual, tiny_model.tokenize(["a cup"]))


def test_the_models_shapes_name_reshaped_and_missing_tensors_and_leave_the_head_alone(
    tiny_model: ClipModel, tiny_theta: dict[str, torch.Tensor]
) -> None:
    check_model({**tiny_theta, "head.weight": torch.zeros(3, 12)}, tiny_model.shapes, tiny_model.name)
    with pytest.raises(PairMismatch, match=r"visual\.proj \(model \[16, 12\], file \[2, 2\]\)"):
        check_model({**tiny_theta, "visual.proj": torch.zeros(2, 2)}, tiny_model.shapes, tiny_model.name)
    del tiny_theta["visual.proj"]
    with pytest.raises(PairMismatch, match=r"1 missing: visual\.proj"):
        check_model(tiny_theta, tiny_model.shapes, tiny_model.name)


# ---------------------------------------------------------------------- prompts in the place of token embeddings
@pytest.mark.parametrize("kind", ["vit", "customtext"])
def test_its_own_embeddings_give_the_text_features(kind: str, tiny_thetas: Thetas) -> None:
    model, theta = tiny_thetas[kind]
    tokens = model.tokenize(["a photo of a cup", "a key"])
    embeddings = model.embed_tokens(theta, tokens)
    assert embeddings.shape == (2, 16, 16)
    assert torch.equal(model.encode_embedded(theta, tokens, embeddings), model.encode_text(theta, tokens))
    # the words of the one in the places of the other: the end of the text alone is told by the tokens
    other = model.tokenize(["a photo of a key", "a cup"])
    mixed = model.encode_embedded(theta, tokens, model.embed_tokens(theta, other))
    torch.testing.assert_close(mixed, model.encode_text(theta, other))
    assert torch.equal(model.encode_text(theta, tokens), model.encode_embedded(theta, tokens, embeddings))


def test_the_derivative_in_an_embedding_is_that_of_finite_differences(tiny_thetas: Thetas) -> None:
    model, single = tiny_thetas["customtext"]
    theta, tokens = double(single), model.tokenize(["a cup"])
    embeddings = model.embed_tokens(theta, tokens).requires_grad_()
    direction = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def feature(step: float) -> torch.Tensor:
        return model.encode_embedded(theta, tokens, embeddings + step * direction)[0, 0]

    (gradient,) = torch.autograd.grad(feature(0.0), embeddings)
    with torch.no_grad():
        difference = (feature(1e-5) - feature(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(float(difference), rel=1e-6)
    assert not gradient[0, 4:].any()  # "a cup" ends at position 3: nothing behind it counts
