"""Classification heads: what is known of one, and how it is read from a file of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from sharpscope.errors import CheckpointError, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT
from sharpscope.weights.files.containers import Content
from sharpscope.weights.files.modules import ModuleFacts
from sharpscope.weights.files.tensors import check_sizes, checked
from sharpscope.weights.naming import unwrap

__all__ = ["CLASSNAMES", "head_facts", "head_metadata", "names_beside", "read_head"]

BAKED_NORM: Final = 2.0
"""Class vectors whose median length is at least this carry exp(logit_scale) inside; without it the length is 1, with it
14 to 100."""

CLASSNAMES: Final = "sharpscope.classnames"
_SCALE_BAKED: Final = "sharpscope.head.scale_baked"
_NORMALIZE: Final = "sharpscope.head.normalize"

Tensors = dict[str, torch.Tensor]


def head_metadata(
    *, scale_baked: bool, normalize: bool = True, classnames: Sequence[str] | None = None
) -> dict[str, str]:
    """A checkpoint's metadata about its head, as ``read_checkpoint`` reads it back into ``facts["head"]``.

    ``scale_baked``: whether the head's weights hold exp(logit_scale); ``normalize``: whether it reads features of unit
    length; ``classnames``: one name per class, in the order of the head's rows.
    """
    told = {_SCALE_BAKED: json.dumps(scale_baked), _NORMALIZE: json.dumps(normalize)}
    return told if classnames is None else told | {CLASSNAMES: json.dumps(list(classnames))}


def read_head(content: Content, source: str) -> tuple[Tensors, dict[str, Any]]:
    """``(head.weight and head.bias, what is known of them)`` of a file that holds a classification head alone."""
    found = unwrap(content.value, source)
    check_sizes(found.state, source)
    prefixes = ("module.", "classification_head.", "head.")
    tensors: Tensors = {}
    for old, value in found.state.items():
        new = old
        for prefix in prefixes:
            new = new.removeprefix(prefix)
        if new not in ("weight", "bias"):
            raise CheckpointError(f"{source}: '{shown(old)}' is not part of a linear head (weight, bias).")
        tensors[f"head.{new}"] = checked(old, value, source)
    renamed = {f"classification_head.{n}": n for n in tensors} if found.module else {}
    facts = head_facts(tensors, renamed, content.metadata, found.module, source)
    if facts is None:
        raise CheckpointError(f"{source}: holds no head (weight, bias).")
    return tensors, facts


def head_facts(
    tensors: Tensors,
    renamed: Mapping[str, str],
    metadata: Mapping[str, str],
    module: ModuleFacts | None,
    source: str,
) -> dict[str, Any] | None:
    """What is known about the head: from the metadata, else the names, else the length of the class vectors."""
    weight, bias = tensors.get(HEAD_WEIGHT), tensors.get(HEAD_BIAS)
    if weight is None:
        if bias is not None:
            raise CheckpointError(f"{source}: holds {HEAD_BIAS} but no {HEAD_WEIGHT}.")
        return None
    if weight.ndim != 2 or len(weight) == 0 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = f"{list(weight.shape)}" + ("" if bias is None else f" and {list(bias.shape)}")
        raise CheckpointError(f"{source}: its head has shape {shapes}; expected [classes, embedding] and [classes].")
    classnames = _from_json(metadata, CLASSNAMES, list, source)
    if classnames is not None and (len(classnames) != len(weight) or not all(isinstance(c, str) for c in classnames)):
        raise CheckpointError(f"{source}: metadata {CLASSNAMES} does not give {len(weight)} names, one per class.")
    baked = _from_json(metadata, _SCALE_BAKED, bool, source)
    normalize = _from_json(metadata, _NORMALIZE, bool, source)
    wise_ft = any("classification_head." in old for old in renamed)
    lipsum = any(old.partition(".")[0] in ("cls", "params") for old in renamed)
    named = "names" if wise_ft or lipsum else "length of the class vectors"
    told_by = "metadata" if baked is not None else named
    if normalize is None and module is not None:
        said = [h["normalize"] for h in module.heads.values() if isinstance(h.get("normalize"), bool)]
        normalize = said[0] if said else None
    if baked is None:
        baked = False if lipsum else wise_ft or bool(weight.double().norm(dim=1).median() >= BAKED_NORM)
    return {
        "scale_baked": baked,
        "normalize": True if normalize is None else normalize,
        "classnames": classnames,
        "told_by": told_by,
    }


def names_beside(beside: Mapping[Any, Any], classes: int) -> list[str] | None:
    """Class names kept beside the state dict, if there is one text per class."""
    for key in ("classnames", "class_names", "classes"):
        names = beside.get(key)
        if isinstance(names, (list, tuple)) and len(names) == classes and all(isinstance(n, str) for n in names):
            return list(names)
    return None


def _from_json(metadata: Mapping[str, str], key: str, kind: type, source: str) -> Any:
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise CheckpointError(f"{source}: metadata {key} is not a JSON {kind.__name__}: {shown(metadata[key])}.")
    return value
