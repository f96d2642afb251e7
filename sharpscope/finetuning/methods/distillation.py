"""Distillation from zero-shot CLIP while the classifier learns (Hinton et al. 2015, 1503.02531)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import Batch, Losses, Prepared, Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.weights.theta import Theta

__all__ = ["Distillation", "divergence"]


def divergence(logits: Tensor, logits_0: Tensor) -> Tensor:
    """``1/B sum_i KL(softmax Z_0[i] || softmax Z[i])`` of logits [B, C] from ``logits_0`` [B, C], a scalar in nats."""
    return F.kl_div(logits.log_softmax(1), logits_0.log_softmax(1), reduction="batchmean", log_target=True)


@dataclass(frozen=True, kw_only=True)
class Distillation(WiseFT):
    """Cross-entropy + strength * T^2 * KL between zero-shot's and the current class probabilities at temperature T.

    The teacher is theta_0 with the head that training starts from, on the same (augmented) images. As baseline of
    WiSE-FT (its figure 13) and Lipsum-FT (its appendix B.2); neither published its configuration: ``strength`` and
    ``temperature`` are ours, all else is WiSE-FT's.
    """

    name: ClassVar[str] = "kd"
    title: ClassVar[str] = "KD"
    source: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"

    strength: float = 1.0
    """Weight of the penalty, >= 0; a larger value keeps the probabilities closer to zero-shot CLIP's."""
    temperature: float = 1.0
    """T > 0, by which both sides' logits are divided; a larger value compares unlikely classes too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ConfigError(f"{self.name}: temperature needs a number above 0, got {self.temperature}.")

    def prepare(self, task: Task) -> Prepared:
        plain = super().prepare(task)

        def losses(theta: Theta, batch: Batch) -> Losses:
            found = plain.losses(theta, batch)
            assert found.logits is not None
            with torch.no_grad():
                teacher = plain.logits(plain.theta, batch.images)
            gap = divergence(found.logits / self.temperature, teacher / self.temperature)
            return found._replace(penalty=self.strength * self.temperature**2 * gap)

        return dataclasses.replace(plain, losses=losses)
