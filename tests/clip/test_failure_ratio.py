"""VRF's ratio of accuracies by distance: bins and ratios by hand, and the interval's coverage."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from sharpscope.clip.failure_ratio import BINS, FEWEST, Nearness, ratio_bins


def near(distance: list[float], zero: str, one: str) -> Nearness:
    """``zero``, ``one``: 1 for an image that the model gets right."""
    right = [np.array([x == "1" for x in text]) for text in (zero, one)]
    return Nearness(np.array(distance), *right, failures=5, k=2)


def test_bins_and_ratios_by_hand() -> None:
    toy = near([0.9, 0.1, 0.4, 0.2, 0.8, 0.3, 0.7, 0.6], "11101001", "01110111")
    first, last = ratio_bins(toy, bins=2)
    # images 1, 2, 3, 5 (distances .1, .4, .2, .3) and 0, 4, 6, 7 (.9, .8, .7, .6)
    assert (first.distance_low, first.distance_high, first.n) == (0.1, 0.4, 4)
    assert (last.distance_low, last.distance_high, last.n) == (0.6, 0.9, 4)
    assert first.distance == pytest.approx(0.25) and last.distance == pytest.approx(0.75)
    assert (first.zeroshot, first.finetuned, first.ratio) == (0.5, 1.0, 2.0)
    assert (last.zeroshot, last.finetuned) == (0.75, 0.5) and last.ratio == pytest.approx(2 / 3)
    # influence of the first bin: 1 / 1 - (1, 1, 0, 0) / .5 = (-1, -1, 1, 1), standard deviation sqrt(4 / 3), n = 4
    factor = math.exp(1.959963984540054 * math.sqrt(1 / 3))
    assert (first.low, first.high) == pytest.approx((2 / factor, 2 * factor))
    # and of the last: right_1 / .5 - right_0 / .75 = (-4/3, -4/3, 2, 2/3), variance 8 / 3
    factor = math.exp(1.959963984540054 * math.sqrt(2 / 3))
    assert (last.low, last.high) == pytest.approx((2 / 3 / factor, 2 / 3 * factor))
    narrow = ratio_bins(toy, bins=2, level=0.5)[0]
    assert first.low < narrow.low < 2 < narrow.high < first.high


def test_every_image_is_in_one_bin_and_ties_are_not_split() -> None:
    draw = np.random.default_rng(0)
    distance = draw.choice(np.linspace(0, 2, 23), 400)
    toy = Nearness(distance, draw.random(400) < 0.5, draw.random(400) < 0.7, 9, 3)
    found = ratio_bins(toy)
    assert len(found) <= BINS and sum(x.n for x in found) == 400
    assert all(a.distance_high < b.distance_low for a, b in pairwise(found))
    assert sum(x.n * x.zeroshot for x in found) == pytest.approx(toy.zeroshot.sum())
    assert sum(x.n * x.finetuned for x in found) == pytest.approx(toy.finetuned.sum())
    # small sets have fewer bins, of as many images
    few = Nearness(np.arange(3.0 * FEWEST), *[draw.random(3 * FEWEST) < 0.5 for _ in range(2)], 9, 3)
    assert [x.n for x in ratio_bins(few)] == [FEWEST] * 3
    assert len(ratio_bins(near([1.0, 1.0, 1.0], "110", "011"), bins=3)) == 1


def test_exchanging_the_models_inverts_the_ratio_and_its_interval() -> None:
    texts = ("11101000", "01111110")
    one, other = (ratio_bins(near([1.0] * 8, *order))[0] for order in (texts, texts[::-1]))
    assert one.ratio * other.ratio == pytest.approx(1)
    assert one.low * other.high == pytest.approx(1) and one.high * other.low == pytest.approx(1)


def test_what_has_no_ratio_or_no_interval_says_why() -> None:
    (never,) = ratio_bins(near([1.0, 2.0], "00", "10"), bins=1)
    assert math.isnan(never.ratio) and never.status == "undefined" and "zero-shot model gets no image" in never.note
    (lost,) = ratio_bins(near([1.0, 2.0], "10", "00"), bins=1)
    assert lost.ratio == 0 and lost.status == "ok" and math.isnan(lost.low) and "fine-tuned model" in lost.note
    (same,) = ratio_bins(near([1.0, 2.0], "10", "10"), bins=1)
    assert same.ratio == 1 and math.isnan(same.high) and "same images" in same.note
    far = Nearness(np.full(60, np.inf), np.arange(60) < 30, np.arange(60) < 45, failures=1, k=2)
    (none,) = ratio_bins(far)
    assert none.status == "undefined" and math.isnan(none.distance) and none.n == 60
    assert (none.zeroshot, none.finetuned) == (0.5, 0.75) and "1 zero-shot failures" in none.note


def test_intervals_cover_the_true_ratio_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    both, only_0, only_1 = 0.4, 0.1, 0.3  # p_0 = .5, p_1 = .7
    hits = 0
    for _ in range(1000):
        u = draw.random(80)
        zero = u < both + only_0
        one = (u < both) | ((u >= both + only_0) & (u < both + only_0 + only_1))
        (found,) = ratio_bins(Nearness(np.zeros(80), zero, one, 5, 1), bins=1)
        hits += found.low <= 1.4 <= found.high
    assert 930 <= hits <= 970  # 950 expected, standard deviation 7
