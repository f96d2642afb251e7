"""Simulated studies of which the truth is known: what advice prints of a choice by labels, of seeds and of sparsity.

Every margin is three standard errors: of the mean of what was simulated, or of a count, by the binomial.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import special

from sharpscope.findings.advice import Known, _held_back, advice_table
from sharpscope.findings.advising.along import along_path
from sharpscope.findings.advising.labels import label_rows
from sharpscope.findings.advising.references import Reference, reference_rows
from sharpscope.findings.prediction import predict_gain
from sharpscope.scores import Counts

GRID = tuple(round(0.1 * i, 1) for i in range(11))
FLAT = np.full(11, 0.6)
HUMP = 0.6 + 0.02 * (1 - ((np.array(GRID) - 0.5) / 0.5) ** 2)
"""Two points better at alpha .5 than at the ends."""
FIXED = {"zeroshot": 0.0, "half": 0.5, "finetuned": 1.0}
SPREAD = np.linalg.cholesky(np.exp(-np.abs(np.subtract.outer(GRID, GRID)) / 0.5) + 1e-9 * np.eye(11))


def answers(rng: np.random.Generator, accuracy: np.ndarray, n: int) -> np.ndarray:
    """Right answers [A, n] of which neighbours on the path share most."""
    own = SPREAD @ rng.normal(size=(len(accuracy), n))
    return (math.sqrt(0.8) * rng.normal(size=n) + math.sqrt(0.2) * own) < special.ndtri(accuracy)[:, None]


def most(rate: float, draws: int) -> float:
    """The most of ``draws`` that a true ``rate`` lets happen: three standard errors above its mean."""
    return draws * rate + 3 * math.sqrt(draws * rate * (1 - rate))


def error(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


# ------------------------------------------------------------------------------------------ what labels chose by labels
@pytest.fixture(scope="module", params=["flat", "hump"])
def studies(request: pytest.FixtureRequest) -> tuple[str, list[tuple[pd.DataFrame, np.ndarray]]]:
    """Advice on 60 paths with 300 OOD images each, and the true regret at every alpha."""
    truth, rng, found = {"flat": FLAT, "hump": HUMP}[request.param], np.random.default_rng(1), []
    for seed in range(60):
        hits = {"id": answers(rng, np.linspace(0.5, 0.8, 11), 100), "ood": answers(rng, truth, 300)}
        path = along_path("p", GRID, hits, {"id": "id", "ood": "ood"}, bootstrap=120, seed=seed)
        found.append((advice_table(path).set_index("rule"), truth.max() - truth))
    return request.param, found


def test_no_regret_is_larger_than_the_truth_on_average(
    studies: tuple[str, list[tuple[pd.DataFrame, np.ndarray]]],
) -> None:
    """Chosen on one half and judged on the other, a regret is at most the true one; on a flat path it is 0."""
    kind, found = studies
    for rule, alpha in FIXED.items():
        off = np.array([table.loc[rule, "regret"] - lost[GRID.index(alpha)] for table, lost in found])
        assert off.mean() <= 3 * error(off), rule
        assert kind != "flat" or off.mean() >= -3 * error(off), rule


def test_the_best_baselines_regret_is_not_that_of_a_choice_by_the_same_labels(
    studies: tuple[str, list[tuple[pd.DataFrame, np.ndarray]]],
) -> None:
    _, found = studies
    best = [table.loc["ood_best"] for table, _ in found]
    baseline = np.array([row["baseline_regret"] for row in best])
    assert np.isnan([row["regret"] for row in best]).all(), "0 by definition, and so no estimate"
    ours = np.array([lost[GRID.index(row["alpha"])] for row, (_, lost) in zip(best, found, strict=True)])
    its = [
        lost[GRID.index({**FIXED, "id_best": 1.0}[r["best_baseline"]])]
        for r, (_, lost) in zip(best, found, strict=True)
    ]
    off = baseline - (np.array(its) - ours)
    assert abs(off.mean()) <= 3 * error(off) + 0.005, "the difference to the labels' choice, half a point aside"


def test_the_bounds_of_a_regret_hold_for_the_alpha_that_these_labels_chose(
    studies: tuple[str, list[tuple[pd.DataFrame, np.ndarray]]],
) -> None:
    _, found = studies
    for rule in ("ood_best", "mean_best", "keep_id", *FIXED):
        rows = [(table.loc[rule], lost) for table, lost in found]
        missed = sum(
            not row["regret_low"] - 1e-9 <= lost[GRID.index(row["alpha"])] <= row["regret_high"] + 1e-9
            for row, lost in rows
        )
        assert missed <= most(0.05, len(rows)), rule
        assert all(0 <= row["regret_low"] <= row["regret_high"] for row, _ in rows)


def test_the_gain_of_the_best_alpha_is_not_that_on_the_labels_that_chose_it(
    studies: tuple[str, list[tuple[pd.DataFrame, np.ndarray]]],
) -> None:
    _, found = studies
    rows = [(table.loc["ood_best"], table.loc["zeroshot"], lost) for table, lost in found]
    truth = np.array([lost[0] - lost[GRID.index(row["alpha"])] for row, _, lost in rows])
    ours = np.array([row["predicted_gain"] for row, _, _ in rows]) - truth
    naive = np.array([row["ood_accuracy"] - start["ood_accuracy"] for row, start, _ in rows]) - truth
    assert naive.mean() > 3 * error(naive) and naive.mean() > 0.01, "the labels that chose flatter by points"
    assert abs(ours.mean()) < naive.mean() / 2 and ours.mean() <= 0.004 + 3 * error(ours)
    assert all(row["ci_low"] <= row["predicted_gain"] <= row["ci_high"] for row, _, _ in rows)


def test_a_clear_choice_is_judged_on_all_images() -> None:
    """Where both halves choose alike, the mean over halves is the accuracy on all images, and nothing is lost."""
    rng, n = np.random.default_rng(0), 400
    hits = rng.random(n) < np.array([0.3, 0.9, 0.5])[:, None]
    table = advice_table(along_path("p", (0.0, 0.5, 1.0), {"x": hits}, {"x": "ood"}, bootstrap=60)).set_index("rule")
    means = hits.mean(axis=1)
    assert table.loc["ood_best", "predicted_gain"] == pytest.approx(means[1] - means[0])
    assert table.loc["half", "regret"] == table.loc["ood_best", "baseline_regret"] == 0
    assert table.loc["zeroshot", "regret"] == pytest.approx(means[1] - means[0])
    assert table.loc["zeroshot", "regret_low"] > 0.4


def test_sets_of_the_same_images_judge_no_choice_that_these_images_made() -> None:
    """A set beside its copy says what the set alone says: an image is on the same side in both."""
    hits = answers(np.random.default_rng(4), FLAT, 60)
    one, two = (
        advice_table(along_path("p", GRID, dict.fromkeys(sets, hits), dict.fromkeys(sets, "ood"), bootstrap=50))
        for sets in (("x",), ("x", "copy"))
    )
    columns = ["rule", "alpha", "predicted_gain", "regret", "baseline_regret"]
    pd.testing.assert_frame_equal(one[columns], two[columns])
    assert one.set_index("rule").loc["half", "regret"] != 0


def test_counts_of_right_answers_cannot_judge_a_choice_and_say_so() -> None:
    counts = Counts(np.array([60, 70, 65]), 100)
    path = along_path("p", (0.0, 0.5, 1.0), {"x": counts}, {"x": "ood"}, bootstrap=60)
    half = advice_table(path).set_index("rule").loc["half"]
    assert np.isnan(half["regret"]) and half["regret_high"] > 0 and "cannot be split" in half["note"]


@pytest.mark.parametrize("n", [20, 50])
def test_few_labels_do_not_flatter_the_alpha_that_they_choose(n: int) -> None:
    """All points have accuracy .6; the best of eleven on 20 images looks ten points better."""
    rng, blind, off, missed, runs = np.random.default_rng(n), along_path("p", GRID, {}, {}), [], 0, 150
    for _ in range(runs):
        hits = answers(rng, FLAT, n)
        (row,) = label_rows(blind, hits)
        off.append((row["ood_accuracy"] - 0.6, row["baseline_regret"], hits.mean(axis=1).max() - 0.6))
        low, high = map(float, re.findall(r"target accuracy 95% interval \[(.+?), (.+?)\]", row["note"])[0])
        missed += not low <= 60 <= high
    accuracy, regret, naive = np.array(off).T
    assert abs(accuracy.mean()) <= 3 * error(accuracy) and abs(regret.mean()) <= 3 * error(regret)
    assert naive.mean() > 0.03 and missed <= most(0.05, runs)


# ----------------------------------------------------------------------------------------------- seeds are no settings
@pytest.mark.parametrize(("settings", "seeds"), [(6, 1), (6, 4), (4, 4)])
def test_prediction_intervals_cover_a_new_setting_however_many_seeds_each_has(settings: int, seeds: int) -> None:
    rng, hits, runs = np.random.default_rng(0), 0, 300
    of = np.repeat(np.arange(settings), seeds)
    for _ in range(runs):
        x = rng.normal(size=settings + 1)
        y = 0.02 * x + 0.03 * rng.normal(size=settings + 1)
        gains = y[of] + 0.005 * rng.normal(size=len(of))
        found = predict_gain(x[of, None], gains, x[-1:], of)
        hits += found.low <= y[-1] + 0.005 * rng.normal() <= found.high
    assert runs - hits <= most(0.05, runs)


def pair(name: str, rate: float, gain: float, setting: str = "") -> Reference:
    a = np.array((0.0, 0.5, 1.0))
    return Reference(
        name, tuple(a), {"ood": 0.5 + gain * 4 * a * (1 - a)}, 0.5 + 0.2 * a, {"log_learning_rate": math.log(rate)},
        setting or name, "base", {"ood": frozenset(("x",))},
    )  # fmt: skip


OTHERS = [pair(f"r{i}", 1e-5 * 2**i, 0.03 - 0.01 * i, f"s{i}") for i in range(7)]
JUDGED = dataclasses.replace(pair("p", 3e-5, 0.0), ood={})
BLIND = along_path("p", (0.0, 0.5, 1.0), {}, {})


def told(others: list[Reference], judged: Reference = JUDGED) -> pd.DataFrame:
    return pd.DataFrame(reference_rows(BLIND, judged, others)).set_index("rule")


def test_a_seed_that_repeats_another_changes_nothing_but_the_count() -> None:
    """Settings are the units: copies of a setting's pair make neither advice nor its interval more certain."""
    copies = [dataclasses.replace(r, pair=f"{r.pair}#{k}") for r in OTHERS for k in range(4)]
    one, two = (told(others).drop(columns="note") for others in (OTHERS, copies))
    pd.testing.assert_frame_equal(one, two)
    assert one.loc["predicted", "ci_high"] > one.loc["predicted", "ci_low"] and one["expected_regret"].notna().all()
    uneven = told([*OTHERS, *(r for r in copies if r.setting == "s0")]).drop(columns="note")
    pd.testing.assert_frame_equal(one, uneven)


def test_no_regret_is_expected_from_fewer_than_four_settings() -> None:
    """The settings at the ends lie outside the others when they are left out: of five, three are left."""
    few, enough = told(OTHERS[:5]), told(OTHERS[:6])
    assert few["expected_regret"].isna().all() and few["baseline_regret"].isna().all()
    assert few["note"].str.contains("no regret is expected: 3 settings could be left out in turn, and 4").all()
    assert list(few.index[few["advised"]]) == ["best_fixed"], "what nothing tests is the simplest rule"
    assert enough["expected_regret"].notna().all()


# ------------------------------------------------------------------------------------------------- which pairs may tell
def test_references_of_another_model_or_of_other_sets_tell_nothing() -> None:
    foreign = [dataclasses.replace(pair(f"f{i}", 1e-5 * 2**i, 0.2, f"t{i}"), base="another") for i in range(7)]
    elsewhere = [
        dataclasses.replace(pair(f"e{i}", 1e-5 * 2**i, 0.2, f"u{i}"), sets={"ood": frozenset(("y", "z"))})
        for i in range(7)
    ]
    alone, among = told(OTHERS), told([*OTHERS, *foreign, *elsewhere])
    pd.testing.assert_frame_equal(alone.drop(columns="note"), among.drop(columns="note"))
    for words in ("left out: 7 reference pairs of another zero-shot model", "with other OOD sets (y+z, in place of x)"):
        assert among["note"].str.contains(words, regex=False).all()
    assert alone["note"].str.contains("by their OOD labels of x", regex=False).all()
    for others in (foreign, elsewhere):
        refused = told(others)
        assert refused["alpha"].isna().all() and not refused["advised"].any()
        assert refused["note"].str.startswith("no alpha: 0 reference pairs").all()


def test_references_whose_sets_differ_tell_nothing_where_none_are_asked_about() -> None:
    mixed = [dataclasses.replace(r, sets={"ood": frozenset((f"set{i % 2}",))}) for i, r in enumerate(OTHERS)]
    rows = told(mixed, dataclasses.replace(JUDGED, sets={}))
    assert rows["alpha"].isna().all()
    assert rows["note"].str.contains("OOD sets differ: set0 | set1", regex=False).all()


def test_the_sets_of_the_judged_pair_decide_which_references_tell() -> None:
    hits = np.random.default_rng(0).random((3, 40)) < 0.6
    for name, given in (("x", True), ("y", False)):
        path = along_path("p", (0.0, 0.5, 1.0), {name: hits}, {name: "ood"}, bootstrap=50)
        rows = pd.DataFrame(reference_rows(path, JUDGED, OTHERS))
        assert rows["alpha"].notna().all() == given


# ---------------------------------------------------------------------------------------------------- sparse stragglers
def repairs(gains: dict[str, float], control: dict[str, float]) -> pd.DataFrame:
    rows = [
        {"pair": p, "control": name, "gain": g, "target": "delta", "select": "random", "density": 0.5, "alpha": 0.5,
         "status": "ok", "group": "ood"}
        for name, of in (("none", gains), ("random_layers", control))
        for p, g in of.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def held(settings: int, seeds: int, gain: float, control: float, rng: np.random.Generator) -> bool:
    """Whether layers are held back; a setting moves gain and control by 3 points, a seed by .4 points."""
    names = [[f"p{s}_{k}" for k in range(seeds)] for s in range(settings)]
    sides: list[dict[str, float]] = []
    for mean in (gain, control):
        of_setting = mean + 0.03 * rng.normal(size=settings)
        sides.append({p: of_setting[s] + 0.004 * rng.normal() for s in range(settings) for p in names[s]})
    others = [pair(p, 1e-5, 0.0, f"s{s}") for s in range(settings) for p in names[s]]
    known = Known(references=others, stragglers=("l",), repairs=repairs(*sides))
    return bool(_held_back(BLIND, known, "ood")[0])


@pytest.mark.parametrize(("settings", "seeds"), [(6, 1), (6, 5), (3, 4), (1, 4)])
def test_layers_are_rarely_held_back_where_sparsity_gains_nothing(settings: int, seeds: int) -> None:
    """Random layers lose, so that the gain alone decides. A level of .95 leaves 2.5 % above; none below 4 settings."""
    rng, runs = np.random.default_rng(1), 80 if settings >= 4 else 15
    found = sum(held(settings, seeds, 0.0, -0.5, rng) for _ in range(runs))
    assert found <= (most(0.025, runs) if settings >= 4 else 0)


def test_layers_are_rarely_held_back_where_random_layers_gain_as_much() -> None:
    rng, runs = np.random.default_rng(2), 80
    assert sum(held(6, 2, 0.5, 0.5, rng) for _ in range(runs)) <= most(0.025, runs)
    assert sum(held(6, 2, 0.5, 0.0, rng) for _ in range(8)) == 8, "and always where they gain nothing"


def test_stragglers_are_not_advised_where_random_layers_do_better() -> None:
    """Stragglers gain 3 points on every pair, random layers 5."""
    names = [r.pair for r in OTHERS]
    gains = {p: 0.03 + 0.001 * i for i, p in enumerate(names)}
    for extra, advised in ((0.02, False), (-0.02, True)):
        table = repairs(gains, {p: g + extra + 0.0005 * (i % 2) for i, (p, g) in enumerate(gains.items())})
        known = Known(judged=JUDGED, references=OTHERS, stragglers=("layer3",), repairs=table)
        rows = advice_table(BLIND, known)
        row = rows[rows["advised"]].iloc[0]
        assert (row["layers"] == "layer3") == advised
        assert ("the lower bound of its mean OOD gain over 7 settings" in row["note"]) == advised
        assert advised or "beats both the plain path and random layers" in row["note"]
    alone = repairs(gains, {})
    rows = advice_table(BLIND, Known(judged=JUDGED, references=OTHERS, stragglers=("layer3",), repairs=alone))
    assert set(rows["layers"]) == {""}, "without random layers nothing is known of these ones"
