"""Layers: a partition of the names, in the order in which the forward pass meets them."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sharpscope.errors import ConfigError
from sharpscope.layers import split_layers

_TEXT = {"context_length": 6, "vocab_size": 24, "width": 8, "heads": 2, "layers": 2}
_VIT = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 12, "head_width": 8}


def _timm(name: str) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, "timm_proj": "linear", "image_size": 64}


CONFIGS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "vit": (open_clip.CLIP, {"vision_cfg": _VIT}),
    "resnet": (open_clip.CLIP, {"vision_cfg": {"image_size": 32, "layers": [1, 2, 1, 1], "width": 8}}),
    "layer scale": (
        open_clip.CustomTextCLIP,
        {"vision_cfg": {**_VIT, "layers": 2, "ls_init_value": 0.1, "attentional_pool": True, "attn_pooler_heads": 2}},
    ),
    "timm vit": (open_clip.CustomTextCLIP, {"vision_cfg": {**_timm("test_vit"), "timm_pool": ""}}),
    "timm resnet": (open_clip.CustomTextCLIP, {"vision_cfg": {**_timm("test_resnet"), "timm_pool": "avg"}}),
    "timm convnext": (open_clip.CustomTextCLIP, {"vision_cfg": {**_timm("test_convnext"), "timm_pool": "avg"}}),
}


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    made = {}
    for name, (kind, config) in CONFIGS.items():
        torch.manual_seed(0)
        made[name] = kind(embed_dim=8, text_cfg=_TEXT, init_logit_bias=-1.0, **config).eval()
    return made


def _shapes(model: nn.Module, head: bool = True) -> dict[str, torch.Size]:
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    return shapes | ({"head.weight": torch.Size([3, 8]), "head.bias": torch.Size([3])} if head else {})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("granularity", ["tensor", "module", "block"])
def test_layers_partition_the_names_and_count_every_element(
    models: dict[str, nn.Module], name: str, granularity: str
) -> None:
    shapes = _shapes(models[name])
    layers = split_layers(shapes, granularity)
    params = [p for layer in layers for p in layer.params]
    assert sorted(params) == sorted(shapes)
    assert len({layer.name for layer in layers}) == len(layers)
    assert sum(layer.num_params for layer in layers) == sum(s.numel() for s in shapes.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_granularities_refine_each_other(models: dict[str, nn.Module], name: str) -> None:
    shapes = _shapes(models[name])
    home = {p: layer.name for layer in split_layers(shapes, "block") for p in layer.params}
    for module in split_layers(shapes, "module"):
        assert len({home[p] for p in module.params}) == 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("granularity", ["module", "block"])
def test_layers_come_in_the_order_of_the_forward_pass(
    models: dict[str, nn.Module], name: str, granularity: str
) -> None:
    """The independent witness: hooks on every module that owns parameters, during a real forward pass."""
    model = models[name]
    layers = split_layers(_shapes(model), granularity)
    home = {p: layer.name for layer in layers for p in layer.params}
    met: list[str] = []
    hooks = []
    for path, module in model.named_modules():
        homes = {home[f"{path}.{p}"] for p, _ in module.named_parameters()} if path else set()
        if len(homes) == 1:  # towers hold many layers: being met first says nothing about any of them
            (layer,) = homes
            hooks.append(module.register_forward_pre_hook(lambda *_, layer=layer: met.append(layer)))
    size = model.visual.image_size
    with torch.no_grad():
        model(torch.zeros(1, 3, *(size if isinstance(size, tuple) else (size, size))), torch.zeros(1, 6).long())
    for hook in hooks:
        hook.remove()
    seen = list(dict.fromkeys(met))
    assert len(seen) >= (0.7 if granularity == "module" else 0.5) * len(layers)
    assert seen == [layer.name for layer in layers if layer.name in set(seen)]


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_names_does_not_matter(random: Any) -> None:
    shapes = {
        f"visual.transformer.resblocks.{i}.{m}.weight": (2, 2) for i in range(12) for m in ("ln_1", "attn", "mlp")
    }
    shapes |= {"visual.proj": (2, 2), "visual.conv1.weight": (2, 3, 1, 1), "logit_scale": ()}
    names = list(shapes)
    random.shuffle(names)
    for granularity in ("tensor", "module", "block"):
        assert split_layers({n: shapes[n] for n in names}, granularity) == split_layers(shapes, granularity)


def test_a_vit_has_four_modules_a_block_and_embeddings_together(models: dict[str, nn.Module]) -> None:
    layers = {layer.name: layer for layer in split_layers(_shapes(models["vit"]), "module")}
    block = "visual.transformer.resblocks.10."
    found = [n for n in layers if n.startswith(block)]
    assert found == [block + m for m in ("ln_1", "attn", "ln_2", "mlp")]
    assert [layers[n].kind for n in found] == ["norm", "attention", "norm", "mlp"]
    assert {layers[n].depth for n in found} == {11}
    assert set(layers["visual.embed"].params) == {"visual.class_embedding", "visual.positional_embedding"}
    first = list(layers)[:3]
    assert first == ["visual.conv1", "visual.embed", "visual.ln_pre"]
    assert [layers[n].kind for n in first] == ["conv", "embedding", "norm"]
    assert list(layers)[-3:] == ["head", "logit_scale", "logit_bias"]
    assert [layers[n].tower for n in list(layers)[-3:]] == ["head", "scale", "scale"]
    assert layers["visual.proj"].depth == 13 and layers["visual.proj"].kind == "projection"
    assert layers["transformer.resblocks.1.mlp"].tower == "text"


def test_a_vit_has_a_stem_blocks_and_a_post(models: dict[str, nn.Module]) -> None:
    layers = split_layers(_shapes(models["vit"]), "block")
    blocks = [f"visual.transformer.resblocks.{i}" for i in range(12)]
    text = ["text.stem", "transformer.resblocks.0", "transformer.resblocks.1", "text.post"]
    names = ["visual.stem", *blocks, "visual.post", *text, "head", "logit_scale", "logit_bias"]
    assert [layer.name for layer in layers] == names
    assert [layer.depth for layer in layers[:14]] == list(range(14))
    assert {layer.kind for layer in layers[1:13]} == {"block"}
    stem = {"visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding"}
    assert set(layers[0].params) == stem | {"visual.ln_pre.weight", "visual.ln_pre.bias"}
    assert set(layers[13].params) == {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"}


def test_layer_scales_belong_to_what_they_scale(models: dict[str, nn.Module]) -> None:
    home = {p: la.name for la in split_layers(_shapes(models["layer scale"]), "module") for p in la.params}
    block = "visual.transformer.resblocks.0."
    assert home[block + "ls_1.gamma"] == block + "attn"
    assert home[block + "ls_2.gamma"] == block + "mlp"
    assert home["visual.attn_pool.query"] == "visual.attn_pool"


def test_convolutional_blocks_group_by_stage_and_block(models: dict[str, nn.Module]) -> None:
    blocks = [la.name for la in split_layers(_shapes(models["resnet"]), "block") if la.tower == "image"]
    inner = ["visual.layer1.0", "visual.layer2.0", "visual.layer2.1", "visual.layer3.0", "visual.layer4.0"]
    assert blocks == ["visual.stem", *inner, "visual.post"]
    modules = {la.name: la.kind for la in split_layers(_shapes(models["resnet"]), "module")}
    assert modules["visual.layer1.0.conv2"] == "conv" and modules["visual.layer1.0.bn2"] == "norm"
    assert modules["visual.layer1.0.downsample"] == "conv" and modules["visual.attnpool"] == "attention"
    bridges = [la.name for la in split_layers(_shapes(models["timm convnext"]), "block") if "downsample" in la.name]
    assert bridges and all(name.endswith("downsample") for name in bridges)


def test_nothing_gives_nothing_and_an_unknown_granularity_is_refused() -> None:
    assert split_layers({}, "block") == ()
    with pytest.raises(ConfigError, match="Did you mean 'block'"):
        split_layers({"a": (1,)}, "blocks")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab.01_weight", min_size=1, max_size=20), unique=True, max_size=12))
def test_unknown_names_are_partitioned_too(names: list[str]) -> None:
    shapes = dict.fromkeys(names, (2,))
    for granularity in ("tensor", "module", "block"):
        layers = split_layers(shapes, granularity)
        assert sorted(p for layer in layers for p in layer.params) == sorted(names)
