"""ImageNet-C's weather corruptions of float images [H, W, 3] in [0, 1]; ``s`` is the severity minus one."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from sharpscope.clip.datasets.blurs import Array, gaussian, magnified, smeared
from sharpscope.errors import ConfigError, shown

__all__ = ["fog", "frost", "photographs", "snow", "spatter"]

_FROST: Final = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
_WATER: Final = np.array([175, 238, 238]) / 255
_MUD: Final = np.array([63, 42, 20]) / 255


def snow(x: Array, s: int, rng: np.random.Generator) -> Array:
    """Flakes over a greyer and brighter image; the flakes are magnified noise whose peaks are smeared downwards."""
    mean, std, zoom, floor, radius, sigma, own = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[s]
    flakes = magnified(rng.normal(mean, std, size=(*x.shape[:2], 1)), zoom)
    flakes = np.clip(np.where(flakes < floor, 0, flakes), 0, 1)
    flakes = smeared(flakes, int(radius), sigma, rng.uniform(-135, -45))
    grey = x @ np.array([0.299, 0.587, 0.114])
    pale = np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return own * x + (1 - own) * pale + flakes + flakes[::-1, ::-1]


def frost(x: Array, s: int, rng: np.random.Generator) -> Array:
    """Adds a random part of a photograph of frost, which is enlarged where it is smaller than the image."""
    own, ice = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[s]
    photos = photographs()
    photo = photos[rng.integers(len(photos))]
    height, width = x.shape[:2]
    scale = max(1, (height + 1) / photo.height, (width + 1) / photo.width)
    if scale > 1:
        size = (int(np.ceil(photo.width * scale)), int(np.ceil(photo.height * scale)))
        photo = photo.resize(size, Image.Resampling.BICUBIC)
    top, left = (int(rng.integers(room)) for room in (photo.height - height, photo.width - width))
    part = photo.crop((left, top, left + width, top + height))
    return own * x + ice * np.asarray(part, dtype=np.float64) / 255


def photographs() -> tuple[Image.Image, ...]:
    """The five photographs of frost from the package imagecorruptions, whose code is not imported.

    Raises ConfigError where the package or a photograph is missing.
    """
    found = importlib.util.find_spec("imagecorruptions")
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise ConfigError(
            "corruption 'frost': it needs the photographs of frost in the package imagecorruptions.\n"
            "Remedy: pip install --no-deps imagecorruptions (only its images are read), or leave frost out."
        )
    return _photographs(Path(folders[0]) / "frost")


@functools.cache
def _photographs(folder: Path) -> tuple[Image.Image, ...]:
    try:
        return tuple(Image.open(folder / name).convert("RGB") for name in _FROST)
    except OSError as e:
        raise ConfigError(
            f"corruption 'frost': {shown(folder, 200)} lacks a photograph of frost ({shown(e, 200)}).\n"
            "Remedy: pip install --no-deps --force-reinstall imagecorruptions."
        ) from None


def fog(x: Array, s: int, rng: np.random.Generator) -> Array:
    thickness, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[s]
    height, width = x.shape[:2]
    mist = _plasma(max(height, width), decay, rng)[:height, :width, None]
    top = x.max()
    return (x + thickness * mist) * top / (top + thickness)


def _plasma(size: int, decay: float, rng: np.random.Generator) -> Array:
    """Plasma fractal in [0, 1] by the diamond-square algorithm on a torus; its side is a power of two >= ``size``.

    At every doubling, each new point is the mean of its four neighbours plus uniform noise. The range of the noise then
    shrinks by the factor ``decay`` squared.
    """
    heights, noise = np.zeros((1, 1)), 1.0
    while (n := len(heights)) < size:
        below = heights + np.roll(heights, -1, axis=0)
        right = heights + np.roll(heights, -1, axis=1)
        jitter = rng.uniform(-noise, noise, size=(3, n, n))
        centres = (below + np.roll(below, -1, axis=1)) / 4 + jitter[0]
        finer = np.empty((2 * n, 2 * n))
        finer[::2, ::2], finer[1::2, 1::2] = heights, centres
        finer[::2, 1::2] = (right + centres + np.roll(centres, 1, axis=0)) / 4 + jitter[1]
        finer[1::2, ::2] = (below + centres + np.roll(centres, 1, axis=1)) / 4 + jitter[2]
        heights, noise = finer, noise / decay**2
    spread = np.ptp(heights)
    return (heights - heights.min()) / spread if spread > 0 else heights


def spatter(x: Array, s: int, rng: np.random.Generator) -> Array:
    """Drops of water (severities 1 to 3) or mud (4 and 5) where smoothed noise is high."""
    mean, std, sigma, floor, amount = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[s]
    liquid = gaussian(rng.normal(mean, std, size=x.shape[:2]), sigma)
    if s >= 3:
        mud = gaussian((liquid > floor).astype(np.float64), amount)
        mud = np.where(mud < 0.8, 0, mud)[..., None]
        return x * (1 - mud) + _MUD * mud
    drops = np.floor(np.clip(np.where(liquid < floor, 0, liquid), 0, 1) * 255)
    water = drops * _relief(_edges(drops, 50, 150))
    return x + _WATER * amount * water[..., None] / max(water.max(), 1)


def _relief(edges: NDArray[np.bool_]) -> Array:
    """The brightness of water, 0 to 255, from its distance to the rim of the drop, equalised and lit from a corner."""
    away = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(edges.shape, np.inf)
    levels = (_box(np.minimum(away, 20)) + 1e-9).astype(np.intp)  # a mean of nine ones may fall short of one
    counts = np.bincount(levels.ravel(), minlength=21)
    lowest = counts[levels.min()]
    if lowest < levels.size:  # histogram equalisation: the lowest level to 0, the highest to 255
        levels = np.round((np.cumsum(counts)[levels] - lowest) * 255 / (levels.size - lowest)).astype(np.intp)
    lit = ndimage.correlate(levels.astype(np.float64), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return _box(np.clip(lit, 0, 255))


def _box(x: Array) -> Array:
    return ndimage.uniform_filter(x, 3, mode="mirror")


def _edges(x: Array, low: float, high: float) -> NDArray[np.bool_]:
    """Canny's edges of an image ``x`` [H, W] with values 0 to 255.

    Edge pixels have a gradient (Sobel, L1 norm) above ``low`` that is a maximum across the edge; a connected piece of
    edge pixels is kept if the gradient exceeds ``high`` somewhere in it.
    """
    down, right = (ndimage.sobel(x, axis=a, mode="nearest") for a in (0, 1))
    size = np.abs(down) + np.abs(right)
    wide = np.pad(size, 1)
    steep, flat = np.abs(down) > np.tan(np.pi * 3 / 8) * np.abs(right), np.abs(down) < np.tan(np.pi / 8) * np.abs(right)
    same = down * right > 0  # the gradient points down and right, or up and left

    def beside(i: int, j: int) -> Array:
        return wide[1 + i : 1 + i + x.shape[0], 1 + j : 1 + j + x.shape[1]]

    across = [flat, steep, same, np.ones_like(same)]
    before = np.select(across, [beside(0, -1), beside(-1, 0), beside(-1, -1), beside(-1, 1)])
    behind = np.select(across, [beside(0, 1), beside(1, 0), beside(1, 1), beside(1, -1)])
    ridge = (size > low) & (size > before) & (size >= behind)
    pieces, _ = ndimage.label(ridge, structure=np.ones((3, 3)))
    strong = np.unique(pieces[ridge & (size > high)])
    return np.isin(pieces, strong[strong > 0])
