"""The command ``finetune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sharpscope.cli.outcome import Outcome
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Device

__all__: list[str] = []


@dataclass(frozen=True)
class Finetune:
    """Make the fine-tuned end of a pair, by one of the field's methods; --list shows them."""

    zeroshot: str = ""
    """Checkpoint of the zero-shot model (or ``mini:zeroshot``)."""
    train: str = ""
    """Training data: any data set (its train split), or ``csv:PATH`` of image-caption pairs (filepath, title)."""
    method: str = "wise-ft"
    """How to fine-tune; --list names the methods."""
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
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    out: str | None = None
    """Folder for METHOD.safetensors; the same command again resumes. Default: runs/METHOD."""
    val: str | None = None
    """Validation data: accuracy after every epoch, and the best weights kept where the method keeps these."""
    data_root: str | None = None
    """Folder under which relative ``folder:`` and ``csv:`` paths are looked up."""
    classnames: str | None = None
    """Text file with one class name a line; default: the training data's own."""
    templates: str | None = None
    """Text file with one prompt template a line, ``{}`` for the class name."""
    seed: int = 0
    """Seed of everything random."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """bfloat16, float16: autocast on CUDA; the weights stay float32."""
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
        changes: dict[str, Any] = {}
        for pair in self.set:
            name, equals, text = pair.partition("=")
            if not equals:
                raise ConfigError(f"--set: '{shown(pair, 60)}' is not NAME=VALUE.")
            changes[name.replace("-", "_")] = text
        for name in ("lr", "epochs", "steps", "batch_size", "accumulate"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)
        if "epochs" in changes:
            changes.setdefault("steps", None)  # a method that counts steps by default counts epochs when told these
        from sharpscope.finetuning.run import finetune

        tuned = finetune(
            self.zeroshot,
            self.train,
            self.method,
            model=self.model,
            out=self.out or f"runs/{self.method}",
            val=self.val,
            data_root=self.data_root,
            classnames=self.classnames,
            templates=self.templates,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            augment=self.augment,
            checkpoint_every=self.checkpoint_every,
            **changes,
        )
        file = shown(str(tuned.path), 500)
        return Outcome(
            f"wrote {file}: {tuned.summary()}\n"
            f"next: sharpscope run --zeroshot {shown(self.zeroshot)} --finetuned {file} --model {shown(self.model)} ..."
        )
