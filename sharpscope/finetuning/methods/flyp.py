"""FLYP: fine-tune like you pretrain (Goyal et al. 2023, 2212.00638)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpscope.finetuning.method import (
    Batch,
    Losses,
    Method,
    Prepared,
    Stage,
    Task,
    both_towers,
    of_classifier,
    text_head,
)
from sharpscope.finetuning.methods.contrastive import class_captions, contrastive_loss, encode_distinct
from sharpscope.weights.theta import Theta

__all__ = ["Flyp"]


@dataclass(frozen=True, kw_only=True)
class Flyp(Method):
    """CLIP's contrastive loss on captions of the classes; both towers and the scale move, the head is made from text.

    A caption is a random template with the class's name in it, drawn anew at every step, unless the training data has
    captions of its own. Two images of one class count as negatives of each other, as in the paper.
    """

    name: ClassVar[str] = "flyp"
    title: ClassVar[str] = "FLYP"
    source: ClassVar[str] = "Goyal et al. 2023, arXiv 2212.00638"
    couples: ClassVar[bool] = True

    lr: float = 1e-5
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.1
    clip_norm: float | None = None

    def prepare(self, task: Task) -> Prepared:
        classifier, caption = text_head(task), class_captions(task)

        def losses(theta: Theta, batch: Batch) -> Losses:
            tokens = caption(batch) if batch.tokens is None else batch.tokens
            texts = encode_distinct(task.model, theta, tokens)
            images = task.model.encode_image(theta, batch.images)
            return Losses(contrastive_loss(images, texts, theta["logit_scale"].exp()))

        stage = Stage(both_towers(task), self.recipe(task.n))
        return Prepared(
            dict(task.theta_0), (stage,), losses, classifier.logits, of_classifier(classifier), classifier.frozen
        )
