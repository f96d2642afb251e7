"""Metrics against scikit-learn and by hand; a bootstrap sample is the data set with examples repeated."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from sharpscope.clip.metrics import ECE_BINS, Answers, Judged, calibration_error, estimates
from sharpscope.scores import (
    Predictions,
    Statistic,
    draws,
    label_score,
    macro_f1,
    mean_per_class,
    share,
    wilson,
    worst_group,
    worst_interval,
)


def sample(seed: int, n: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=g, dtype=torch.float64), torch.randint(classes, (n,), generator=g)


# ---------------------------------------------------------------------- an independent library
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(6, 12))
def test_metrics_are_scikit_learns(seed: int, n: int, classes: int) -> None:
    logits, labels = sample(seed, n, classes)
    a, y, p = Answers.of(logits, labels), labels.numpy(), torch.softmax(logits, 1).numpy()
    guess, every = p.argmax(1), np.arange(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without examples
        wanted = {
            "top1": sk.accuracy_score(y, guess),
            "top5": sk.top_k_accuracy_score(y, p, k=5, labels=every),
            "mean_per_class": sk.balanced_accuracy_score(y, guess),
            "macro_f1": sk.f1_score(y, guess, average="macro", labels=np.unique(y)),  # as WILDS calls it
            "nll": sk.log_loss(y, p, labels=every),
        }
    for metric, value in wanted.items():
        statistic = a.statistic(metric)
        assert statistic is not None
        assert statistic.value() == pytest.approx(value, rel=1e-9, abs=1e-12), metric
    np.testing.assert_allclose(a.confidence, p.max(1))


# ---------------------------------------------------------------------- by hand
def test_three_classes_by_hand() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 0, 2])
    # class 0: TP 1, FP 1, FN 1: F1 1/2; class 1: TP 2, FP 1, FN 0: F1 4/5; class 2: TP 1, FP 0, FN 1: F1 2/3
    assert macro_f1(labels, predicted).value() == pytest.approx((1 / 2 + 4 / 5 + 2 / 3) / 3)
    assert mean_per_class(labels, predicted).value() == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert share(labels == predicted).value() == pytest.approx(4 / 6)


def test_f1_of_classes_without_examples() -> None:
    """A class that no example has is no term of the mean; examples taken for it are misses of their own class."""
    labels, predicted = np.array([0, 0, 5]), np.array([0, 3, 5])
    assert macro_f1(labels, predicted).value() == pytest.approx((2 / 3 + 1) / 2)
    assert mean_per_class(labels, predicted).value() == pytest.approx(0.75)


def test_worst_group_by_hand() -> None:
    hits = np.array([True, True, False, True, False, False])
    groups = np.array([2, 2, 2, 7, -1, -1])
    assert worst_group(hits, groups).value() == pytest.approx(2 / 3)  # group 7 is all right; -1 is no group
    with pytest.raises(ValueError, match="no example"):
        worst_group(hits, np.full(6, -1))
    with pytest.raises(ValueError, match="without groups"):
        label_score("worst_group", groups, groups)


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55, 0.2])
    hits = np.array([True, False, True, True, False])
    # bins of width 1/15: {.95, .95} accuracy 1/2, {.55, .55} accuracy 1, {.2} accuracy 0 (.2 ends the third bin)
    wanted = 2 / 5 * abs(0.5 - 0.95) + 2 / 5 * abs(1 - 0.55) + 1 / 5 * 0.2
    assert calibration_error(confidence, hits).value() == pytest.approx(wanted)
    edges = np.arange(1, ECE_BINS + 1) / ECE_BINS
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])).value() == 0
    assert calibration_error(edges, np.ones(ECE_BINS, bool)).value() == pytest.approx(1 - edges.mean())


def test_classes_that_do_not_compete_have_no_share_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, -math.inf, 2.0, -math.inf]])
    a = Answers.of(logits, torch.tensor([0]))
    assert a.nll[0] == pytest.approx(math.log(1 + math.e))
    assert a.confidence[0] == pytest.approx(math.e / (1 + math.e))
    assert a.in_top5 is None
    assert a.statistic("top5") is None
    assert a.statistic("worst_group") is None


# ---------------------------------------------------------------------- resampling
def statistics(seed: int, n: int) -> dict[str, Statistic]:
    logits, labels = sample(seed, n, 7)
    a = Answers.joined([Judged.of(logits, labels)], (labels.numpy() + np.arange(n)) % 3)
    names = ("top1", "top5", "mean_per_class", "macro_f1", "worst_group", "ece", "nll")
    return {m: s for m in names if (s := a.statistic(m)) is not None}


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(3, 30))
def test_weights_are_repeated_examples(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, n, n)
    weights = np.bincount(picked, minlength=n).astype(float)[None]
    for metric, s in statistics(seed, n).items():
        repeated = Statistic(s.columns[picked], s.finish)
        assert s.resampled(weights)[0] == pytest.approx(repeated.value(), abs=1e-12), metric
        assert s.resampled(np.ones((1, n)))[0] == pytest.approx(s.value(), abs=1e-12)


def test_draws_are_bootstrap_samples() -> None:
    parts = np.concatenate(list(draws(50, 400, np.random.default_rng(0))))
    assert parts.shape == (400, 50)
    assert (parts.sum(axis=1) == 50).all()
    assert parts.var() == pytest.approx(49 / 50, rel=0.05)  # multinomial: n p (1 - p)


@pytest.mark.parametrize("metric", ["top1", "mean_per_class", "macro_f1", "worst_group"])
def test_predictions_of_several_models_share_their_draws(metric: str) -> None:
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 4, 80), rng.integers(0, 3, 80)
    predicted = np.stack([np.where(rng.random(80) < 0.7, labels, 0)] * 2)
    both = Predictions(metric, labels, predicted, groups)
    assert both.shape == (2, 80)
    scores, reps = both.scores(), both.resampled(200, np.random.default_rng(2))
    assert scores[0] == label_score(metric, labels, predicted[0], groups).value()
    assert reps.shape == (200, 2)
    np.testing.assert_array_equal(reps[:, 0], reps[:, 1])
    assert abs(reps[:, 0].mean() - scores[0]) < 3 * reps[:, 0].std()


def test_intervals() -> None:
    logits, labels = sample(0, 400, 7)
    a = Answers.of(logits, labels)
    names = ("top1", "nll", "ece", "macro_f1", "worst_group")
    found = estimates(a, names, seed=3, key=("x",))
    assert list(found) == ["top1", "nll", "ece", "macro_f1"]
    assert found == estimates(a, names, seed=3, key=("x",))
    assert found["nll"] != estimates(a, names, seed=4, key=("x",))["nll"]
    assert found["top1"][1:] == wilson(int(a.correct.sum()), 400)
    value, low, high = found["nll"]
    assert (high - low) / 2 == pytest.approx(1.96 * a.nll.std() / 20, rel=0.15)  # the normal interval of a mean
    assert low < value < high
    right = Answers.of(torch.eye(3).repeat(4, 1) * 50, torch.arange(3).repeat(4))
    (one,) = estimates(right, ("macro_f1",)).values()
    assert one[0] == 1
    assert math.isnan(one[1])
    assert math.isnan(estimates(a, ("nll",), bootstrap=10)["nll"][1])


def test_the_worst_group_s_interval_covers_the_truth_however_small_a_group() -> None:
    """300 images of which a group of 4 % is the worst: a bootstrap interval covers in 56 % of cases."""
    rng, covered, below = np.random.default_rng(0), 0, 0
    groups = np.repeat([0, 1, 2], [12, 100, 188])
    truth = np.array([0.75, 0.8, 0.9])
    for i in range(300):
        hits = rng.random(300) < truth[groups]
        a = Answers(np.zeros(300, np.int64), np.where(hits, 0, 1), np.ones(300), np.ones(300), groups=groups)
        value, low, high = estimates(a, ("worst_group",), bootstrap=100, seed=i)["worst_group"]
        assert low <= value <= high
        covered += low <= 0.75 <= high
        below += high < 0.75
    assert covered >= 0.95 * 300 - 2.6 * (300 * 0.95 * 0.05) ** 0.5 and below < 15


def test_the_worst_group_s_interval_of_one_group_is_the_exact_one() -> None:
    exact = stats.binomtest(7, 20).proportion_ci(0.9, "exact")
    assert worst_interval([(7, 20)], 0.9) == pytest.approx((exact.low, exact.high))
    low, high = (min(bounds) for bounds in zip(*(worst_interval([g]) for g in ((7, 20), (70, 90))), strict=True))
    assert worst_interval([(7, 20), (70, 90)]) == (low, high)
    assert worst_interval([(0, 5), (9, 9)])[0] == 0.0 and worst_interval([(9, 9), (5, 5)])[1] == 1.0
    for bad in ([], [(3, 2)], [(0, 0)]):
        with pytest.raises(ValueError, match="worst_interval"):
            worst_interval(bad)


def test_the_interval_of_the_calibration_error_takes_its_bias_off() -> None:
    """Of a calibrated model the error is 0; the estimate never is. Percentiles would miss it every time."""
    rng, covered = np.random.default_rng(0), 0
    for i in range(40):
        confidence = rng.uniform(0.3, 1, 300)
        hits = rng.random(300) < confidence
        labels = np.zeros(300, np.int64)
        a = Answers(labels, np.where(hits, 0, 1), confidence, confidence)
        _, low, high = estimates(a, ("ece",), bootstrap=200, seed=i)["ece"]
        assert 0 <= low <= high
        covered += low == 0
    assert covered >= 10
