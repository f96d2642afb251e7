"""R-Adapter: linear adapters inside both towers, merged into the weights they follow (Kim et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, shown
from sharpscope.finetuning.blocks import Part, linears_of
from sharpscope.finetuning.method import Batch, Losses, Method, Prepared, Stage, Task, of_classifier, text_head
from sharpscope.weights.adapters import has_residual
from sharpscope.weights.theta import Theta

__all__ = ["Places", "RAdapter", "adapters_of", "merged", "mpm_nce"]

_BEHIND: Final[Mapping[Part, str]] = {"o": "adapter_attn", "mlp_out": "adapter_mlp"}
"""The layer of a block that an adapter follows -> the adapter's name in the published code."""
Places = Mapping[str, tuple[str, int]]
"""Adapter -> (the layer that it follows, its width d)."""


@dataclass(frozen=True, kw_only=True)
class RAdapter(Method):
    """Residual linear adapters behind attention and MLP of both towers, dropped at random and averaged, then merged.

    ``h = z + s (F z + c)`` behind a layer's output z, so that ``(I + s F) W`` is a CLIP of the same shape, and
    rescaling the change by alpha is the point alpha of the path from theta_0 (the paper's 0.5 for classification). The
    paper's formula has F alone (s = 1, c = 0), which is the default; its published module also learns s from 0.1 on
    (``scale``), and can learn c (``bias``) and take a product of two matrices as F (``rank``). Where a gain or a norm
    follows the layer (timm's LayerScale), the adapter comes first. Loss: :func:`mpm_nce` of the images and a caption
    each, drawn from the templates where the data has none. Training starts at theta_0; the logit scale stays CLIP's own
    (the paper's temperature .01 is that of the published models). Towers: open_clip's and timm's transformers, EVA's
    included; a ResNet has nothing that the adapters could follow and is refused.
    """

    name: ClassVar[str] = "r-adapter"
    title: ClassVar[str] = "R-Adapter"
    source: ClassVar[str] = "Kim et al. 2024, arXiv 2408.05749"
    couples: ClassVar[bool] = True

    lr: float = 5e-4
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    weight_decay: float = 0.0
    ema: float | None = 0.999
    drop: float = 0.2
    """Probability that an adapter is left out at a step (the others are multiplied by 1 / (1 - drop))."""
    margin: float = 0.05
    """Added to the similarity of an image and a text that do not belong together."""
    smoothing: float = 0.05
    """Share of the target that goes to the negatives; its value is ours."""
    rank: int | None = None
    """F = U D with D [rank, d] and U [d, rank] = 0 at the start, where rank < d; None: F is one matrix [d, d], 0 at the
    start."""
    scale: float | None = None
    """Where the learnt factor s of every adapter starts; None: s = 1 and is not learnt."""
    bias: bool = False
    """Whether every adapter learns a shift c, which starts at 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop < 1 or not 0 <= self.smoothing < 1:
            raise ConfigError("r-adapter: drop and smoothing need numbers from 0 to below 1.")
        if (self.rank is not None and self.rank < 1) or self.scale == 0:
            raise ConfigError("r-adapter: rank needs at least 1, and scale another number than 0: nothing would move.")

    def prepare(self, task: Task) -> Prepared:
        model, classifier = task.model, text_head(task)
        places = adapters_of(model)
        added = dict(self._start(task, places))
        captions = _captions(task)

        def losses(theta: Theta, batch: Batch) -> Losses:
            kept = torch.rand(len(places), generator=batch.generator("drop")) >= self.drop
            gains = {n: float(k) / (1 - self.drop) for n, k in zip(places, kept, strict=True)}
            whole = merged(theta, places, gains)
            images = model.encode_image(whole, batch.images)
            tokens = batch.tokens
            if tokens is None:
                drawn = torch.randint(len(task.templates), (len(images),), generator=batch.generator("caption"))
                tokens = captions[batch.labels, drawn.to(batch.labels.device)]
            distinct, back = torch.unique(tokens, dim=0, return_inverse=True)  # each caption is encoded once
            texts = model.encode_text(whole, distinct)[back]
            scale = whole["logit_scale"].exp()
            return Losses(mpm_nce(images, texts, batch.labels, scale, self.margin, self.smoothing))

        def logits(theta: Theta, images: Tensor) -> Tensor:
            return classifier.logits(merged(theta, places), images)

        write = of_classifier(classifier)
        stage = Stage(tuple(added), self.recipe(task.n))
        theta = {**task.theta_0, **added}
        return Prepared(
            theta, (stage,), losses, logits,
            lambda t: write(merged(t, places)), lambda t: classifier.frozen(merged(t, places)),
        )  # fmt: skip

    def _start(self, task: Task, places: Places) -> Iterator[tuple[str, Tensor]]:
        """The adapters' tensors by name, in the published code's names: F (or U and D) and c, whose change is 0, and s.

        D is uniform in +-sqrt(6 / (rank + d)), as the published code draws it (Xavier).
        """
        generator = task.generator("r-adapter")
        for name, (layer, width) in places.items():
            if self.bias and f"{layer}.bias" not in task.theta_0:
                raise ConfigError(
                    f"r-adapter: layer '{shown(layer)}' has no bias that a shift behind it could be merged into.\n"
                    "Remedy: --set bias=false."
                )
            like = task.theta_0[f"{layer}.weight"]
            low = self.rank is not None and self.rank < width
            if self.rank is not None and low:
                drawn = torch.rand(self.rank, width, generator=generator) * 2 - 1
                yield f"{name}.d.weight", (drawn * math.sqrt(6 / (self.rank + width))).to(like)
                yield f"{name}.u.weight", like.new_zeros(width, self.rank)
            else:
                yield f"{name}.f.weight", like.new_zeros(width, width)
            if self.bias:
                yield f"{name}.{'u' if low else 'f'}.bias", like.new_zeros(width)
            if self.scale is not None:
                yield f"{name}.s", like.new_full((1,), self.scale)


def adapters_of(model: ClipModel) -> dict[str, tuple[str, int]]:
    """Adapter -> (layer that it follows, its width), for attention and MLP of every block of both towers.

    Raises ConfigError for a model with a tower that has no such blocks (a ResNet), because only the other tower would
    be adapted.
    """
    linears = linears_of(model, tuple(_BEHIND), RAdapter.name)
    return {f"{one.block}.{_BEHIND[one.part]}": (one.layer, one.outputs) for one in linears}


def merged(theta: Mapping[str, Tensor], places: Places, gains: Mapping[str, float] | None = None) -> Theta:
    """``theta`` with every adapter merged, times its gain g (default 1): ``W' = (I + g s F) W``, b' alike, + ``g s c``.

    In torch's [out, in] layout, where a layer gives ``W x + b``; s = 1, c = 0 where there are none; differentiable. A
    theta without adapters stays as it is.
    """
    result = {n: t for n, t in theta.items() if not has_residual(n)}
    for name, (layer, _) in places.items():
        matrices = [theta[f"{name}.{p}.weight"] for p in ("f", "d", "u") if f"{name}.{p}.weight" in theta]
        if not matrices:
            continue
        factor = (1.0 if gains is None else gains[name]) * theta.get(f"{name}.s", 1.0)
        shift = next((theta[n] for p in ("f", "u") if (n := f"{name}.{p}.bias") in theta), 0.0)
        for part, added in (("weight", 0.0), ("bias", shift)):
            old = theta.get(f"{layer}.{part}")
            if old is not None:
                change = old
                for matrix in matrices:
                    change = matrix @ change
                result[f"{layer}.{part}"] = old + factor * (change + added)
    return result


def mpm_nce(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor, margin: float, smoothing: float) -> Tensor:
    """Multi-positive margin NCE, mean of both directions: ``-1/2B sum_ij y_ij (log p_ij + log q_ij)``.

    p, q: softmax over row and column of ``scale * (<f_i, g_j> + margin [i, j negative])``; y_ij = (1 - smoothing) / |P|
    on the positives P of i (the same label, and its own text), smoothing / (B - |P|) on the others. images, texts: unit
    rows [B, D]; labels [B], -1: none. Source: Kim et al. 2024 (2408.05749); the mean over B is ours.
    """
    same = (labels[:, None] == labels) & (labels >= 0)[:, None]
    positive = (same | torch.eye(len(labels), dtype=torch.bool, device=labels.device)).to(images.dtype)
    count, others = positive.sum(1, keepdim=True), (1 - positive).sum(1, keepdim=True)
    share = torch.where(others > 0, smoothing, 0.0).to(images.dtype)
    target = (1 - share) * positive / count + share * (1 - positive) / others.clamp(min=1)
    logits = scale * (images @ texts.T + margin * (1 - positive))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _captions(task: Task) -> Tensor:
    """Token ids [C, T, L] of every class in every template."""
    texts = [t.replace("{}", name) for name in task.classnames for t in task.templates]
    return task.model.tokenize(texts).unflatten(0, (len(task.classnames), -1)).to(task.device)
