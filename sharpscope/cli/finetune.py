"""The command ``finetune``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import Computing, Images, Model, Plugins, Tracked, given
from sharpscope.cli.outcome import Outcome, progress_bar
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Precision

__all__ = ["HYPERPARAMETERS", "Finetune", "Hyperparameters"]


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyperparameters of the method. One that is not given keeps the method's or the recipe's value."""

    lr: float | None = None
    """Peak learning rate. The default of this flag and the next ones is the method's own (see --list)."""
    epochs: int | None = None
    """Number of passes over the training data."""
    steps: int | None = None
    """Total number of optimizer steps, in place of --epochs."""
    batch_size: int | None = None
    """Number of examples per batch."""
    accumulate: int | None = None
    """Number of parts into which each batch is split, one in memory at a time: more parts take less memory and give the
    same gradient. Refused for methods whose loss compares the images of a batch."""
    set: tuple[str, ...] = ()
    """Any other hyperparameter of the method, as NAME=VALUE; --list shows their names."""

    def changes(self) -> dict[str, Any]:
        """The hyperparameters that were given, by name; raises ConfigError."""
        out: dict[str, Any] = {}
        for pair in self.set:
            name, equals, text = pair.partition("=")
            if not equals:
                raise ConfigError(f"--set: '{shown(pair, 60)}' is not NAME=VALUE.")
            out[name.replace("-", "_")] = text
        for name in HYPERPARAMETERS:
            if name != "set" and getattr(self, name) is not None:
                out[name] = getattr(self, name)
        return out


HYPERPARAMETERS = tuple(f.name for f in dataclasses.fields(Hyperparameters))
"""The flags that change hyperparameters. A flag that is not given leaves the method's default."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The checkpoint, the data and the method of a fine-tuning."""

    zeroshot: str = ""
    """Checkpoint of the zero-shot model (or ``mini:zeroshot``)."""
    train: str = ""
    """Training data: any data set (its train split), or ``csv:PATH`` with image-caption pairs (filepath, title)."""
    method: str | None = None
    """Fine-tuning method; --list shows all of them. Default: wise-ft."""
    recipe: str | None = None
    """Published recipe, such as lipsum-domainnet: the method with all hyperparameters, as its authors' code sets them.
    --list shows all of them. Other hyperparameters given beside it replace its own, and the file records which."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Plugins, Tracked, Computing, Images, Model, Hyperparameters, _Task):
    """Fine-tune a zero-shot checkpoint with one of the published methods, which --list shows."""

    classnames: str | None = None
    """Text file with one class name per line, or ``imagenet``; default: the class names of the training data."""
    val: str | None = None
    """Validation data set. Its accuracy is measured after every epoch; a method whose keep_best is true keeps the
    weights of the best epoch."""
    out: str | None = None
    """Folder for METHOD.safetensors; the same command again resumes an interrupted run. Default: runs/METHOD or
    runs/RECIPE."""
    precision: Precision = "full"
    """Arithmetic of training: full (float32), bf16 or fp16 (autocast on CUDA; the weights stay float32). Only run and
    plan take tf32."""
    augment: bool = True
    """Crop, mirror and colour training images as the method says (--set crop=, flip=, jitter=). Images from arrays and
    from the embedded world stay as they are."""
    train_only: str | None = None
    """Regular expression. Only the tensors in whose names it is found move: 'bias$' trains all biases (BitFit)."""
    checkpoint_every: int = 500
    """Number of steps between two writes of the state from which an interrupted run resumes."""
    keep_every: int | None = None
    """Number of steps between two checkpoints that stay, METHOD-stepN.safetensors in the folder. Default: the end alone
    is written."""
    list: bool = False
    """List the methods and their hyperparameters, and the recipes."""
    keeps_state: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        if self.list:
            from sharpscope.finetuning.registry import listing, recipe_listing

            return Outcome(f"{listing()}\n\nRecipes (--recipe NAME):\n{recipe_listing()}")
        for flag, value in (("zeroshot", self.zeroshot), ("train", self.train)):
            if not value:
                raise ConfigError(f"--{flag}: is missing. 'sharpscope finetune --list' shows the methods.")
        changes = self.changes()
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("--steps, --epochs: both say how long to train; give one of them.")
        captions = self.train.startswith("csv:")  # a file of captions is no data set, and stands alone
        check_inputs(
            [self.zeroshot],
            () if captions else (self.train, self.val),
            self.data_root,
            classnames=self.classnames,
            templates=self.templates,
            model=self.model,
        )
        from sharpscope.finetuning.run import finetune
        from sharpscope.study.trackers import TrainingCurves, tracked

        out = self.out or f"runs/{self.recipe or self.method or 'wise-ft'}"
        settled = dataclasses.replace(self, out=out)
        asked = given(settled, "list", "track", *HYPERPARAMETERS)
        with tracked(self.track, out) as trackers:
            curves = TrainingCurves(trackers, asked | changes)
            tuned = finetune(**asked, **changes, progress=progress_bar(), watch=curves)
        file = shown(str(tuned.path), 500)
        return Outcome(
            f"wrote {file}: {tuned.summary()}\n{tuned.prompted}\n"
            f"next: sharpscope run --zeroshot {shown(self.zeroshot)} --finetuned {file} --model {shown(self.model)} ..."
        )
