"""ImageNet-C's corruptions against their formulas, on images whose answer is known and on a photograph."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from sharpscope.clip.datasets.blurs import smeared
from sharpscope.clip.datasets.corruptions import corruption
from sharpscope.clip.datasets.spec import check_spec
from sharpscope.config.specs import CORRUPTIONS
from sharpscope.errors import ConfigError

FIXED = {
    *("gaussian_blur", "defocus_blur", "zoom_blur"),
    *("brightness", "contrast", "saturate", "pixelate", "jpeg_compression"),
}
"""Those that draw no random number."""
GROWS = {
    # glass_blur trades reach for rounds; snow, frost and fog thickness for texture
    "glass_blur": ((1, 3, 5), (2, 4, 5)),
    "snow": ((1, 2, 4, 5), (3, 4)),
    "frost": ((1, 5),),
    "fog": ((1, 2), (1, 3, 5), (1, 4)),
    "saturate": ((1, 2), (3, 4, 5)),  # paler; redder
    "elastic_transform": ((1, 2),),  # large affine maps; then small ones with ripples, for which see below
}
"""Severities along which the distance grows, where these are not 1 to 5."""
SHADES = (20, 70, 120, 170, 220)


@pytest.fixture(autouse=True)
def frost_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package imagecorruptions whose photographs are of one shade each: SHADES, and white for the sixth."""
    folder = tmp_path / "imagecorruptions" / "frost"
    folder.mkdir(parents=True)
    (tmp_path / "imagecorruptions" / "__init__.py").write_text("raise AssertionError('nothing of it is imported')")
    for i, shade in enumerate((*SHADES, 255)):
        Image.new("RGB", (90, 60), (shade,) * 3).save(folder / f"frost{i + 1}.{'png' if i < 3 else 'jpg'}", quality=100)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    whole = Image.fromarray(load_sample_image("china.jpg"))
    return whole.crop((160, 60, 480, 380)).resize((112, 112))


def corrupted(name: str, severity: int, image: Image.Image, of: str = "a.png") -> NDArray[np.int64]:
    return np.asarray(corruption(name, severity)(image, of)).astype(np.int64)


def flat(shade: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    return Image.new("RGB", size, (shade,) * 3)


def places(size: int) -> Image.Image:
    """Every pixel's own place: red its column, green its row."""
    at = np.arange(size, dtype=np.uint8)
    return Image.fromarray(np.stack([*np.meshgrid(at, at), np.zeros((size, size), np.uint8)], axis=-1))


def test_all_nineteen() -> None:
    assert len(CORRUPTIONS) == len(set(CORRUPTIONS)) == 19


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_fixed_by_the_name(name: str, photograph: Image.Image) -> None:
    one, again, other = (corruption(name, 4)(photograph, of) for of in ("a.png", "a.png", "b.png"))
    assert (one.mode, one.size) == ("RGB", photograph.size)
    assert np.array_equal(one, again)
    assert np.array_equal(one, other) == (name in FIXED)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_grows_on_a_photograph(name: str, photograph: Image.Image) -> None:
    draws = 1 if name in FIXED else 8

    def off(severity: int) -> float:
        changed = [corrupted(name, severity, photograph, f"{i}.png") for i in range(draws)]
        return float(np.mean([np.abs(c - np.asarray(photograph).astype(int)).mean() for c in changed]))

    distance = {severity: off(severity) for severity in range(1, 6)}
    assert min(distance.values()) > 0
    for chain in GROWS.get(name, ((1, 2, 3, 4, 5),)):
        along = [distance[s] for s in chain]
        assert along == sorted(along), (chain, along)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (5, 9), (70, 41)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    for severity in range(1, 6):
        assert corruption(name, severity)(Image.fromarray(pixels), "a.png").size == size


def test_noise_contrast_and_colour_by_hand() -> None:
    noise = corrupted("gaussian_noise", 1, flat(128, (128, 128)))
    assert abs(noise.std() / 255 - 0.08) < 0.002
    two = Image.fromarray(np.array([[[0, 0, 0], [200, 200, 200]]], dtype=np.uint8))
    assert corrupted("contrast", 1, two)[0, :, 0].tolist() == [60, 140]  # 100 -+ .4 * 100
    red = Image.new("RGB", (4, 4), (100, 50, 50))
    assert corrupted("brightness", 2, red)[0, 0].tolist() == [151, 75, 75]  # V .392 + .2; red stays twice the others
    assert np.abs(corrupted("saturate", 2, red)[0, 0] - [100, 95, 95]).max() <= 1  # S .5 -> .05


# ---------------------------------------------------------------------- blurs
@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
def test_blurs_leave_flat_images_alone(name: str) -> None:
    for severity in range(1, 6):
        assert np.abs(corrupted(name, severity, flat(100)) - 100).max() <= 1


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "glass_blur", "motion_blur"])
def test_blurs_keep_the_mean(name: str, photograph: Image.Image) -> None:
    framed = Image.new("RGB", (232, 232), (128, 128, 128))  # so that nothing is lost at a border
    framed.paste(photograph, (60, 60))
    for severity in range(1, 6):
        drift = (corrupted(name, severity, framed) - np.asarray(framed).astype(int)).mean()
        assert abs(drift + 0.4) < 0.5  # bytes are cut off, not rounded


def test_motion_is_half_a_gaussian() -> None:
    point = np.zeros((61, 61))
    point[30, 30] = 1
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    for angle, line in (
        (0, np.s_[30, 10:31]),
        (90, np.s_[10:31, 30]),
        (-90, np.s_[30:51, 30]),
        (180, np.s_[30, 30:51]),
    ):
        out = smeared(point, 10, 3, angle)
        expected = np.zeros_like(point)
        expected[line] = weights if angle in (-90, 180) else weights[::-1]
        assert np.allclose(out, expected / weights.sum(), atol=1e-15)
    slanted = smeared(point, 10, 3, 45)
    assert np.allclose(np.diag(slanted).sum(), 1)


@pytest.mark.parametrize(("severity", "reach", "rounds"), [(1, 1, 2), (2, 2, 1), (3, 2, 3), (4, 3, 2), (5, 4, 2)])
def test_glass_moves_pixels_a_little(severity: int, reach: int, rounds: int) -> None:
    image = places(200)
    moved = np.abs(corrupted("glass_blur", severity, image) - np.asarray(image).astype(int))[..., :2]
    # a source is a chain of steps of at most `reach`, each followed by another with probability one half
    assert 0.2 < moved.mean() < reach * rounds
    assert moved.max() < 15 * reach * rounds


@pytest.mark.parametrize("severity", range(1, 6))
def test_elastic_moves_are_bounded(severity: int) -> None:
    image, size = places(200), 200
    strength, sigma, jitter = np.array(
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[severity - 1]
    ) * np.array([244 * (size / 224) ** 2, 244 * size / 224, 244 * size / 224])
    moved = np.abs(corrupted("elastic_transform", severity, image) - np.asarray(image).astype(int))[..., :2]
    assert moved.max() > 1
    if severity >= 3:
        # a corner is sum w_i p_i of the three points with sum |w_i| = 4; six deviations of smoothed uniform noise
        ripple = 6 * strength / np.sqrt(3) / (2 * np.sqrt(np.pi) * sigma)
        assert moved.max() < 4 * jitter * 1.3 + ripple
    assert np.abs(corrupted("elastic_transform", severity, flat(100)) - 100).max() <= 1


@pytest.mark.parametrize(("severity", "share"), [(3, 0.05), (4, 0.07), (5, 0.12)])
def test_elastic_ripples_are_as_high_as_smoothed_noise(severity: int, share: float) -> None:
    size, inner = 224, np.s_[30:-30, 30:-30]
    at = np.asarray(places(size)).astype(float)[inner].reshape(-1, 3)[:, :2]
    came = corrupted("elastic_transform", severity, places(size))[inner].reshape(-1, 3)[:, :2]
    known = np.column_stack([at, np.ones(len(at))])
    ripples = came - known @ np.linalg.lstsq(known, came, rcond=None)[0]
    height = share * 244 / np.sqrt(3) / (2 * np.sqrt(np.pi) * 0.01 * 244)  # of uniform noise, smoothed by sigma
    assert ripples.std() == pytest.approx(np.hypot(height, 1 / np.sqrt(12)), rel=0.1)  # and of bytes cut off


@pytest.mark.parametrize("severity", [2, 5])
def test_elastic_moves_grow_with_the_image(severity: int) -> None:
    def moved(size: int) -> float:
        image = places(size)
        changed = [corrupted("elastic_transform", severity, image, f"{i}.png") for i in range(24)]
        return float(np.mean([np.abs(c - np.asarray(image).astype(int))[..., :2].mean() for c in changed]))

    assert moved(240) / moved(80) == pytest.approx(3, rel=0.2)


# ---------------------------------------------------------------------- weather
@pytest.mark.parametrize(("severity", "thickness"), [(1, 1.5), (2, 2), (3, 2.5), (4, 2.5), (5, 3)])
def test_fog_on_white_and_black(severity: int, thickness: float) -> None:
    white = corrupted("fog", severity, flat(255, (64, 64)))  # (1 + c m) / (1 + c), m from 0 to 1
    assert white.max() == 255
    assert white.min() == int(255 / (1 + thickness))
    assert corrupted("fog", severity, flat(0)).max() == 0


@pytest.mark.parametrize(("severity", "own"), [(1, 0.8), (2, 0.7), (3, 0.7), (4, 0.65), (5, 0.55)])
def test_snow_on_black(severity: int, own: float) -> None:
    snow = corrupted("snow", severity, flat(0))
    assert snow.min() == int((1 - own) * 0.5 * 255 + 1e-9)  # where no flake is
    assert snow.max() > 100
    assert np.array_equal(snow, snow[::-1, ::-1])
    assert np.array_equal(snow[..., 0], snow[..., 2])


def test_spatter_on_black_and_white() -> None:
    for severity, amount in ((1, 0.6), (2, 0.6), (3, 0.5)):
        water = corrupted("spatter", severity, flat(0, (224, 224)))
        assert water.max(axis=(0, 1)).tolist() == [int(amount * c + 1e-9) for c in (175, 238, 238)]
        assert (water.max(axis=-1) == 0).mean() > 0.5
    for severity in (4, 5):
        mud = corrupted("spatter", severity, flat(255, (224, 224)))
        assert np.abs(mud.min(axis=(0, 1)) - [63, 42, 20]).max() <= 1
        assert 0.5 < (mud == 255).mean() < 0.95


@pytest.mark.parametrize(("severity", "ice"), [(1, 0.4), (2, 0.6), (3, 0.7), (4, 0.7), (5, 0.75)])
def test_frost_is_one_of_five_photographs(severity: int, ice: float) -> None:
    for size in ((40, 30), (130, 100)):  # smaller and larger than the photographs
        seen = {tuple(np.unique(corrupted("frost", severity, flat(0, size), f"{i}.png"))) for i in range(40)}
        assert all(len(shades) == 1 for shades in seen)
        assert np.allclose(sorted(s[0] for s in seen), [int(ice * s + 1e-9) for s in SHADES], atol=1)


def test_frost_needs_its_photographs(frost_photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (frost_photographs / "frost2.png").rename(frost_photographs / "other.png")
    with pytest.raises(ConfigError, match="lacks a photograph of frost"):
        check_spec("folder:x+frost@1")
    (frost_photographs / "other.png").rename(frost_photographs / "frost2.png")
    assert check_spec("folder:x+frost@1") == ("folder", "x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="in the package imagecorruptions"):
        check_spec("folder:x+frost@1")
