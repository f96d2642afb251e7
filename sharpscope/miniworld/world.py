"""The embedded world: a miniature DomainNet, rendered from a seed with numpy, and the CLIPs that were trained on it.

Sixteen classes (``CLASSES``) in six styles (``STYLES``), and four natural shifts of the style ``photo`` (``SHIFTS``)
that no model was trained on; 32 x 32 pixels, eight colours, a caption for every image. Nothing is stored but weights:
an image is a function of (seed, domain), a checkpoint of (recipe, seed); ``analyses/world.py`` trains them all again.

The world is DESIGNED so that interpolating a fine-tuned model helps for one pair and hurts for another (45 % of the
captions name the class's look-alike, and photo is the fine-tuning style): a demonstration, not evidence about CLIP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sharpscope.config.specs import MINI_SHIFTS as SHIFTS
from sharpscope.config.specs import MINI_STYLES as STYLES
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.miniworld.shapes import SDF, Array
from sharpscope.miniworld.shipped import (
    checkpoint_names,
    checkpoint_path,
    config_path,
    manifest,
    pairs_table,
    tokenizer_path,
)

__all__ = [
    "CAPTIONS",
    "CLASSES",
    "COLOURS",
    "DOMAINS",
    "IMAGE_SIZE",
    "LOOKALIKES",
    "OOD_GROUPS",
    "SEEDS",
    "SHIFTS",
    "STYLES",
    "STYLE_WORDS",
    "TEMPLATES",
    "Sample",
    "captions",
    "checkpoint_names",
    "checkpoint_path",
    "config_path",
    "labels",
    "make",
    "manifest",
    "pairs_table",
    "render",
    "tokenizer_path",
]

IMAGE_SIZE: Final = 32
CLASSES: Final[tuple[str, ...]] = tuple(SDF)
DOMAINS: Final[tuple[str, ...]] = STYLES + SHIFTS
OOD_GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "styles": tuple(style for style in STYLES if style != "photo"),
    "natural": SHIFTS,
}
"""Every domain but photo, which is ID, in two named groups: other styles, and natural shifts of photo."""
SEEDS: Final = {"train": 777, "select": 1_000_000, "test": 3_000_000}
"""Seed of each split's images: fine-tuning, choosing an alpha, reporting. (Pretraining draws from its own seed.)"""
COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.85, 0.15, 0.15),
    "green": (0.15, 0.65, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.92, 0.82, 0.15),
    "purple": (0.55, 0.2, 0.7),
    "orange": (0.95, 0.55, 0.1),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.5, 0.32, 0.15),
}

TEMPLATES: Final = (
    "a photo of a {}",
    "a {}",
    "a sketch of a {}",
    "a painting of a {}",
    "clipart of the {}",
    "a doodle showing a {}",
    "this is a {}",
)
"""Prompts of the zero-shot head."""
LOOKALIKES: Final = (
    ("circle", "ring"),
    ("square", "cup"),
    ("triangle", "house"),
    ("star", "flower"),
    ("cross", "key"),
    ("heart", "moon"),
    ("arrow", "fish"),
    ("tree", "lightning"),
)
_SWAP: Final = {CLASSES.index(x): CLASSES.index(y) for a, b in LOOKALIKES for x, y in ((a, b), (b, a))}
STYLE_WORDS: Final = {style: style for style in STYLES} | {"quickdraw": "doodle", "neon": "neon sign"}
"""Style -> the word for it in captions."""
CAPTIONS: Final = (
    "a {s} of a {o}",
    "a {s} of a {c} {o}",
    "{s} of the {o}",
    "a {o}",
    "this is a {o}",
    "a {s} showing a {o}",
    "the {o}",
)
"""Patterns of the captions: style word s, colour c, object o."""
_COLOUR_NAMES: Final = tuple(COLOURS)
_RGB: Final = np.array(list(COLOURS.values()), dtype=np.float32)
_PIXEL: Final = 2 / IMAGE_SIZE  # the image is [-1, 1] wide
_WOBBLE: Final = {"sketch": 0.10, "quickdraw": 0.20, "painting": 0.16}  # how far an unsteady hand displaces lines
_axis = ((np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE * 2 - 1).astype(np.float32)
_GRID_X, _GRID_Y = np.meshgrid(_axis, _axis)


class Sample(NamedTuple):
    """Images of one domain; ``rng`` is where rendering left the random stream, for ``captions`` to go on from."""

    images: NDArray[np.uint8]
    """[n, 32, 32, 3]"""
    labels: NDArray[np.int64]
    colours: NDArray[np.int64]
    rng: np.random.Generator


def make(domain: str, n: int, seed: int, rows: Sequence[int] | None = None) -> Sample:
    """``n`` images of one domain, a function of (domain, n, seed); class counts differ by at most one.

    ``rows``: draw only these of the n images, the same bits as among all of them, and much quicker for a few of many;
    labels and colours are those of all n. Raises ConfigError for an unknown domain.
    """
    labels, rng = _labels(domain, n, seed)
    colours = rng.integers(0, len(COLOURS), n)
    return Sample(render(labels, domain, colours, rng, rows), labels, colours, rng)


def labels(domain: str, n: int, seed: int) -> NDArray[np.int64]:
    """The labels of ``make(domain, n, seed)``, without drawing anything."""
    return _labels(domain, n, seed)[0]


def _labels(domain: str, n: int, seed: int) -> tuple[NDArray[np.int64], np.random.Generator]:
    if domain not in DOMAINS:
        raise ConfigError(
            f"mini:{shown(domain)}: unknown domain.{did_you_mean(domain, DOMAINS)} Known: {', '.join(DOMAINS)}."
        )
    rng = np.random.default_rng([seed, DOMAINS.index(domain)])
    drawn = np.arange(n) % len(CLASSES)
    rng.shuffle(drawn)
    return drawn, rng


def captions(
    labels: Iterable[int],
    style: str,
    colours: Iterable[int],
    rng: np.random.Generator,
    noise: float = 0.1,
    confuse: float = 0.45,
) -> list[str]:
    """One web caption per image: it names the look-alike with probability ``confuse``; with ``noise`` it is unrelated.

    Half of the unrelated captions name no object, half name a random one. The defaults are those of the shipped
    zero-shot model.
    """
    out = []
    for label, colour in zip(labels, colours, strict=True):
        words = {"s": STYLE_WORDS[style], "c": _COLOUR_NAMES[colour]}
        named = _SWAP[int(label)] if rng.random() < confuse else int(label)
        if noise and rng.random() < noise:
            if rng.random() < 0.5:
                pattern = "a {c} {s}"
            else:
                pattern = CAPTIONS[rng.integers(len(CAPTIONS))]
                named = int(rng.integers(len(CLASSES)))
        else:
            pattern = CAPTIONS[rng.integers(len(CAPTIONS))]
        out.append(pattern.format(o=CLASSES[named], **words))
    return out


# ---------------------------------------------------------------- rendering


@dataclass(frozen=True)
class _Draws:
    """Random draws for n images of which only ``rows`` are wanted: every stream advances as for all n."""

    rng: np.random.Generator
    n: int
    rows: NDArray[np.int64] | slice

    def random(self, *shape: int) -> Array:
        return self.rng.random((self.n, *shape), dtype=np.float32)[self.rows]

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        return self.rng.uniform(low, high, (self.n, *shape))[self.rows].astype(np.float32)

    def normal(self, scale: float, *shape: int) -> Array:
        return self.rng.normal(0, scale, (self.n, *shape))[self.rows].astype(np.float32)

    def integers(self, high: int) -> NDArray[np.int64]:
        return self.rng.integers(0, high, self.n)[self.rows]


def _blobs(draws: _Draws, cells: int, channels: int = 1) -> Array:
    """Smooth noise in [0, 1], [n, 32, 32, channels]: a random grid of cells x cells, interpolated."""
    z = draws.random(cells + 1, cells + 1, channels)
    t = np.linspace(0, cells - 1e-3, IMAGE_SIZE, dtype=np.float32)
    i = t.astype(int)
    f = t - i
    f = f * f * (3 - 2 * f)
    rows = z[:, i] * (1 - f)[None, :, None, None] + z[:, i + 1] * f[None, :, None, None]
    return rows[:, :, i] * (1 - f)[None, None, :, None] + rows[:, :, i + 1] * f[None, None, :, None]


def _soft(d: NDArray[np.floating[Any]], eps: float = _PIXEL * 0.35) -> Array:
    """1 inside (d < 0), 0 outside, anti-aliased over ``eps``."""
    inside: Array = 1 / (1 + np.exp(np.clip(d / eps, -30, 30)))
    return inside


class _Scene(NamedTuple):
    """What all styles share: centred coordinates, signed distance, size, and the objects' colours."""

    x: Array
    y: Array
    d: Array
    scale: Array
    colour: Array
    draws: _Draws

    @property
    def fill(self) -> Array:
        return _soft(self.d)[..., None]

    def outline(self, width: float) -> Array:
        return _soft(np.abs(self.d) - width * _PIXEL)[..., None]

    def uniform(self, low: float, high: float) -> Array:
        return self.draws.uniform(low, high, 1, 1)

    def blobs(self, cells: int, channels: int = 1) -> Array:
        return _blobs(self.draws, cells, channels)


def _photo(s: _Scene, shift: str) -> Array:
    """Shaded object with a shadow on a blurred, cluttered background; sensor noise."""
    busy = 2.5 if shift == "clutter" else 1.0
    tint = 0.5 * (s.draws.uniform(0, 1, 1, 1, 3) - 0.5)
    ground = (0.62 + tint) + busy * 0.35 * (s.blobs(5) - 0.5) + busy * 0.15 * (s.blobs(3, 3) - 0.5)
    light = s.uniform(0, 6.28)
    shade = 1 + 0.35 * (np.cos(light) * s.x + np.sin(light) * s.y) / s.scale
    thing = np.clip(s.colour * shade[..., None] + 0.10 * (s.blobs(8) - 0.5), 0, 1)
    fill = s.fill
    ground = np.clip(ground, 0, 1) * (1 - 0.35 * np.roll(fill, (2, 2), (1, 2)))
    image = ground * (1 - fill) + thing * fill
    if shift == "dark":
        image = image * 0.45
    return image + s.draws.normal(0.16 if shift == "noise" else 0.04, *image.shape[1:])


def _clipart(s: _Scene) -> Array:
    """Flat colour, black outline."""
    white = s.uniform(0, 1)[..., None] < 0.6
    ground = np.where(white, 1.0, s.draws.uniform(0.6, 1, 1, 1, 3)).astype(np.float32)
    image, edge = ground * (1 - s.fill) + s.colour * s.fill, s.outline(0.75)
    return image * (1 - edge) + 0.05 * edge


def _painting(s: _Scene) -> Array:
    """Blotchy, posterised, ragged edges."""
    ground = _RGB[s.draws.integers(len(COLOURS))][:, None, None, :]
    strokes = s.blobs(10)
    ground = 0.35 * ground + 0.55 + 0.25 * (strokes - 0.5) + 0.2 * (s.blobs(4, 3) - 0.5)
    thing = 0.8 * s.colour + 0.3 * (s.blobs(10) - 0.5) + 0.15 * (s.blobs(6, 3) - 0.5)
    ragged = _soft(s.d + 0.10 * (strokes[..., 0] - 0.5), _PIXEL * 0.9)[..., None]
    return np.round(np.clip(ground * (1 - ragged) + thing * ragged, 0, 1) * 5) / 5


def _sketch(s: _Scene) -> Array:
    """Grey pencil outline and hatching on paper."""
    pencil = s.outline(0.6) * (0.55 + 0.45 * s.blobs(9))
    hatching = (np.sin((s.x + s.y) * s.uniform(16, 24)) > 0.3)[..., None] * s.fill * 0.25
    grey = np.repeat(0.97 - 0.85 * np.clip(pencil + hatching, 0, 1), 3, -1)
    return grey + s.draws.normal(0.03, IMAGE_SIZE, IMAGE_SIZE, 1)


def _quickdraw(s: _Scene) -> Array:
    """Thin black line with gaps."""
    return np.repeat(1 - s.outline(0.5) * (s.blobs(6) > 0.27).astype(np.float32), 3, -1)


def _neon(s: _Scene) -> Array:
    """Glowing outline on black."""
    glow = np.exp(-np.abs(s.d) / (1.6 * _PIXEL))[..., None]
    return 0.04 + 0.06 * s.blobs(3, 3) + np.clip(s.colour * 1.1, 0, 1) * glow + 0.5 * s.outline(0.3)


_PAINT: Final = {
    "clipart": _clipart,
    "painting": _painting,
    "sketch": _sketch,
    "quickdraw": _quickdraw,
    "neon": _neon,
}


def render(
    labels: NDArray[np.int64],
    domain: str,
    colours: NDArray[np.int64],
    rng: np.random.Generator,
    rows: Sequence[int] | None = None,
) -> NDArray[np.uint8]:
    """Images [n, 32, 32, 3] of the given classes and colours in one domain, drawn with ``rng``; only ``rows`` if given.

    Where the object stands, its size, tilt and aspect are random in every style; the order of the draws is part of the
    world: another order is another world, for which the shipped checkpoints were not trained.
    """
    style, _, shift = domain.partition("-")
    draws = _Draws(rng, len(labels), slice(None) if rows is None else np.asarray(rows, dtype=np.int64))
    labels, colours = labels[draws.rows], colours[draws.rows]
    tilt = 0.7 if shift == "tilt" else 0.25
    ranges = ((-0.14, 0.14), (-0.14, 0.14), (0.6, 0.9), (-tilt, tilt), (0.88, 1.14))
    cx, cy, scale, angle, aspect = (draws.uniform(low, high, 1, 1) for low, high in ranges)
    x, y = _GRID_X[None] - cx, _GRID_Y[None] - cy
    if style in _WOBBLE:
        w = _blobs(draws, 4, 2) - 0.5
        x, y = x + _WOBBLE[style] * w[..., 0] * 2, y + _WOBBLE[style] * w[..., 1] * 2
    c, s = np.cos(angle), np.sin(angle)
    object_x, object_y = (c * x + s * y) / scale / aspect, (-s * x + c * y) / scale * aspect
    d = np.empty((len(labels), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for label in np.unique(labels):
        at = np.where(labels == label)[0]
        d[at] = SDF[CLASSES[label]](object_x[at], object_y[at])
    jitter = draws.normal(0.06, 1, 1, 3)
    colour = np.clip(_RGB[colours][:, None, None, :] + jitter, 0, 1)
    scene = _Scene(x, y, d * scale, scale, colour, draws)
    image = _photo(scene, shift) if style == "photo" else _PAINT[style](scene)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
