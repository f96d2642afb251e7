"""Linear probe: a classification head on frozen features (Radford et al. 2021, 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpscope.finetuning.method import Method, Prepared, Stage, Task, cross_entropy, of_classifier, with_head
from sharpscope.layers import HEAD_WEIGHT

__all__ = ["LinearProbe"]


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Cross-entropy; only the head moves, and it starts as the zero-shot head, as WiSE-FT's "linear classifier" does.

    CLIP's own probe solves logistic regression by L-BFGS; training by AdamW at 1e-3 is our choice.
    """

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "Linear probe"
    source: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"

    lr: float = 1e-3
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.1
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head (see WiSE-FT)."""

    def prepare(self, task: Task) -> Prepared:
        classifier, theta = with_head(task, scale_baked=self.scale_baked)
        stage = Stage((HEAD_WEIGHT,), self.recipe(task.n), "probe")
        return Prepared(theta, (stage,), cross_entropy(classifier), classifier.logits, of_classifier(classifier))
