"""The verdict on repairs is wrong no more often than it says, however much random masks differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpscope.findings.twolevels import OverDraws, max_min_over_draws, over_draws
from tests.scripts import loaded

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "nulls_repair.py"
STUDIES = 60


@pytest.fixture(scope="module")
def nulls() -> Any:
    """benchmarks/nulls_repair.py as a module."""
    return loaded("benchmarks/nulls_repair.py")


def most(nominal: float, runs: int) -> float:
    """A share that a rate of ``nominal`` exceeds in one of 1,000 simulations."""
    return float(stats.binom.ppf(0.999, runs, nominal)) / runs


def test_with_one_source_of_error_the_interval_is_that_of_a_textbook() -> None:
    rng = np.random.default_rng(0)
    values, noise = rng.normal(size=(5, 1)), rng.normal(size=(300, 1, 1))
    only_draws = over_draws(values, np.zeros((300, 5, 1)) + values)
    low, high = only_draws.interval(0.9)
    assert (low[0], high[0]) == pytest.approx(stats.t.interval(0.9, 4, values.mean(), stats.sem(values)[0]))
    only_examples = over_draws(np.ones((5, 1)), 1 + np.repeat(noise, 5, axis=1))
    low, high = only_examples.interval(0.9)
    assert (low[0], high[0]) == pytest.approx(stats.norm.interval(0.9, 1.0, noise.std(ddof=1)))
    assert np.isnan(over_draws(values, np.zeros((1, 5, 1))).interval(0.9)).all()  # one replicate has no spread


@pytest.mark.parametrize("draws", [2, 5])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 2.0, 20.0])
def test_an_interval_over_draws_errs_no_more_often_than_it_says(draws: int, ratio: float) -> None:
    """``ratio``: the draws' part of the variance of the mean, in units of the examples' part."""
    runs, rng = 40_000, np.random.default_rng(draws)
    values = np.sqrt(ratio * draws) * rng.normal(size=(draws, runs)) + rng.normal(size=runs)
    spread = values.std(axis=0, ddof=1) / np.sqrt(draws)
    cell = OverDraws(values.mean(axis=0), np.ones(runs), spread, draws)
    low, high = cell.interval(0.95)
    wrong = [float((low > 0).mean()), float((high < 0).mean())]
    assert max(wrong) <= most(0.025, runs)
    if ratio in (0.0, 20.0) and draws == 5:
        assert min(wrong) > 0.02  # and hardly less often where one part makes all of the error


def test_the_best_of_several_is_bounded_by_the_rule_and_unbounded_with_an_unknown_error() -> None:
    cells = [
        OverDraws(np.array([0.3, 0.2]), np.array([0.1, 0.1]), np.zeros(2), 1),
        OverDraws(np.array([0.5, 0.1]), np.array([0.01, 0.01]), np.zeros(2), 1),
    ]
    estimate, low, high, best = max_min_over_draws(cells, 0.95)
    z = stats.norm.ppf(1 - 0.025 / 2)
    assert (estimate, best) == (0.2, 0)
    assert low == pytest.approx(0.1 - z * 0.01) and high == pytest.approx(0.2 + z * 0.1)
    cells[1] = OverDraws(cells[1].mean, np.full(2, np.nan), np.zeros(2), 1)
    assert np.isnan(max_min_over_draws(cells, 0.95)[1:3]).all()


def test_stragglers_no_better_than_controls_hold_no_more_often_than_the_level(nulls: Any) -> None:
    for case in nulls.CASES[:2]:
        assert nulls.rate(case, STUDIES, images=150, bootstrap=50) <= most(0.025, STUDIES), case.name


def test_a_repair_that_gains_is_found(nulls: Any) -> None:
    assert nulls.rate(nulls.CASES[-2], 25, images=300, bootstrap=50) >= 0.8
