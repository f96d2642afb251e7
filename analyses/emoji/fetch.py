"""Fetch the emoji of a dozen vendors by package name and write them as data sets.

    python analyses/emoji/fetch.py --out DIR        fills DIR/emoji (about 280 MB fetched, 25 MB written, one minute)

Then ``emoji:STYLE`` is a data set spec of every command, with ``--data-root DIR``. npm fetches the packages, whose
archives have to have the checksums of styles.csv; nothing in them is executed. ``pip install -e '.[emoji]'`` installs
what draws the SVGs. Not all drawings are free: styles.csv has each style's licence, and DIR is for your own study.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import tyro
from PIL import Image
from styles import SOURCES, UNICODE, WORDS, Package, Source

from sharpscope.clip.datasets.emoji import FOLDER, TILE, Thing, sheet_of
from sharpscope.errors import DatasetError

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "face": (
        "face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy",
        "face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative", "face-costume",
    ),
    "heart": ("heart",),
    "hand": (
        "hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands", "hand-prop",
    ),
    "person": ("person", "person-gesture", "person-role", "person-fantasy"),
    "exercise": ("person-activity", "person-sport", "person-resting"),
    "animal": ("animal-mammal",),
    "bird": ("animal-bird",),
    "sea animal": ("animal-marine",),
    "insect": ("animal-bug",),
    "flower": ("plant-flower", "plant-other"),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "food": ("food-prepared", "food-asian"),
    "dessert": ("food-sweet",),
    "drink": ("drink",),
    "building": ("place-building", "place-religious"),
    "vehicle": ("transport-ground",),
    "plane": ("transport-air",),
    "boat": ("transport-water",),
    "weather": ("sky & weather",),
    "clock": ("time",),
    "sports": ("sport",),
    "game": ("game",),
    "celebration": ("event",),
    "clothing": ("clothing",),
    "music": ("musical-instrument", "music"),
    "tool": ("tool",),
    "office": ("office", "writing", "mail", "book-paper"),
    "household": ("household",),
    "electronics": ("computer", "phone", "light & video"),
    "sign": ("transport-sign", "warning"),
    "geometric shape": ("geometric",),
    "zodiac": ("zodiac",),
}  # fmt: skip
"""Class of ``emoji-group``, as prompts call it -> the subcategories of Unicode's emoji list that it joins."""
_GROUP_OF: Final = {sub: group for group, subs in GROUPS.items() for sub in subs}
_DROPPED: Final = (
    "family", "alphanum", "keycap", "arrow", "punctuation", "math", "currency", "gender", "av-symbol", "person-symbol",
)  # fmt: skip
"""Subcategories without things: letters, signs, and families of the same persons."""
_VARIANTS: Final = {"2640", "2642", "1f468", "1f469"}
"""Code points that turn a person into a man or a woman; the person stays."""
_LEAST_DRAWN: Final = 3
"""Mean opacity, of 255, below which a drawing counts as empty."""

Tiles = np.ndarray[Any, np.dtype[np.uint8]]


def main(out: Path, packages: Path | None = None) -> None:
    """Fill ``out``/emoji.

    Args:
        out: Data root that gets the folder emoji.
        packages: Folder that keeps the packages' archives; those that are there are not fetched again.
    """
    with tempfile.TemporaryDirectory() as temporary:
        kept = packages or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        write(out / FOLDER, {p.name: fetched(p, kept) for p in (WORDS, *(s.package for s in SOURCES))})


def fetched(package: Package, folder: Path) -> Path:
    """The package's archive in ``folder``, fetched by npm if it is not there; DatasetError for another checksum."""
    file = folder / f"{package.name.lstrip('@').replace('/', '-')}-{package.version}.tgz"
    if not file.exists():
        print(f"npm pack {package.name}@{package.version}", file=sys.stderr)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as e:
            raise DatasetError(
                f"npm cannot fetch {package.name}@{package.version} ({e}).\nRemedy: install npm, or put the archive "
                f"there by hand: {file}."
            ) from e
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise DatasetError(f"{file}: its sha256 is {found}, and not {package.sha256}.\nRemedy: delete it.")
    return file


def member(archive: Path, name: str) -> Any:
    """The JSON file ``name`` of a package."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{name}")
        assert file is not None
        return json.load(file)


def bare(code: str) -> str:
    """Code points in lower case, without the variation selector that asks for a coloured drawing."""
    return re.sub(r"-?fe0f", "", code.lower())


def things(unicode_list: Sequence[Mapping[str, Any]], words: Mapping[str, Sequence[str]]) -> list[Thing]:
    """Every emoji that is a thing with a name of its own, in Unicode's order.

    Not flags, letters, signs, skin tones, families, and men and women beside the person. A name is emojilib's first
    word for the emoji; of two things with one name the first one has it, and the other one has Unicode's name.
    """
    said = {bare("-".join(f"{ord(c):x}" for c in k)): [w.replace("_", " ") for w in v] for k, v in words.items()}
    out: dict[str, Thing] = {}
    for entry in sorted(unicode_list, key=lambda e: int(e["sort_order"])):
        code, sub = bare(entry["unified"]), str(entry["subcategory"])
        parts = set(code.split("-"))
        if entry["category"] in ("Flags", "Component") or sub in _DROPPED or (len(parts) > 1 and parts & _VARIANTS):
            continue
        official = (entry["name"] or entry["short_name"]).lower().replace("_", " ")
        own = said.get(code) or [official]
        name = next((n for n in (own[0], official) if n not in out), None)
        if name is not None:
            keywords = tuple(dict.fromkeys(w.replace("|", " ") for w in own[1:] if w != name))
            out[name] = Thing(code, name, keywords, _GROUP_OF.get(sub, ""))
    return list(out.values())


def write(folder: Path, archives: Mapping[str, Path]) -> None:
    """things.csv, styles.csv and a sheet for each style."""
    folder.mkdir(parents=True, exist_ok=True)
    unicode_list = member(archives[UNICODE.name], "emoji.json")
    known = things(unicode_list, member(archives[WORDS.name], "dist/emoji-en-US.json"))
    at = {thing.code: i for i, thing in enumerate(known)}
    names = _names(unicode_list, [archives[s.package.name] for s in SOURCES if _is_icon_set(s)])
    _csv(folder / "things.csv", ("code", "name", "keywords", "group"),
         [(t.code, t.name, "|".join(t.keywords), t.group) for t in known])  # fmt: skip
    rows = []
    for source in SOURCES:
        drawings = np.zeros((len(known), TILE, TILE, 4), np.uint8)
        archive = archives[source.package.name]
        for code, image in _icons(archive, names) if _is_icon_set(source) else _pictures(archive):
            if (i := at.get(code)) is not None and not drawings[i].any():
                drawings[i] = _tile(image)
        drawings[drawings[..., 3].mean((1, 2)) < _LEAST_DRAWN] = 0
        sheet_of(drawings).save(folder / f"{source.style}.webp", lossless=True)
        there = int(drawings.any((1, 2, 3)).sum())
        p = source.package
        rows.append((source.style, source.family, p.name, p.version, p.sha256, source.licence, there))
        print(f"{source.style:11s} {there} things, {source.licence}")
    _csv(folder / "styles.csv", ("style", "family", "package", "version", "sha256", "licence", "things"), rows)


def _is_icon_set(source: Source) -> bool:
    return source.package.name.startswith("@iconify-json/")


def _csv(file: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    file.write_text(text.getvalue(), encoding="utf-8")


def _names(unicode_list: Sequence[Mapping[str, Any]], icon_sets: Sequence[Path]) -> dict[str, str]:
    """Name of an icon, letters and digits alone -> code: from the sets that tell, then Unicode's own names."""
    out: dict[str, str] = {}
    for archive in icon_sets:
        aliases: dict[str, list[str]] = {}
        for alias, told in member(archive, "icons.json").get("aliases", {}).items():
            aliases.setdefault(told["parent"], []).append(alias)
        for code, name in _chars(archive).items():
            for n in (name, *aliases.get(name, [])):
                out.setdefault(_squeezed(n), bare(code))
    for entry in unicode_list:
        for n in (entry["name"] or "", *entry["short_names"]):
            out.setdefault(_squeezed(n), bare(entry["unified"]))
    return out


def _chars(archive: Path) -> dict[str, str]:
    """Code -> name of an icon set; empty for sets that do not tell."""
    try:
        told: dict[str, str] = member(archive, "chars.json")
    except KeyError:
        return {}
    return told


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _icons(archive: Path, names: Mapping[str, str]) -> Iterator[tuple[str, Image.Image]]:
    """(code, drawing) of an icon set in Iconify's JSON, whose icons are bodies of SVG files."""
    import resvg_py  # the extra ``emoji``: nothing else needs it

    whole, told = member(archive, "icons.json"), {name: bare(code) for code, name in _chars(archive).items()}
    for name, icon in whole["icons"].items():
        code = told.get(name) or names.get(_squeezed(name))
        if code is None or icon.get("hidden"):
            continue
        left, top = (icon.get(key, whole.get(key, 0)) for key in ("left", "top"))
        width, height = (icon.get(key, whole.get(key, 16)) for key in ("width", "height"))
        body = icon["body"].replace("currentColor", "#222222")
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{TILE * 2}" height="{TILE * 2}" viewBox="{left} {top} {width} {height}">{body}</svg>'
        )
        yield code, Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg))))


def _pictures(archive: Path) -> Iterator[tuple[str, Image.Image]]:
    """(code, drawing) of a package of one picture a thing: img/VENDOR/64/CODE.png or assets/CODE.webp."""
    with tarfile.open(archive) as tar:
        for info in tar:
            if re.fullmatch(r"package/(img/\w+/64|assets)/[0-9a-f-]+\.(png|webp)", info.name) and info.isfile():
                file = tar.extractfile(info)
                assert file is not None
                yield bare(Path(info.name).stem), Image.open(io.BytesIO(file.read()))


def _tile(image: Image.Image) -> Tiles:
    """48 x 48 RGBA; PIL weighs colours by their opacity."""
    return np.asarray(image.convert("RGBA").resize((TILE, TILE), Image.Resampling.BOX))


if __name__ == "__main__":
    tyro.cli(main)
