"""WiSE-FT's fine-tuning: image tower and a head that starts as the zero-shot one (Wortsman et al. 2022, 2109.01903)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpscope.finetuning.method import (
    Method,
    Prepared,
    Scope,
    Stage,
    Task,
    cross_entropy,
    head_names,
    image_tower,
    of_classifier,
    with_head,
)

__all__ = ["WiseFT"]


@dataclass(frozen=True, kw_only=True)
class WiseFT(Method):
    """Cross-entropy from the zero-shot classifier: image tower, head and its bias move, text tower and scale do not.

    The recipe is that of the authors' code for ImageNet, whose head is a linear layer with a bias that starts at 0.
    """

    name: ClassVar[str] = "wise-ft"
    title: ClassVar[str] = "WiSE-FT"
    source: ClassVar[str] = "Wortsman et al. 2022, arXiv 2109.01903"

    lr: float = 3e-5
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.1
    scope: Scope = "tower"
    """tower: the image tower and the head; head: the head alone."""
    head_bias: bool = True
    """Train a bias of the head, which starts at 0; it is on the path like every other tensor."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head, as the paper does; else it stays outside, and is frozen like the rest.
    Both are the same classifier, but a head with the scale baked in is larger, and AdamW moves it less for its size."""

    def prepare(self, task: Task) -> Prepared:
        classifier, theta = with_head(task, scale_baked=self.scale_baked, bias=self.head_bias)
        head = head_names(self.head_bias)
        stage = Stage((*image_tower(task), *head) if self.scope == "tower" else head, self.recipe(task.n))
        losses = cross_entropy(classifier, self.label_smoothing)
        return Prepared(theta, (stage,), losses, classifier.logits, of_classifier(classifier))
