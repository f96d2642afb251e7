"""LP-FT: first the head alone, then everything (Kumar et al. 2022, 2202.10054)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sharpscope.finetuning.method import (
    HeadStart,
    Method,
    Prepared,
    Stage,
    Task,
    cross_entropy,
    head_names,
    image_tower,
    of_classifier,
    with_head,
)

__all__ = ["LpFT"]


@dataclass(frozen=True, kw_only=True)
class LpFT(Method):
    """First a linear probe, then image tower and head together: a head that already fits distorts the features less.

    ``epochs`` (or ``steps``) are those of both stages together. The paper and its code choose the rates on a grid for
    each data set and probe by logistic regression; the defaults, which are WiSE-FT's where both have the same part, and
    that the probe starts from the zero-shot head, are ours.
    """

    name: ClassVar[str] = "lp-ft"
    title: ClassVar[str] = "LP-FT"
    source: ClassVar[str] = "Kumar et al. 2022, arXiv 2202.10054"

    lr: float = 1e-5
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.1
    probe_lr: float = 1e-3
    """Peak learning rate of the first stage."""
    probe_share: float = 0.5
    """Share of all epochs (steps) that the first stage takes."""
    head_bias: bool = True
    """Train a bias of the head (see WiSE-FT)."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head (see WiSE-FT)."""
    head_start: HeadStart = "zeroshot"
    """zeroshot: the head starts as the zero-shot classifier; random: as a new linear layer, its bias at 0."""

    def prepare(self, task: Task) -> Prepared:
        classifier, theta = with_head(task, scale_baked=self.scale_baked, bias=self.head_bias, start=self.head_start)
        head, losses = head_names(self.head_bias), cross_entropy(classifier, self.label_smoothing)
        total = self.recipe(task.n).steps
        first = round(self.probe_share * total)
        probe = self.recipe(task.n, steps=first, lr=self.probe_lr)
        rest = self.recipe(task.n, steps=total - first)
        stages = Stage(head, probe, "probe"), Stage((*image_tower(task), *head), rest)
        return Prepared(theta, stages, losses, classifier.logits, of_classifier(classifier))
