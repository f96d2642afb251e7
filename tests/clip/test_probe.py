"""The probe's loss: a mean over samples, whatever the batches; fixed, balanced, deterministic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.datasets.dataset import Dataset, Memory
from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.probe import Probe
from sharpscope.curvature.arithmetic import second_order
from sharpscope.errors import ConfigError, NonDeterministicProbe

NAMES = ("cup", "key", "fish")
Theta = dict[str, torch.Tensor]


def toy(n: int = 23) -> Dataset:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 16, 16), dtype=np.uint8)
    labels = torch.arange(n) % 3
    return Dataset("toy", NAMES, labels, Memory(torch.from_numpy(pixels)), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def classifier(tiny_model: ClipModel) -> Classifier:
    return Classifier(tiny_model, "stored", NAMES)


@pytest.fixture
def theta(classifier: Classifier, tiny_theta: Theta) -> Theta:
    return {k: v.double() for k, v in classifier.attach(tiny_theta).items()}


def probe_of(classifier: Classifier, **kwargs: Any) -> Probe:
    return Probe(classifier, toy(), **{"size": 20, "batch_size": 8, "dtype": torch.float64, **kwargs})


def test_loss_is_open_coded_cross_entropy(classifier: Classifier, theta: Theta) -> None:
    probe = probe_of(classifier)
    images, labels = next(toy().subset(probe.indices).batches(20))
    logits = classifier.logits(theta, images.double())
    expected = -(logits.softmax(dim=1)[torch.arange(20), labels]).log()
    torch.testing.assert_close(probe.sample_losses(theta), expected)
    assert probe.loss(theta) == pytest.approx(float(expected.mean()), rel=1e-12)


@pytest.mark.parametrize("normalize_logits", [False, True])
@pytest.mark.parametrize("mode", ["zeroshot", "stored", "text"])
def test_loss_does_not_depend_on_the_batch_size(
    mode: Any, normalize_logits: bool, tiny_model: ClipModel, tiny_theta: Theta
) -> None:
    c = Classifier(tiny_model, mode, NAMES)
    theta = {k: v.double() for k, v in c.attach(tiny_theta).items()}
    whole = probe_of(c, batch_size=20, normalize_logits=normalize_logits)
    for batch_size in (1, 7, 8, 19, 500):
        probe = probe_of(c, batch_size=batch_size, normalize_logits=normalize_logits)
        assert probe.indices == whole.indices
        assert probe.loss(theta) == pytest.approx(whole.loss(theta), abs=1e-10)
        parts = sum(w * float(probe.batch_loss(i, theta)) for i, w in enumerate(probe.weights))
        assert parts == pytest.approx(whole.loss(theta), abs=1e-10)


def test_gradient_of_the_weighted_batches_is_that_of_the_whole(classifier: Classifier, theta: Theta) -> None:
    names = classifier.parameters(theta)

    def gradient(probe: Probe) -> list[torch.Tensor]:
        leaves = {k: theta[k].clone().requires_grad_() for k in names}
        losses = [w * probe.batch_loss(i, {**theta, **leaves}) for i, w in enumerate(probe.weights)]
        return list(torch.autograd.grad(torch.stack(losses).sum(), list(leaves.values())))

    with second_order():
        for a, b in zip(gradient(probe_of(classifier, batch_size=9)), gradient(probe_of(classifier)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_normalised_logits_are_blind_to_scale_and_shift(classifier: Classifier, theta: Theta) -> None:
    probe = probe_of(classifier, normalize_logits=True)
    z = probe.batch_logits(0, theta)
    torch.testing.assert_close(z.mean(dim=1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(8, dtype=torch.float64))
    loud = {**theta, "logit_scale": theta["logit_scale"] + 1, "head.bias": torch.full((3,), 5.0).double()}
    assert probe.loss(loud) == pytest.approx(probe.loss(theta), rel=1e-9)
    assert probe_of(classifier).loss(loud) != pytest.approx(probe_of(classifier).loss(theta), rel=1e-3)
    assert float(probe.batch_loss(0, theta)) == pytest.approx(float(F.cross_entropy(z, probe.batches[0][1])))


def test_examples_are_fixed_balanced_and_mixed(classifier: Classifier) -> None:
    probe = probe_of(classifier, size=18, batch_size=6)
    assert torch.bincount(toy().labels[list(probe.indices)]).tolist() == [6, 6, 6]
    assert all(len(labels.unique()) == 3 for _, labels in probe.batches)
    torch.manual_seed(5)
    assert probe_of(classifier, size=18, batch_size=6).indices == probe.indices
    assert probe_of(classifier, size=18, seed=1).indices != probe.indices


@pytest.mark.parametrize(("size", "n"), [(None, 23), (1024, 23), (5, 5)])
def test_size_is_at_most_the_data_set(size: int | None, n: int, classifier: Classifier) -> None:
    probe = probe_of(classifier, size=size)
    assert probe.n == len(probe) == n == sum(len(labels) for _, labels in probe.batches)
    assert sum(probe.weights) == pytest.approx(1)


def test_float32_and_float64_agree(classifier: Classifier, theta: Theta) -> None:
    single = {k: v.float() for k, v in theta.items()}
    probe = probe_of(classifier, dtype=torch.float32)
    assert probe.batches[0][0].dtype == torch.float32
    assert probe.loss(single) == pytest.approx(probe_of(classifier).loss(theta), rel=1e-5)


def test_made_in_inference_mode_it_still_gives_gradients(classifier: Classifier, theta: Theta) -> None:
    with torch.inference_mode():
        probe = probe_of(classifier)
        probe.loss(theta)
    leaf = theta["visual.conv1.weight"].clone().requires_grad_()
    (g,) = torch.autograd.grad(probe.batch_loss(0, {**theta, "visual.conv1.weight": leaf}), leaf)
    assert float(g.abs().max()) > 0


def test_loss_needs_no_gradient_memory(classifier: Classifier, theta: Theta) -> None:
    leaves = {k: v.clone().requires_grad_() for k, v in theta.items()}
    assert not probe_of(classifier).sample_losses(leaves).requires_grad


def test_deterministic_probe_passes_and_noise_is_found(
    classifier: Classifier, theta: Theta, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = probe_of(classifier)
    probe.check_deterministic(theta)
    clean = classifier.logits
    noise = iter([0.0, 1e-13, 0.0, 0.0])
    monkeypatch.setattr(classifier, "logits", lambda t, x: clean(t, x) * (1 + next(noise)))
    with pytest.raises(NonDeterministicProbe, match="two losses of the same batch differ"):
        probe.check_deterministic(theta)


@pytest.mark.parametrize("kwargs", [{"size": 0}, {"batch_size": 0}])
def test_no_examples_is_a_config_error(kwargs: dict[str, int], classifier: Classifier) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        probe_of(classifier, **kwargs)


def test_cut_into_other_batches_the_examples_and_the_loss_stay(classifier: Classifier, theta: Theta) -> None:
    probe = probe_of(classifier)
    assert probe.batch_size == 8 and [len(y) for _, y in probe.batches] == [8, 8, 4]
    small = probe.rebatched(3)
    assert [len(y) for _, y in small.batches] == [3, 3, 2, 3, 3, 2, 3, 1] and small.batch_size == 3
    assert sum(small.weights) == pytest.approx(1) and small.indices == probe.indices and len(small) == 20
    assert small.loss(theta) == pytest.approx(probe.loss(theta), rel=1e-12)
    same = probe.rebatched(8)
    assert all(
        torch.equal(a, b)
        for mine, his in zip(same.batches, probe.batches, strict=True)
        for a, b in zip(mine, his, strict=True)
    )
    assert torch.equal(probe.batch_labels(2), probe.batches[2][1])
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        probe.rebatched(0)
