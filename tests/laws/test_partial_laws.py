"""Laws of the joint partial correlation: invariances, exact cases, and simulations of level and power."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from sharpscope.findings.controls import controls
from sharpscope.findings.design import Design, independent
from sharpscope.findings.families import holm
from sharpscope.findings.marginal import marginal_block
from sharpscope.findings.partial import Partial, contrast, partial_correlation
from sharpscope.findings.residuals import residuals

Study = tuple[Design, np.ndarray, np.ndarray, dict[str, np.ndarray]]


def upper(rate: float, runs: int) -> float:
    """2.6 standard errors above a nominal rate."""
    return rate + 2.6 * math.sqrt(rate * (1 - rate) / runs)


def measured(study: Study, rng: np.random.Generator, replicates: int = 59) -> Partial:
    design, x, y, covariates = study
    keys = design.keys(replicates, rng)
    return partial_correlation(np.atleast_2d(x), y, design, covariates, keys=keys, rng=rng)


def rejected(make: Callable[[np.random.Generator], Study], runs: int, seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    return sum(measured(make(rng), rng).p[0] <= 0.05 for _ in range(runs)) / runs


def driven(n: int, link: float = 0.0, hump: bool = False) -> Callable[[np.random.Generator], Study]:
    """n pairs whose learning rate drives sharpness and gain; ``link``: what sharpness adds to it."""

    def make(rng: np.random.Generator) -> Study:
        rate, own = rng.random(n), rng.normal(size=n)
        effect = 1 - 8 * (rate - 0.5) ** 2 if hump else np.exp(3 * rate) / 8
        x = effect + 0.4 * own
        y = -effect + 0.4 * (link * own + math.sqrt(1 - link**2) * rng.normal(size=n))
        covariates = {"learning_rate": 10 ** (3 * rate - 5), "distance": rate + 0.1 * rng.normal(size=n)}
        return independent([f"p{i}" for i in range(n)]), x, y, covariates | {"id_accuracy": rng.random(n)}

    return make


def replicated(settings: int, seeds: int, bases: int = 1) -> Callable[[np.random.Generator], Study]:
    """Settings with effects of their own on sharpness and on gain, used with several seeds, or on several bases."""

    def make(rng: np.random.Generator) -> Study:
        at = np.repeat(np.tile(np.arange(settings), bases), seeds)
        base = np.repeat(np.arange(bases), settings * seeds)
        x, y = (
            rng.normal(size=settings)[at] + rng.normal(size=bases)[base] + 0.3 * rng.normal(size=len(at)) for _ in "xy"
        )
        names = tuple(f"p{i}" for i in range(len(at)))
        design = Design(names, tuple(f"b{i}" for i in base), tuple(f"s{i}" for i in at))
        return design, x, y, {"learning_rate": rng.integers(3, size=len(at)).astype(float)}

    return make


@pytest.mark.parametrize("n", [10, 20, 60])
@pytest.mark.parametrize("hump", [False, True])
def test_a_learning_rate_that_drives_both_is_no_relation(n: int, hump: bool) -> None:
    runs = 120
    assert rejected(driven(n, hump=hump), runs, seed=n) <= upper(0.05, runs)


def test_alone_the_same_nulls_are_rejected() -> None:
    """So the test above can fail."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(40):
        design, x, y, _ = driven(20)(rng)
        block = marginal_block(x[None], y, "spearman", "y", design, design.keys(59, rng), rng, 0.9)
        hits += block.p[0] <= 0.05
    assert hits / 40 > 0.6


@pytest.mark.parametrize(("settings", "seeds", "bases"), [(8, 4, 1), (10, 1, 5), (9, 2, 2)])
def test_what_settings_share_is_no_evidence(settings: int, seeds: int, bases: int) -> None:
    runs = 120
    make = replicated(settings, seeds, bases)
    assert rejected(make, runs) <= upper(0.05, runs)

    def apart(rng: np.random.Generator) -> Study:
        design, x, y, covariates = make(rng)
        return Design(design.pairs, design.base, ("",) * len(x)), x, y, covariates

    assert rejected(apart, 60) > upper(0.05, 60)  # as pairs that know nothing of each other


@pytest.mark.parametrize("settings", [5, 6])
def test_six_clusters_have_no_partial_and_no_verdict(settings: int) -> None:
    study = replicated(settings, 10)(np.random.default_rng(0))
    found = measured(study, np.random.default_rng(1))
    assert np.isnan(found.p[0]) and found.n_effective[0] == settings and "too few to hold any covariate" in found.why[0]


def test_power_where_sharpness_adds_something() -> None:
    assert rejected(driven(60, link=0.7), 40) > 0.9
    assert rejected(driven(20, link=0.95), 40) > 0.6


def test_intervals_cover_zero_under_the_null() -> None:
    rng, runs, hits = np.random.default_rng(2), 120, 0
    for _ in range(runs):
        found = measured(driven(20)(rng), rng)
        hits += found.low[0] <= 0 <= found.high[0]
    assert hits / runs >= 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / runs) - 0.01  # and a point for the nonlinearity


def test_monotone_maps_of_everything_change_nothing() -> None:
    design, x, y, z = driven(24, link=0.5)(np.random.default_rng(3))
    one = measured((design, x, y, z), np.random.default_rng(4))
    mapped = {name: np.exp(v) for name, v in z.items()}
    two = measured((design, np.exp(x), y**3, mapped), np.random.default_rng(4))
    for name in ("estimate", "p", "low", "high"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-9)


def test_two_straight_ranks_are_the_textbook_formula() -> None:
    """With a single covariate of two values the partial is that of the residuals within its two groups."""
    rng = np.random.default_rng(5)
    x, y, z = rng.normal(size=14), rng.normal(size=14), np.repeat([0.0, 1.0], 7)
    found = measured((independent([f"p{i}" for i in range(14)]), x, y, {"steps": z}), rng)
    r = np.corrcoef([stats.rankdata(v) for v in (x, y, z)])
    want = (r[0, 1] - r[0, 2] * r[1, 2]) / math.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert found.estimate[0] == pytest.approx(want, abs=1e-12) and found.given == ["steps"]


def test_repeating_a_pair_as_its_replicate_changes_nothing() -> None:
    """A seed that gives the same numbers adds no evidence."""
    design, x, y, z = driven(12)(np.random.default_rng(6))
    settings = tuple(f"s{i}" for i in range(12))
    once = Design(design.pairs, ("b",) * 12, settings)
    twice = Design((*design.pairs, *(f"{p}-again" for p in design.pairs)), ("b",) * 24, settings * 2)
    one = measured((once, x, y, z), np.random.default_rng(7))
    repeated = {k: np.tile(v, 2) for k, v in z.items()}
    two = measured((twice, np.tile(x, 2), np.tile(y, 2), repeated), np.random.default_rng(7))
    assert (two.n[0], two.n_effective[0]) == (24, 12)
    for name in ("estimate", "p", "low", "high"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-9)


def test_permutations_keep_values_in_their_zero_shot_model_and_settings_whole() -> None:
    design = Design(
        tuple("abcdefgh"), ("x", "x", "y", "y", "x", "x", "y", "y"), ("1", "2", "1", "2", "3", "3", "4", "5")
    )
    assert (design.n_effective, design.n_clusters, design.n_bases) == (5, 7, 2)
    assert design.arrangements == 2 * 1 * 2  # settings 1 and 2 on both bases, 3 on x, 4 and 5 on y
    orders = design.orders(design.keys(200, np.random.default_rng(0)))
    assert len({tuple(row) for row in orders}) == 4
    assert all(sorted(row) == list(range(5)) for row in orders)
    weights = design.resamples(50, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 5).all()


def test_covariates_enter_in_order_as_long_as_there_is_room() -> None:
    rng = np.random.default_rng(8)
    names = ("steps", "id_accuracy", "distance", "learning_rate")
    values = {name: rng.random(9) for name in names} | {"constant": np.ones(9)}
    held = controls(independent([f"p{i}" for i in range(9)]), values)
    assert held.given == ("learning_rate", "distance", "id_accuracy") and held.left == 6
    assert held.left_out == ("steps",)
    held = controls(independent([f"p{i}" for i in range(9)]), values | {"epochs": 3 * values["learning_rate"]})
    assert held.collinear == ("epochs",)


def test_a_contrast_finds_the_better_of_two_and_not_the_better_of_equals() -> None:
    rng, runs, wrong, right = np.random.default_rng(9), 40, 0, 0
    for _ in range(runs):
        design, own, y, z = driven(40, link=0.8)(rng)
        near = own + 0.05 * rng.normal(size=40)
        far = rng.normal(size=40)
        keys = design.keys(99, rng)
        found = contrast(np.array([near, own + 0.05 * rng.normal(size=40), far]), y, design, z, keys=keys, rng=rng)
        wrong += found.p[0] <= 0.05
        right += found.p[1] <= 0.05
    assert wrong / runs <= upper(0.05, runs) and right / runs > 0.3


def test_holm_against_its_definition() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, np.nan, 0.03])), [0.03, 0.06, np.nan, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])


# ---------------------------------------------------------- covariates that act differently on each zero-shot model
Effect = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def by_base(n: int, bases: int, effect: Effect, additive: bool = False) -> Callable[[np.random.Generator], Study]:
    """n pairs whose sharpness and gain ``effect`` (rate, base) drives, differently on each zero-shot model."""

    def make(rng: np.random.Generator) -> Study:
        rate, base, names = rng.random(n), np.arange(n) % bases, tuple(f"p{i}" for i in range(n))
        x, y = (effect(rate, base, rng) + 0.2 * rng.normal(size=(2, n))).astype(float)
        design = Design(names, tuple(f"b{i}" for i in base), names, additive=additive)
        return design, x, y, {"learning_rate": rate, "distance": rate + 0.2 * rng.normal(size=n)}

    return make


def breaks(rate: np.ndarray, base: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1.0 * (rate > 0.6 + 0.1 * rng.normal(size=3)[base])


def own_best(rate: np.ndarray, base: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return 4 * (rate - np.array([0.2, 0.5, 0.8])[base]) ** 2


def opposite(rate: np.ndarray, base: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.array([1.0, -1.0, 1.0])[base] * rate


@pytest.mark.parametrize(("effect", "as_one"), [(breaks, 0.15), (own_best, 0.9), (opposite, 0.9)])
def test_a_learning_rate_that_acts_differently_on_each_model_is_no_relation(effect: Effect, as_one: float) -> None:
    runs = 60
    assert rejected(by_base(72, 3, effect), runs) <= upper(0.05, runs)
    assert rejected(by_base(72, 3, effect, additive=True), 30) > as_one  # so the line above can fail


def test_two_covariates_that_act_only_together_are_no_relation() -> None:
    def both(additive: bool) -> Callable[[np.random.Generator], Study]:
        def make(rng: np.random.Generator) -> Study:
            rate, steps = rng.random(60), rng.random(60)
            x, y = (rate - 0.5) * (steps - 0.5) * 6 + 0.2 * rng.normal(size=(2, 60))
            names = tuple(f"p{i}" for i in range(60))
            return Design(names, ("",) * 60, names, additive=additive), x, y, {"learning_rate": rate, "steps": steps}

        return make

    assert rejected(both(additive=False), 60) <= upper(0.05, 60)
    assert rejected(both(additive=True), 20) > 0.9


def test_a_relation_on_several_models_is_found() -> None:
    def make(rng: np.random.Generator) -> Study:
        design, x, y, covariates = by_base(90, 3, own_best)(rng)
        link = rng.normal(size=90)
        return design, x + 0.3 * link, y + 0.3 * link, covariates

    assert rejected(make, 30) > 0.8


def test_models_of_few_units_leave_a_doubt_and_beside_large_ones_carry_no_weight() -> None:
    few = measured(by_base(66, 6, opposite_of_six)(np.random.default_rng(0)), np.random.default_rng(1))
    assert np.isfinite(few.p[0]) and few.doubt[0].startswith("no zero-shot model has 12 units")
    many = measured(by_base(72, 6, opposite_of_six)(np.random.default_rng(0)), np.random.default_rng(1))
    assert many.doubt == [""] and "no weight" not in many.note[0]
    design, x, y, covariates = by_base(72, 6, opposite_of_six)(np.random.default_rng(0))
    uneven = Design(design.pairs, ("a",) * 30 + ("b",) * 36 + ("c",) * 6, design.setting)
    found = measured((uneven, x, y, covariates), np.random.default_rng(1))
    assert found.doubt == [""] and "6 units carry no weight" in found.note[0]
    np.testing.assert_allclose(residuals(x[None], y, uneven, covariates).y[66:], 0.0, atol=1e-9)
    one = Design(design.pairs, ("a",) * 72, design.setting)
    assert measured((one, x, y, covariates), np.random.default_rng(1)).doubt == [""]


def opposite_of_six(rate: np.ndarray, base: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return np.where(base % 2, 1.0, -1.0) * rate


# ------------------------------------------------------------------------------------------- zero-shot models far apart
def on_bases(n: int, bases: int, rng: np.random.Generator) -> Study:
    design, x, y, covariates = driven(n, link=0.5)(rng)
    return Design(design.pairs, tuple(f"b{i % bases}" for i in range(n)), design.pairs), x, y, covariates


def test_how_far_apart_zero_shot_models_are_changes_nothing() -> None:
    design, x, y, covariates = on_bases(24, 3, np.random.default_rng(3))
    near = measured((design, x, y, covariates), np.random.default_rng(0))
    away = 100.0 * np.unique(design.base, return_inverse=True)[1]
    far = measured((design, np.exp(x) + away, y**3 - 7 * away, covariates), np.random.default_rng(0))
    assert (far.estimate, far.low, far.high, far.p) == (near.estimate, near.low, near.high, near.p)


def test_a_rank_on_a_model_of_few_pairs_is_that_among_all() -> None:
    design, x, _, _ = on_bases(21, 3, np.random.default_rng(3))
    ranks, base = stats.rankdata(x), np.unique(design.base, return_inverse=True)[1]
    expected = ranks - np.array([ranks[base == b].mean() for b in base])
    np.testing.assert_allclose(design.centred_ranks(x), expected)
