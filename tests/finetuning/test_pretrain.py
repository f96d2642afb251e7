"""Laws of contrastive pretraining."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.model import ClipModel
from sharpscope.finetuning.methods.contrastive import contrastive_loss
from sharpscope.finetuning.pretrain import Pretraining, as_tensor, pretrain
from sharpscope.finetuning.trainer import Recipe
from sharpscope.miniworld import world as miniworld

FEW = Pretraining(pool=320, batch_size=32, recipe=Recipe(lr=1e-3, steps=2, warmup=1, betas=(0.9, 0.98)))


def test_loss_by_hand_on_two_pairs() -> None:
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    scale = torch.tensor(2.0)
    a, b, c, d = 1.6, 0.0, 1.92, 1.6  # 2 * images @ texts^T, row by row

    def ce(right: float, wrong: float) -> float:
        return math.log(1 + math.exp(wrong - right))

    expected = (ce(a, b) + ce(d, c)) / 4 + (ce(a, c) + ce(d, b)) / 4
    assert float(contrastive_loss(images, texts, scale)) == pytest.approx(expected, rel=1e-6)


def test_loss_does_not_care_which_side_is_which_nor_about_the_order() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(5, 3, generator=g), dim=1) for _ in range(2))
    scale, p = torch.tensor(7.0), torch.randperm(5, generator=g)
    value = contrastive_loss(x, y, scale)
    torch.testing.assert_close(contrastive_loss(y, x, scale), value)
    torch.testing.assert_close(contrastive_loss(x[p], y[p], scale), value)
    assert float(contrastive_loss(x, x, torch.tensor(100.0))) < 0.01


def test_pixels_are_normalised_as_the_preprocessing_does() -> None:
    from PIL import Image

    model = ClipModel.load("mini")
    images = miniworld.make("clipart", 3, 0).images
    by_file = torch.stack([model.preprocess(Image.fromarray(i)) for i in images])
    torch.testing.assert_close(as_tensor(images, model), by_file, rtol=0, atol=1e-6)
    assert as_tensor(np.zeros((1, 32, 32, 3), np.uint8), model).unique().tolist() == [-1.0]


def test_same_seed_same_bits_and_every_parameter_learns() -> None:
    model = ClipModel.load("mini")
    first, again = pretrain(model, FEW, 1), pretrain(model, FEW, 1)
    fresh = model.init(1)
    assert first.losses == again.losses and all(torch.equal(first.theta[k], again.theta[k]) for k in fresh)
    assert {k for k in fresh if torch.equal(first.theta[k], fresh[k])} <= set(model.buffer_names)
    assert math.log(32) / 2 < first.losses[0] < 2 * math.log(32)  # an untrained model guesses among the batch's pairs


def test_the_logit_scale_stays_within_its_bounds() -> None:
    """As in CLIP, exp(logit_scale) stays in [1, 100], even after a giant step."""
    model = ClipModel.load("mini")
    config = Pretraining(pool=160, batch_size=16, recipe=Recipe(lr=50.0, steps=1, clip_norm=None))
    assert float(pretrain(model, config).theta["logit_scale"]) in (0.0, pytest.approx(math.log(100)))


@pytest.mark.slow
def test_a_few_dozen_steps_begin_to_tell_pairs_apart() -> None:
    model = ClipModel.load("mini")
    config = Pretraining(pool=2000, batch_size=64, recipe=Recipe(lr=1e-3, steps=60, warmup=10, betas=(0.9, 0.98)))
    losses = pretrain(model, config).losses
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.15
