"""P5 among hosts: a silent holder's units are taken over, a living one's never, whatever any clock shows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from sharpscope.study import claims as module
from sharpscope.study.claims import BEAT_SECONDS, SILENCE_SECONDS, Claims


class Clock:
    """An observer's monotonic clock, which stands still until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def abroad(folder: Path, key: str = "a") -> Path:
    """The file of a claim that a process of another host holds."""
    assert Claims(folder).take(key) is not None
    path = folder / f"{key}.claim"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere"}))
    return path


def beat(path: Path, at: float) -> None:
    """What the heartbeat of the other host leaves, when that host's clock shows ``at``."""
    os.utime(path, (at, at))


def test_silence_is_counted_from_the_last_change_that_this_observer_saw(tmp_path):
    clock = Clock(1e6)
    path, observer = abroad(tmp_path), Claims(tmp_path, clock)
    assert str(observer.holder("a")).endswith("on elsewhere")
    for n in range(40):  # far more than the time of silence in all
        clock.now += SILENCE_SECONDS * 0.9
        beat(path, n)
        assert observer.holder("a") is not None and observer.take("a") is None
    clock.now += SILENCE_SECONDS
    assert observer.take("a") is None
    clock.now += 1
    assert observer.holder("a") is None
    assert observer.take("a") is not None
    assert observer.holder("a").is_here


@pytest.mark.parametrize("wrong", [-7 * 86400.0, -3600.0, 0.0, 3600.0, 7 * 86400.0])
def test_a_clock_that_is_wrong_does_no_harm(tmp_path, wrong):
    clock, other = Clock(), time.time() + wrong
    path, observer = abroad(tmp_path), Claims(tmp_path, clock)
    for _ in range(20):
        clock.now += BEAT_SECONDS
        other += BEAT_SECONDS
        beat(path, other)
        assert observer.take("a") is None, "the holder lives"
    assert SILENCE_SECONDS > 3 * BEAT_SECONDS
    clock.now += SILENCE_SECONDS + 1
    assert observer.take("a") is not None


def test_an_observer_that_comes_late_counts_from_its_own_beginning(tmp_path):
    path = abroad(tmp_path)
    beat(path, time.time() - 30 * 86400)
    clock = Clock(5e5)
    observer = Claims(tmp_path, clock)
    assert observer.take("a") is None, "it cannot know yet"
    clock.now += SILENCE_SECONDS + 1
    assert observer.take("a") is not None


def test_a_new_claim_on_the_same_unit_is_not_silent_for_what_the_old_one_was(tmp_path):
    clock = Clock()
    path, observer = abroad(tmp_path), Claims(tmp_path, clock)
    beat(path, 1000)
    assert observer.holder("a") is not None
    clock.now += SILENCE_SECONDS + 1
    path.unlink()
    beat(abroad(tmp_path), 1000)  # another process took it over; the same instant by its clock
    assert observer.holder("a") is not None


def test_a_thread_renews_what_is_held_and_only_that(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.001)
    claims = Claims(tmp_path)
    held, released, stolen = (claims.take(key) for key in "abc")
    paths = {key: tmp_path / f"{key}.claim" for key in "abc"}
    released.release()
    paths["b"].write_text("someone else's by now")
    stolen_text = paths["c"].read_bytes() + b" "
    paths["c"].write_bytes(stolen_text)
    for _ in range(3):
        for path in paths.values():
            beat(path, 0)
        while paths["a"].stat().st_mtime == 0:  # for ever, where nothing renews it
            pass
        assert paths["b"].stat().st_mtime == paths["c"].stat().st_mtime == 0
    held.release()
    stolen.release()
    assert not paths["a"].exists() and paths["c"].read_bytes() == stolen_text
    while claims.heart._beating:  # the thread ends with the last claim
        pass
    again = claims.take("d")
    beat(tmp_path / "d.claim", 0)
    while (tmp_path / "d.claim").stat().st_mtime == 0:
        pass
    again.release()


def no_locks(*_: object) -> None:
    raise OSError(37, "No locks available")


def test_without_locks_the_loser_of_a_race_is_told_and_no_error_ends_it(tmp_path, monkeypatch):
    """Every interleaving of two processes at the two steps that a lock would have kept together."""
    monkeypatch.setattr(fcntl, "flock", no_locks)
    first, second = Claims(tmp_path), Claims(tmp_path)
    open_file, taken = os.open, []

    def late(path, flags, mode=0o777):
        if flags & os.O_EXCL and not taken:  # the other process is faster, just before the file is made
            taken.append(None)
            taken.append(second.take("a"))
        return open_file(path, flags, mode)

    monkeypatch.setattr(os, "open", late)
    assert first.take("a") is None and taken[1] is not None
    taken[1].release()
    (tmp_path / "a.claim").write_bytes(b"torn")
    unlink = Path.unlink

    def gone(path, **options):
        unlink(path, missing_ok=True)  # the other process removes the dead claim first
        unlink(path, **options)

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(Path, "unlink", gone)
        claim = first.take("a")
    assert claim is not None and second.take("a") is None
    claim.release()
    assert second.take("a") is not None
