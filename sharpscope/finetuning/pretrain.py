"""Contrastive pretraining of a small CLIP on the embedded world: where its zero-shot checkpoint comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpscope.clip.model import ClipModel
from sharpscope.clip.progress import Shown
from sharpscope.finetuning.methods.contrastive import contrastive_loss
from sharpscope.finetuning.trainer import Recipe, Trained, train
from sharpscope.miniworld import world as miniworld
from sharpscope.weights.theta import Theta

__all__ = ["Pretraining", "as_tensor", "pretrain"]

_RECIPE = Recipe(lr=1e-3, steps=1900, warmup=40, betas=(0.9, 0.98), schedule="product", decay="matrices")
_MIX = {"photo": 0.35, "clipart": 0.2, "painting": 0.15, "sketch": 0.12, "quickdraw": 0.08, "neon": 0.10}


@dataclass(frozen=True)
class Pretraining:
    """The shipped zero-shot model's recipe."""

    pool: int = 24_000
    """Distinct images."""
    mix: Mapping[str, float] = field(default_factory=lambda: dict(_MIX))
    """Share of each style, in the pool and among the batches."""
    batch_size: int = 128
    noise: float = 0.1
    """Share of captions that do not describe the object."""
    confuse: float = 0.45
    """Share of captions that name the look-alike class."""
    recipe: Recipe = _RECIPE


def as_tensor(images: np.ndarray[Any, np.dtype[np.uint8]], model: ClipModel) -> Tensor:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W], normalised by the model's mean and std."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.mean, model.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


def pretrain(
    model: ClipModel,
    config: Pretraining | None = None,
    seed: int = 0,
    start: Mapping[str, Tensor] | None = None,
    progress: Shown = False,
) -> Trained:
    """Train both towers on captioned images, from scratch or on from ``start``; a function of its arguments.

    Every batch comes from ONE style. In mixed batches the style tells most pairs apart, and the class is not learned:
    accuracy stays near chance.
    """
    config = config or Pretraining()
    shares = np.array(list(config.mix.values())) / sum(config.mix.values())
    images, words, spans, first = [], [], [], 0
    for style, share in zip(config.mix, shares, strict=True):
        sample = miniworld.make(style, int(config.pool * share), seed + 1)
        images.append(sample.images)
        words += miniworld.captions(sample.labels, style, sample.colours, sample.rng, config.noise, config.confuse)
        spans.append((first, len(sample.images)))
        first += len(sample.images)
    pixels = as_tensor(np.concatenate(images), model)
    unique, inverse = np.unique(words, return_inverse=True)
    tokens, caption = model.tokenize([str(text) for text in unique]), torch.from_numpy(inverse)
    weights, generator = torch.from_numpy(shares), torch.Generator().manual_seed(seed)
    # The shuffle and the uniform number below are not used: they are part of the stream from which the shipped model's
    # batches were drawn.
    torch.randperm(len(pixels), generator=generator)

    def loss(theta: Theta, step: int) -> Tensor:
        torch.rand((), generator=generator)
        start, size = spans[int(torch.multinomial(weights, 1, generator=generator))]
        batch = start + torch.randint(0, size, (config.batch_size,), generator=generator)
        distinct, back = torch.unique(caption[batch], return_inverse=True)  # each caption is encoded once
        texts = model.encode_text(theta, tokens[distinct])[back]
        return contrastive_loss(model.encode_image(theta, pixels[batch]), texts, theta["logit_scale"].exp())

    def constrain(theta: Theta) -> None:
        theta["logit_scale"].clamp_(0, math.log(100))

    theta = model.init(seed) if start is None else start
    return train(
        theta,
        model.parameter_names,
        loss,
        config.recipe,
        constrain=constrain,
        description="pretraining",
        progress=progress,
    )
