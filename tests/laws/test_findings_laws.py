"""Mathematics behind the findings: closed forms, invariances, scipy as the independent library, null simulations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sharpscope import scores
from sharpscope.findings import rank_correlation as kernels
from sharpscope.findings.criteria.barrier import barrier
from sharpscope.findings.criteria.criticality import criticality
from sharpscope.findings.criteria.instability import forced_part, instability
from sharpscope.findings.criteria.rewind import rewind
from sharpscope.findings.failure import failure_table
from sharpscope.findings.losses import NoiseLosses, above_chord, chord
from sharpscope.findings.matching import match_plain
from sharpscope.findings.pathheights import path_heights
from sharpscope.findings.prediction import predict_gain
from sharpscope.findings.repair import Variant, analyse_repairs
from sharpscope.findings.resampling import (
    bca_interval,
    benjamini_hochberg,
    max_min_interval,
    permutation_p,
    resampled_means,
)
from sharpscope.findings.selection import masked_median, select, standardise, sustained
from sharpscope.scores import draws, independent_mean, min_replicates, percentile_interval, resample_counts
from sharpscope.vocabulary import CORRELATIONS

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def upper(rate: float, runs: int) -> float:
    """Three standard errors above a nominal rate: what a simulation may show without a fault."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / runs)


# --- correlations against scipy and against their definitions ---


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_scipys(ties: bool) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 12)), rng.normal(size=(3, 12))
    if ties:
        x, y = np.round(x), np.round(y)
    reference = {
        "pearson": lambda a, b: stats.pearsonr(a, b).statistic,
        "spearman": lambda a, b: stats.spearmanr(a, b).statistic,
        "kendall": lambda a, b: stats.kendalltau(a, b).statistic,
    }
    for method, scipys in reference.items():
        want = [[scipys(a, b) for a in x] for b in y]
        np.testing.assert_allclose(kernels.correlate(x, y, method), want, atol=1e-12)


@pytest.mark.parametrize("method", CORRELATIONS)
def test_a_resample_is_the_same_as_repeating_its_points(method: str) -> None:
    rng = np.random.default_rng(2)
    x, y = np.round(rng.normal(size=(4, 9)), 1), rng.normal(size=9)
    counts = resample_counts(9, 20, rng)
    got = kernels.weighted_correlate(x, y, counts, method)
    for row, w in zip(got, counts, strict=True):
        np.testing.assert_allclose(
            row, kernels.correlate(np.repeat(x, w, axis=1), np.repeat(y, w)[None], method)[0], atol=1e-10
        )


def test_partial_spearman_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(4)
    x, y, z = rng.normal(size=(6, 15)), rng.normal(size=15), rng.normal(size=15)
    for row, got in zip(x, kernels.partial_spearman(x, y, z), strict=True):
        xy, xz, yz = (stats.spearmanr(a, b).statistic for a, b in ((row, y), (row, z), (y, z)))
        assert got == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)), abs=1e-12)


def test_partial_spearman_has_no_value_where_the_covariate_explains_everything() -> None:
    z = np.arange(8.0)
    assert np.isnan(kernels.partial_spearman(np.exp(z)[None], np.random.default_rng(0).normal(size=8), z)).all()


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_rank_correlations_ignore_monotone_transforms_and_pearson_affine_ones(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(3, 8)), rng.normal(size=(1, 8))
    for method in ("spearman", "kendall"):
        base = kernels.correlate(x, y, method)
        np.testing.assert_allclose(kernels.correlate(np.exp(x), y**3, method), base, atol=1e-12)
        np.testing.assert_allclose(kernels.correlate(-x, y, method), -base, atol=1e-12)
    np.testing.assert_allclose(
        kernels.correlate(3 * x - 7, 0.5 * y + 2, "pearson"), kernels.correlate(x, y, "pearson"), atol=1e-10
    )


@pytest.mark.parametrize("method", CORRELATIONS)
def test_a_constant_has_no_correlation(method: str) -> None:
    y = np.random.default_rng(0).normal(size=(1, 6))
    assert np.isnan(kernels.correlate(np.full((1, 6), 0.1), y, method)).all()
    assert np.isnan(kernels.correlate(y, np.full((1, 6), 0.1), method)).all()


# --- intervals and p-values ---


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_is_scipys(p: list[float]) -> None:
    np.testing.assert_allclose(benjamini_hochberg(np.array(p)), stats.false_discovery_control(p), atol=1e-12)


def test_benjamini_hochberg_does_not_count_what_was_not_tested() -> None:
    q = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(q[[0, 2]], stats.false_discovery_control([0.01, 0.04]))
    assert np.isnan(q[1])


def test_permutation_p_is_never_zero_and_counts_by_hand() -> None:
    null = np.array([[0.1], [-0.5], [0.3]])
    assert permutation_p(np.array([0.9]), null)[0] == 1 / 4
    assert permutation_p(np.array([0.3]), null)[0] == 3 / 4
    assert permutation_p(np.array([0.0]), null)[0] == 1
    assert np.isnan(permutation_p(np.array([np.nan]), null)[0])


def test_bca_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=30)
    y = 0.6 * x + rng.normal(size=30)
    with_scipy = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    draws = kernels.weighted_correlate(x[None], y, resample_counts(30, 20_000, rng), "pearson")
    jack = kernels.weighted_correlate(x[None], y, 1 - np.eye(30), "pearson")
    low, high = bca_interval(kernels.correlate(x[None], y[None], "pearson")[0], draws, jack, 0.95)
    assert low[0] == pytest.approx(with_scipy.low, abs=0.03)
    assert high[0] == pytest.approx(with_scipy.high, abs=0.03)


def test_bca_of_a_symmetric_statistic_is_the_percentile_interval() -> None:
    draws = np.linspace(-1, 1, 2001)[:, None]
    low, high = bca_interval(np.array([0.0]), draws, np.array([[-1.0], [1.0]]), 0.9)
    assert (low[0], high[0]) == (pytest.approx(-0.9, abs=1e-3), pytest.approx(0.9, abs=1e-3))


def test_bca_gives_no_interval_where_resampling_knows_no_spread() -> None:
    mostly = np.where(np.arange(200) < 2, 0.0, 0.5)  # one unit alone is not 0: with it the statistic is the same
    wide = np.linspace(0.0, 1.0, 200)
    draws = np.stack([np.ones(200), mostly, wide], axis=1)
    jack = np.stack([np.ones(5), np.full(5, 0.5), np.linspace(0.4, 0.6, 5)], axis=1)
    low, high = bca_interval(np.array([1.0, 0.5, 0.5]), draws, jack, 0.95)
    assert np.isnan(low[:2]).all() and np.isnan(high[:2]).all() and 0 < low[2] < high[2] < 1


def test_too_few_replicates_give_no_interval() -> None:
    assert min_replicates(0.95) == 40 and min_replicates(0.9) == 20
    few, enough = np.arange(39.0)[:, None], np.arange(40.0)[:, None]
    assert np.isnan(percentile_interval(few, 0.95)[0]).all()
    assert np.isfinite(percentile_interval(enough, 0.95)[0]).all()
    assert math.isnan(max_min_interval(np.zeros((1, 1)), np.zeros((39, 1, 1)), 0.95)[1])


def test_resampled_means_of_booleans_are_whole_counts_and_paired() -> None:
    values = np.random.default_rng(0).random((3, 50)) < 0.5
    values[2] = ~values[1]
    means = resampled_means(values, 30, np.random.default_rng(1))
    np.testing.assert_array_equal(np.round(means * 50) / 50, means)
    np.testing.assert_allclose(means[:, 1] + means[:, 2], 1.0, atol=1e-15)


def test_max_min_interval_covers_the_true_maximum() -> None:
    truth, hits, above, runs = np.array([0.3, 0.3, 0.2, 0.3]), 0, 0, 300
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        data = truth[:, None] + rng.normal(size=(4, 60))
        reps = resampled_means(data, 200, rng)
        _, low, high, _ = max_min_interval(data.mean(axis=1)[:, None], reps[:, :, None], 0.9)
        hits += low <= 0.3 <= high
        above += low > 0.3
    assert hits / runs >= 0.9 - 3 * math.sqrt(0.9 * 0.1 / runs)
    assert above / runs <= upper(0.05, runs)


def test_a_bootstrap_in_portions_is_the_bootstrap_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever draws, in whatever portions: the same samples of one seed, hence the same interval everywhere."""
    values = np.random.default_rng(0).normal(size=(3, 37))
    whole = resample_counts(37, 100, np.random.default_rng(5))
    assert (whole.sum(axis=1) == 37).all() and whole.shape == (100, 37)
    for portion in (37, 37 * 7, 10**6):
        monkeypatch.setattr(scores, "_DRAWS_AT_ONCE", portion)
        parts = list(draws(37, 100, np.random.default_rng(5)))
        assert len(parts) == -(-100 // (portion // 37))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        means = resampled_means(values, 100, np.random.default_rng(5))
        np.testing.assert_allclose(means, whole @ values.T / 37, rtol=1e-13)


def test_the_mean_of_independent_estimates_by_hand() -> None:
    mean, low, high = independent_mean([0.5, 0.7], [0.2, 0.3], [0.6, 0.9])
    assert (
        mean == pytest.approx(0.6)
        and low == pytest.approx(0.6 - 0.25)
        and high == pytest.approx(0.6 + math.hypot(0.1, 0.2) / 2)
    )
    assert np.isnan(independent_mean([0.5, 0.7], [0.2, np.nan], [0.6, 0.9])[1])
    replicates = np.array([[1.0, np.nan]] * 60 + [[2.0, 3.0]] * 60)
    assert np.isnan(percentile_interval(replicates, 0.95)[0][1])
    assert percentile_interval(replicates, 0.95, skip_nan=True)[0][1] == 3.0


# --- straggler criteria ---


def test_instability_barrier_and_rewind_by_hand() -> None:
    losses = np.array([1.0, 3.0, 2.0])
    at = (0.0, 0.5, 1.0)
    assert instability(losses, at) == 3.0 - 1.5
    assert barrier(losses, at) == 3.0 - 1.5
    assert rewind(losses, at) == -1.0
    assert barrier(np.array([1.0, 3.0, 2.0]), (0.0, 0.25, 1.0)) == pytest.approx(3.0 - 1.25)


@given(st.floats(-3, 3), st.floats(0, 4), st.floats(-2, 2))
@settings(max_examples=50, deadline=None)
def test_a_convex_path_has_no_barrier_and_instability_is_what_its_ends_force(a: float, b: float, c: float) -> None:
    at = np.linspace(0, 1, 9)
    losses = a * at + b * at**2 + c
    assert barrier(losses, at) == pytest.approx(0.0, abs=1e-12)
    assert instability(losses, at) == pytest.approx(abs(losses[0] - losses[-1]) / 2, abs=1e-9)
    shifted = instability(losses + 5.0, at)
    assert shifted == pytest.approx(instability(losses, at), abs=1e-9)


def test_criticality_by_hand() -> None:
    noise = NoiseLosses(("a",), (0.0, 0.5, 1.0), (0.5, 1.0), np.zeros((1, 3, 2, 1)), np.array([8.0]), np.array([2.0]))
    # alpha^2 * 8 / (sigma * 2)^2: rows alpha, columns sigma:  0 0 | 2 .5 | 8 2
    losses = np.array([[[9.0, 9.0], [1.0, 9.0], [1.0, 1.0]]])
    score, censored = criticality(losses, np.array(1.0), noise, slack=0.1)
    assert score[0] == 2.0 and not censored[0]
    assert criticality(np.full((1, 3, 2), 1.1), np.array(1.0), noise, slack=0.1)[0][0] == 0.0
    score, censored = criticality(np.full((1, 3, 2), 9.0), np.array(1.0), noise, slack=0.1)
    assert score[0] == 8.0 and censored[0]


@given(st.integers(0, 10_000), st.sampled_from(["mad:2", "sd:1", "top:3"]), st.floats(0.1, 50), st.floats(-20, 20))
@settings(max_examples=60, deadline=None)
def test_the_chosen_set_ignores_units_and_the_order_of_the_layers(
    seed: int, rule: str, scale: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=12) ** 3
    mask = select(scores, rule).mask
    np.testing.assert_array_equal(select(scale * scores + shift, rule).mask, mask)
    order = rng.permutation(12)
    np.testing.assert_array_equal(select(scores[order], rule).mask, mask[order])


def test_rules_by_hand() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    assert select(scores, "mad:2").threshold == pytest.approx(3 + 2 * 1.4826 * 1)
    assert select(scores, "sd:1").threshold == pytest.approx(scores.mean() + scores.std(ddof=1))
    assert select(scores, "top:2").threshold == 3.0
    np.testing.assert_array_equal(select(scores, "abs:3").mask, [False, False, False, True, True])
    np.testing.assert_array_equal(select(scores, "top:5").mask, True)
    np.testing.assert_array_equal(select(scores, "top:0").mask, False)


@pytest.mark.parametrize("rule", ["mad:2", "mad:0", "sd:1", "sd:0", "top:2"])
def test_nobody_stands_out_of_equals(rule: str) -> None:
    assert not select(np.full(7, 0.1 + 0.2), rule).mask.any()
    assert not select(np.zeros(7), rule).mask.any()


def test_mad_zero_falls_back_to_the_mean_deviation() -> None:
    scores = np.array([0.0, 0.0, 0.0, 0.0, 0.1, 5.0])
    chosen = select(scores, "mad:2")
    assert chosen.threshold == pytest.approx(2 * 1.2533 * 5.1 / 6)
    np.testing.assert_array_equal(chosen.mask, [False] * 5 + [True])


def test_ties_at_the_cut_are_left_out() -> None:
    np.testing.assert_array_equal(select(np.array([1.0, 2.0, 2.0, 3.0]), "top:2").mask, [False, False, False, True])


def test_a_missing_score_is_no_candidate_and_changes_nothing_for_the_others() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 100.0])
    for rule in ("mad:2", "sd:1", "top:1", "abs:3"):
        full, holed = select(scores, rule), select(np.insert(scores, 2, np.nan), rule)
        assert holed.threshold == full.threshold
        np.testing.assert_array_equal(np.delete(holed.mask, 2), full.mask)


def test_replicates_are_chosen_one_by_one() -> None:
    scores = np.random.default_rng(0).normal(size=(20, 9)) ** 3
    scores[3, 4] = np.nan
    for rule in ("mad:2", "sd:1", "top:3", "abs:0.5"):
        many = select(scores, rule)
        for row, threshold, mask in zip(scores, many.threshold, many.mask, strict=True):
            one = select(row, rule)
            assert one.threshold == threshold
            np.testing.assert_array_equal(one.mask, mask)


def test_masked_median_is_numpys() -> None:
    x = np.random.default_rng(0).normal(size=(30, 8))
    x[np.random.default_rng(1).random((30, 8)) < 0.3] = np.nan
    np.testing.assert_array_equal(masked_median(x), np.nanmedian(x, axis=-1))
    assert np.isnan(masked_median(np.full(3, np.nan)))


@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
@settings(max_examples=60, deadline=None)
def test_sustained_says_at_how_many_alphas(seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(6, 11))
    values[rng.random((6, 11)) < 0.1] = np.nan
    enough = (values > 0.2).sum(axis=1) >= fraction * 11
    np.testing.assert_array_equal(sustained(values, fraction) > 0.2, enough)


def test_log_share_singles_out_the_same_layers_as_log_sharpness() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=(4, 9)))
    share = values / values.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(standardise(np.log(share), "mad"), standardise(np.log(values), "mad"), atol=1e-10)


# --- failure flags: no failure where there is none ---


def test_flags_of_equal_accuracies_are_false_alarms_no_more_often_than_nominal() -> None:
    runs, seen = 250, {"F1": 0, "F2": 0, "F3": 0, "F4": 0}
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        table = failure_table(
            "p",
            ALPHAS,
            {"a": rng.random((5, 80)) < 0.6, "b": rng.random((5, 60)) < 0.4},
            {"a": "ood", "b": "ood"},
            rng.gamma(2.0, size=(5, 60)),
            eps=0.0,
            loss_eps=0.0,
            bootstrap=150,
            seed=seed,
        )
        for flag in table.loc[table["dataset"].isin(("ood_mean", "probe")) & table["present"], "flag"]:
            seen[flag] += 1
    for flag, count in seen.items():
        assert count / runs <= upper(0.05, runs), flag


# --- repair at equal ID accuracy ---


def test_a_point_of_the_plain_path_matches_itself() -> None:
    ids, oods = np.array([0.5, 0.6, 0.8, 0.9]), np.array([0.4, 0.5, 0.45, 0.3])
    alphas = (0.0, 0.3, 0.7, 1.0)
    at, ood, inside = match_plain(ids, oods, alphas, ids)
    np.testing.assert_allclose(at, alphas, atol=1e-15)
    np.testing.assert_allclose(ood, oods, atol=1e-15)
    assert inside.all()
    at, ood, _ = match_plain(ids, oods, alphas, np.array([0.7]))
    assert at[0] == pytest.approx(0.5) and ood[0] == pytest.approx(0.475)


def test_the_first_crossing_counts_where_the_id_accuracy_is_not_monotone() -> None:
    ids, oods = np.array([0.5, 0.7, 0.6, 0.9]), np.array([0.1, 0.2, 0.3, 0.4])
    at, _, _ = match_plain(ids, oods, (0.0, 1 / 3, 2 / 3, 1.0), np.array([0.65]))
    assert at[0] == pytest.approx(0.25)
    down = match_plain(ids[::-1], oods[::-1], (0.0, 1 / 3, 2 / 3, 1.0), np.array([0.65]))
    assert down[0][0] == pytest.approx((0.25 / 0.3) / 3)


def test_outside_the_range_the_nearest_end_stands_in_and_says_so() -> None:
    at, ood, inside = match_plain(np.array([0.5, 0.9]), np.array([0.1, 0.2]), (0.0, 1.0), np.array([0.4, 0.95]))
    np.testing.assert_array_equal(at, [0.0, 1.0])
    np.testing.assert_array_equal(ood, [0.1, 0.2])
    assert not inside.any()


def test_a_repair_that_is_only_a_smaller_alpha_gains_nothing() -> None:
    """Sliding back along the plain path: the interval of the gain holds 0 about as often as it says."""
    runs, hits, n = 200, 0, 300
    grid, ids, oods = (0.0, 0.5, 1.0), (0.55, 0.7, 0.85), (0.4, 0.5, 0.45)
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        skill_id, skill_ood = rng.random(n), rng.random(n)

        def answers(skill: np.ndarray, level: float, rng: np.random.Generator = rng) -> np.ndarray:
            return np.clip(skill + rng.normal(0, 0.1, n), 0, 1) < level

        plain = {
            "id": np.array([answers(skill_id, v) for v in ids]),
            "ood": np.array([answers(skill_ood, v) for v in oods]),
        }
        moved = {"id": answers(skill_id, 0.625)[None], "ood": answers(skill_ood, 0.45)[None]}
        v = Variant("v", ("a",), "delta", "magnitude", 0.5, 0.5, "none", (0.5,), moved)
        row = analyse_repairs("p", grid, plain, {"id": "id", "ood": "ood"}, [v], bootstrap=150, seed=seed).table.iloc[0]
        hits += row["ci_low"] <= 0 <= row["ci_high"]
    assert hits / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


# --- prediction from other pairs ---


def test_prediction_intervals_cover_what_they_predict() -> None:
    runs, hits = 300, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(11, 2))
        y = 0.02 * x[:, 0] - 0.01 * x[:, 1] + 0.02 * rng.normal(size=11)
        p = predict_gain(x[:10], y[:10], x[10], level=0.9)
        hits += p.low <= y[10] <= p.high
    assert 0.9 - 3 * math.sqrt(0.09 / runs) <= hits / runs


def test_prediction_ignores_the_units_of_its_features() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    base = predict_gain(x, y, np.array([0.3, -0.2]))
    other = predict_gain(x * [10, -3] + [5, 1], y, np.array([0.3, -0.2]) * [10, -3] + [5, 1])
    assert (other.gain, other.low, other.high) == pytest.approx((base.gain, base.low, base.high))


def test_without_a_penalty_the_prediction_is_least_squares() -> None:
    rng = np.random.default_rng(1)
    x, y, new = rng.normal(size=(8, 2)), rng.normal(size=8), np.array([0.1, 0.4])
    solution = np.linalg.lstsq(np.c_[np.ones(8), x], y, rcond=None)[0]
    assert predict_gain(x, y, new, ridge=0.0).gain == pytest.approx(np.r_[1, new] @ solution)
    assert predict_gain(x, y, new, ridge=1e12).gain == pytest.approx(y.mean())


@given(st.lists(st.floats(0, 10), min_size=3, max_size=9))
def test_instability_less_its_forced_part_is_the_rise_above_the_worse_end(values: list[float]) -> None:
    losses, at = np.array(values), np.linspace(0, 1, len(values))
    rise = losses.max() - max(losses[0], losses[-1])
    assert instability(losses, at) - forced_part(losses, at) == pytest.approx(rise, abs=1e-12)
    table = failure_table("p", list(at), {}, {}, np.repeat(losses[:, None], 20, axis=1))
    (row,) = table[table["flag"] == "F3"].to_dict("records")
    assert row["estimate"] == pytest.approx(rise, abs=1e-12)
    assert f"LII {instability(losses, at):.4g} nats" in row["note"]


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9), st.floats(-5, 5), st.floats(-5, 5))
def test_the_height_above_the_chord_does_not_see_a_straight_line(
    values: list[float], level: float, slope: float
) -> None:
    losses, at = np.array(values), np.linspace(0, 1, len(values))
    height, inside = above_chord(losses, at)
    np.testing.assert_allclose(above_chord(losses + level + slope * at, at)[0], height, atol=1e-12)
    assert height[0] == height[-1] == 0 and barrier(losses, at) == height.max()
    np.testing.assert_allclose(chord(losses[0], losses[-1], inside) + height, losses, atol=1e-12)
    path = pd.DataFrame({"pair": "p", "alpha": at, "loss": losses})
    heights = path_heights(path).iloc[0]
    assert heights["barrier"] == barrier(losses, at) and heights["lii"] == instability(losses, at)
