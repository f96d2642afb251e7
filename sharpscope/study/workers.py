"""Computes units of work in one or several processes, resumes runs, and shares a run directory with other runs."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from sharpscope.clip.pair import pick_device
from sharpscope.clip.progress import Bar
from sharpscope.config.plugins import load_plugin, loaded_plugins
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError, NumericalError, SharpscopeError, shown
from sharpscope.machine import cores
from sharpscope.machine.devices import release
from sharpscope.machine.ranks import ranks
from sharpscope.machine.team import ALONE, Team
from sharpscope.study.claims import Claim
from sharpscope.study.compute import compute_each
from sharpscope.study.context import Context, Shelf
from sharpscope.study.evaluating import points_at_once
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Family, Task
from sharpscope.study.together import measured_together
from sharpscope.study.unitfile import Unit

__all__ = ["Crew", "check_main_guard", "in_threads_of", "threads_of", "with_jobs"]

_T = TypeVar("_T")
_POLL = 0.5
_Computed = tuple[Unit | str, float]
_Result = tuple[Task, Unit | str, float | None]


class Crew:
    """Computes the tasks of one study: this process does one job, worker processes do the others.

    A context manager. The worker processes end with it whatever happens, and on their own if this process is killed.
    ``team``: the ranks that measure together the units that they can.
    """

    def __init__(self, config: StudyConfig, team: Team = ALONE) -> None:
        self.config, self.team = config, team
        self._contexts: dict[str, Context] = {}
        self._pool: ProcessPoolExecutor | None = None
        if config.processes > 1:
            check_main_guard()
            self._pool = ProcessPoolExecutor(
                config.processes - 1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(threads_of(config), os.getpid(), loaded_plugins()),
            )
            # Workers import torch and load the first pair while this process still checks the inputs.
            self._warm = [self._pool.submit(_warm_up, config) for _ in range(config.processes - 1)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            workers = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()

    def add_contexts(self, contexts: Mapping[str, Context]) -> None:
        """The contexts that this process uses (worker processes make their own)."""
        self._contexts.update(contexts)

    def spread(self, work: Callable[..., _T], shares: Sequence[tuple[Any, ...]]) -> list[_T]:
        """``work(*share)`` for every share: the first in this process, the others in the worker processes."""
        if self._pool is None:
            return [work(*share) for share in shares]
        with _workers_alive():
            futures = [self._pool.submit(work, *share) for share in shares[1:]]
            return [work(*shares[0]), *(f.result() for f in futures)]

    def do(self, directory: RunDirectory, tasks: Sequence[Task], bar: Bar) -> tuple[dict[str, Unit], dict[str, str]]:
        """(units by key, reasons of failure by key): finished units are read, all others are computed and saved."""
        units: dict[str, Unit] = {}
        failed: dict[str, str] = {}
        together = [task for task in tasks if self.team.several and task.splits]
        waiting: deque[Task] = deque()
        for task in tasks:
            if task in together:
                continue
            unit = directory.load(task.key)
            if unit is None:
                waiting.append(task)
            else:
                units[task.key] = unit
                bar.update()
        split = measured_together(self.team, directory, together, lambda task: self._here([task], bar)[0])
        for task, result, seconds in itertools.chain(split, self._results(directory, waiting, bar)):
            if isinstance(result, str):
                failed[task.key] = result
                if seconds is not None:
                    directory.log("failed", key=task.key, reason=result)
            else:
                units[task.key] = result
                if seconds is not None:
                    directory.save(task.key, result)
                    engine = {"engine": result.rows["engine"]} if result.rows.get("engine") else {}
                    directory.log("unit", key=task.key, seconds=round(seconds, 3), **engine)
            bar.set_postfix_str(_told(task, result, seconds))
            bar.update()
        return units, failed

    def _results(self, directory: RunDirectory, waiting: deque[Task], bar: Bar) -> Iterator[_Result]:
        """Claim and compute tasks and yield their results; tasks that another live process has claimed are waited for
        and read from the directory, as are its failures (their seconds are None)."""
        running: dict[Future[list[_Computed]], _Chunk] = {}
        elsewhere: deque[Task] = deque()
        sizes = self._chunk_sizes(waiting)

        def claimed() -> _Chunk | None:
            """The first waiting tasks that can be computed together and that no other process has claimed."""
            found: list[tuple[Task, Claim]] = []
            others: list[Task] = []
            family, most = None, 1
            while waiting and len(found) < most:
                task = waiting.popleft()
                if found and _together(task) != family:
                    others.append(task)
                elif (claim := directory.claim(task.key)) is None:
                    elsewhere.append(task)
                else:
                    family = _together(task)
                    most = 1 if family is None else sizes[family]
                    found.append((task, claim))
            waiting.extendleft(reversed(others))
            return _Chunk(*zip(*found, strict=True)) if found else None

        def hand_out(most: int) -> None:
            """Give the workers tasks until ``most`` chunks of them run or wait there."""
            while len(running) < most and (found := claimed()) is not None:
                assert self._pool is not None
                with _workers_alive():
                    running[self._pool.submit(_remote, self.config, found.tasks)] = found

        try:
            while waiting or running or elsewhere:
                # The longest tasks come first: one for each worker, then one for this process. One more waits for each
                # worker, so that none is idle while this process computes.
                hand_out(self.config.processes - 1)
                own = claimed()
                with contextlib.nullcontext() if own is None else own:
                    hand_out(2 * (self.config.processes - 1))
                    if own is not None:
                        yield from own.results(self._here(own.tasks, bar))
                if own is None and running:
                    wait(running, return_when=FIRST_COMPLETED)
                elif own is None and elsewhere:
                    time.sleep(_POLL)
                for future in [f for f in running if f.done()]:
                    with running.pop(future) as chunk:
                        yield from chunk.results(_outcome(future))
                for _ in range(len(elsewhere)):
                    task = elsewhere.popleft()
                    unit = directory.load(task.key)
                    if unit is not None:
                        yield task, unit, None
                    elif (reason := directory.history.failures().get(task.key)) is not None:
                        yield task, reason, None
                    elif directory.holder(task.key) is None:
                        waiting.append(task)
                    else:
                        elsewhere.append(task)
        finally:
            for chunk in running.values():
                chunk.release()

    def _chunk_sizes(self, waiting: Iterable[Task]) -> dict[_Together, int]:
        """For points that can share a pass over the images: how many of them do.

        As many as fit into memory, but few enough that every job of every rank has points to evaluate.
        """
        counts = Counter(at for task in waiting if (at := _together(task)) is not None)
        shares = -(-self.config.processes * ranks().world // max(len(counts), 1))
        return {
            (pair, family): min(points_at_once(self._contexts[pair], family), -(-n // shares))
            for (pair, family), n in counts.items()
        }

    def _here(self, tasks: Sequence[Task], bar: Bar) -> list[_Computed]:
        with in_threads_of(self.config):
            return _guarded(self._contexts[tasks[0].pair], tasks, bar.set_postfix_str)


_Together = tuple[str, Family]
"""The pair and the family of points that can share a pass over the images."""


def _together(task: Task) -> _Together | None:
    return None if task.family is None else (task.pair, task.family)


@dataclass(frozen=True)
class _Chunk:
    """Tasks that are computed together, with their claims, which end with the ``with`` block."""

    tasks: tuple[Task, ...]
    claims: tuple[Claim, ...]

    def results(self, computed: Sequence[_Computed]) -> Iterator[_Result]:
        for task, (result, seconds) in zip(self.tasks, computed, strict=True):
            yield task, result, seconds

    def release(self) -> None:
        for claim in self.claims:
            claim.release()

    def __enter__(self) -> _Chunk:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _told(task: Task, result: Unit | str, seconds: float | None) -> str:
    """What progress says of a task that has just come to its end."""
    said = f"{task.key}, by another process" if seconds is None else f"{task.key}, {seconds:.1f} s"
    return f"{said}, failed: {shown(result)}" if isinstance(result, str) else said


def check_main_guard() -> None:
    """Raise ConfigError where a script calls this outside of ``if __name__ == "__main__":``.

    A worker process first imports the script that started it (what the script registers has to be known there too), and
    would start the whole study again. Notebooks and the console have no such file and need no guard.
    """
    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    frame: types.FrameType | None = sys._getframe()
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is None or path is None:
        return
    try:
        statements = ast.parse(Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return
    line = frame.f_lineno
    here = next((s for s in statements if s.lineno <= line <= (s.end_lineno or s.lineno)), None)
    guarded = isinstance(here, ast.If) and any(
        isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(here.test)
    )
    if here is not None and not guarded:
        raise ConfigError(
            f"jobs: {shown(path, 200)}, line {line}: every worker process imports this script and would run this line "
            'again.\nRemedy: put it under if __name__ == "__main__":, or take jobs=1.'
        )


def with_jobs(config: StudyConfig) -> StudyConfig:
    """The config with the number of processes that ``jobs`` 0 stands for here."""
    if config.jobs:
        return config
    jobs = cores.processes() if pick_device(config.device).type == "cpu" else 1
    if jobs > 1:
        try:
            check_main_guard()
        except ConfigError:
            jobs = 1
    return replace(config, jobs=jobs)


def threads_of(config: StudyConfig) -> int:
    """The number of CPU threads of each worker: as configured, otherwise its share of the cores (``cores.threads``)."""
    return config.threads or cores.threads(config.processes)


def _guarded(context: Context, tasks: Sequence[Task], progress: Callable[[str], None]) -> list[_Computed]:
    """(the unit, or the reason why it could not be computed; the seconds that it took) of every task.

    Where several points together fail or do not fit into memory, each half is tried alone. Errors of the input are
    raised.
    """
    start = time.perf_counter()
    reason = ""
    try:
        units = compute_each(context, tasks, progress)
    except NumericalError as error:
        reason = str(error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = f"out of memory: {shown(error)}"
    seconds = (time.perf_counter() - start) / len(tasks)
    if not reason:
        return [(unit, seconds) for unit in units]
    release(context.device)  # the frames of the failed attempt, which held what it allocated, are gone only now
    if len(tasks) == 1:
        return [(reason, seconds)]
    half = len(tasks) // 2
    return [*_guarded(context, tasks[:half], progress), *_guarded(context, tasks[half:], progress)]


@contextlib.contextmanager
def in_threads_of(config: StudyConfig) -> Iterator[None]:
    """Compute in this process with as many CPU threads as a worker of this study has."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(config))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------- inside a worker process
def _start_worker(threads: int, parent: int, plugins: Sequence[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; Ctrl-C reaches the whole process group
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for path in plugins:
        load_plugin(path)


def _end_with(parent: int) -> None:
    """End this worker as soon as another process has become its parent, which means that its own parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _warm_up(config: StudyConfig) -> None:
    """Make the contexts. Errors of the input are left to the parent process, which checks the input as well."""
    with contextlib.suppress(SharpscopeError):
        for pair in config.pairs[:4]:
            context = _context(json.dumps(config.to_dict()), pair.name)
            _ = context.probe, context.datasets


def _remote(config: StudyConfig, tasks: Sequence[Task]) -> list[_Computed]:
    return _guarded(_context(json.dumps(config.to_dict()), tasks[0].pair), tasks, lambda what: None)


@lru_cache(maxsize=4)
def _context(config: str, pair: str) -> Context:
    study = StudyConfig.from_dict(json.loads(config))
    return Context.load(study, next(p for p in study.pairs if p.name == pair), _shelf(config))


@lru_cache(maxsize=1)
def _shelf(config: str) -> Shelf:
    """The data sets of the study ``config``, of which a worker computes one."""
    return Shelf()


@contextlib.contextmanager
def _workers_alive() -> Iterator[None]:
    """Raise SharpscopeError where a worker process has ended; what is known of it is that alone."""
    try:
        yield
    except BrokenProcessPool as error:
        raise SharpscopeError(
            "a worker process ended without an error message; finished units are kept. Likely the system ran out of "
            "memory and stopped it, or a library crashed in it.\n"
            "Remedy: the same command with --jobs 1, which resumes the run and shows a crash where it happens."
        ) from error


def _outcome(future: Future[list[_Computed]]) -> list[_Computed]:
    with _workers_alive():
        return future.result()
