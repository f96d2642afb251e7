"""Writing: open_clip's names translated into those of other libraries."""

from __future__ import annotations

import torch

from sharpscope.errors import CheckpointError, listing, shown
from sharpscope.layers import is_derived, tower_of
from sharpscope.weights.checkpoint import Checkpoint
from sharpscope.weights.schemes import huggingface_names

__all__ = ["in_huggingface_names"]


def in_huggingface_names(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors with the names and layout of transformers' ``CLIPModel``, q, k and v apart; a head keeps its name.

    Raises CheckpointError for architectures that ``CLIPModel`` is not (ResNets, timm trunks, other text towers).
    """
    body = [n for n in checkpoint.tensors if tower_of(n) != "head" and not is_derived(n)]
    places = huggingface_names(body)
    unknown = [n for n in body if n not in places]
    if unknown:
        raise CheckpointError(
            f"{shown(checkpoint.source, 200)}: {listing(unknown, 3)} has no place in Hugging Face's CLIP, which "
            "takes only ViTs with CLIP's own text tower."
        )
    made = {n: t for n, t in checkpoint.tensors.items() if tower_of(n) == "head"}
    for name, sources in places.items():
        whole = checkpoint.tensors[name]
        pieces = whole.chunk(len(sources)) if len(sources) > 1 else (whole,)
        for place, piece in zip(sources, pieces, strict=True):
            made[place.name] = (piece.T if place.how == "T" else piece).contiguous()
    return made
