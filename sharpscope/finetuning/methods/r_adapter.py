"""R-Adapter: linear adapters inside both towers, merged into the weights they follow (Kim et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError, shown
from sharpscope.finetuning.method import Batch, Losses, Method, Prepared, Stage, Task, of_classifier, text_head
from sharpscope.layers import tower_of
from sharpscope.weights.theta import Theta

__all__ = ["RAdapter", "adapters_of", "merged", "mpm_nce"]

_ADAPTED: Final = re.compile(r"(.*resblocks\.\d+)\.(attn\.out_proj|mlp\.c_proj)\.weight")
_KIND: Final = {"attn.out_proj": "attn", "mlp.c_proj": "mlp"}


@dataclass(frozen=True, kw_only=True)
class RAdapter(Method):
    """Residual linear adapters behind attention and MLP of both towers (open_clip's ViTs), dropped and averaged.

    ``h(X) = X W + X``, so that ``W_rep = W_org (W + I)`` is a CLIP of the same shape, and rescaling W by alpha is the
    point alpha of the path from theta_0 (the paper's 0.5 for classification). Loss: :func:`mpm_nce` of the images and a
    caption each, drawn from the templates where the data has none. The adapters start at 0; the logit scale stays
    CLIP's own (the paper's temperature .01 is that of the published models). The published code also learns a scale and
    a bias for each adapter, which the paper's formula lacks: they are left out; so are its low-rank adapters. A model
    with another kind of tower (ResNet, timm, EVA) is refused.
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

    def prepare(self, task: Task) -> Prepared:
        if not 0 <= self.drop < 1 or not 0 <= self.smoothing < 1:
            raise ConfigError("r-adapter: drop and smoothing need numbers from 0 to below 1.")
        model, classifier = task.model, text_head(task)
        places = adapters_of(model)
        added = {n: torch.zeros(d, d, device=task.device) for n, (_, d) in places.items()}
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
        return Prepared(theta, (stage,), losses, logits, lambda t: write(merged(t, places)))


def adapters_of(model: ClipModel) -> dict[str, tuple[str, int]]:
    """Adapter -> (layer that it follows, its width), for attention and MLP of every residual block of both towers.

    Raises ConfigError for a model with a tower that has no such blocks (timm, EVA, ResNet), because only the other
    tower would be adapted.
    """
    found = [(m, model.shapes[n][0]) for n in model.parameter_names if (m := _ADAPTED.fullmatch(n))]
    adapted = {tower_of(m[0]) for m, _ in found}
    if lacking := [tower for tower in ("image", "text") if tower not in adapted]:
        raise ConfigError(
            f"r-adapter: the {' and the '.join(lacking)} tower of model '{shown(model.name)}' has none of the "
            "residual blocks of open_clip that the adapters follow, so it would not be adapted.\n"
            "Remedy: a ViT of open_clip's own (such as ViT-B-32), or another method."
        )
    return {f"{m[1]}.adapter_{_KIND[m[2]]}.weight": (f"{m[1]}.{m[2]}", width) for m, width in found}


def merged(
    theta: Mapping[str, Tensor], places: Mapping[str, tuple[str, int]], gains: Mapping[str, float] | None = None
) -> Theta:
    """``theta`` with every adapter W merged, times its gain (default 1): ``W' = (I + W) W_0``, ``b' = (I + W) b_0``.

    In torch's [out, in] layout, where a layer gives ``W_0 x + b_0`` and the adapter ``z + W z``; differentiable.
    """
    result = {n: t for n, t in theta.items() if n not in places}
    for name, (layer, _) in places.items():
        for part in ("weight", "bias"):
            old = theta[f"{layer}.{part}"]
            result[f"{layer}.{part}"] = old + (1.0 if gains is None else gains[name]) * theta[name] @ old
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
