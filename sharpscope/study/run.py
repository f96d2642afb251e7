"""A study from config to report: it checks the inputs, does the units of work and writes tables, figures and report."""

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
    """Run a study, or the missing part of it, and write tables, figures and report.

    Args:
        config: the study.
        out: the run directory. The same config resumes it, another config is refused. Default: a new temporary folder.
        progress: a function of ``total`` and ``desc`` that makes a progress bar, e.g. ``tqdm``. Default: no bar.

    Returns:
        The finished run. A unit that fails while it is measured is in its ``failed_units``; the others go on.

    Raises:
        ConfigError: no pair, no test set, an unknown name, a criterion whose measure is not taken, a device that is
            not there, an arithmetic that the device does not have, or several jobs from a script whose call of this
            function is not guarded (``check_main_guard``).
        CheckpointError, PairMismatch, NonFiniteWeights, DatasetError: inputs that cannot be used; among them a probe or
            an OOD set with the images of another set.
        RunDirectoryError: a folder that belongs to another study, is locked or cannot be written.

    All of these are raised before anything is measured.
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
        results = Results(
            config, {n: c.layers for n, c in contexts.items()}, {n: c.pair.facts for n, c in contexts.items()}
        )
        with contextlib.closing(bars(total=len(results.first_tasks()), desc="measure")) as bar:
            results.take(*crew.do(directory, results.first_tasks(), bar))
        repairs = results.repair_tasks()
        with contextlib.closing(bars(total=len(repairs), desc="repair")) as bar:
            results.take(*crew.do(directory, repairs, bar))
        return write_derived(directory, results, crew.spread, config.jobs)
