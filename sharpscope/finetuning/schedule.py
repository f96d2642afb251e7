"""The learning rate of every step: warm-up and cosine as each paper's released code computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from sharpscope.finetuning.trainer import Recipe

__all__ = ["SCHEDULES", "Schedule", "learning_rate"]

Schedule = Literal["linear-cosine", "zero-linear-cosine", "epoch-cosine", "floored-cosine", "product", "constant"]
"""How the learning rate moves; see :func:`learning_rate`."""

SCHEDULES: Final[tuple[str, ...]] = get_args(Schedule)
_FLOOR: Final = 1e-6
"""The rate at which ``floored-cosine`` ends."""


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate at ``step`` = t in 0 ... T - 1, of T steps in all with w steps of warm-up and the peak lr.

    ==================  ==================  ====================================  =================================
    schedule            warm-up, t < w      afterwards                            whose
    ==================  ==================  ====================================  =================================
    linear-cosine       lr (t + 1) / w      lr (1 + cos(pi (t - w) / (T - w)))/2  WiSE-FT, FLYP, StarFT
    zero-linear-cosine  lr t / w            the same; w and T - w rounded down    Lipsum-FT (first step at rate 0)
    epoch-cosine        lr (e + 1) / w_e    lr (1 + cos(pi (e - w_e) / E)) / 2    CoOp, KgCoOp, CLIPFit (Dassl)
    floored-cosine      lr (t + 1) / w      linear-cosine's c in [0, 1] as        CLIP-LoRA
                                            m + (lr - m) c, m = 1e-6 (or lr)
    product             lr (t + 1) / w      lr (1 + cos(pi t / T)) / 2, which     the embedded world's checkpoints
                                            multiplies the warm-up as well
    constant            lr (t + 1) / w      lr                                    TPGM's radii
    ==================  ==================  ====================================  =================================

    ``epoch-cosine`` counts in epochs: e of E, w_e of them warm-up; the rate is the same for all steps of an epoch, and
    the cosine starts after the warm-up but is as long as the whole training, so it ends above 0. With ``warmup_lr`` the
    rate is that during the warm-up of every schedule, and the warm-up no longer multiplies the cosine of ``product``.
    Sources: the repositories and lines that ``recipes.RECIPES`` names.
    """
    return _CURVES[recipe.schedule](recipe, step)


def _cosine(share: float) -> float:
    """(1 + cos(pi share)) / 2 at ``share`` of the way, at most 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _linear_cosine(recipe: Recipe, step: int) -> float:
    if step < recipe.warmup:
        return _warm(recipe, (step + 1) / recipe.warmup)
    return recipe.lr * _cosine((step - recipe.warmup) / (recipe.steps - recipe.warmup))


def _zero_linear_cosine(recipe: Recipe, step: int) -> float:
    first = math.floor(recipe.warmup)
    if step < first:
        return _warm(recipe, step / first)
    return recipe.lr * _cosine((step - first) / max(1, math.floor(recipe.steps - recipe.warmup)))


def _epoch_cosine(recipe: Recipe, step: int) -> float:
    epoch, first = step // recipe.per_epoch, math.ceil(recipe.warmup / recipe.per_epoch)
    if epoch < first:
        return _warm(recipe, (epoch + 1) / first)
    return recipe.lr * _cosine((epoch - first) / recipe.num_epochs)


def _floored_cosine(recipe: Recipe, step: int) -> float:
    rate = _linear_cosine(recipe, step)
    if step < recipe.warmup:
        return rate
    floor = min(_FLOOR, recipe.lr)
    return floor + (1 - floor / recipe.lr) * rate


def _product(recipe: Recipe, step: int) -> float:
    if recipe.warmup_lr is not None and step < recipe.warmup:
        return recipe.warmup_lr
    # max(1, ...): with less than one step of warm-up the first step already has the full rate
    ramp = min(1.0, (step + 1) / max(1.0, recipe.warmup)) if recipe.warmup_lr is None else 1.0
    return recipe.lr * ramp * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _constant(recipe: Recipe, step: int) -> float:
    return _warm(recipe, (step + 1) / recipe.warmup) if step < recipe.warmup else recipe.lr


def _warm(recipe: Recipe, share: float) -> float:
    return recipe.lr * min(1.0, share) if recipe.warmup_lr is None else recipe.warmup_lr


_CURVES: Final[Mapping[Schedule, Callable[[Recipe, int], float]]] = {
    "linear-cosine": _linear_cosine,
    "zero-linear-cosine": _zero_linear_cosine,
    "epoch-cosine": _epoch_cosine,
    "floored-cosine": _floored_cosine,
    "product": _product,
    "constant": _constant,
}
