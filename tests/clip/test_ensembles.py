"""Output-space baselines by hand: the mixture of probabilities, failures, neighbours, weights and temperatures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sharpscope.clip.ensembles import (
    FailureSet,
    calibrating_temperature,
    ensemble,
    failure_distance,
    finetuned_weight,
    mixed_logits,
    mixed_outputs,
    nearest_count,
)
from sharpscope.clip.head import Classifier
from sharpscope.vocabulary import EnsembleKind
from sharpscope.weights.path import InterpolationPath

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
    other = finetuned_weight(torch.tensor([2.0, 3.0]), centre=2.0, width=0.5)
    torch.testing.assert_close(other, torch.tensor([0.5, 1 / (1 + math.exp(2))]))


def test_failures_are_what_only_the_finetuned_model_gets_right() -> None:
    right_0 = torch.tensor([True, True, False, False])
    right_1 = torch.tensor([True, False, True, False])
    features = torch.arange(8.0).reshape(4, 2)
    assert FailureSet.of(features, right_0, right_1).features.tolist() == [[4.0, 5.0]]


@pytest.mark.parametrize(
    ("failures", "images", "k"),
    [(128_000, 1_281_167, 100), (4_000, 50_000, 80), (1_940, 4_096, 474), (28, 64, 28), (1, 10**6, 1), (0, 64, 1)],
)
def test_k_is_that_of_the_released_code(failures: int, images: int, k: int) -> None:
    """round(1000 failures / images), which for fewer than a thousand images would be more than there are."""
    assert nearest_count(failures, images) == k
    right_1 = torch.arange(min(images, 100)) < 40
    assert FailureSet.of(torch.zeros(len(right_1), 2), ~right_1, right_1).k == nearest_count(40, len(right_1))


def test_mixed_logits_are_not_mixed_probabilities() -> None:
    zero, one = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[math.log(9), 0.0]])
    torch.testing.assert_close(mixed_logits(zero, one, 0.25), torch.tensor([[math.log(9) / 4, 0.75 * math.log(3)]]))
    expected = 0.75 * zero.softmax(1) + 0.25 * one.softmax(1)
    torch.testing.assert_close(ensemble("probabilities", zero, one, 0.25).exp(), expected)
    assert torch.equal(ensemble("logits", zero, one, 0.25), mixed_logits(zero, one, 0.25))


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_the_ends_are_the_two_models_bit_for_bit_and_absent_classes_stay_absent(kind: EnsembleKind) -> None:
    zero, one = (torch.tensor([[x, -math.inf, 1.0]]) for x in (0.3, 2.0))
    assert torch.equal(ensemble(kind, zero, one, 0.0), zero) and torch.equal(ensemble(kind, zero, one, 1.0), one)
    middle = ensemble(kind, zero, one, 0.5)
    assert middle[0, 1] == -math.inf and torch.isfinite(middle[0, [0, 2]]).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_the_ensemble_of_logits_is_the_path_where_only_an_affine_head_moves(
    tiny_model: Any, tiny_theta: dict[str, Any], normalize: bool
) -> None:
    """WiSE-FT's equation 1 in output space: f(x, (1 - a) t_0 + a t_1) = (1 - a) f(x, t_0) + a f(x, t_1)."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=draw, dtype=torch.float64)
    body = {n: t.double() if t.is_floating_point() else t for n, t in tiny_theta.items()}
    heads = [{"head.weight": torch.randn(3, 12, generator=draw, dtype=torch.float64)} for _ in range(2)]
    ends = [body | head | {"head.bias": head["head.weight"].sum(1)} for head in heads]
    classifier = Classifier(tiny_model, "stored", ("a", "b", "c"), scale_baked=True, normalize=normalize)
    path = InterpolationPath(*ends, torch.float64)
    with torch.no_grad():
        outputs = [classifier.logits(theta, images) for theta in ends]
        for alpha in (0.0, 0.3, 1.0):
            expected = classifier.logits(path.at(alpha), images)
            torch.testing.assert_close(mixed_logits(*outputs, alpha), expected, rtol=1e-12, atol=1e-12)
        # the probabilities' ensemble is another model, and so is the logits' where the scale moves with the head
        assert not torch.allclose(mixed_outputs(*outputs, 0.3).exp(), expected.softmax(1), atol=1e-3)
        scaled = Classifier(tiny_model, "stored", ("a", "b", "c"), normalize=normalize)
        moved = [ends[0], ends[1] | {"logit_scale": ends[1]["logit_scale"] + 1}]
        middle = scaled.logits(InterpolationPath(*moved, torch.float64).at(0.5), images)
        assert not torch.allclose(mixed_logits(*(scaled.logits(t, images) for t in moved), 0.5), middle, atol=1e-2)


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
