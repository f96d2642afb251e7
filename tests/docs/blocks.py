"""README and the pages of docs/ as a reader sees them: blocks of code, the commands in these, the words in between."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# (?P<name>[\w.-]+\.\w+)\n")
_ANNOUNCED = re.compile(r"`(?P<name>[\w.-]+\.\w+)`[^\n]*:\n\n\Z")


@dataclass(frozen=True)
class Block:
    """A block of code: the ``page`` it stands on, the line it begins in, its language and text."""

    page: str
    line: int
    language: str
    text: str
    name: str = ""
    """The file that it is the content of: its first line is ``# NAME``, or the sentence before it ends in `NAME`:"""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command line: where it stands, and its words, without what a shell does (NAME=VALUE before it, > FILE)."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return self.place.removeprefix("docs/")


def blocks(*languages: str) -> list[Block]:
    """Every block of README and docs in one of ``languages``."""
    return [b for page in PAGES for b in _blocks(page) if b.language in languages]


def languages() -> set[str]:
    return {b.language for page in PAGES for b in _blocks(page)}


def commands() -> list[Command]:
    """Every command line of every block of commands."""
    return [command for block in blocks("sh") for command in _commands(block)]


def prose(page: Path) -> str:
    """A page without its blocks and without its tables of words, which are made of docstrings."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"<!-- words: \w+ -->.*?<!-- end of words -->", "", text, flags=re.DOTALL)


def inline(page: Path) -> list[str]:
    """What stands between single back-ticks in the prose of a page."""
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        code = found["text"]
        named = _NAMED.match(code) or _ANNOUNCED.search(text[: found.start()])
        line = text.count("\n", 0, found.start()) + 2
        yield Block(str(page.relative_to(ROOT)), line, found["language"], code, named["name"] if named else "")


def _commands(block: Block) -> Iterator[Command]:
    number = block.line
    for line in re.split(r"(?<!\\)\n", block.text):
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            yield Command(f"{block.page}:{number}", tuple(words))
        number += line.count("\n") + 1
