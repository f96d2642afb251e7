"""The order of layers is that of the forward pass: a witness records when each tensor is used first.

The models are open_clip's own configurations at their real size on torch's meta device, where a forward pass computes
nothing; Hugging Face text towers, which look at the numbers of their masks, are real and tiny.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import open_clip.hf_model
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharpscope.layers import Layer, layer_key, place, split_layers

GRANULARITIES = ("tensor", "module", "block")

OPEN_CLIP = (
    "ViT-B-32", "ViT-M-16-alt", "ViT-L-14-CLIPA", "RN50", "RN50x4", "coca_ViT-B-32", "coca_base",
)  # fmt: skip
"""Configurations whose two towers are open_clip's own."""

WHOLE = ("ViT-B-32", "coca_ViT-B-32")
"""All other towers of open_clip's own transformers are cut to two blocks; what timm builds is whole."""

TIMM = (
    "convnext_base", "convnext_large_d", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2", "EVA01-g-14",
    "EVA02-B-16", "EVA02-E-14", "MobileCLIP-B", "MobileCLIP-S1", "MobileCLIP2-L-14", "MobileCLIP2-S0",
    "ViTamin-S", "PE-Core-T-16-384", "swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224",
    "vit_medium_patch16_gap_256",
)  # fmt: skip
"""Configurations whose image tower is timm's."""

HUGGING_FACE = (
    "roberta-ViT-B-32", "xlm-roberta-base-ViT-B-32", "mt5-base-ViT-B-32", "nllb-clip-base", "coca_roberta-ViT-B-32"
)  # fmt: skip
"""Configurations whose text tower is transformers'; their sizes are reduced."""

_BERT = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
_NLLB = {
    "vocab_size": 24, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_position_embeddings": 40,
}  # fmt: skip
_MT5 = {"vocab_size": 24, "num_layers": 2, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32}
TEXT_CONFIGS: dict[str, Callable[[], Any]] = {
    "roberta-base": lambda: transformers.RobertaConfig(**_BERT),
    "xlm-roberta-base": lambda: transformers.XLMRobertaConfig(**_BERT),
    "google/mt5-base": lambda: transformers.MT5Config(**_MT5),
    "facebook/nllb-200-distilled-600M": lambda: transformers.M2M100Config(**_NLLB),
}
"""What transformers' AutoConfig would download."""

_TEXT = {"context_length": 6, "vocab_size": 24, "width": 8, "heads": 2, "layers": 2}
_VIT = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}


def _timm(name: str, pool: str, size: int = 160) -> dict[str, Any]:
    tower = {"timm_model_name": name, "timm_model_pretrained": False, "timm_proj": "linear", "timm_pool": pool}
    return {"vision_cfg": {**tower, "image_size": size}, "text_cfg": _TEXT}


_SCALES = dict.fromkeys(("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), True)
MADE: dict[str, dict[str, Any]] = {
    "scaled blocks": {
        "vision_cfg": {**_VIT, **_SCALES, "qk_norm": True, "ls_init_value": 0.1},
        "text_cfg": {**_TEXT, **_SCALES, "ls_init_value": 0.1},
    },
    "attentional pool": {
        "vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2},
        "text_cfg": {**_TEXT, "embed_cls": True},
    },
    "timm vit": _timm("test_vit", ""),
    "timm vit, registers": _timm("test_vit2", ""),
    "timm vit, attentional pool": _timm("test_vit3", ""),
    "timm resnet": _timm("test_resnet", "avg"),
    "timm resnet, rotary pool": _timm("resnet18", "rot_attn", 224),
    "timm resnet, absolute pool": _timm("resnet18", "abs_attn", 224),
    "timm convnext": _timm("test_convnext2", "avg"),
}
"""Configurations of this file's own: what open_clip and timm can build beside the named models."""

ARCHITECTURES = (*OPEN_CLIP, *TIMM, *HUGGING_FACE, *MADE)

SAME_NAMES: dict[tuple[str, str], str] = {
    ("EVA02-E-14", "module"): r"\.blocks\.\d+\.norm[12]$",
    ("EVA02-E-14", "tensor"): r"\.blocks\.\d+\.norm[12]\.(weight|bias)$",
    ("MobileCLIP-B", "tensor"): r"\.pos_embed$",
}
"""Layers that are left out of the law, because another architecture uses the very same names in another order.

EVA02-E-14 (and -plus) normalises behind attention and MLP, EVA01-g-14 before them; MobileCLIP-B (and MobileCLIP2-B)
adds the positions before it joins the class token, the other ViTs behind.
"""


class FirstUse(TorchDispatchMode):
    """Records when every named tensor takes part in an operation for the first time.

    Views are no use, nor is what only moves or casts named tensors (biases of queries, keys and values joined for one
    product): their results stand for the tensors that they are made of. Tensors that meet in one operation are equal.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.first: dict[str, int] = {}
        self._clock = 0
        self._spans: dict[int, list[tuple[int, int, str]]] = {}
        self._held: list[Tensor] = []  # storages that are known must not be freed, or others get their addresses
        for name, tensor in named:
            self._own(tensor, 0, [(0, tensor.numel(), name)])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._clock += 1
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out
        taken = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        moves = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.clone, torch.ops.aten.cat)
        if moves and all(self._parts(t) for t in taken):
            start = 0
            for tensor in taken:
                self._own(out, start, self._parts(tensor))
                start += tensor.numel()
            return out
        for tensor in taken:
            for _, _, name in self._parts(tensor):
                self.first.setdefault(name, self._clock)
        return out

    def _own(self, tensor: Tensor, start: int, parts: Iterable[tuple[int, int, str]]) -> None:
        self._held.append(tensor)
        spans = self._spans.setdefault(tensor.untyped_storage()._cdata, [])
        spans.extend((start + a, start + b, name) for a, b, name in parts)

    def _parts(self, tensor: Tensor) -> list[tuple[int, int, str]]:
        """``(start, end, name)`` of the named tensors in the storage of ``tensor`` that it overlaps with."""
        first = tensor.storage_offset()
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        last = first + sum((n - 1) * step for n, step in steps) + 1 if tensor.numel() else first
        spans = self._spans.get(tensor.untyped_storage()._cdata, ())
        return [(max(a, first) - first, min(b, last) - first, n) for a, b, n in spans if a < last and first < b]


@dataclass(frozen=True)
class Seen:
    """``shapes`` of a state dict; ``first``: the time of every tensor's first use in one forward pass."""

    shapes: dict[str, tuple[int, ...]]
    first: dict[str, int]

    def used(self, layers: Iterable[Layer]) -> dict[str, int]:
        """Layer -> when the first of its tensors is used; layers that the pass never uses are left out."""
        times = {x.name: [self.first[p] for p in x.params if p in self.first] for x in layers}
        return {name: min(found) for name, found in times.items() if found}


class RealSteps(TorchFunctionMode):
    """Keeps what timm reads numbers from (the rates of dropped paths) off the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        where = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **where | (kwargs or {}))


class LocalConfigs:
    """Stands in for transformers' AutoConfig, which would download."""

    @staticmethod
    def from_pretrained(name: str, **_: Any) -> Any:
        return TEXT_CONFIGS[name]()


def configured(name: str) -> dict[str, Any]:
    if name in MADE:
        return {"embed_dim": 8, "custom_text": True, **MADE[name]}
    config = open_clip.get_model_config(name)
    assert config is not None
    if name not in WHOLE:
        config["text_cfg"] |= {"layers": 2}
        config["vision_cfg"] |= {"layers": 2} if isinstance(config["vision_cfg"].get("layers"), int) else {}
    if name in HUGGING_FACE:
        config |= {"embed_dim": 8, "custom_text": True}
        config["vision_cfg"] |= _VIT
        config["text_cfg"] |= {"hf_model_pretrained": False}
        if "multimodal_cfg" in config:
            config["multimodal_cfg"] |= _TEXT | {"width": 16}
    return config


def built(name: str) -> nn.Module:
    config = configured(name)
    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model: nn.Module = kind(**config)
    return model.eval()


@cache
def seen(name: str) -> Seen:
    """What one forward pass of an image and a text uses; with gradients on, since attention would be fused without."""
    with pytest.MonkeyPatch.context() as patch, torch.device("cpu" if name in HUGGING_FACE else "meta"), RealSteps():
        patch.setattr(open_clip.hf_model, "AutoConfig", LocalConfigs)
        model = built(name)
        size = model.visual.image_size
        length = 6 if name in HUGGING_FACE else model.context_length
        images = torch.zeros(1, 3, *(size if isinstance(size, tuple) else (size, size)))
        witness = FirstUse([*model.named_parameters(), *model.named_buffers()])
        with witness:
            model(images, torch.full((1, length), 3))
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    return Seen(shapes, {n: t for n, t in witness.first.items() if n in shapes})


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted from the alphabetical order, so that nothing is right by having been so before."""
    return sorted(sorted(names), key=layer_key)


def towers(layers: Iterable[Layer]) -> dict[tuple[str, bool], list[str]]:
    """The layers' names by tower; CoCa's decoder is a tower of its own."""
    found: dict[tuple[str, bool], list[str]] = {}
    for x in layers:
        found.setdefault((x.tower, x.name.startswith("text_decoder.")), []).append(x.name)
    return found


def out_of_place(name: str, granularity: str, left_out: str | None) -> list[tuple[str, str]]:
    """``(where we have it, what the forward pass has there)``, tower by tower."""
    layers = split_layers(seen(name).shapes, granularity)
    used = seen(name).used(layers)
    wrong = []
    for names in towers(layers).values():
        ours = [n for n in names if n in used and not (left_out and re.search(left_out, n))]
        wrong += [pair for pair in zip(ours, sorted(ours, key=used.__getitem__), strict=True) if pair[0] != pair[1]]
    return wrong


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_come_in_the_order_of_their_first_use(name: str) -> None:
    for granularity in GRANULARITIES:
        layers = split_layers(seen(name).shapes, granularity)
        assert out_of_place(name, granularity, SAME_NAMES.get((name, granularity))) == []
        assert in_order(x.name for x in layers) == [x.name for x in layers]
        towers_met = list(dict.fromkeys((x.tower, x.name.startswith("text_decoder.")) for x in layers))
        turns = [("image", False), ("text", False), ("text", True), ("head", False), ("scale", False)]
        assert towers_met == [t for t in turns if t in towers_met]
    unused = {n for n in seen(name).shapes if n not in seen(name).first and "num_batches_tracked" not in n}
    assert unused <= {"logit_bias"}


@pytest.mark.parametrize(("name", "granularity"), SAME_NAMES)
def test_what_the_law_leaves_out_is_out_of_place_and_has_a_namesake(name: str, granularity: str) -> None:
    wrong = [ours for ours, _ in out_of_place(name, granularity, None)]
    assert any(re.search(SAME_NAMES[name, granularity], n) for n in wrong)
    namesake = {"EVA02-E-14": "EVA01-g-14", "MobileCLIP-B": "EVA01-g-14"}[name]
    theirs = [x.name for x in split_layers(seen(namesake).shapes, granularity)]
    assert any(re.search(SAME_NAMES[name, granularity], n) for n in theirs)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_depths_never_fall_in_a_tower_and_every_layer_has_a_kind(name: str) -> None:
    for granularity in GRANULARITIES:
        layers = split_layers(seen(name).shapes, granularity)
        for tower in ("image", "text"):
            depths = [x.depth for x in layers if x.tower == tower]
            assert depths == sorted(depths)
            assert granularity != "block" or (depths[0], depths[-1]) == (0, max(depths))
        if granularity == "module":
            assert [x.name for x in layers if x.kind == "other"] == []


def test_the_witness_tells_use_from_handling() -> None:
    """Joined biases are used where the product with their own part is; views and casts are no use."""
    a, b, late, never = (torch.zeros(2, dtype=t) for t in (torch.float32, torch.float32, torch.float64, torch.float32))
    weights = torch.eye(2)
    with FirstUse({"late": late, "a": a, "b": b, "w": weights, "never": never}.items()) as witness:
        cast, joined, data = late.float(), torch.cat([a, b]), torch.ones(1, 2)
        never.view(1, 2).t()
        data = torch.nn.functional.linear(data, weights.view(2, 2), joined[:2])
        data = torch.nn.functional.linear(data, weights, joined[2:])
        data.add_(cast)
    first = witness.first
    assert first["w"] == first["a"] < first["b"] < first["late"]
    assert "never" not in first


@pytest.mark.parametrize(
    ("name", "layer", "kind", "depth"),
    [
        ("ViT-B-16-SigLIP", "visual.trunk.blocks.3.attn", "attention", 4),
        ("ViT-B-16-SigLIP", "visual.trunk.attn_pool", "attention", 13),
        ("MobileCLIP2-L-14", "visual.trunk.norm_pre", "norm", 0),
        ("MobileCLIP-S1", "visual.trunk.stages.0.blocks.0.token_mixer", "attention", 1),
        ("convnext_base", "visual.trunk.stages.1.downsample", "conv", 4),
        ("ViTamin-S", "visual.trunk.patch_embed", "conv", 0),
        ("ViTamin-S", "visual.trunk.embed", "embedding", 6),  # six convolutional blocks embed the patches
        ("ViTamin-S", "visual.trunk.blocks.0.norm1", "norm", 7),
        ("coca_ViT-B-32", "text.ln_final", "norm", 13),
        ("coca_ViT-B-32", "text_decoder.resblocks.0.attn", "attention", 13),
        ("coca_ViT-B-32", "text_decoder.cross_attn.0.attn", "attention", 14),
        ("coca_ViT-B-32", "text_decoder.text_projection", "projection", 37),
        ("roberta-ViT-B-32", "text.transformer.embeddings", "embedding", 0),
        ("roberta-ViT-B-32", "text.transformer.encoder.layer.1.intermediate", "mlp", 2),
        ("roberta-ViT-B-32", "text.proj", "projection", 3),
        ("mt5-base-ViT-B-32", "text.transformer.embed_tokens", "embedding", 0),
        ("mt5-base-ViT-B-32", "text.transformer.block.1.layer.0.SelfAttention", "attention", 2),
        ("mt5-base-ViT-B-32", "text.transformer.block.1.layer.1.DenseReluDense", "mlp", 2),
        ("nllb-clip-base", "text.transformer.layers.0.self_attn_layer_norm", "norm", 1),
        ("nllb-clip-base", "text.transformer.layers.0.fc1", "mlp", 1),
        ("nllb-clip-base", "text.transformer.layer_norm", "norm", 3),
    ],
)
def test_kind_and_depth_of_foreign_towers_are_like_our_own(name: str, layer: str, kind: str, depth: int) -> None:
    found = {x.name: x for x in split_layers(seen(name).shapes, "module")}[layer]
    assert (found.kind, found.depth) == (kind, depth)
    assert found.tower == ("image" if layer.startswith("visual.") else "text")


def test_layer_scales_of_fastvit_belong_to_what_they_scale() -> None:
    home = {p: x.name for x in split_layers(seen("MobileCLIP-S1").shapes, "module") for p in x.params}
    block = "visual.trunk.stages.3.blocks.0."
    assert home[block + "layer_scale_1.gamma"] == block + "token_mixer"
    assert home[block + "layer_scale_2.gamma"] == block + "mlp"


def test_groups_come_first_then_image_text_head_and_scale() -> None:
    names = [
        "(all)", "(stragglers)", "(others)", "(best)", "visual.stem", "visual.transformer.resblocks.9",
        "visual.transformer.resblocks.11", "visual.post", "token_embedding.weight", "positional_embedding",
        "transformer.resblocks.2.ln_1", "transformer.resblocks.10.attn", "ln_final", "text_projection",
        "text_decoder.resblocks.0", "text_decoder.cross_attn.0", "text_decoder.resblocks.1", "text_decoder.post",
        "head", "logit_scale", "logit_bias",
    ]  # fmt: skip
    assert in_order(names) == names
    assert in_order(["logit_scale", "classification_head", "visual.proj"])[1:] == ["classification_head", "logit_scale"]
    assert in_order(["text.embed", "text.stem", "transformer.resblocks.0", "text.post"])[-1] == "text.post"
    resnet = [
        "visual.conv1", "visual.bn1", "visual.layer1.0.conv1", "visual.layer1.0.conv2", "visual.layer2.0.conv1",
        "visual.attnpool",
    ]  # fmt: skip
    assert in_order(resnet) == resnet


def test_the_place_of_a_tensor_has_the_key_of_its_name() -> None:
    assert all(place(n).key == layer_key(n) for n in seen("ViTamin-S").shapes)


PARTS = (
    "visual", "text", "text_decoder", "trunk", "blocks", "resblocks", "cross_attn", "stages", "layer", "layer1", "0",
    "1", "10", "9" * 30, "²", "attn", "ls_1", "layer_scale", "norm1", "cls_token", "embed", "patch_embed", "downsample",
    "head", "logit_scale", "weight", "", "(all)", "层", "\ud800",
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join), unique=True, max_size=12))
def test_names_of_any_kind_have_one_order(names: list[str]) -> None:
    assert len({layer_key(n) for n in names}) == len(names)
    for granularity in GRANULARITIES:
        layers = [x.name for x in split_layers(dict.fromkeys(names, (2,)), granularity)]
        assert in_order(layers) == layers
