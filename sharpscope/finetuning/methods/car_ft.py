"""CAR-FT: what zero-shot CLIP says about an image's context is kept (Mao et al. 2022, 2211.16175)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import zero_shot_head
from sharpscope.clip.model import imagenet_templates
from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import Batch, Losses, Prepared, Task, with_head
from sharpscope.finetuning.methods.distillation import divergence
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.weights.theta import Theta

__all__ = ["CarFT", "context_vectors"]


def context_vectors(task: Task, contexts: Sequence[str]) -> Tensor:
    """Context vectors [T, D], unit rows: normalise(mean over classes of the text features of one context) at theta_0.

    ``contexts``: T texts with ``{}`` for the class's name. Raises ConfigError for a text without ``{}``.
    """
    rows = []
    for context in contexts:
        # the vectors of all classes in this one context; their mean is what the context adds to any class
        rows.append(zero_shot_head(task.model, task.theta_0, task.classnames, (context,)).mean(0))
    return F.normalize(torch.stack(rows), dim=1)


@dataclass(frozen=True, kw_only=True)
class CarFT(WiseFT):
    """Cross-entropy + strength * KL between zero-shot's and the current probabilities of contexts given the image.

    p(context | x) = softmax over contexts of s <f(x), c>, with theta_0's scale s and context vectors c throughout: only
    the images' features move it. The authors' code is not public: ``strength`` and the direction of the KL (zero-shot
    first, as in distillation) are ours, all else is WiSE-FT's.
    """

    name: ClassVar[str] = "car-ft"
    title: ClassVar[str] = "CAR-FT"
    source: ClassVar[str] = "Mao et al. 2022, arXiv 2211.16175"

    strength: float = 1.0
    """Weight of the penalty, >= 0; a larger value keeps the context probabilities closer to zero-shot CLIP's."""
    contexts: tuple[str, ...] = ()
    """Two or more contexts, {} for the class's name; none: the training's templates where there are at least two, else
    CLIP's 80 for ImageNet."""

    def prepare(self, task: Task) -> Prepared:
        chosen = self.contexts or (task.templates if len(task.templates) > 1 else imagenet_templates())
        if len(chosen) < 2:
            raise ConfigError("car-ft: contexts needs at least two texts; one alone always has probability 1.")
        plain = super().prepare(task)
        classifier, _ = with_head(task, scale_baked=self.scale_baked)
        frozen, scale = dict(task.theta_0), task.theta_0["logit_scale"].exp()
        with torch.no_grad():
            vectors = context_vectors(task, chosen)

        def losses(theta: Theta, batch: Batch) -> Losses:
            features = classifier.features(theta, batch.images)
            logits = classifier.logits_of(theta, features)
            with torch.no_grad():
                features_0 = classifier.features(frozen, batch.images)
            gap = divergence(scale * features @ vectors.T, scale * features_0 @ vectors.T)
            return Losses(F.cross_entropy(logits, batch.labels), self.strength * gap, logits)

        return dataclasses.replace(plain, losses=losses)
