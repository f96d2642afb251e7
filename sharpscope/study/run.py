"""A study from config to report: it checks the inputs, does the units of work and writes tables, figures and report."""

from __future__ import annotations

import contextlib
import os
import tempfile

from sharpscope.clip.datasets.spec import check_folders, check_spec
from sharpscope.clip.progress import MakeBar, silent
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.study.context import Context, check_density_layers
from sharpscope.study.manifest import identity_of, manifest_of
from sharpscope.study.report import Run, write_derived
from sharpscope.study.results import Results
from sharpscope.study.store import RunDirectory
from sharpscope.study.workers import Crew
from sharpscope.vocabulary import CRITERIA, parse_criterion

__all__ = ["run"]


def run(config: StudyConfig, out: str | os.PathLike[str] | None = None, progress: MakeBar | None = None) -> Run:
    """Run a study, or the missing part of it, and write tables, figures and report.

    Args:
        config: the study.
        out: the run directory. The same config resumes it, another config is refused. Default: a new temporary folder.
        progress: a function of ``total`` and ``desc`` that makes a progress bar, e.g. ``tqdm``. Default: no bar.

    Returns:
        The finished run. A unit that fails while it is measured is in its ``failed_units``; the others go on.

    Raises:
        ConfigError: no pair, no test set, an unknown name or a criterion whose measure is not taken.
        CheckpointError, PairMismatch, NonFiniteWeights, DatasetError: inputs that cannot be used.
        RunDirectoryError: a folder that belongs to another study, is locked or cannot be written.

    All of these are raised before anything is measured.
    """
    _check_study(config)
    bars = progress or silent
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
        return write_derived(directory, results, crew.spread, config.jobs)


def _check_study(config: StudyConfig) -> None:
    if not config.pairs:
        raise ConfigError("pairs: give two checkpoints (--zeroshot A --finetuned B).")
    if not config.id and not config.ood:
        raise ConfigError("id, ood: give at least one test set (--id SPEC --ood SPEC ...).")
    _, measure = parse_criterion(config.straggler_criterion)
    if measure and measure not in config.measures:  # else the error would come only after everything is computed
        free = ", ".join(c.name for c in CRITERIA.values() if not c.takes_measure)
        raise ConfigError(
            f"straggler_criterion: '{config.straggler_criterion}' needs {measure} among measures.\n"
            f"Remedy: add it, or choose a criterion that needs no measure ({free})."
        )
    for spec in (config.probe, *config.id, *config.ood):
        check_spec(spec)
    check_folders((config.probe, *config.id, *config.ood), config.data_root)
