"""Output-space baselines by hand: the mixture of probabilities, failures, neighbours, weights and temperatures."""

from __future__ import annotations

import math

import pytest
import torch

from sharpscope.clip.ensembles import (
    FailureSet,
    calibrating_temperature,
    failure_distance,
    finetuned_weight,
    mixed_outputs,
)

FAILURES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


def test_ose_is_the_mean_of_the_probabilities() -> None:
    zero, one = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(9), 0.0]])  # (.25, .75) and (.9, .1)
    torch.testing.assert_close(mixed_outputs(zero, one).exp(), torch.tensor([[0.575, 0.425]]))
    # not the mean of the logits, which log(sqrt 9 / sqrt 3) = log(1.73) would be
    torch.testing.assert_close(mixed_outputs(zero, one, torch.tensor([0.8])).exp(), torch.tensor([[0.77, 0.23]]))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_weight_of_0_or_1_is_one_of_the_two_models(weight: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = [5 * torch.randn(4, 3, generator=draw) for _ in range(2)]
    torch.testing.assert_close(mixed_outputs(*logits, weight), logits[int(weight)].log_softmax(1))


def test_distances_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # squared distances to the three failures: (0, 2, 4) and (.8, .4, 3.2)
    for k, expected in enumerate(([0.0, 0.4], [2.0, 0.8], [4.0, 3.2]), start=1):
        torch.testing.assert_close(failure_distance(features, FAILURES, k), torch.tensor(expected))
    assert failure_distance(features, FAILURES, 4).tolist() == [math.inf, math.inf]
    assert failure_distance(features, FAILURES[:0], 1).tolist() == [math.inf, math.inf]


def test_the_weight_by_hand() -> None:
    found = finetuned_weight(torch.tensor([1.5, 0.9, 2.1, math.inf]))
    expected = [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0.0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_failures_are_what_only_the_finetuned_model_gets_right() -> None:
    right_0 = torch.tensor([True, True, False, False])
    right_1 = torch.tensor([True, False, True, False])
    features = torch.arange(8.0).reshape(4, 2)
    assert FailureSet.of(features, right_0, right_1).features.tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize(("m", "k"), [(3, 1), (1499, 1), (1501, 2), (5000, 5)])
def test_k_is_a_thousandth_of_the_failures(m: int, k: int) -> None:
    assert FailureSet(torch.zeros(m, 2)).k == k


def test_vrf_by_hand() -> None:
    zero, one = torch.tensor([[0.0, 2 * math.log(3)]]), torch.tensor([[math.log(3), 0.0]])
    vrf = FailureSet(FAILURES, temperature_0=2.0, temperature_1=0.5)  # (.25, .75) and (.9, .1)
    weight = 1 / (1 + math.exp((0.4 - 1.5) / 0.6))
    expected = [(1 - weight) * 0.25 + weight * 0.9, (1 - weight) * 0.75 + weight * 0.1]
    torch.testing.assert_close(vrf.mixed(zero, one, torch.tensor([[0.6, 0.8]])).exp(), torch.tensor([expected]))
    # without a failure of the zero-shot model it is the zero-shot model
    alone = FailureSet(FAILURES[:0]).mixed(zero, one, torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(alone, zero.log_softmax(1))


def test_the_temperature_makes_confidence_equal_accuracy() -> None:
    logits = 3 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    for accuracy in (0.3, 0.6, 0.95):
        t = calibrating_temperature(logits, accuracy)
        assert float((logits / t).softmax(1).amax(1).mean()) == pytest.approx(accuracy, abs=1e-5)
    assert calibrating_temperature(torch.tensor([[math.log(3), 0.0]]), 0.9) == pytest.approx(0.5, rel=1e-5)
    assert calibrating_temperature(logits, 1.0) < 0.02  # never that sure
    assert calibrating_temperature(logits, 0.0) > 99  # never that unsure
