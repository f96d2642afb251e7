"""Random configurations: reproducible, one prefix for every number of draws, uniform in the scale that is asked for."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from scipy.stats import kstest

from sharpscope.config.study import StudyConfig
from sharpscope.config.sweep import SweepConfig
from sharpscope.config.sweepdraws import Design, drawn, read_ranges
from sharpscope.errors import ConfigError

RANGES = read_ranges({
    "lr": {"low": 1e-4, "high": 1.0, "scale": "log"}, "ema": {"low": 0, "high": 0.9},
    "epochs": {"low": 2, "high": 5, "whole": True}, "batch_size": [64, 128],
})  # fmt: skip
DESIGNS: tuple[Design, ...] = ("random", "latin-hypercube")


def shares(draws: Any, name: str) -> list[float]:
    """Where in its range each draw lies."""
    inverse = {"lr": lambda v: math.log(v / 1e-4) / math.log(1e4), "ema": lambda v: v / 0.9}[name]
    return [inverse(draw[name]) for draw in draws]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_draws_are_those_of_the_seed_uniform_and_independent(design: Design) -> None:
    draws = drawn(400, RANGES, design, 0)
    assert draws == drawn(400, RANGES, design, 0)
    assert not {d["lr"] for d in draws} & {d["lr"] for d in drawn(400, RANGES, design, 1)}
    for name in ("lr", "ema"):
        assert kstest(shares(draws, name), "uniform").pvalue > 0.01
    mixed = sum(a * b for a, b in zip(*(shares(draws, n) for n in ("lr", "ema")), strict=True)) / 400
    assert mixed == pytest.approx(0.25, abs=0.03)
    assert {d["epochs"] for d in draws} == {2, 3, 4, 5} and {d["batch_size"] for d in draws} == {64, 128}
    for values in ([d["epochs"] == k for d in draws] for k in (2, 3, 4, 5)):
        assert sum(values) == pytest.approx(100, abs=40 if design == "random" else 0)


def test_more_draws_keep_the_first_ones_and_another_range_moves_no_other() -> None:
    few, more = drawn(7, RANGES, "random", 3), drawn(50, RANGES, "random", 3)
    assert more[:7] == few
    alone = drawn(7, {"lr": RANGES["lr"]}, "random", 3)
    assert [d["lr"] for d in alone] == [d["lr"] for d in few]


@pytest.mark.parametrize("count", [5, 64])
def test_every_part_of_a_range_holds_one_draw_of_a_latin_hypercube(count: int) -> None:
    draws = drawn(count, RANGES, "latin-hypercube", 1)
    for name in ("lr", "ema"):
        assert sorted(math.floor(s * count) for s in shares(draws, name)) == list(range(count))
    assert shares(draws, "lr") != sorted(shares(draws, "lr"))
    plain = shares(drawn(count, RANGES, "random", 1), "lr")
    assert len({math.floor(s * count) for s in plain}) < count


def test_whole_numbers_of_a_log_scale_follow_the_floor_of_its_law() -> None:
    (wide,) = read_ranges({"n": {"low": 1, "high": 7, "scale": "log", "whole": True}}).values()
    values = [wide.at(i / 3000) for i in range(3000)]
    for k in range(1, 8):  # of [1, 8): P(k) = log((k + 1) / k) / log 8
        assert values.count(k) / 3000 == pytest.approx(math.log((k + 1) / k) / math.log(8), abs=1e-3)
    assert isinstance(values[0], int) and wide.at(1.0) == 7


def test_configurations_are_all_different_or_there_are_too_few() -> None:
    two = read_ranges({"a": [1, 2], "b": ["x", "y"]})
    assert sorted(tuple(d.values()) for d in drawn(4, two, "random", 0)) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    with pytest.raises(ConfigError, match="ranges hold 4 configurations, fewer than the 5 to draw"):
        drawn(5, two, "random", 0)
    with pytest.raises(ConfigError, match=r"latin-hypercube of 4 has only \d configurations that differ"):
        drawn(4, two, "latin-hypercube", 0)


def sweep(**settings: Any) -> SweepConfig:
    return SweepConfig("z", "mini:photo", StudyConfig(), **settings)


def test_a_sweep_names_each_draw_and_gives_every_stratum_the_same() -> None:
    lr = {"lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}}
    made = sweep(methods=("flyp", "wise-ft"), grid={"epochs": [1, 2]}, draw=3, ranges=lr, seeds=(0, 1), set={"ema": 1})
    trials = made.trials()
    assert len({t.name for t in trials}) == 2 * 2 * 3 * 2
    assert trials[0].name == "flyp-epochs1-draw0-seed0" and set(trials[0].settings) == {"ema", "epochs", "lr"}
    for i in range(3):
        assert len({t.settings["lr"] for t in trials if f"-draw{i}-" in t.name}) == 1
    more = sweep(methods=("flyp", "wise-ft"), grid={"epochs": [1, 2]}, draw=4, ranges=lr, seeds=(0, 1), set={"ema": 1})
    known = {t.name: t for t in more.trials()}
    assert all(known[t.name] == t and known[t.name].settings == t.settings for t in trials)
    cube = sweep(draw=3, ranges=lr, design="latin-hypercube").trials()
    assert cube[2].name == "wise-ft-draw2of3-seed0"  # of 4, the third one is another


@pytest.mark.parametrize(("settings", "said"), [
    ({"ranges": {"lr": [1, 2]}}, "ranges: changes nothing without draw"),
    ({"draw_seed": 1}, "draw_seed: changes nothing without draw"),
    ({"draw": 2}, "draw: needs at least 1 configuration, and ranges"),
    ({"draw": 0, "ranges": {"lr": [1, 2]}}, "draw: needs at least 1 configuration"),
    ({"draw": 1, "ranges": {"lr": [1, 2]}, "set": {"lr": 1}}, "set.lr: is among ranges too"),
    ({"draw": 1, "ranges": {"lr": [1, 2]}, "grid": {"lr": [1]}}, "ranges.lr: is among grid too"),
    ({"draw": 1, "ranges": {"lr": [1, 1.0]}}, "ranges.lr: '1.0' is given twice"),
    ({"draw": 1, "ranges": {"lr": {"low": 1}}}, "ranges.lr: needs a list of values, or a range such as"),
    ({"draw": 1, "ranges": {"lr": []}}, "ranges.lr: needs a list of values, or a range such as"),
    ({"draw": 1, "ranges": {"lr": {"low": 1, "high": 2, "scales": "log"}}}, "ranges.lr: unknown key 'scales'"),
    ({"draw": 1, "ranges": {"lr": {"low": 1, "high": 2, "scale": "lin"}}}, "ranges.lr: scale: 'lin' is none of"),
    ({"draw": 1, "ranges": {"lr": {"low": 2, "high": 2}}}, "ranges.lr: low 2 has to be below high 2"),
    ({"draw": 1, "ranges": {"lr": {"low": 0, "high": 2, "scale": "log"}}}, "ranges.lr: low 0: a log scale starts"),
    ({"draw": 1, "ranges": {"lr": {"low": 0.5, "high": 2, "whole": True}}}, "ranges.lr: whole: true needs whole"),
])  # fmt: skip
def test_what_a_draw_must_not_say(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(said)):
        sweep(**settings)
