"""Cores and threads: never more than affinity, quota and OMP_NUM_THREADS grant, never fewer than one."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest
import torch

from sharpscope.config.study import StudyConfig
from sharpscope.machine.cores import cores, threads
from sharpscope.machine.cores import processes as PROCESSES  # noqa: N812 - before the tests replace it
from sharpscope.machine.ranks import Ranks, ranks
from sharpscope.study.workers import threads_of, with_jobs

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A made-up root folder: ``groups`` is /proc/self/cgroup, ``files`` lie below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "0::/user.slice/job\n"
V1 = "11:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n"
CASES = {
    "no control groups": ("", {}, 16),
    "version 2": (V2, {"user.slice/job/cpu.max": "400000 100000\n"}, 4),
    "version 2, a group around it": (V2, {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "3 1"}, 3),
    "version 2, the tightest counts": (V2, {"user.slice/job/cpu.max": "5 1", "cpu.max": "7 1"}, 5),
    "version 2, in a container": ("0::/\n", {"cpu.max": "250000 100000"}, 2),
    "version 2, seen from outside its namespace": ("0::/../job\n", {"cpu.max": "250000 100000"}, 2),
    "less than one core": ("0::/\n", {"cpu.max": "10000 100000"}, 1),
    "more than the affinity": ("0::/\n", {"cpu.max": "6400000 100000"}, 16),
    "no limit": ("0::/\n", {"cpu.max": "max 100000"}, 16),
    "version 1": (V1, {"cpu/docker/x/cpu.cfs_quota_us": "600000", "cpu/docker/x/cpu.cfs_period_us": "100000"}, 6),
    "version 1, in a container": (V1, {"cpu/cpu.cfs_quota_us": "6", "cpu/cpu.cfs_period_us": "2"}, 3),
    "version 1, both names": (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "2", "cpu,cpuacct/cpu.cfs_period_us": "1"}, 2),
    "version 1, no limit": (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    "nonsense": ("x\n0::\n::\n", {"cpu.max": "lots 0", "cpu/cpu.cfs_quota_us": "1"}, 16),
    "a period of nothing": ("0::/\n", {"cpu.max": "1000 0"}, 16),
}


@pytest.mark.parametrize("name", CASES)
def test_a_quota_limits_the_cores(tmp_path, name):
    groups, files, expected = CASES[name]
    assert cores(machine(tmp_path, groups, files)) == expected


def test_the_cores_are_those_of_the_affinity(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores(tmp_path) == 64  # macOS


def test_jobs_and_ranks_share_the_cores_and_openmp_has_the_last_word(monkeypatch):
    monkeypatch.setattr("sharpscope.machine.cores._quotas", lambda _: iter((12.9,)))
    for jobs in range(1, 30):
        assert threads(jobs) == max(12 // jobs, 1) == threads_of(StudyConfig(jobs=jobs))
        assert threads_of(StudyConfig(jobs=jobs, threads=5)) == 5
    for asked, expected in {"2": 2, "100": 12, "3,2,1": 3, " 4 ": 4, "0": 12, "": 12, "-1": 12, "many": 12}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert threads() == expected, asked
    monkeypatch.delenv("OMP_NUM_THREADS")
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert cores() == 3 == threads() and threads(2) == 1 == threads(20)


def test_two_processes_share_a_study_where_the_cores_are_there_and_nobody_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setattr("sharpscope.machine.cores.processes", PROCESSES)
    for found, expected in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr("sharpscope.machine.cores.cores", lambda found=found: found)
        assert with_jobs(StudyConfig(device="cpu")).jobs == expected, found
        assert with_jobs(StudyConfig(jobs=3)).jobs == 3
    script = tmp_path / "script.py"
    script.write_text("from sharpscope.study.workers import with_jobs\nfound = with_jobs(config).jobs\n")
    config = StudyConfig(device="cpu")
    assert runpy.run_path(str(script), {"config": config}, run_name="__main__")["found"] == 1, "no guard"
    assert runpy.run_path(str(script), {"config": config}, run_name="imported")["found"] == 2
    monkeypatch.setattr("sharpscope.study.workers.pick_device", lambda _: torch.device("cuda"))
    assert with_jobs(StudyConfig()).jobs == 1
    monkeypatch.setattr("sharpscope.study.workers.pick_device", lambda _: torch.device("cpu"))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert with_jobs(StudyConfig()).jobs == 1


def test_ranks_are_believed_only_where_torchrun_has_said_everything(monkeypatch):
    assert ranks() == Ranks() and ranks().leads and not ranks().several
    for name, value in TORCHRUN.items():
        assert ranks() == Ranks(), name
        monkeypatch.setenv(name, value)
    assert ranks() == Ranks(5, 8, 1, 4) and not ranks().leads and ranks().several
    monkeypatch.setenv("LOCAL_RANK", "x")
    assert ranks() == Ranks()
