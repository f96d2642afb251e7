"""One table per naming scheme that differs from open_clip's by more than a prefix.

A :class:`Recipe` says how one open_clip tensor is made from those of the file: which, turned how, joined in which
order. Orientation: open_clip keeps linear weights as [out, in], convolutions as OIHW, ``visual.proj`` and
``text_projection`` as [in, out], and q, k, v as one ``in_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT

__all__ = ["SCHEMES", "Place", "Recipe", "Scheme", "gather", "huggingface_names", "open_clip_place", "scheme_of"]

_QKV: Final = {"q": 0, "k": 1, "v": 2}


@dataclass(frozen=True)
class Place:
    """Where a tensor of the file goes: open_clip's ``name``, as ``part`` of ``parts``, turned by ``how``."""

    name: str
    how: str = ""
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Recipe:
    """One open_clip tensor from ``sources`` [(name in the file or "" where it is absent, how)], joined along axis 0."""

    sources: tuple[tuple[str, str], ...]

    def make(self, tensor: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor; parts that the file lacks (deltas of an adapter) are zero."""
        if len(self.sources) == 1:
            return _turned(tensor(self.sources[0][0]), self.sources[0][1])
        there = {i: _turned(tensor(n), how) for i, (n, how) in enumerate(self.sources) if n}
        like = next(iter(there.values()))
        return torch.cat([there.get(i, torch.zeros_like(like)) for i in range(len(self.sources))])


def _turned(tensor: torch.Tensor, how: str) -> torch.Tensor:
    if how == "T" and tensor.ndim == 2:
        return tensor.T.contiguous()
    if how == "HWIO" and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1).contiguous()
    return tensor


# ---------------------------------------------------------------------- open_clip, with q, k and v apart
_SPLIT: Final = re.compile(r"(.*resblocks\.\d+\.attn)\.(?:([qkv])_)?proj\.(weight|bias)")


def open_clip_place(name: str) -> Place:
    """Place of a tensor in open_clip's own names; CLIP-LoRA and others split the attention's projections."""
    found = _SPLIT.fullmatch(name)
    if found is None:
        return Place(name)
    if found[2] is None:
        return Place(f"{found[1]}.out_proj.{found[3]}")
    return Place(f"{found[1]}.in_proj_{found[3]}", part=_QKV[found[2]], parts=3)


# ---------------------------------------------------------------------- Hugging Face
_HF_FIXED: Final[dict[str, str]] = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.pre_layernorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
    "logit_scale": "logit_scale",
}
_HF_BLOCK: Final = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$")
_HF_MODULES: Final = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
_TURNED: Final = ("visual_projection.weight", "text_projection.weight")


def _huggingface(name: str) -> Place | None:
    """Place of a tensor of transformers' ``CLIPModel``; None for what open_clip has no place for."""
    how = "T" if name in _TURNED else ""
    for given, ours in _HF_FIXED.items():
        if name == given:
            return Place(ours, how)
        if name in (f"{given}.weight", f"{given}.bias"):
            return Place(ours + name.removeprefix(given))
    found = _HF_BLOCK.fullmatch(name)
    if found is None:
        return None
    tower, number, module, kind = found.groups()
    block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}"
    if module in _HF_MODULES:
        return Place(f"{block}.{_HF_MODULES[module]}.{kind}")
    projection = re.fullmatch(r"self_attn\.([qkv])_proj", module)
    return Place(f"{block}.attn.in_proj_{kind}", part=_QKV[projection[1]], parts=3) if projection else None


def huggingface_names(names: Iterable[str]) -> dict[str, tuple[Place, ...]]:
    """open_clip name -> its places in transformers' ``CLIPModel`` (q, k, v for ``in_proj``); for writing."""
    blocks = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
    fixed = {ours: given for given, ours in _HF_FIXED.items() if given != "vision_model.pre_layernorm"}
    modules = {ours: given for given, ours in _HF_MODULES.items()}
    made: dict[str, tuple[Place, ...]] = {}
    for name in names:
        stem, _, kind = name.rpartition(".")
        if name in fixed:
            made[name] = (Place(fixed[name], "T" if fixed[name] in _TURNED else ""),)
        elif stem in fixed:
            made[name] = (Place(f"{fixed[stem]}.{kind}"),)
        elif found := blocks.fullmatch(name):
            layer = f"{'vision' if found[1] else 'text'}_model.encoder.layers.{found[2]}"
            inner, _, kind = found[3].rpartition(".")
            if inner in modules:
                made[name] = (Place(f"{layer}.{modules[inner]}.{kind}"),)
            elif found[3] in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = found[3].rpartition("_")[2]
                made[name] = tuple(
                    Place(f"{layer}.self_attn.{p}_proj.{kind}", part=i, parts=3) for p, i in _QKV.items()
                )
    return made


# ---------------------------------------------------------------------- flax
def _flax(name: str) -> Place | None:
    """Place of a tensor of the FlaxCLIP tree, as Lipsum-FT keeps it beside ``cls`` [D, C]."""
    name = re.sub(r"^(params\.)?(ext\.|raw\.)?(params\.)?", "", name)
    if name in ("cls", "cls.kernel"):
        return Place(HEAD_WEIGHT, "T")
    if name in ("cls_bias", "cls.bias"):
        return Place(HEAD_BIAS)
    if name in ("visual_projection", "visual_projection.kernel"):
        return Place("visual.proj")  # [in, out] already
    if name in ("text_projection", "text_projection.kernel"):
        return Place("text_projection")
    stem, _, leaf = name.rpartition(".")
    place = _huggingface(f"{stem}.weight" if leaf in ("kernel", "scale", "embedding") else name)
    if place is None or leaf != "kernel":
        return place
    return Place(place.name, "HWIO" if place.name == "visual.conv1.weight" else "T", place.part, place.parts)


# ---------------------------------------------------------------------- Dassl
def _dassl(name: str) -> Place | None:
    """Place of a tensor of CoOp's ``CustomCLIP``: the two encoders beside learnt prompts."""
    if name.startswith("image_encoder."):
        return Place("visual." + name.removeprefix("image_encoder."))
    if name.startswith("text_encoder."):
        return Place(name.removeprefix("text_encoder."))
    return Place(name) if name in ("logit_scale", "token_embedding.weight") else None


_PROMPTS: Final = r"(ctx|ctx_\w+|token_prefix|token_suffix|tokenized_prompts|meta_net\..*)"


@dataclass(frozen=True)
class Scheme:
    """A naming scheme: its name, the place of a tensor (None: open_clip has none), names that may be left out, and
    whether files are partial."""

    name: str
    place: Callable[[str], Place | None]
    left_out: str = ""
    partial: bool = False

    def may_lack(self, name: str) -> bool:
        """Whether ``name`` is known not to belong to the CLIP (optimizer, learnt prompts)."""
        return bool(self.left_out) and re.match(self.left_out, name) is not None


SCHEMES: Final[dict[str, Scheme]] = {
    "huggingface": Scheme("Hugging Face", _huggingface),
    "flax": Scheme("Hugging Face Flax", _flax, r"(opt_state|step|ctx|batch_stats)\b"),
    "dassl": Scheme("Dassl", _dassl, rf"prompt_learner\.|{_PROMPTS}$", partial=True),
}


def scheme_of(names: Sequence[str]) -> Scheme | None:
    """The scheme that ``names`` (prefixes stripped) are written in; None for open_clip's own."""
    if any(re.match(r"(params\.)?(ext|raw)\.", n) or n.endswith(".kernel") for n in names):
        return SCHEMES["flax"]
    if any(n.startswith(("vision_model.", "text_model.")) for n in names):
        return SCHEMES["huggingface"]
    encoders = ("image_encoder.", "text_encoder.", "prompt_learner.")
    if any(n.startswith(encoders) or re.fullmatch(_PROMPTS, n) for n in names):
        return SCHEMES["dassl"]
    return None


def gather(places: Mapping[str, Place]) -> dict[str, Recipe]:
    """Recipes of all open_clip tensors that ``{name in the file: place}`` makes, in the file's order."""
    made: dict[str, list[tuple[str, str]]] = {}
    for old, place in places.items():
        sources = made.setdefault(place.name, [("", "")] * place.parts)
        if len(sources) != place.parts or sources[place.part][0]:
            raise KeyError(place.name)
        sources[place.part] = (old, place.how)
    return {new: Recipe(tuple(sources)) for new, sources in made.items()}
