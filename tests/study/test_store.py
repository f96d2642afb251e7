from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from sharpscope.atomic import host_name, start_of
from sharpscope.errors import RunDirectoryError
from sharpscope.study.store import RunDirectory
from sharpscope.study.unitfile import Unit

IDENTITY = {"config": {"seed": 0, "alphas": (0.0, 0.5), "pairs": [{"name": "a"}]}, "inputs": {"a": "1234"}}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(tmp_path / "runs" / "x", IDENTITY, {"alpha_on": "finetuned", "count": np.int64(3)})


def unit(value: float = 1.0) -> Unit:
    return Unit({"path": [{"alpha": value}]}, {"g": np.arange(4.0)})


def test_the_manifest_comes_first_and_is_plain_json(run):
    manifest = json.loads((run.root / "manifest.json").read_text())
    assert manifest["identity"]["config"]["alphas"] == [0.0, 0.5]
    assert manifest["alpha_on"] == "finetuned" and manifest["count"] == 3
    assert manifest == run.manifest and run.identity == manifest["identity"]


def test_units_come_back(run):
    assert run.load("curvature/a/0.5") is None
    run.save("curvature/a/0.5", unit())
    back = RunDirectory.open(run.root, IDENTITY, {}).load("curvature/a/0.5")
    assert back is not None and back.rows == {"path": [{"alpha": 1.0}]}
    np.testing.assert_array_equal(back.arrays["g"], np.arange(4.0))
    assert run.load("b") is None
    long = "layer." * 100
    run.save(long, unit(2.0))
    assert run.load(long).rows["path"][0]["alpha"] == 2.0 and run.load("curvature/a/0.5") is not None


def test_saving_again_replaces_the_unit(run):
    run.save("a", unit(1.0))
    run.save("a", unit(2.0))
    assert run.load("a").rows["path"][0]["alpha"] == 2.0
    assert [p.name for p in (run.root / "units").iterdir()] == ["a.unit"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {**IDENTITY["config"], "seed": 1}}, "config.seed is 0 there, 1 here"),
        ({"config": {**IDENTITY["config"], "pairs": [{"name": "b"}]}}, "config.pairs.0.name is"),
        ({"inputs": {}}, "inputs.a is .1234. there, not set here"),
        ({"extra": 1}, "extra is not set there, 1 here"),
    ],
)
def test_another_experiment_is_refused_with_a_diff(run, change, words):
    run.save("a", unit())
    before = {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}
    with pytest.raises(RunDirectoryError, match=words) as caught:
        RunDirectory.open(run.root, {**IDENTITY, **change}, {})
    assert len(str(caught.value).splitlines()) <= 3 and len(str(caught.value)) < 600
    assert before == {p: p.read_bytes() for p in run.root.rglob("*") if p.is_file()}


def test_the_same_identity_opens_in_any_spelling(run):
    same = {"inputs": {"a": "1234"}, "config": {"pairs": ({"name": "a"},), "alphas": [0.0, 0.5], "seed": np.int64(0)}}
    assert RunDirectory.open(run.root, same, {"count": 4}).manifest["count"] == 3


def test_not_a_number_is_equal_to_itself_in_an_identity(tmp_path):
    RunDirectory.open(tmp_path / "x", {"limit": float("nan")}, {})
    assert RunDirectory.open(tmp_path / "x", {"limit": float("nan")}, {}).root == tmp_path / "x"


def test_folders_that_are_no_run_directories_are_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"holds thesis.tex but no manifest.json"):
        RunDirectory.open(tmp_path / "notes", IDENTITY, {})
    assert os.listdir(tmp_path / "notes") == ["thesis.tex"]
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory.open(tmp_path / "notes" / "thesis.tex", IDENTITY, {})
    with pytest.raises(RunDirectoryError, match="not a folder|Not a directory|cannot be written"):
        RunDirectory.open(tmp_path / "notes" / "thesis.tex" / "x", IDENTITY, {})
    with pytest.raises(RunDirectoryError, match="no manifest.json"):
        RunDirectory.existing(tmp_path / "notes")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "sharpscope-run/99", "identity": {}}', "\x00\xff"])
def test_a_damaged_manifest_is_refused(run, text):
    (run.root / "manifest.json").write_text(text)
    for attempt in (lambda: RunDirectory.open(run.root, IDENTITY, {}), lambda: RunDirectory.existing(run.root)):
        with pytest.raises(RunDirectoryError, match=r"manifest.json: is (damaged|not the manifest)"):
            attempt()


def test_derived_files(run):
    assert run.write("tables/path.csv", b"alpha\n").read_bytes() == b"alpha\n"
    run.write("tables/path.csv", b"beta\n")
    assert (run.root / "tables" / "path.csv").read_bytes() == b"beta\n"
    for bad in ("", ".", "../x", "a/../../x", "/x", "manifest.json", "units/a.unit", "log.jsonl"):
        with pytest.raises(ValueError, match="not a path for a derived file"):
            run.write(bad, b"")


def test_the_log_grows_by_whole_lines_and_heals_a_torn_one(run):
    run.log("start", units=3)
    run.log("note", text="a\nb\u2028", value=float("nan"), count=np.int64(2))
    lines = (run.root / "log.jsonl").read_text().splitlines()
    assert [json.loads(x)["event"] for x in lines] == ["start", "note"]
    assert json.loads(lines[1])["text"] == "a\nb\u2028" and json.loads(lines[1])["count"] == 2
    with (run.root / "log.jsonl").open("a") as file:
        file.write('{"event": "to')
    again = RunDirectory.open(run.root, IDENTITY, {})
    again.log("after")
    assert json.loads((run.root / "log.jsonl").read_text().splitlines()[-1])["event"] == "after"


def test_a_claim_is_exclusive_until_released(run):
    claim = run.claim("a")
    assert claim is not None and run.claim("a") is None and run.claim("b") is not None
    assert str(run.holder("a")) == f"process {os.getpid()} on {host_name()}"
    with pytest.raises(KeyError), claim:
        raise KeyError
    assert run.holder("a") is None and run.claim("a") is not None


def test_a_claim_is_released_where_the_lock_cannot_be_opened(run, monkeypatch):
    claim = run.claim("a")

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("sharpscope.study.claims.os.open", refuse)
    claim.release()
    monkeypatch.undo()
    assert run.holder("a") is None and not list(run.root.rglob("*.claim"))


def test_a_finished_unit_cannot_be_claimed(run):
    run.save("a", unit())
    assert run.claim("a") is None
    assert not list((run.root / "claims").glob("*.claim"))


def test_the_claim_of_a_dead_process_is_taken_over(run):
    script = (
        "import sys; from sharpscope.study.store import RunDirectory\n"
        "run = RunDirectory.existing(sys.argv[1]); assert run.claim('a') is not None; print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(run.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "held\n"
        assert run.claim("a") is None and run.holder("a").pid == child.pid
        child.kill()  # a zombie until we wait for it: dead all the same
        while start_of(child.pid) is not None:
            pass
        taken = run.claim("a")
        assert taken is not None
    assert run.claim("a") is None


def test_a_recycled_process_id_does_not_keep_a_claim(run):
    claim = run.claim("a")
    path = run.root / "claims" / "a.claim"
    path.write_text(json.dumps({**json.loads(path.read_text()), "start": "another boot:1"}))
    assert run.holder("a") is None
    taken = run.claim("a")
    assert taken is not None
    claim.release()  # the first holder comes back late: it must not give away what is no longer its own
    assert run.holder("a") is not None


def test_a_claim_file_torn_at_birth_is_taken_over(run):
    for text in (b"", b"{", b"[]", b'{"host": "x"}'):
        (run.root / "claims" / "a.claim").write_bytes(text)
        claim = run.claim("a")
        assert claim is not None
        claim.release()


def test_of_many_threads_one_gets_the_claim(run):
    got = []
    threads = [threading.Thread(target=lambda: got.append(run.claim("a"))) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 8 and sum(c is not None for c in got) == 1


def test_start_of_tells_the_living_from_the_dead():
    assert start_of(os.getpid()) is not None and start_of(os.getpid()) == start_of(os.getpid())
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        pass
    assert start_of(child.pid) is None
