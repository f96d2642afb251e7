"""Units that ranks measure together: the numbers of one process, whoever computes which batch and whoever dies."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch

from sharpscope.cli import main as cli
from sharpscope.config.study import StudyConfig
from sharpscope.config.studyfile import dump
from sharpscope.config.sweep import SweepConfig
from sharpscope.curvature.draws import DRAWS, rademacher, skip_words, words_for
from sharpscope.curvature.perturbation import searched
from sharpscope.errors import ConfigError, RunDirectoryError
from sharpscope.machine.team import ALONE, Team, team_of
from sharpscope.study.context import load_contexts
from sharpscope.study.manifest import identity_of
from sharpscope.study.run import run
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task
from sharpscope.study.together import measured_together
from sharpscope.study.unitfile import Unit

T = TypeVar("T")


# -- every measure, in worlds of one, two and three ranks --------------------------------------------------------------

WORLDS = """
import os, pickle, sys, traceback
import torch, torch.distributed as dist
import sharpscope.curvature.measures.hessian, sharpscope.curvature.measures.geodesic
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.curvature.ggn import fisher_trace, ggn_trace
from sharpscope.curvature.measures.density import measure_density
from sharpscope.curvature.measures.eigenvectors import measure_eigenvectors
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.errors import NumericalError, SharpscopeError
from sharpscope.study.context import Context
from sharpscope.study.together import RankTeam
from sharpscope.machine.team import ALONE
from sharpscope.vocabulary import MEASURES

FEW = {"max_matvecs": 3, "pgd_steps": 1, "noise_samples": 2}
TWO = ("hessian_trace", "lambda_max")
CASES = {
    "all": (tuple(MEASURES), {}),
    "tracked": (("lambda_max", "lambda_min"), {}),
    "tight": (TWO, {"memory": 2**16}),
    "controlled": (("hessian_trace",), {"trace_method": "controlled", "atol_share": 0.01, "max_matvecs": 12}),
    "xtrace": (TWO[:1], {"trace_method": "xtrace", "max_matvecs": 4}),
    "func": (TWO[:1], {"products": "func"}),
    "random": (("sharpness_max", "sharpness_geodesic"), {"random_start": True, "normalize_logits": True}),
}
BY_TWO = ("all", "tracked", "tight")  # one of the two has two of the three batches
OF = {1: tuple(CASES), 2: BY_TWO, 3: tuple(n for n in CASES if n not in BY_TWO)}

class Twice:
    "Three classes; the first weight is read twice, so that no place separates its examples."
    def __init__(self, team, sizes=(3, 2, 2)):
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(7, 4, generator=draw, dtype=torch.float64).split(list(sizes))
        shapes = {"a": (4, 4), "b": (3, 4)}
        self.theta = {n: torch.randn(*s, generator=draw, dtype=torch.float64) for n, s in shapes.items()}
        self.team, self.batch_sizes, self.batch_size = team, sizes, max(sizes)
        self.weights = [n / 7 for n in sizes]
    def rebatched(self, n):
        assert n == 1
        return Twice(self.team, (1,) * 7)
    def batch_logits(self, i, theta):
        return torch.tanh(torch.tanh(self.x[i] @ theta["a"].T) @ theta["a"].T) @ theta["b"].T

pair = PairConfig("success", "mini:zeroshot", "mini:success")
context = Context.load(
    StudyConfig(
        pairs=(pair,), model="mini", probe="mini:photo", id=("mini:photo",), granularity="block", probe_size=5,
        batch_size=2, dtype="float64",
    ),
    pair,
)
theta, layers = context.theta(0.5), context.layers[1::4]

def found(team):
    probe = context.probe.shared(team)
    out, warm = {}, {}
    for name in OF[team.size]:
        measures, more = CASES[name]
        settings, known = MeasureSettings(**(FEW | more)), warm if name == "tracked" else {}
        got = measure_layers(probe, theta, layers, measures, settings, key=("x",), warm=known)
        warm = warm or got.warm
        out[name] = got.rows
        out[f"{name} by image"] = [{" ".join(k): part.tolist() for k, part in got.parts.items()}]
    out["density"] = measure_density(
        probe, theta, layers, ("(all)",), MeasureSettings(density_steps=2, density_runs=2), key=("x",)
    )
    pairs = measure_eigenvectors(probe, theta, layers, ("(all)",), 1, MeasureSettings(max_matvecs=3), key=("x",))
    out["eigenvectors"] = [{n: p.values.tolist() + p.vectors.abs().sum(1).tolist() for n, p in pairs.items()}]
    out["losses"] = [{"losses": probe.sample_losses(theta).tolist()}]
    twice = Twice(team)
    for trace, most in ((ggn_trace, 100), (fisher_trace, 2), (ggn_trace, 9)):
        blocks = {"a": ["a"], "b": ["b"], "(all)": ["a", "b"]}
        got = trace(twice, twice.theta, blocks, seed=0, rtol=1e-3, max_probes=most)
        out[f"{trace.__name__} {most}"] = [
            {"estimate": x.estimate, "stderr": x.stderr, "spent": x.num_matvecs} for x in got.values()
        ]
    return out

def failing(team):
    "What each rank is told of errors in rank 1."
    said = []
    def fails(i):
        if i == 1:
            raise NumericalError("batch 1 is not finite")
        return i
    def runs_out():
        if team.rank == 1:
            raise torch.OutOfMemoryError("no memory")
        return team.gather("a pass", lambda: 1)
    def differs():
        return team.gather(f"step {min(team.rank, 1)}", lambda: 1)
    for work in (lambda: team.each("numbers", 3, fails), lambda: team.agreed(runs_out), lambda: team.agreed(differs)):
        try:
            said.append(work())
        except (NumericalError, torch.OutOfMemoryError, SharpscopeError) as error:
            said.append((type(error).__name__, str(error)))
    return said + team.gather("the end", lambda: team.rank)

def rank(r, size):
    team = ALONE
    if size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(f"store{size}", size), rank=r, world_size=size)
        team = RankTeam(r, size, torch.device("cpu"))
    said = failing(team) if size > 1 else []
    with open(f"{size}-{r}.pkl", "wb") as file:
        pickle.dump((found(team), said), file)

for size in (1, 2, 3):
    pids = []
    for r in range(size):
        if not (pid := os.fork()):
            try:
                rank(r, size)
                code = 0
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    if any(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids):
        sys.exit(f"{size} ranks failed")
"""
"""One, two and three processes, forked from one that has loaded everything; each leaves what it found in a file.

One does every case, two and three share them."""


def close(one: Any, other: Any) -> bool:
    """Whether numbers agree to 1e-10 relative, and everything else is equal."""
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-10, abs_tol=0.0) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


@pytest.mark.slow
def test_every_measure_by_two_ranks_and_every_way_by_three_is_that_of_one_process(tmp_path):
    (tmp_path / "worlds.py").write_text(WORLDS)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "worlds.py"], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    found = {p.stem: pickle.loads(p.read_bytes()) for p in sorted(tmp_path.glob("*.pkl"))}  # noqa: S301 - our own
    assert list(found) == ["1-0", "2-0", "2-1", "3-0", "3-1", "3-2"]
    alone, _ = found.pop("1-0")
    for name, (together, said) in found.items():
        for case, others in together.items():
            off = [
                (key, value, other[key])
                for row, other in zip(alone[case], others, strict=True)
                for key, value in row.items()
                if not close(value, other[key])
            ]
            assert not off, (name, case, off[:3])
        assert repr(together) == repr(found[f"{name[0]}-0"][0]), "all ranks hold the same bits"
        assert together["losses"] == alone["losses"], "numbers that are not summed have the bits of one process"
        numerical, memory, apart, *ranks = said
        assert numerical == ("NumericalError", "batch 1 is not finite") and memory == ("OutOfMemoryError", "no memory")
        assert apart[0] == "SharpscopeError" and "gone different ways (step 0, step 1)" in apart[1]
        assert ranks == list(range(int(name[0]))), "and they go on together"
    assert any(row["status"] == "ok" for row in alone["all"])
    assert set(alone) == set(found["2-0"][0]) | set(found["3-0"][0])


# -- a study -----------------------------------------------------------------------------------------------------------

LAUNCHES = """
import sys, time
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from sharpscope.cli.main import main
from sharpscope.study import report, workers
report.all_figures = lambda *_: {}
shape = {"min_nodes": 1, "max_nodes": 1, "max_restarts": 0, "start_method": "fork"}
place = {"run_id": "x", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}

def rank(out, pause):
    compute = workers.compute_each
    workers.compute_each = lambda *args: (time.sleep(pause), compute(*args))[1]
    sys.exit(main(["run", "study.yaml", "--out", out]))

for out, pause in (("whole", 0.0), ("killed", 0.5), ("killed", 0.0)):
    died = False
    try:
        elastic_launch(LaunchConfig(nproc_per_node=2, **shape, **place), rank)(out, pause)
    except ChildFailedError:
        died = True
    print(f"{out}, died: {died}", file=sys.stderr, flush=True)
"""


def contents(root: Path) -> dict[str, bytes]:
    """Every unit and table of a run."""
    files = [*root.glob("units/*"), *root.glob("tables/*.csv")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def events(root: Path, kind: str) -> list[dict[str, Any]]:
    return [e for e in RunDirectory.existing(root).history.events() if e["event"] == kind]


@pytest.fixture
def split(smallest: StudyConfig) -> StudyConfig:
    """The smallest study with units that are split, in three batches."""
    few = {"batch_size": 1, "probe_size": 3, "measures": ("hessian_trace",), "max_matvecs": 4}
    return dataclasses.replace(smallest, split_units=True, **few)


@pytest.mark.slow
def test_a_split_run_that_loses_a_rank_is_resumed_by_as_many_with_the_same_bytes(split, tmp_path):
    (tmp_path / "study.yaml").write_text(dump(split))
    (tmp_path / "launches.py").write_text(LAUNCHES)
    root = tmp_path / "killed"
    with (tmp_path / "said").open("w") as said, subprocess.Popen(
        [sys.executable, "launches.py"], cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=said,
    ) as launcher:  # fmt: skip
        while launcher.poll() is None and not list(root.glob("units/*.unit")):
            time.sleep(0.05)
        os.kill(events(root, "start")[1]["pid"], signal.SIGKILL)
    told = (tmp_path / "said").read_text()
    assert [x for x in told.splitlines() if "died: " in x] == [
        "whole, died: False", "killed, died: True", "killed, died: False",
    ], told  # fmt: skip
    assert contents(root) == contents(tmp_path / "whole")
    units = events(root, "unit")
    assert len({e["key"] for e in units}) == len(units), "no unit was computed twice: what was finished is kept"
    leaders = {events(root, "start")[i]["pid"] for i in range(4)} & {e["pid"] for e in units if Task(e["key"]).splits}
    assert len(leaders) == 2, "rank 0 of each launch has saved what both measured together"


def test_what_cannot_be_split_is_refused_with_what_to_do(split, tmp_path, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="no other ranks to split a unit with.\nRemedy: torchrun --nproc-per-node N"):
        run(split, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    few = SimpleNamespace(rank=0, size=4)
    with pytest.raises(ConfigError, match="each of 4 ranks needs a batch .* 3 images .* make 3.\nRemedy: fewer ranks"):
        load_contexts(split, few)
    whole = dataclasses.replace(split, batch_size=3, probe_size=5)
    with pytest.raises(ConfigError, match="Remedy: --batch-size 1, or fewer ranks"):
        load_contexts(whole, few)
    with pytest.raises(ConfigError, match="split_units needs the ranks of torchrun"):
        SweepConfig(zeroshot="mini:zeroshot", train="mini:photo", study=dataclasses.replace(split, pairs=()))
    monkeypatch.setattr("sharpscope.cli.studies.submit", None)
    (tmp_path / "study.yaml").write_text(dump(split))
    assert cli.main(["run", str(tmp_path / "study.yaml"), "--slurm", "jobs=2", "time=1"]) == 2
    assert "the jobs of --slurm share units and do not split them" in capsys.readouterr().err


def test_the_number_of_ranks_belongs_to_a_split_run_and_to_no_other(split, smallest, tmp_path):
    facts = SimpleNamespace(pair=SimpleNamespace(facts={"zeroshot": {"sha256": "a"}, "finetuned": {"sha256": "b"}}))
    facts.device = torch.device("cpu")
    two, three = (
        identity_of(split, {"x": SimpleNamespace(**vars(facts), team=SimpleNamespace(size=n))}) for n in (2, 3)
    )
    plain = identity_of(smallest, {"x": SimpleNamespace(**vars(facts), team=ALONE)})
    assert (two["ranks"], three["ranks"]) == (2, 3) and two["config"] == three["config"]
    assert two["config"]["split_units"] is True and "ranks" not in plain and "split_units" not in plain["config"]
    RunDirectory.open(tmp_path, two, {})
    with pytest.raises(RunDirectoryError, match="ranks is 2 there, 3 here.\nStart as many ranks as there"):
        RunDirectory.open(tmp_path, three, {})
    unsplit = two | {"config": {k: v for k, v in two["config"].items() if k != "split_units"}}
    del unsplit["ranks"]
    with pytest.raises(RunDirectoryError, match="split_units is true there, not set here.*\nChoose another"):
        RunDirectory.open(tmp_path, unsplit, {})


# -- a team in threads -------------------------------------------------------------------------------------------------


class InThread(Team):
    """Rank ``rank`` of a team whose ranks are threads of this process."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, len(table), table, barrier
        self.steps = 0

    def combine(self, what: str, work: Callable[[], tuple[T, Any]]) -> tuple[list[T], Any]:
        self._table[self.rank] = work()
        self.steps += 1
        self._barrier.wait(10)
        found = [small for small, _ in self._table]
        self._barrier.wait(10)
        return found, {}


def in_threads(size: int, work: Callable[[Team], T]) -> list[T]:
    """``work`` of every rank of a team of ``size``."""
    table: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    out: list[Any] = [None] * size

    def one(rank: int) -> None:
        out[rank] = work(InThread(rank, table, barrier))

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_neighbours_disjoint_and_of_one_size(size):
    for count in (5, 6, 7, 23):
        shares = in_threads(size, lambda team: (list(team.own(count)), team.most(count)))  # noqa: B023
        assert [i for own, _ in shares for i in own] == list(range(count))
        assert {most for _, most in shares} == {max(len(own) for own, _ in shares)}
        assert max(map(len, (own for own, _ in shares))) - min(map(len, (own for own, _ in shares))) <= 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_that_draw_one_after_the_other_draw_the_same_in_every_team(size):
    def draws(team: Team) -> list[tuple[list[int], Any]]:
        generator = torch.Generator().manual_seed(3)

        def signs(i: int) -> list[int]:
            return rademacher((i + 1, 3), generator).flatten().tolist()

        every = team.each("signs", 5, signs, lambda i: skip_words(words_for(3 * (i + 1)), generator))
        return [(one, int(generator.get_state().sum())) for one in every]

    one = draws(ALONE)
    assert all(found == one for found in in_threads(size, draws))
    assert len({str(signs[:3]) for signs, _ in one}) > 1


@pytest.mark.parametrize("chunk", [3, 2**20])
def test_skipped_words_are_the_words_that_are_drawn(chunk, monkeypatch):
    monkeypatch.setattr("sharpscope.curvature.draws._SKIPPED", chunk)
    for shapes in ([(23,)], [(5, 4), (100, 7)], [(64,), (65,)], []):
        drawn, skipped = (torch.Generator().manual_seed(1) for _ in range(2))
        for shape in shapes:
            rademacher(shape, drawn)
        skip_words(sum(words_for(math.prod(shape)) for shape in shapes), skipped)
        assert torch.equal(drawn.get_state(), skipped.get_state())


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("drawing", [(), (4,), (0, 3), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("start", [False, True])
def test_searches_draw_what_they_draw_in_one_process(size, drawing, start):
    """``drawing``: the batches that draw more than a start, as many numbers as the last draw says."""

    def found(team: Team) -> tuple[Sequence[tuple[float, float, bool]], int]:
        loss = SimpleNamespace(weights=[1 / 7] * 7, team=team)

        def skip(generator: torch.Generator) -> None:
            if start:
                torch.rand(2, generator=generator)

        def search(i: int, generator: torch.Generator) -> tuple[float, float, bool]:
            first = torch.rand(2, generator=generator).sum().item() if start else 0.5
            more = torch.randn(1 + int(4 * first), generator=generator).sum().item() if i in drawing else 0.0
            return first, more, True

        return searched(loss, search, skip, seed=5), getattr(team, "steps", 0)

    one, _ = found(ALONE)
    for together, steps in in_threads(size, found):
        assert together == one
        assert steps <= size and (steps == 1 or drawing)


def test_a_lone_team_does_everything_itself_and_a_loss_without_a_team_is_of_one():
    assert team_of(object()) is ALONE and not ALONE.several
    assert ALONE.each("x", 3, lambda i: i * i) == [0, 1, 4] and ALONE.first("x", lambda: 5) == 5
    sums = {"a": torch.ones(2)}
    assert ALONE.combine("x", lambda: (1, sums)) == ([1], sums) and ALONE.agreed(lambda: 2) == 2


def test_units_that_another_launch_has_are_waited_for_and_its_failures_are_taken_over(tmp_path, monkeypatch):
    directory = RunDirectory.open(tmp_path, {}, {})
    tasks = [Task(f"noise/{name}") for name in ("done", "taken", "bad", "free")]
    directory.save("noise/done", Unit({"rows": [{"of": "before"}]}))
    claims = [directory.claim("noise/taken"), directory.claim("noise/bad")]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        claims.pop(0).release()
        if len(waits) == 1:
            directory.save("noise/taken", Unit({"rows": [{"of": "another launch"}]}))
        else:
            directory.log("failed", key="noise/bad", reason="NaN")

    monkeypatch.setattr("sharpscope.study.together.time.sleep", sleep)
    own = Unit({"rows": [{"of": "this one"}]})
    found = list(measured_together(ALONE, directory, tasks, lambda task: (own, 1.5)))
    assert [(t.key.split("/")[1], r if isinstance(r, str) else r.rows["rows"][0]["of"], s) for t, r, s in found] == [
        ("done", "before", None), ("taken", "another launch", None), ("bad", "NaN", None), ("free", "this one", 1.5),
    ]  # fmt: skip
    assert len(waits) == 2 and directory.holder("noise/free") is None


def test_a_run_of_other_random_numbers_is_not_taken_up(smallest, tmp_path):
    """One from before the draws were counted, and one of another count."""
    facts = SimpleNamespace(pair=SimpleNamespace(facts={"zeroshot": {"sha256": "a"}, "finetuned": {"sha256": "b"}}))
    now = identity_of(smallest, {"x": SimpleNamespace(**vars(facts), device=torch.device("cpu"), team=ALONE)})
    for name, other in (("before", {}), ("other", {"draws": DRAWS + 1})):
        there = {k: v for k, v in now.items() if k != "draws"} | other
        RunDirectory.open(tmp_path / name, there, {})
        with pytest.raises(RunDirectoryError, match=f"draws is .* there, {DRAWS} here"):
            RunDirectory.open(tmp_path / name, now, {})
