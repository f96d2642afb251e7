"""Linear probe: a classification head on frozen features (Radford et al. 2021, 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpscope.finetuning.method import (
    Method,
    Prepared,
    Stage,
    Task,
    cross_entropy,
    head_names,
    of_classifier,
    with_head,
)

__all__ = ["LinearProbe"]


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Cross-entropy; only the head and its bias move, and the head starts as the zero-shot one.

    This is the linear classifier of WiSE-FT's released code (``--freeze-encoder``). Its paper also shows one that
    starts at random, and reports the best of 64 random configurations (appendix D.3). CLIP's own probe solves logistic
    regression by L-BFGS.
    """

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "Linear probe"
    source: ClassVar[str] = "Radford et al. 2021, arXiv 2103.00020"

    lr: float = 1e-3
    epochs: int = 10
    batch_size: int = 128
    warmup: float = 500.0
    weight_decay: float = 0.1
    crop: tuple[float, ...] | None = None
    head_bias: bool = True
    """Train a bias of the head (see WiSE-FT)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head (see WiSE-FT)."""

    def prepare(self, task: Task) -> Prepared:
        classifier, theta = with_head(task, scale_baked=self.scale_baked, bias=self.head_bias)
        stage = Stage(head_names(self.head_bias), self.recipe(task.n), "probe")
        losses = cross_entropy(classifier, self.label_smoothing)
        return Prepared(theta, (stage,), losses, classifier.logits, of_classifier(classifier))
