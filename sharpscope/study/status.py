"""How far a run is: what is done, who works on what, what has failed, and how long the rest may take.

Nothing is written and torch is not imported, so that a run can be looked at from any machine that sees its folder.
"""

from __future__ import annotations

import datetime
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sharpscope.atomic import start_of
from sharpscope.clip.progress import duration
from sharpscope.errors import shown
from sharpscope.study.claims import SILENCE_SECONDS, Holder
from sharpscope.study.finished import opened
from sharpscope.study.log import failures_in
from sharpscope.study.results import Results
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task

__all__ = ["Status", "status"]

_MOST_NAMED: Final = 20
"""The largest number of units that one list of the text names; of the others it gives the number."""


@dataclass(frozen=True)
class Status:
    """How far the run in ``root`` is. Every unit is in one of done, running, failed and waiting.

    ``running`` gives the process that holds each unit, ``failed`` the reason of the last try. ``seconds`` are those
    that finished units took, by kind of work. ``chosen`` is whether the repairs are known, which are chosen when
    everything else is there; ``reported`` whether the report has been written since the last unit.
    """

    root: Path
    done: tuple[Task, ...]
    running: Mapping[Task, Holder] = field(default_factory=dict)
    failed: Mapping[Task, str] = field(default_factory=dict)
    waiting: tuple[Task, ...] = ()
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    chosen: bool = True
    reported: bool = True

    @property
    def left(self) -> float | None:
        """Estimated seconds that the known units still take, None where no unit of some kind is finished.

        The median seconds of the finished units of the same kind, added up over the units that run or wait, divided by
        the number of units that run at present. A unit that runs counts as a whole one.
        """
        open_units = Counter(t.kind for t in (*self.running, *self.waiting))
        if any(kind not in self.seconds for kind in open_units):
            return None
        total = sum(count * statistics.median(self.seconds[kind]) for kind, count in open_units.items())
        return total / max(len(self.running), 1)

    def __str__(self) -> str:
        return "\n".join([self._headline(), *self._kinds(), *self._lists(), *self._estimate()])

    def _headline(self) -> str:
        total = len(self.done) + len(self.running) + len(self.failed) + len(self.waiting)
        return f"{shown(self.root, 500)}: {len(self.done)} of {total} units are done" + (
            "; repairs come on top, which are chosen when these are there." if not self.chosen else "."
        )

    def _kinds(self) -> list[str]:
        states = {"done": self.done, "running": self.running, "failed": self.failed, "waiting": self.waiting}
        counts = {state: Counter(t.kind for t in tasks) for state, tasks in states.items()}
        kinds = dict.fromkeys(t.kind for tasks in states.values() for t in tasks)
        width = max(map(len, ["kind", *kinds]))
        rows = [f"{'kind':<{width}}" + "".join(f"{state:>9}" for state in states) + "   median seconds"]
        for kind in kinds:
            took = f"{statistics.median(self.seconds[kind]):>17.3g}" if kind in self.seconds else ""
            rows.append(f"{kind:<{width}}" + "".join(f"{c[kind]:>9}" for c in counts.values()) + took)
        return rows

    def _lists(self) -> list[str]:
        running = [f"{shown(t.key)}: {holder}{_since(holder)}" for t, holder in self.running.items()]
        failed = [f"{shown(t.key)}: {shown(reason, 300)}" for t, reason in self.failed.items()]
        return [*_listed("running:", running), *_listed("failed (the same command tries again):", failed)]

    def _estimate(self) -> list[str]:
        todo = (*self.running, *self.waiting)
        if not todo and self.chosen:
            return [] if self.reported else ["tables and report: not there yet; the same command writes them"]
        share = f"{len(self.running)} at a time" if self.running else "one at a time, as no process works on them now"
        unknown = sorted({t.kind for t in todo} - set(self.seconds))
        if unknown:
            return [f"time left: not known, because no unit of this kind is finished yet: {', '.join(unknown)}"]
        basis = ", ".join(
            f"{count} of {kind} at {statistics.median(self.seconds[kind]):.3g} s"
            for kind, count in Counter(t.kind for t in todo).items()
        )
        rest = "" if self.chosen else "; without the repairs"
        return [f"time left: about {duration(self.left or 0.0)} ({basis}, the median of those finished; {share}){rest}"]


def status(root: str | os.PathLike[str]) -> Status:
    """How far the run in the directory ``root`` is.

    A unit runs where a process of this host lives that has claimed it, or where a process of another host has renewed
    its claim within the last minutes, by this host's clock.

    Raises:
        RunDirectoryError: the folder is not the directory of a study, or another version of sharpscope made it.
        ConfigError: the config in the manifest cannot be read.
    """
    directory, results = opened(root)
    events = list(directory.history.events())
    reasons = failures_in(events)
    first = _states(directory, results.first_tasks(), reasons)
    chosen = not first.running and not first.waiting
    repairs = _states(directory, _repairs(directory, results, first.done) if chosen else (), reasons)
    seconds: dict[str, list[float]] = {}
    for event in events:
        if event["event"] == "unit":
            seconds.setdefault(Task(event["key"]).kind, []).append(event["seconds"])
    last = max((i for i, e in enumerate(events) if e["event"] in ("unit", "failed")), default=-1)
    return Status(
        directory.root,
        first.done + repairs.done,
        {**first.running, **repairs.running},
        {**first.failed, **repairs.failed},
        first.waiting + repairs.waiting,
        seconds,
        chosen,
        any(e["event"] == "report" for e in events[last + 1 :]),
    )


def _states(directory: RunDirectory, tasks: Iterable[Task], reasons: Mapping[str, str]) -> Status:
    done, waiting = [], []
    running, failed = {}, {}
    for task in tasks:
        holder = None if directory.has(task.key) else directory.claims.read(task.key)
        if directory.has(task.key):  # asked last, as a unit may be finished at this very moment
            done.append(task)
        elif holder is not None and _works(holder):
            running[task] = holder
        elif task.key in reasons:
            failed[task] = reasons[task.key]
        else:
            waiting.append(task)
    return Status(directory.root, tuple(done), running, failed, tuple(waiting))


def _repairs(directory: RunDirectory, results: Results, done: Iterable[Task]) -> list[Task]:
    """The repairs, which follow from the other units that are ``done``."""
    units = {}
    for task in done:
        try:
            unit = directory.peek(task.key)
        except ValueError:  # damaged: the next run computes it again
            continue
        if unit is not None:
            units[task.key] = unit
    results.take(units, {})
    return results.repair_tasks()


def _works(holder: Holder) -> bool:
    if holder.is_here:
        return start_of(holder.pid) == holder.start
    return _age(holder) < SILENCE_SECONDS


def _age(holder: Holder) -> float:
    """Seconds since the claim was renewed, if the clock that dated the renewal agrees with this host's."""
    return time.time() - holder.renewed / 1e9


def _since(holder: Holder) -> str:
    try:
        text = f", since {datetime.datetime.fromisoformat(holder.since).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:  # a claim of an older version says nothing of it
        text = ""
    return text if holder.is_here else f"{text}, last heard of {max(_age(holder), 0):.0f} s ago by this host's clock"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
    return [title, *(f"  {line}" for line in lines[:_MOST_NAMED]), *more] if lines else []
