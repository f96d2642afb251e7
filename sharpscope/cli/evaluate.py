"""The command ``evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.outcome import Outcome, progress_bar, shown_table
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import Device, HeadMode

if TYPE_CHECKING:
    import pandas as pd

__all__: list[str] = []


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of checkpoints on data sets: every metric with its interval, one table."""

    checkpoints: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE [FILE ...]")]
    """Checkpoint files of one architecture."""
    datasets: Annotated[tuple[str, ...], arg(aliases=["--data"])]
    """Data set specs, or collections of them (imagenet-shifts, lipsum-imagenet, domainnet-real), whose averages are
    added."""
    model: str = "ViT-B-32"
    """open_clip model name, config JSON, or ``mini``."""
    head: HeadMode = "auto"
    """stored: the checkpoint's own; zeroshot or text: from its text tower, in each set's class names and templates;
    auto: stored where there is one that has the set's classes."""
    head_file: str | None = None
    """Classification head in a file of its own (task_vectors), for each checkpoint without one."""
    base: str | None = None
    """Zero-shot checkpoint below files that hold only what was tuned (Dassl, LoRA)."""
    metrics: tuple[str, ...] | None = None
    """top1, top5, mean_per_class, macro_f1, worst_group, ece, nll; default: all that have a meaning for a set."""
    classnames: str | None = None
    """Text file with one class name a line; default: each data set's own."""
    templates: str | None = None
    """Text file with one prompt template a line, ``{}`` for the class name; default: each data set's own."""
    data_root: str | None = None
    """Folder under which named sets and relative paths are looked up."""
    batch_size: int = 128
    """Examples a batch."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    limit: int | None = None
    """At most this many examples a data set (a fixed, stratified choice)."""
    seed: int = 0
    """Seed of ``--limit``'s choice and of the bootstrap intervals."""
    csv: bool = False
    """Print CSV (a row a metric) instead of a table (a row a data set)."""

    def __call__(self) -> Outcome:
        if not self.checkpoints:
            raise ConfigError("evaluate: give at least one checkpoint file.")
        if not self.datasets:
            raise ConfigError("--datasets: give at least one, e.g. --datasets mini:photo folder:val.")
        for flag, value in (("batch-size", self.batch_size), ("limit", self.limit)):
            if value is not None and value < 1:
                raise ConfigError(f"--{flag}: needs a whole number of at least 1, got {value}.")
        from sharpscope.clip.evaluate import evaluate

        table = evaluate(
            self.checkpoints,
            self.model,
            self.datasets,
            head_file=self.head_file,
            base=self.base,
            metrics=self.metrics,
            head=self.head,
            classnames=self.classnames,
            templates=self.templates,
            data_root=self.data_root,
            batch_size=self.batch_size,
            device=self.device,
            limit=self.limit,
            seed=self.seed,
            progress=progress_bar(),
        )
        return shown_table(table, self.csv) if self.csv else Outcome(_by_dataset(table))


def _by_dataset(table: pd.DataFrame) -> str:
    """A line a (checkpoint, data set), a column a metric, intervals beside; what is to be said of a set below."""
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
