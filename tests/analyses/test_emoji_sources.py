"""analyses/emoji: the table of styles keeps its promises, and fetch.py writes what ``emoji:STYLES`` reads.

On made files: no package is fetched, and nothing that draws SVGs has to be installed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharpscope.clip.datasets.emoji import read_world
from sharpscope.errors import DatasetError
from tests.analyses.emoji import scripts


@pytest.fixture(scope="module")
def fetch() -> Iterator[ModuleType]:
    with scripts("fetch", absent=("resvg_py",)) as (module,):
        yield module


# ---------------------------------------------------------------------- the table of styles
def test_styles_have_names_and_packages_of_their_own(fetch: ModuleType) -> None:
    assert len({s.style for s in fetch.SOURCES}) == len({s.package for s in fetch.SOURCES}) == len(fetch.SOURCES) >= 14
    for package in (fetch.WORDS, *(s.package for s in fetch.SOURCES)):
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256) and re.fullmatch(r"\d+\.\d+\.\d+", package.version)


def test_a_family_has_one_role(fetch: ModuleType) -> None:
    """A restyling of a design that a model was trained on is nothing new to that model."""
    assert {s.role for s in fetch.SOURCES} == {"known", "id", "clean"}
    roles = {(s.family, s.role) for s in fetch.SOURCES}
    assert len(roles) == len({family for family, _ in roles})


def test_bases_derive_from_free_drawings_alone(fetch: ModuleType) -> None:
    assert {s.licence for s in fetch.SOURCES if s.role == "known"} <= {"Apache-2.0", "MIT"}


# ---------------------------------------------------------------------- archives
def archive(file: Path, members: Mapping[str, bytes | dict[str, Any] | list[Any]]) -> Path:
    """An npm package's archive."""
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def test_an_archive_with_another_checksum_is_refused(fetch: ModuleType, tmp_path: Path) -> None:
    file = archive(tmp_path / "some-one-1.2.3.tgz", {"emoji.json": []})
    package = type(fetch.WORDS)("@some/one", "1.2.3", hashlib.sha256(file.read_bytes()).hexdigest())
    assert fetch.fetched(package, tmp_path) == file
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(DatasetError, match=rf"one-1\.2\.3\.tgz: its sha256 is [0-9a-f]+, and not {package.sha256}"):
        fetch.fetched(package, tmp_path)


@pytest.mark.parametrize("error", [FileNotFoundError("npm"), subprocess.CalledProcessError(1, "npm")])
def test_without_npm_the_error_says_what_is_missing(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DatasetError, match=r"npm cannot fetch emojilib@[\d.]+ .*\nRemedy: install npm, or .*\.tgz\.$"):
        fetch.fetched(fetch.WORDS, tmp_path)


# ---------------------------------------------------------------------- which emoji are things
def entry(code: str, name: str, sub: str, order: int, category: str = "Some") -> dict[str, Any]:
    """A line of Unicode's emoji list, as emoji-datasource has it."""
    short = name.lower().replace(" ", "_")
    return {"unified": code, "name": name, "short_name": short, "short_names": [short], "category": category,
            "subcategory": sub, "sort_order": order}  # fmt: skip


UNICODE = [
    entry("1F3C3", "RUNNER", "person-activity", 10),
    entry("1F347", "GRAPES", "food-fruit", 9),
    entry("2764-FE0F", "HEAVY BLACK HEART", "heart", 11),
    entry("1F9E1", "ORANGE HEART", "heart", 12),
    entry("1F468", "MAN", "person", 13),
    entry("1F9D1-200D-1F692", "FIREFIGHTER", "person-role", 14),
    entry("1F9F6", "BALL OF YARN", "arts & crafts", 15),
    entry("1FAF6", "ORANGE HEART", "heart", 16),
    # no things
    entry("1F1E6-1F1E8", "Ascension Flag", "subdivision-flag", 1, "Flags"),
    entry("1F3FB", "EMOJI MODIFIER FITZPATRICK TYPE-1-2", "skin-tone", 2, "Component"),
    entry("0023-FE0F-20E3", "HASH KEY", "keycap", 3),
    entry("1F170-FE0F", "NEGATIVE SQUARED LATIN CAPITAL LETTER A", "alphanum", 4),
    entry("1F46A", "FAMILY", "family", 5),
    entry("1F468-200D-1F692", "MAN FIREFIGHTER", "person-role", 6),
    entry("1F469-200D-1F692", "WOMAN FIREFIGHTER", "person-role", 7),
    entry("1F3C3-200D-2642-FE0F", "MAN RUNNING", "person-activity", 8),
]
WORDS = {
    "🍇": ["grapes", "fruit", "grapes", "a|b", "fruit", "vine_yard"],
    "❤️": ["heart", "love"],
    "🧡": ["heart"],
    "🫶": ["heart"],
    "👨": ["man"],
}
KNOWN = [
    ("1f347", "grapes", ("fruit", "a b", "vine yard"), "fruit"),
    ("1f3c3", "runner", (), "exercise"),
    ("2764", "heart", ("love",), "heart"),
    ("1f9e1", "orange heart", (), "heart"),
    ("1f468", "man", (), "person"),
    ("1f9d1-200d-1f692", "firefighter", (), "person"),
    ("1f9f6", "ball of yarn", (), ""),
]
"""The things among them: the second heart has Unicode's name, and the third one, whose names are both taken, none."""


def test_things_are_what_has_a_name_of_its_own(fetch: ModuleType) -> None:
    assert [(t.code, t.name, t.keywords, t.group) for t in fetch.things(UNICODE, WORDS)] == KNOWN


def test_a_subcategory_is_in_one_group(fetch: ModuleType) -> None:
    subs = [sub for group in fetch.GROUPS.values() for sub in group]
    assert len(set(subs)) == len(subs) and not set(subs) & set(fetch._DROPPED)


# ---------------------------------------------------------------------- from packages to a data set
def png(colour: tuple[int, int, int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def test_what_fetch_writes_is_what_the_data_set_reads(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def svg_to_bytes(svg_string: str) -> bytes:
        asked.append(svg_string)
        return png((0, 0, 250, 255))

    monkeypatch.setitem(sys.modules, "resvg_py", SimpleNamespace(svg_to_bytes=svg_to_bytes))
    sources = {s.style: s for s in fetch.SOURCES}
    monkeypatch.setattr(fetch, "SOURCES", (sources["apple"], sources["twemoji"], sources["fxemoji"]))
    red, clear = png((250, 0, 0, 255)), png((250, 0, 0, 1))
    icons = {"width": 32, "height": 16, "icons": {
        "red-heart": {"body": "<path fill='currentColor'/>"}, "ball-of-yarn": {"body": "<g/>", "left": 4, "width": 8},
        "unknown": {"body": ""}, "grapes": {"body": "", "hidden": True},
    }}  # fmt: skip
    archives = {
        fetch.WORDS.name: archive(tmp_path / "w.tgz", {"dist/emoji-en-US.json": WORDS}),
        fetch.UNICODE.name: archive(tmp_path / "u.tgz", {
            "emoji.json": UNICODE, "img/apple/64/1f347.png": red, "img/apple/64/1f468.png": clear,
            "img/apple/64/1f1e6-1f1e8.png": red, "img/apple/sheet.png": red,
        }),
        # twemoji's set tells the code of an icon; fxemoji's has to be told it, by that set and by Unicode's names
        sources["twemoji"].package.name: archive(tmp_path / "t.tgz", {
            "icons.json": icons, "chars.json": {"2764-fe0f": "red-heart"},
        }),
        sources["fxemoji"].package.name: archive(tmp_path / "f.tgz", {"icons.json": icons}),
    }  # fmt: skip
    fetch.write(tmp_path / "emoji", archives)
    world = read_world(tmp_path)
    assert [(t.code, t.name, t.keywords, t.group) for t in world.things] == KNOWN
    there = {style: np.flatnonzero(world.drawings(style).any((1, 2, 3))).tolist() for style in world.styles}
    assert there == {"apple": [0], "twemoji": [2, 6], "fxemoji": [2, 6]}  # a drawing that nobody can see is none
    assert (world.drawings("apple")[0] == (250, 0, 0, 255)).all()
    assert "viewBox=\"0 0 32 16\"><path fill='#222222'/></svg>" in asked[0] and 'viewBox="4 0 8 16"' in asked[1]
    table = (tmp_path / "emoji" / "styles.csv").read_text().splitlines()
    apple = sources["apple"].package
    assert table[1] == f"apple,apple,{apple.name},{apple.version},{apple.sha256},drawings not free,1"
