"""Prompt learning with frozen towers: CoOp's plain context, and KgCoOp, which holds the class vectors in place.

The towers do not move, so what is analysed as a pair is the head: from the zero-shot class vectors (the templates') to
those of the learnt prompt. On that path the logits of the two are mixed linearly. The file holds the prompts and this
head only, and is read over the zero-shot checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.prompts import CTX, PREFIX, Prompts, class_drift, initial_context
from sharpscope.finetuning.method import Batch, Exported, Losses, Method, Prepared, Stage, Task
from sharpscope.finetuning.schedule import Schedule
from sharpscope.finetuning.trainer import Optimizer
from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.heads import head_metadata
from sharpscope.weights.theta import Theta

__all__ = ["CoOp", "KgCoOp"]


@dataclass(frozen=True, kw_only=True)
class CoOp(Method):
    """A context shared by all classes is learnt in place of the template's words; both towers are frozen.

    ``CE + strength * (1 - mean_c cos(g_c, g_c^0))``, g_c the class vector of the prompt ``[v_1] ... [v_M] name.``,
    g_c^0 the zero-shot one; strength 0 is CoOp itself. The defaults are those of the released ``vit_b16_ctxv1.yaml``,
    which is for 8 and 16 shots: 100 epochs for 2 and 4 shots, 50 for 1 and on ImageNet (see the recipes).
    """

    name: ClassVar[str] = "coop"
    title: ClassVar[str] = "CoOp"
    source: ClassVar[str] = "Zhou et al. 2022, arXiv 2109.01134"

    lr: float = 2e-3
    epochs: int = 200
    batch_size: int = 32
    optimizer: Optimizer = "sgd"
    warmup_epochs: float = 1.0
    warmup_lr: float | None = 1e-5
    schedule: Schedule = "epoch-cosine"
    weight_decay: float = 5e-4
    clip_norm: float | None = None
    shots: int | None = 16
    crop: tuple[float, ...] | None = (0.08, 1.0)
    flip: float = 0.5
    words: str = "a photo of a"
    """The context starts as the embeddings of these words."""
    length: int | None = None
    """Number of random vectors to start from instead (16 in the paper's few-shot tables)."""
    class_specific: bool = False
    """A context of its own for every class (the paper's CSC) instead of one for all."""
    strength: float = 0.0
    """Weight of the penalty."""

    def prepare(self, task: Task) -> Prepared:
        model = task.model
        context = initial_context(model, task.theta_0, self.words, self.length, task.seed).to(task.device)
        prompts = Prompts.of(model, task.classnames, len(context))
        if self.class_specific:
            context = context.repeat(len(task.classnames), 1, 1)
        added = {CTX: context, **self.modules(task, context)}
        with torch.no_grad():
            start = zero_shot_head(model, task.theta_0, task.classnames, task.templates)

        def logits(theta: Theta, images: Tensor, vectors: Tensor | None = None) -> Tensor:
            with torch.no_grad():
                features = model.encode_image(theta, images)
            vectors = prompts.class_vectors(model, theta) if vectors is None else vectors
            return theta["logit_scale"].exp() * F.linear(features, vectors)

        def losses(theta: Theta, batch: Batch) -> Losses:
            vectors = prompts.class_vectors(model, theta)
            scores = logits(theta, batch.images, vectors)
            penalty = self.strength * class_drift(vectors, start) if self.strength else None
            return Losses(F.cross_entropy(scores, batch.labels), penalty, scores)

        @torch.no_grad()
        def export(theta: Theta) -> Exported:
            learnt = {n: t.detach() for n, t in theta.items() if n.startswith(PREFIX)}
            head = {HEAD_WEIGHT: prompts.class_vectors(model, theta)}
            return Exported({**learnt, **head}, head_metadata(scale_baked=False, classnames=task.classnames))

        stage = Stage(tuple(added), self.recipe(task.n))
        return Prepared({**task.theta_0, **added}, (stage,), losses, logits, export)

    def modules(self, task: Task, context: Tensor) -> Theta:
        """What is trained beside the ``context`` [M, W] (or [C, M, W])."""
        return {}


@dataclass(frozen=True, kw_only=True)
class KgCoOp(CoOp):
    """CoOp with a penalty that keeps the class vectors near the zero-shot ones."""

    name: ClassVar[str] = "kgcoop"
    title: ClassVar[str] = "KgCoOp"
    source: ClassVar[str] = "Yao et al. 2023, arXiv 2303.13283"

    epochs: int = 100
    batch_size: int = 128
    strength: float = 8.0
