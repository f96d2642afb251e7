"""WiSE-FT's fine-tuning: image tower and a head that starts as the zero-shot one (Wortsman et al. 2022, 2109.01903)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.finetune.trainer import Recipe, Theta, Trained, epochs, train

__all__ = ["WiseFT", "wise_ft"]


@dataclass(frozen=True)
class WiseFT:
    """Recipe; the defaults are those of the paper for ImageNet."""

    lr: float = 3e-5
    epochs: int = 10
    batch_size: int = 512
    warmup: float = 500.0
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    scope: Literal["tower", "head"] = "tower"
    """tower: the image tower and the head; head: the head alone."""
    scale_baked: bool = True
    """Multiply CLIP's logit scale into the head, as the paper does; else it stays outside, and is frozen like the rest.
    The same classifier, but the head of a baked scale is larger, and AdamW moves it less for its size."""

    def steps(self, n: int) -> int:
        """Optimizer steps over ``n`` training examples; an epoch's ragged last batch is dropped."""
        return self.epochs * (n // self.batch_size)


def wise_ft(
    model: ClipModel,
    theta_0: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    classnames: Sequence[str],
    templates: Sequence[str],
    config: WiseFT | None = None,
    seed: int = 0,
) -> Trained:
    """Fine-tune with cross-entropy from the zero-shot classifier; a function of its arguments.

    theta_0  CLIP as named tensors; the head is its prompts' mean text embedding, unless it brings a ``head.weight``
    images   [n, 3, H, W], normalised; labels [n] in 0 ... len(classnames) - 1

    Moves ``visual.*`` and ``head.weight`` (``scope="head"``: only the latter); the text tower and the logit scale stay
    those of theta_0. Raises ConfigError when the batch is larger than the data, NumericalError when training diverges.
    """
    config = config or WiseFT()
    classifier = Classifier(model, "stored", classnames, templates, scale_baked=config.scale_baked)
    theta = classifier.attach(theta_0)
    tower = [k for k in model.parameter_names if k.startswith("visual.")] if config.scope == "tower" else []
    batches = epochs(len(images), config.batch_size, config.epochs, seed)
    recipe = Recipe(
        lr=config.lr,
        steps=config.steps(len(images)),
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )

    def loss(current: Theta, step: int) -> Tensor:
        batch = next(batches)
        return F.cross_entropy(classifier.logits(current, images[batch]), labels[batch])

    return train(theta, [*tower, "head.weight"], loss, recipe, description="fine-tuning")
