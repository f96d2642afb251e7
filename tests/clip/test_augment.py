"""The augmentation of training images: torchvision's operations, a function of the image's own seed alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as TF  # type: ignore[import-untyped]  # noqa: N812

from sharpscope.clip.datasets.augment import OPEN_CLIP, Augmentation
from sharpscope.clip.datasets.spec import load_dataset
from sharpscope.errors import ConfigError

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
SIZE = (16, 16)
GEOMETRY = (v2.Resize(16), v2.CenterCrop(16))


def made(augment: Augmentation, seed: int, image: Image.Image = NOISE) -> np.ndarray:
    return np.asarray(augment(image, SIZE, GEOMETRY, seed))


def test_a_seed_is_a_picture_and_the_global_random_state_has_no_part_in_it() -> None:
    augment = Augmentation((0.08, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1))
    before = torch.random.get_rng_state()
    first = made(augment, 3)
    torch.manual_seed(99)
    assert np.array_equal(made(augment, 3), first) and not np.array_equal(made(augment, 4), first)
    torch.random.set_rng_state(before)
    made(augment, 5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_crop_an_image_has_the_models_geometry() -> None:
    plain = np.asarray(GEOMETRY[1](GEOMETRY[0](NOISE)))
    assert np.array_equal(made(Augmentation(None), 1), plain)
    always = made(Augmentation(None, flip=1.0), 1)
    assert np.array_equal(always, plain[:, ::-1]) and np.array_equal(made(Augmentation(None, flip=0.0), 1), plain)
    half = [np.array_equal(made(Augmentation(None, flip=0.5), s), plain) for s in range(200)]
    assert abs(sum(half) / 200 - 0.5) < 4 * (0.25 / 200) ** 0.5


def test_the_share_of_the_area_is_the_one_asked_for() -> None:
    """Seen in a picture whose red is its column and green its row: the box can be read off."""
    ramp = np.zeros((200, 200, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(200)[None, :], np.arange(200)[:, None]
    shares = []
    for seed in range(60):
        got = made(Augmentation((0.08, 0.2)), seed, Image.fromarray(ramp)).astype(float)
        width, height = (np.ptp(got[..., c]) * 16 / 15 for c in (0, 1))
        shares.append(width * height / 40_000)
    assert 0.05 < min(shares) < 0.11 and 0.17 < max(shares) < 0.24


@pytest.mark.parametrize(
    ("at", "change"),
    [(0, TF.adjust_brightness), (1, TF.adjust_contrast), (2, TF.adjust_saturation), (3, TF.adjust_hue)],
)
def test_each_strength_is_torchvisions_operation_within_its_range(at: int, change: Callable[..., Any]) -> None:
    strengths = [0.0] * 4
    strengths[at] = 0.3
    low, high = (-0.3, 0.3) if at == 3 else (0.7, 1.3)
    plain = GEOMETRY[1](GEOMETRY[0](NOISE))
    table = {np.asarray(change(plain, f)).tobytes(): f for f in np.linspace(low, high, 1201)}
    pictures = [made(Augmentation(None, 0.0, tuple(strengths)), seed) for seed in range(12)]
    assert len({p.tobytes() for p in pictures}) > 8
    for picture in pictures:  # as near to one of the table's as its neighbours are to each other
        distance = min(np.abs(picture.astype(int) - np.frombuffer(k, np.uint8).reshape(16, 16, 3)).max() for k in table)
        assert distance <= 1


def test_colours_come_in_every_order() -> None:
    """Contrast and brightness do not commute: fixed factors in two orders are two pictures."""
    extreme = Augmentation(None, 0.0, (0.9, 0.9, 0.0, 0.0))
    plain = GEOMETRY[1](GEOMETRY[0](NOISE))
    orders = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(4, generator=generator).tolist()
        b, c = (0.1 + 1.8 * x for x in torch.rand(4, generator=generator, dtype=torch.float64).tolist()[:2])
        first = order.index(0) < order.index(1)
        one = TF.adjust_contrast(TF.adjust_brightness(plain, b), c)
        other = TF.adjust_brightness(TF.adjust_contrast(plain, c), b)
        assert np.array_equal(made(extreme, seed), np.asarray(one if first else other))
        orders.add(first)
    assert orders == {True, False}


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"crop": (0.0, 1.0)}, "crop: needs two shares"), ({"crop": (0.9, 0.5)}, "crop: needs two shares"),
        ({"crop": (0.5,)}, "crop: needs two shares"), ({"flip": 1.5}, "flip: needs a probability"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "the last at most 0.5"), ({"jitter": (-0.1, 0, 0, 0)}, "jitter: needs four"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(bad: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Augmentation(**bad)


def test_a_picture_depends_on_the_image_and_the_seed_whatever_the_batch(
    image_folder: Callable[..., Path], tiny_model: Any
) -> None:
    spec = f"folder:{image_folder({'cat': 3, 'dog': 2})}"
    augment = Augmentation((0.2, 0.6), 0.5, (0.4, 0.4, 0.4, 0.1))
    data = load_dataset(spec, model=tiny_model, augment=augment)
    assert data.facts["augmented"] and not load_dataset(spec, model=tiny_model).facts["augmented"]
    whole, _ = data.take(range(5), 7)
    for places in ([4, 1], [2], [3, 0, 1]):
        assert torch.equal(data.take(places, 7)[0], whole[places])
    assert not torch.equal(data.take(range(5), 8)[0], whole)
    assert not load_dataset(spec, model=tiny_model, augment=Augmentation(None)).facts["augmented"]
    again = load_dataset(spec, model=tiny_model, augment=True).take([2], 7)[0]
    assert torch.equal(again, load_dataset(spec, model=tiny_model, augment=OPEN_CLIP).take([2], 7)[0])
