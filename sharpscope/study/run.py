"""A study from config to report: which units of work there are, getting them done, and what is made of them."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from sharpscope.clip.datasets.spec import check_folders, check_spec
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, RunDirectoryError, did_you_mean, shown
from sharpscope.exchange import written
from sharpscope.findings.verdicts import CLAIMS
from sharpscope.layers import Layer
from sharpscope.present.plots import all_figures
from sharpscope.present.report import build_report
from sharpscope.present.style import figure_bytes
from sharpscope.study.context import Context, check_density_layers
from sharpscope.study.manifest import identity_of, manifest_of
from sharpscope.study.results import Results
from sharpscope.study.store import RunDirectory
from sharpscope.study.workers import Bar, Crew, peak_memory
from sharpscope.tables.files import csv_bytes, parquet_bytes
from sharpscope.vocabulary import __version__

__all__ = ["Run", "report", "run"]

MakeBar = Callable[..., Bar]


class _Silent:
    def update(self, n: float = 1) -> None: ...
    def set_postfix_str(self, s: str = "") -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Run:
    """A finished (or partly failed) study: ``root``, its folder, and its tables as DataFrames.

    ``run.sharpness``, ``run.accuracy``, ``run.verdicts`` ... are the tables (all by name in ``run.tables``);
    ``failed_units`` names what could not be computed, ``caveat`` is what a reader must know first. An unknown table is
    an AttributeError with the nearest name.
    """

    root: Path
    tables: dict[str, pd.DataFrame] = field(repr=False)
    failed_units: tuple[str, ...] = ()
    caveat: str = ""

    def __getattr__(self, name: str) -> pd.DataFrame:
        tables = self.__dict__.get("tables", {})
        if name in tables:
            return tables[name]
        raise AttributeError(f"Run has no '{name}'.{did_you_mean(name, tables)}")

    @property
    def report(self) -> Path:
        """The file report.html of the run."""
        return self.root / "report.html"

    def summary(self) -> str:
        """The study's caveat, the verdicts and the advice, a line each."""
        verdicts = self.tables["verdicts"]
        order = [CLAIMS["question"], *CLAIMS.values()]
        lines = [self.caveat] if self.caveat else []
        for claim in dict.fromkeys(order):
            for _, row in verdicts[verdicts["claim"] == claim].iterrows():
                of_pair = f" ({row['pair']})" if claim == CLAIMS["repair"] else ""
                lines.append(f"{claim}{of_pair}: {row['verdict']}. {row['evidence']}")
        ours = self.tables["advice"]
        for _, row in ours[ours["rule"] == "sharpscope"].iterrows():
            lines.append("; ".join(x for x in (f"advice for {row['pair']}: alpha {row['alpha']:g}", row["note"]) if x))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary().split("\n"))
        return f"<p>run in <code>{html.escape(str(self.root))}</code></p><ul>{items}</ul>"


def run(config: StudyConfig, out: str | os.PathLike[str] | None = None, progress: MakeBar | None = None) -> Run:
    """Do a study, or what is missing of it, and write tables, figures and report.

    Args:
        config: what to do.
        out: the run directory; the same config again resumes, another one is refused. Default: a new temporary folder.
        progress: makes a bar from ``total`` and ``desc``, e.g. ``tqdm``; default: silent.

    Raises:
        ConfigError: no pair, no test set, an unknown name or a criterion whose measure is not taken.
        CheckpointError, PairMismatch, NonFiniteWeights, DatasetError: inputs that cannot be used.
        RunDirectoryError: a folder that belongs to another study, is locked or cannot be written.

    All of them before anything is measured. A unit that fails later is in ``failed_units``, the others go on.
    """
    _check_study(config)
    bars = progress or (lambda **_: _Silent())
    with Crew(config) as crew:
        contexts = {p.name: Context.load(config, p) for p in config.pairs}
        for context in contexts.values():
            _ = context.probe, context.datasets
            check_density_layers(config, context.layers)
        crew.add_contexts(contexts)
        directory = RunDirectory.open(
            tempfile.mkdtemp(prefix="sharpscope-") if out is None else out,
            identity_of(config, contexts),
            manifest_of(config, contexts),
        )
        directory.log("start", jobs=config.jobs)
        results = Results(config, {n: c.layers for n, c in contexts.items()})
        with contextlib.closing(bars(total=len(results.first_tasks()), desc="measure")) as bar:
            results.take(*crew.do(directory, results.first_tasks(), bar))
        repairs = results.repair_tasks()
        with contextlib.closing(bars(total=len(repairs), desc="repair")) as bar:
            results.take(*crew.do(directory, repairs, bar))
        return _write(directory, results, crew)


def report(root: str | os.PathLike[str], results: str | None = None) -> Run:
    """Rebuild tables, figures and report of a run directory from its finished units.

    Args:
        root: the run directory.
        results: write the accuracies also in the form of ``wise-ft`` or ``clip-benchmark``, into ``results/``.

    Raises:
        RunDirectoryError: a folder without a manifest, or made by another version of sharpscope.
        ConfigError: a manifest whose config has no meaning, or an unknown form of results.
    """
    directory = RunDirectory.existing(root)
    config = StudyConfig.from_dict(directory.manifest["config"], source=f"{root}/manifest.json")
    if directory.identity["sharpscope"] != __version__:
        raise RunDirectoryError(
            f"{shown(root)}: made by sharpscope {directory.identity['sharpscope']}, this is {__version__}.\n"
            "Remedy: run the study again in a new folder."
        )
    layers = {
        name: tuple(Layer(**{**x, "params": tuple(x["params"])}) for x in stored)
        for name, stored in directory.manifest["layers"].items()
    }
    done = Results(config, layers)
    for tasks in (done.first_tasks, done.repair_tasks):
        found = {t.key: directory.load(t.key) for t in tasks()}
        done.take(
            {k: u for k, u in found.items() if u is not None}, {k: "not done" for k, u in found.items() if u is None}
        )
    with Crew(dataclasses.replace(config, jobs=1)) as crew:
        finished = _write(directory, done, crew)
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


# ---------------------------------------------------------------------- run directory
def _check_study(config: StudyConfig) -> None:
    if not config.pairs:
        raise ConfigError("pairs: give two checkpoints (--zeroshot A --finetuned B).")
    if not config.id and not config.ood:
        raise ConfigError("id, ood: give at least one test set (--id SPEC --ood SPEC ...).")
    measure = config.straggler_criterion.partition(":")[2]
    if measure and measure not in config.measures:  # else it would be found out when everything has been computed
        raise ConfigError(
            f"straggler_criterion: '{config.straggler_criterion}' needs {measure} among measures.\n"
            "Remedy: add it, or choose another criterion (rewind, instability and criticality need no measure)."
        )
    for spec in (config.probe, *config.id, *config.ood):
        check_spec(spec)
    check_folders((config.probe, *config.id, *config.ood), config.data_root)


def _write(directory: RunDirectory, results: Results, crew: Crew) -> Run:
    """Everything that is derived from the units: tables, figures, report."""
    config, tables = results.config, results.tables()
    for name, frame in tables.items():
        directory.write(f"tables/{name}.csv", csv_bytes(frame, name))
        directory.write(f"tables/{name}.parquet", parquet_bytes(frame, name))
    drawn = {**tables, "points": results.points()} if config.shipped_pairs else tables
    names = [p.name for p in config.pairs]
    shares = [(drawn, config.straggler_criterion, names, (k, config.jobs)) for k in range(config.jobs)]
    figures = {name: files for part in crew.spread(_draw, shares) for name, files in part.items()}
    for name, (png, pdf) in figures.items():
        directory.write(f"figures/{name}.png", png)
        directory.write(f"figures/{name}.pdf", pdf)
    pngs = {name: png for name, (png, _) in sorted(figures.items())}
    page = build_report(tables, pngs, directory.manifest, _timing(directory))
    directory.write("report.html", page.encode())
    directory.log("report", failed=len(results.failed), peak_memory=peak_memory())
    return Run(directory.root, tables, tuple(sorted(results.failed)), config.caveat or "")


def _timing(directory: RunDirectory) -> dict[str, dict[str, float]]:
    """Units and seconds of each kind of work, from the log."""
    timing: dict[str, dict[str, float]] = {}
    for line in (directory.root / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # a line cut off by a kill
            event = json.loads(line)
            if event["event"] == "unit":
                row = timing.setdefault(event["key"].split("/")[0], {"units": 0, "seconds": 0.0})
                row["units"] += 1
                row["seconds"] = round(row["seconds"] + event["seconds"], 3)
    return timing


def _draw(
    tables: dict[str, pd.DataFrame], criterion: str, pairs: list[str], share: tuple[int, int]
) -> dict[str, tuple[bytes, bytes]]:
    """(PNG, PDF) by figure name, of this process's share of the figures."""
    return {name: figure_bytes(figure) for name, figure in all_figures(tables, criterion, pairs, share).items()}
