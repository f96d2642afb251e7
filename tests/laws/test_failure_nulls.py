"""Failure flags, gains and repairs of models whose true accuracies are known: how often they are said to differ."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri

from sharpscope.findings.advice import advice_table
from sharpscope.findings.advising.along import along_path
from sharpscope.findings.failure import failure_table
from sharpscope.findings.repair import Variant, analyse_repairs
from sharpscope.findings.verdicts import verdicts_table
from sharpscope.scores import independent_mean, wilson
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import CANNOT, DOES_NOT_HOLD, HOLDS

GRID = (0.0, 0.5, 1.0)
FLAT = np.ones((3, 25))
Sets = dict[str, np.ndarray]


def upper(rate: float, runs: int) -> float:
    """Three standard errors above a nominal rate: what a simulation may show without a fault."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / runs)


def corrupted(sets: int, n: int, rng: np.random.Generator, accuracy: float = 0.6) -> Sets:
    """Answers [3, n] to ``sets`` sets of the same n pictures: a picture that is hard is hard in every set."""
    skill, drift = rng.normal(size=n), rng.normal(size=(3, n))
    own = rng.normal(size=(sets, 3, n))
    return {f"c{k}": math.sqrt(0.5) * skill + math.sqrt(0.4) * drift + math.sqrt(0.1) * own[k] < ndtri(accuracy)
            for k in range(sets)}  # fmt: skip


def flags(correct: Sets, pictures: Sets | None = None, seed: int = 0, bootstrap: int = 200) -> pd.DataFrame:
    table = failure_table(
        "p", GRID, correct, dict.fromkeys(correct, "ood"), FLAT, pictures=pictures, bootstrap=bootstrap, seed=seed
    )
    return table.set_index(["dataset", "flag"])


def gain(correct: Sets, pictures: Sets | None = None, seed: int = 0) -> pd.Series:
    roles = dict.fromkeys(correct, "ood")
    table = advice_table(along_path("p", GRID, correct, roles, pictures=pictures, bootstrap=200, seed=seed))
    return table[(table["situation"] == "measured") & (table["rule"] == "ood_best")].iloc[0]


# --- sets of the same pictures ---


def test_no_gain_on_fifteen_corruptions_of_the_same_images_is_rarely_called_a_failure_or_a_gain() -> None:
    runs, failures, gains = 150, 0, 0
    for seed in range(runs):
        correct = corrupted(15, 300, np.random.default_rng(seed))
        same = dict.fromkeys(correct, np.arange(300))
        failures += bool(flags(correct, same, seed).loc[("ood_mean", "F1"), "present"])
        row = gain(correct, same, seed)
        gains += row["alpha"] > 0 and row["ci_low"] > 0
    assert failures / runs <= upper(0.025, runs)
    assert gains / runs <= upper(0.05, runs)


def test_copies_of_one_set_say_what_the_set_says() -> None:
    """However often a set is given, in whatever order of its images: the interval is that of the one set."""
    rng = np.random.default_rng(3)
    (once,) = corrupted(1, 120, rng).values()
    order = rng.permutation(120)
    correct, pictures = {"c": once, "d": once[:, order]}, {"c": np.arange(120), "d": order}
    alone, both = flags({"c": once}), flags(correct, pictures)
    numbers = ["estimate", "ci_low", "ci_high"]
    np.testing.assert_allclose(
        both.loc["ood_mean", numbers].to_numpy(float), alone.loc["c", numbers].to_numpy(float), atol=1e-12
    )
    apart = flags(correct)
    assert (apart.loc[("ood_mean", "F1"), "ci_high"] - both.loc[("ood_mean", "F1"), "ci_high"]) < -0.005


def test_a_picture_that_chooses_in_one_set_does_not_judge_in_another() -> None:
    """The halves of a set and of its copies in another order are those of the one set, and no copy is cross-fitted."""
    rng = np.random.default_rng(4)
    (once,) = corrupted(1, 60, rng).values()
    order = rng.permutation(60)
    both, pictures = {"c": once, "d": once[:, order]}, {"c": np.arange(60), "d": order}
    alone = along_path("p", GRID, {"c": once}, {"c": "ood"}, bootstrap=0)
    together = along_path("p", GRID, both, dict.fromkeys(both, "ood"), pictures=pictures, bootstrap=0)
    apart = along_path("p", GRID, both, dict.fromkeys(both, "ood"), bootstrap=0)
    halves = [path.groups["ood"].halves for path in (alone, together, apart)]
    np.testing.assert_allclose(halves[1], halves[0], atol=1e-12)
    assert np.abs(halves[2] - halves[0]).max() > 0.02


def test_sets_without_common_pictures_are_drawn_as_if_nothing_were_known_of_them() -> None:
    correct = corrupted(3, 90, np.random.default_rng(0))
    apart = {name: np.arange(90) + 90 * k for k, name in enumerate(correct)}
    pd.testing.assert_frame_equal(flags(correct), flags(correct, apart), check_exact=True)
    pd.testing.assert_series_equal(gain(correct), gain(correct, apart), check_exact=True)
    some = {"c0": apart["c0"], "c1": apart["c0"]}  # and a set is as it was, whichever others are drawn together
    pd.testing.assert_frame_equal(flags(correct).loc["c2"], flags(correct, some).loc["c2"], check_exact=True)


def test_sets_that_share_a_part_of_their_pictures_have_the_error_of_their_pictures() -> None:
    """The mean of two sets with equal answers on half of their pictures has 3/4 of the variance of one of them."""
    rng = np.random.default_rng(1)
    n = 400
    hits = rng.random((2, 3 * n // 2)) < 0.5  # the zero-shot and a further model on all pictures
    hits = np.stack([hits[0], hits[1], hits[0]])
    rows = {"a": np.arange(n), "b": np.arange(n // 2, 3 * n // 2)}
    correct = {name: hits[:, own] for name, own in rows.items()}
    path = along_path("p", GRID, correct, dict.fromkeys(correct, "ood"), pictures=rows, bootstrap=4000)
    gains = path.groups["ood"].gains(GRID)
    assert gains is not None
    per_picture = (hits[1] * 1.0 - hits[0]) * np.repeat([0.5, 1.0, 0.5], n // 2)
    true = math.sqrt((3 * n // 2) * per_picture.var()) / n
    assert gains.replicates[:, 1].std() == pytest.approx(true, rel=0.06)
    two = along_path("p", GRID, correct, dict.fromkeys(correct, "ood"), bootstrap=4000).groups["ood"].gains(GRID)
    assert two is not None and two.replicates[:, 1].std() < 0.9 * true


def test_the_mean_accuracy_of_corruptions_of_one_set_covers_the_truth() -> None:
    runs, inside, apart = 300, 0, 0
    for seed in range(runs):
        hits = [own[0] for own in corrupted(8, 200, np.random.default_rng(seed)).values()]
        values = [float(own.mean()) for own in hits]
        lows, highs = zip(*(wilson(int(own.sum()), 200) for own in hits), strict=True)
        _, low, high = independent_mean(values, lows, highs, ["pictures"] * 8)
        inside += low <= 0.6 <= high
        _, low, high = independent_mean(values, lows, highs)
        apart += low <= 0.6 <= high
    assert inside / runs >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / runs) > apart / runs


# --- few images ---


@pytest.mark.parametrize("n", [1, 2, 4, 20, 40])
def test_however_few_the_images_no_gain_is_rarely_called_one(n: int) -> None:
    runs, failures, gains = 300, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        skill, own = rng.normal(size=n), rng.normal(size=(2, n))
        correct = {"x": np.stack([skill + own[0], skill + own[1], skill + own[1]]) < 0}
        failures += bool(flags(correct, seed=seed, bootstrap=100).loc[("x", "F1"), "present"])
        row = gain(correct, seed=seed)
        gains += row["alpha"] > 0 and row["ci_low"] > 0
    assert failures / runs <= upper(0.025, runs)
    assert gains / runs <= upper(0.05, runs)
    assert (failures, gains) == (0, 0) or n >= 20


# --- repairs ---


def verdict(plain: tuple[float, ...], repaired: float, control: float, seed: int, n: int = 1000) -> pd.Series:
    """The verdict on five masks of true OOD accuracy ``repaired`` and their controls, at alpha 1/2 of the path."""
    rng = np.random.default_rng(seed)
    skill = {role: rng.normal(size=n) for role in ("id", "ood")}

    def answers(role: str, levels: tuple[float, ...]) -> np.ndarray:
        own = rng.normal(size=(len(levels), n))
        return (0.8 * skill[role] + 0.6 * own) < ndtri(np.array(levels))[:, None]

    roles = {"id": "id", "ood": "ood"}
    correct = {"id": answers("id", (0.5, 0.7, 0.9)), "ood": answers("ood", plain)}
    variants = [
        Variant(f"{kind}:delta:random:0.5", (f"l{mask}",), "delta", "random", 0.5, 0.5, kind, (0.5,),
                {"id": answers("id", (0.7,)), "ood": answers("ood", (level,))}, mask)
        for kind, level in (("none", repaired), ("random_layers", control)) for mask in range(1, 6)
    ]  # fmt: skip
    found = analyse_repairs("p", GRID, correct, roles, variants, bootstrap=100, seed=seed)
    failure = failure_table("p", GRID, correct, roles, np.ones((3, 25)), bootstrap=100, seed=seed)
    empty = {name: pd.DataFrame(columns=list(columns)) for name, columns in COLUMNS.items()}
    table = verdicts_table(
        empty["correlations"], failure, [found], empty["sharpness"], empty["accuracy"], measure="hessian_trace",
        alpha=0.5, bootstrap=100,
    )  # fmt: skip
    return table[table["pair"] == "p"].iloc[0]


@pytest.mark.parametrize(
    ("plain", "repaired", "wanted"),
    [
        ((0.60, 0.35, 0.30), 0.42, DOES_NOT_HOLD),  # far below zero-shot and below the chord: the failure stays
        ((0.60, 0.35, 0.50), 0.48, DOES_NOT_HOLD),  # below the chord and worse than both ends
        ((0.60, 0.35, 0.30), 0.70, HOLDS),
        ((0.60, 0.35, 0.30), 0.60, CANNOT),  # as good as zero-shot: better than it or worse is not known
    ],
)
def test_a_repair_holds_only_where_the_repaired_points_do_not_fail(
    plain: tuple[float, ...], repaired: float, wanted: str
) -> None:
    got = [verdict(plain, repaired, 0.30, seed) for seed in range(12)]
    assert sum(row["verdict"] == wanted for row in got) >= 10
    if wanted == DOES_NOT_HOLD:
        assert not any(row["verdict"] == HOLDS for row in got)
        assert all("mitigates, does not repair" in row["evidence"] for row in got if row["verdict"] == DOES_NOT_HOLD)
