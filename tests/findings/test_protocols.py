"""The tables of protocols: harmonic means, averages and spreads over seeds, gains with their interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpscope.findings.protocols import base_to_new, cross_dataset, few_shot, harmonic_mean, upgrade
from sharpscope.present.protocoltables import markdown_of
from sharpscope.scores import independent_mean
from sharpscope.tables.files import csv_bytes, read_csv
from sharpscope.vocabulary import AVERAGE, ZERO_SHOT

SHARES = st.floats(0, 1)


def rows(*given: tuple[str, str, int, int, str, float], evaluated: str = "") -> pd.DataFrame:
    columns = ["method", "dataset", "shots", "seed", "role", "estimate"]
    table = pd.DataFrame(given, columns=columns)
    return table.assign(evaluated=evaluated or table["dataset"])


@given(SHARES, SHARES)
def test_the_harmonic_mean(base: float, new: float) -> None:
    h = harmonic_mean(base, new)
    assert h == harmonic_mean(new, base)
    assert min(base, new) - 1e-12 <= h <= (base + new) / 2 + 1e-12
    assert harmonic_mean(base, base) == pytest.approx(base)
    if base > 1e-3 and new > 1e-3:
        assert 2 / h == pytest.approx(1 / base + 1 / new)


@pytest.mark.parametrize(("base", "new", "h"), [(69.34, 74.22, 71.70), (82.69, 63.22, 71.66), (80.47, 71.69, 75.83)])
def test_the_published_averages(base: float, new: float, h: float) -> None:
    """CoCoOp (arXiv 2203.05557), table 1a: CLIP, CoOp and CoCoOp over eleven data sets."""
    assert round(100 * harmonic_mean(base / 100, new / 100), 2) == h
    sets = [("a", -0.1), ("b", 0.1)]
    made = [(ZERO_SHOT, d, 0, 0, r, v / 100 + off) for d, off in sets for r, v in (("base", base), ("new", new))]
    table = base_to_new(rows(*made)).set_index("dataset")
    assert round(100 * table.at[AVERAGE, "h"], 2) == h  # of the averages, not the average of the sets' own


def test_base_to_new_over_seeds() -> None:
    made = [("m", d, 16, s, r, v) for d, s, r, v in [
        ("a", 1, "base", 0.8), ("a", 1, "new", 0.4), ("a", 2, "base", 0.6), ("a", 2, "new", 0.6),
        ("b", 1, "base", 0.2), ("b", 1, "new", 0.2), ("b", 2, "base", 0.4), ("b", 2, "new", 0.4),
    ]]  # fmt: skip
    table = base_to_new(rows(*made)).set_index("dataset")
    assert list(table.index) == ["a", "b", AVERAGE]
    a = table.loc["a"]
    assert (a["base_accuracy"], a["new_accuracy"], a["h"], a["seeds"]) == pytest.approx((0.7, 0.5, 0.7 / 1.2, 2))
    assert a["base_sd"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert a["h_sd"] == pytest.approx(np.std([0.64 / 1.2, 0.6], ddof=1))
    mean = table.loc[AVERAGE]
    assert mean["base_accuracy"] == pytest.approx(0.5) and mean["base_sd"] == pytest.approx(0)  # .5 with either seed
    assert AVERAGE not in set(base_to_new(rows(*made[:-2]))["dataset"])  # a seed of b is missing
    assert AVERAGE not in set(base_to_new(rows(*made[:4]))["dataset"])  # the average of one set would be that set


def test_few_shot_and_cross_dataset() -> None:
    made = [("m", "a", k, s, "test", 0.1 * k + 0.01 * s) for k in (1, 2) for s in (1, 3)]
    table = few_shot(rows(*made, (ZERO_SHOT, "a", 0, 0, "test", 0.5)))
    assert table["accuracy"].tolist() == pytest.approx([0.12, 0.22, 0.5])
    assert math.isnan(table["accuracy_sd"].iloc[2]) and table["accuracy_sd"].iloc[0] == pytest.approx(0.02 / 2**0.5)
    text = markdown_of("few-shot", table)
    assert "| m | a |  | 12.00 ± 1.41 | 22.00 ± 1.41 |" in text and "| zero-shot | a | 50.00 |  |  |" in text

    parts = [rows(("m", "s", 4, 1, role, value), evaluated=e)
             for role, e, value in (("source", "s", 0.9), ("target", "t", 0.2), ("target", "u", 0.4))]  # fmt: skip
    crossed = cross_dataset(pd.concat(parts)).set_index(["role", "dataset"])["accuracy"]
    assert crossed.to_dict() == pytest.approx({
        ("source", "s"): 0.9, ("target", "t"): 0.2, ("target", "u"): 0.4, ("target", AVERAGE): 0.3,
    })  # fmt: skip


def upgrade_of(right: Mapping[str, list[tuple[float, float]]], n: int, bootstrap: int = 400) -> pd.DataFrame:
    """The table of sets with, for each seed, the accuracy of (upgraded zero-shot, upgraded)."""
    rng = np.random.default_rng(0)
    hits, made = {}, []
    for dataset, seeds in right.items():
        zero = rng.random(n) < seeds[0][0]
        for seed, (_, share) in enumerate(seeds):
            ends = {"old_zeroshot": zero, "old": zero, "upgraded_zeroshot": zero, "upgraded": rng.random(n) < share}
            hits |= {("m", dataset, seed, role): hit for role, hit in ends.items()}
            made += [("m", dataset, 4, seed, role, float(hit.mean())) for role, hit in ends.items()]
    return upgrade(rows(*made), hits, level=0.95, bootstrap=bootstrap)


def test_the_gain_is_paired_over_images() -> None:
    table = upgrade_of({"a": [(0.5, 0.7), (0.5, 0.7)], "b": [(0.5, 0.5), (0.5, 0.5)]}, 800).set_index("dataset")
    a, b, mean = table.loc["a"], table.loc["b"], table.loc[AVERAGE]
    assert a["gain"] == pytest.approx(a["upgraded"] - a["upgraded_zeroshot"]) and a["ci_low"] > 0.1
    assert b["ci_low"] < 0 < b["ci_high"]
    assert (mean["gain"], mean["ci_low"], mean["ci_high"]) == pytest.approx(
        independent_mean([a["gain"], b["gain"]], [a["ci_low"], b["ci_low"]], [a["ci_high"], b["ci_high"]])
    )
    assert mean["n"] == 1600
    # nothing changes: no gain, and no other draw of images would show one
    zero = np.arange(40) % 3 == 0
    same = {("m", "a", 0, role): zero for role in ("old_zeroshot", "old", "upgraded_zeroshot", "upgraded")}
    only = upgrade(rows(*[("m", "a", 4, 0, role, 1 / 3) for _, _, _, role in same]), same, level=0.95, bootstrap=50)
    assert only.loc[0, ["gain", "ci_low", "ci_high"]].tolist() == [0, 0, 0]


def test_the_interval_of_the_gain_covers() -> None:
    """The standard error of a mean over images, sd / sqrt(n), is a quarter of the 95 % interval's width."""
    table = upgrade_of({"a": [(0.5, 0.6)]}, 2000, 2000)
    width = float((table["ci_high"] - table["ci_low"]).iloc[0])
    variance = 0.5 * 0.5 + 0.6 * 0.4  # of the difference of two independent hits
    assert width == pytest.approx(2 * 1.96 * math.sqrt(variance / 2000), rel=0.1)


def test_the_tables_survive_their_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = upgrade_of({"a": [(0.5, 0.6)], "b": [(0.5, 0.4)]}, 50)
    (tmp_path / "upgrade.csv").write_bytes(csv_bytes(table, "upgrade"))
    back = read_csv(tmp_path / "upgrade.csv", "upgrade")
    assert set(back["dataset"]) == {"a", "b", AVERAGE} and str(back["n"].dtype) == "int64"
    assert "gain" in markdown_of("upgrade", table).splitlines()[0]
