"""Which tensors form a layer: names -> ordered layers at granularity tensor | module | block.

Only the names are used, so that this works for a state dict without its model and in any order (safetensors sorts by
size). The tables below state, for the towers of open_clip, timm and transformers, the order in which the forward pass
uses the parts of a tower, of a block and of a module.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Literal, get_args

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.vocabulary import ALL, GROUP_TITLES, Granularity

__all__ = [
    "HEAD_BIAS",
    "HEAD_WEIGHT",
    "NO_PLACE",
    "TOWERS",
    "Kind",
    "Layer",
    "Place",
    "Tower",
    "is_buffer",
    "is_derived",
    "layer_key",
    "module_layers",
    "place",
    "split_layers",
    "tower_of",
    "whole_model",
]

Tower = Literal["image", "text", "head", "scale", ""]
TOWERS: Final[tuple[Tower, ...]] = ("image", "text", "head", "scale")
HEAD_WEIGHT: Final = "head.weight"
HEAD_BIAS: Final = "head.bias"

_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_DERIVED = re.compile(
    r"(^|\.)(attn_mask|position_ids|relative_position_index|relative_coords_table|input_resolution|context_length|vocab_size)$"
)


def tower_of(name: str) -> Tower:
    """The part of the CLIP to which the tensor ``name`` belongs; a name that is not image, head or scale is text.

    >>> [tower_of(n) for n in ("visual.proj", "ln_final.weight", "head.bias", "logit_scale")]
    ['image', 'text', 'head', 'scale']
    """
    if name.startswith("visual."):
        return "image"
    if name.startswith("head."):
        return "head"
    return "scale" if name in ("logit_scale", "logit_bias") else "text"


def is_derived(name: str) -> bool:
    """Whether ``name`` is a constant that the architecture determines (mask, index table), which a file may lack."""
    return _DERIVED.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether ``name`` is that of a buffer (normalisation statistics, constants) and not of a parameter."""
    return _STATISTICS.search(name) is not None or is_derived(name)


Kind = Literal["embedding", "conv", "norm", "attention", "mlp", "projection", "head", "block", "scale", "other", ""]


@dataclass(frozen=True)
class Layer:
    """A group of tensors whose sharpness is measured, or whose change is made sparse, together.

    ``depth``: the number of the layer's block in its tower, in forward order, from 1. A layer between two blocks has
    the depth of the block before it; a layer before the first block has depth 0, and a layer after the last block has
    the last block's depth plus 1. ``num_params``: the number of elements. ``params``: the tensors' names, in forward
    order.
    """

    name: str
    params: tuple[str, ...]
    tower: Tower
    depth: int
    kind: Kind
    num_params: int


def whole_model(layers: Sequence[Layer]) -> Layer:
    """All ``layers`` together as the layer ``(all)``: every parameter on which the logits depend, moving or not."""
    params, count = tuple(n for x in layers for n in x.params), sum(x.num_params for x in layers)
    return Layer(ALL, params, ALL, -1, ALL, count)  # type: ignore[arg-type]


NO_PLACE: Final[tuple[Tower, int, Kind]] = ("", 0, "")
"""Tower, depth and kind of a layer of a module of which nothing is known but its names."""


@dataclass(frozen=True)
class Place:
    """The position of a tensor in the model.

    ``block``: None outside the blocks. ``stem``: whether the tensor precedes the blocks. ``key``: its ``layer_key``.
    """

    tower: Tower
    block: str | None
    module: str
    stem: bool
    key: tuple[Any, ...]


_CONTAINER: Final = re.compile(
    r"^(resblocks|blocks|block|layers|layer|stages|cross_attn|h)$|^(layer|stages_|blocks_)\d+$"
)
_NUMBER: Final = re.compile(r"^[0-9]+$")
_WRAPPERS: Final = ("visual", "text", "text_decoder", "trunk", "transformer", "encoder", "decoder", "backbone", "model")
"""Names of modules that only wrap others and have no position of their own in the order."""
_BRIDGES: Final = ("downsample", "pos_emb")
"""Modules of a stage that lead into its blocks."""
_EMBED: Final = (
    "class_embedding", "cls_emb", "cls_token", "dist_token", "reg_token", "register_token", "positional_embedding",
    "pos_embed",
)  # fmt: skip
"""Bare parameters that join the tokens, in the order of the forward pass: the class first, then the positions of all
tokens."""
_TURNS: Final = {
    "visual": 0, "text": 1, "text_decoder": 2, "head": 3, "classification_head": 3, "logit_scale": 4, "logit_bias": 5,
}  # fmt: skip
"""The first token of a name -> the rank of its part of the CLIP. Any other first token belongs to the text tower."""
_GROUPS: Final = tuple(GROUP_TITLES)
"""The names of groups of layers, which sort before all layers."""


def _ranks(*lines: str) -> dict[str, int]:
    """The rank of every name in ``lines``; names in one line share a rank, because no module has two of them."""
    return {name: rank for rank, line in enumerate(lines) for name in line.split()}


_LEAVES: Final = ("unknown", "weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The last ranks of every table below except the tower's. A name in no table ranks as ``unknown``, and a module's own
tensors follow it."""

_TOWER: Final = _ranks(
    "stem conv_stem patch_embed",
    "conv1",
    "bn1",
    "conv2",
    "bn2",
    "conv3",
    "bn3",
    "embeddings token_embedding embed_tokens shared",
    "embed",
    *_EMBED,
    "layernorm_embedding",
    "rope",
    "ln_pre norm_pre",
    *_BRIDGES,
    "blocks",
    "unknown",
    "conv_head final_conv",
    "norm layer_norm final_layer_norm",
    "pooler attn_pool attnpool",
    "attn_pool_contrastive",
    "fc_norm",
    "ln_post ln_final",
    "head",
    "proj text_projection",
    "post",
)
"""The parts of a tower. ``blocks`` is the rank of all containers of blocks and of their wrappers.

``stem``, ``embed`` and ``post`` are layers of several tensors each: the part before the blocks (granularity block), the
bare parameters that join the tokens (granularity module), and the part after the blocks (granularity block).
"""

_PATCH_EMBED: Final = _ranks("stem", "conv", "bn", "blocks", "pool", "proj", "norm", *_LEAVES)
"""Inside ``patch_embed``: a convolution, or a small convolutional tower of its own (ViTamin, MobileCLIP-B)."""

_STEM: Final = _ranks(
    "identity", "conv_scale", "conv_kxk", "conv1", "bn1 norm1", "conv2", "bn2 norm2", "conv3", "bn3 norm3", *_LEAVES
)
"""Inside ``stem``, where every norm follows its convolution."""

_BLOCK: Final = _ranks(
    "shortcut",  # ViTamin computes its residual branch before the main one
    "ln_1_kv",  # CoCa's cross attention normalises the image tokens before the text's
    "ln_1 norm1 pre_norm layer_norm layer_norm1 self_attn_layer_norm",
    # convolutional blocks: FastViT's parallel branches, then one convolution after another
    "identity",
    "conv_scale",
    "large_conv",
    "small_conv",
    "conv_kxk",
    "conv_pw conv1 conv1_1x1",
    "bn1",
    "conv_dw conv2 conv2_kxk",
    "bn2",
    "se",
    "conv_pwl conv3 conv3_1x1",
    "bn3",
    "conv",
    "bn",
    "norm ln",  # in ConvNeXt behind the convolution, in FastViT before the attention
    "downsample",  # ResNets compute their residual branch behind the main one
    # transformer blocks
    "attn attention self_attn SelfAttention token_mixer",
    "ln_attn",
    "ls_1 ls1 gamma_1 layer_scale_1 layer_scale1",
    "ln_2 norm2 layer_norm2 final_layer_norm",
    "mlp DenseReluDense intermediate",
    "fc1",
    "fc2 output",
    "ls_2 ls2 gamma_2 gamma layer_scale layer_scale_2 layer_scale2",
    # projections and heads
    "pool",
    "reduction proj dense fc",
    "LayerNorm",
    *_LEAVES,
)
"""Inside a block, and inside every module without a table of its own."""

_ATTENTION: Final = _ranks(
    "positional_embedding pos_embed",
    "mixer",  # FastViT's convolutional token mixer subtracts its norm and scales the difference
    "q_bias",
    "k_bias",
    "v_bias",
    "q_proj_weight q_proj q query in_proj_weight qkv self",
    "in_proj_bias",
    "k_proj_weight k_proj k key",
    "v_proj_weight v_proj v value",
    "kv",
    "q_norm ln_q",
    "k_norm ln_k",
    "logit_scale",
    "relative_position_bias_table relative_attention_bias rel_pos",
    "head_scale",
    "norm ln_inner",
    "layer_scale",
    "out_proj proj c_proj o output",
    *_LEAVES,
)
"""Inside an attention: queries, keys and values, parameters of the attention weights, norm of the heads, output."""

_POOL: Final = _ranks(
    "positional_embedding",
    "ln_k",
    "query latent",
    "ln_q",
    "attn",
    "q_proj q",
    "k_proj",
    "v_proj",
    "kv",
    "q_norm",
    "k_norm",
    "c_proj proj",
    "norm",
    "mlp",
    *_LEAVES,
)
"""Inside an attentional pooling, which normalises after its output projection and not before it."""

_MLP: Final = _ranks(
    "conv",  # FastViT
    "c_fc fc1 fc1_g wi wi_0",
    "fc1_x wi_1",
    "norm ln",  # in EVA-02 and open_clip before the second layer, in ViTamin before the first, called w0
    "w0",
    "w1",
    "c_proj fc2 w2 wo",
    *_LEAVES,
)
"""Inside a multilayer perceptron."""

_EMBEDDINGS: Final = _ranks(
    "word_embeddings", "token_type_embeddings", "position_embeddings", "LayerNorm layernorm", *_LEAVES
)
"""Inside the embeddings of a Hugging Face text tower."""

_WITHIN: Final[tuple[tuple[str, dict[str, int]], ...]] = (
    (r"patch_embed$", _PATCH_EMBED),
    (r"stem$", _STEM),
    (r"embeddings$", _EMBEDDINGS),
    (r"attn_?pool", _POOL),
    (r".*attn|.*attention|SelfAttention$|self$|token_mixer$|pool$", _ATTENTION),
    (r"mlp|ffn|DenseReluDense$", _MLP),
    (r"", _BLOCK),
)
"""A pattern for the beginning of a module's name -> the table for the module's parts; the first match counts."""

_FOLDED: Final[dict[str, str]] = {
    "ls_1": "attn",
    "ls1": "attn",
    "gamma_1": "attn",
    "layer_scale_1": "token_mixer",
    "layer_scale1": "token_mixer",
    "ls_2": "mlp",
    "ls2": "mlp",
    "gamma_2": "mlp",
    "gamma": "mlp",
    "layer_scale": "mlp",
    "layer_scale_2": "mlp",
    "layer_scale2": "mlp",
}
"""Layer scales belong to the module whose output they scale."""

_KINDS: Final[tuple[tuple[str, Kind], ...]] = (
    (r"embed$|.*embedding|.*embeddings$|pos_emb$|embed_tokens$|shared$", "embedding"),
    (r"ln_|.*norm\d?$|norm_pre$|bn\d", "norm"),
    (r"attn|attention|.*attn$|attn_?pool|token_mixer|SelfAttention$", "attention"),
    (r"mlp|fc\d?$|ffn|intermediate$|output$|DenseReluDense$", "mlp"),
    (r"conv|patch_embed|stem|downsample|shortcut|.*_conv$|se$", "conv"),
    (r"proj|text_projection|head|pooler", "projection"),
)


def split_layers(shapes: Mapping[str, Sequence[int]], granularity: str = "module") -> tuple[Layer, ...]:
    """Group tensors into layers, ordered as the forward pass meets them: image tower, text tower, head, scale.

    ``shapes``: name -> shape, in any order; the layers partition these names. Granularity:

    - ``tensor``: every tensor is a layer;
    - ``module``: the modules of a block are layers: ``ln_1``, ``attn``, ``ln_2``, ``mlp`` of a transformer block (a
      layer scale belongs to the module that it scales), convolutions and norms of a convolutional block. Class and
      positional embeddings together are the layer ``embed``;
    - ``block``: every residual block is a layer, as are ``stem``, the part before the blocks, and ``post``, the part
      after them.

    Returns the layers sorted by ``layer_key``. Raises ConfigError when ``granularity`` is none of the three.

    >>> shapes = {"visual.proj": (4, 2), "visual.conv1.weight": (4, 3, 8, 8), "visual.class_embedding": (4,)}
    >>> [(layer.name, layer.kind, layer.num_params) for layer in split_layers(shapes)]
    [('visual.conv1', 'conv', 768), ('visual.embed', 'embedding', 4), ('visual.proj', 'projection', 8)]
    """
    _check_granularity(granularity)
    places = {name: place(name) for name in shapes}
    blocks = _blocks(places.values())
    groups: dict[str, list[str]] = {}
    for name in sorted(shapes, key=layer_key):
        groups.setdefault(_group(name, places[name], granularity), []).append(name)
    return tuple(
        _layer(group, groups[group], places, blocks, shapes, granularity) for group in sorted(groups, key=layer_key)
    )


@lru_cache(maxsize=2**16)
def layer_key(name: str) -> tuple[Any, ...]:
    """Sort key that puts the names of layers into the order in which the forward pass meets them.

    ``name``: the name of a layer at any granularity, or of a group. The groups ``(all)``, ``(stragglers)``,
    ``(others)`` and ``(best)`` come first; then image tower, text tower, CoCa's text decoder, head, scale. Inside a
    tower, layers are ordered by first use: a layer's position is where the first of its tensors enters the computation,
    and a residual branch's is where it is computed. Names in no table follow the known ones, sorted by name, with
    numbers sorted as numbers. Different names have different keys; no name raises.

    Names alone do not always determine the order. Where two architectures use the same names in different orders, the
    more common order counts: ``norm1`` and ``norm2`` before ``attn`` and ``mlp`` (EVA02-E normalises behind them),
    ``cls_token`` before ``pos_embed`` (MobileCLIP-B and MobileCLIP2-B join the class token last).

    >>> sorted(["head", "visual.proj", "visual.transformer.resblocks.10.mlp", "visual.conv1", "(all)"], key=layer_key)
    ['(all)', 'visual.conv1', 'visual.transformer.resblocks.10.mlp', 'visual.proj', 'head']
    """
    if name.startswith("("):
        return -1, ((_GROUPS.index(name) if name in _GROUPS else len(_GROUPS), 0, 0, ""),), name
    tokens = name.split(".")
    turn = _TURNS.get(tokens[0])
    if turn is None:
        turn = _TURNS["text"]
    else:
        del tokens[0]
    end = _block_end(tokens) or len(tokens)
    return turn, (*_token_keys(tokens[:end], _TOWER), *_token_keys(tokens[end:], _BLOCK)), name


def _token_keys(tokens: Sequence[str], table: Mapping[str, int]) -> Iterator[tuple[int, int, int, str]]:
    """``(rank, number, whether it is cross attention, name without number)`` of every token; the first is in ``table``.

    A container gets the number of the block that follows it, so that containers whose blocks alternate are merged: in
    CoCa's decoder, each cross attention follows the self attention of the same number.
    """
    for token, following in pairwise([*tokens, ""]):
        wraps = _wraps_blocks(token, table)
        bare = token.rstrip("0123456789")
        digits = token[len(bare) :] or (following if wraps and _NUMBER.match(following) else "")
        yield _rank(token, table), int(digits[:18] or -1), int(token == "cross_attn"), bare
        if not (wraps or _NUMBER.match(token)):
            table = next(inside for pattern, inside in _WITHIN if re.match(pattern, token))


def _wraps_blocks(token: str, table: Mapping[str, int]) -> bool:
    """Whether ``token`` is a container of blocks, a number in one, or a wrapper."""
    return "blocks" in table and bool(token in _WRAPPERS or _NUMBER.match(token) or _CONTAINER.match(token))


def _rank(token: str, table: Mapping[str, int]) -> int:
    """The rank of ``token`` in ``table``; a token that is not in it has the rank of ``blocks`` or of ``unknown``."""
    return table.get(token, table["blocks" if _wraps_blocks(token, table) else "unknown"])


def module_layers(shapes: Mapping[str, Sequence[int]], granularity: str = "module") -> tuple[Layer, ...]:
    """Group the tensors of any module into layers that have the names of its submodules, in the module's own order.

    ``shapes``: name -> shape, in the module's order. Granularity tensor, or module (whatever holds tensors itself), or
    block (an item of a list of blocks; what lies outside of the lists, by module). Nothing is known of towers, depths
    and kinds there: they are those of ``NO_PLACE``. Raises ConfigError when ``granularity`` is none of the three.

    >>> shapes = {"embed.weight": (9, 4), "layers.0.fc.weight": (4, 4), "layers.0.norm.weight": (4,)}
    >>> [layer.name for layer in module_layers(shapes)], [layer.name for layer in module_layers(shapes, "block")]
    (['embed', 'layers.0.fc', 'layers.0.norm'], ['embed', 'layers.0'])
    """
    _check_granularity(granularity)
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(_own_group(name, granularity), []).append(name)
    return tuple(
        Layer(group, tuple(names), *NO_PLACE, sum(math.prod(shapes[n]) for n in names))
        for group, names in groups.items()
    )


def _own_group(name: str, granularity: str) -> str:
    if granularity == "tensor":
        return name
    tokens = name.split(".")
    end = _block_end(tokens) if granularity == "block" else 0
    return ".".join(tokens[:end] if end else tokens[:-1]) or name  # a tensor of the module itself


def _check_granularity(granularity: str) -> None:
    if granularity not in get_args(Granularity):
        known = get_args(Granularity)
        raise ConfigError(
            f"granularity: '{shown(granularity)}' is none of {', '.join(known)}.{did_you_mean(granularity, known)}"
        )


def place(name: str) -> Place:
    """The position of the tensor ``name``, from its name alone; no name raises.

    >>> where = place("visual.transformer.resblocks.3.ls_1.gamma")
    >>> where.block, where.module
    ('visual.transformer.resblocks.3', 'visual.transformer.resblocks.3.attn')
    """
    tower, key = tower_of(name), layer_key(name)
    if tower in ("head", "scale"):
        return Place(tower, None, "head" if tower == "head" else name, True, key)
    tokens = name.split(".")
    end = _block_end(tokens)
    if end:
        block = ".".join(tokens[:end])
        return Place(tower, block, ".".join([block, *_module_in(tokens[end - 1], tokens[end:])]), False, key)
    head = next((i for i, t in enumerate(tokens) if t not in _WRAPPERS), len(tokens) - 1)
    module = ".".join(tokens[: head + 1])
    if tokens[head] in _EMBED:
        module = ".".join([*(tokens[:head] or ["text"]), "embed"])
    return Place(tower, None, module, _rank(tokens[head], _TOWER) < _TOWER["blocks"], key)


def _module_in(last: str, inner: Sequence[str]) -> Sequence[str]:
    """The tokens of a module inside its block, from the ``last`` token of the block's name and the ``inner`` ones after
    it."""
    if not inner or last in _BRIDGES:
        return ()
    if len(inner) > 2 and inner[0] == "layer" and _NUMBER.match(inner[1]):
        return inner[:3]  # a block of T5 has sublayers: block.0.layer.1.layer_norm
    return (_FOLDED.get(inner[0], inner[0]),)


def _block_end(tokens: Sequence[str]) -> int:
    """The number of leading tokens that name the block, up to the last index of its container; 0 without a block."""
    for i in range(len(tokens) - 1):
        if _CONTAINER.match(tokens[i]) and _NUMBER.match(tokens[i + 1]):
            end = i + 2
            if end + 1 < len(tokens) and tokens[end] in ("blocks", "layers") and _NUMBER.match(tokens[end + 1]):
                return end + 2  # stages.1.blocks.0
            if end < len(tokens) and _NUMBER.match(tokens[end]):
                return end + 1  # blocks.0.1
            if end < len(tokens) and tokens[i] in ("stages", "layers") and tokens[end] in _BRIDGES:
                return end + 1  # stages.1.downsample: what leads from one stage into the next
            return end
    return 0


def _blocks(places: Iterable[Place]) -> dict[Tower, list[tuple[Any, ...]]]:
    """The keys of every tower's blocks, in order."""
    found = {(p.tower, p.block) for p in places if p.block is not None}
    return {tower: sorted(layer_key(b) for t, b in found if t == tower) for tower in TOWERS}


def _group(name: str, where: Place, granularity: str) -> str:
    if granularity == "tensor":
        return name
    if granularity == "module" or where.tower in ("head", "scale"):
        return where.module
    if where.block is not None:
        return where.block
    tower = "visual" if where.tower == "image" else "text_decoder" if name.startswith("text_decoder.") else "text"
    return f"{tower}.{'stem' if where.stem else 'post'}"


def _layer(
    group: str,
    names: Sequence[str],
    places: Mapping[str, Place],
    blocks: Mapping[Tower, Sequence[tuple[Any, ...]]],
    shapes: Mapping[str, Sequence[int]],
    granularity: str,
) -> Layer:
    where = places[names[0]]
    depth = bisect_left(blocks[where.tower], layer_key(where.block or group)) + (not where.stem)
    kind = _kind(where, [shapes[n] for n in names], granularity)
    return Layer(group, tuple(names), where.tower, depth, kind, sum(math.prod(shapes[n]) for n in names))


def _kind(where: Place, shapes: Iterable[Sequence[int]], granularity: str) -> Kind:
    if where.tower in ("head", "scale"):
        return "head" if where.tower == "head" else "scale"
    if granularity == "block":
        return "block" if where.block is not None else "embedding" if where.stem else "projection"
    module = where.module.rsplit(".", 1)[-1]
    named = next((kind for pattern, kind in _KINDS if re.match(pattern, module)), None)
    if named is not None:
        return named
    wide = [s for s in shapes if len(s) > 1]
    return "conv" if wide and all(len(s) == 4 for s in wide) else "other"
