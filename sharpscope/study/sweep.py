"""A sweep: many fine-tunings of one model, each in a file of its own, and one study that measures them all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sharpscope.clip.progress import Shown, bars_for
from sharpscope.config.study import PairConfig
from sharpscope.config.sweep import SweepConfig, SweepTrial
from sharpscope.errors import ConfigError, NumericalError
from sharpscope.finetuning.run import finetune, tuned_by
from sharpscope.study.context import check_inputs
from sharpscope.study.designs import recipe_numbers
from sharpscope.study.report import Run
from sharpscope.study.run import run
from sharpscope.study.store import RunDirectory
from sharpscope.tables.files import csv_bytes, parquet_bytes
from sharpscope.vocabulary import LEARNING_RATE

__all__ = ["FinishedSweep", "run_sweep"]


@dataclass(frozen=True)
class FinishedSweep:
    """A finished sweep: the run over all its pairs, the table of its fine-tunings, and those that diverged."""

    run: Run
    finetunings: pd.DataFrame = field(repr=False)
    diverged: Mapping[str, str] = field(default_factory=dict)
    """Name -> reason."""


def run_sweep(sweep: SweepConfig, out: str | os.PathLike[str], progress: Shown = False) -> FinishedSweep:
    """Make every fine-tuning of a sweep that is not there yet, then measure them all; the same call resumes.

    ``out/checkpoints/NAME`` holds the files, ``out`` itself is the run directory of the study, whose pairs have the
    varying hyperparameters as covariates (``lr`` as ``learning_rate``). A fine-tuning that diverges has no pair.

    Raises the errors of ``finetune`` and of ``run``; ConfigError where nothing is left to measure.
    """
    trials = sweep.trials()
    for trial in trials:  # a mistake in the last one is told before the first one is trained
        tuned_by(**trial.way, changes=trial.settings)
    check_inputs(sweep.planned())
    rows, diverged = [], {}
    with contextlib.closing(bars_for(progress)(total=len(trials), desc="fine-tune")) as bar:
        for trial in trials:
            try:
                rows.append(_row(trial, _tuned(sweep, trial, Path(out) / "checkpoints" / trial.name)))
            except NumericalError as error:
                diverged[trial.name] = str(error)
            bar.update()
    if not rows:
        raise ConfigError(f"sweep: every fine-tuning diverged: {next(iter(diverged.values()))}")
    table = pd.DataFrame(rows)
    known = _covariates(table)
    pairs = tuple(PairConfig(row["pair"], sweep.zeroshot, row["file"], known[row["pair"]]) for row in rows)
    finished = run(dataclasses.replace(sweep.study, pairs=pairs), out, progress)
    directory = RunDirectory.existing(out)
    table = table.drop(columns="file")
    directory.write("tables/finetunings.csv", csv_bytes(table, "finetunings"))
    directory.write("tables/finetunings.parquet", parquet_bytes(table, "finetunings"))
    return FinishedSweep(finished, table, diverged)


def _tuned(sweep: SweepConfig, trial: SweepTrial, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """(fine-tuned file, what its metadata says about the fine-tuning)."""
    study = sweep.study
    tuned = finetune(
        sweep.zeroshot,
        sweep.train,
        model=study.model,
        out=folder,
        val=sweep.val,
        data_root=study.data_root,
        classnames=study.classnames,
        templates=study.templates,
        seed=trial.seed,
        device=study.device,
        progress=False,
        **trial.way,
        **trial.settings,
    )
    assert tuned.path is not None
    return tuned.path, json.loads(tuned.metadata["sharpscope.finetuning"])


def _row(trial: SweepTrial, tuned: tuple[Path, Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the table ``finetunings``, with the column ``file`` besides."""
    file, facts = tuned
    values, numbers = facts["hyperparameters"], recipe_numbers(facts)
    extra = {name: values[name] for name in trial.settings if name not in ("lr", "epochs", "steps", "batch_size")}
    whole = {name: int(numbers[name]) for name in ("steps", "batch_size")}
    return {
        "pair": trial.name, "method": facts["method"], LEARNING_RATE: numbers[LEARNING_RATE],
        "epochs": numbers["epochs"], **whole, "seed": trial.seed, **extra, "file": str(file),
    }  # fmt: skip


def _covariates(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Pair -> its numbers that differ between the fine-tunings; a seed is a label and no quantity."""
    numbers = table.drop(columns=["pair", "method", "seed", "file"]).select_dtypes("number").astype(float)
    varying = numbers.loc[:, numbers.nunique() > 1]
    rows = zip(table["pair"], varying.to_dict("records"), strict=True)
    return {str(pair): {str(name): float(value) for name, value in row.items()} for pair, row in rows}
