"""A run of two processes that is killed again and again: the tables of one that nobody disturbed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharpscope.config.study import StudyConfig
from sharpscope.config.studyfile import dump
from sharpscope.study import run as study

DRIVER = """
import multiprocessing, os, random, signal, time
from pathlib import Path
from sharpscope.cli.main import main
from sharpscope.study import report, workers

def units():
    return len(list(Path("run").glob("units/*.unit")))

def launch():
    compute, forks = workers.compute_each, multiprocessing.get_context("fork")
    workers.compute_each = lambda *args: (time.sleep(0.2), compute(*args))[1]
    multiprocessing.get_context = lambda _: forks
    os._exit(main(["run", "study.yaml", "--out", "run"]))

if __name__ == "__main__":
    report.all_figures = lambda *_: {}
    rng = random.Random(0)
    for _ in range(2):
        wanted = units() + rng.randint(1, 5)
        if not (pid := os.fork()):
            launch()
        while units() < wanted and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        print("it ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Forks each run, and that its worker, from one process that has imported everything."""


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_killed_at_random_instants_two_processes_finish_with_the_same_tables_as_one(
    smallest: StudyConfig, tmp_path: Path
) -> None:
    """Every kind of unit, but one measure only, and no figures: what is compared are the tables."""
    config = dataclasses.replace(
        smallest, paths=("linear", "lines"), agreement=True, max_matvecs=4,
        density_layers=("visual.post",), density_alphas=(0.5,),
        eigenvectors=1, eigenvector_layers=("visual.post",), eigenvector_alphas=(0.5,),
    )  # fmt: skip
    shared = dataclasses.replace(config, jobs=2)
    (tmp_path / "study.yaml").write_text(dump(shared))
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = [sys.executable, "driver.py"]
    done = subprocess.run(driver, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == 2 * "it ended with -9\n", done.stderr
    root = tmp_path / "run"
    kept = {p: p.read_bytes() for p in root.glob("units/*.unit")}
    assert kept and not (root / "tables").exists()
    study.run(shared, root)
    alone = study.run(config, tmp_path / "alone")
    assert len(kept) < len(list(root.glob("units/*.unit"))) == len(list(alone.root.glob("units/*.unit")))
    assert all(path.read_bytes() == before for path, before in kept.items()), "what was finished is kept"
    tables = {p.name: p.read_bytes() for p in (alone.root / "tables").glob("*.csv")}
    assert tables == {p.name: p.read_bytes() for p in (root / "tables").glob("*.csv")}
