"""LDIFS: the image tower's activations are kept near zero-shot CLIP's (Mukhoti et al. 2024, 2308.13320)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sharpscope.clip.activations import image_blocks, recording
from sharpscope.finetuning.method import Batch, Losses, Prepared, Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.weights.theta import Theta

__all__ = ["Ldifs", "feature_distance", "quarters"]


def feature_distance(found: Sequence[Tensor], found_0: Sequence[Tensor]) -> Tensor:
    """``mean over slices and entries of (u - u_0)^2`` for activations of several slices, a scalar.

    found, found_0: one tensor [B, N, ...] a slice, of the model and of theta_0. Each is first brought to unit length
    along its second axis, the tokens of a transformer and the channels of a ResNet, as the authors' code does.
    """
    gaps = [(_unit(a) - _unit(b)).square().flatten(1).mean(1) for a, b in zip(found, found_0, strict=True)]
    return torch.stack(gaps).mean()


def _unit(features: Tensor) -> Tensor:
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


def quarters(blocks: Sequence[str]) -> tuple[str, ...]:
    """The last block of each quarter of ``blocks``, each once: 3, 6, 9 and 12 of twelve."""
    return tuple(dict.fromkeys(blocks[math.ceil(k * len(blocks) / 4) - 1] for k in (1, 2, 3, 4)))


@dataclass(frozen=True, kw_only=True)
class Ldifs(WiseFT):
    """Cross-entropy + strength * mean squared change of the activations in five places of the image tower.

    The places are the input of the first block and the output of each quarter of the blocks; see
    :func:`feature_distance`. Defaults: the authors' code (omegafragger/ldifs_code@c7e82a4, args.py and finetune.py),
    which trains for 10 epochs on ImageNet and CIFAR and for up to 76 on smaller sets. Their main runs start from a
    linear probe, this one from the zero-shot head, which their code has as an option.
    """

    name: ClassVar[str] = "ldifs"
    title: ClassVar[str] = "LDIFS"
    source: ClassVar[str] = "Mukhoti et al. 2024, arXiv 2308.13320"

    lr: float = 1e-5
    epochs: int = 10
    batch_size: int = 128
    warmup: float = 500.0
    weight_decay: float = 0.1
    strength: float = 10.0
    """lambda in the paper, >= 0; a larger value keeps the activations closer to zero-shot CLIP's."""

    def prepare(self, task: Task) -> Prepared:
        plain, model = super().prepare(task), task.model
        frozen, blocks = dict(task.theta_0), image_blocks(model)
        first, ends = blocks[0], quarters(blocks)

        def losses(theta: Theta, batch: Batch) -> Losses:
            with recording(model, first, ends) as seen:
                found = plain.losses(theta, batch)
            with torch.no_grad(), recording(model, first, ends) as seen_0:
                model.encode_image(frozen, batch.images)
            return found._replace(penalty=self.strength * feature_distance(seen, seen_0))

        return dataclasses.replace(plain, losses=losses)
