"""Lipsum-FT: energies of random texts are kept while the classifier learns (Nam et al. 2024, 2404.00860)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.random_texts import RANDOM_TEXT_LENGTH, RANDOM_TEXTS, random_texts
from sharpscope.config.inputs import lines_of
from sharpscope.errors import ConfigError
from sharpscope.finetuning.method import (
    Batch,
    Losses,
    Method,
    Prepared,
    Stage,
    Task,
    image_tower,
    of_classifier,
    with_head,
)
from sharpscope.finetuning.schedule import Schedule
from sharpscope.layers import HEAD_WEIGHT
from sharpscope.weights.theta import Theta

__all__ = ["LipsumFT", "energy_gap", "random_texts"]


def energy_gap(images: Tensor, images_0: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """``mean_x 1/(2M) sum_m (s <f(x), g(t_m)> - s <f_0(x), g(t_m)>)^2``, a scalar.

    images, images_0: unit features [B, D] of the model and of theta_0; texts: unit features [M, D]; scale: s.
    """
    return (scale * (images - images_0) @ texts.T).square().sum(1).mean() / (2 * len(texts))


@dataclass(frozen=True, kw_only=True)
class LipsumFT(Method):
    """Cross-entropy + strength * the squared change of the images' energies with random texts; text tower frozen.

    Image tower, projection and head move; the text tower and the scale s are theta_0's throughout. The head's rows have
    unit length at the start and the scale is NOT baked into them. As in the authors' code the energies have the scale
    in them, and the tokens are drawn from all but start and end. The authors' code has random tokens alone; the other
    kinds of text are an ablation, and how they are drawn is ours.
    """

    name: ClassVar[str] = "lipsum-ft"
    title: ClassVar[str] = "Lipsum-FT"
    source: ClassVar[str] = "Nam et al. 2024, arXiv 2404.00860"

    lr: float = 1e-5
    steps: int | None = 50_000
    batch_size: int = 256
    warmup: float = 0.1
    schedule: Schedule = "zero-linear-cosine"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    keep_best: bool = True
    judge_every: int | None = 1000
    crop: tuple[float, ...] | None = (0.08, 1.0)
    flip: float = 0.5
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    strength: float = 1.0
    """lambda in the paper, >= 0; a larger value keeps the energies closer to zero-shot CLIP's."""
    texts: int = RANDOM_TEXTS
    """Number M of texts per step, drawn anew at every step."""
    text_length: int = RANDOM_TEXT_LENGTH
    """Number of random tokens between start and end; the kind random alone has it."""
    kind: Literal["random", "templates", "captions"] = "random"
    """random: random tokens; templates: the prompt templates filled with the classes; captions: lines of the file
    ``captions``. Of the last two, M are drawn with replacement, each equally likely."""
    captions: str | None = None
    """Text file with a caption per line, for the kind captions alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts < 1:
            raise ConfigError(f"{self.name}: texts must be at least 1, got {self.texts}.")
        if (self.kind == "captions") != (self.captions is not None):
            raise ConfigError(
                f"{self.name}: kind=captions and captions=FILE belong together; got kind={self.kind} "
                f"{'with' if self.captions else 'without'} a file."
            )
        if self.kind != "random" and self.text_length != RANDOM_TEXT_LENGTH:
            raise ConfigError(
                f"{self.name}: text_length {self.text_length} is that of random texts, and would change nothing with "
                f"kind={self.kind}."
            )

    def prepare(self, task: Task) -> Prepared:
        classifier, start = with_head(task, scale_baked=False)
        model, scale = task.model, start["logit_scale"].exp()
        frozen, draw = dict(task.theta_0), self._texts(task)

        def losses(theta: Theta, batch: Batch) -> Losses:
            images = model.encode_image(theta, batch.images)
            logits = scale * images @ theta[HEAD_WEIGHT].T
            with torch.no_grad():
                images_0 = model.encode_image(frozen, batch.images)
                texts = model.encode_text(frozen, draw(batch))
            gap = energy_gap(images, images_0, texts, scale)
            fit = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
            return Losses(fit, self.strength * gap, logits)

        stage = Stage((*image_tower(task), HEAD_WEIGHT), self.recipe(task.n))
        return Prepared(start, (stage,), losses, classifier.logits, of_classifier(classifier))

    def _texts(self, task: Task) -> Callable[[Batch], Tensor]:
        """batch -> token ids [M, context_length] of its step's texts."""
        model = task.model
        if self.kind == "random":
            random_texts(model, 1, self.text_length, task.generator("texts"))  # complains now, not at the first step
            return lambda batch: random_texts(model, self.texts, self.text_length, batch.generator("texts"))
        filled = [t.replace("{}", c) for c in task.classnames for t in task.templates]
        lines = filled if self.captions is None else list(lines_of(self.captions, "captions"))
        tokens = model.tokenize(lines)

        def draw(batch: Batch) -> Tensor:
            return tokens[torch.randint(len(tokens), (self.texts,), generator=batch.generator("texts"))]

        return draw
