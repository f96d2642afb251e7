"""Merges of several sets of weights: hand values, exact ends, and what the order of the files may change."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sharpscope.errors import ConfigError, PairMismatch
from sharpscope.weights.merging import (
    Mean,
    dare_merge,
    greedy_soup,
    model_stock,
    stock_ratio,
    ties_edit,
    ties_merge,
)

W, COUNT, STATISTICS = "visual.proj", "visual.bn1.num_batches_tracked", "visual.bn1.running_var"


def theta(values: list[float] | Tensor, variance: float = 1.0) -> dict[str, Tensor]:
    values = torch.as_tensor(values, dtype=torch.float32)
    return {W: values, STATISTICS: torch.tensor([variance]), COUNT: torch.tensor(3)}


def drawn(seed: int, size: int = 500) -> dict[str, Tensor]:
    return theta(torch.randn(size, generator=torch.Generator().manual_seed(seed)))


# ------------------------------------------------------------------ soups
def test_the_mean_of_equal_weights_is_these_weights_bit_for_bit_and_knows_no_order() -> None:
    same = drawn(0)
    for count in (1, 2, 3, 7):
        mean = Mean([same] * count).theta()
        assert torch.equal(mean[W], same[W]) and mean[COUNT].item() == 3
    thetas = [drawn(i) for i in range(4)]
    means = [Mean(order).theta()[W] for order in itertools.permutations(thetas)]
    assert all(torch.equal(m, means[0]) for m in means)
    assert torch.equal(means[0], torch.stack([t[W].double() for t in thetas]).mean(0).float())


def test_the_mean_averages_running_statistics_and_refuses_other_names() -> None:
    mean = Mean([theta([1.0, 3.0], 1.0), theta([2.0, 5.0], 2.0)])
    assert mean.theta()[W].tolist() == [1.5, 4.0] and mean.theta()[STATISTICS].item() == 1.5
    one_more = mean.with_one_more(theta([3.0, 4.0], 3.0))
    assert one_more[W].tolist() == [2.0, 4.0] and mean.theta()[W].tolist() == [1.5, 4.0]
    with pytest.raises(PairMismatch, match="another shape"):
        mean.add(theta([1.0]))
    with pytest.raises(ConfigError, match="no weights"):
        Mean().theta()


def test_greedy_soup_by_hand() -> None:
    """Candidates on a line, accuracy 1 - |x - 2|: b (x = 2.5) first, then a, whose mean with b is 2, then c, which
    lowers it; d leaves it as it is and is kept."""
    points = {"a": 1.5, "b": 2.5, "c": 4.0, "d": 2.0}
    alone = {"a": 0.50, "b": 0.52, "c": 0.4, "d": 0.1}
    soup, steps = greedy_soup(alone, lambda n: theta([points[n]]), lambda t: 1 - abs(float(t[W]) - 2))
    assert [(s.name, s.kept) for s in steps] == [("b", True), ("a", True), ("c", False), ("d", True)]
    assert [s.alone for s in steps] == [0.52, 0.5, 0.4, 0.1]
    assert [s.with_it for s in steps] == pytest.approx([0.52, 1.0, 1 - 2 / 3, 1.0])
    assert soup[W].tolist() == [2.0]


def test_a_greedy_soup_that_nothing_improves_is_the_best_candidate_bit_for_bit() -> None:
    thetas = {str(i): drawn(i) for i in range(3)}
    soup, steps = greedy_soup({"0": 0.3, "1": 0.9, "2": 0.9}, thetas.__getitem__, lambda t: 0.1)
    assert [s.name for s in steps] == ["1", "2", "0"]  # of equal ones the earlier is tried first
    assert torch.equal(soup[W], thetas["1"][W]) and [s.kept for s in steps] == [True, False, False]


# ------------------------------------------------------------------ Model Stock
@given(st.integers(2, 6), st.floats(0, 1))
def test_the_ratio_of_equally_inclined_changes_is_the_papers(k: int, cosine: float) -> None:
    """k unit vectors with the same cosine between any two, from the Cholesky factor of their Gram matrix."""
    gram = torch.full((k, k), cosine, dtype=torch.float64) + (1 - cosine) * torch.eye(k, dtype=torch.float64)
    vectors = torch.linalg.cholesky(gram + 1e-12 * torch.eye(k, dtype=torch.float64))
    assert stock_ratio(list(vectors)) == pytest.approx(k * cosine / (1 + (k - 1) * cosine), abs=1e-6)


def test_orthogonal_changes_give_theta_0_and_equal_ones_their_mean_bit_for_bit() -> None:
    zero = drawn(9)
    left, right = zero[W].clone(), zero[W].clone()
    left[:250] += 1.0
    right[250:] -= 2.0
    merged, ratios = model_stock([theta(left), theta(right)], zero, [W])
    assert ratios == {W: 0.0} and torch.equal(merged[W], zero[W])
    one = drawn(10)
    for count in (2, 3):
        merged, ratios = model_stock([one] * count, zero, [W])
        assert ratios == {W: 1.0} and torch.equal(merged[W], one[W])


def test_model_stock_is_the_nearest_point_to_the_centre() -> None:
    """The paper's derivation: the merge of two equally long changes is the foot of a perpendicular, t = 2 c / (1 + c);
    here c = 1/2 and t = 2/3."""
    zero = theta([0.0, 0.0])
    a, b = theta([2.0, 0.0]), theta([1.0, math.sqrt(3.0)])
    merged, ratios = model_stock([a, b], zero, [W])
    assert ratios[W] == pytest.approx(2 / 3)
    torch.testing.assert_close(merged[W], torch.tensor([1.0, math.sqrt(3.0) / 3]))


def test_opposite_and_missing_changes_count_as_orthogonal() -> None:
    zero = torch.zeros(2)
    assert stock_ratio([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]) == 0.0
    assert stock_ratio([torch.tensor([1.0, 0.0]), zero]) == 0.0
    with pytest.raises(ConfigError, match="at least two"):
        stock_ratio([zero])


# ------------------------------------------------------------------ TIES and DARE
def test_ties_by_hand() -> None:
    """Changes of ten entries, the largest 40 % kept of each: 4, 3, -2, 1 and 5, -4, 2, -1.5 at the places below."""
    zero = theta(torch.full((10,), 1.0))
    first = torch.tensor([4.0, 3.0, -2.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    second = torch.tensor([5.0, -4.0, 0.2, 0.2, 2.0, -1.5, 0.2, 0.2, 0.2, 0.2])
    merged = ties_merge([theta(1 + first), theta(1 + second)], zero, [W], 0.4)
    # place 0: both positive, (4 + 5) / 2; place 1: 3 - 4 < 0 elects minus, so that -4 alone stays
    expected = torch.tensor([4.5, -4.0, -2.0, 1.0, 2.0, -1.5, 0, 0, 0, 0])
    torch.testing.assert_close(merged[W], 1 + expected)
    halved = ties_merge([theta(1 + first), theta(1 + second)], zero, [W], 0.4, scale=0.5)
    torch.testing.assert_close(halved[W], 1 + expected / 2)


def test_where_trimmed_changes_cancel_the_majority_of_signs_decides() -> None:
    merged = ties_merge([theta([2.0, 1.0, 1.0]), theta([-2.0, 1.0, 1.0])], theta([0.0, 0.0, 0.0]), [W], 1.0)
    assert merged[W].tolist() == [2.0, 1.0, 1.0]
    merged = ties_merge([theta([2.0, -1.0, -1.0]), theta([-2.0, -1.0, -1.0])], theta([0.0, 0.0, 0.0]), [W], 1.0)
    assert merged[W].tolist() == [-2.0, -1.0, -1.0]


def test_ties_of_one_change_is_its_trimming() -> None:
    zero, one = drawn(0), drawn(1)
    torch.testing.assert_close(ties_merge([one], zero, [W], 0.3)[W], ties_edit(one, zero, [W], 0.3)[W])


def test_dare_that_keeps_everything_is_the_uniform_soup_and_its_scale_the_sum() -> None:
    zero, thetas = drawn(0), [drawn(1), drawn(2), drawn(3)]
    merged = dare_merge(thetas, zero, [W], density=1.0)
    torch.testing.assert_close(merged[W], Mean(thetas).theta()[W])
    summed = dare_merge(thetas, zero, [W], density=1.0, scale=3.0)
    torch.testing.assert_close(summed[W], zero[W] + sum(t[W] - zero[W] for t in thetas))


def test_dare_keeps_the_change_on_average_and_chooses_anew_for_each_file() -> None:
    """Mean over 400 seeds within five standard errors of the mean change: (1 - d) / d of each squared change."""
    zero, one, two = drawn(0, 40), drawn(1, 40), drawn(2, 40)
    runs = torch.stack([dare_merge([one, two], zero, [W], 0.25, seed=7 * s)[W] for s in range(400)]).double()
    change = ((one[W] - zero[W]).double(), (two[W] - zero[W]).double())
    error = ((change[0] ** 2 + change[1] ** 2) / 4 * 3 / 400).sqrt()
    assert bool(((runs.mean(0) - zero[W] - (change[0] + change[1]) / 2).abs() < 5 * error).all())
    once = dare_merge([one, one], zero, [W], 0.25)[W]
    assert len(torch.unique(((once - zero[W]) / (one[W] - zero[W])).round())) == 3  # 0, half of 1/d, 1/d: two choices
