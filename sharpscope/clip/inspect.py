"""What a checkpoint file contains, which models it fits, and how two checkpoints differ layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import pandas as pd
from torch import Tensor

from sharpscope.atomic import write_atomic
from sharpscope.clip.changes import layer_changes
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import resolve_checkpoint
from sharpscope.config.models import MINI
from sharpscope.errors import CheckpointError, ConfigError, PairMismatch, UnsafeCheckpoint, listing, shown
from sharpscope.layers import HEAD_WEIGHT, Tower
from sharpscope.tables.files import csv_bytes
from sharpscope.tables.formats import number, percent
from sharpscope.vocabulary import Granularity
from sharpscope.weights import Checkpoint, Pair, check_pair, describe, read_checkpoint
from sharpscope.weights.checkpoint import read_head_file
from sharpscope.weights.compare import check_model
from sharpscope.weights.pair import alike_heads
from sharpscope.weights.producers import trains_openai_weights
from sharpscope.weights.prompts import PROMPTS, read_prompts

__all__ = ["fitting_models", "inspect"]


# ---------------------------------------------------------------------- what is in a file
def inspect(
    a: str | FilePath,
    b: str | FilePath | None = None,
    model: str | None = None,
    *,
    weights: str | None = None,
    granularity: Granularity = "module",
    csv: str | FilePath | None = None,
) -> str:
    """What one checkpoint contains, or how two checkpoints differ layer by layer, as text to print.

    A partial file (Dassl, adapters) as ``a`` is shown as it is; as ``b`` it is laid over ``a``. Files that hold only a
    head or only learnt prompts (CoOp's) are shown too.

    >>> print(inspect("mini:zeroshot", model="mini").splitlines()[3].strip())
    safety        plain tensors

    Args:
        a, b: files, folders or hub ids, as for ``read_checkpoint``, or ``mini:NAME``.
        model: open_clip name or config JSON against which the files are checked; None: fitting models are searched.
        weights: key of the set of weights to read from a file that holds several, see ``read_checkpoint``.
        granularity: tensor, module or block, the layers in which ``a`` and ``b`` are compared; tensor shows every bias
            and every norm by itself (CLIPFit's analysis, Li et al. 2024, arXiv 2409.16718).
        csv: file for the comparison of ``a`` and ``b`` as the table ``changes``; None: it is not written.

    Raises:
        CheckpointError, CorruptCheckpoint, UnsafeCheckpoint: as for ``read_checkpoint``.
        PairMismatch: weights that do not fit ``model``, or each other.
        ConfigError: an unknown model, or a file that holds only a head or only prompts where a comparison is needed.
    """
    try:
        first = read_checkpoint(resolve_checkpoint(a), partial=True, weights=weights)
    except UnsafeCheckpoint:
        raise
    except CheckpointError as error:
        text = _described_alone(a, error)
        if b is not None:
            raise ConfigError(
                f"{shown(a)}: holds only a classification head or only prompts, which cannot be compared."
            ) from None
        return text
    parts = [_described(first, model)]
    if b is not None:
        try:
            second = read_checkpoint(resolve_checkpoint(b), base=first, weights=weights)
        except UnsafeCheckpoint:
            raise
        except CheckpointError as error:
            alone = _described_alone(b, error)
            if csv is not None:
                raise ConfigError(f"{shown(b)}: holds only a head or only prompts; nothing to compare.") from None
            return "\n\n".join([*parts, alone])
        pair = check_pair(*alike_heads(first, second))
        changes = layer_changes(pair, granularity)
        parts += [_described(second, model), _compared(pair, changes)]
        if csv is not None:
            write_atomic(FilePath(csv), csv_bytes(changes, "changes"))
    return "\n\n".join(parts)


def _described_alone(source: str | FilePath, error: CheckpointError) -> str:
    """What a file is that holds a head or prompts alone; raises ``error`` for any other."""
    try:
        head, facts = read_head_file(resolve_checkpoint(source))
    except CheckpointError:
        if not (prompts := read_prompts(resolve_checkpoint(source), alone=True)):
            raise error from None
        return _described_prompts(str(source), prompts)
    return _described_head(str(source), head, facts)


def _described_prompts(source: str, prompts: Mapping[str, Tensor]) -> str:
    shape = prompts[f"{PROMPTS}ctx"].shape
    shared = "the same for all classes" if len(shape) == 2 else f"others for each of {shape[0]} classes"
    attention = " with an attention layer over the class names (ContCoOp)" if len(prompts) > 1 else ""
    return "\n".join([
        shown(source, 300),
        "  written by    Dassl (CoOp, KgCoOp, ContCoOp) or sharpscope finetune",
        "  holds         only learnt prompts, which need the zero-shot weights (run --zeroshot BASE --finetuned FILE)",
        f"  prompts       {shape[-2]} context vectors x {shape[-1]}, {shared}{attention}",
        "  class name    no file says where it stands; assumed to follow the context, CoOp's default (run "
        "--class-position settles it)",
    ])  # fmt: skip


def _described_head(source: str, head: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    return "\n".join([
        shown(source, 300),
        f"  format        {facts['container']}, read without running any of its code",
        "  written by    WiSE-FT or task_vectors: a file that holds only a classification head",
        f"  safety        {_safety_line(facts)}",
        f"  sha256        {facts['file_sha256']}",
        *([f"  classes       {listing(facts['classes'], 30)}"] if facts["classes"] else []),
        "  holds         head",
        f"  head          {_head_line(facts, head)}",
    ])  # fmt: skip


def _described(checkpoint: Checkpoint, model: str | None) -> str:
    facts, tensors = checkpoint.facts, checkpoint.tensors
    head = facts.get("head")
    lines = [
        shown(checkpoint.source, 300),
        f"  format        {facts['container']}, read without running any of its code",
        f"  written by    {shown(facts['producer'])}",
        f"  safety        {_safety_line(facts)}",
        f"  sha256        {checkpoint.sha256}",
        f"  checksum      {_CHECKSUMS[facts['container'] in ('torch zip', 'TorchScript archive')]}",
        f"  names         {shown(facts['naming'])}"
        + (f", prefix '{shown(facts['prefix'])}'" if facts.get("prefix") else ""),
        f"  tensors       {facts['num_tensors']}, {facts['num_params']:,} parameters, "
        + ", ".join(f"{count} {dtype}" for dtype, count in facts["dtypes"].items()),
        f"  holds         {', '.join(facts['towers']) or 'no complete part of a CLIP'}",
    ]
    if facts.get("others"):
        read = f"'{facts['wrapper']}'" if facts["wrapper"] else "the rest"
        lines.append(
            f"  also holds    {listing(facts['others'], 5)}: another set of these weights (often a running average), "
            f"not read; {read} was read (--weights KEY reads another set)"
        )
    for title, names in (("classes", facts["classes"]), ("calls", facts["calls"]), ("not used", facts["dropped"])):
        if names:
            lines.append(f"  {title:<12}  {listing(names, 30)}")
    if facts["adapter"]:
        lines.append(f"  adapter       {facts['adapter']} weight changes, {_INSIDE[facts.get('adapter_inside')]}")
    if facts["partial"]:
        lines.append("  partial       only the tuned tensors; they are laid over zero-shot weights (inspect BASE FILE)")
        return "\n".join(lines)
    lines += [
        f"  looks like    {describe(tensors)}",
        f"  activation    {_activation(facts, tensors)}",
        "  head          " + (_head_line(head, tensors) if head else "none stored: built from the text tower"),
    ]
    if "logit_bias" in tensors:
        lines.append(
            "  loss          logit_bias shows that it was trained with SigLIP's sigmoid loss; sharpscope takes the "
            "softmax over the classes, in which the bias cancels"
        )
    if model is not None:
        clip = ClipModel.load(model)
        check_model(tensors, clip.shapes, clip.name, source=shown(checkpoint.source, 300), require=_IMAGE)
        lines.append(f"  fits          {shown(clip.name)}, {_activation_of(clip)}, every tensor of its image tower")
    elif fitting := fitting_models(tensors, facts["quick_gelu"]):
        lines.append(f"  fits          {listing(fitting, 4)}: every tensor of the image tower")
    else:
        lines.append("  fits          no known model was found; --model NAME or CONFIG.json checks one")
    return "\n".join(lines)


_IMAGE: tuple[Tower, ...] = ("image",)
_INSIDE = {
    False: "merged into the weights",
    True: "already contained in the weights",
    None: "not merged, because the file does not say whether the weights already contain them (convert "
    "--adapter-merged, or inspect BASE FILE)",
}
_CHECKSUMS = {
    True: "every entry has its own, and those of the entries that were read match",
    False: "the format has none; compare the sha256 with the one that the source publishes",
}


def _activation(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """GELU or QuickGELU, and the evidence for it, because names and shapes are the same with both."""
    if (told := facts["quick_gelu"]) is not None:
        return f"{'QuickGELU' if told else 'GELU'} (stated in the file)"
    if any(n.startswith("visual.trunk.") for n in tensors):
        return "the timm trunk has its own, whatever the model's name says; that of the text tower is not stated"
    if trains_openai_weights(facts["producer"]):
        return (
            "QuickGELU is a guess: this system trains OpenAI's weights unless told otherwise (--model NAME-quickgelu)"
        )
    return (
        "unknown: not stated in the file; OpenAI's weights and their descendants need QuickGELU "
        "(--model NAME-quickgelu)"
    )


def _activation_of(clip: ClipModel) -> str:
    return "QuickGELU" if clip.config.get("quick_gelu") else "GELU"


def _safety_line(facts: Mapping[str, Any]) -> str:
    if facts["safe"]:
        return "plain tensors"
    classes, calls = len(facts["classes"]), len(facts["calls"])
    return f"no code was run; other programs would import {classes} classes and call {calls} functions to load it"


def fitting_models(tensors: Mapping[str, Tensor], quick_gelu: bool | None = None) -> list[str]:
    """Names of open_clip's models, or ``mini``, whose image tower consists of exactly these tensors, of the same sizes.

    ``quick_gelu``: whether the activation is QuickGELU, and only such models are kept; None: models with either are
    kept.
    """
    fitting = []
    for name in ClipModel.named_like({n: tuple(t.shape) for n, t in tensors.items()}) or (MINI,):
        try:
            clip = ClipModel.load(name)
            check_model(tensors, clip.shapes, clip.name, require=_IMAGE)
        except (ConfigError, PairMismatch):
            continue
        if quick_gelu is None or bool(clip.config.get("quick_gelu")) == quick_gelu:
            fitting.append(name)
    return fitting


def _head_line(head: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    classes, width = tensors[HEAD_WEIGHT].shape
    baked = "logit scale baked in" if head["scale_baked"] else "logit scale not baked in"
    said = f"{classes} classes x {width}, {baked}, features {'' if head['normalize'] else 'not '}normalised"
    if not (assumed := head.get("assumed")):
        return said
    by = "the names of the head" if head["told_by"] == "names" else f"the {head['told_by']}"
    words = {"scale_baked": f"the scale from {by}", "normalize": "the features from what most heads of CLIP read"}
    flags = {"scale_baked": "--[no-]head-scale-baked", "normalize": "--[no-]head-normalize"}
    return (
        f"{said} (a guess, because the file does not say: {', '.join(words[a] for a in assumed)}; "
        f"convert {' '.join(flags[a] for a in assumed)} settles it)"
    )


def _compared(pair: Pair, changes: pd.DataFrame) -> str:
    rows = list(zip(*(changes[c] for c in ("layer", "tower", "num_params", "distance", "relative")), strict=True))
    width = max(len(shown(r[0], 60)) for r in rows)
    rounded = [
        f"{count} tensors of the {tower} tower are equal within the rounding of half precision and do not move"
        for tower, count in pair.facts["rounded"].items()
    ]
    lines = [repr(pair), *rounded, f"{'layer':<{width}}  tower  {'parameters':>11}  {'distance':>9}  relative"]
    for name, tower, count, distance, relative in rows:
        moved = f"{number(distance):>9}  {percent(relative)}" if distance else "        0  does not move"
        lines.append(f"{shown(name, 60):<{width}}  {tower:<5}  {count:>11,}  {moved}")
    return "\n".join(lines)
