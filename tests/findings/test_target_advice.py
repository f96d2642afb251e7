"""Advice from target images: exact laws of the estimators, and intervals that hold with twenty labels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import special

from sharpscope.errors import ConfigError
from sharpscope.findings.advice import Known, advice_table
from sharpscope.findings.advising import images
from sharpscope.findings.advising.along import along_path
from sharpscope.findings.advising.images import ESTIMATORS, held_out, image_curves
from sharpscope.findings.advising.labels import label_curve, label_rows, paired_difference
from sharpscope.scores import PathAnswers

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def made(levels: list[float], n: int = 300, seed: int = 0, ties: bool = False) -> PathAnswers:
    """A path whose points are right with the given probabilities, their confidence a noisy sign of it; 5 classes."""
    rng = np.random.default_rng(seed)
    labels, hard = rng.integers(0, 5, n), rng.random(n)
    right = hard < np.array(levels)[:, None]
    wrong = (labels + 1 + (hard * 40).astype(int) % 4) % 5
    confidence = np.clip(0.3 + 0.5 * right + 0.2 * rng.normal(size=right.shape), 0, 1)
    return PathAnswers(np.where(right, labels, wrong), confidence.round(1) if ties else confidence, labels)


ID = made([0.5, 0.6, 0.7, 0.75, 0.8])
PATH = along_path("p", ALPHAS, {"id": ID.correct}, {"id": "id"}, bootstrap=50)


# ----------------------------------------------------------------------------------------------------------- estimators
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("rule", ["atc", "doc", "agreement"])
def test_on_the_labelled_images_themselves_the_estimate_is_the_accuracy(rule: str, ties: bool) -> None:
    labelled = made([0.0, 0.3, 0.61, 0.9, 1.0], ties=ties)
    estimate = ESTIMATORS[rule](labelled, labelled.without_labels())
    np.testing.assert_allclose(estimate, labelled.correct.mean(axis=1), atol=1e-12)


def test_agreement_on_the_line_is_exact_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where agreements and accuracies lie on one line of probits, the accuracies come back exactly."""
    slope, bias, n = 0.7, -0.4, 10**6
    known = np.array([0.5, 0.62, 0.7, 0.81])
    agree = special.ndtri(np.array([0.6, 0.65, 0.55, 0.8, 0.7, 0.9]))
    places = tuple(np.array(list(itertools.combinations(range(4), 2))).T)
    on_id, on_target = np.zeros((2, 4, 4))
    on_id[places], on_target[places] = special.ndtr(agree), special.ndtr(slope * agree + bias)
    labels = np.zeros(n, dtype=int)
    predicted = np.stack([np.arange(n) >= round(a * n) for a in known]).astype(int)
    labelled = PathAnswers(predicted, predicted + 0.0, labels)
    tables = iter((on_id, on_target))
    monkeypatch.setattr(images, "_agreements", lambda answers: next(tables))
    found = images.agreement_on_the_line(labelled, labelled.without_labels())
    np.testing.assert_allclose(found, special.ndtr(slope * special.ndtri(known) + bias), rtol=1e-9)


@pytest.mark.parametrize("rule", ESTIMATORS)
def test_the_order_of_images_and_the_target_labels_change_nothing(rule: str) -> None:
    target, order = made([0.3, 0.5, 0.6, 0.5, 0.4], seed=3), np.random.default_rng(1).permutation(300)
    first = ESTIMATORS[rule](ID, target.without_labels())
    np.testing.assert_allclose(ESTIMATORS[rule](ID.take(order[::-1]), target.take(order)), first, rtol=1e-12)


def test_too_few_points_or_points_that_all_agree_are_undefined() -> None:
    two = ID.take(np.arange(300))
    short = PathAnswers(two.predicted[:2], two.confidence[:2], two.labels)
    assert np.isnan(ESTIMATORS["agl"](short, short)).all() and np.isfinite(ESTIMATORS["agreement"](short, short)).all()
    one = PathAnswers(two.predicted[:1], two.confidence[:1], two.labels)
    assert np.isnan(ESTIMATORS["agreement"](one, one)).all()
    still = PathAnswers(np.repeat(one.predicted, 3, 0), np.repeat(one.confidence, 3, 0), one.labels)
    assert np.isnan(ESTIMATORS["agl"](still, still)).all()


# ------------------------------------------------------------------------------------------------------------- the race
def test_the_rule_that_wins_on_held_out_shifts_is_advised_and_baselines_stand_beside_it() -> None:
    shifts = {"a": made([0.4, 0.5, 0.6, 0.5, 0.3], seed=5), "b": made([0.3, 0.45, 0.5, 0.55, 0.5], seed=6)}
    judged = held_out(PATH, ID, shifts)
    truth = shifts["a"].correct.mean(axis=1)
    assert judged["half"].regret == pytest.approx(
        np.mean([truth.max() - truth[2], np.ptp(shifts["b"].correct.mean(1)[2:4])]), abs=0.02
    )
    assert {"zeroshot", "half", "finetuned", "id_best", *ESTIMATORS} == set(judged)
    target = made([0.4, 0.5, 0.6, 0.5, 0.3], seed=8).without_labels()
    table = advice_table(PATH, Known(images=image_curves(ID, target, bootstrap=60), held_out=judged))
    ours = table[table["situation"] == "target_images"].set_index("rule")
    least = min(judged[r].regret for r in ESTIMATORS)
    (winner,) = ours.index[ours["advised"]]
    assert judged[winner].regret == least == ours.loc[winner, "expected_regret"]
    assert ours.loc[winner, "baseline_regret"] == min(judged[r].regret for r in PATH.fixed())
    assert (ours["ci_low"] <= ours["predicted_gain"]).all() and "held out, on 2 shifts" in ours["note"].iloc[0]
    assert ours["regret"].isna().all() and (ours["id_accuracy"] > 0).all()


def test_without_a_held_out_shift_no_rule_is_advised() -> None:
    assert held_out(PATH, ID, {}) == {}
    table = advice_table(PATH, Known(images=image_curves(ID, ID.without_labels(), bootstrap=50)))
    assert not table["advised"].any() and "none" in set(table["situation"])


def test_too_few_replicates_for_the_level_are_no_interval_and_it_is_said() -> None:
    target = made([0.4, 0.5, 0.6, 0.5, 0.3], seed=8).without_labels()
    path = along_path(
        "p", ALPHAS, {"id": ID.correct, "x": ID.correct}, {"id": "id", "x": "ood"}, level=0.99, bootstrap=50
    )
    table = advice_table(path, Known(images=image_curves(ID, target, bootstrap=50))).set_index("rule")
    for rule in (*ESTIMATORS, "ood_best", "half"):
        row = table.loc[rule]
        assert "no interval: 50 bootstrap replicates, and level 0.99 needs 200" in row["note"], rule
        assert np.isnan([row["ci_high"], row["regret_high"]]).all()


def test_the_held_out_error_widens_the_interval() -> None:
    curves = image_curves(ID, made([0.2, 0.4, 0.6, 0.5, 0.3], seed=9).without_labels(), bootstrap=60)
    judged = held_out(PATH, ID, {"a": made([0.4, 0.5, 0.6, 0.5, 0.3], seed=5)})
    wide, narrow = (
        advice_table(PATH, Known(images=curves, held_out=h)).set_index("rule").loc["atc"] for h in (judged, {})
    )
    assert wide["ci_high"] - wide["ci_low"] > narrow["ci_high"] - narrow["ci_low"] > 0
    assert wide["predicted_gain"] == narrow["predicted_gain"]


# ----------------------------------------------------------------------------------------------------------- few labels
def test_tangos_interval_by_published_and_limiting_cases() -> None:
    """Tango 1998, table: b = 12, c = 1, n = 44 gives 0.1235 to 0.4014 (rounded there); the sign turns with the pair."""
    low, high = paired_difference(12, 1, 44)
    assert (-high, -low) == pytest.approx(paired_difference(1, 12, 44))
    z = 1.959964
    for b, c, n in ((12, 1, 44), (3, 0, 20), (0, 0, 20), (20, 0, 20)):
        for d in paired_difference(b, c, n):
            if -1 < d < 1 and abs(b - c - n * d) > 1e-6:
                grid = np.linspace(
                    max(-d, 0) + 1e-9, (1 - d) / 2 - 1e-9, 200_001
                )  # the likelihood, maximised by brute force
                likely = b * np.log(grid + d) + c * np.log(grid) + (n - b - c) * np.log(1 - 2 * grid - d)
                q = grid[np.argmax(likely)]
                assert abs(b - c - n * d) / np.sqrt(n * (2 * q + d * (1 - d))) == pytest.approx(z, abs=0.02)
    assert paired_difference(0, 0, 20)[1] == pytest.approx(z**2 / (20 + z**2), rel=1e-3)


@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize("kind", ["hump", "flat", "rare"])
def test_the_interval_of_the_chosen_gain_covers_the_truth_with_few_labels(n: int, kind: str) -> None:
    """The alpha is chosen on the labels, then its gain's interval has to hold the true gain of that alpha."""
    levels = {"hump": [0.4, 0.55, 0.6, 0.5, 0.3], "flat": [0.5] * 5, "rare": [0.95, 0.97, 0.97, 0.96, 0.93]}[kind]
    rng, missed, draws, blind = np.random.default_rng(n), 0, 150, along_path("p", ALPHAS, {}, {})
    for _ in range(draws):
        common, own = rng.random(n), rng.random((5, n))
        hits = np.where(rng.random(n) < 0.6, common, own) < np.array(levels)[:, None]
        (row,) = label_rows(blind, hits)
        truth = levels[ALPHAS.index(row["alpha"])] - levels[0]
        missed += not row["ci_low"] - 1e-9 <= truth <= row["ci_high"] + 1e-9
    assert missed <= 0.05 * draws + 2.6 * np.sqrt(0.05 * 0.95 * draws)


def test_the_interval_with_few_labels_allows_for_the_choice_of_alpha() -> None:
    """Ten equal points and zero-shot, independent of each other: the best of ten looks better than it is."""
    alphas, rng, missed, naive = tuple(np.linspace(0, 1, 11)), np.random.default_rng(3), 0, 0
    blind = along_path("p", alphas, {}, {})
    for _ in range(120):
        hits = rng.random((11, 50)) < 0.5
        (row,) = label_rows(blind, hits)
        missed += not row["ci_low"] <= 0 <= row["ci_high"]
        chosen = hits[alphas.index(row["alpha"])]
        naive += paired_difference(int((chosen & ~hits[0]).sum()), int((~chosen & hits[0]).sum()), 50)[0] > 0
    assert missed <= 12, "nominal 6 of 120"
    assert naive > 15, "without the allowance it would be wrong much more often"


def test_twenty_labels_are_needed_and_zero_shot_on_the_path() -> None:
    hits = np.ones((5, 19), dtype=bool)
    with pytest.raises(ConfigError, match="19 labelled images; advice needs at least 20"):
        label_curve(ALPHAS, hits)
    with pytest.raises(ConfigError, match="needs alpha 0"):
        label_curve(ALPHAS[1:], np.ones((4, 20), dtype=bool))


def test_of_several_best_alphas_the_middle_one_is_advised_and_doubt_is_said() -> None:
    hits = np.zeros((5, 20), dtype=bool)
    hits[:, :10] = True
    hits[1:4, 10] = True
    row = advice_table(PATH, Known(labels=hits)).set_index("rule").loc["labels_best"]
    assert row["alpha"] == 0.5 and "3 of 5 points share" in row["note"] and "cannot be told from so few" in row["note"]
    assert row["ood_accuracy"] == 0.55 and row["best_baseline"] == "half"
    assert 0 <= row["baseline_regret"] <= 0.05, "halves without the one image that tells choose zero-shot"
    assert row["ci_low"] < 0 < row["ci_high"] and row["id_accuracy"] == pytest.approx(ID.correct[2].mean())
