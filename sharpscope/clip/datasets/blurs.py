"""ImageNet-C's blurs and elastic transform of float images [H, W, 3] in [0, 1]; ``s`` is the severity minus one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = [
    "Array",
    "defocus_blur",
    "elastic_transform",
    "gaussian",
    "gaussian_blur",
    "glass_blur",
    "magnified",
    "motion_blur",
    "smeared",
    "zoom_blur",
]

Array = NDArray[np.float64]


def gaussian_blur(x: Array, s: int, rng: np.random.Generator) -> Array:
    return gaussian(x, (1, 2, 3, 4, 6)[s])


def gaussian(x: Array, sigma: float) -> Array:
    """``x`` [H, W, ...] smoothed over its first two axes, the border repeated."""
    return ndimage.gaussian_filter(x, sigma, axes=(0, 1), mode="nearest", truncate=4)


def defocus_blur(x: Array, s: int, rng: np.random.Generator) -> Array:
    radius, alias = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[s]
    reach = max(8, radius) + 2
    at = np.arange(-reach, reach + 1)
    disk = (at[:, None] ** 2 + at[None, :] ** 2 <= radius**2).astype(np.float64)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), alias)
    return np.stack([ndimage.convolve(x[..., c], kernel, mode="mirror") for c in range(3)], axis=-1)


def glass_blur(x: Array, s: int, rng: np.random.Generator) -> Array:
    """Smooths the image, shuffles its pixels locally, and smooths it again.

    In the shuffle each pixel, from the last to the first, takes the value of a random pixel nearby. The authors' code
    was meant to swap the two pixels, but copies one because of numpy's views; the released images contain the copies.
    """
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[s]
    height, width = x.shape[:2]
    at = np.arange(height * width).reshape(height, width)
    here = at[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1][::-1, ::-1].ravel()
    source = at.ravel().tolist()  # plain integers: the shuffle is sequential, and numpy's scalars are slow
    for _ in range(rounds):
        down, right = rng.integers(-reach, reach, size=(2, len(here)))
        for i, j in zip(here.tolist(), (here + down * width + right).tolist(), strict=True):
            source[i] = source[j]
    smooth = np.floor(gaussian(x, sigma) * 255 + 1e-9) / 255  # bytes, as in the authors' code; 6.9999... is 7
    return gaussian(smooth.reshape(-1, 3)[source].reshape(x.shape), sigma)


def motion_blur(x: Array, s: int, rng: np.random.Generator) -> Array:
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[s]
    return smeared(x, radius, sigma, rng.uniform(-45, 45))


def smeared(x: Array, radius: int, sigma: float, angle: float) -> Array:
    """``x`` [H, W, ...] blurred in one direction, as by ImageMagick's motion blur; the border is repeated.

    The kernel is half a Gaussian of standard deviation ``sigma`` pixels over 2 ``radius`` + 1 pixels along ``angle``
    (degrees, 0 is right, 90 is down).
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    turn = np.deg2rad(angle)
    down, right = (np.ceil(steps * part - 0.5).astype(int) for part in (np.sin(turn), np.cos(turn)))
    height, width = x.shape[:2]
    reach = 2 * radius
    wide = np.pad(x, [(reach, reach)] * 2 + [(0, 0)] * (x.ndim - 2), mode="edge")
    out = np.zeros_like(x)
    for weight, i, j in zip(weights / weights.sum(), down + reach, right + reach, strict=True):
        out += weight * wide[i : i + height, j : j + width]
    return out


def zoom_blur(x: Array, s: int, rng: np.random.Generator) -> Array:
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[s]
    factors = np.arange(1, stop, step)
    return (x + sum(magnified(x, f) for f in factors)) / (len(factors) + 1)


def magnified(x: Array, factor: float) -> Array:
    """The centre of ``x`` [H, W, C], magnified by ``factor`` to the size of ``x``."""
    height, width = x.shape[:2]
    crop = [int(np.ceil(n / factor)) for n in (height, width)]
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    part = x[top : top + crop[0], left : left + crop[1]]
    big = ndimage.zoom(part, (factor, factor, 1), order=1)
    top, left = (big.shape[0] - height) // 2, (big.shape[1] - width) // 2
    return big[top : top + height, left : left + width]


def elastic_transform(x: Array, s: int, rng: np.random.Generator) -> Array:
    """A random affine map, which moves three points around the centre, followed by a smooth random displacement field.

    All lengths are proportional to the image's shorter side.
    """
    share = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[s]
    height, width = x.shape[:2]
    size = min(height, width) / 224
    strength, sigma, jitter = (c * 244 * size for c in share)  # 244 is the authors' constant for 224 pixels
    strength *= size  # noise smoothed over sigma falls off as 1 / sigma
    middle, arm = np.array([height // 2, width // 2]), min(height, width) // 3
    old = middle + arm * np.array([[1, 1], [-1, 1], [-1, -1]])
    new = old + rng.uniform(-jitter, jitter, size=old.shape)
    grid = np.indices((height, width)).astype(np.float64)
    # the affine map that takes the new points to the old ones says where each pixel comes from
    affine = np.linalg.solve(np.column_stack([new, np.ones(3)]), old)
    moved = _sampled(x, np.einsum("dhw,de->ehw", grid, affine[:2]) + affine[2][:, None, None], "mirror")
    field = rng.uniform(-1, 1, size=grid.shape)
    field = ndimage.gaussian_filter(field, sigma, axes=(1, 2), mode="reflect", truncate=3) * strength
    return _sampled(moved, grid + field, "reflect")


def _sampled(x: Array, at: Array, mode: str) -> Array:
    """``x`` [H, W, C] at the points ``at`` [2, H, W], bilinear."""
    return np.stack([ndimage.map_coordinates(x[..., c], at, order=1, mode=mode) for c in range(x.shape[-1])], axis=-1)
