"""The linear layers of every transformer block of both towers, for the methods that add to them (LoRA, R-Adapter)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, listing, shown
from sharpscope.layers import Tower, tower_of

__all__ = ["PARTS", "Linear", "Part", "linears_of"]

Part = Literal["q", "k", "v", "o", "mlp_in", "mlp_out"]
"""The name of a linear layer of a block, by what it computes; see ``PARTS``."""
PARTS: Final[dict[Part, str]] = {
    "q": "attention's queries",
    "k": "attention's keys",
    "v": "attention's values",
    "o": "attention's output",
    "mlp_in": "a linear layer into the MLP",
    "mlp_out": "a linear layer out of the MLP",
}
"""Every part -> what it is, in words."""

_BLOCK: Final = re.compile(r"(.+\.(?:resblocks|blocks)\.\d+)\.(.+)")
_WEIGHTS: Final[dict[str, tuple[Part, ...]]] = {
    "attn.in_proj_weight": ("q", "k", "v"),
    "attn.qkv.weight": ("q", "k", "v"),
    "attn.q_proj.weight": ("q",),
    "attn.k_proj.weight": ("k",),
    "attn.v_proj.weight": ("v",),
    "attn.out_proj.weight": ("o",),
    "attn.proj.weight": ("o",),
    "mlp.c_fc.weight": ("mlp_in",),
    "mlp.fc1.weight": ("mlp_in",),
    "mlp.fc1_g.weight": ("mlp_in",),
    "mlp.fc1_x.weight": ("mlp_in",),
    "mlp.c_proj.weight": ("mlp_out",),
    "mlp.fc2.weight": ("mlp_out",),
}
"""Weight of a block, as open_clip and timm (EVA's gated MLP too) name it -> the parts that its rows hold, in order."""


@dataclass(frozen=True)
class Linear:
    """One part of one block: the ``index``-th of ``count`` equal groups of rows of the tensor ``weight``."""

    block: str
    part: Part
    weight: str
    index: int
    count: int
    outputs: int
    """Number of rows of the group."""
    inputs: int

    @property
    def layer(self) -> str:
        """The name of the module that owns the weight (for a packed ``in_proj_weight`` that of the attention)."""
        return self.weight.rpartition(".")[0]


def linears_of(
    model: ClipModel, parts: Collection[Part], method: str, towers: Collection[Tower] = ("image", "text")
) -> tuple[Linear, ...]:
    """The layers that compute ``parts`` in every block of ``towers``, in the model's order.

    Raises ConfigError, which names ``method``, for a tower without blocks of attention and MLP (a ResNet's are
    convolutions) or with a block that lacks one of the parts, because the rest alone would be changed without a word.
    """
    found = [linear for linear in _all(model) if linear.part in parts and tower_of(linear.weight) in towers]
    for tower in towers:
        if why := _lacking(model, tower, parts, found):
            rest = [linear for linear in found if tower_of(linear.weight) != tower]
            others = f"only {len(rest)} layers of the {tower_of(rest[0].weight)} tower" if rest else "nothing"
            raise ConfigError(
                f"{method}: the {tower} tower of model '{shown(model.name)}' {why}, so {others} would be adapted.\n"
                "Remedy: a model with two transformers (such as ViT-B-32, or timm's ViT and EVA), or another method."
            )
    return tuple(found)


def _all(model: ClipModel) -> Iterator[Linear]:
    encoders = {*model.image_names, *model.text_names}  # a captioning decoder is in neither
    for name in model.parameter_names:
        match = _BLOCK.fullmatch(name)
        if match is None or name not in encoders or len(model.shapes[name]) != 2:  # norms and convolutions have others
            continue
        rows, columns = model.shapes[name]
        held = _WEIGHTS.get(match[2], ())
        for index, part in enumerate(held):
            yield Linear(match[1], part, name, index, len(held), rows // len(held), columns)


def _lacking(model: ClipModel, tower: Tower, parts: Collection[Part], found: Collection[Linear]) -> str:
    """What is missing in ``tower``, in words; empty where nothing is."""
    names = model.image_names if tower == "image" else model.text_names
    blocks = dict.fromkeys(match[1] for n in names if (match := _BLOCK.fullmatch(n)))
    if not blocks:
        return "has no blocks of attention and MLP (a ResNet's blocks are convolutions)"
    has = {(linear.block, linear.part) for linear in found}
    for block in blocks:
        if missing := [PARTS[part] for part in parts if (block, part) not in has]:
            return f"has a block '{shown(block)}' without {listing(missing)}"
    return ""
