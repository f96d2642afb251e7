from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import ConfigError
from sharpscope.findings.failure import failure_table
from sharpscope.tables.schema import COLUMNS, KEYS

ALPHAS = (0.0, 0.5, 1.0)
N = 1000


def answers(levels: tuple[float, ...], n: int = N) -> np.ndarray:
    """Nested answers: accuracy ``levels`` exactly, the easiest examples right first."""
    return np.array([np.arange(n) < round(level * n) for level in levels])


def flags(levels: tuple[float, ...], losses: tuple[float, ...] = (1.0, 0.5, 0.3), **options: object) -> pd.DataFrame:
    noise = np.linspace(-0.1, 0.1, 50)
    table = failure_table(
        "p", ALPHAS, {"x": answers(levels)}, {"x": "ood"}, np.array(losses)[:, None] + noise, **options
    )
    return table.set_index(["flag", "dataset"])


def test_estimates_by_hand_on_a_failing_path() -> None:
    got = flags((0.5, 0.3, 0.4), losses=(1.0, 2.0, 0.5))
    assert got.loc[("F1", "x"), "estimate"] == pytest.approx(-0.1)
    assert got.loc[("F1", "x"), "alpha"] == 1.0
    assert got.loc[("F2", "x"), "estimate"] == pytest.approx(0.1)
    assert got.loc[("F4", "x"), "estimate"] == pytest.approx(0.15)
    assert got.loc[("F3", "probe"), "estimate"] == pytest.approx(1.0)
    assert (
        "LII 1.25 nats, of which 0.25 come from the different losses of the two ends alone"
        in got.loc[("F3", "probe"), "note"]
    )
    assert got["present"].all()
    same = [c for c in got.columns if c != "note"]
    for flag in ("F1", "F2", "F4"):
        pd.testing.assert_series_equal(
            got.loc[(flag, "x"), ["estimate", "alpha", "present"]],
            got.loc[(flag, "ood_mean"), same].loc[["estimate", "alpha", "present"]],
            check_names=False,
        )


def test_a_success_has_no_flag_though_its_losses_differ() -> None:
    got = flags((0.5, 0.6, 0.4))
    assert not got["present"].any()
    assert got.loc[("F1", "x"), "estimate"] == pytest.approx(0.1)
    assert got.loc[("F3", "probe"), "estimate"] == 0.0


def test_a_drop_inside_the_noise_is_no_failure() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((3, 60)) < np.array([0.52, 0.48, 0.51])[:, None]
    losses = np.ones((3, 25)) + rng.normal(size=(3, 25))
    assert not failure_table("p", ALPHAS, {"x": right}, {"x": "ood"}, losses)["present"].any()


def test_the_intervals_hold_the_estimate_and_decide() -> None:
    got = flags((0.5, 0.45, 0.55), losses=(0.5, 0.55, 0.4), eps=0.02).reset_index()
    assert (got["ci_low"] <= got["estimate"]).all() and (got["estimate"] <= got["ci_high"]).all()
    limit = {"F2": 0.02, "F3": 0.01, "F4": 0.0}
    for _, row in got.iterrows():
        excludes = row["ci_high"] < 0 if row["flag"] == "F1" else row["ci_low"] > limit[row["flag"]]
        assert row["present"] == excludes


def test_the_mean_counts_data_sets_equally_and_names_them() -> None:
    correct = {
        "big": answers((0.2, 0.4, 0.2), 2000),
        "small": answers((0.8, 0.4, 0.8), 100),
        "own": answers((1, 1, 1), 9),
    }
    table = failure_table("p", ALPHAS, correct, {"big": "ood", "small": "ood", "own": "id"}, np.ones((3, 4)))
    mean = table[(table["dataset"] == "ood_mean") & (table["flag"] == "F2")].iloc[0]
    assert mean["estimate"] == pytest.approx(0.1) and mean["note"] == "mean of big+small"
    assert "own" not in set(table["dataset"])
    assert tuple(table.columns) == COLUMNS["failure"]
    assert not table.duplicated(list(KEYS["failure"])).any()
    assert list(table["flag"]) == sorted(table["flag"])


def test_what_has_no_meaning_is_undefined_with_its_reason() -> None:
    ends = failure_table("p", (0.0, 1.0), {"x": answers((0.5, 0.6))}, {"x": "ood"}, np.ones((2, 4)))
    ends = ends.set_index(["flag", "dataset"])
    assert ends.loc[("F1", "x"), "estimate"] == pytest.approx(0.1)
    assert np.isnan(ends.loc[("F2", "x"), "estimate"]) and "an alpha between them" in ends.loc[("F2", "x"), "note"]
    no_start = failure_table("p", (0.5, 1.0), {"x": answers((0.5, 0.6))}, {"x": "ood"}, np.ones((2, 4)))
    assert no_start["estimate"].isna().all() and no_start["note"].str.startswith("undefined").all()
    no_ood = failure_table("p", ALPHAS, {}, {}, np.full((3, 4), np.nan))
    assert list(no_ood["flag"]) == ["F1", "F2", "F3", "F4"] and not no_ood["present"].any()
    assert "not finite" in no_ood["note"].iloc[2]


def test_too_few_replicates_flag_nothing() -> None:
    got = flags((0.5, 0.3, 0.4), bootstrap=10)
    assert not got["present"].any() and got["ci_low"].isna().all()
    assert got["note"].str.contains("10 bootstrap replicates are too few for level 0.95").all()


def test_alphas_outside_the_path_are_no_failure_of_interpolation() -> None:
    correct = {"x": answers((0.5, 0.6, 0.5, 0.1))}
    losses = np.array([1.0, 0.9, 0.8, 9.0])[:, None].repeat(25, axis=1)
    got = failure_table("p", (0.0, 0.5, 1.0, 1.5), correct, {"x": "ood"}, losses)
    assert not got["present"].any()


@pytest.mark.parametrize("n", [1, 2, 19])
def test_a_set_of_few_images_has_no_interval_and_the_reason_stands_beside_it(n: int) -> None:
    correct = {"small": answers((1.0, 0.0, 0.0), n), "x": answers((0.5, 0.3, 0.4))}
    got = failure_table("p", ALPHAS, correct, dict.fromkeys(correct, "ood"), np.ones((3, n)))
    got = got.set_index(["dataset", "flag"])
    for dataset in ("small", "ood_mean", "probe"):
        rows = got.loc[dataset]
        assert rows[["ci_low", "ci_high"]].isna().all(axis=None) and not rows["present"].any()
        assert rows["note"].str.contains("it needs 20 images in every data set, and").all()
        assert np.isfinite(rows["estimate"]).all()
    assert got.loc["small", "note"].str.contains(f"small has {n}").all()
    assert np.isfinite(got.loc["x", "ci_low"]).all() and got.loc["x", "present"].all()


def test_same_seed_same_bits_whatever_other_sets_there_are() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((3, 90)) < 0.5, rng.random((3, 70)) < 0.5
    one = failure_table("p", ALPHAS, {"x": x}, {"x": "ood"}, np.ones((3, 4)), seed=1)
    two = failure_table("p", ALPHAS, {"y": y, "x": x}, {"x": "ood", "y": "ood"}, np.ones((3, 4)), seed=1)
    pick = [t[t["dataset"] == "x"].reset_index(drop=True) for t in (one, two)]
    pd.testing.assert_frame_equal(*pick, check_exact=True)


@pytest.mark.parametrize(
    ("correct", "roles", "losses", "message"),
    [
        ({"x": np.ones((2, 5), bool)}, {"x": "ood"}, np.ones((3, 4)), r"correct\['x'\]: needs shape \[3 alphas"),
        ({"x": np.full((3, 5), 0.5)}, {"x": "ood"}, np.ones((3, 4)), "True or False"),
        ({"x": np.ones((3, 5), bool)}, {}, np.ones((3, 4)), r"roles\['x'\]"),
        ({}, {}, np.ones((2, 4)), "probe_losses"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(correct: dict, roles: dict, losses: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        failure_table("p", ALPHAS, correct, roles, losses)


def test_pictures_of_another_number_than_the_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pictures\['x'\]: needs shape \[5\], got \(4,\)"):
        failure_table(
            "p", ALPHAS, {"x": np.ones((3, 5), bool)}, {"x": "ood"}, np.ones((3, 4)), pictures={"x": np.arange(4)}
        )
