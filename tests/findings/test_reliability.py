"""Sampling errors of accuracies: laws of their size, and what verdicts across pairs make of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from sharpscope.findings.correlation import pair_correlations
from sharpscope.findings.design import Design, independent
from sharpscope.findings.partial import Partial, partial_correlation
from sharpscope.findings.relation import relation_rows, relation_verdict
from sharpscope.findings.reliability import (
    Answers,
    SamplingError,
    answer_error,
    at_reliability,
    interval_error,
    reliability_of,
)
from sharpscope.scores import wilson
from sharpscope.vocabulary import CANNOT, DOES_NOT_HOLD, HOLDS

Errors = Mapping[str, SamplingError]
Study = tuple[Design, np.ndarray, np.ndarray, dict[str, np.ndarray], Errors]
AT = (0.0, 0.5)


def names(n: int) -> tuple[str, ...]:
    return tuple(f"p{i:03}" for i in range(n))


def answered(
    rng: np.random.Generator, n: int = 4, sizes: tuple[int, ...] = (60, 200)
) -> dict[str, dict[str, np.ndarray]]:
    """Pair -> set -> answers at ``AT``; models of one base share most of what they see in an image."""
    difficulty = [rng.normal(size=size) for size in (60, 200)]
    return {
        pair: {
            f"s{j}": np.stack([hard + 0.3 * i * a + 0.5 * rng.normal(size=len(hard)) > 0.2 for a in AT])
            for j, hard in enumerate(difficulty)
        }
        for i, pair in enumerate(names(n))
    }


def told(answers: Mapping[str, Mapping[str, np.ndarray]]) -> Answers:
    return {pair: (AT, own) for pair, own in answers.items()}


# ---------------------------------------------------------------------------------------------- size of the error
@pytest.mark.parametrize("gain", [False, True])
def test_the_covariance_is_that_of_resampled_images(gain: bool) -> None:
    rng = np.random.default_rng(0)
    answers = answered(rng)
    error = answer_error(told(answers), names(4), ["s0", "s1"], 0.5, gain=gain)
    assert error is not None and error.paired
    again = np.zeros((4000, 4))
    for name in ("s0", "s1"):
        right = np.stack([answers[p][name][1] - 1.0 * gain * answers[p][name][0] for p in names(4)])
        weights = rng.multinomial(right.shape[1], np.full(right.shape[1], 1 / right.shape[1]), size=len(again))
        again += weights @ right.T / right.shape[1] / 2
    np.testing.assert_allclose(error.covariance, np.cov(again.T), atol=0.08 * error.covariance.max())
    np.testing.assert_allclose(np.cov(error.draws(20000, rng).T), error.covariance, atol=0.05 * error.covariance.max())


def test_models_with_the_same_answers_differ_by_no_error_and_intervals_do_not_know_it() -> None:
    own = answered(np.random.default_rng(1), n=1)["p000"]
    error = answer_error(told(dict.fromkeys(names(3), own)), names(3), ["s0"], 0.5, gain=False)
    assert error is not None
    assert np.ptp(error.draws(50, np.random.default_rng(0)), axis=1).max() < 1e-7
    k, n = int(own["s0"][1].sum()), 60
    low, high = wilson(k, n)
    rows = [
        {"pair": p, "dataset": s, "alpha": 0.5, "ci_low": low, "ci_high": high} for p in names(3) for s in ("s0", "s1")
    ]
    alone = interval_error(pd.DataFrame(rows), names(3), ["s0", "s1"], 0.5, 0.95)
    assert not alone.paired and np.count_nonzero(alone.covariance) == 3
    np.testing.assert_allclose(np.diag(alone.covariance), k / n * (1 - k / n) / n / 2, rtol=0.1)
    rows[0]["ci_low"] = math.nan
    lost = interval_error(pd.DataFrame(rows), names(3), ["s0", "s1"], 0.5, 0.95)
    assert lost.subset(np.array([True, True, False])) is None and lost.subset(np.array([False, True, True])) is not None


def test_missing_answers_or_other_images_are_no_answers() -> None:
    answers = answered(np.random.default_rng(2))
    assert answer_error(told(answers), (*names(4), "other"), ["s0"], 0.5, gain=True) is None
    assert answer_error(told(answers), names(4), ["s9"], 0.5, gain=True) is None
    assert answer_error(told(answers), names(4), ["s0"], 0.7, gain=False) is None
    answers["p001"]["s0"] = answers["p001"]["s0"][:, 1:]
    assert answer_error(told(answers), names(4), ["s0"], 0.5, gain=True) is None


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_reliability_is_the_share_of_variance_that_is_no_error(share: float) -> None:
    rng = np.random.default_rng(3)
    error = SamplingError((1 / share - 1) * np.eye(400), paired=True)
    y = rng.normal(size=400) + error.draws(1, rng)[0]

    def left(values: np.ndarray) -> np.ndarray:
        centred = values - values.mean(axis=-1, keepdims=True)
        return centred / np.linalg.norm(centred, axis=-1, keepdims=True)

    assert reliability_of(left(y), left(y + error.draws(400, rng))) == pytest.approx(share, abs=0.06)
    assert reliability_of(left(y), np.tile(left(y), (3, 1))) == pytest.approx(1.0)
    assert reliability_of(left(y), left(rng.normal(size=(400, 400)))) == 0.0


def test_a_covariate_without_error_gives_the_textbook_partial_correlation() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=50000)
    x, y = z + rng.normal(size=50000), z + rng.normal(size=50000)
    seen = z + 0.5 * rng.normal(size=50000)
    xz, yz, xy = (float(np.corrcoef(a, b)[0, 1]) for a, b in ((x, seen), (y, seen), (x, y)))
    biased, right = (float(at_reliability(np.array([xz]), yz, np.array([xy]), s)[0]) for s in (1.0, 0.8))
    assert biased == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))
    assert biased > 0.1 and abs(right) < 0.02
    assert np.isnan(at_reliability(np.array([xz]), yz, np.array([xy]), 0.3)).all()


# ------------------------------------------------------------------------------------------------------ verdicts
def judged(study: Study, rng: np.random.Generator, aware: bool = True) -> tuple[str, Partial]:
    design, x, y, covariates, errors = study
    found = partial_correlation(
        x[None], y, design, covariates, keys=design.keys(79, rng), rng=rng, outcome="gain",
        errors=errors if aware else None,
    )  # fmt: skip
    row = {"status": "ok", "n_effective": found.n_effective[0], "ci_low": found.low[0], "ci_high": found.high[0]}
    return relation_verdict(pd.Series(row | {"q_value": found.p[0], "doubt": found.doubt[0]})), found


def share_of(verdict: str, make: Callable[[np.random.Generator], Study], runs: int, aware: bool = True) -> float:
    rng = np.random.default_rng(0)
    return sum(judged(make(rng), rng, aware)[0] == verdict for _ in range(runs)) / runs


def free(n: int, rng: np.random.Generator) -> tuple[Design, dict[str, np.ndarray]]:
    return independent(names(n)), {"learning_rate": rng.random(n), "id_accuracy": rng.normal(size=n)}


def on_images(mean: float) -> Callable[[np.random.Generator], Study]:
    """What a recipe does to the answers differs over 600 images, and is ``mean`` on average."""

    def make(rng: np.random.Generator) -> Study:
        (design, covariates), hidden = free(30, rng), rng.normal(size=30)
        start, push = rng.normal(size=600), mean + 0.5 * rng.normal(size=600)
        right = start + hidden[:, None] * push > 0
        answers = {p: (AT, {"s": np.stack([start > 0, own])}) for p, own in zip(design.pairs, right, strict=True)}
        error = answer_error(answers, design.pairs, ["s"], 0.5, gain=True)
        assert error is not None
        y = right.mean(axis=1) - (start > 0).mean()
        return design, hidden + 0.2 * rng.normal(size=30), y, covariates, {"gain": error}

    return make


def test_what_these_images_alone_show_is_no_relation() -> None:
    assert share_of(HOLDS, on_images(0.0), 40) <= 0.05
    assert share_of(HOLDS, on_images(0.0), 40, aware=False) > 0.25
    assert share_of(HOLDS, on_images(0.3), 10) > 0.8


def test_a_gain_that_is_mostly_error_is_no_absence() -> None:
    def make(rng: np.random.Generator) -> Study:
        (design, covariates), x = free(150, rng), rng.normal(size=150)
        y = 0.6 * x + 0.8 * rng.normal(size=150) + 3 * rng.normal(size=150)
        return design, x, y, covariates, {"gain": SamplingError(9 * np.eye(150), paired=True)}

    assert share_of(CANNOT, make, 15) == 1.0 and share_of(DOES_NOT_HOLD, make, 15, aware=False) > 0.1
    _, found = judged(make(np.random.default_rng(0)), np.random.default_rng(1))
    assert "too few images to tell the models apart: the reliability of gain is 0." in found.doubt[0]
    assert "reliability of gain 0." in found.note[0]


def inexact_id(share: float, drives: float) -> Callable[[np.random.Generator], Study]:
    """True ID accuracy has the share ``drives`` of both variances, and the measured one the reliability ``share``."""

    def make(rng: np.random.Generator) -> Study:
        (design, covariates), true = free(80, rng), rng.normal(size=80)
        error = SamplingError((1 / share - 1) * np.eye(80), paired=True)
        covariates["id_accuracy"] = true + error.draws(1, rng)[0]
        x, y = math.sqrt(drives) * true + math.sqrt(1 - drives) * rng.normal(size=(2, 80))
        return design, x, y, covariates, {"id_accuracy": error}

    return make


def test_an_id_accuracy_on_few_images_holds_itself_fixed_in_part_alone() -> None:
    assert share_of(HOLDS, inexact_id(0.8, 0.8), 20) == 0 and share_of(HOLDS, inexact_id(0.8, 0.8), 20, False) > 0.5
    _, found = judged(inexact_id(0.8, 0.8)(np.random.default_rng(0)), np.random.default_rng(1))
    assert found.doubt[0].startswith("id_accuracy is measured on too few images to be held fixed: its reliability")


@pytest.mark.parametrize(("share", "drives"), [(0.999, 0.5), (0.8, 0.0)])
def test_an_error_that_moves_nothing_is_no_doubt(share: float, drives: float) -> None:
    rng = np.random.default_rng(1)
    doubts = [judged(inexact_id(share, drives)(rng), rng)[1].doubt[0] for _ in range(15)]
    assert doubts.count("") >= 14


def test_accuracies_without_error_are_judged_as_before() -> None:
    rng = np.random.default_rng(5)
    design, covariates = free(40, rng)
    x, y = rng.normal(size=(2, 40))
    none = SamplingError(np.zeros((40, 40)), paired=True)
    exact, plain = (
        judged((design, x, y, covariates, errors), np.random.default_rng(0))[1]
        for errors in ({"gain": none, "id_accuracy": none}, {})
    )
    for field in ("estimate", "low", "high", "p"):
        np.testing.assert_allclose(getattr(exact, field), getattr(plain, field), atol=1e-6)
    assert exact.doubt == [""] and "reliability of gain 1.00" in exact.note[0]


# ------------------------------------------------------------------------------------------------- in the tables
def world(n: int, images: int, spread: float) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Answers]:
    """Sharpness that follows the OOD gain of n pairs, measured on ``images`` images a set; the models of all pairs
    answer alike but for a share of the images that grows by ``spread``."""
    rng = np.random.default_rng(6)
    hard = {name: np.sort(rng.random(images)) for name in ("id", "a", "b")}
    share = {p: 0.4 + spread * i / n for i, p in enumerate(names(n))}
    answers = {
        p: (AT, {s: np.stack([own < 0.4, own < share[p]]) for s, own in hard.items()}) for p in names(n)
    }  # the same images are right first in every model
    sharp, accuracy = [], []
    for p, (_, own) in answers.items():
        base = {"pair": p, "alpha": 0.5, "layer": "(all)", "measure": "hessian_trace", "share": 1.0, "status": "ok"}
        sharp.append(base | {"estimate": share[p] + 0.01 * rng.normal() * spread})
        for a, alpha in enumerate(AT):
            for role, sets in (("id", ["id"]), ("ood", ["a"]), ("ood", ["b"]), ("ood_mean", ["a", "b"])):
                k = int(sum(own[s][a].sum() for s in sets))
                low, high = wilson(k, images * len(sets))
                accuracy.append({
                    "pair": p, "alpha": alpha, "variant": "dense", "dataset": "+".join(sets), "role": role,
                    "group": "" if role == "id" else "ood", "metric": "top1", "estimate": k / images / len(sets),
                    "ci_low": low, "ci_high": high, "n": images * len(sets),
                })  # fmt: skip
    given = pd.DataFrame({"pair": names(n), "alpha": 0.5, "learning_rate": rng.random(n)})
    return pd.DataFrame(sharp), pd.DataFrame(accuracy), given, answers


@pytest.mark.parametrize(("with_answers", "verdict"), [(True, HOLDS), (False, CANNOT)])
def test_the_images_that_models_share_decide_whether_few_are_enough(with_answers: bool, verdict: str) -> None:
    """40 models on 2 x 400 images, all of which answer alike but for up to a tenth of them."""
    sharp, accuracy, given, answers = world(40, 400, 0.1)
    table = pair_correlations(
        sharp, accuracy, given, source="run", bootstrap=99, alphas=(0.5,), answers=answers if with_answers else None
    )
    row = table[(table["against"] == "ood_gain") & (table["given"] != "") & (table["layer"] == "(all)")].iloc[0]
    whole = relation_rows(table, "ood", "hessian_trace", 0.5)[0]
    assert whole["verdict"] == verdict and ("too few images" in row["doubt"]) == (verdict == CANNOT)
    assert ("at least" in row["note"]) != with_answers
    assert (row["doubt"] in whole["evidence"]) and table.loc[table["given"] == "", "doubt"].eq("").all()
