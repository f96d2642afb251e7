"""WiSE-FT's fine-tuning: image tower and a head that starts as the zero-shot one (Wortsman et al. 2022, 2109.01903)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sharpscope.finetuning.method import (
    Method,
    Prepared,
    Stage,
    Task,
    cross_entropy,
    image_tower,
    of_classifier,
    with_head,
)
from sharpscope.layers import HEAD_WEIGHT

__all__ = ["WiseFT"]


@dataclass(frozen=True, kw_only=True)
class WiseFT(Method):
    """Cross-entropy from the zero-shot classifier: image tower and head move, the text tower and the scale do not."""

    name: ClassVar[str] = "wise-ft"
    title: ClassVar[str] = "WiSE-FT"
    source: ClassVar[str] = "Wortsman et al. 2022, arXiv 2109.01903"

    lr: float = 3e-5
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.1
    scope: Literal["tower", "head"] = "tower"
    """tower: the image tower and the head; head: the head alone."""
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head, as the paper does; else it stays outside, and is frozen like the rest.
    Both are the same classifier, but a head with the scale baked in is larger, and AdamW moves it less for its size."""

    def prepare(self, task: Task) -> Prepared:
        classifier, theta = with_head(task, scale_baked=self.scale_baked)
        trained = (*image_tower(task), HEAD_WEIGHT) if self.scope == "tower" else (HEAD_WEIGHT,)
        stage = Stage(trained, self.recipe(task.n))
        return Prepared(theta, (stage,), cross_entropy(classifier), classifier.logits, of_classifier(classifier))
