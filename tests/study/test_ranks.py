"""Ranks of torchrun and shards of an array: the bytes of one process, whoever does what and whoever dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from sharpscope.atomic import start_of
from sharpscope.cli import main as cli
from sharpscope.cli.outcome import ended
from sharpscope.clip.pair import pick_device
from sharpscope.config.studyfile import dump
from sharpscope.errors import ConfigError, SharpscopeError
from sharpscope.study.launch import Launch
from sharpscope.study.report import Run
from sharpscope.study.run import run, run_shard
from sharpscope.study.shard import Shard, Unfinished
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task
from sharpscope.vocabulary import BASES

DRIVER = """
import sys, time
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from sharpscope.cli.main import main
from sharpscope.study import report, workers
report.all_figures = lambda *_: {}
shape = {"min_nodes": 1, "max_nodes": 1, "max_restarts": 0, "start_method": "fork"}
place = {"run_id": "x", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}

def rank(pause):
    compute = workers.compute_each
    workers.compute_each = lambda *args: (time.sleep(pause), compute(*args))[1]
    sys.exit(main(["run", "study.yaml", "--out", "run"]))

for count, pause in ((3, 0.3), (2, 0.0)):
    died = False
    try:
        elastic_launch(LaunchConfig(nproc_per_node=count, **shape, **place), rank)(pause)
    except ChildFailedError:
        died = True
    print(f"{count} ranks, died: {died}", file=sys.stderr, flush=True)
    print("next", flush=True)
    sys.stdin.readline()
"""
"""``sharpscope run`` without figures in three ranks, then in two. torchrun's machinery forks them from a process that
has imported everything; 'make kills' starts them by its command."""


def contents(root: Path) -> dict[str, bytes]:
    """Every unit and table of a run."""
    files = [*root.glob("units/*"), *root.glob("tables/*.csv")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


LAYERS = [f"layers/success/{base}" for base in BASES]


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in RunDirectory.existing(root).history.events() if e["event"] == kind]


@pytest.mark.slow
def test_three_ranks_one_of_them_killed_then_two_end_with_the_bytes_of_one_process(smallest, smallest_run, tmp_path):
    (tmp_path / "study.yaml").write_text(dump(smallest))
    (tmp_path / "driver.py").write_text(DRIVER)
    root = tmp_path / "run"
    with (tmp_path / "said").open("w") as said, subprocess.Popen(
        [sys.executable, "driver.py"], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
    ) as launcher:  # fmt: skip
        while launcher.poll() is None and len(list(root.glob("units/*.unit"))) < 2:
            assert "died" not in (tmp_path / "said").read_text(), "a rank ended before it did a unit"
            time.sleep(0.02)
        victim = next(h for key in LAYERS if (h := RunDirectory.existing(root).holder(key)) is not None).pid
        os.kill(victim, signal.SIGKILL)
        assert launcher.stdout.readline() == "next\n"
        ranks = {e["pid"] for e in events(root, "start")}
        assert len(ranks) == 3 and victim in ranks
        assert all(start_of(pid) is None for pid in ranks), "no rank is left behind"
        assert not (root / "tables").exists()
        before, told = contents(root), len(events(root, "unit"))
        assert 2 <= len(before) < len(list(smallest_run[0].glob("units/*"))), "state is kept"
        out = launcher.communicate("on\non\n")[0]
    first, last, end = (tmp_path / "said").read_text().split(" ranks, died: ")
    assert last.startswith("True"), "a rank that dies ends the run"
    assert first.count("sharpscope: ") <= 1, "and rank 0 alone says so"
    assert end == "False\n" and contents(root) == contents(smallest_run[0])
    assert before.items() <= contents(root).items()
    later, computed = [e["pid"] for e in events(root, "start")[3:]], events(root, "unit")
    assert len(later) == 2 and len(events(root, "report")) == 1
    # How the few units that are left fall to two ranks is a matter of microseconds: one may do all of them.
    assert {e["pid"] for e in computed[told:]} <= set(later), "and nobody else worked"
    assert len({e["key"] for e in computed}) == len(computed), "no unit was computed twice"
    assert out.count("report: ") == 1, "rank 0 alone speaks"
    steps = [line.partition(":")[0] for line in last.splitlines() if line.startswith(("measure ", "repair "))]
    assert steps and len(set(steps)) == len(steps), "and shows progress"


# -- one rank at a time, in this process -------------------------------------------------------------------------------


class Words:
    """Stands for torchrun's store: what was said, and an error once its host is gone."""

    def __init__(self) -> None:
        self.said: set[str] = set()
        self.gone = False

    def set(self, word: str, value: str) -> None:
        self.said.add(word)

    def check(self, words: list[str]) -> bool:
        if self.gone:
            raise RuntimeError("connection reset")
        return self.said.issuperset(words)


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes this process rank ``k`` of two."""
    words = Words()
    monkeypatch.setattr("sharpscope.study.launch.rendezvous", lambda url: iter([(words, 0, 2)]))
    monkeypatch.setattr("sharpscope.study.report.all_figures", lambda *_: {})

    def become(rank: int) -> Words:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        monkeypatch.setenv("MASTER_PORT", "1")
        return words

    return become


def test_every_rank_returns_the_run_that_rank_0_wrote(smallest, smallest_run, tmp_path, as_rank):
    root = Path(shutil.copytree(smallest_run[0], tmp_path / "run"))
    words = as_rank(0)
    first = run(smallest, root)
    assert len(words.said) == 2
    written = {p: p.stat().st_mtime_ns for p in root.glob("tables/*")}
    as_rank(1)
    second = run(smallest, root)
    assert {p: p.stat().st_mtime_ns for p in root.glob("tables/*")} == written, "rank 0 alone writes"
    for name, table in first.tables.items():
        pd.testing.assert_frame_equal(second.tables[name], table)
    a, b = ({**vars(r), "tables": None} for r in (first, second))
    assert a == b and first.summary() == second.summary()


def test_a_rank_waits_for_rank_0_and_is_told_when_it_is_gone(smallest, tmp_path, as_rank, monkeypatch):
    words, waited = as_rank(1), []

    def sleep(seconds: float) -> None:
        assert not (tmp_path / "run").exists(), "rank 0 opens the directory"
        waited.append(seconds)
        words.gone = len(waited) == 3

    monkeypatch.setattr("sharpscope.study.launch.time.sleep", sleep)
    with pytest.raises(SharpscopeError, match="host of rank 0 cannot be reached"):
        run(smallest, tmp_path / "run")
    assert len(waited) == 3
    with pytest.raises(ConfigError, match="out: several ranks share one run directory"):
        run(smallest)


def test_a_lone_process_neither_waits_nor_connects(monkeypatch):
    monkeypatch.setattr("sharpscope.study.launch.rendezvous", None)
    launch = Launch()
    launch.say("x")
    launch.wait_for("y")
    assert launch.leads


def test_rank_0_speaks_and_another_one_only_of_what_is_wrong_with_it_alone(as_rank, capsys, monkeypatch):
    slept = []
    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=slept.append))  # claims sleep by the module itself
    for rank, label in enumerate(("sharpscope: error: ", "sharpscope: rank 1: error: ")):
        as_rank(rank)
        assert cli.main(["run", "--zeroshot", "a", "--finetuned", "b", "--alphas"]) == 2
        told = capsys.readouterr()
        assert told.err.startswith(f"{label}alphas: give at least one") and told.out == ""
        assert slept == [cli._LATE_SECONDS] * rank
        assert cli.main(["inspect", "a"]) == 2
        assert (
            "inspect: every rank of torchrun would do all of it; ranks can share: demo, run." in capsys.readouterr().err
        )
        slept.clear()
    monkeypatch.setattr(cli.time, "sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["inspect", "a"]) == 2 and capsys.readouterr().err == "", "the launch was ended before"
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == ""
    monkeypatch.setattr("sharpscope.study.run.run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    argv = [
        "run",
        "--zeroshot",
        "mini:zeroshot",
        "--finetuned",
        "mini:success",
        "--model",
        "mini",
        "--id",
        "mini:photo",
    ]
    assert cli.main(argv) == 130 and capsys.readouterr().err == ""
    as_rank(0)
    assert cli.main(argv) == 130 and "state kept" in capsys.readouterr().err


def test_failed_units_are_told_by_rank_0_alone(as_rank, capsys, monkeypatch, tmp_path):
    finished = Run(tmp_path, {}, failed_units=("path/x/0",))
    monkeypatch.setattr(Run, "summary", lambda _: "the summary")
    monkeypatch.setattr("sharpscope.study.run.run", lambda *_, **__: finished)
    as_rank(0)
    assert cli.main(["demo"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("the summary\n") and "1 units failed: path/x/0" in told.err
    as_rank(1)
    assert cli.main(["demo"]) == 0 and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("rank", "gpus", "own"), [(0, 2, 0), (1, 2, 1), (1, 1, 0), (1, 8, 1)])
def test_each_rank_has_a_gpu_of_its_own_where_there_are_several(as_rank, monkeypatch, rank, gpus, own):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("auto") == torch.device("cuda") and not current
    as_rank(rank)
    for word in ("auto", "cuda"):
        assert pick_device(word) == torch.device("cuda", own) == current.pop()
    assert pick_device("cpu") == torch.device("cpu") and not current


# -- shards of an array ------------------------------------------------------------------------------------------------


def test_shards_are_disjoint_and_together_everything():
    tasks = [Task(f"path/x/{n}") for n in range(23)]
    for count in range(1, 30):
        shares = [Shard(n, count).of(tasks) for n in range(1, count + 1)]
        assert sorted(t.key for share in shares for t in share) == sorted(t.key for t in tasks)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Shard.read("2/4") == Shard(2, 4) and str(Shard(2, 4)) == "2/4" and Shard.read(None) == Shard(1, 1)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "4", "a/b", "1/4/2", "-1/4", "", "1 / 4", "\x1b[31m"])
def test_what_is_no_share_is_refused(text, capsys):
    with pytest.raises(ConfigError, match="the first of four is 1/4, the last one 4/4"):
        Shard.read(text)
    assert cli.main(["run", "--zeroshot", "a", "--finetuned", "b", f"--shard={text}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_two_shards_one_after_another_end_with_the_bytes_of_one_run(smallest, smallest_run, tmp_path, monkeypatch):
    monkeypatch.setattr("sharpscope.study.report.all_figures", lambda *_: {})
    root = tmp_path / "run"
    expected = contents(smallest_run[0])
    repairs = sum(name.startswith("units/repair") for name in expected)
    units = sum(name.startswith("units/") for name in expected)
    first = run_shard(smallest, root, Shard(1, 2))
    assert isinstance(first, Unfinished) and not first.chosen and not (root / "tables").exists()
    assert first.missing == units - repairs - len(list(root.glob("units/*"))) == (units - repairs) // 2
    second = run_shard(smallest, root, Shard(2, 2))  # finds all the others there and computes its share of the repairs
    assert isinstance(second, Unfinished) and second.chosen and second.missing == repairs // 2
    last = run_shard(smallest, root, Shard(1, 2))  # the array once more: finds everything there
    assert not isinstance(last, Unfinished) and last.failed_units == ()
    assert contents(root) == expected
    assert ended(first).text.endswith("the same array once more computes the repairs.") and ended(first).code == 0
    assert ended(second).text == f"shard 2/2 is done; {second.missing} repairs of other shards are not there yet."


def test_a_unit_that_failed_in_another_shard_does_not_keep_the_run_from_its_end(
    smallest, smallest_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "sharpscope.study.run.write_derived", lambda _, results, *__: Run(tmp_path, {}, (*results.failed,))
    )
    root = Path(shutil.copytree(smallest_run[0], tmp_path / "run"))
    key = "layers/success/zeroshot"  # the third of the first tasks, so of the first share
    (root / "units" / "layers+success+zeroshot.unit").unlink()
    RunDirectory.existing(root).log("failed", key=key, reason="NaN")
    finished = run_shard(smallest, root, Shard(2, 2))
    assert not isinstance(finished, Unfinished) and finished.failed_units == (key,)
