"""Checks that weights fit a model or each other, and descriptions of weights that do not.

open_clip silently resizes positional embeddings, casts dtypes and accepts NaN, so everything is compared before
open_clip sees it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import torch

from sharpscope.errors import MAX_NAMES, NonFiniteWeights, PairMismatch, listing, shown
from sharpscope.layers import HEAD_WEIGHT, Tower, is_derived, place, tower_of
from sharpscope.weights.files.tensors import tied_names

__all__ = ["check_finite", "check_fit", "check_model", "common_ties", "describe", "differences", "l2_distance"]

_VIT: Final = {
    (384, 12): "S",
    (512, 12): "M",
    (768, 12): "B",
    (1024, 24): "L",
    (1280, 32): "H",
    (1408, 40): "g",
    (1664, 48): "bigG",
}
"""For (width, blocks) the letter in open_clip's ViT-*-PATCH."""
_RESNETS: Final[dict[tuple[int, tuple[int, ...]], str]] = {
    (64, (3, 4, 6, 3)): "RN50",
    (64, (3, 4, 23, 3)): "RN101",
    (80, (4, 6, 10, 6)): "RN50x4",
    (96, (6, 8, 18, 8)): "RN50x16",
    (128, (3, 15, 36, 10)): "RN50x64",
}

Shapes = Mapping[str, Sequence[int]]


def check_finite(theta: Mapping[str, torch.Tensor], source: str) -> None:
    """Raise NonFiniteWeights naming tensor and count; only masks (``attn_mask``) may hold -inf."""
    for name, value in theta.items():
        if not value.is_floating_point() or value.numel() == 0:
            continue
        good = torch.isfinite(value)
        if is_derived(name):
            good |= value == -math.inf
        bad = value.numel() - int(good.sum())
        if bad:
            raise NonFiniteWeights(
                f"{source}: {bad} of {value.numel()} values of '{shown(name)}' are NaN or infinite and cannot be used."
            )


def check_model(
    theta: Mapping[str, torch.Tensor],
    shapes: Shapes,
    name: str,
    *,
    source: str = "the checkpoint",
    require: Collection[Tower] = ("image", "text", "scale"),
) -> None:
    """Raise PairMismatch unless ``theta`` has exactly the tensors of model ``name`` with their shapes.

    ``shapes``: the model's parameters and buffers. ``head.*`` is not part of the model and is ignored; constants that
    the architecture determines (masks, index tables) may be missing or extra; so may tensors of a tower that is not in
    ``require`` (a WiSE-FT file keeps a few leftovers of the text tower), but never with another shape.
    """
    body = {n: _scalar(n, tuple(t.shape)) for n, t in theta.items() if tower_of(n) != "head"}
    wanted = {n: _scalar(n, tuple(s)) for n, s in shapes.items() if tower_of(n) != "head"}
    optional = {n for n in {*body, *wanted} if is_derived(n) or tower_of(n) not in require}
    problem = differences(
        wanted, body, missing="missing", extra="unknown to the model", ours="model", theirs="file", skip=optional
    )
    if problem:
        weights, model = describe(body), describe(wanted)
        looks = f"it looks like {weights}; the model is {model}" if weights != model else f"both look like {model}"
        raise PairMismatch(
            f"{shown(source, 200)} does not fit model '{shown(name)}': {looks}.\n"
            f"Tensors: {problem}.\n"
            "Remedy: another --model; 'sharpscope inspect FILE' names those that fit."
        )


def _scalar(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A logit scale of shape [1] counts as a scalar: open_clip's ``nonscalar_logit_scale`` and sharded training."""
    return () if tower_of(name) == "scale" and shape == (1,) else shape


def differences(
    first: Shapes, second: Shapes, *, missing: str, extra: str, ours: str, theirs: str, skip: Collection[str] = ()
) -> str:
    """How ``second``'s names and shapes differ from ``first``'s, in words, naming at most ten; empty when they agree.

    ``skip``: names that may be absent from either (their shapes have to agree all the same).
    """
    absent = [n for n in first if n not in second and n not in skip]
    added = [n for n in second if n not in first and n not in skip]
    reshaped = [n for n in first if n in second and tuple(first[n]) != tuple(second[n])]
    # the names shown are shared out, so that no kind of difference hides behind another
    share = MAX_NAMES // max(1, sum(map(bool, (absent, added, reshaped))))
    parts = []
    if reshaped:
        sizes = [f"{n} ({ours} {list(first[n])}, {theirs} {list(second[n])})" for n in reshaped]
        parts.append(f"{len(reshaped)} of another shape: {listing(sizes, min(share, 4))}")
    if absent:
        parts.append(f"{len(absent)} {missing}: {listing(absent, share)}")
    if added:
        parts.append(f"{len(added)} {extra}: {listing(added, share)}")
    return "; ".join(parts)


def check_fit(
    theta_0: Mapping[str, torch.Tensor],
    theta_1: Mapping[str, torch.Tensor],
    name_0: str = "theta_0",
    name_1: str = "theta_1",
    *,
    alone: Collection[str] = (),
) -> None:
    """Raise PairMismatch unless both have the same names and shapes; ``alone``: names that one of them may lack."""
    shapes = [{n: tuple(t.shape) for n, t in theta.items()} for theta in (theta_0, theta_1)]
    problem = differences(
        *shapes, missing="only in the first", extra="only in the second", ours="first", theirs="second", skip=alone
    )
    if problem:
        first, second = (describe(s) for s in shapes)
        looks = f"Both look like {first}." if first == second else f"First: {first}. Second: {second}."
        raise PairMismatch(f"{name_0} and {name_1} do not fit each other: {problem}.\n{looks}")


def common_ties(theta_0: Mapping[str, torch.Tensor], theta_1: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """``{other name: first name}`` of the tensors that are tied in both: they count, and move, once."""
    first, second = tied_names(theta_0), tied_names(theta_1)
    return {n: to for n, to in first.items() if second.get(n) == to}


def l2_distance(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], names: Iterable[str]) -> float:
    """``||a - b||_2`` over ``names``, accumulated in float64, whatever the order of the names."""
    return math.sqrt(math.fsum(float((b[n].double() - a[n].double()).square().sum()) for n in names))


def describe(shapes: Shapes | Mapping[str, torch.Tensor]) -> str:
    """The best guess of the architecture, from names and shapes.

    >>> describe({"visual.conv1.weight": (768, 3, 32, 32), "visual.proj": (768, 512)})
    'a ViT (width 768, 0 blocks, patch 32), embedding 512, no text tower'
    """
    sizes = {n: tuple(getattr(s, "shape", s)) for n, s in shapes.items()}
    image, name = _image_tower(sizes)
    parts = [image]
    decoder = any(n.startswith("text_decoder.") for n in sizes)
    name = f"coca_{name}" if name and decoder else name
    embedding = _embedding(sizes)
    if embedding:
        parts.append(f"embedding {embedding}")
    parts.append(_text_tower({n: s for n, s in sizes.items() if not n.startswith("text_decoder.")}))
    if decoder:
        parts.append("a decoder of captions (CoCa), which the logits do not use")
    if HEAD_WEIGHT in sizes:
        parts.append(f"a head of {sizes['head.weight'][0]} classes")
    return (f"{name}: " if name else "") + ", ".join(parts)


def _at(sizes: Shapes, name: str, axis: int) -> int | None:
    shape = sizes.get(name, ())
    return int(shape[axis]) if -len(shape) <= axis < len(shape) else None


def _num_blocks(sizes: Shapes, tower: Tower) -> int:
    places = (place(n) for n in sizes if tower_of(n) == tower)
    return len({p.block for p in places if p.block is not None})


def _image_tower(sizes: Shapes) -> tuple[str, str]:
    """``(description, open_clip's name if it is one of the known)``."""
    blocks = _num_blocks(sizes, "image")
    if "visual.layer1.0.conv1.weight" in sizes:
        width = _at(sizes, "visual.layer1.0.conv1.weight", 0) or 0
        indices = [re.match(r"visual\.layer(\d)\.(\d+)\.", n) for n in sizes]
        stages = tuple(len({m[2] for m in indices if m and m[1] == str(stage)}) for stage in range(1, 5))
        cells = _at(sizes, "visual.attnpool.positional_embedding", 0)
        pixels = f", {32 * math.isqrt(cells - 1)} px" if cells else ""
        return f"a ResNet (width {width}, stages {'-'.join(map(str, stages))}{pixels})", _RESNETS.get(
            (width, stages), ""
        )
    if any(n.startswith("visual.trunk.") for n in sizes):
        patch = _at(sizes, "visual.trunk.patch_embed.proj.weight", -1)
        kind = "ConvNeXt, " if any(".conv_dw." in n and ".stages." in n for n in sizes) else ""
        inside = {m[0] for n in sizes if (m := re.match(r"visual\.trunk\.(?:.+?\.)??blocks\.\d+(?=\.)", n))}
        return f"a timm trunk ({kind}{len(inside) or blocks} blocks{f', patch {patch}' if patch else ''})", ""
    if "visual.conv1.weight" in sizes:
        width, patch = _at(sizes, "visual.conv1.weight", 0) or 0, _at(sizes, "visual.conv1.weight", -1) or 0
        cells = _at(sizes, "visual.positional_embedding", 0)
        side = patch * math.isqrt(cells - 1) if cells else 0
        letter = _VIT.get((width, blocks))
        name = f"ViT-{letter}-{patch}{f'-{side}' if side not in (0, 224) else ''}" if letter else ""
        return f"a ViT (width {width}, {blocks} blocks, patch {patch}{f', {side} px' if side else ''})", name
    if any(tower_of(n) == "image" for n in sizes):
        return f"an unknown image tower ({blocks} blocks)", ""
    return "no image tower", ""


def _embedding(sizes: Shapes) -> int | None:
    for name, axis in (
        ("visual.proj", -1),
        ("visual.attnpool.c_proj.weight", 0),
        ("visual.head.proj.weight", 0),
        ("text_projection", -1),
        ("text.text_projection", -1),
        ("text.text_projection.weight", 0),
    ):
        size = _at(sizes, name, axis)
        if size is not None:
            return size
    return None


def _text_tower(sizes: Shapes) -> str:
    blocks = _num_blocks(sizes, "text")
    if not blocks:
        return "no text tower"
    prefix = "text." if "text.token_embedding.weight" in sizes else ""
    width = _at(sizes, f"{prefix}token_embedding.weight", 1)
    vocabulary = _at(sizes, f"{prefix}token_embedding.weight", 0)
    context = _at(sizes, f"{prefix}positional_embedding", 0)
    known = [f"width {width}" if width else "", f"{blocks} blocks", f"context {context}" if context else ""]
    known.append(f"vocabulary {vocabulary}" if vocabulary else "")
    return f"text tower ({', '.join(k for k in known if k)})"
