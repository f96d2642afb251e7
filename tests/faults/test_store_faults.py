"""P5, P6, P7: a run directory holds whole units only, whatever happens to a process, and the next start finishes it."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sharpscope import seeds
from sharpscope.atomic import host_name
from sharpscope.errors import RunDirectoryError
from sharpscope.study.store import RunDirectory
from sharpscope.study.unitfile import Unit, file_name

IDENTITY = {"config": {"seed": 0}}
KEYS = [f"curvature/Pair/{i}" for i in range(40)]

WORKER = """
import os, sys, time
import numpy as np
from sharpscope.study.store import RunDirectory, Unit
root, num_keys, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
run = RunDirectory.open(root, {"config": {"seed": 0}}, {"alpha_on": "finetuned"})
print("ready", flush=True)
sys.stdin.readline()
todo = [f"curvature/Pair/{i}" for i in range(num_keys)]
while todo:
    for key in list(todo):
        unit = run.load(key)
        if unit is None:
            claim = run.claim(key)
            if claim is None:
                continue
            with claim:
                print(key, flush=True)
                time.sleep(pause)
                i = int(key.rpartition("/")[2])
                run.save(key, Unit({"path": [{"alpha": i / 7}]}, {"g": np.full(100_000, i / 3)}))
                run.log("unit", key=key)
        todo.remove(key)
alphas = [run.load(f"curvature/Pair/{i}").rows["path"][0]["alpha"] for i in range(num_keys)]
run.write("tables/path.csv", "\\n".join(map(repr, alphas)).encode())
print("finished", flush=True)
"""


def start(root: Path, num_keys: int = len(KEYS), pause: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), str(num_keys), str(pause)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def contents(root: Path) -> dict[str, bytes]:
    """Every unit and table; what tells of the history (log, claims) left out."""
    files = [*root.glob("units/*"), *root.glob("tables/*")]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_with_the_same_bytes(tmp_path):
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    with start(calm) as child:
        assert child.communicate()[0].endswith("finished\n")
    rng = random.Random(seeds.derive(0, "kill instants"))
    seen: set[str] = set()
    for attempt in range(20):
        with start(wild, pause=0.002) as child:
            if attempt % 5:  # every fifth is killed while it starts
                child.stdout.readline()
                child.stdin.write("go\n")
                child.stdin.flush()
            time.sleep(rng.uniform(0.0, 0.02 if seen else 0.2))  # a busy machine gets to its first unit late
            child.kill()
        if not (wild / "manifest.json").exists():
            assert not contents(wild)
            continue
        run = RunDirectory.open(wild, IDENTITY, {})
        assert not list(wild.rglob(".tmp-*")), "a temporary file of the dead process is left"
        finished = {key for key in KEYS if run.load(key) is not None}
        assert seen <= finished, "a finished unit is gone"
        assert len(finished) == len(list(wild.glob("units/*.unit"))) and not list(wild.rglob("*.bad"))
        seen = finished
    assert len(seen) > 0, "no kill came late enough to test anything"
    with start(wild) as child:
        computed = [line for line in child.communicate()[0].split() if line in KEYS]
    assert set(computed) == set(KEYS) - seen, "running again does only what is missing"
    assert contents(wild) == contents(calm)


@pytest.mark.slow
def test_four_processes_share_the_work_without_duplicates(tmp_path):
    children = [start(tmp_path / "x", pause=0.01) for _ in range(4)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all of them are ready before the first begins
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate()[0].split() for child in children]
    assert all(out[-1] == "finished" for out in outputs)
    computed = sorted(key for out in outputs for key in out if key in KEYS)
    assert computed == sorted(KEYS)
    assert sum(any(key in KEYS for key in out) for out in outputs) > 1, "one process did everything"
    logged = [json.loads(line)["key"] for line in (tmp_path / "x" / "log.jsonl").read_text().splitlines()]
    assert sorted(logged) == sorted(KEYS)
    assert not list((tmp_path / "x").rglob("*.claim"))


class FailingCall:
    """Stands for one function of ``os``; its k-th call fails."""

    def __init__(self, function, k: int, number: int) -> None:
        self.function, self.k, self.number, self.calls = function, k, number, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.k:
            raise OSError(self.number, os.strerror(self.number))
        return self.function(*args, **kwargs)


def work(root: Path, saved: list[str]) -> None:
    run = RunDirectory.open(root, IDENTITY, {})
    for i, key in enumerate(KEYS[:3]):
        if run.load(key) is None:
            claim = run.claim(key)
            assert claim is not None
            with claim:
                run.save(key, Unit({"path": [{"alpha": i / 7}]}, {"g": np.arange(float(i))}))
                saved.append(key)
                run.log("unit", key=key)
    run.write("tables/path.csv", b"alpha\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace", "link"])
def test_a_disk_that_refuses_the_kth_call(tmp_path, monkeypatch, name, number):
    work(tmp_path / "calm", [])
    for k in range(1, 200):
        root, saved = tmp_path / str(k), []
        with monkeypatch.context() as patch:
            failing = FailingCall(getattr(os, name), k, number)
            patch.setattr(os, name, failing)
            try:
                work(root, saved)
            except RunDirectoryError as error:
                text = str(error)
                assert os.strerror(number) in text and "finished work is kept" in text
                assert str(root) in text and len(text.splitlines()) <= 3
        if failing.calls >= k and (root / "manifest.json").exists():
            assert not list(root.rglob(".tmp-*")), "a temporary file is left"
            view = RunDirectory.existing(root)
            there = [key for key in KEYS if (root / "units" / f"{file_name(key)}.unit").exists()]
            assert all(view.load(key) is not None for key in [*saved, *there])
        work(root, [])
        assert contents(root) == contents(tmp_path / "calm")
        if failing.calls < k:
            break
    assert 1 < k < 199, f"os.{name} was never called, or for ever"


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP], ids=errno.errorcode.get)
def test_a_file_system_without_hard_links(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", FailingCall(os.link, 1, number))
    work(tmp_path / "x", [])
    run = RunDirectory.open(tmp_path / "x", IDENTITY, {})
    assert [key for key in KEYS if run.load(key) is not None] == KEYS[:3]


def test_short_writes_are_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data)[: max(1, len(data) // 2)]))
    run = RunDirectory.open(tmp_path / "x", IDENTITY, {})
    run.save("a", Unit(arrays={"g": np.arange(1000.0)}))
    back = run.load("a")
    assert back is not None
    np.testing.assert_array_equal(back.arrays["g"], np.arange(1000.0))


def damage(data: bytes) -> dict[str, bytes]:
    middle = len(data) // 2
    return {
        "truncated": data[:middle],
        "empty": b"",
        "one bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "longer": data + b"x",
        "foreign": b"<!DOCTYPE html>\n<html></html>",
        "nested": b"[" * 100_000,
    }


@pytest.mark.parametrize("kind", list(damage(b"xx")))
def test_damaged_units_are_set_aside_and_computed_again(tmp_path, kind):
    run = RunDirectory.open(tmp_path, IDENTITY, {})
    path = tmp_path / "units" / "a.unit"
    for number in range(3):
        run.save("a", Unit({"t": [{"x": 1.0}]}, {"g": np.arange(5.0)}))
        broken = damage(path.read_bytes())[kind]
        path.write_bytes(broken)
        assert run.load("a") is None and run.load("a") is None
        kept = tmp_path / "units" / ("a.unit.bad" if number == 0 else f"a.unit.{number}.bad")
        assert kept.read_bytes() == broken and not path.exists()
        assert run.claim("a") is not None
        (tmp_path / "claims" / "a.claim").unlink()
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["damaged_unit"] * 3 and events[0]["kept_as"] == "a.unit.bad"


def test_a_unit_under_the_wrong_name_is_not_believed(tmp_path):
    run = RunDirectory.open(tmp_path, IDENTITY, {})
    run.save("a", Unit({"t": [{"x": 1.0}]}))
    (tmp_path / "units" / "b.unit").write_bytes((tmp_path / "units" / "a.unit").read_bytes())
    assert run.load("b") is None and run.load("a") is not None


def test_opening_clears_the_leftovers_of_the_dead_only(tmp_path):
    run = RunDirectory.open(tmp_path, IDENTITY, {})
    run.save("a", Unit())
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        pass
    kept = {
        f".tmp-{host_name()}-{child.pid}-00": False,
        f".tmp-{host_name()}-{os.getpid()}-00": True,
        ".tmp-elsewhere-1-00": True,
        ".tmp-of-a-stranger": True,
    }
    for name in kept:
        (tmp_path / "units" / name).write_bytes(b"half")
    RunDirectory.open(tmp_path, IDENTITY, {})
    assert {name: (tmp_path / "units" / name).exists() for name in kept} == kept
