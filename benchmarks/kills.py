"""Runs of a tiny study that are killed, interrupted or refused by the disk, and always end with the same bytes.

Each attack is followed by the same command again, and the units and tables of the finished run are compared byte for
byte with those of an undisturbed one. After every attack all unit files have to be whole and none may have gone.

* SIGKILL and SIGTERM at random instants of the run, one after another on the same directory until it is finished;
* the k-th call of ``os.write`` fails with ENOSPC, the k-th of ``os.open`` with EROFS and with EMFILE, for every k;
* one bit of every unit file is flipped;
* eight processes at once on one directory, of which one is killed;
* ``torchrun`` with three ranks, of which one is killed at a random instant.

Usage: OMP_NUM_THREADS=1 python benchmarks/kills.py [--kills 50] [--terms 20] [--launches 2] [--every 1] [--seed 0]

The processes are forked from one that has imported everything and loaded the models, so that instants fall into the
work and not into imports; those of torchrun start by its command. Figures are left out. Exit code 1 where anything
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import itertools
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sharpscope.cli.main import main as sharpscope
from sharpscope.config.study import PairConfig, StudyConfig
from sharpscope.config.studyfile import dump
from sharpscope.errors import SharpscopeError
from sharpscope.seeds import derive
from sharpscope.study import report, results, run, workers
from sharpscope.study.context import load_contexts
from sharpscope.study.store import RunDirectory

STUDY = StudyConfig(
    pairs=(PairConfig("success", "mini:zeroshot", "mini:success"),),
    model="mini", probe="mini:photo", id=("mini:photo",), ood=("mini:sketch",), alphas=(0.0, 0.5, 1.0),
    granularity="block", measures=("gradient_norm",), straggler_criterion="rewind", probe_size=4, batch_size=4,
    limit=16, layer_alphas=(0.0, 1.0), criticality_noise=(1.0,), targets=("delta",), repair_alphas=(0.5,), masks=1,
    repair_limit=8, bootstrap=20, threads=1,
)  # fmt: skip
FAULTS = (("write", errno.ENOSPC), ("open", errno.EROFS), ("open", errno.EMFILE))


class DifferentError(Exception):
    """What a promise forbids."""


def contents(root: Path) -> dict[str, bytes]:
    """Every unit and table of a run, in both formats."""
    return {str(p.relative_to(root)): p.read_bytes() for kind in ("units", "tables") for p in root.glob(f"{kind}/*")}


def whole_units(root: Path) -> set[str]:
    """The names of the unit files, all of which can be read."""
    if not (root / "manifest.json").exists():
        return set()
    directory = RunDirectory.existing(root)
    for path in root.glob("units/*.unit"):
        key = path.read_bytes().partition(b'"key": "')[2].partition(b'"')[0].decode()
        try:
            if directory.peek(key) is None:
                raise DifferentError(f"{path.name} has another key")
        except ValueError as error:
            raise DifferentError(f"{path.name} is damaged: {error}") from error
    return {path.name for path in root.glob("units/*.unit")}


class Attack:
    """A run directory that is attacked again and again, and compared whenever it is finished."""

    def __init__(self, name: str, study: Path, calm: dict[str, bytes]) -> None:
        self.name, self.study, self.calm = name, study, calm
        self.root = study.parent / "attacked"
        self.attempts = self.finished = 0
        self.units: set[str] = set()
        shutil.rmtree(self.root, ignore_errors=True)

    def start(self, before: Callable[[], object] | None = None) -> int:
        """The id of a new process that runs the study: by its command, or in Python after it has called ``before``."""
        if child := os.fork():
            return child
        code = 99
        try:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            if before is None:
                code = sharpscope(["run", str(self.study), "--out", str(self.root)])
            else:
                before()
                code = self._run()
        finally:
            os._exit(code)

    def _run(self) -> int:
        try:
            # In one process: a pool of several writes to its own pipes, which no disk refuses.
            run.run(dataclasses.replace(STUDY, jobs=1), self.root)
        except SharpscopeError as error:
            return error.exit_code
        return 0

    def ended(self, status: int, allowed: tuple[int, ...]) -> None:
        """Look at the directory after a process has ended with ``status``, a code of ``allowed`` or a SIGKILL."""
        self.attempts += 1
        code = os.waitstatus_to_exitcode(status)
        if code not in allowed:
            raise DifferentError(f"exit code {code}")
        units = whole_units(self.root)
        if not self.units <= units:
            raise DifferentError(f"units are gone: {sorted(self.units - units)}")
        self.units = units
        if code == 0:
            self.compare()

    def finish(self, before: Callable[[], object] | None = None) -> None:
        """Run the study to its end, undisturbed."""
        self.ended(os.waitpid(self.start(before), 0)[1], (0,))

    def compare(self) -> None:
        """Compare the finished run with the undisturbed one, and begin again with an empty directory."""
        found = {name: data for name, data in contents(self.root).items() if ".bad" not in name}
        if found != self.calm:
            names = sorted(n for n in {*found, *self.calm} if found.get(n) != self.calm.get(n))
            raise DifferentError(f"other bytes in {', '.join(names[:5])}")
        if leftovers := [p.name for p in self.root.rglob("*") if p.name.startswith(".tmp-") or p.suffix == ".claim"]:
            raise DifferentError(f"left behind: {leftovers[:5]}")
        self.finished += 1
        self.units = set()
        shutil.rmtree(self.root)


def killed(attack: Attack, count: int, number: signal.Signals, longest: float, rng: random.Random) -> None:
    """``count`` processes that get the signal at a random instant, and one that finishes what they leave."""
    code = -number if number == signal.SIGKILL else 130
    for _ in range(count):
        child = attack.start()
        time.sleep(rng.uniform(0, longest))
        os.kill(child, number)
        # A SIGTERM that comes before the command listens to it, or after it has ended its work, has its plain effect.
        attack.ended(os.waitpid(child, 0)[1], (0, code, -number))
    attack.finish()


class Failing:
    """Stands for one function of ``os``, whose k-th call fails; ``came`` tells other processes that it was called."""

    def __init__(self, name: str, k: int, number: int) -> None:
        self.name, self.left, self.number = name, k, number
        self.function = getattr(os, name)
        self.flag = mmap.mmap(-1, 1)  # shared with the processes that are forked from this one

    @property
    def came(self) -> bool:
        return self.flag[0] == 1

    def put(self) -> None:
        setattr(os, self.name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.flag[0] = 1
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*args, **options)


def refused(attack: Attack, name: str, number: int, every: int) -> int:
    """The disk refuses the k-th call of ``os.<name>``, for every k (or every ``every``-th); the last k is returned."""
    for k in itertools.count(1, every):
        failing = Failing(name, k, number)
        attack.ended(os.waitpid(attack.start(failing.put), 0)[1], (0, 2))
        if not failing.came:
            return k - every
        if attack.root.exists():
            attack.finish(_nothing)
    raise AssertionError  # count() does not end


def _nothing() -> None: ...


def flipped(attack: Attack, rng: random.Random) -> None:
    """One bit of every unit file is flipped; then all of them are computed again."""
    os.waitpid(attack.start(), 0)
    for path in attack.root.glob("units/*.unit"):
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
    count = len(list(attack.root.glob("units/*.unit")))
    os.waitpid(attack.start(), 0)
    if len(list(attack.root.glob("units/*.bad"))) != count:
        raise DifferentError("a flipped bit was not noticed")
    attack.attempts += 1
    attack.compare()


def crowded(attack: Attack, longest: float, rng: random.Random) -> None:
    """Eight processes on one directory, one of them killed; the others finish its work."""
    children = [attack.start() for _ in range(8)]
    time.sleep(rng.uniform(0, longest))
    os.kill(rng.choice(children), signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if sorted(set(codes)) not in ([-signal.SIGKILL, 0], [0]):
        raise DifferentError(f"exit codes {codes}")
    events = [e["key"] for e in RunDirectory.existing(attack.root).history.events() if e["event"] == "unit"]
    if len(events) > len(set(events)):
        raise DifferentError("a unit was computed twice")
    attack.attempts += 1
    attack.compare()


def launched(attack: Attack, longest: float, rng: random.Random) -> None:
    """torchrun with three ranks, one of them killed; the same command again finishes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "3",
        "-m",
        "sharpscope",
    ]
    command += ["run", str(attack.study), "--out", str(attack.root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
        pids: list[int] = []
        while len(pids) < 3 and launcher.poll() is None:
            time.sleep(0.05)
            if (attack.root / "manifest.json").exists():
                events = RunDirectory.existing(attack.root).history.events()
                pids = [e["pid"] for e in events if e["event"] == "start"]
        if launcher.poll() is not None:
            raise DifferentError(f"torchrun ended with {launcher.returncode} before its ranks began")
        time.sleep(rng.uniform(0, longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
        code = launcher.wait()
    whole_units(attack.root)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    attack.attempts += 1
    if code == 0:
        print("  (the launch had finished before the kill)")
    attack.compare()


@contextlib.contextmanager
def told(attack: Attack) -> Iterator[None]:
    """A line on what an attack came to."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    print(f"{attack.name}: {attack.attempts} runs, {attack.finished} finished and equal, {took:.0f} s", flush=True)


def prepare(study: Path) -> dict[str, bytes]:
    """Run the study once in this process, so that all others that are forked from it need neither imports nor models.

    Returns its units and tables.
    """
    contexts = load_contexts(STUDY)
    run.load_contexts = lambda *_: contexts  # type: ignore[assignment]
    report.all_figures = lambda *_: {}  # type: ignore[assignment]
    root = study.parent / "undisturbed"
    run.run(STUDY, root)
    return contents(root)


def cached() -> None:
    """Compute each unit and the tables once only, in this process: what is attacked then is the writing."""
    workers.compute_each = _remember(workers.compute_each, lambda context, tasks, *_: " ".join(t.key for t in tasks))
    results.Results.tables = _remember(results.Results.tables, lambda _: "tables")  # type: ignore[method-assign]
    report.build_report = _remember(report.build_report, lambda *_: "report")  # type: ignore[assignment]
    report.csv_bytes = _remember(report.csv_bytes, lambda _, table: table)  # type: ignore[assignment]
    report.parquet_bytes = _remember(report.parquet_bytes, lambda _, table: table)  # type: ignore[assignment]


def _remember(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
    known: dict[str, Any] = {}

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        if name(*args) not in known:
            known[name(*args)] = function(*args)
        return known[name(*args)]

    return wrapped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--launches", type=int, default=2)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(derive(args.seed, "kills"))
    print(f"benchmarks/kills.py {' '.join(f'--{name} {value}' for name, value in vars(args).items())}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        study = Path(name) / "study.yaml"
        study.write_text(dump(STUDY))
        expected = prepare(study)
        units = sum(name.startswith("units/") for name in expected)
        start = time.monotonic()
        Attack("undisturbed, in a process of its own", study, expected).finish()
        longest = time.monotonic() - start
        print(f"an undisturbed run: {units} units, {len(expected) - units} tables, {longest:.1f} s", flush=True)
        new = functools.partial(Attack, study=study, calm=expected)
        for number, count in ((signal.SIGKILL, args.kills), (signal.SIGTERM, args.terms)):
            with told(attack := new(f"{number.name} at {count} random instants")):
                killed(attack, count, number, longest, rng)
        with told(attack := new("a flipped bit in every unit file")):
            flipped(attack, rng)
        with told(attack := new("eight processes at once, one killed")):
            crowded(attack, longest, rng)
        with told(attack := new(f"three ranks of torchrun, one killed, {args.launches} times")):
            for _ in range(args.launches):
                launched(attack, longest, rng)
        cached()
        run.run(STUDY, study.parent / "cached")
        for function, code in FAULTS:
            attack = new(f"os.{function} fails with {errno.errorcode[code]} at the k-th call")
            with told(attack):
                last = refused(attack, function, code, args.every)
                attack.name += f", k = 1{'' if args.every == 1 else f', {1 + args.every}'} ... {last}"
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DifferentError as error:
        print(f"FAILED: {error}", flush=True)
        sys.exit(1)
