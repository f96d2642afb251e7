"""The command ``finetune``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sharpscope.cli.options import Computing, Images, Model, Plugins, given
from sharpscope.cli.outcome import Outcome
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Precision

__all__ = ["HYPERPARAMETERS", "Finetune"]


@dataclass(frozen=True, kw_only=True)
class _Hyperparameters:
    """What the method's paper decides where the user does not."""

    lr: float | None = None
    """Peak learning rate; this and what follows: default, what the method's paper says."""
    epochs: int | None = None
    """Times over the training data."""
    steps: int | None = None
    """Optimizer steps in all, whatever --epochs says."""
    batch_size: int | None = None
    """Examples a batch."""
    accumulate: int | None = None
    """Parts of each batch, one in memory at a time (losses of single images only; the gradient is the same)."""
    set: tuple[str, ...] = ()
    """Any other hyperparameter of the method, NAME=VALUE (``--list`` shows them)."""

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
        if "epochs" in out:
            out.setdefault("steps", None)  # a method that counts steps by default counts epochs when told these
        return out


HYPERPARAMETERS = tuple(f.name for f in dataclasses.fields(_Hyperparameters))
"""The flags that change the method itself; what is not given is left to it."""


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be fine-tuned, on what, how."""

    zeroshot: str = ""
    """Checkpoint of the zero-shot model (or ``mini:zeroshot``)."""
    train: str = ""
    """Training data: any data set (its train split), or ``csv:PATH`` of image-caption pairs (filepath, title)."""
    method: str = "wise-ft"
    """How to fine-tune; --list names the methods."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Plugins, Computing, Images, Model, _Hyperparameters, _Task):
    """Make the fine-tuned end of a pair, by one of the field's methods; --list shows them."""

    classnames: str | None = None
    """Text file with one class name a line; default: the training data's own."""
    val: str | None = None
    """Validation data: accuracy after every epoch, and the best weights kept where the method keeps these."""
    out: str | None = None
    """Folder for METHOD.safetensors; the same command again resumes. Default: runs/METHOD."""
    precision: Precision = "full"
    """Arithmetic of training: full (float32), or bf16, fp16 (autocast on CUDA; the weights stay float32). tf32 is for
    run and plan alone."""
    augment: bool = True
    """Random crops; arrays and the embedded world stay as they are."""
    checkpoint_every: int = 500
    """Steps between two states on disk."""
    list: bool = False
    """List the methods and their hyperparameters."""
    keeps_state: ClassVar[bool] = True

    def __call__(self) -> Outcome:
        if self.list:
            from sharpscope.finetuning.registry import listing

            return Outcome(listing())
        for flag, value in (("zeroshot", self.zeroshot), ("train", self.train)):
            if not value:
                raise ConfigError(f"--{flag}: is missing. 'sharpscope finetune --list' shows the methods.")
        changes = self.changes()
        from sharpscope.finetuning.run import finetune

        settled = dataclasses.replace(self, out=self.out or f"runs/{self.method}")
        tuned = finetune(**given(settled, "list", *HYPERPARAMETERS), **changes)
        file = shown(str(tuned.path), 500)
        return Outcome(
            f"wrote {file}: {tuned.summary()}\n"
            f"next: sharpscope run --zeroshot {shown(self.zeroshot)} --finetuned {file} --model {shown(self.model)} ..."
        )
