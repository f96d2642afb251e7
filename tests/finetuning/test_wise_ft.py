"""Laws of WiSE-FT's fine-tuning: it starts AT the zero-shot classifier, and moves image tower and head only."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sharpscope.clip.head import Classifier
from sharpscope.clip.model import ClipModel
from sharpscope.errors import ConfigError
from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.fit import Fitted, fit
from sharpscope.finetuning.method import Task
from sharpscope.finetuning.methods.wise_ft import WiseFT
from sharpscope.finetuning.pretrain import as_tensor
from sharpscope.finetuning.trainer import epochs
from sharpscope.miniworld import world as miniworld
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
    assert set(theta_1) == {*theta_0, HEAD}
    start = Classifier(model, "stored", *WORLD).attach(theta_0)
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
