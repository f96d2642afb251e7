"""The order of a network's layers, read off their names."""

from __future__ import annotations

import re
from typing import Any

from sharpscope.schema import ALL

__all__ = ["layer_key"]

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
