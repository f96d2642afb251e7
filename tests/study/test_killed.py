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
import multiprocessing, os, random, shutil, signal, time
from pathlib import Path
from sharpscope.cli.main import main
from sharpscope.study import report, workers

def units():
    return len(list(Path("run").glob("units/*.unit")))

def launch():
    compute, forks = workers.compute_each, multiprocessing.get_context("fork")
    workers.compute_each = lambda *args: (time.sleep(0.05), compute(*args))[1]
    multiprocessing.get_context = lambda _: forks
    os._exit(main(["run", "study.yaml", "--out", "run"]))

if __name__ == "__main__":
    report.all_figures = lambda *_: {}
    rng = random.Random(0)
    for killed in (True, True, False):
        wanted = units() + rng.randint(1, 5)
        if not (pid := os.fork()):
            launch()
        while killed and units() < wanted and not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.01)
        if killed:
            os.kill(pid, signal.SIGKILL)
        print("it ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        if killed:
            shutil.copytree("run/units", "kept", dirs_exist_ok=True)
"""
"""Forks each run, and that its worker, from one process that has imported everything; test_plugins starts workers as
users have them."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every unit and table in ``folder``."""
    return {p.name: p.read_bytes() for kind in ("*.unit", "*.csv") for p in folder.glob(kind)}


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
    (tmp_path / "study.yaml").write_text(dump(dataclasses.replace(config, jobs=2)))
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = [sys.executable, "driver.py"]
    done = subprocess.run(driver, cwd=tmp_path, env=environment, capture_output=True, text=True)
    ends = [line for line in done.stdout.splitlines() if line.startswith("it ended")]
    assert ends == ["it ended with -9", "it ended with -9", "it ended with 0"], done.stderr
    alone = study.run(config, tmp_path / "alone").root
    kept, units, expected = (contents(tmp_path / path) for path in ("kept", "run/units", "alone/units"))
    assert kept.items() < units.items(), "what was finished is kept"
    assert set(units) == set(expected)
    assert contents(tmp_path / "run" / "tables") == contents(alone / "tables")
