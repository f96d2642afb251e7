"""L2-SP: weight decay towards the starting point instead of towards zero (Li et al. 2018, 1802.01483)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sharpscope.finetuning.method import (
    Batch,
    Losses,
    Method,
    Prepared,
    Scope,
    Stage,
    Task,
    cross_entropy,
    image_tower,
    of_classifier,
    with_head,
)
from sharpscope.finetuning.trainer import Optimizer
from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.theta import Theta

__all__ = ["L2SP", "absolute_distance", "squared_distance"]


def squared_distance(theta: Mapping[str, Tensor], start: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """``sum_n ||theta_n - start_n||^2`` over the tensors ``names``, a scalar."""
    return torch.stack([(theta[n] - start[n]).square().sum() for n in names]).sum()


def absolute_distance(theta: Mapping[str, Tensor], start: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """``sum_n ||theta_n - start_n||_1`` over the tensors ``names``, a scalar."""
    return torch.stack([(theta[n] - start[n]).abs().sum() for n in names]).sum()


@dataclass(frozen=True, kw_only=True)
class L2SP(Method):
    """Cross-entropy + strength / 2 * ||theta - theta_0||^2 over image tower and head; no other weight decay.

    The paper decays a new head towards zero (beta); this head starts as the zero-shot head and is pulled
    towards that start, like all other weights. The paper lowers the learning rate in steps; here it follows a cosine.
    The paper chooses ``strength`` among powers of ten for each data set.
    """

    name: ClassVar[str] = "l2-sp"
    title: ClassVar[str] = "L2-SP"
    source: ClassVar[str] = "Li et al. 2018, arXiv 1802.01483"

    lr: float = 0.01
    steps: int | None = 9000
    batch_size: int = 64
    optimizer: Optimizer = "sgd"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    strength: float = 0.1
    """alpha in the paper, >= 0; a larger value keeps the weights closer to their start."""
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head (see WiSE-FT)."""
    distance: Literal["l2", "l1"] = "l2"
    """l2: strength / 2 * ||theta - theta_0||^2; l1: strength * ||theta - theta_0||_1, the paper's L1-SP, which keeps
    some weights near their start and lets others go."""
    scope: Scope = "tower"
    """tower: the image tower and the head move and are pulled; head: the head alone (WiSE-FT's figure 13)."""

    def prepare(self, task: Task) -> Prepared:
        classifier, start = with_head(task, scale_baked=self.scale_baked)
        trained = (*image_tower(task), HEAD_WEIGHT) if self.scope == "tower" else (HEAD_WEIGHT,)
        classify = cross_entropy(classifier, self.label_smoothing)

        def losses(theta: Theta, batch: Batch) -> Losses:
            squared = self.distance == "l2"
            way = squared_distance(theta, start, trained) / 2 if squared else absolute_distance(theta, start, trained)
            return classify(theta, batch)._replace(penalty=self.strength * way)

        stage = Stage(trained, self.recipe(task.n))
        return Prepared(start, (stage,), losses, classifier.logits, of_classifier(classifier))
