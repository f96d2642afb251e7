"""A study from config to report: inputs are checked, units of work done, and tables, figures and report written."""

from __future__ import annotations

import contextlib
import os
import tempfile

from sharpscope.clip.progress import MakeBar, silent
from sharpscope.config.study import StudyConfig
from sharpscope.study.context import check_inputs, load_contexts
from sharpscope.study.manifest import identity_of, manifest_of
from sharpscope.study.report import Run, write_derived
from sharpscope.study.results import Results
from sharpscope.study.store import RunDirectory
from sharpscope.study.workers import Crew

__all__ = ["run"]


def run(config: StudyConfig, out: str | os.PathLike[str] | None = None, progress: MakeBar | None = None) -> Run:
    """Do a study, or what is missing of it, and write tables, figures and report.

    Args:
        config: what to do.
        out: the run directory; the same config again resumes, another one is refused. Default: a new temporary folder.
        progress: makes a bar from ``total`` and ``desc``, e.g. ``tqdm``; default: none is shown.

    Raises:
        ConfigError: no pair, no test set, an unknown name, a criterion whose measure is not taken, a device that is
            not there, an arithmetic that the device does not have, or several jobs from a script whose call of this
            function is not guarded (``check_main_guard``).
        CheckpointError, PairMismatch, NonFiniteWeights, DatasetError: inputs that cannot be used; among them a probe or
            an OOD set with the images of another set.
        RunDirectoryError: a folder that belongs to another study, is locked or cannot be written.

    All of them before anything is measured. A unit that fails later is in ``failed_units``, the others go on.
    """
    check_inputs(config)
    bars = progress or silent
    with Crew(config) as crew:
        contexts = load_contexts(config)
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
