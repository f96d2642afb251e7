"""TPGM on top of a finished fine-tuning: the projection radii of a given file (Tian et al. 2023, 2303.10720)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from sharpscope.clip.head import default_templates
from sharpscope.clip.pair import LoadedPair, load_pair, resolve_checkpoint
from sharpscope.errors import ConfigError, shown
from sharpscope.finetuning.method import (
    Batch,
    Exported,
    Losses,
    Method,
    Prepared,
    Stage,
    Task,
    cross_entropy,
    of_classifier,
)
from sharpscope.finetuning.methods.tpgm import RADII, Balls, Norm
from sharpscope.finetuning.schedule import Schedule
from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.checkpoint import Checkpoint, checkpoint_of
from sharpscope.weights.theta import Theta, on_device

__all__ = ["TPGMProject"]


@dataclass(frozen=True, kw_only=True)
class TPGMProject(Method):
    """A radius per tensor around theta_0, learnt for the fine-tuned ``file`` of any method, to project it onto.

    TPGM's second stage alone: the weights of ``file`` are fixed, the radii of the tensors that it moved are learnt on
    the training data, which should be images that the file was not trained on: ``--train SET@val``. The head is the one
    that reads the pair (``clip.pair.load_pair``). The authors apply TPGM to a CLIP ViT in this way, to a plainly
    fine-tuned one; Nam et al. 2024 (arXiv 2404.00860) apply it to Lipsum-FT's. ``lr``, ``steps`` and ``batch_size`` are
    those of the radii.
    """

    name: ClassVar[str] = "tpgm-project"
    title: ClassVar[str] = "TPGM on top"
    source: ClassVar[str] = "Tian et al. 2023, arXiv 2303.10720"

    lr: float = 0.01
    steps: int | None = 200
    batch_size: int = 64
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: Schedule = "constant"
    crop: tuple[float, ...] | None = None
    file: str | None = None
    """The fine-tuned checkpoint; its theta_0 is the zero-shot checkpoint of the training."""
    norm: Norm = "l2"
    """l2: a tensor's Euclidean distance from theta_0; mars: the largest row sum, every row projected by itself."""

    def inputs(self) -> Mapping[str, str]:
        """The sha256 of ``file``; raises ConfigError where none is named."""
        path = Path(resolve_checkpoint(self._named())).expanduser()
        if not path.is_file():  # a hub or folder id, or a mistake of which load_pair tells
            return {}
        with path.open("rb") as handle:
            return {"file": hashlib.file_digest(handle, "sha256").hexdigest()}

    def prepare(self, task: Task) -> Prepared:
        pair = self._pair(task)
        classifier = pair.classifier
        start, end = (
            on_device(t, task.device, task.theta_0["logit_scale"].dtype) for t in (pair.theta_0, pair.theta_1)
        )
        balls = Balls(start, pair.moving, self.norm)
        classified, exported = cross_entropy(classifier), of_classifier(classifier)

        def whole(theta: Theta) -> Theta:
            return balls.projected(end, theta[RADII]) if RADII in theta else theta

        def losses(theta: Theta, batch: Batch) -> Losses:
            return classified(whole(theta), batch)

        def logits(theta: Theta, images: Tensor) -> Tensor:
            return classifier.logits(whole(theta), images)

        def export(theta: Theta) -> Exported:
            tensors, metadata = exported(whole(theta))
            return Exported(tensors, metadata | balls.kept(end, theta[RADII]))

        def constrain(theta: Theta) -> None:
            balls.constrain(theta[RADII], end)

        def freeze(theta: Theta) -> Theta:
            return classifier.frozen(whole(theta))

        stage = Stage((RADII,), self.recipe(task.n), "radii", constrain=constrain)
        return Prepared({RADII: balls.halves(end)}, (stage,), losses, logits, export, freeze)

    def _named(self) -> str:
        if self.file is None:
            raise ConfigError(
                f"{self.name}: file is missing, the fine-tuned checkpoint to project.\n"
                "Remedy: --set file=runs/lipsum-ft/lipsum-ft.safetensors"
            )
        return self.file

    def _pair(self, task: Task) -> LoadedPair:
        """theta_0 and ``file`` with the head that reads them.

        Raises ConfigError where the file began from other prompts than the task has, and the errors of ``load_pair``.
        """
        zero = _zeroshot(task)

        def load(templates: tuple[str, ...] | None) -> LoadedPair:
            return load_pair(zero, self._named(), model=task.model, classnames=task.classnames, templates=templates)

        pair = load(None)
        told = pair.classifier.templates
        if told == task.templates or (pair.classifier.mode == "stored" and HEAD_WEIGHT in task.theta_0):
            return pair
        if told != default_templates(task.model):
            raise ConfigError(
                f"{self.name}: {shown(self.file, 200)} was fine-tuned from {len(told)} other prompts "
                f"({shown(told[0], 60)} ...), so theta_0 would have another head than it began with.\n"
                "Remedy: --templates FILE with these prompts."
            )
        return load(task.templates)


def _zeroshot(task: Task) -> Checkpoint:
    """theta_0 as a checkpoint, with what is known of its head."""
    made = checkpoint_of(on_device(task.theta_0, "cpu"), "<zeroshot>")
    head = made.facts.get("head")
    if head is None or task.head_baked is None:
        return made
    return dataclasses.replace(made, facts={**made.facts, "head": {**head, "scale_baked": task.head_baked}})
