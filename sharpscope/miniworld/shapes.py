"""The sixteen classes of the embedded world as signed distance functions: negative inside, positive outside.

Coordinates are those of the unit disc, x to the right and y DOWNWARD, as in an image. Distances are exact for discs and
polygons and a lower bound for unions; the renderer needs the zero level and the sign, and a distance near the outline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["SDF", "Array", "disc", "polygon"]

Array = NDArray[np.float32]
Points = Sequence[tuple[float, float]]


def polygon(x: Array, y: Array, vertices: Points) -> Array:
    """Signed distance to a closed polygon, given by its corners in order (Quilez' even-odd formulation)."""
    v = np.asarray(vertices, dtype=np.float32)
    squared, sign = np.full(x.shape, 1e9, np.float32), np.ones(x.shape, np.float32)
    for i in range(len(v)):
        (ex, ey), wx, wy = v[i - 1] - v[i], x - v[i, 0], y - v[i, 1]
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        bx, by = wx - ex * t, wy - ey * t
        squared = np.minimum(squared, bx * bx + by * by)
        below, above, left = y >= v[i, 1], y < v[i - 1, 1], ex * wy > ey * wx
        sign = np.where((below & above & left) | (~below & ~above & ~left), -sign, sign)
    return sign * np.sqrt(squared)


def disc(x: Array, y: Array, cx: float, cy: float, radius: float) -> Array:
    """Signed distance to a disc."""
    return np.hypot(x - cx, y - cy) - radius


def _band(x: Array, y: Array, cx: float, cy: float, radius: float, half_width: float) -> Array:
    return np.abs(np.hypot(x - cx, y - cy) - radius) - half_width


def _union(*distances: Array) -> Array:
    return reduce(np.minimum, distances)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _regular(corners: int, radius: float, inner: float | None = None) -> Points:
    """Corners of a regular polygon, the first on top; with ``inner``, of a star with that inner radius."""
    count = corners * (2 if inner else 1)
    radii = [inner if inner and i % 2 else radius for i in range(count)]
    angles = [-np.pi / 2 + 2 * np.pi * i / count for i in range(count)]
    return [(r * np.cos(a), r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _cross(x: Array, y: Array) -> Array:
    return _union(polygon(x, y, _box(-0.28, -0.9, 0.28, 0.9)), polygon(x, y, _box(-0.9, -0.28, 0.9, 0.28)))


def _heart(x: Array, y: Array) -> Array:
    tip = polygon(x, y, [(-0.77, -0.1), (-0.3, -0.25), (0.3, -0.25), (0.77, -0.1), (0, 0.9)])
    return _union(disc(x, y, -0.38, -0.3, 0.45), disc(x, y, 0.38, -0.3, 0.45), tip)


def _arrow(x: Array, y: Array) -> Array:
    shaft = polygon(x, y, _box(-0.95, -0.2, 0.2, 0.2))
    return _union(shaft, polygon(x, y, [(0.1, -0.65), (0.95, 0), (0.1, 0.65)]))


def _moon(x: Array, y: Array) -> Array:
    return np.maximum(disc(x, y, 0, 0, 0.85), -disc(x, y, 0.45, -0.1, 0.7))


def _flower(x: Array, y: Array) -> Array:
    angles = [2 * np.pi * i / 5 - np.pi / 2 for i in range(5)]
    petals = [disc(x, y, 0.55 * np.cos(a), 0.55 * np.sin(a), 0.33) for a in angles]
    return _union(disc(x, y, 0, 0, 0.35), *petals)


def _house(x: Array, y: Array) -> Array:
    return _union(polygon(x, y, _box(-0.6, -0.05, 0.6, 0.85)), polygon(x, y, [(-0.9, 0), (0, -0.9), (0.9, 0)]))


def _tree(x: Array, y: Array) -> Array:
    trunk = polygon(x, y, _box(-0.15, 0.3, 0.15, 0.95))
    low = polygon(x, y, [(-0.7, 0.5), (0, -0.35), (0.7, 0.5)])
    return _union(trunk, low, polygon(x, y, [(-0.5, 0), (0, -0.95), (0.5, 0)]))


def _fish(x: Array, y: Array) -> Array:
    body = np.hypot(x / 1.0 + 0.15, y / 0.6) * 0.6 - 0.42
    return _union(body, polygon(x, y, [(0.4, 0), (0.95, -0.5), (0.95, 0.5)]))


def _cup(x: Array, y: Array) -> Array:
    bowl = polygon(x, y, [(-0.75, -0.7), (0.4, -0.7), (0.25, 0.75), (-0.6, 0.75)])
    return _union(bowl, np.maximum(_band(x, y, 0.42, -0.05, 0.38, 0.11), -(x - 0.2)))


_BOLT: Final = [(0.25, -1), (-0.55, 0.15), (-0.05, 0.15), (-0.3, 1), (0.55, -0.25), (0.05, -0.25)]


def _key(x: Array, y: Array) -> Array:
    ring, shaft = _band(x, y, -0.55, 0, 0.28, 0.12), polygon(x, y, _box(-0.25, -0.1, 0.95, 0.1))
    return _union(ring, shaft, polygon(x, y, _box(0.45, 0, 0.6, 0.4)), polygon(x, y, _box(0.78, 0, 0.93, 0.4)))


SDF: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "circle": partial(disc, cx=0, cy=0, radius=0.8),
    "square": partial(polygon, vertices=_box(-0.7, -0.7, 0.7, 0.7)),
    "triangle": partial(polygon, vertices=_regular(3, 0.95)),
    "star": partial(polygon, vertices=_regular(5, 1.0, inner=0.42)),
    "cross": _cross,
    "ring": partial(_band, cx=0, cy=0, radius=0.65, half_width=0.22),
    "heart": _heart,
    "arrow": _arrow,
    "moon": _moon,
    "flower": _flower,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "cup": _cup,
    "lightning": partial(polygon, vertices=_BOLT),
    "key": _key,
}
"""Class name -> signed distance function of (x, y), in the order of the class labels."""
