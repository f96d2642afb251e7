"""Emoji as data sets: a thousand named things, each drawn by a dozen vendors, in a folder of one sheet per style.

``analyses/emoji/fetch.py`` fills the folder ``emoji`` under the data root from public packages:

    things.csv    one line per thing: code (its Unicode code points), name, keywords (joined by |), group
    styles.csv    one line per style: style, family, package, version, licence, things (the number it drew)
    STYLE.webp    tiles of 48 x 48 pixels with transparency, 40 a row, in the order of things.csv; an empty tile is a
                  thing that the style did not draw

An image is a drawing on a pale gradient, at a size, a place and with colours that depend on style, thing and view
alone. Two tasks read the same drawings:

    emoji:STYLES         naming: every thing is a class, called by its name
    emoji-group:STYLES   the group of a thing is its class; things without a group are left out

STYLES is one style, or several joined by commas, in any order. Splits are by THING (``part_of``): no thing is in two of
val, test and ood. In ``emoji-group`` the things of train are others still. In ``emoji`` they cannot be, because the
things are the classes: one drawing of each thing, from one of STYLES in turn, is kept out of train, and val and test
hold these drawings of their things. So val and test are read with all STYLES that were trained on (``emoji:a@test``
has drawings that ``emoji:a,b@train`` has), and ood with styles that were not trained on.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharpscope.clip.datasets.found import Found, Request
from sharpscope.clip.datasets.images import Files
from sharpscope.clip.datasets.names import folded
from sharpscope.errors import DatasetError, did_you_mean, listing, shown
from sharpscope.seeds import derive

__all__ = [
    "COLUMNS", "FOLDER", "TEMPLATES", "TILE", "VIEWS", "EmojiWorld", "Style", "Thing", "composed",
    "find_emoji", "find_emoji_group", "part_of", "read_world", "sheet_of",
]  # fmt: skip

FOLDER: Final = "emoji"
TILE: Final = 48
"""Side of a drawing in a sheet, and of an image, in pixels."""
COLUMNS: Final = 40
"""Tiles in a row of a sheet."""
VIEWS: Final[Mapping[str, int]] = {"train": 4, "val": 4, "test": 4, "ood": 4}
"""Split -> the number of images of each drawing. With more of them an accuracy depends less on chance in placement and
background."""
TEMPLATES: Final = ("{}", "an emoji of a {}", "a picture of a {}", "a drawing of a {}", "an icon of a {}")
_PARTS: Final[Mapping[str, Mapping[str, float]]] = {
    "emoji": {"val": 0.15, "test": 0.25, "ood": 0.6},
    "emoji-group": {"train": 0.4, "val": 0.1, "test": 0.15, "ood": 0.35},
}
"""Kind of set -> the share of the things that each split gets."""
_REMEDY: Final = "Remedy: python analyses/emoji/fetch.py --out DIR fills DIR/emoji; then --data-root DIR."


@dataclass(frozen=True)
class Thing:
    """A thing that emoji show: ``code`` is its sequence of code points ("1f347"), ``group`` empty where it has none."""

    code: str
    name: str
    keywords: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Style:
    """How one vendor draws things; restylings of one design are one ``family``."""

    name: str
    family: str


@dataclass(frozen=True)
class EmojiWorld:
    """The things and styles of a folder; a sheet is read when its drawings are asked for."""

    folder: Path
    things: tuple[Thing, ...]
    styles: Mapping[str, Style]

    def drawings(self, style: str) -> NDArray[np.uint8]:
        """uint8 [things, 48, 48, 4]: red, green, blue and opacity; all 0 where nothing is drawn.

        Raises DatasetError for an unknown style, and for a sheet that is missing, is broken or does not fit the things.
        """
        if style not in self.styles:
            near = did_you_mean(style, self.styles)
            raise DatasetError(
                f"{shown(self.folder)}: there is no style '{shown(style)}'.{near} Known: {listing(self.styles, 20)}."
            )
        file, rows, count = self.folder / f"{style}.webp", math.ceil(len(self.things) / COLUMNS), len(self.things)
        sheet = _sheet(file, (COLUMNS * TILE, rows * TILE), count)
        tiles = sheet.reshape(rows, TILE, COLUMNS, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4)
        tiles[tiles[..., 3] == 0] = 0  # WebP keeps no colours that cannot be seen, and has any in their place
        if tiles[count:].any():
            raise DatasetError(f"{shown(file)}: has drawings behind those of the {count} things.\n{_REMEDY}")
        return tiles[:count]


def _sheet(file: Path, size: tuple[int, int], count: int) -> NDArray[np.uint8]:
    """The pixels of a sheet of ``count`` things, uint8 [height, width, 4]; decoded only if format and size are right.

    PIL has other programs decode some formats, and small files can hold huge images.
    """
    try:
        image = Files(file.parent, (file.name,)).open(0)
        if image.format == "WEBP" and image.size == size:
            return np.array(image.convert("RGBA"))
    except Exception as e:  # broken files raise OSError, SyntaxError, struct.error, ..., depending on their format
        raise DatasetError(
            f"{shown(file)}: cannot be read as an image ({shown(getattr(e, 'strerror', None) or e)}).\n{_REMEDY}"
        ) from e
    raise DatasetError(
        f"{shown(file)}: is {image.format} of {image.width} x {image.height} pixels, but a sheet of {count} things is "
        f"WEBP of {size[0]} x {size[1]}.\n{_REMEDY}"
    )


def sheet_of(drawings: NDArray[np.uint8]) -> Image.Image:
    """The sheet that holds ``drawings``, uint8 [things, 48, 48, 4]: what ``EmojiWorld.drawings`` reads."""
    rows = math.ceil(len(drawings) / COLUMNS)
    tiles = np.zeros((rows * COLUMNS, TILE, TILE, 4), np.uint8)
    tiles[: len(drawings)] = drawings
    return Image.fromarray(tiles.reshape(rows, COLUMNS, TILE, TILE, 4).swapaxes(1, 2).reshape(rows * TILE, -1, 4))


def read_world(root: str | Path) -> EmojiWorld:
    """The folder ``emoji`` under ``root``.

    Raises DatasetError where it is missing, where a table lacks a column or a field, and where two things share a name
    or a code, or two styles a name.
    """
    folder = Path(root).expanduser() / FOLDER
    of_things, of_styles = folder / "things.csv", folder / "styles.csv"
    things = tuple(
        Thing(row["code"], row["name"], tuple(filter(None, row["keywords"].split("|"))), row["group"])
        for row in _rows(of_things, ("code", "name", "keywords", "group"))
    )
    styles = [Style(row["style"], row["family"]) for row in _rows(of_styles, ("style", "family"))]
    _check_names(of_things, "thing", "code", [t.code for t in things])
    _check_names(of_things, "thing", "name", [t.name for t in things])
    _check_names(of_styles, "style", "name", [s.name for s in styles])
    if bad := next((s.name for s in styles if not re.fullmatch(r"[\w-]+", s.name)), None):  # it names a file
        raise DatasetError(f"{shown(of_styles)}: '{shown(bad)}' is no style's name (letters, digits, _, -).\n{_REMEDY}")
    return EmojiWorld(folder, things, {s.name: s for s in styles})


def _check_names(file: Path, owner: str, what: str, names: Sequence[str]) -> None:
    """Raise DatasetError where one of ``names`` is empty, or two are one name for whoever matches class names."""
    count = Counter(map(folded, names))
    if count[""]:
        raise DatasetError(f"{shown(file)}: a {owner} has no {what}.\n{_REMEDY}")
    if twice := next((n for n in names if count[folded(n)] > 1), None):
        raise DatasetError(f"{shown(file)}: two {owner}s have the {what} '{shown(twice)}'.\n{_REMEDY}")


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table that has ``columns``; a comma too many would move all fields behind it."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            if missing := [c for c in columns if c not in (reader.fieldnames or ())]:
                raise DatasetError(f"{shown(file)}: has no column {' and no '.join(missing)}.\n{_REMEDY}")
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    few = "few" if None in row.values() else "many"
                    raise DatasetError(f"{shown(file)}, line {reader.line_num}: has too {few} fields.\n{_REMEDY}")
                rows.append(row)
            return rows
    except (OSError, ValueError, csv.Error) as e:  # ValueError: not UTF-8
        raise DatasetError(
            f"{shown(file)}: cannot be read ({shown(getattr(e, 'strerror', None) or e)}).\n{_REMEDY}"
        ) from e


def part_of(code: str, kind: str) -> str:
    """The split to whose things the thing ``code`` belongs, by a hash of its code points; ``kind``: the task."""
    place, shares = _hash(code, "part"), _PARTS[kind]
    edges = np.cumsum(list(shares.values()))
    return list(shares)[min(int(np.searchsorted(edges, place, side="right")), len(shares) - 1)]


def _hash(code: str, purpose: str) -> float:
    """A number of [0, 1) that depends on the thing and the purpose alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose}/{code}".encode()).digest()[:6], "big") / 2**48


def composed(drawing: NDArray[np.uint8], seed: int) -> Image.Image:
    """An RGB image of 48 x 48: the drawing on a pale gradient, at 85 to 105 % of its size, up to 3 pixels off."""
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(0.55, 1.0, (2, 3))
    angle, scale = rng.uniform(0, 2 * math.pi), rng.uniform(0.85, 1.05)
    right, down = rng.uniform(-3, 3, 2)
    line = np.linspace(-1, 1, TILE)
    ramp = (math.cos(angle) * line[None, :] + math.sin(angle) * line[:, None]) / (2 * math.sqrt(2)) + 0.5
    ground = first * (1 - ramp[..., None]) + second * ramp[..., None]
    image = Image.fromarray((ground * 255).round().astype(np.uint8))
    side = max(1, round(TILE * scale))
    tile = Image.fromarray(drawing).resize((side, side), Image.Resampling.BICUBIC)  # PIL weighs colours by opacity
    image.paste(tile, (round((TILE - side) / 2 + right), round((TILE - side) / 2 + down)), tile)
    return image


class _Views:
    """Views of drawings: image i is view ``i % views`` of drawing ``i // views``."""

    def __init__(self, drawings: Sequence[NDArray[np.uint8]], names: Sequence[str], views: int, split: str) -> None:
        self._drawings, self._names, self._views, self._split = drawings, names, views, split

    def __len__(self) -> int:
        return len(self._drawings) * self._views

    def name(self, i: int) -> str:
        return f"{self._names[i // self._views]}@{self._split}[{i % self._views}]"

    def open(self, i: int) -> Image.Image:
        return composed(self._drawings[i // self._views], derive(0, "emoji", self.name(i)))


def find_emoji(request: Request) -> Found:
    """``emoji:STYLES``: name the thing."""
    world, styles = _asked(request)
    if request.split == "train" and len(styles) == 1:
        raise DatasetError(
            f"data set {shown(request.spec)}: one drawing of every thing is kept out of training, and a single style "
            "has no other.\nRemedy: several styles, joined by commas; or emoji-group:STYLE, whose splits hold other "
            "things."
        )

    def is_asked(thing: Thing, style: str) -> bool:
        held = style == styles[int(_hash(thing.code, "held") * len(styles))]
        if request.split == "train":
            return not held
        return part_of(thing.code, request.kind) == request.split and (held or request.split == "ood")

    rows = [(style, i) for i, thing in enumerate(world.things) for style in styles if is_asked(thing, style)]
    return _found(request, world, styles, rows, [t.name for t in world.things], range(len(world.things)))


def find_emoji_group(request: Request) -> Found:
    """``emoji-group:STYLES``: the class is the thing's group; things without a group are left out."""
    world, styles = _asked(request)
    names = sorted({t.group for t in world.things} - {""})
    labels = [names.index(t.group) if t.group else -1 for t in world.things]
    rows = [
        (style, i)
        for i, thing in enumerate(world.things)
        if labels[i] >= 0 and part_of(thing.code, request.kind) == request.split
        for style in styles
    ]
    return _found(request, world, styles, rows, names, labels)


def _asked(request: Request) -> tuple[EmojiWorld, Sequence[str]]:
    """The folder, and the styles that the spec names, sorted: their order in the spec says nothing."""
    styles = sorted(request.rest.split(","))
    if twice := [s for s, after in pairwise(styles) if s == after]:
        raise DatasetError(f"data set {shown(request.spec)}: the style '{shown(twice[0])}' is named twice.")
    return read_world(request.root), styles


def _found(
    request: Request,
    world: EmojiWorld,
    styles: Sequence[str],
    rows: Sequence[tuple[str, int]],
    classes: Sequence[str],
    label_of: Sequence[int],
) -> Found:
    """The views of the drawings at ``rows``, (style, number of the thing), that exist."""
    sheets = {style: world.drawings(style) for style in styles}
    there = [(style, i) for style, i in rows if sheets[style][i].any()]
    views = VIEWS[request.split]
    names = [f"{style}/{world.things[i].code}" for style, i in there]
    images = _Views([sheets[style][i] for style, i in there], names, views, request.split)
    labels = np.repeat(np.array([label_of[i] for _, i in there], dtype=np.int64), views)
    return Found(images, labels, tuple(classes), str(world.folder), request.split, templates=TEMPLATES)
