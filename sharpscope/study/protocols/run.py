"""A protocol from config to tables: every model is a unit of work, and the same call goes on where it was stopped."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sharpscope.clip.pair import resolve_checkpoint
from sharpscope.clip.progress import Shown, bars_for
from sharpscope.config.protocol import ProtocolConfig
from sharpscope.errors import NumericalError
from sharpscope.findings import protocols
from sharpscope.finetuning.registry import METHODS
from sharpscope.finetuning.run import tuned_by
from sharpscope.present.protocoltables import markdown_of
from sharpscope.study.protocols.units import Trial, measured, rows_of, trials
from sharpscope.study.store import RunDirectory
from sharpscope.study.unitfile import Unit
from sharpscope.tables.files import csv_bytes, normalised, parquet_bytes
from sharpscope.vocabulary import ZERO_SHOT, __version__
from sharpscope.weights.checkpoint import read_checkpoint

__all__ = ["FinishedProtocol", "run_protocol"]

_POLL = 0.5


@dataclass(frozen=True)
class FinishedProtocol:
    """A finished protocol: its directory, its tables, and the models that could not be had."""

    root: Path
    rows: pd.DataFrame = field(repr=False)
    """The table ``protocol``: one row for each model and set."""
    table: pd.DataFrame = field(repr=False)
    """The protocol's own table, as papers print it."""
    text: str = field(repr=False)
    """The same as Markdown."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Key -> reason, of each model that diverged."""


def run_protocol(config: ProtocolConfig, out: str | os.PathLike[str], progress: Shown = False) -> FinishedProtocol:
    """Run a protocol, or the missing part of it, and write its tables as CSV, Parquet and Markdown.

    Every trained model stays in ``out/checkpoints``. A model whose training diverges is left out and named in
    ``failed``. Raises ConfigError, CheckpointError, PairMismatch and DatasetError for inputs that cannot be used, and
    RunDirectoryError for a folder that belongs to another experiment. Sources: those of ``ProtocolConfig``, Zhou et al.
    2022, arXiv 2203.05557 first.
    """
    for tuning, shots in itertools.product(config.tunings, config.shots):
        tuned_by(**config.way(tuning, shots), changes={**config.hyperparameters, "shots": shots})
    directory = RunDirectory.open(out, _identity(config), _manifest(config))
    directory.log("start", protocol=config.protocol)
    wanted = trials(config)
    with contextlib.closing(bars_for(progress)(total=len(wanted), desc=config.protocol)) as bar:
        units, failed = _done(config, directory, wanted, bar)
    rows = normalised(pd.DataFrame(rows_of([units[t.key] for t in wanted if t.key in units])), "protocol")
    table = _table(config, _in_order(config, rows), units, wanted)
    name = config.protocol.replace("-", "_")
    text = markdown_of(config.protocol, table)
    for file, frame in (("protocol", rows), (name, table)):
        directory.write(f"tables/{file}.csv", csv_bytes(frame, file))
        directory.write(f"tables/{file}.parquet", parquet_bytes(frame, file))
    directory.write(f"tables/{name}.md", text.encode())
    directory.log("end", failed=len(failed))
    return FinishedProtocol(Path(out), rows, normalised(table, name), text, failed)


def _done(
    config: ProtocolConfig, directory: RunDirectory, wanted: Sequence[Trial], bar: Any
) -> tuple[dict[str, Unit], dict[str, str]]:
    """(units by key, reasons of failure by key). Another process may work on the same directory at the same time."""
    units: dict[str, Unit] = {}
    failed: dict[str, str] = {}
    waiting = list(wanted)
    while waiting:
        elsewhere = []
        for trial in waiting:
            unit = directory.load(trial.key)
            claim = directory.claim(trial.key) if unit is None else None
            if unit is None and claim is None:
                if trial.key not in (elsewhere_failed := directory.history.failures()):
                    elsewhere.append(trial)
                    continue
                failed[trial.key] = elsewhere_failed[trial.key]
            if claim is not None:
                with claim:
                    unit = _tried(config, directory, trial, failed)
            if unit is not None:
                units[trial.key] = unit
            bar.update()
        waiting = elsewhere
        if waiting:
            time.sleep(_POLL)
    return units, failed


def _tried(config: ProtocolConfig, directory: RunDirectory, trial: Trial, failed: dict[str, str]) -> Unit | None:
    start = time.perf_counter()
    try:
        unit = measured(config, trial, directory.root / "checkpoints")
    except NumericalError as error:
        failed[trial.key] = str(error)
        directory.log("failed", key=trial.key, reason=str(error))
        return None
    directory.save(trial.key, unit)
    directory.log("unit", key=trial.key, seconds=round(time.perf_counter() - start, 3))
    return unit


def _in_order(config: ProtocolConfig, rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with methods, sets and shots in the order in which they were asked for."""
    methods, sets = (ZERO_SHOT, *config.tunings), dict.fromkeys((*config.tuned_on, *config.datasets))

    def place(column: pd.Series) -> pd.Series:
        order = {"method": methods, "dataset": tuple(sets), "evaluated": tuple(sets)}[str(column.name)]
        return column.map({name: i for i, name in enumerate(order)}).fillna(0)

    return rows.sort_values(["method", "dataset", "evaluated"], key=place, kind="stable")


def _table(
    config: ProtocolConfig, rows: pd.DataFrame, units: Mapping[str, Unit], wanted: Sequence[Trial]
) -> pd.DataFrame:
    if config.protocol == "base-to-new":
        return protocols.base_to_new(rows)
    if config.protocol == "few-shot":
        return protocols.few_shot(rows)
    if config.protocol == "cross-dataset":
        return protocols.cross_dataset(rows)
    hits = {
        (t.method, t.dataset, t.seed, name.partition(":")[0]): values
        for t in wanted if t.key in units
        for name, values in units[t.key].arrays.items()
    }  # fmt: skip
    return protocols.upgrade(rows, hits, level=config.level, bootstrap=config.bootstrap)


def _identity(config: ProtocolConfig) -> dict[str, Any]:
    """Everything that determines the numbers."""
    files = {name: getattr(config, name) for name in ("zeroshot", "upgraded") if getattr(config, name)}
    outside = {m: [o.source, o.version] for m in config.methods if (o := METHODS.origins.get(m))}
    return {
        "config": config.to_dict(),
        "inputs": {name: read_checkpoint(resolve_checkpoint(path)).sha256 for name, path in files.items()},
        "sharpscope": __version__,
        "torch": torch.__version__,
        **({"from_outside": outside} if outside else {}),
    }


def _manifest(config: ProtocolConfig) -> dict[str, Any]:
    return {
        "protocol": config.protocol,
        "config": config.to_dict(),
        "versions": {"sharpscope": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "hardware": {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()},
    }
