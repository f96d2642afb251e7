"""Does what was learnt on one backbone survive its update? The same prompts, or the same change, on a better CLIP."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sharpscope.clip.head import Classifier
from sharpscope.finetune.prompts import CTX, Prompts
from sharpscope.finetune.trainer import Theta

__all__ = ["transplanted"]


@torch.no_grad()
def transplanted(
    classifier: Classifier,
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor],
    upgraded: Mapping[str, Tensor],
    prompts: Mapping[str, Tensor] | None = None,
) -> tuple[Theta, Theta]:
    """(zero-shot, adapted) on the backbone ``upgraded``: the ends of the path that the pair has there.

    Without ``prompts`` the task vector is added, ``upgraded + (theta_1 - theta_0)``, head included, wherever the shapes
    agree; buffers stay the upgraded ones. With the ``prompts`` of a prompt method (``weights.prompts.read_prompts``)
    the class vectors are made anew: the same module on the upgraded text tower. ``theta_0``, ``theta_1``: with the head
    that ``classifier`` reads. Source: Wang et al. 2024 (2412.20895) judge fine-tuning modules so; for deltas ours.
    """
    start = classifier.attach(upgraded)
    if prompts:
        learnt = Prompts.of(classifier.model, classifier.classnames, prompts[CTX].shape[-2])
        at = upgraded[classifier.model.text_names[0]].device
        module = {n: t.to(at) for n, t in prompts.items()}
        return start, {**start, "head.weight": learnt.class_vectors(classifier.model, {**upgraded, **module})}
    adapted = dict(start)
    for name in (*classifier.model.parameter_names, "head.weight", "head.bias"):
        if name in start and name in theta_1 and start[name].shape == theta_1[name].shape:
            adapted[name] = start[name] + (theta_1[name] - theta_0[name]).to(start[name])
    return start, adapted
