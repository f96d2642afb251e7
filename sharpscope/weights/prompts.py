"""The learnt prompts in a checkpoint: no part of a CLIP, so ``read_checkpoint`` leaves them out."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

import torch

from sharpscope.errors import CheckpointError, listing, shown
from sharpscope.weights.files.containers import open_regular, read_container
from sharpscope.weights.files.locations import locate
from sharpscope.weights.files.tensors import checked
from sharpscope.weights.naming import unwrap

__all__ = ["PROMPTS", "read_prompts"]

PROMPTS: Final = "prompt_learner."
"""What the names of learnt prompts begin with."""
_KNOWN: Final = re.compile(r"ctx|token_prefix|token_suffix|tokenized_prompts|name_lens|attn\.(?:q|k|v|out)")
_LEARNT: Final = re.compile(r"(?:module\.)?(?:prompt_learner\.)?(ctx|attn\.(?:q|k|v|out))")


def read_prompts(path: str | os.PathLike[str], *, alone: bool = False) -> dict[str, torch.Tensor]:
    """The context (``prompt_learner.ctx``) and ContCoOp's attention layer, float32; empty if the file has no prompts.

    Reads the files of ``sharpscope finetune`` and of Dassl (CoOp, KgCoOp). ``ctx`` is [M, W], or [C, M, W] where every
    class has a context of its own. No file says where in the prompt the class name stands. ``alone``: empty too where
    the file holds anything beside the prompts, which would otherwise be left out.

    Raises CheckpointError, CorruptCheckpoint, UnsafeCheckpoint as ``read_checkpoint`` does, and CheckpointError for a
    prompt learner that has more than a context: the prompts of a meta net depend on the image (CoCoOp), and those of
    MaPLe are in both towers.
    """
    with open_regular(locate(path).path) as (handle, size, source):
        state = unwrap(read_container(handle, size, source).value, shown(source)).state
        found = {m[1]: checked(name, value, source) for name, value in state.items() if (m := _LEARNT.fullmatch(name))}
        _check_plain(state, "ctx" in found, shown(source))
        if alone and not all(map(_of_prompts, state)):
            return {}
    return {PROMPTS + name: tensor.float() for name, tensor in found.items()} if "ctx" in found else {}


def _of_prompts(name: str) -> bool:
    """Whether ``name`` is one of a prompt learner's tensors."""
    return _KNOWN.fullmatch(name.removeprefix("module.").removeprefix(PROMPTS)) is not None


def _check_plain(state: Mapping[str, object], learnt: bool, source: str) -> None:
    """Refuse a prompt learner of another kind than CoOp's."""
    own = [n.removeprefix("module.") for n in state]
    inside = [n.removeprefix(PROMPTS) for n in own if n.startswith(PROMPTS)]
    encoders = any(n.startswith(("image_encoder.", "text_encoder.")) for n in own)
    odd = [n for n in inside or ([] if encoders else own) if not _KNOWN.fullmatch(n)]
    if not learnt or not odd:
        return
    if any(n.startswith("meta_net.") for n in odd):
        raise CheckpointError(
            f"{source}: its prompts depend on the image ({listing(odd, 2)} is a meta net, as CoCoOp's): no head of "
            "fixed class vectors reads them.\nCoOp and KgCoOp, whose prompts are the same for every image, are taken."
        )
    raise CheckpointError(
        f"{source}: its prompt learner holds {listing(odd, 3)} beside the context: not CoOp's kind, whose prompts "
        "alone make the class vectors.\nTaken are files with ctx alone (CoOp, KgCoOp) or with one attention layer "
        "(ContCoOp)."
    )
