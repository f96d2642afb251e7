"""Laws of WiSE-FT's fine-tuning: it starts AT the zero-shot classifier, and moves image tower and head only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.clip.pair import load_pair
from sharpscope.errors import ConfigError
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import Fitted, fit
from sharpscope.finetuning.method import Batch, Task
from sharpscope.finetuning.methods.l2_sp import L2SP
from sharpscope.finetuning.methods.linear_probe import LinearProbe
from sharpscope.finetuning.methods.lp_ft import LpFT
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.pretrain import as_tensor
from sharpscope.finetuning.trainer import epochs
from sharpscope.miniworld import world as miniworld
from sharpscope.weights.checkpoint import write_checkpoint
from sharpscope.weights.theta import Theta

HEAD = "head.weight"
WORLD = (miniworld.CLASSES, miniworld.TEMPLATES)
TINY = WiseFT(lr=1e-3, epochs=2, batch_size=16, warmup=0.0)


def wise_ft(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor], config: WiseFT, seed: int = 0
) -> Fitted:
    return fit(config, Task(model, theta_0, *WORLD, len(data[0]), seed), TensorExamples(*data))


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return ClipModel.load("mini")


@pytest.fixture(scope="module")
def theta_0(model: ClipModel) -> Theta:
    return model.init(3)


@pytest.fixture(scope="module")
def data(model: ClipModel) -> tuple[torch.Tensor, torch.Tensor]:
    sample = miniworld.make("photo", 40, 1)
    return as_tensor(sample.images, model), torch.from_numpy(sample.labels)


@pytest.mark.parametrize("baked", [False, True])
def test_step_0_is_the_zero_shot_loss(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor], baked: bool
) -> None:
    images, labels = data
    config = dataclasses.replace(TINY, scale_baked=baked)
    fitted = wise_ft(model, theta_0, data, config, seed=5)
    batch = next(epochs(40, 16, 2, 5))
    # by hand, without the package's head: mean of the unit text features of the templates, made a unit vector
    rows = []
    for name in miniworld.CLASSES:
        texts = model.tokenize([t.replace("{}", name) for t in miniworld.TEMPLATES])
        rows.append(F.normalize(F.normalize(model.encode_text(theta_0, texts, normalize=False), dim=1).mean(0), dim=0))
    features = F.normalize(model.encode_image(theta_0, images[batch], normalize=False), dim=1)
    by_hand = F.cross_entropy(theta_0["logit_scale"].exp() * features @ torch.stack(rows).T, labels[batch])
    assert fitted.losses[0] == pytest.approx(float(by_hand), rel=1e-5)
    assert len(fitted.losses) == 4


def test_the_heads_bias_is_trained_saved_read_back_and_interpolated(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    fitted = wise_ft(model, theta_0, data, TINY)
    bias = fitted.theta["head.bias"]
    assert bias.shape == (16,) and bool((bias != 0).all())
    assert torch.equal(fitted.prepared.theta["head.bias"], torch.zeros(16))
    write_checkpoint(tmp_path / "zeroshot.safetensors", theta_0)
    write_checkpoint(tmp_path / "finetuned.safetensors", *fitted.exported)
    pair = load_pair(tmp_path / "zeroshot.safetensors", tmp_path / "finetuned.safetensors", model="mini")
    for alpha in (0.0, 0.25, 1.0):
        theta = pair.path().at(alpha)
        torch.testing.assert_close(theta["head.bias"], alpha * bias)
        features = model.encode_image(theta, data[0][:3])
        logits = features @ theta["head.weight"].T + theta["head.bias"]
        torch.testing.assert_close(pair.classifier.logits(theta, data[0][:3]), logits)
    assert "head.bias" not in wise_ft(model, theta_0, data, dataclasses.replace(TINY, head_bias=False)).theta
    again = wise_ft(
        model, {**theta_0, HEAD: fitted.theta[HEAD], "head.bias": bias}, data, dataclasses.replace(TINY, epochs=0)
    )
    assert torch.equal(again.theta["head.bias"], bias)  # a bias that comes along is the start


@pytest.mark.parametrize("baked", [False, True])
@pytest.mark.parametrize("told", [None, False, True])
def test_a_head_with_a_bias_that_comes_along_is_the_same_classifier_at_the_start(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor], baked: bool, told: bool | None
) -> None:
    """The logit scale multiplies the head's weights and never its bias, wherever it is kept (None: as asked for)."""
    draw = torch.Generator().manual_seed(0)
    head, bias = torch.randn(16, 64, generator=draw), torch.randn(16, generator=draw)
    task = Task(model, {**theta_0, HEAD: head, "head.bias": bias}, *WORLD, 40, head_baked=told)
    prepared = dataclasses.replace(TINY, scale_baked=baked).prepare(task)
    scale = 1.0 if (baked if told is None else told) else theta_0["logit_scale"].exp()
    expected = scale * model.encode_image(theta_0, data[0][:3]) @ head.T + bias
    torch.testing.assert_close(prepared.logits(prepared.theta, data[0][:3]), expected, rtol=1e-4, atol=1e-4)


def test_label_smoothing_is_the_mean_over_all_classes(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """(1 - s) CE + s times the mean over classes of -log p: wise-ft@58b7a4b src/models/utils.py:87-100."""
    images, labels = data
    batch = Batch(images[:5], labels[:5])
    task = Task(model, theta_0, *WORLD, 40)
    logits = Classifier(model, "zeroshot", *WORLD)
    theta = logits.attach(theta_0)
    log_p = logits.logits(theta, images[:5]).log_softmax(1)
    expected = 0.8 * F.nll_loss(log_p, labels[:5]) - 0.2 * log_p.mean()
    for method in (WiseFT, LinearProbe, LpFT, L2SP):
        prepared = method(label_smoothing=0.2, batch_size=8, steps=2).prepare(task)
        torch.testing.assert_close(prepared.losses(prepared.theta, batch).total, expected)
    with pytest.raises(ConfigError, match="label_smoothing: needs a share"):
        WiseFT(label_smoothing=1.0, batch_size=8).prepare(task)


@pytest.mark.parametrize(("scope", "prefixes"), [("tower", ("visual.", "head.")), ("head", ("head.",))])
def test_only_image_tower_and_head_move(
    model: ClipModel,
    theta_0: Theta,
    data: tuple[torch.Tensor, torch.Tensor],
    scope: str,
    prefixes: tuple[str, ...],
) -> None:
    config = WiseFT(lr=1e-3, epochs=1, batch_size=20, warmup=0.0, scope=scope)  # type: ignore[arg-type]
    theta_1 = wise_ft(model, theta_0, data, config).theta
    assert set(theta_1) == {*theta_0, HEAD, "head.bias"}
    start = Classifier(model, "stored", *WORLD, bias=True).attach(theta_0)
    for name in theta_1:
        moved = not torch.equal(theta_1[name], start[name])
        assert moved == name.startswith(prefixes), name


def test_same_seed_same_bits(model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    config = WiseFT(lr=1e-3, epochs=1, batch_size=8, warmup=0.0)
    first, again, other = (wise_ft(model, theta_0, data, config, seed).theta for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first[HEAD], other[HEAD])


def test_a_head_that_comes_along_is_the_start(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    theta = {**theta_0, HEAD: torch.eye(16, 64)}
    fitted = wise_ft(model, theta, data, WiseFT(epochs=0, batch_size=8))
    assert torch.equal(fitted.theta[HEAD], theta[HEAD])


def test_a_batch_larger_than_the_data_is_refused(
    model: ClipModel, theta_0: Theta, data: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with pytest.raises(ConfigError, match="batch size 512 does not fit 40"):
        wise_ft(model, theta_0, data, WiseFT())
