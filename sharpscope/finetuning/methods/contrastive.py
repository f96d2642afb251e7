"""CLIP's contrastive loss, and the captions it needs where the data has class labels only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.finetuning.method import Batch, Task

__all__ = ["class_captions", "contrastive_loss", "encode_distinct"]


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """``(CE(L, I) + CE(L^T, I)) / 2`` of ``L = scale * images @ texts^T``: an image and its text have the same row.

    images, texts: unit rows [B, D]. Source: Radford et al. 2021 (2103.00020).
    """
    logits = scale * images @ texts.T
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def class_captions(task: Task, templates: Sequence[str] | None = None) -> Callable[[Batch], Tensor]:
    """batch -> token ids [B, context_length]: one of ``templates`` (default: the task's), drawn for every example,
    with its class's name in it."""
    patterns = tuple(templates or task.templates)
    texts = [pattern.replace("{}", name) for name in task.classnames for pattern in patterns]
    tokens = task.model.tokenize(texts).unflatten(0, (len(task.classnames), len(patterns))).to(task.device)

    def draw(batch: Batch) -> Tensor:
        which = torch.randint(0, len(patterns), (len(batch.labels),), generator=batch.generator("captions", *patterns))
        return tokens[batch.labels, which.to(task.device)]

    return draw


def encode_distinct(model: ClipModel, theta: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """Unit text features [B, D] of ``tokens`` [B, context_length], each distinct text encoded once."""
    distinct, back = torch.unique(tokens, dim=0, return_inverse=True)
    return model.encode_text(theta, distinct)[back]
