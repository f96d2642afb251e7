"""Linear probe: a classification head on frozen features (Radford et al. 2021, 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import (
    Batch,
    HeadStart,
    Losses,
    Method,
    Prepared,
    Stage,
    Task,
    cross_entropy,
    head_names,
    of_classifier,
    with_head,
)
from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.theta import Theta

__all__ = ["LinearProbe"]


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Method):
    """Cross-entropy; only the head and its bias move, and the head starts as the zero-shot one.

    This is the linear classifier of WiSE-FT's released code (``--freeze-encoder``). Its paper also shows one that
    starts at random (``head_start``), and reports the best of 64 random configurations (appendix D.3). Its figure 13
    also has an L1 penalty (``l1``), whose weight is not public to us, and one towards the zero-shot head, which is
    ``l2-sp`` with ``scope=head``. CLIP's own probe solves logistic regression by L-BFGS.
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
    head_start: HeadStart = "zeroshot"
    """zeroshot: the head starts as the zero-shot classifier; random: as a new linear layer, its bias at 0."""
    l1: float = 0.0
    """Weight >= 0 of the sum of the head's absolute weights, without its bias; a larger value brings more of them near
    0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.l1 >= 0:
            raise ConfigError(f"{self.name}: l1 cannot be negative, got {self.l1}.")

    def prepare(self, task: Task) -> Prepared:
        classifier, theta = with_head(task, scale_baked=self.scale_baked, bias=self.head_bias, start=self.head_start)
        stage = Stage(head_names(self.head_bias), self.recipe(task.n), "probe")
        classify = cross_entropy(classifier, self.label_smoothing)

        def losses(theta: Theta, batch: Batch) -> Losses:
            found = classify(theta, batch)
            return found._replace(penalty=self.l1 * theta[HEAD_WEIGHT].abs().sum()) if self.l1 else found

        return Prepared(theta, (stage,), losses, classifier.logits, of_classifier(classifier))
