"""The command ``protocol``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from sharpscope.cli.finetune import Hyperparameters
from sharpscope.cli.options import AsTable, Images, Model, OnDevice, Plugins
from sharpscope.cli.outcome import Outcome, progress_bar
from sharpscope.config.protocol import ProtocolConfig, ProtocolName
from sharpscope.errors import shown
from sharpscope.vocabulary import Precision

__all__ = ["Protocol"]


@dataclass(frozen=True, kw_only=True)
class _What:
    """The experiment, its checkpoint, its data and its methods."""

    protocol: Annotated[Positional[ProtocolName], arg(metavar="PROTOCOL")]
    """base-to-new: tune on the first half of each set's classes, evaluate on both halves; few-shot: accuracy by the
    number of training images per class; cross-dataset: tune on one set, evaluate on others; upgrade: put what was tuned
    on one model on another one."""
    zeroshot: str
    """Checkpoint of the zero-shot model (or ``mini:zeroshot``)."""
    datasets: tuple[str, ...]
    """Data sets that are tuned on and evaluated, each by itself; for cross-dataset those that are evaluated."""
    train: str | None = None
    """The data set that cross-dataset tunes on."""
    methods: tuple[str, ...] = ()
    """Fine-tuning methods; 'sharpscope list methods' shows them. Default: coop, where no recipe is given. The zero-shot
    model is always evaluated too."""
    recipes: tuple[str, ...] = ()
    """Published recipes; 'sharpscope finetune --list' shows them. SHOTS in a name stands for the number of images of
    each class: coop-SHOTSshots."""
    shots: tuple[int, ...] = ()
    """Training images per class; default: 16, for few-shot 1 2 4 8 16."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds; each draws other training images, another order and another start. More seeds give a better standard
    deviation."""


@dataclass(frozen=True, kw_only=True)
class Protocol(AsTable, Plugins, OnDevice, Images, Model, Hyperparameters, _What):
    """Run an experiment of prompt learning's papers and print its table; the same command again resumes it."""

    upgraded: str | None = None
    """upgrade: checkpoint of the model that takes the old one's place."""
    upgraded_model: str | None = None
    """upgrade: its architecture, an open_clip model name or config JSON; default: the old one's."""
    out: str | None = None
    """Run directory; the same command again resumes it. Default: runs/PROTOCOL."""
    limit: int | None = None
    """Largest number of test images per data set (a fixed, stratified choice); default: all."""
    precision: Precision = "full"
    """Arithmetic of training: full (float32), bf16 or fp16."""
    augment: bool = True
    """Crop training images at random. Images from arrays and from the embedded world are never cropped."""
    keeps_state: ClassVar[bool] = True

    def config(self, templates: tuple[str, ...] = ()) -> ProtocolConfig:
        """The protocol that the flags describe; raises ConfigError."""
        names = ("protocol", "zeroshot", "datasets", "train", "methods", "recipes", "shots", "seeds", "model")
        more = ("upgraded", "upgraded_model", "data_root", "limit", "device", "precision", "augment")
        fields = {name: getattr(self, name) for name in (*names, *more)}
        return ProtocolConfig(**fields, hyperparameters=self.changes(), templates=templates)

    def __call__(self) -> Outcome:
        self.config()  # a mistake is told before torch is imported
        from sharpscope.clip.datasets.names import read_templates
        from sharpscope.study.protocols.run import run_protocol

        config = self.config(read_templates(self.templates) if self.templates else ())
        done = run_protocol(config, self.out or f"runs/{self.protocol}", progress=progress_bar())
        text = (
            done.table.to_csv(index=False).rstrip("\n") if self.csv else f"{done.text}tables: {shown(done.root)}/tables"
        )
        if not done.failed:
            return Outcome(text)
        first = next(iter(done.failed.items()))
        return Outcome(text, f"{len(done.failed)} models failed, e.g. {shown(first[0])}: {shown(first[1])}", 1)
