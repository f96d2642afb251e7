"""Laws of the criterion change: nobody is named where nothing happens, who becomes sharp is found, scale is nothing."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sharpscope.findings.relativechange import Changes, changes_of
from sharpscope.findings.sharpness import SharpnessGrid
from tests.scripts import loaded

nulls = loaded("benchmarks/nulls_stragglers.py")
World = nulls.World
CHANCE = 0.05


def most(simulations: int) -> int:
    """More false alarms than this have a chance of 1 in 1,000 where the error is 5 %."""
    return int(stats.binom.ppf(0.999, simulations, CHANCE))


@pytest.mark.parametrize(
    ("world", "simulations"),
    [
        (World(8), 150), (World(24), 60), (World(100), 20), (World(24, tail=7), 40), (World(24, error=0.01), 40),
        (World(24, spread=0.0), 40), (World(24, paired=False), 40), (World(8, (0.0, 0.1, 0.2, 0.6, 0.8, 1.0)), 40),
    ],
)  # fmt: skip
def test_where_every_layer_changes_alike_somebody_is_named_in_five_per_cent_at_most(
    world: Any, simulations: int
) -> None:
    rng = np.random.default_rng(1)
    alarms = sum(nulls.named(world.grid(rng), rng).any() for _ in range(simulations))
    assert alarms <= most(simulations)


def test_who_becomes_sharp_is_found_and_who_is_large_already_is_not() -> None:
    rng = np.random.default_rng(2)
    rising, large = World(24, rise=20, spread=0.15, uneven=0.2), World(24, larger=1000)
    found = [nulls.named(rising.grid(rng), rng) for _ in range(30)]
    assert sum(mask[0] for mask in found) >= 27
    assert sum(nulls.named(large.grid(rng), rng)[0] for _ in range(40)) <= 1


def test_a_smaller_chance_names_no_more_layers() -> None:
    """Also where the chance is so small that the null's simulations cannot show it, and errors exceed the spread."""
    rng = np.random.default_rng(7)
    sharp = [World(24, rise=8, spread=0.05, error=0.1, uneven=1.5).grid(rng) for _ in range(6)]
    chances = (0.2, 0.05, 0.01, 0.001, 0.00099, 1e-4, 1e-6)
    for grid in sharp:
        found = [changes(grid).calibrated(chance, np.random.default_rng(8)) for chance in chances]
        thresholds = [float(selection.threshold) for _, selection, _ in found]
        assert thresholds == sorted(thresholds) and np.isfinite(thresholds[3])
        assert not any(selection.mask.any() for _, selection, _ in found[4:])
        for (_, wide, _), (_, narrow, _) in itertools.pairwise(found):
            assert not (narrow.mask & ~wide.mask).any()


def changes(grid: SharpnessGrid, moving: np.ndarray | None = None) -> Changes:
    found = changes_of(
        grid, np.ones(len(grid.layers), bool) if moving is None else moving, 10, np.random.default_rng(3)
    )
    assert found is not None
    return found


def scaled(grid: SharpnessGrid, by: np.ndarray) -> SharpnessGrid:
    assert grid.parts is not None
    fields = {name: getattr(grid, name) * by for name in ("estimate", "error", "images")}
    return dataclasses.replace(grid, **fields, parts=grid.parts * by[..., None])


@pytest.mark.parametrize("paired", [True, False])
def test_constant_factors_of_the_model_a_layer_or_an_alpha_change_nothing(paired: bool) -> None:
    grid = World(12, rise=30).grid(np.random.default_rng(4))
    own, along = 2.0 ** np.arange(-6, 6)[:, None], 2.0 ** np.arange(4)[None]
    rng = np.random.default_rng
    before = changes(grid if paired else dataclasses.replace(grid, parts=None)).calibrated(CHANCE, rng(5))
    for by in (np.full((12, 1), 8.0), own):
        other = scaled(grid, by)
        after = changes(other if paired else dataclasses.replace(other, parts=None)).calibrated(CHANCE, rng(5))
        np.testing.assert_allclose(after[0], before[0], rtol=1e-9)
        np.testing.assert_array_equal(after[1].mask, before[1].mask)
        np.testing.assert_array_equal(after[2], before[2])
    exact = dataclasses.replace(grid, parts=None, error=0 * grid.error, images=0 * grid.images)
    common = dataclasses.replace(exact, estimate=exact.estimate * along)
    np.testing.assert_allclose(changes(common).relative, changes(exact).relative, atol=1e-12)


def test_the_score_is_the_mean_change_of_the_logarithm_on_any_grid_of_alphas() -> None:
    rates = np.array([0.0, 1.0, -2.0, 0.5])
    for alphas in ((0.0, 1.0), (0.0, 0.1, 0.7, 1.0), (-0.5, 0.0, 0.5, 1.0, 1.5)):
        shape = (4, len(alphas))
        none = np.zeros(shape)
        grid = SharpnessGrid(
            "m", tuple("abcd"), alphas, np.exp(3 + rates[:, None] * np.array(alphas)), none, none, none, np.ones(4),
            np.ones(len(alphas)), none > 0, frozenset(),
        )  # fmt: skip
        np.testing.assert_allclose(changes(grid).scores, rates / 2, atol=1e-12)
        hole = grid.estimate.copy()
        hole[1, 1:-1] = np.nan
        holed = dataclasses.replace(grid, estimate=hole) if alphas[0] == 0 else grid
        np.testing.assert_allclose(changes(holed).scores, rates / 2, atol=1e-12)
        assert np.isnan(changes(grid, np.array([True, False, True, True])).scores[1])
    assert (
        changes_of(
            dataclasses.replace(grid, alphas=(0.1, 0.2, 0.3, 0.4, 0.5)), np.ones(4, bool), 1, np.random.default_rng(0)
        )
        is None
    )


def test_an_estimate_within_its_error_of_zero_has_a_change_and_a_negative_one_has_none() -> None:
    error, none = np.full((4, 2), 1.0), np.zeros((4, 2))
    estimate = np.array([[0.5, 1000.0], [-0.5, 1000.0], [-3.0, 1000.0], [1000.0, -3.0]])
    grid = SharpnessGrid(
        "m", tuple("abcd"), (0.0, 1.0), estimate, error, error, none, np.ones(4), np.ones(2), none > 0, frozenset()
    )
    first, second, negative, falling = changes(grid).scores
    assert 0 < first < second < first + 0.3 and np.isnan(negative) and falling < -3
    exact = dataclasses.replace(grid, error=none, images=none)
    assert np.isfinite(changes(exact).scores).tolist() == [True, False, False, False]


def test_pairing_the_images_keeps_the_common_error_out_of_the_change() -> None:
    """Layers whose images deviate by the same factor at every alpha change without error over draws of images."""
    rng = np.random.default_rng(6)
    grid = World(12, spread=0.0, error=0.1, shared=1.0, uneven=0.0).grid(rng)
    paired, bound = changes(grid), changes(dataclasses.replace(grid, parts=None))
    assert paired.drawn.std(axis=0).max() < 0.01 < 0.03 < bound.drawn.std(axis=0).min()
