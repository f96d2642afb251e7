"""ImageNet-C's corruptions, computed when images are read; the noise is seeded by the image's name and repeatable."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image

from sharpscope.clip.datasets import blurs, weather
from sharpscope.clip.datasets.blurs import Array
from sharpscope.config.specs import CORRUPTIONS
from sharpscope.seeds import derive

__all__ = ["corruption"]


def corruption(name: str, severity: int) -> Callable[[Image.Image, str], Image.Image]:
    """Edit of an RGB image: corruption ``name`` of :data:`CORRUPTIONS` at ``severity`` 1 ... 5.

    Constants and formulas are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261) and their script for 224 x 224
    images; as there, corruptions follow resizing and cropping. Lengths are in pixels whatever the image's size, except
    that those of elastic_transform grow with the shorter side and that fog's fractal covers the image. As in the
    paper's code, a higher severity need not change pixels more: elastic_transform moves pixels most at 1 and 2,
    saturate removes colour at 1 and 2 and adds it from 3 on, and spatter is water up to 3 and mud above.

    Differences from the paper's code: random numbers come from a generator that is seeded by the image's name, instead
    of a global one. Results are not compressed to a JPEG of quality 85. defocus_blur mirrors the image at its borders,
    and the Gaussian that blurs its disk is not cut off at 3 or 5 pixels. motion_blur and snow use ImageMagick's
    documented kernel, and spatter uses Canny's edges and exact distances, without the rounding of ImageMagick and
    OpenCV. frost reads the photographs in the package imagecorruptions and enlarges them where they are smaller than
    the image. The results are therefore similar to the paper's, but not bit for bit the same.

    Raises ConfigError for frost where that package is not installed; ValueError for other names or severities.
    """
    if name not in CORRUPTIONS or not 1 <= severity <= 5:
        raise ValueError(f"corruption: {name}@{severity}")
    if name == "frost":
        weather.photographs()  # checked now, because a later error would count images as unreadable
    return functools.partial(_corrupted, kind=name, severity=severity)


def _corrupted(image: Image.Image, name: str, kind: str, severity: int) -> Image.Image:
    if kind in _ON_IMAGES:
        return _ON_IMAGES[kind](image, severity - 1)
    rng = np.random.default_rng(derive(0, "corruption", kind, severity, name))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    out = _ON_ARRAYS[kind](pixels, severity - 1, rng)
    return Image.fromarray((np.clip(out, 0, 1) * 255).astype(np.uint8))


# ---------------------------------------------------------------------- noise
def _gaussian_noise(x: Array, s: int, rng: np.random.Generator) -> Array:
    return x + rng.normal(size=x.shape) * (0.08, 0.12, 0.18, 0.26, 0.38)[s]


def _shot_noise(x: Array, s: int, rng: np.random.Generator) -> Array:
    c = (60, 25, 12, 5, 3)[s]
    return rng.poisson(x * c) / c


def _impulse_noise(x: Array, s: int, rng: np.random.Generator) -> Array:
    amount = (0.03, 0.06, 0.09, 0.17, 0.27)[s]
    flipped, salt = rng.random(x.shape) < amount, rng.random(x.shape) < 0.5
    return np.where(flipped, salt.astype(np.float64), x)


def _speckle_noise(x: Array, s: int, rng: np.random.Generator) -> Array:
    return x + x * rng.normal(size=x.shape) * (0.15, 0.2, 0.35, 0.45, 0.6)[s]


# ---------------------------------------------------------------------- digital
def _contrast(x: Array, s: int, rng: np.random.Generator) -> Array:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * (0.4, 0.3, 0.2, 0.1, 0.05)[s] + mean


def _brightness(x: Array, s: int, rng: np.random.Generator) -> Array:
    value = x.max(axis=-1, keepdims=True)
    raised = np.minimum(value + (0.1, 0.2, 0.3, 0.4, 0.5)[s], 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)  # V of HSV; hue and saturation stay


def _saturate(x: Array, s: int, rng: np.random.Generator) -> Array:
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (2, 0.0), (5, 0.1), (20, 0.2))[s]
    value, low = x.max(axis=-1, keepdims=True), x.min(axis=-1, keepdims=True)
    spread = value - low
    old = np.where(value > 0, spread / np.where(value > 0, value, 1), 0)
    new = np.clip(old * factor + offset, 0, 1)
    # S of HSV: channel = V (1 - S d), d in [0, 1] the channel's share of the spread; grey has hue 0, which is red
    grey = np.array([0.0, 1.0, 1.0])
    share = np.where(spread > 0, (value - x) / np.where(spread > 0, spread, 1), grey)
    return value * (1 - new * share)


def _pixelate(image: Image.Image, s: int) -> Image.Image:
    c = (0.6, 0.5, 0.4, 0.3, 0.25)[s]
    small = image.resize((max(1, int(image.width * c)), max(1, int(image.height * c))), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.BOX)


def _jpeg_compression(image: Image.Image, s: int) -> Image.Image:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=(25, 18, 15, 10, 7)[s])
    return Image.open(file).convert("RGB")


_ON_ARRAYS: Final[dict[str, Callable[[Array, int, np.random.Generator], Array]]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "speckle_noise": _speckle_noise,
    "gaussian_blur": blurs.gaussian_blur,
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "spatter": weather.spatter,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturate": _saturate,
    "elastic_transform": blurs.elastic_transform,
}
_ON_IMAGES: Final[dict[str, Callable[[Image.Image, int], Image.Image]]] = {
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
