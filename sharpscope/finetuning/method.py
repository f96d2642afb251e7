"""What a fine-tuning method consists of: hyperparameters, trained tensors, the loss of a batch, and what is saved.

One small file each; ``registry.METHODS`` lists them, ``fit.fit`` trains them. Everything random is a function of
(seed, step), so that an interrupted and resumed run draws the same numbers as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.datasets.augment import Augmentation
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning.schedule import Schedule
from sharpscope.finetuning.trainer import Ascent, Decay, Optimizer, Recipe
from sharpscope.layers import HEAD_BIAS, HEAD_WEIGHT, tower_of
from sharpscope.seeds import derive
from sharpscope.weights.heads import CLASSNAMES, head_metadata
from sharpscope.weights.theta import Theta

__all__ = [
    "Batch",
    "Exported",
    "HeadStart",
    "Losses",
    "Method",
    "Prepared",
    "Scope",
    "Stage",
    "Task",
    "both_towers",
    "cross_entropy",
    "head_names",
    "image_tower",
    "of_classifier",
    "text_head",
    "with_head",
]


Scope = Literal["tower", "head"]
"""What moves: the image tower and the stored head | the head alone."""
HeadStart = Literal["zeroshot", "random"]
"""zeroshot: a stored head starts as the zero-shot classifier; random: its weights are drawn, whatever theta_0 has."""


@dataclass(frozen=True)
class Task:
    """What a method is given: a zero-shot CLIP, the classes, how many examples there are, and a seed."""

    model: ClipModel
    theta_0: Theta
    """Float32 tensors of the zero-shot checkpoint on the device where training happens; never modified. May bring a
    ``head.weight`` of its own to start from."""
    classnames: tuple[str, ...]
    templates: tuple[str, ...]
    n: int
    """Number of training examples. The incomplete last batch of an epoch is dropped."""
    seed: int = 0
    head_baked: bool | None = None
    """Whether ``head.weight`` of ``theta_0`` is multiplied by exp(logit_scale); None: as the method expects."""

    @property
    def device(self) -> torch.device:
        return self.theta_0["logit_scale"].device

    def generator(self, *purpose: object) -> torch.Generator:
        """A separate random stream for ``purpose`` (for example the initial prompts), on the CPU."""
        return torch.Generator().manual_seed(derive(self.seed, "finetune", *purpose))


@dataclass(frozen=True)
class Batch:
    """One step's examples, on the device."""

    images: Tensor
    """float32 [B, 3, H, W], normalised."""
    labels: Tensor
    """int64 [B] in 0 ... len(classnames) - 1; -1 where an image-caption pair has no class."""
    tokens: Tensor | None = None
    """Token ids [B, context_length] of the images' captions, where the training data has captions."""
    step: int = 0
    """Step of the stage, from 0."""
    progress: float = 0.0
    """step / steps of the stage, in [0, 1)."""
    seed: int = 0
    """Seed made from those of the run and the stage."""
    epoch: int = 0
    """Number of epochs of the stage that are over."""

    def split(self, parts: int) -> Iterator[Batch]:
        """The examples in up to ``parts`` batches of (all but) equal size, in order; all else is the same in each."""
        count = min(parts, len(self.labels))
        tokens = [None] * count if self.tokens is None else self.tokens.tensor_split(count)
        for images, labels, texts in zip(
            self.images.tensor_split(count), self.labels.tensor_split(count), tokens, strict=True
        ):
            yield dataclasses.replace(self, images=images, labels=labels, tokens=texts)

    def generator(self, *purpose: object) -> torch.Generator:
        """A separate random stream for this step and ``purpose``, on the CPU whatever the device."""
        return torch.Generator().manual_seed(derive(self.seed, "step", self.step, *purpose))


class Losses(NamedTuple):
    """The loss of a batch, ``fit + penalty``, and the logits that it came from."""

    fit: Tensor
    """The loss of the task, a scalar."""
    penalty: Tensor | None = None
    """The regulariser times its weight, a scalar; 0 at the start if it pulls towards theta_0."""
    logits: Tensor | None = None
    """Logits [B, C], for the running accuracy; None where the loss has none."""

    @property
    def total(self) -> Tensor:
        return self.fit if self.penalty is None else self.fit + self.penalty


class Exported(NamedTuple):
    """What the fine-tuned file holds: tensors in open_clip's names, and facts about them as text."""

    tensors: Theta
    metadata: dict[str, str]


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own parameters and recipe; most methods have one."""

    trained: tuple[str, ...]
    """Names of the tensors that move."""
    recipe: Recipe
    name: str = "fine-tuning"
    """Label of the progress bar."""
    part: tuple[float, float] = (0.0, 1.0)
    """The part of the examples on which the stage trains, as (first share, last share) of an order that is drawn once
    from the seed."""
    begin: Callable[[Theta], Theta] | None = None
    """A function from theta after the previous stage to the start values of this stage's trained tensors; None: they
    start where they are."""
    constrain: Callable[[Theta], None] | None = None
    """Called after every step to bring the trained tensors back into their range, in place."""
    ascent: Ascent | None = None
    """The context in which the gradient of each step is taken, for instance at perturbed weights; None: the gradient is
    taken at theta itself."""


@dataclass(frozen=True)
class Prepared:
    """A method at work on one task. ``theta`` in and out of its functions has the keys of ``theta`` here."""

    theta: Theta
    """Where training starts: theta_0 and what the method adds (head, prompts, adapters), on the device."""
    stages: tuple[Stage, ...]
    losses: Callable[[Theta, Batch], Losses]
    """Differentiable in the trained tensors; everything random comes from ``batch.generator``."""
    logits: Callable[[Theta, Tensor], Tensor]
    """Logits of images [B, 3, H, W] at any theta; validation and the tables measure their accuracy."""
    export: Callable[[Theta], Exported]
    """What is saved of a theta (of the averaged one, where the method averages)."""
    freeze: Callable[[Theta], Theta] = dict
    """theta prepared for many calls of ``logits``: class vectors or merged weights are computed once."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What a reader of the checkpoint should know beyond the hyperparameters."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way of fine-tuning. The fields are its hyperparameters; the defaults are those of its authors' released code.

    ``recipes.RECIPES`` names the repository and the line of every default, or says that it is our choice.

    A subclass sets ``name``, ``title``, ``source``, overrides the defaults that differ, adds its own, and gives
    ``prepare``. Its docstring's first line is its description.

    Raises ConfigError for fewer than one part per batch, for several parts if the loss compares the examples of a
    batch, for a warm-up in steps and in epochs at once, and for an augmentation that cannot be.
    """

    name: ClassVar[str]
    """The name on the command line and in tables, such as ``lipsum-ft``."""
    title: ClassVar[str]
    """The name in figures, such as ``Lipsum-FT``."""
    source: ClassVar[str]
    """Authors, year, arXiv id."""
    couples: ClassVar[bool] = False
    """The loss compares the examples of a batch with each other: no mean over parts of the batch gives it."""

    lr: float = 1e-5
    """Peak learning rate."""
    epochs: int = 10
    """Number of passes over the training data."""
    steps: int | None = None
    """Total number of optimizer steps; overrides ``epochs``."""
    batch_size: int = 512
    accumulate: int = 1
    """Number of parts of each batch whose gradients are computed one after the other: less memory, the same
    gradient."""
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    """Momentum of SGD."""
    beta2: float = 0.999
    """beta2 of AdamW, whose beta1 is 0.9."""
    warmup: float = 0.0
    """Warm-up: below 1 a share of all steps, from 1 on a number of steps."""
    warmup_epochs: float = 0.0
    """Warm-up as a number of epochs, however many epochs there are; then ``warmup`` is 0."""
    warmup_lr: float | None = None
    """Constant rate during warm-up; None: a linear rise."""
    schedule: Schedule = "linear-cosine"
    """Curve of the learning rate: linear-cosine (WiSE-FT, FLYP, StarFT), zero-linear-cosine (Lipsum-FT), epoch-cosine
    (CoOp, KgCoOp, CLIPFit), floored-cosine (CLIP-LoRA), product, with which the embedded world's checkpoints were made,
    or constant (TPGM's radii)."""
    weight_decay: float = 0.1
    decay: Decay = "all"
    """all: every trained tensor decays; matrices: gains, biases and the logit scale do not."""
    clip_norm: float | None = 1.0
    """Largest norm of the whole gradient; None: not clipped."""
    shots: int | None = None
    """Largest number of training images per class; None: all."""
    ema: float | None = None
    """Decay of the moving average of the weights that is kept instead of the last ones; None: none."""
    ema_debias: bool = False
    """Take the starting weights out of the moving average (WiSE-FT's second kind of average)."""
    keep_best: bool = False
    """Keep the weights with the best validation accuracy, where there is a validation set."""
    judge_every: int | None = None
    """Number of steps between two validations; None: one epoch."""
    crop: tuple[float, ...] | None = (0.9, 1.0)
    """Smallest and largest share of an image's area that its random crop takes; None: the model's own crop."""
    flip: float = 0.0
    """Probability that an image is mirrored left to right."""
    jitter: tuple[float, ...] | None = None
    """Strengths of the changes of brightness, contrast, saturation and hue; None: colours stay."""

    def __post_init__(self) -> None:
        if self.warmup and self.warmup_epochs:
            raise ConfigError(
                f"{self.name}: warmup {self.warmup:g} and warmup_epochs {self.warmup_epochs:g} exclude each other.\n"
                "Remedy: set one of them to 0."
            )
        if self.warmup_epochs < 0 or (self.judge_every is not None and self.judge_every < 1):
            raise ConfigError(f"{self.name}: warmup_epochs cannot be negative, and judge_every needs at least 1 step.")
        if self.ema_debias and self.ema is None:
            raise ConfigError(f"{self.name}: ema_debias changes a moving average, and there is none (ema is none).")
        if self.accumulate < 1:
            raise ConfigError(f"{self.name}: accumulate needs at least 1 part per batch, got {self.accumulate}.")
        if self.accumulate > 1 and self.couples:
            raise ConfigError(
                f"{self.name}: accumulate {self.accumulate} would change the loss, which compares all images of a "
                "batch with each other.\nRemedy: accumulate=1 and a smaller batch_size, or precision bf16."
            )

        _ = self.augmentation  # complains now, not when images are read

    @abstractmethod
    def prepare(self, task: Task) -> Prepared:
        """The method at work on ``task``."""

    @property
    def augmentation(self) -> Augmentation:
        """What happens to training images; raises ConfigError for what cannot be."""
        return Augmentation(self.crop, self.flip, self.jitter)

    @property
    def description(self) -> str:
        """One line."""
        return (type(self).__doc__ or "").strip().splitlines()[0]

    def hyperparameters(self) -> dict[str, Any]:
        """Name -> value of every field."""
        return dataclasses.asdict(self)

    def inputs(self) -> Mapping[str, str]:
        """Hyperparameter -> sha256 of the file that it names: a finished file belongs to what it was made of."""
        return {}

    def recipe(self, n: int, **changes: Any) -> Recipe:
        """How to step over ``n`` examples; ``changes``: fields that differ in one stage (lr, epochs, steps ...).

        Raises ConfigError for a batch size below 1 or above ``n``.
        """
        method = dataclasses.replace(self, **changes) if changes else self
        if not 1 <= method.batch_size <= n:
            raise ConfigError(f"finetune: batch size {method.batch_size} does not fit {n} training examples.")
        per_epoch = n // method.batch_size
        steps = method.epochs * per_epoch if method.steps is None else method.steps
        warmup = method.warmup * steps if method.warmup < 1 else method.warmup
        return Recipe(
            lr=method.lr,
            steps=steps,
            warmup=warmup + method.warmup_epochs * per_epoch,
            warmup_lr=method.warmup_lr,
            weight_decay=method.weight_decay,
            betas=(0.9, method.beta2),
            clip_norm=method.clip_norm,
            optimizer=method.optimizer,
            momentum=method.momentum,
            schedule=method.schedule,
            decay=method.decay,
            per_epoch=per_epoch,
        )


# ---------------------------------------------------------------------- what several methods share
def with_head(
    task: Task, *, scale_baked: bool, bias: bool = False, start: HeadStart = "zeroshot"
) -> tuple[Classifier, Theta]:
    """A stored head that starts as the zero-shot one (or as theta_0's own head), and theta with it.

    ``bias``: the head has a bias, which starts at 0 unless theta_0 brings one. ``start`` random: see :func:`_drawn`.
    """
    classifier = Classifier(task.model, "stored", task.classnames, task.templates, scale_baked=scale_baked, bias=bias)
    theta = classifier.attach(task.theta_0)
    if bias and HEAD_BIAS not in theta:
        theta[HEAD_BIAS] = theta[HEAD_WEIGHT].new_zeros(len(theta[HEAD_WEIGHT]))
    if HEAD_WEIGHT in task.theta_0 and task.head_baked not in (None, scale_baked):
        scale = theta["logit_scale"].exp()
        theta[HEAD_WEIGHT] = theta[HEAD_WEIGHT] * (scale if scale_baked else 1 / scale)
    return classifier, theta if start == "zeroshot" else {**theta, **_drawn(task, theta, scale_baked)}


def _drawn(task: Task, theta: Theta, scale_baked: bool) -> Theta:
    """A random head of the shape of ``theta``'s: uniform weights in +-1 / sqrt(D), as torch draws a linear layer's.

    That is the whole factor on a feature, the logit scale included where it is baked in; the bias starts at 0.
    """
    like = theta[HEAD_WEIGHT]
    drawn = torch.rand(like.shape, generator=task.generator("head")).to(like) * 2 - 1
    weight = drawn / like.shape[1] ** 0.5 / (1 if scale_baked else theta["logit_scale"].exp())
    return {HEAD_WEIGHT: weight} | ({HEAD_BIAS: theta[HEAD_BIAS] * 0} if HEAD_BIAS in theta else {})


def head_names(bias: bool) -> tuple[str, ...]:
    """The names of a stored head's tensors."""
    return (HEAD_WEIGHT, HEAD_BIAS) if bias else (HEAD_WEIGHT,)


def cross_entropy(classifier: Classifier, label_smoothing: float = 0.0) -> Callable[[Theta, Batch], Losses]:
    """The loss of classification alone, with ``label_smoothing`` of the target spread evenly over all classes.

    Raises ConfigError for a share that is not in [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ConfigError(f"label_smoothing: needs a share from 0 to below 1, got {label_smoothing}.")

    def losses(theta: Theta, batch: Batch) -> Losses:
        logits = classifier.logits(theta, batch.images)
        return Losses(F.cross_entropy(logits, batch.labels, label_smoothing=label_smoothing), logits=logits)

    return losses


def image_tower(task: Task) -> tuple[str, ...]:
    """Names of the image tower's parameters."""
    return tuple(n for n in task.model.parameter_names if tower_of(n) == "image")


def both_towers(task: Task) -> tuple[str, ...]:
    """Names of both towers' parameters and of the logit scale."""
    text = {*task.model.text_names, "logit_scale"}
    return tuple(n for n in task.model.parameter_names if tower_of(n) == "image" or n in text)


def text_head(task: Task) -> Classifier:
    """The head rebuilt from the text tower at every theta (FLYP, CLIPFit, StarFT)."""
    return Classifier(task.model, "text", task.classnames, task.templates)


def of_classifier(classifier: Classifier, names: tuple[str, ...] | None = None) -> Callable[[Theta], Exported]:
    """An ``export`` of open_clip's tensors, ``classifier``'s head, and the metadata by which that is read back.

    ``names``: which tensors; default: for a stored head the image tower, the head and (unless it is baked in) the logit
    scale, else both towers.
    """
    model = classifier.model
    stored = classifier.mode == "stored"
    kept = names or ((*model.image_names, HEAD_WEIGHT, HEAD_BIAS, "logit_scale") if stored else tuple(model.shapes))

    def export(theta: Theta) -> Exported:
        metadata = {CLASSNAMES: json.dumps(list(classifier.classnames))}
        if stored:
            metadata |= head_metadata(scale_baked=classifier.scale_baked, normalize=classifier.normalize)
        return Exported({n: theta[n].detach() for n in kept if n in theta}, metadata)

    return export
