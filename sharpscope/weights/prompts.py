"""The learnt prompts in a checkpoint: no part of a CLIP, so ``read_checkpoint`` leaves them out."""

from __future__ import annotations

import os
import re
from typing import Final

import torch

from sharpscope.errors import shown
from sharpscope.weights.files.containers import open_regular, read_container
from sharpscope.weights.files.sources import locate
from sharpscope.weights.files.tensors import checked
from sharpscope.weights.naming import unwrap

__all__ = ["PROMPTS", "read_prompts"]

PROMPTS: Final = "prompt_learner."
"""What the names of learnt prompts begin with."""
_LEARNT: Final = re.compile(r"(?:module\.)?(?:prompt_learner\.)?(ctx|attn\.(?:q|k|v|out))")


def read_prompts(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The context (``prompt_learner.ctx``) and ContCoOp's attention layer, float32; empty if the file has no prompts.

    Reads the files of ``sharpscope finetune`` and of Dassl (CoOp, KgCoOp). ``ctx`` is [M, W], or [C, M, W] where every
    class has a context of its own. Raises CheckpointError, CorruptCheckpoint, UnsafeCheckpoint as ``read_checkpoint``
    does.
    """
    with open_regular(locate(path).path) as (handle, size, source):
        state = unwrap(read_container(handle, size, source).value, shown(source)).state
        found = {m[1]: checked(name, value, source) for name, value in state.items() if (m := _LEARNT.fullmatch(name))}
    return {PROMPTS + name: tensor.float() for name, tensor in found.items()} if "ctx" in found else {}
