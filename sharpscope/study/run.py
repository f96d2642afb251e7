"""A study from config to report: it checks the inputs, does the units of work and writes tables, figures and report."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence

from sharpscope.clip.progress import Shown, bars_for
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.study.context import check_inputs, load_contexts
from sharpscope.study.launch import Launch
from sharpscope.study.log import failures_in
from sharpscope.study.manifest import contents_of, identity_of, manifest_of
from sharpscope.study.report import Run, read_derived, write_derived
from sharpscope.study.results import Results
from sharpscope.study.shard import Shard, Unfinished
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task
from sharpscope.study.together import team_of_ranks
from sharpscope.study.workers import Crew, threads_of, with_jobs

__all__ = ["run", "run_shard"]


def run(config: StudyConfig, out: str | os.PathLike[str] | None = None, progress: Shown = False) -> Run:
    """Run a study, or the missing part of it, and write tables, figures and report.

    Processes that run the same study in the same directory at the same time share its units. The ranks of ``torchrun``
    do so too: rank 0 opens the directory, shows progress and writes, and every rank returns the finished run. With
    ``split_units`` the ranks measure every unit of the probe set together, and the directory belongs to their number.

    Args:
        config: the study.
        out: the run directory. The same config resumes it, another config is refused. Default: a new temporary folder.
        progress: True shows a bar, a function of ``total`` and ``desc`` (such as ``tqdm``) makes one.

    Returns:
        The finished run. A unit that fails while it is measured is in its ``failed_units``; the others go on.

    Raises:
        ConfigError: no pair, no test set, an unknown name, a criterion whose measure is not taken, a device that is
            not there, an arithmetic that the device does not have, several ranks without ``out``, split units without
            several ranks or with too few batches, or several jobs from a script whose call of this function is not
            guarded (``check_main_guard``).
        CheckpointError, PairMismatch, NonFiniteWeights, DatasetError: inputs that cannot be used; among them a probe or
            an OOD set with the images of another set.
        RunDirectoryError: a folder that belongs to another study, is locked or cannot be written.

    All of these are raised before anything is measured.
    """
    finished = run_shard(config, out, Shard(), progress)
    assert isinstance(finished, Run)  # nothing is left to others
    return finished


def run_shard(
    config: StudyConfig, out: str | os.PathLike[str] | None, shard: Shard, progress: Shown = False
) -> Run | Unfinished:
    """Like ``run`` for one share of the units; the repairs are shared out once all other units are there.

    The run is finished by whoever finds every unit done or failed. Otherwise the answer says what is missing. Raises
    what ``run`` raises.
    """
    check_inputs(config)
    config = with_jobs(config)
    launch = Launch()
    if out is None and launch.ranks.several:
        raise ConfigError("out: several ranks share one run directory, which has to be named.\nRemedy: --out FOLDER.")
    bars = bars_for(progress and launch.leads and progress)
    with team_of_ranks(config, launch, threads_of(config)) as team, Crew(config, team) as crew:
        contexts = load_contexts(config, team)
        crew.add_contexts(contexts)
        if not launch.leads:
            launch.wait_for("the directory is open")
        directory = RunDirectory.open(
            tempfile.mkdtemp(prefix="sharpscope-") if out is None else out,
            identity_of(config, contexts) | {"contents": contents_of(contexts)},
            manifest_of(config, contexts) if launch.leads else {},
        )
        launch.say("the directory is open")
        directory.log("start", jobs=config.processes)
        results = Results(
            config, {n: c.layers for n, c in contexts.items()}, {n: c.pair.facts for n, c in contexts.items()}
        )
        for desc, find in (("measure", results.first_tasks), ("repair", results.repair_tasks)):
            tasks = find()
            share = shard.of(tasks)
            with contextlib.closing(bars(total=len(share), desc=desc)) as bar:
                results.take(*crew.do(directory, share, bar))
            if missing := _take_others(directory, results, tasks):
                return Unfinished(directory.root, shard, missing, desc == "repair")
        if not launch.leads:
            launch.wait_for("everything is written")
            return read_derived(directory, results)
        finished = write_derived(directory, results, crew.spread, config.processes)
        launch.say("everything is written")
        return finished


def _take_others(directory: RunDirectory, results: Results, tasks: Sequence[Task]) -> int:
    """Take what other shares have done of ``tasks``; the number of units that they have neither done nor failed."""
    others = [t.key for t in tasks if t.key not in results.units and t.key not in results.failed]
    reasons = failures_in(directory.history.events()) if others else {}
    units = {key: unit for key in others if (unit := directory.load(key)) is not None}
    failed = {key: reasons[key] for key in others if key not in units and key in reasons}
    results.take(units, failed)
    return len(others) - len(units) - len(failed)
