"""Tables, figures and report.html from finished units, also rebuilt later from a run directory, without torch."""

from __future__ import annotations

import html
import io
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.errors import did_you_mean
from sharpscope.exchange import written
from sharpscope.present.alphas import alpha_sentence, said, showing_alpha_on
from sharpscope.present.canvas import figure_bytes
from sharpscope.present.plots import all_figures
from sharpscope.present.report import build_report
from sharpscope.present.summary import summary_lines
from sharpscope.present.view import data_notes
from sharpscope.study.finished import finished_results
from sharpscope.study.known import points_beside_shipped
from sharpscope.study.results import Results
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task
from sharpscope.tables.files import csv_bytes, parquet_bytes, read_csv
from sharpscope.tables.rows import with_ordered_layers
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import DEFAULT_CRITERION, AlphaSide

__all__ = ["Run", "read_derived", "report", "write_derived"]

Spread = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""A function of (work, shares) that returns ``work(*share)`` for every share, computed here or in several processes."""


@dataclass(frozen=True)
class Run:
    """A finished (or partly failed) study: its folder and its tables.

    The tables are DataFrames and attributes of the run: ``run.sharpness``, ``run.accuracy`` and so on. Their layers are
    an ordered categorical, so that sorting and grouping keep the order of the forward pass. ``root`` is the
    folder, ``failed_units`` names what could not be computed, ``caveat`` is what a reader has to know first, and
    ``assumed`` is what was assumed of the checkpoints because they do not say it, ``data_notes`` what a reader has to
    know of the data sets (class names that were matched in order, for example). ``notices`` say why no verdict is
    given where the numbers are meaningless (swapped ends, a path without its ends). ``side`` is the model whose weight
    the report shows as alpha; the tables always have that of the fine-tuned one. ``straggler_criterion`` decides which
    layers are stragglers, ``order`` is that of the pairs. A table of an unknown name is an AttributeError that names
    the nearest one.
    """

    root: Path
    tables: dict[str, pd.DataFrame] = field(repr=False)
    failed_units: tuple[str, ...] = ()
    caveat: str = ""
    assumed: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    data_notes: tuple[str, ...] = ()
    side: AlphaSide = "finetuned"
    straggler_criterion: str = DEFAULT_CRITERION
    order: tuple[str, ...] = ()

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.tables]

    def __getattr__(self, name: str) -> pd.DataFrame:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            return with_ordered_layers(tables[name])
        raise AttributeError(f"Run has no '{name}'.{did_you_mean(name, tables)}")

    @property
    def report(self) -> Path:
        """The path of ``report.html``."""
        return self.root / "report.html"

    def summary(self) -> str:
        """What a reader wants to know first, as text.

        Notices and caveat, what was assumed, then in blocks: what happened on each group of OOD sets, the verdicts,
        whom the straggler criteria name, and advice.
        """
        with showing_alpha_on(self.side):
            return self._summary()

    def _summary(self) -> str:
        lines = [
            *([f"{alpha_sentence()}."] if self.side == "zeroshot" else []),
            *(f"no verdict: {said(notice)}" for notice in self.notices),
            *([self.caveat] if self.caveat else []),
            *(f"assumed: {sentence}" for sentence in self.assumed),
            *(f"data: {sentence}" for sentence in self.data_notes),
            *summary_lines(self.tables, self.straggler_criterion, self.order),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary().split("\n"))
        return f"<p>run in <code>{html.escape(str(self.root))}</code></p><ul>{items}</ul>"


def report(root: str | os.PathLike[str], results: str | None = None, *, alpha_on: AlphaSide = "finetuned") -> Run:
    """Rebuild tables, figures and report of a run directory from its finished units.

    Neither checkpoints nor data are opened, and torch is not imported.

    Args:
        root: the run directory.
        results: ``wise-ft`` or ``clip-benchmark``, to write the accuracies also in that format into ``results/``; None
            to leave it out.
        alpha_on: the model whose weight figures and report show as alpha, zeroshot for alpha' = 1 - alpha. The tables
            stay byte for byte the same.

    Raises:
        RunDirectoryError: the folder is not a run directory, or another version of sharpscope made it.
        ConfigError: the config in the manifest cannot be read.
    """
    directory, done = finished_results(root)
    config = done.config
    finished = write_derived(directory, done, side=alpha_on)
    if results is not None:
        ends = {p.name: (p.zeroshot, p.finetuned) for p in config.pairs}
        files = written(
            finished.accuracy,
            results,
            model=config.model,
            zeroshot={n: e[0] for n, e in ends.items()},
            finetuned={n: e[1] for n, e in ends.items()},
        )
        for name, data in files.items():
            directory.write(f"results/{name}", data)
    return finished


# ---------------------------------------------------------------------- derived files
def _in_turn(work: Callable[..., Any], shares: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [work(*share) for share in shares]


def write_derived(
    directory: RunDirectory,
    results: Results,
    spread: Spread = _in_turn,
    shares: int = 1,
    side: AlphaSide = "finetuned",
) -> Run:
    """Write everything that is derived from the units: tables, figures and report.

    ``spread`` draws the figures in ``shares`` parts, in this process or in the worker processes of a study. ``side``:
    the model whose weight figures and report show as alpha.
    """
    config, tables = results.config, results.tables()
    for name, frame in tables.items():
        directory.write(f"tables/{name}.csv", csv_bytes(frame, name))
        directory.write(f"tables/{name}.parquet", parquet_bytes(frame, name))
    for name in results.layers:
        for alpha in results.eigenvector_alphas:
            if (unit := results.units.get(f"eigenvectors/{name}/{alpha!r}")) is not None:
                packed = io.BytesIO()
                np.savez(packed, **unit.arrays)  # type: ignore[arg-type]
                directory.write(f"eigenvectors/{name}_{alpha:g}.npz", packed.getvalue())
    shown = points_beside_shipped(tables["sharpness"], tables["accuracy"]) if config.shipped_pairs else None
    drawn = tables if shown is None else {**tables, "points": shown}
    names = [p.name for p in config.pairs]
    parts = spread(_draw, [(drawn, config.straggler_criterion, names, (k, shares), side) for k in range(shares)])
    figures = {name: files for part in parts for name, files in part.items()}
    for name, (png, pdf) in figures.items():
        directory.write(f"figures/{name}.png", png)
        directory.write(f"figures/{name}.pdf", pdf)
    pngs = {name: png for name, (png, _) in sorted(figures.items())}
    notices = tuple(doubt.text for doubt in results.doubts())
    page = build_report(tables, pngs, directory.manifest, _timing(directory), notices, side)
    directory.write("report.html", page.encode())
    directory.log("report", failed=len(results.failed), peak_memory=_peak_memory())
    return _as_run(directory, results, tables, side)


def read_derived(directory: RunDirectory, results: Results) -> Run:
    """The run whose tables another process has just written from the same ``results``."""
    tables = {name: read_csv(directory.root / "tables" / f"{name}.csv", name) for name in COLUMNS}
    return _as_run(directory, results, tables, "finetuned")


def _as_run(directory: RunDirectory, results: Results, tables: dict[str, pd.DataFrame], side: AlphaSide) -> Run:
    config, manifest = results.config, directory.manifest
    assumed = dict.fromkeys(x for pair in manifest.get("pairs", {}).values() for x in pair.get("assumed", ()))
    return Run(
        directory.root,
        tables,
        failed_units=tuple(sorted(results.failed)),
        caveat=config.caveat or "",
        assumed=tuple(assumed),
        notices=tuple(doubt.text for doubt in results.doubts()),
        data_notes=data_notes(manifest),
        side=side,
        straggler_criterion=config.straggler_criterion,
        order=tuple(p.name for p in config.pairs),
    )


def _timing(directory: RunDirectory) -> dict[str, dict[str, float]]:
    """Units and seconds of each kind of work, from the log."""
    timing: dict[str, dict[str, float]] = {}
    for event in directory.history.events():
        if event["event"] == "unit":
            row = timing.setdefault(Task(event["key"]).kind, {"units": 0, "seconds": 0.0})
            row["units"] += 1
            row["seconds"] = round(row["seconds"] + event["seconds"], 3)
    return timing


def _draw(
    tables: dict[str, pd.DataFrame], criterion: str, pairs: list[str], share: tuple[int, int], side: AlphaSide
) -> dict[str, tuple[bytes, bytes]]:
    """The figures of one share: name -> (PNG, PDF)."""
    with showing_alpha_on(side):
        return {name: figure_bytes(figure) for name, figure in all_figures(tables, criterion, pairs, share).items()}


def _peak_memory() -> int:
    """Peak resident memory in bytes: the larger of this process's and that of its largest ended worker."""
    unit = 1 if sys.platform == "darwin" else 1024
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit
