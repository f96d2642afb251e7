"""R@k of checkpoints on sets of captions: the part of ``evaluate`` that needs both towers and no head."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from sharpscope.clip.accuracy import accuracy_rows
from sharpscope.clip.datasets.captions import Captions
from sharpscope.clip.datasets.spec import load_captions
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import check_activation
from sharpscope.clip.progress import Shown, bars_for
from sharpscope.clip.prompts import holds_prompts
from sharpscope.clip.retrieval import retrieved
from sharpscope.errors import ConfigError, PairMismatch, shown
from sharpscope.layers import tower_of
from sharpscope.scores import RETRIEVAL
from sharpscope.weights import Checkpoint
from sharpscope.weights.compare import check_model
from sharpscope.weights.theta import on_device

__all__ = ["BOTH_TOWERS", "caption_rows", "check_towers_alone"]

BOTH_TOWERS: Final = {"head": "text", "classnames": ("image",)}
"""Options of ``load_pair`` with which every point of a path has its own image tower and its own text tower: those of a
pair whose head would be made from text at every point, of one class that is never scored."""


def check_towers_alone(head: str, *unread: object) -> None:
    """Raise ConfigError where a head is chosen (``unread``: what describes one) and no data set has classes."""
    if head != "auto" or any(x is not None for x in unread):
        raise ConfigError(
            "head, head_file, classnames, class_position: change nothing, because all data sets have captions, which "
            "the text tower reads.\nRemedy: leave them out."
        )


def caption_rows(
    points: Iterable[tuple[str, str, float, Checkpoint]],
    specs: Sequence[str],
    clip: ClipModel,
    where: torch.device,
    batch_size: int,
    reading: Mapping[str, Any],
    stating: Mapping[str, Any],
    progress: Shown = False,
) -> list[dict[str, Any]]:
    """The rows of every metric of captions (``scores.RETRIEVAL``), for all ``points`` on all ``specs``.

    ``points``: (label, variant, alpha, weights). ``reading``: options of ``load_captions``; ``stating``: those of
    ``accuracy_rows``. Raises PairMismatch where the weights lack a part of a tower.
    """
    sets = {spec: load_captions(spec, model=clip, **reading) for spec in specs}
    metrics, rows = tuple(RETRIEVAL), []
    for label, variant, alpha, weights in points:
        check_activation(clip, (weights,))
        _check_towers(clip, weights)
        theta = on_device(weights.tensors, where, torch.float32)
        for spec, captions in sets.items():
            with contextlib.closing(bars_for(progress)(total=len(captions.images), desc=f"{label} {spec}")) as bar:
                found = retrieved(clip, theta, captions, batch_size, progress=bar.update)
            note = _note(captions, int(found.captions.sum()), reading["limit"], weights)
            rows += accuracy_rows(
                label, alpha, variant, {spec: found}, {spec: "test"}, {spec: metrics}, notes={spec: note}, **stating
            )
    return rows


def _check_towers(clip: ClipModel, weights: Checkpoint) -> None:
    body = {k: v for k, v in weights.tensors.items() if tower_of(k) != "head"}
    if missing := [n for n in clip.text_names if n not in body]:
        raise PairMismatch(
            f"{shown(weights.source, 300)}: R@k needs the text tower, and the file lacks {shown(missing[0])}.\n"
            "Remedy: --base ZEROSHOT --paths linear --alphas 1 takes the zero-shot model's where the file has none."
        )
    check_model(body, clip.shapes, clip.name, source=shown(weights.source, 300), require=("image", "text"))


def _note(captions: Captions, count: int, limit: int | None, weights: Checkpoint) -> str:
    said = [f"{count} captions", *captions.said]
    if limit is not None and captions.images.listed == limit:
        said.append("searched among the images of --limit alone, which makes R@k larger")
    if holds_prompts(weights):
        said.append("the learnt prompts play no part, because captions are whole texts")
    return "; ".join(said)
