"""The command ``advise``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import AsTable, HeadParts, Images, Limit, Plugins, Replacing, given
from sharpscope.cli.outcome import Outcome, progress_bar
from sharpscope.config.oodgroups import ood_groups
from sharpscope.config.study import StudyConfig
from sharpscope.errors import shown
from sharpscope.vocabulary import Device, HeadMode

__all__ = ["Advise"]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Whose alpha is asked for."""

    run: Annotated[Positional[str | None], arg(metavar="[RUN]")] = None
    """Run directory, whose pairs, data sets and settings are taken and nothing is evaluated again."""
    zeroshot: str | None = None
    """Without RUN: checkpoint of the zero-shot model, theta_0 (or ``mini:zeroshot``)."""
    finetuned: str | None = None
    """Without RUN: checkpoint of the fine-tuned model, theta_1 (or ``mini:success`` ...)."""
    name: str | None = None
    """Name of the pair; default: the name of the fine-tuned file without its extension."""
    alphas: tuple[float, ...] | None = None
    """Points of the path; default: 0, 0.1 ... 1."""
    id: tuple[str, ...] = ()
    """Data set specs of the ID test sets."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of the data that the model will meet. Each makes a block of advice, the strongest first."""

    ood: tuple[str, ...] = ()
    """Data set specs of OOD test sets with labels; NAME=SPEC puts a set into a group, and each group gets advice."""
    target_labels: str | None = None
    """CSV file of at least 20 target images: columns filepath (relative to the file) and label (a class name)."""
    target_images: tuple[str, ...] = ()
    """Target images without labels: folders of images, or data set specs, whose labels are not looked at."""
    held_out_shifts: tuple[str, ...] = ()
    """Labelled shifts on which the rules for target images are judged; default: four corruptions of the ID sets."""
    references: tuple[str, ...] = ()
    """Run directories of other pairs, with OOD labels."""
    shipped_pairs: bool = False
    """Take the pairs that ship with the embedded world as references too."""
    learning_rate: float | None = None
    """Learning rate of the fine-tuning, where the file does not say it."""
    keep_id: float = 0.99
    """Share of the path's best ID accuracy that the rule keep_id keeps; nearer to 1 keeps more."""


@dataclass(frozen=True, kw_only=True)
class _How:
    """How the pair is evaluated and intervals are computed. None: not given, which is told from a given default."""

    model: str | None = None
    """Without RUN: open_clip model name, path of an open_clip config JSON, or ``mini``; default: ViT-B-32."""
    head: HeadMode | None = None
    """Without RUN: where the classification head comes from, as for the command run; default: auto."""
    batch_size: int | None = None
    """Number of examples per batch; default: 128, of RUN those of its manifest."""
    device: Device | None = None
    """Device to compute on; default: auto, which takes CUDA if it is available."""
    seed: int | None = None
    """Seed of the bootstrap, without RUN of the choice of images too; default: 0, of RUN that of its manifest."""
    bootstrap: int | None = None
    """Number of bootstrap replicates; more make the ends of intervals steadier; default: 1000, of RUN that of its
    manifest."""
    level: float | None = None
    """Coverage of the intervals; a larger one makes them wider; default: 0.95, of RUN that of its manifest."""


@dataclass(frozen=True, kw_only=True)
class Advise(AsTable, Replacing, Plugins, Limit, _How, Images, HeadParts, _Known, _Pair):
    """Advise an alpha for one pair from what is known: OOD labels, a few labels, images, other pairs, or nothing."""

    out: str | None = None
    """CSV file to write the table to."""

    def __call__(self) -> Outcome:
        specs = (*self.id, *ood_groups(self.ood), *self.held_out_shifts)
        check_inputs(
            (self.zeroshot, self.finetuned, self.head_file), specs, classnames=self.classnames,
            templates=self.templates, model=None if self.run else self.model or StudyConfig.model,
        )  # fmt: skip
        self.check_output(self.out, ending=".csv")
        from sharpscope.study.advise import advise

        advice = advise(**given(self, "csv"), progress=progress_bar())
        text = advice.table.to_csv(index=False).rstrip("\n") if self.csv else str(advice)
        return Outcome(text + (f"\nwrote {shown(self.out)}" if self.out and not self.csv else ""))
