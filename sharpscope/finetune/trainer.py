"""The one training loop: named leaf tensors, a loss of the step, AdamW with warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from sharpscope.errors import ConfigError, NumericalError, shown

__all__ = ["Loss", "Recipe", "Theta", "Trained", "epochs", "learning_rate", "train"]

Theta = dict[str, Tensor]
Loss = Callable[[Theta, int], Tensor]
"""(theta, step) -> scalar loss of that step's batch, differentiable in the trained tensors."""


@dataclass(frozen=True)
class Recipe:
    """How to step: AdamW (Loshchilov & Hutter 2019, 1711.05101), linear warm-up, cosine to 0, clipped gradient norm."""

    lr: float
    """Peak learning rate, > 0."""
    steps: int
    """Optimizer steps in all, >= 0."""
    warmup: float = 0.0
    """Steps of linear warm-up; a fraction of a step is allowed (1.5 % of 640 steps)."""
    weight_decay: float = 0.1
    """On tensors of two and more dimensions only: gains, biases and the logit scale do not decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None: not clipped."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(f"recipe: lr needs a positive number, got {self.lr}.")
        if self.steps < 0 or self.warmup < 0 or self.weight_decay < 0:
            raise ConfigError("recipe: steps, warmup and weight_decay cannot be negative.")


@dataclass(frozen=True)
class Trained:
    """``theta`` after training (untrained tensors are the very objects that came in), and the loss of every step."""

    theta: Theta
    losses: tuple[float, ...]


def learning_rate(recipe: Recipe, step: int) -> float:
    """``lr * min(1, (step + 1) / warmup) * (1 + cos(pi * step / steps)) / 2`` at ``step`` = 0 ... steps - 1."""
    # not (step + 1) / warmup alone: with less than one step of warm-up the first step has the full rate
    ramp = min(1.0, (step + 1) / max(1.0, recipe.warmup))
    return recipe.lr * ramp * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def epochs(n: int, batch_size: int, count: int, seed: int) -> Iterator[Tensor]:
    """Indices of each step's batch, ``count`` times over ``n`` examples, each time newly shuffled, ragged ends dropped.

    Raises ConfigError where there is not one whole batch.
    """
    if not 1 <= batch_size <= n:
        raise ConfigError(f"finetune: batch size {batch_size} does not fit {n} training examples.")
    return _epochs(n, batch_size, count, torch.Generator().manual_seed(seed))


def _epochs(n: int, batch_size: int, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(count):
        yield from torch.randperm(n, generator=generator)[: n // batch_size * batch_size].view(-1, batch_size)


def train(
    theta: Mapping[str, Tensor],
    trained: Sequence[str],
    loss: Loss,
    recipe: Recipe,
    *,
    constrain: Callable[[Theta], None] | None = None,
    description: str | None = None,
) -> Trained:
    """Minimise ``loss`` over the tensors named in ``trained``, starting from ``theta``, which is left as it is.

    loss       called once a step with theta, the trained tensors as leaves; draws its own batches (see ``epochs``)
    constrain  called after every step, without gradients, to put the leaves back where they have to be, in place
    description  label of the progress bar (on a terminal only); None: no bar

    The same theta, loss and recipe give the same bits on the same machine and thread count.
    Raises ConfigError for a name that theta lacks, NumericalError when the loss is no longer finite.
    """
    unknown = [name for name in trained if name not in theta]
    if unknown or not trained:
        raise ConfigError(
            f"finetune: nothing called {', '.join(map(shown, unknown[:5])) or '(nothing)'} to train in theta."
        )
    leaves = {name: theta[name].detach().clone().requires_grad_() for name in trained}
    current = {**theta, **leaves}
    optimizer = _adamw(leaves, recipe)
    losses: list[float] = []
    bar = tqdm(range(recipe.steps), desc=description, disable=None if description else True)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.zero_grad()
        value = loss(current, step)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise NumericalError(
                f"finetune: loss {losses[-1]} at step {step} of {recipe.steps}; lower lr ({recipe.lr:g})."
            )
        value.backward()
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(leaves.values()), recipe.clip_norm)
        optimizer.step()
        if constrain is not None:
            with torch.no_grad():
                constrain(current)
    return Trained({**theta, **{name: leaf.detach() for name, leaf in leaves.items()}}, tuple(losses))


def _adamw(leaves: Theta, recipe: Recipe) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in leaves.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in leaves.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr, betas=recipe.betas)
