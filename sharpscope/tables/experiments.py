"""The columns of the tables that protocols, sweeps and inspect write beside those of a study's run."""

from __future__ import annotations

from typing import Final

from sharpscope.tables.schema import COLUMNS

__all__ = ["EVERY_COLUMNS", "EXPERIMENT_COLUMNS", "EXPERIMENT_KEYS"]

EXPERIMENT_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "protocol": (
        "protocol", "method", "dataset", "shots", "seed", "role", "evaluated", "metric", "estimate", "ci_low",
        "ci_high", "n", "note",
    ),
    "base_to_new": (
        "method", "dataset", "shots", "base_accuracy", "base_sd", "new_accuracy", "new_sd", "h", "h_sd", "seeds",
    ),
    "few_shot": ("method", "dataset", "shots", "accuracy", "accuracy_sd", "seeds"),
    "cross_dataset": ("method", "dataset", "role", "shots", "accuracy", "accuracy_sd", "seeds"),
    "upgrade": (
        "method", "dataset", "shots", "old_zeroshot", "old", "old_sd", "upgraded_zeroshot", "upgraded", "upgraded_sd",
        "gain", "ci_low", "ci_high", "gain_sd", "n", "seeds",
    ),
    "finetunings": ("pair", "method", "learning_rate", "epochs", "steps", "batch_size", "seed"),
    "changes": ("layer", "tower", "depth", "kind", "num_params", "distance", "norm_0", "relative"),
}  # fmt: skip
"""Table name -> columns, in order. New columns may be added; none is renamed or dropped.

Reading guide
  protocol             one row for each model (a method with its shots and seed) and each set that it is evaluated on;
                       method zero-shot has 0 shots
  protocol.role        base | new | test | source | target; old_zeroshot | old | upgraded_zeroshot | upgraded
  base_to_new, few_shot, cross_dataset, upgrade: the tables as papers print them, means over ``seeds`` seeds, and in the
                       columns ``_sd`` their standard deviations (empty for one seed); data set ``average`` is the mean
                       over the sets (of cross-dataset: over the targets)
  base_to_new.h        harmonic mean of the row's two accuracies; h_sd is that of the seeds' own harmonic means
  upgrade.gain         upgraded - upgraded_zeroshot, with an interval over the choice of test images
  finetunings          a sweep's fine-tuned files, one row each; other hyperparameters of its grid are further columns
  changes              two checkpoints compared layer by layer ('sharpscope inspect A B --out FILE'): distance is the
                       norm of the difference, norm_0 that of the first file's layer, relative their quotient
"""

EVERY_COLUMNS: Final = {**COLUMNS, **EXPERIMENT_COLUMNS}
"""Table name -> columns for every table, those of a run first."""

EXPERIMENT_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "protocol": ("protocol", "method", "dataset", "shots", "seed", "role", "evaluated"),
    "base_to_new": ("method", "dataset", "shots"),
    "few_shot": ("method", "dataset", "shots"),
    "cross_dataset": ("method", "role", "dataset", "shots"),
    "upgrade": ("method", "dataset", "shots"),
    "finetunings": ("pair",),
    "changes": ("layer",),
}
"""Columns that identify a row of each table: no two rows agree on all of them."""
