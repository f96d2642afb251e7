"""Which tensors of a method move: those whose names match a regular expression, for ablations and BitFit."""

from __future__ import annotations

import dataclasses
import difflib
import re

import torch

from sharpscope.errors import ConfigError, listing, shown
from sharpscope.finetuning.method import Batch, Prepared, Stage, Task

__all__ = ["only"]

_NEAR = 3


def only(prepared: Prepared, task: Task, pattern: str, method: str) -> Prepared:
    """``prepared``, with only those tensors moving in whose names ``pattern`` is found (``re.search``).

    Any tensor can move that the loss depends on and that the method trains or the finished file holds: ``bias$`` of
    CLIPFit is every bias of both towers. A tensor that the method does not train joins the last stage.

    Raises ConfigError, with near names, where nothing that can move matches, or nothing of one of several stages.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"train_only: '{shown(pattern, 100)}' is no regular expression: {shown(error)}.") from None
    movable = _movable(prepared, task)
    chosen = [name for name in movable if wanted.search(name)]
    if not chosen:
        raise ConfigError(f"{method}: train_only '{shown(pattern, 100)}' {_nothing(prepared, movable, wanted)}")
    trained = {name for stage in prepared.stages for name in stage.trained}
    stages: list[Stage] = []
    for stage in prepared.stages:
        last = stage is prepared.stages[-1]
        names = tuple(n for n in chosen if n in stage.trained or (last and n not in trained))
        if not names:
            raise ConfigError(
                f"{method}: train_only '{shown(pattern, 100)}' matches nothing that moves in the stage '{stage.name}' "
                f"({listing(stage.trained, 5)})."
            )
        stages.append(dataclasses.replace(stage, trained=names))
    return dataclasses.replace(prepared, stages=tuple(stages))


def _nothing(prepared: Prepared, movable: list[str], wanted: re.Pattern[str]) -> str:
    """Why nothing was chosen, in words."""
    still = [name for name in prepared.theta if wanted.search(name)]
    if still:
        return (
            f"matches {listing(still, 3)}, which this method's loss or file does not depend on.\n"
            f"What can move: {listing(movable, 5)}."
        )
    words = re.sub(r"[^\w.]+", "", wanted.pattern.replace("\\", ""))
    near = difflib.get_close_matches(words, movable, n=_NEAR, cutoff=0.0)
    return f"matches no tensor. Near names: {listing(near)}."


def _movable(prepared: Prepared, task: Task) -> list[str]:
    """The names, in the model's order, that the loss of two blank images depends on and that are kept in the end."""
    buffers = set(task.model.buffer_names)
    names = [n for n, t in prepared.theta.items() if t.is_floating_point() and n not in buffers]
    leaves = {n: prepared.theta[n].detach().clone().requires_grad_() for n in names}
    images = torch.zeros(2, 3, *task.model.image_size, device=task.device)
    labels = torch.tensor([0, 1 % len(task.classnames)], device=task.device)
    loss = prepared.losses({**prepared.theta, **leaves}, Batch(images, labels)).total
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    kept = {*prepared.export(prepared.theta).tensors, *(n for s in prepared.stages for n in s.trained)}
    return [n for n, g in zip(names, gradients, strict=True) if g is not None and n in kept]
