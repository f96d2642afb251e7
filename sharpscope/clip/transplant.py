"""Learnt prompts and task vectors on a backbone: either the one they were trained on, or an upgraded one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.prompts import prompted_vectors
from sharpscope.errors import PairMismatch, shown
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, tower_of
from sharpscope.vocabulary import ClassPosition
from sharpscope.weights.checkpoint import Checkpoint
from sharpscope.weights.files.locations import locate
from sharpscope.weights.theta import Theta, cast, on_device

__all__ = ["check_carried", "prompted", "reader_on", "transplanted"]


@torch.no_grad()
def prompted(
    model: ClipModel,
    base: Checkpoint,
    prompts: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    classnames: Sequence[str],
    position: ClassPosition | None = None,
) -> Checkpoint:
    """``base`` with the head that ``prompts`` give for ``classnames``: the model of a file of prompts (CoOp, Dassl).

    ``path``: the file of the prompts, whose sha256 becomes that of the result. ``position``: where the class name
    stands in each prompt; None: behind the context, which is then noted as assumed. Raises PairMismatch as
    ``prompted_vectors`` does.
    """
    theta = {n: cast(t, torch.float32) for n, t in base.tensors.items()}
    vectors = prompted_vectors(model, theta, prompts, classnames, str(path), position)
    head = {"scale_baked": False, "normalize": True, "classnames": list(classnames), "told_by": "prompts"}
    head |= {"class_position": position}
    facts = {**base.facts, "head": head, "container": "prompts", "metadata": {}}
    with open(locate(path).path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return Checkpoint({**base.tensors, HEAD_WEIGHT: vectors}, facts, digest, str(path))


@torch.no_grad()
def transplanted(
    classifier: Classifier,
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor],
    upgraded: Mapping[str, Tensor],
    prompts: Mapping[str, Tensor] | None = None,
    position: ClassPosition | None = None,
) -> tuple[Theta, Theta]:
    """(zero-shot, adapted) weights on the backbone ``upgraded``, the two ends of the pair's path there.

    Without ``prompts`` the task vector is added, ``upgraded + (theta_1 - theta_0)``, including the head, wherever the
    shapes agree; buffers are those of ``upgraded``. With the ``prompts`` of a prompt method
    (``weights.prompts.read_prompts``), the class vectors are computed anew from the same prompts on the upgraded text
    tower, with the class name at ``position`` (None: behind the context). ``theta_0`` and ``theta_1`` have to contain
    the head that ``classifier`` reads. Source: Wang et al. 2024 (2412.20895), who evaluate fine-tuning modules in this
    way; its use for task vectors is ours.
    """
    start = classifier.attach(upgraded)
    if prompts:
        module = on_device(prompts, upgraded[classifier.model.text_names[0]].device)
        vectors = prompted_vectors(classifier.model, upgraded, module, classifier.classnames, "prompts", position)
        return start, {**start, HEAD_WEIGHT: vectors}
    adapted = dict(start)
    for name in (*classifier.model.parameter_names, HEAD_WEIGHT, HEAD_BIAS):
        if name in start and name in theta_1 and start[name].shape == theta_1[name].shape:
            same = torch.equal(start[name], theta_0[name].to(start[name]))  # then theta_1 itself, without rounding
            moved = theta_1[name] if same else start[name] + (theta_1[name] - theta_0[name]).to(start[name])
            adapted[name] = moved.to(start[name])
    return start, adapted


def reader_on(model: ClipModel, classifier: Classifier) -> Classifier:
    """``classifier`` with the same classes and prompts on another architecture."""
    return Classifier(
        model,
        classifier.mode,
        classifier.classnames,
        classifier.templates,
        scale_baked=classifier.scale_baked,
        normalize=classifier.normalize,
        bias=classifier.bias,
    )


def check_carried(old: ClipModel, new: Classifier, moving: Sequence[str], theta_1: Theta, upgraded: Theta) -> None:
    """Raise PairMismatch unless the change of a pair on ``old`` has a place on the architecture of ``new``.

    A head needs class vectors of the same length, a change of a tower needs a tower with the same tensors. ``moving``:
    the names that change; ``upgraded``: the weights of the new architecture.
    """
    if HEAD_WEIGHT in moving:
        with torch.no_grad():
            width = new.attach(upgraded)[HEAD_WEIGHT].shape[1]
        if width != theta_1[HEAD_WEIGHT].shape[1]:
            raise PairMismatch(
                f"upgraded: the fine-tuned head has class vectors with {theta_1[HEAD_WEIGHT].shape[1]} entries, and "
                f"'{shown(new.model.name)}' has image features with {width}.\n"
                "Remedy: learnt prompts (CoOp, KgCoOp, ContCoOp), which need a text tower of the same width only."
            )
    for tower in ("image", "text"):
        mine, other = ({n: tuple(s) for n, s in m.shapes.items() if tower_of(n) == tower} for m in (old, new.model))
        changed = [n for n in moving if tower_of(n) == tower]
        odd = [n for n in mine if mine[n] != other.get(n)] or [n for n in other if n not in mine]
        if changed and odd:
            here, there = (list(shapes[odd[0]]) if odd[0] in shapes else "missing" for shapes in (mine, other))
            raise PairMismatch(
                f"upgraded: the fine-tuning moves the {tower} tower ({shown(changed[0], 60)} ...), which "
                f"'{shown(new.model.name)}' has in another form: {shown(odd[0], 60)} is {here} here and {there} there."
                "\nRemedy: a method that trains prompts or a head, or an upgrade of the same architecture."
            )
