"""ContCoOp: a context conditioned on the class, made to survive an update of the backbone (Wang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sharpscope.clip.prompts import ATTENTION
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.coop import CoOp
from sharpscope.weights.theta import Theta

__all__ = ["ContCoOp"]


@dataclass(frozen=True, kw_only=True)
class ContCoOp(CoOp):
    """One attention layer lets the shared context look at each class name; both towers are frozen.

    ``CE + strength * (1 - mean_c cos(g_c, g_c^0))``. The class embeddings that the context attends to come from the
    backbone in use: after an update of the backbone the same module gives another context (``compatibility``).

    From the paper: learnable prompts meet the class embeddings in an attention layer before the text encoder, and the
    class features are distilled from the zero-shot ones. Our choices: shapes (see ``prompts.conditioned``), the start
    (``out`` = 0, so that training begins at CoOp's prompt), ``strength`` and recipe (KgCoOp's).
    """

    name: ClassVar[str] = "contcoop"
    title: ClassVar[str] = "ContCoOp"
    source: ClassVar[str] = "Wang et al. 2024, arXiv 2412.20895"

    epochs: int = 100
    batch_size: int = 128
    strength: float = 8.0

    def modules(self, task: Task, context: Tensor) -> Theta:
        width = context.shape[-1]
        generator = task.generator("attention")
        drawn = {n: torch.randn(width, width, generator=generator) / width**0.5 for n in ATTENTION[:-1]}
        return {n: t.to(context) for n, t in drawn.items()} | {ATTENTION[-1]: context.new_zeros(width, width)}
