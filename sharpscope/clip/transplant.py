"""Learnt prompts and task vectors on a backbone: the one they were made on, or its update (do they survive it?)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.prompts import CTX, Prompts
from sharpscope.errors import PairMismatch, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT
from sharpscope.weights.checkpoint import Checkpoint
from sharpscope.weights.files.sources import locate
from sharpscope.weights.theta import Theta, cast, on_device

__all__ = ["prompted", "transplanted"]


@torch.no_grad()
def prompted(
    model: ClipModel,
    base: Checkpoint,
    prompts: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    classnames: Sequence[str],
) -> Checkpoint:
    """``base`` with the head that ``prompts`` make of ``classnames``: what a file of prompts alone means (CoOp, Dassl).

    ``path``: the file, whose sha256 is that of the result. Raises PairMismatch where the context has not the width of
    the text tower.
    """
    theta = {n: cast(t, torch.float32) for n, t in base.tensors.items()}
    width = model.embed_tokens(theta, torch.zeros(1, 1, dtype=torch.long)).shape[-1]
    if prompts[CTX].shape[-1] != width:
        raise PairMismatch(
            f"{shown(path, 200)}: the context vectors have {prompts[CTX].shape[-1]} entries, but the text tower of "
            f"'{shown(model.name)}' needs {width}."
        )
    learnt = Prompts.of(model, classnames, prompts[CTX].shape[-2])
    head = {"scale_baked": False, "normalize": True, "classnames": list(classnames), "told_by": "prompts"}
    facts = {**base.facts, "head": head, "container": "prompts", "metadata": {}}
    with open(locate(path).path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    vectors = learnt.class_vectors(model, {**theta, **prompts})
    return Checkpoint({**base.tensors, HEAD_WEIGHT: vectors}, facts, digest, str(path))


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
        module = on_device(prompts, at)
        return start, {**start, HEAD_WEIGHT: learnt.class_vectors(classifier.model, {**upgraded, **module})}
    adapted = dict(start)
    for name in (*classifier.model.parameter_names, HEAD_WEIGHT, HEAD_BIAS):
        if name in start and name in theta_1 and start[name].shape == theta_1[name].shape:
            adapted[name] = start[name] + (theta_1[name] - theta_0[name]).to(start[name])
    return start, adapted
