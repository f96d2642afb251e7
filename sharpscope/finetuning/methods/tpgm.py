"""TPGM: how far each tensor may move from zero-shot is learnt on held-out data (Tian et al. 2023, 2303.10720)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import Batch, Exported, Losses, Prepared, Stage, Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.trainer import Recipe
from sharpscope.weights.theta import Theta

__all__ = ["KEPT", "RADII", "TPGM", "Balls", "Norm", "row_norms"]

RADII: Final = "tpgm.radii"
"""The name of the radii [L] in theta while a method trains them: one for each moved tensor. In TPGM's first stage all
are 0, which no learnt radius is. It is never part of a checkpoint."""
KEPT: Final = "sharpscope.tpgm.kept"
"""Metadata of the checkpoint: JSON, tensor -> share of its movement that the projection kept (its mean over rows)."""
Norm = Literal["l2", "mars"]
_SMALLEST: Final = 1e-8
"""The smallest radius, and what keeps a tensor that did not move from a division by 0; both are the authors'."""


def row_norms(moved: Tensor, norm: Norm) -> Tensor:
    """The norm of a tensor's movement, of a shape that broadcasts to it.

    l2: one number, the Euclidean norm of the whole tensor. mars: the sum of absolute entries of every row (first axis);
    a tensor with fewer than two axes is one row.
    """
    if norm == "l2":
        return moved.norm()
    axes = tuple(range(1, moved.ndim)) if moved.ndim > 1 else tuple(range(moved.ndim))
    return moved.abs().sum(axes, keepdim=True) if axes else moved.abs()


@dataclass(frozen=True)
class Balls:
    """A ball around ``start`` for each tensor of ``names``; radii [L] are in the order of the names."""

    start: Mapping[str, Tensor]
    names: Sequence[str]
    norm: Norm

    def projected(self, theta: Mapping[str, Tensor], radii: Tensor) -> dict[str, Tensor]:
        """``start + min(1, radius / ||theta - start||) (theta - start)`` for every named tensor; differentiable.

        With the norm mars every row is projected by itself, all with the tensor's radius.
        """
        out = dict(theta)
        for name, share in zip(self.names, self._shares(theta, radii), strict=True):
            out[name] = self.start[name] + share * (theta[name] - self.start[name])
        return out

    def halves(self, theta: Mapping[str, Tensor]) -> Tensor:
        """The radii [L] at which learning starts: half of the (smallest row's) movement."""
        return torch.stack([size.min() / 2 for size in self._sizes(theta)]).clamp(min=_SMALLEST)

    def constrain(self, radii: Tensor, theta: Mapping[str, Tensor]) -> None:
        """Bring ``radii`` back to above 0 and up to the (largest row's) movement, in place."""
        largest = torch.stack([size.max() for size in self._sizes(theta)]).clamp(min=_SMALLEST)
        radii.copy_(radii.clamp(min=_SMALLEST).minimum(largest))

    def kept(self, theta: Mapping[str, Tensor], radii: Tensor) -> dict[str, str]:
        """The metadata of a checkpoint of ``projected(theta, radii)``: :data:`KEPT`."""
        shares = zip(self.names, self._shares(theta, radii), strict=True)
        return {KEPT: json.dumps({name: round(float(share.mean()), 6) for name, share in shares})}

    def _sizes(self, theta: Mapping[str, Tensor]) -> list[Tensor]:
        return [row_norms(theta[name] - self.start[name], self.norm) for name in self.names]

    def _shares(self, theta: Mapping[str, Tensor], radii: Tensor) -> list[Tensor]:
        sizes = self._sizes(theta)
        return [(radius / (size + _SMALLEST)).clamp(max=1) for radius, size in zip(radii, sizes, strict=True)]


@dataclass(frozen=True, kw_only=True)
class TPGM(WiseFT):
    """WiSE-FT's fine-tuning, then a radius per tensor around theta_0, learnt on held-out ID data, to project onto.

    The first stage trains as WiSE-FT does on all examples but a share ``held_out``; the second one learns the radii by
    Adam at a constant rate, the weights fixed, on the held-out ones. The result is theta_0 plus a share of every
    tensor's movement: a learnt alpha for each layer. The order (projection at the end of fine-tuning only), norm, rate,
    steps and start (half of the movement) are the authors' for CLIP's ViT (PotatoTian/TPGM@8d18db0, ImageNet_ViT_Exp);
    theirs learns the radii on ImageNet's validation set in batches of 64, this one on ``held_out`` training examples.
    """

    name: ClassVar[str] = "tpgm"
    title: ClassVar[str] = "TPGM"
    source: ClassVar[str] = "Tian et al. 2023, arXiv 2303.10720"

    held_out: float = 0.1
    """Share of the training examples, in (0, 1), on which the radii are learnt and the weights are not; ours."""
    radius_steps: int = 200
    """Number of steps in which the radii are learnt."""
    radius_lr: float = 0.01
    """Learning rate of the radii: a step changes each of them by about this length."""
    norm: Norm = "l2"
    """l2: a tensor's Euclidean distance from theta_0; mars: the largest row sum, every row projected by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.held_out < 1:
            raise ConfigError(f"{self.name}: held_out needs a number between 0 and 1, got {self.held_out}.")
        if self.radius_steps < 1:
            raise ConfigError(f"{self.name}: radius_steps must be at least 1, got {self.radius_steps}.")

    def prepare(self, task: Task) -> Prepared:
        kept = round((1 - self.held_out) * task.n)
        if not 0 < kept < task.n:
            raise ConfigError(f"{self.name}: held_out {self.held_out:g} of {task.n} examples leaves one part empty.")
        plain = super().prepare(dataclasses.replace(task, n=kept))
        (first,) = plain.stages
        start, balls = plain.theta, Balls(plain.theta, first.trained, self.norm)
        unbound = torch.zeros(len(balls.names), dtype=start[balls.names[0]].dtype, device=task.device)

        def whole(theta: Theta) -> Theta:
            if not bool(theta[RADII].any()):
                return theta
            return {**balls.projected(theta, theta[RADII]), RADII: unbound}

        def losses(theta: Theta, batch: Batch) -> Losses:
            return plain.losses(whole(theta), batch)

        def logits(theta: Theta, images: Tensor) -> Tensor:
            return plain.logits(whole(theta), images)

        def export(theta: Theta) -> Exported:
            tensors, metadata = plain.export(whole(theta))
            return Exported(tensors, metadata | balls.kept(theta, theta[RADII]))

        split = kept / task.n
        recipe = Recipe(self.radius_lr, self.radius_steps, weight_decay=0.0, clip_norm=None, schedule="constant")
        stages = (
            dataclasses.replace(first, part=(0.0, split)),
            Stage(
                (RADII,), recipe, "radii", (split, 1.0), lambda theta: {RADII: balls.halves(theta)},
                lambda theta: balls.constrain(theta[RADII], theta),
            ),
        )  # fmt: skip
        return Prepared({**start, RADII: unbound}, stages, losses, logits, export, whole)
