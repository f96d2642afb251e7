"""StarFT: what zero-shot CLIP thinks of spurious texts is kept while it is fine-tuned (Kim et al. 2025, 2505.13232)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import (
    Batch,
    Losses,
    Method,
    Prepared,
    Stage,
    Task,
    both_towers,
    head_names,
    of_classifier,
    text_head,
    with_head,
)
from sharpscope.finetuning.methods.contrastive import class_captions, contrastive_loss, encode_distinct
from sharpscope.finetuning.methods.distillation import divergence
from sharpscope.finetuning.trainer import Recipe
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT
from sharpscope.weights.theta import Theta

__all__ = ["BACKGROUNDS", "StarFT", "alignment"]

BACKGROUNDS = (
    "a photo of a {} on grass", "a photo of a {} on snow", "a photo of a {} on sand", "a photo of a {} near water",
    "a photo of a {} in a forest", "a photo of a {} in a city", "a photo of a {} under a blue sky",
    "a photo of a {} at night", "a blurred photo of a {}", "a dark photo of a {}", "a small {} in the distance",
)  # fmt: skip
"""The spurious contexts, which are ours. The paper lets a language model write some sixty about backgrounds (and others
about textures)."""


def alignment(logits: Tensor, logits_0: Tensor, labels: Tensor) -> Tensor:
    """``1/B sum_i KL(softmax_j Z_0[i, j] || softmax_j Z[i, j])`` over the texts j of OTHER classes than image i's.

    logits, logits_0: [B, B], image i against spurious text j, of the model and of theta_0. labels: [B]; every negative
    label is a class of its own. An image whose batch has no other class adds 0.
    """
    same = (labels[:, None] == labels[None, :]) & (labels[:, None] >= 0)
    same |= torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    target, source = (z.masked_fill(same, -1e8) for z in (logits_0, logits))
    return F.kl_div(source.log_softmax(1), target.softmax(1), reduction="batchmean")


@dataclass(frozen=True, kw_only=True)
class StarFT(Method):
    """A base loss + strength * KL between zero-shot and current probabilities of spurious texts given the image.

    Every image comes with a spurious text: its class's name in a context that should not matter. The strength falls
    linearly to 0. Both sides use theta_0's logit scale. With ``base`` cross_entropy the head's bias is trained too.
    """

    name: ClassVar[str] = "starft"
    title: ClassVar[str] = "StarFT"
    source: ClassVar[str] = "Kim et al. 2025, arXiv 2505.13232"
    couples: ClassVar[bool] = True

    lr: float = 1e-5
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.1
    clip_norm: float | None = None
    base: Literal["contrastive", "cross_entropy"] = "contrastive"
    """contrastive: FLYP's loss, both towers; cross_entropy: WiSE-FT's loss, its head in addition to the text tower."""
    strength: float = 0.5
    """lambda in the paper, >= 0; a larger value keeps more of zero-shot CLIP's probabilities."""
    falls: Literal["epochs", "steps"] = "epochs"
    """epochs: strength * (1 - e / E) in epoch e = 1 ... E, so 0 in the last one, as in the authors' code; steps:
    strength * (1 - t / T) at step t = 0 ... T - 1."""
    spurious_type: Literal["star", "kl"] = "star"
    """star: an image's texts are those of other classes than its own (:func:`alignment`); kl: all texts of the batch,
    its own included (the other value that the authors' code has)."""
    spurious: tuple[str, ...] = BACKGROUNDS
    """Spurious texts, {} for the class's name."""

    def prepare(self, task: Task) -> Prepared:
        model, frozen = task.model, dict(task.theta_0)
        scale_0 = frozen["logit_scale"].exp()
        caption, spurious = class_captions(task), class_captions(task, self.spurious)
        classify = self.base == "cross_entropy"
        classifier, start = with_head(task, scale_baked=True, bias=True) if classify else (text_head(task), frozen)
        left = self._left(recipe := self.recipe(task.n))

        def losses(theta: Theta, batch: Batch) -> Losses:
            images, odd = model.encode_image(theta, batch.images), spurious(batch)
            with torch.no_grad():
                logits_0 = model.encode_image(frozen, batch.images) @ encode_distinct(model, frozen, odd).T
            present = images @ encode_distinct(model, theta, odd).T
            sides = scale_0 * present, scale_0 * logits_0
            change = alignment(*sides, batch.labels) if self.spurious_type == "star" else divergence(*sides)
            penalty = self.strength * left(batch) * change
            if classify:
                logits = F.linear(images, theta[HEAD_WEIGHT], theta[HEAD_BIAS])
                return Losses(F.cross_entropy(logits, batch.labels), penalty, logits)
            texts = encode_distinct(model, theta, caption(batch) if batch.tokens is None else batch.tokens)
            return Losses(contrastive_loss(images, texts, theta["logit_scale"].exp()), penalty)

        towers = tuple(n for n in both_towers(task) if n != "logit_scale")
        moved = (*towers, *head_names(True)) if classify else both_towers(task)
        names = (*model.shapes, *head_names(True)) if classify else None
        stage = Stage(moved, recipe)
        return Prepared(start, (stage,), losses, classifier.logits, of_classifier(classifier, names), classifier.frozen)

    def _left(self, recipe: Recipe) -> Callable[[Batch], float]:
        """The share of the strength that is left at a batch; raises ConfigError where it would be 0 throughout."""
        if self.falls == "steps":
            return lambda batch: 1 - batch.progress
        if recipe.num_epochs == 1 and self.strength:
            raise ConfigError(
                "starft: the strength falls after every epoch and is 0 in the last one, and there is one epoch.\n"
                "Remedy: more epochs, or falls=steps (--set falls=steps)."
            )
        return lambda batch: 1 - (batch.epoch + 1) / recipe.num_epochs
