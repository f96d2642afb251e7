"""The command ``evaluate``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.inputs import check_inputs
from sharpscope.cli.options import AsTable, Computing, Head, Images, Model, Plugins, given
from sharpscope.cli.outcome import Outcome, progress_bar, shown_table
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, shown

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
    """Metrics to report: top1, top5, mean_per_class, macro_f1, worst_group, ece, nll; default: every metric that is
    defined for the data set."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(AsTable, Plugins, Computing, Images, Head, Model, _Measured):
    """Accuracy of checkpoints on data sets: every metric with its interval, one table."""

    base: str | None = None
    """Zero-shot checkpoint that completes files which hold only the tuned tensors (Dassl, LoRA)."""
    batch_size: int = StudyConfig.batch_size
    """Number of examples per batch."""
    limit: int | None = StudyConfig.limit
    """Largest number of examples per data set (a fixed, stratified choice); default: all."""

    def __call__(self) -> Outcome:
        if not self.checkpoints:
            raise ConfigError("evaluate: give at least one checkpoint file.")
        if not self.datasets:
            raise ConfigError("--datasets: give at least one, e.g. --datasets mini:photo folder:val.")
        for flag, value in (("batch-size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ConfigError(f"--{flag}: needs a whole number of at least 1, got {value}.")
        check_inputs(
            (*self.checkpoints, self.base, self.head_file),
            self.datasets,
            self.data_root,
            classnames=self.classnames,
            templates=self.templates,
        )
        from sharpscope.clip.evaluate import evaluate

        table = evaluate(**given(self, "csv", datasets="specs"), progress=progress_bar())
        said = shown_table(table, self.csv) if self.csv else Outcome(_by_dataset(table))
        absent = [m for m in self.metrics or () if m not in set(table["metric"])]
        told = [f"--metrics: {', '.join(absent)} has no meaning for any of these sets."] if absent else []
        if unused := table.attrs.get("unused"):
            told.append(f"--{unused}")
        return dataclasses.replace(said, complaint="\n".join(told))


def _by_dataset(table: pd.DataFrame) -> str:
    """One line per (checkpoint, data set), one column per metric with its interval; then the data sets' notes."""
    cells = [
        f"{value:.4f} [{low:.4f}, {high:.4f}]" if low == low else f"{value:.4f}"
        for value, low, high in zip(table["estimate"], table["ci_low"], table["ci_high"], strict=True)
    ]
    order = ["checkpoint", "dataset", "n"]
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
