"""``status`` and the lines of a run without a terminal: every unit in one state, an estimate one can check."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharpscope.cli.main import main
from sharpscope.clip.progress import silent
from sharpscope.study.claims import SILENCE_SECONDS
from sharpscope.study.protocols.run import _done
from sharpscope.study.status import Status, status
from sharpscope.study.store import RunDirectory
from sharpscope.study.tasks import Task
from sharpscope.study.unitfile import file_name
from sharpscope.vocabulary import BASES


@pytest.fixture
def root(smallest_run: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(smallest_run[0], tmp_path / "run"))


def forget(root: Path, *keys: str) -> None:
    for key in keys:
        (root / "units" / f"{file_name(key)}.unit").unlink()


def keys(tasks: object) -> list[str]:
    return [t.key for t in tasks]


def snapshot(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


LAYERS = [f"layers/success/{base}" for base in BASES]
CURVATURE = "curvature/success/0.0..1.0"


def test_without_a_terminal_each_finished_unit_is_one_line(smallest_run):
    root, said = smallest_run
    lines = said.splitlines()
    finished = [e["key"] for e in RunDirectory.existing(root).history.events() if e["event"] == "unit"]
    assert [line.partition(": ")[2].rpartition(",")[0] for line in lines] == finished
    repairs = sum(key.startswith("repair/") for key in finished)
    steps = {"measure": len(finished) - repairs, "repair": repairs}
    assert [line.partition(":")[0] for line in lines] == [
        f"{what} {n}/{total}" for what, total in steps.items() for n in range(1, total + 1)
    ]
    assert all(line.endswith(" s") and "\r" not in line for line in lines)


def test_a_finished_run_has_nothing_left(root):
    before = snapshot(root)
    found = status(root)
    total = len(list(root.glob("units/*.unit")))
    assert len(found.done) == total and not found.running and not found.failed and not found.waiting
    assert found.chosen and found.reported and found.left == 0
    assert str(found).startswith(f"{root}: {total} of {total} units are done.\n") and "time left" not in str(found)
    assert snapshot(root) == before, "status changes nothing"


def test_every_unit_is_in_one_state(root):
    directory, first = RunDirectory.existing(root), [t for t in status(root).done if t.kind != "repair"]
    forget(root, *LAYERS)
    directory.log("failed", key=LAYERS[1], reason="the loss is NaN\x1b[31m")
    claim = directory.claims.take(LAYERS[2])
    found = status(root)
    assert (
        keys(found.waiting) == [LAYERS[0]] and keys(found.running) == [LAYERS[2]] and keys(found.failed) == [LAYERS[1]]
    )
    assert len(found.done) == len(first) - 3 and not found.chosen, "repairs are not known before the last of the others"
    text = str(found)
    assert (
        f"{len(first) - 3} of {len(first)} units are done; repairs come on top" in text
        and "without the repairs" in text
    )
    assert f"\n  {LAYERS[2]}: process {os.getpid()} on " in text and ", since 20" in text
    assert f"\n  {LAYERS[1]}: the loss is NaN\\x1b[31m\n" in text
    claim.release()
    directory.log("unit", key=LAYERS[1], seconds=1.0)  # tried again, with success
    assert keys(status(root).waiting) == LAYERS


def test_the_repairs_are_counted_once_all_else_is_done_or_has_failed(root):
    directory = RunDirectory.existing(root)
    forget(root, CURVATURE)
    with directory.claims.take(CURVATURE):
        assert not status(root).chosen
    assert not status(root).chosen
    directory.log("failed", key=CURVATURE, reason="out of memory")
    assert status(root).chosen and keys(status(root).failed) == [CURVATURE]
    repair = status(root).done[-1].key
    forget(root, repair)
    assert keys(status(root).waiting) == [repair] and "repair" in str(status(root)).splitlines()[-1]


def test_the_estimate_is_the_median_of_the_same_kind_over_what_runs(root):
    directory = RunDirectory.existing(root)
    for seconds in (100.0, 1.0, 400.0):
        directory.log("unit", key=LAYERS[0], seconds=seconds)
    median = statistics.median(status(root).seconds["layers"])
    assert len(status(root).seconds["layers"]) == 6 and median < 100
    forget(root, *LAYERS)
    assert status(root).left == pytest.approx(3 * median)
    assert "one at a time, as no process works on them now" in str(status(root))
    claims = [directory.claims.take(key) for key in LAYERS[:2]]
    assert status(root).left == pytest.approx(3 * median / 2)
    assert f"(3 of layers at {median:.3g} s, the median of those finished; 2 at a time)" in str(status(root))
    for claim in claims:
        claim.release()


def test_what_no_finished_unit_tells_is_not_estimated(root):
    log = root / "log.jsonl"
    log.write_text(
        "".join(line for line in log.read_text().splitlines(keepends=True) if "layers/" not in line) + '{"event": "un'
    )
    forget(root, LAYERS[0])
    assert status(root).left is None
    assert str(status(root)).splitlines()[-1].endswith("no unit of this kind is finished yet: layers")


def test_a_claim_of_another_host_counts_while_it_is_renewed(root):
    forget(root, LAYERS[0])
    path = root / "claims" / f"{file_name(LAYERS[0])}.claim"
    claim = {"key": LAYERS[0], "host": "node7", "pid": 12, "start": "boot:1", "since": "2026-01-02T03:04:05+00:00"}
    path.write_text(json.dumps(claim))
    assert keys(status(root).running) == [LAYERS[0]]
    assert "process 12 on node7, since 2026-01-0" in str(status(root)) and ", last heard of " in str(status(root))
    os.utime(path, (0, time.time() - SILENCE_SECONDS - 1))
    assert keys(status(root).waiting) == [LAYERS[0]]
    path.write_text(
        json.dumps({**claim, "host": RunDirectory.existing(root).claims.read(LAYERS[0]).host, "since": "?"})
    )
    assert ", since" not in str(status(root))


def test_tables_that_are_older_than_a_unit_are_said_to_be_missing(root):
    RunDirectory.existing(root).log("unit", key=LAYERS[0], seconds=1.0)
    assert not status(root).reported and "tables and report: not there yet" in str(status(root))


def test_long_lists_are_cut(tmp_path):
    tasks = {Task(f"path/x/{n}"): "no" for n in range(50)}
    text = str(Status(tmp_path, (), failed=tasks))
    assert "and 30 more" in text and len(text.splitlines()) == 25


def test_status_as_a_command_needs_no_torch(root, tmp_path, capsys):
    code = (
        "import sys; from sharpscope.cli.main import main; code = main(['status', sys.argv[1]]);"
        "assert not {'torch', 'open_clip', 'matplotlib'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"{root}: ")
    assert main(["status", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_a_failure_elsewhere_is_not_computed_again_here(tmp_path):
    """What failed in another process since this one opened the directory would fail here too; the next run tries it."""
    directory = RunDirectory.open(tmp_path / "x", {"seed": 0}, {})
    RunDirectory.existing(tmp_path / "x").log("failed", key="a", reason="NaN")
    assert directory.claim("a") is None and directory.history.failures() == {"a": "NaN"}
    assert not list((tmp_path / "x" / "claims").glob("*.claim"))
    assert RunDirectory.open(tmp_path / "x", {"seed": 0}, {}).claim("a") is not None
    RunDirectory.existing(tmp_path / "x").log("unit", key="a", seconds=1)
    assert directory.history.failures() == {}


def test_a_protocol_takes_over_a_failure_too_and_does_not_wait_for_it(tmp_path):
    directory = RunDirectory.open(tmp_path / "x", {"seed": 0}, {})
    RunDirectory.existing(tmp_path / "x").log("failed", key="a", reason="NaN")
    assert _done(None, directory, [Task("a")], silent()) == ({}, {"a": "NaN"})
