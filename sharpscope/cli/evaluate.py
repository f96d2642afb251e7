"""The command ``evaluate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import (
    AsTable,
    Batches,
    Computing,
    Head,
    Images,
    Model,
    PathSettings,
    Plugins,
    Replacing,
    given,
)
from sharpscope.cli.outcome import Outcome, progress_bar, shown_table
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import EnsembleKind, PathName

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evaluate"]


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is measured."""

    checkpoints: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE [FILE ...]")]
    """Checkpoint files of one architecture."""
    datasets: tuple[str, ...]
    """Data set specs, or names of collections (imagenet-shifts, lipsum-imagenet, domainnet-real). A collection stands
    for its data sets, and their average is added."""
    metrics: tuple[str, ...] | None = None
    """Metrics to report: top1, top5, mean_per_class, macro_f1, worst_group, pm0, pm10, ece, nll; default: every metric
    that is defined for the data set. Sets of captions have i2t_r1, i2t_r5, i2t_r10, t2i_r1, t2i_r5, t2i_r10."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(AsTable, Replacing, Plugins, PathSettings, Batches, Computing, Images, Head, Model, _Measured):
    """Accuracy of checkpoints on data sets: every metric with its interval, one table."""

    base: str | None = None
    """Zero-shot checkpoint that completes files which hold only the tuned tensors (Dassl, LoRA), and at which --paths
    start."""
    paths: tuple[PathName, ...] = ()
    """Paths from --base (theta_0) to every checkpoint (theta_1), whose points are evaluated in place of the
    checkpoints: linear, lines, fisher, ties, dare, monosoup, random (see 'sharpscope interpolate --help')."""
    alphas: tuple[float, ...] | None = None
    """With --paths: points of the paths, from 0 (--base) to 1; default: 0, 0.1 ... 1. With --ensemble: weights of the
    second checkpoint's outputs; default: 0, 0.25 ... 1."""
    agreement_out: str | None = None
    """CSV file to write: how far the checkpoints agree with one another (disagreement, prediction diversity, kappa, KL,
    CKA ...), for every ordered pair of them."""
    ensemble: tuple[EnsembleKind, ...] = ()
    """Evaluate the mixed outputs of two checkpoints instead of each: logits (WiSE-FT's output-space ensemble) and
    probabilities."""
    second_model: str | None = None
    """With --ensemble: open_clip name or config JSON of the second checkpoint; default: that of --model."""

    def __call__(self) -> Outcome:
        if not self.checkpoints:
            raise ConfigError("evaluate: give at least one checkpoint file.")
        if not self.datasets:
            raise ConfigError("--datasets: give at least one, e.g. --datasets mini:photo folder:val.")
        for flag, value in (("batch-size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ConfigError(f"--{flag}: needs a whole number of at least 1, got {value}.")
        self.check_output(self.agreement_out, *self.checkpoints, self.base, flag="--agreement-out", ending=".csv")
        check_inputs(
            (*self.checkpoints, self.base, self.head_file, self.fisher_0, self.fisher_1),
            self.datasets,
            self.data_root,
            classnames=self.classnames,
            templates=self.templates,
            model=self.model,
        )
        table = self._ensemble() if self.ensemble else self._each()
        said = shown_table(table, self.csv) if self.csv else Outcome(_by_dataset(table))
        absent = [m for m in self.metrics or () if m not in set(table["metric"])]
        told = [f"--metrics: {', '.join(absent)} has no meaning for any of these sets."] if absent else []
        if unused := table.attrs.get("unused"):
            told.append(f"--{unused}")
        return dataclasses.replace(said, complaint="\n".join(told))

    def _each(self) -> pd.DataFrame:
        if self.second_model is not None:
            raise ConfigError("--second-model: is a setting of --ensemble, which is missing.")
        from sharpscope.clip.evaluate import evaluate

        return evaluate(**given(self, "csv", *_ENSEMBLE, datasets="specs"), progress=progress_bar())

    def _ensemble(self) -> pd.DataFrame:
        if len(self.checkpoints) != 2:
            raise ConfigError(f"--ensemble: mixes the outputs of two checkpoints, got {len(self.checkpoints)}.")
        if self.agreement_out is not None:
            raise ConfigError("--agreement-out: compares checkpoints, and --ensemble mixes their outputs.")
        if self.head_file is not None:
            raise ConfigError("--head-file: belongs to one checkpoint, and --ensemble takes two.")
        if given_paths := [name for name in _PATHS if getattr(self, name)]:
            raise ConfigError(
                f"--{given_paths[0].replace('_', '-')}: belongs to --paths, which go between weights; --ensemble mixes "
                "outputs. Give one of the two."
            )
        from sharpscope.clip.ensembling import evaluate_ensemble

        left_out = (
            "csv",
            "model",
            "head_file",
            "agreement_out",
            *_ENSEMBLE,
            *_PATHS,
            *(["alphas"] if self.alphas is None else []),
        )
        settings = given(self, *left_out, datasets="specs")
        models = (self.model, self.second_model or self.model)
        return evaluate_ensemble(**settings, models=models, kinds=self.ensemble, progress=progress_bar())


_ENSEMBLE = ("ensemble", "second_model")
_PATHS = ("paths", "path_density", "fisher_0", "fisher_1")
"""The flags of ensembles alone, and those of paths alone."""


def _by_dataset(table: pd.DataFrame) -> str:
    """One line per checkpoint (or variant and alpha) and data set, one column per metric with its interval; notes."""
    cells = [
        f"{value:.4f} [{low:.4f}, {high:.4f}]" if low == low else f"{value:.4f}"
        for value, low, high in zip(table["estimate"], table["ci_low"], table["ci_high"], strict=True)
    ]
    points = ["variant", "alpha"] if table["alpha"].notna().any() else []
    order = ["checkpoint", *points, "dataset", "n"]
    wide = table.assign(cell=cells).pivot_table(
        index=order, columns="metric", values="cell", aggfunc="first", sort=False
    )
    named = [m for m in dict.fromkeys(table["metric"]) if m in wide]
    lines = [wide[named].fillna("").reset_index().to_string(index=False)]
    notes = table.loc[table["note"] != "", ["dataset", "note"]].drop_duplicates()
    lines += [
        f"{shown(dataset)}: {shown(note, 300)}" for dataset, note in zip(notes["dataset"], notes["note"], strict=True)
    ]
    return "\n".join(lines)
