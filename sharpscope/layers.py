"""Which tensors form a layer: names -> ordered layers at granularity tensor | module | block.

Everything is read off the names, so it works for a state dict without its model, whatever its order (safetensors sorts
by size). Two tables hold what is known about open_clip's and timm's towers: what comes before, in and after the blocks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.vocabulary import ALL, Granularity

__all__ = [
    "HEAD_BIAS",
    "HEAD_WEIGHT",
    "TOWERS",
    "Kind",
    "Layer",
    "Place",
    "Tower",
    "is_buffer",
    "is_derived",
    "layer_key",
    "place",
    "split_layers",
    "tower_of",
]

Kind = Literal["embedding", "conv", "norm", "attention", "mlp", "projection", "head", "block", "scale", "other"]


@dataclass(frozen=True)
class Layer:
    """A group of tensors whose sharpness is measured, or whose change is made sparse, together.

    ``depth``: index of its block in its tower, as the forward pass meets them (what precedes the first block 0, the
    first block 1 ...). ``num_params``: number of elements. ``params``: the tensors' names, in forward order.
    """

    name: str
    params: tuple[str, ...]
    tower: Tower
    depth: int
    kind: Kind
    num_params: int


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: tower, block (None outside of the blocks), module, whether it precedes the blocks."""

    tower: Tower
    block: str | None
    module: str
    stem: bool
    key: tuple[Any, ...]


_CONTAINER: Final = re.compile(
    r"^(resblocks|blocks|block|layers|layer|stages|cross_attn|h)$|^(layer|stages_|blocks_)\d+$"
)
_EMBED: Final = (
    "class_embedding",
    "positional_embedding",
    "cls_emb",
    "cls_token",
    "pos_embed",
    "reg_token",
    "dist_token",
    "register_token",
)
"""Bare parameters added to the tokens: together they are the layer ``embed``."""
_BRIDGES: Final = ("downsample", "pos_emb")
"""What stands between two stages."""
_WRAPPERS: Final = ("visual", "text", "text_decoder", "trunk", "transformer", "encoder", "decoder", "backbone", "model")
"""Names that only wrap what follows them."""


def _ranks(*lines: str) -> dict[str, int]:
    return {name: rank for rank, line in enumerate(lines) for name in line.split()}


_OUTSIDE: Final = _ranks(
    "patch_embed",
    "stem conv_stem",
    "conv1",
    "bn1",
    "conv2",
    "bn2",
    "conv3",
    "bn3",
    "embeddings token_embedding",
    " ".join(_EMBED),
    "rope",
    "ln_pre norm_pre",
    " ".join(_BRIDGES),
    "blocks " + " ".join(_WRAPPERS),
    "unknown",
    "conv_head final_conv",
    "norm",
    "pooler attn_pool attnpool",
    "fc_norm",
    "ln_post ln_final",
    "head",
    "proj text_projection",
)
"""Rank of a name outside of the blocks in the forward pass; ``blocks`` stands for the containers of blocks."""

_INSIDE: Final = _ranks(
    "pre_norm norm1 ln_1 layer_norm1 ln_q",
    "ln_k",
    "conv_pw conv1 conv1_1x1",
    "bn1",
    "conv_dw conv2 conv2_kxk",
    "bn2",
    "se",
    "conv_pwl conv3 conv3_1x1",
    "bn3",
    "shortcut downsample",
    "token_mixer",
    "attn attention self_attn",
    "ls_1 ls1 gamma_1",
    "norm2 ln_2 layer_norm2",
    "query latent",
    "q_proj_weight q_proj q",
    "k_proj_weight k_proj",
    "v_proj_weight v_proj",
    "in_proj_weight qkv kv",
    "in_proj_bias",
    "q_norm ln_inner",
    "k_norm",
    "out_proj proj",
    "c_fc fc1",
    "norm ln",
    "mlp",
    "c_proj fc2",
    "ls_2 ls2 gamma_2 gamma layer_scale",
    "unknown",
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "logit_scale",
    "logit_bias",
)
"""Rank of a name inside of a block or module."""

_FOLDED: Final[dict[str, str]] = {
    "ls_1": "attn",
    "ls1": "attn",
    "gamma_1": "attn",
    "ls_2": "mlp",
    "ls2": "mlp",
    "gamma_2": "mlp",
    "gamma": "mlp",
    "layer_scale": "mlp",
}
"""Layer scales belong to the module whose output they scale."""

_KINDS: Final[tuple[tuple[str, Kind], ...]] = (
    (r"embed$|.*embedding|.*embeddings$|pos_emb$", "embedding"),
    (r"ln_|.*norm\d?$|bn\d", "norm"),
    (r"attn|attention|.*attn$|attn_?pool|token_mixer", "attention"),
    (r"mlp|fc\d?$|ffn", "mlp"),
    (r"conv|patch_embed|stem|downsample|shortcut|.*_conv$|se$", "conv"),
    (r"proj|text_projection|head|pooler", "projection"),
)


def split_layers(
    shapes: Mapping[str, Sequence[int]],
    granularity: str = "module",
    *,
    only: Collection[str] | None = None,
) -> tuple[Layer, ...]:
    """Group tensors into layers, ordered as the forward pass meets them: image tower, text tower, head, scale.

    ``shapes``: name -> shape, in any order; the layers partition these names. ``only``: keep just these names (the
    moving ones); depths are still counted in the whole model. Granularity:

    - ``tensor``: every tensor;
    - ``module``: of a transformer block ``ln_1``, ``attn``, ``ln_2``, ``mlp`` (layer scales with what they scale), of a
      convolutional block its convolutions and norms; class and positional embeddings together as ``embed``;
    - ``block``: every residual block; ``stem`` for what precedes them, ``post`` for what follows.

    Where the order inside an unknown kind of block cannot be told from its names, it is alphabetical. Raises
    ConfigError.
    """
    if granularity not in get_args(Granularity):
        known = get_args(Granularity)
        raise ConfigError(
            f"granularity: '{shown(granularity)}' is none of {', '.join(known)}.{did_you_mean(granularity, known)}"
        )
    places = {name: place(name) for name in shapes}
    depths = _depths(places.values())
    groups: dict[str, list[str]] = {}
    for name in sorted(shapes, key=lambda n: (places[n].key, n)):
        if only is None or name in only:
            groups.setdefault(_group(name, places[name], granularity), []).append(name)
    return tuple(_layer(group, names, places, depths, shapes, granularity) for group, names in groups.items())


def place(name: str) -> Place:
    """Where the tensor ``name`` stands, told by its name alone."""
    tower = tower_of(name)
    if tower in ("head", "scale"):
        module = "head" if tower == "head" else name
        return Place(tower, None, module, True, (TOWERS.index(tower), *_sorted(name.split("."), _INSIDE)))
    tokens = name.split(".")
    end = _block_end(tokens)
    order = (TOWERS.index(tower), int(tokens[0] == "text_decoder"))
    if end:
        block, inner = ".".join(tokens[:end]), tokens[end:]
        whole = not inner or tokens[end - 1] in _BRIDGES
        module = block if whole else f"{block}.{_FOLDED.get(inner[0], inner[0])}"
        # layer scales sort right behind what they scale: the module's own rank comes first
        first = _FOLDED.get(inner[0], inner[0]) if inner else ""
        key = _sorted(tokens[:end], _OUTSIDE), _sorted([first, *inner], _INSIDE)
        return Place(tower, block, module, False, (*order, *key))
    head = next((i for i, t in enumerate(tokens) if t not in _WRAPPERS), len(tokens) - 1)
    module = ".".join(tokens[: head + 1])
    if tokens[head] in _EMBED:
        module = ".".join([*(tokens[:head] or ["text"]), "embed"])
    key = _sorted(tokens[: head + 1], _OUTSIDE), _sorted(tokens[head + 1 :], _INSIDE)
    return Place(tower, None, module, _rank(tokens[head], _OUTSIDE) < _OUTSIDE["blocks"], (*order, *key))


def _block_end(tokens: Sequence[str]) -> int:
    """How many leading tokens name the block: through the last index of its container; 0 when there is none."""
    for i in range(len(tokens) - 1):
        if _CONTAINER.match(tokens[i]) and tokens[i + 1].isdigit():
            end = i + 2
            if end + 1 < len(tokens) and tokens[end] in ("blocks", "layers") and tokens[end + 1].isdigit():
                return end + 2  # stages.1.blocks.0
            if end < len(tokens) and tokens[end].isdigit():
                return end + 1  # blocks.0.1
            if end < len(tokens) and tokens[i] in ("stages", "layers") and tokens[end] in _BRIDGES:
                return end + 1  # stages.1.downsample: what leads from one stage into the next
            return end
    return 0


def _sorted(tokens: Iterable[str], ranks: Mapping[str, int]) -> tuple[tuple[int, str, int], ...]:
    """Sort key: known rank first, then alphabetical, numbers as numbers."""
    key = []
    for token in tokens:
        digits = token[len(token.rstrip("0123456789")) :][:18]
        key.append((_rank(token, ranks), token.removesuffix(digits), int(digits or -1)))
    return tuple(key)


def _rank(token: str, ranks: Mapping[str, int]) -> int:
    if token in ranks:
        return ranks[token]
    if ranks is _OUTSIDE and (token.isdigit() or _CONTAINER.match(token)):
        return ranks["blocks"]
    return ranks["unknown"]


def _depths(places: Iterable[Place]) -> dict[tuple[Tower, str | None], int]:
    """``(tower, block) -> depth``; ``(tower, None)`` gives that of what follows the last block."""
    first: dict[tuple[Tower, str], tuple[Any, ...]] = {}
    for p in places:
        if p.block is not None:
            first[p.tower, p.block] = min(first.get((p.tower, p.block), p.key), p.key)
    depths: dict[tuple[Tower, str | None], int] = {}
    for tower in TOWERS:
        blocks = sorted((b for t, b in first if t == tower), key=lambda b: first[tower, b])
        depths |= {(tower, b): i + 1 for i, b in enumerate(blocks)}
        depths[tower, None] = len(blocks) + 1
    return depths


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
    depths: Mapping[tuple[Tower, str | None], int],
    shapes: Mapping[str, Sequence[int]],
    granularity: str,
) -> Layer:
    where = places[names[0]]
    depth = 0 if where.stem else depths[where.tower, where.block]
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


_FIRST = (
    "token_embedding", "stem", "patch_embed", "conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3",
    "avgpool", "class_embedding", "positional_embedding", "embed", "ln_pre", "norm1", "ln_1", "attn", "ls_1", "ls1",
    "norm2", "ln_2", "mlp", "ls_2", "ls2", "downsample", "in_proj_weight", "in_proj_bias", "c_fc", "c_proj",
    "out_proj", "weight", "bias",
)  # fmt: skip
_RANKS = {name: rank for rank, name in enumerate(_FIRST)}
_GROUPS = (ALL, "(stragglers)", "(others)", "(best)")
_LAST = {
    name: rank
    for rank, name in enumerate(["ln_post", "ln_final", "norm", "attnpool", "proj", "text_projection", "post", "head"])
}


def layer_key(name: str) -> tuple[Any, ...]:
    """Sort key: layer names in the order in which a CLIP's forward pass meets them, ``(all)`` and groups first.

    Image tower, text tower, ``logit_scale``, head; inside a tower stem, numbered blocks as numbers, then what follows
    them.

    >>> sorted(["head", "visual.proj", "visual.transformer.resblocks.10.mlp", "visual.conv1"], key=layer_key)
    ['visual.conv1', 'visual.transformer.resblocks.10.mlp', 'visual.proj', 'head']
    """
    parts = name.split(".")
    if name.startswith("("):  # (all), then the groups of the correlations table
        return -1, ((_GROUPS.index(name) if name in _GROUPS else len(_GROUPS), 0, ""),), name
    if parts[0] == "visual":
        tower = 0
    elif parts[0] == "logit_scale":
        tower = 2
    elif parts[0] in ("head", "classification_head"):
        tower = 3
    else:
        tower = 1
    body = [p for p in parts if p not in ("visual", "text", "trunk", "transformer", "resblocks", "blocks")]
    return tower, tuple(_part_key(p) for p in body), name


def _part_key(part: str) -> tuple[int, int, str]:
    """(stem 0 | numbered 1 | unknown 2 | after the blocks 3, rank or number, name)."""
    if part in _LAST:
        return 3, _LAST[part], part
    if part in _RANKS:
        return 0, _RANKS[part], part
    number = re.fullmatch(r"(?:layer|stages?|layers)?(\d{1,9})", part)
    return (1, int(number[1]), part) if number else (2, 0, part)


Tower = Literal["image", "text", "head", "scale"]
TOWERS: Final[tuple[Tower, ...]] = ("image", "text", "head", "scale")
HEAD_WEIGHT: Final = "head.weight"
HEAD_BIAS: Final = "head.bias"

_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
_DERIVED = re.compile(
    r"(^|\.)(attn_mask|position_ids|relative_position_index|relative_coords_table|input_resolution|context_length|vocab_size)$"
)


def tower_of(name: str) -> Tower:
    """The part of the CLIP that tensor ``name`` belongs to (what is neither image, head nor scale is text).

    >>> [tower_of(n) for n in ("visual.proj", "ln_final.weight", "head.bias", "logit_scale")]
    ['image', 'text', 'head', 'scale']
    """
    if name.startswith("visual."):
        return "image"
    if name.startswith("head."):
        return "head"
    return "scale" if name in ("logit_scale", "logit_bias") else "text"


def is_derived(name: str) -> bool:
    """Whether ``name`` is a constant that the architecture determines (masks, index tables): a file may lack it."""
    return _DERIVED.search(name) is not None


def is_buffer(name: str) -> bool:
    """Whether ``name`` is a buffer by its name (normalisation statistics, constants): state, but no parameter."""
    return _STATISTICS.search(name) is not None or is_derived(name)
