"""Learning rates: the arrays of plain restatements of what each paper's released code computes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sharpscope.errors import ConfigError
from sharpscope.finetuning.recipes import published
from sharpscope.finetuning.registry import METHODS
from sharpscope.finetuning.schedule import SCHEDULES, learning_rate
from sharpscope.finetuning.trainer import Recipe

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def rates(recipe: Recipe) -> np.ndarray:
    return np.array([learning_rate(recipe, step) for step in range(recipe.steps)]) / recipe.lr


def of(recipe: str, n: int, **changes: Any) -> Recipe:
    """The stepping of a published recipe on ``n`` examples."""
    row = published(recipe)
    return METHODS[row.method](**row.settings).recipe(n, **changes)


@pytest.mark.parametrize("name", ["wise-ft-imagenet", "linear-probe-imagenet", "flyp-imagenet", "starft-imagenet"])
@pytest.mark.parametrize("n", [512 * 100, 512 * 1000])
def test_wise_ft_flyp_and_starft_rise_to_the_rate_and_fall_over_what_remains(name: str, n: int) -> None:
    """mlfoundations/wise-ft@58b7a4b src/models/utils.py:15-32 (FLYP's and StarFT's utils.py have the same lines)."""
    recipe = of(name, n)
    warm, steps = 500, recipe.steps
    rise = np.arange(1, warm + 1) / warm
    fall = (1 + np.cos(np.pi * np.arange(steps - warm) / (steps - warm))) / 2
    expected = np.concatenate([rise, fall])
    np.testing.assert_allclose(rates(recipe), expected, **EXACT)
    assert rates(recipe).max() == 1 and rates(recipe).mean() == pytest.approx(0.5, abs=2 / warm)


@pytest.mark.parametrize("steps", [50_000, 5000, 640, 645, 33])
def test_lipsum_ft_starts_at_0_and_both_parts_are_whole(steps: int) -> None:
    """cs-giung/lipsum-ft@1331873 scripts/Lipsum-FT.py:235-246, by optax's definitions of the two schedules."""
    warm, decay = math.floor(0.1 * steps), math.floor(0.9 * steps)
    t = np.arange(steps)
    expected = np.where(
        t < warm, t / max(1, warm), (1 + np.cos(np.pi * np.minimum(np.maximum(t - warm, 0), decay) / decay)) / 2
    )
    np.testing.assert_allclose(rates(of("lipsum-imagenet", 256 * 10, steps=steps)), expected, **EXACT)


@pytest.mark.parametrize(
    ("name", "n", "batch", "epochs"),
    [
        ("coop-16shots", 1600, 32, 200), ("coop-1shots", 100, 32, 50), ("kgcoop", 800, 128, 100),
        ("clipfit-base-to-new", 800, 32, 100), ("clipfit-few-shot-imagenet", 16_000, 32, 10),
    ],
)  # fmt: skip
def test_coop_kgcoop_and_clipfit_wait_one_epoch_and_fall_after_each(name: str, n: int, batch: int, epochs: int) -> None:
    """KaiyangZhou/Dassl.pytorch@c61a1b5 dassl/optim/lr_scheduler.py:35-54, 128-142, stepped once an epoch.

    Its ``WARMUP_RECOUNT`` starts the cosine anew after the warm-up, with the whole number of epochs as its length.
    """
    recipe, per_epoch = of(name, n), n // batch
    each = [1e-5 / 2e-3] + [(1 + math.cos(math.pi * e / epochs)) / 2 for e in range(epochs - 1)]
    np.testing.assert_allclose(rates(recipe), np.repeat(each, per_epoch), **EXACT)


def test_dassls_own_classes_give_these_rates() -> None:
    """The same through torch: CosineAnnealingLR behind one epoch at a constant rate."""
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10.0)
    seen = [1e-5]
    for _ in range(9):
        seen.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    recipe = of("clipfit-base-to-new", 96, epochs=10)
    np.testing.assert_allclose(rates(recipe)[::3] * 2e-3, seen, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("lr", "steps"), [(2e-4, 500), (3e-6, 7)])
def test_clip_loras_rate_is_torchs_annealing_down_to_a_millionth(lr: float, steps: int) -> None:
    """MaxZanella/CLIP-LoRA@358f0d7 lora.py:76; at and below 1e-6 the rate stays where it is."""
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    seen = []
    for _ in range(steps):
        seen.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    recipe = of("cliplora-1shots", 32, lr=lr, steps=steps)
    np.testing.assert_allclose(rates(recipe) * lr, seen, rtol=1e-10)
    low = of("cliplora-1shots", 32, lr=1e-7, steps=steps)
    np.testing.assert_allclose(rates(low), 1)


def test_a_warm_up_in_epochs_is_one_epoch_whatever_their_number() -> None:
    for epochs in (10, 100):
        assert of("clipfit-base-to-new", 3200, epochs=epochs).warmup == 100
    with pytest.raises(ConfigError, match="warmup 0.1 and warmup_epochs 1 exclude each other"):
        of("clipfit-base-to-new", 3200, warmup=0.1)


def test_a_constant_rate_is_constant_after_its_warm_up() -> None:
    recipe = Recipe(lr=0.4, steps=6, warmup=3, schedule="constant")
    np.testing.assert_allclose(rates(recipe), [1 / 3, 2 / 3, 1, 1, 1, 1], **EXACT)
    assert (rates(Recipe(lr=0.4, steps=6, schedule="constant")) == 1).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_stays_between_0_and_the_rate(schedule: Any) -> None:
    for steps, warmup, per_epoch in ((1, 0.0, 1), (1, 5.0, 1), (20, 0.3, 3), (20, 7.5, 4), (20, 40.0, 7), (7, 7.0, 7)):
        curve = rates(Recipe(lr=0.4, steps=steps, warmup=warmup, per_epoch=per_epoch, schedule=schedule))
        assert np.isfinite(curve).all() and curve.min() >= 0 and curve.max() <= 1 + 1e-12
        flat = rates(Recipe(lr=0.4, steps=steps, warmup=warmup, warmup_lr=0.1, per_epoch=per_epoch, schedule=schedule))
        assert flat[0] == pytest.approx(0.25 if warmup >= 1 else flat[0])
    with pytest.raises(ConfigError, match=f"schedule '{schedule}x' is none of"):
        Recipe(lr=1, steps=1, schedule=f"{schedule}x")  # type: ignore[arg-type]
