"""LoRA: low-rank changes of the blocks' linear layers, merged when they are saved (Hu et al. 2021; CLIP-LoRA)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor

from sharpscope.errors import ConfigError
from sharpscope.finetuning.blocks import PARTS, Linear, Part, linears_of
from sharpscope.finetuning.method import (
    Batch,
    Losses,
    Method,
    Prepared,
    Stage,
    Task,
    cross_entropy,
    of_classifier,
    text_head,
)
from sharpscope.finetuning.schedule import Schedule
from sharpscope.layers import Tower
from sharpscope.weights.theta import Theta

__all__ = ["LoRA", "dropped", "factors_of", "lora_merged"]

_TOWERS: Final[Mapping[str, tuple[Tower, ...]]] = {"both": ("image", "text"), "image": ("image",), "text": ("text",)}


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank changes of the attention's queries, keys and values in both towers; few shots; merged in the file.

    ``W' = W + s B A`` for every target weight W [out, in], with A [rank, in] uniform in +-1 / sqrt(in) and B
    [out, rank] = 0 at the start, so that training starts at theta_0 exactly, and s = alpha / sqrt(rank) (or
    alpha / rank). Only A and B move; the file holds W'. Cross-entropy, the head follows the text tower: every step
    embeds all classes in all templates, so give one template, as CLIP-LoRA does. ``dropout`` leaves inputs of A out;
    the authors draw them for every token anew, here one draw holds for all tokens of a step, so that it is a change of
    the weights too. In a packed weight (``in_proj_weight``, ``qkv``) each of q, k and v has matrices of its own, which
    peft's LoRA of a whole ``nn.MultiheadAttention`` does not offer.

    Sources: Hu et al. 2021, arXiv 2106.09685; Zanella & Ben Ayed 2024, arXiv 2405.18541, whose released code sets the
    defaults, those of 16 shots.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    source: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685; Zanella & Ben Ayed 2024, arXiv 2405.18541"

    lr: float = 2e-4
    epochs: int = 10
    steps: int | None = 8000
    """500 for every shot."""
    batch_size: int = 32
    schedule: Schedule = "floored-cosine"
    weight_decay: float = 0.01
    clip_norm: float | None = None
    shots: int | None = 16
    crop: tuple[float, ...] | None = (0.08, 1.0)
    flip: float = 0.5
    rank: int = 2
    alpha: float = 1.0
    scaling: Literal["sqrt", "rank"] = "sqrt"
    """sqrt: s = alpha / sqrt(rank) (CLIP-LoRA's released code, rsLoRA); rank: s = alpha / rank (Hu et al., peft)."""
    dropout: float = 0.25
    """Probability that an input of A is left out at a step (the others are multiplied by 1 / (1 - dropout))."""
    targets: tuple[Part, ...] = ("q", "k", "v")
    """Layers of every block that change: q, k, v, o (attention's output), mlp_in, mlp_out."""
    towers: Literal["both", "image", "text"] = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(f"{self.name}: rank needs at least 1, and dropout a number from 0 to below 1.")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"{self.name}: targets needs some of {', '.join(PARTS)}, each once.")

    @property
    def scale(self) -> float:
        """s, the factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "sqrt" else self.rank)

    def prepare(self, task: Task) -> Prepared:
        linears = linears_of(task.model, self.targets, self.name, _TOWERS[self.towers])
        classifier = text_head(task)
        loss, write = cross_entropy(classifier), of_classifier(classifier)
        added = self._start(task, linears)

        def whole(theta: Theta) -> Theta:
            return lora_merged(theta, linears, self.scale)

        def losses(theta: Theta, batch: Batch) -> Losses:
            return loss(whole(dropped(theta, linears, self.dropout, batch.generator("dropout"))), batch)

        def logits(theta: Theta, images: Tensor) -> Tensor:
            return classifier.logits(whole(theta), images)

        return Prepared(
            {**task.theta_0, **added},
            (Stage(tuple(added), self.recipe(task.n)),),
            losses,
            logits,
            lambda theta: write(whole(theta)),
            lambda theta: classifier.frozen(whole(theta)),
            {"lora": {"scale": self.scale, "weights": list(dict.fromkeys(linear.weight for linear in linears))}},
        )

    def _start(self, task: Task, linears: Iterable[Linear]) -> Theta:
        """A, uniform in +-1 / sqrt(in), and B = 0 for every layer."""
        added: Theta = {}
        generator = task.generator("lora")
        for linear in linears:
            down, up = factors_of(linear)
            like = task.theta_0[linear.weight]
            uniform = torch.rand(self.rank, linear.inputs, generator=generator) * 2 - 1
            added[down] = (uniform / math.sqrt(linear.inputs)).to(like)
            added[up] = like.new_zeros(linear.outputs, self.rank)
        return added


def factors_of(linear: Linear) -> tuple[str, str]:
    """The names of A [rank, in] and B [out, rank] of one layer."""
    return f"{linear.weight}.{linear.part}.lora_A", f"{linear.weight}.{linear.part}.lora_B"


def dropped(theta: Theta, linears: Iterable[Linear], share: float, generator: torch.Generator) -> Theta:
    """``theta`` where every A has lost each input with probability ``share``; the others are divided by 1 - share."""
    changed = dict(theta)
    for linear in linears if share else ():
        down, _ = factors_of(linear)
        kept = torch.rand(linear.inputs, generator=generator) >= share
        changed[down] = theta[down] * kept.to(theta[down]) / (1 - share)
    return changed


def lora_merged(theta: Mapping[str, Tensor], linears: Iterable[Linear], scale: float) -> Theta:
    """``theta`` without A and B, and ``W + scale B A`` in their place; differentiable; a merged theta as it is."""
    result = dict(theta)
    for linear in linears:
        down, up = factors_of(linear)
        if down in result:
            rows = list(result[linear.weight].chunk(linear.count))
            rows[linear.index] = rows[linear.index] + scale * (result.pop(up) @ result.pop(down))
            result[linear.weight] = torch.cat(rows)
    return result
