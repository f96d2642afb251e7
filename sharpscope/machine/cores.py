"""How many CPU cores this process may use, and how many threads it takes of them.

A container or a scheduler seldom leaves a process all cores of its machine. More threads than cores make every sum wait
for its slowest part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sharpscope.machine.ranks import ranks

__all__ = ["cores", "processes", "threads"]


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use, at least 1: those of its affinity, at most what its control groups grant.

    Ranks of one host share them: each has an equal part.
    A quota of 2.5 cores counts as 2: a third thread would be held back half of the time, and the others with it.
    ``root``: the folder that stands for ``/`` where ``proc`` and ``sys`` are looked for.

    Source: the kernel's cgroup-v1 (CFS bandwidth control) and cgroup-v2 (cpu.max) documentation.
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([here, *map(int, _quotas(root))]) // ranks().local_world, 1)


def processes() -> int:
    """The number of processes that share a study's work on this host's CPU where nobody says how many: 1 or 2.

    The operations on small tensors, of which a study of a small model consists, gain little from a second thread. More
    than two processes would each hold the models and the data.
    """
    return 1 if ranks().several else min(cores(), 2)


def threads(jobs: int = 1) -> int:
    """CPU threads of each of ``jobs`` worker processes, at least 1.

    The cores are divided among them, and OMP_NUM_THREADS, where it is set, is the most that each takes.
    """
    share = cores() // jobs
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has one number for each level
    return max(min(share, int(asked)) if asked.isdecimal() and int(asked) else share, 1)


def _quotas(root: Path) -> Iterator[float]:
    """Cores that each control group of this process may use, of those that set a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:  # version 2
            for folder in _upwards(root / "sys/fs/cgroup", group):
                yield from _quota(*_text(folder / "cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):  # version 1, mounted under one name or the other
            for mount in ("cpu", controllers):
                for folder in _upwards(root / "sys/fs/cgroup" / mount, group):
                    yield from _quota(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The folder of ``group`` and of every group around it. Inside a container the outermost is the container's own."""
    inner = PurePosixPath(group.lstrip("/"))
    yield from (mount / part for part in (inner, *inner.parents) if ".." not in part.parts)


def _quota(quota: str = "", period: str = "") -> Iterator[float]:
    """Cores, from microseconds of processor time in a period of time; nothing where there is no limit."""
    if quota.strip().isdecimal() and period.strip().isdecimal() and int(period):
        yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # no such control group here, or another system
        return ""
