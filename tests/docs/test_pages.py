"""What README and docs/ say beside their blocks: tables of words, links, and names of flags, files and commands."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from sharpscope.cli.commands import COMMANDS
from sharpscope.config.protocol import ProtocolName
from sharpscope.config.specs import CORRUPTIONS, LAYOUTS
from sharpscope.finetuning.registry import METHODS
from sharpscope.vocabulary import COLLECTIONS, CRITERIA, MEASURES, HeadMode, MergeMethod, PathName, TraceMethod
from tests.docs.blocks import PAGES, ROOT, blocks, inline, languages, prose
from tests.docs.parsed import targets


def _words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("words", ROOT / "docs/words.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = _words()
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


# -- words -------------------------------------------------------------------------------------------------------------


@pages
def test_tables_of_words_are_those_of_today(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert WORDS.written(text) == text, "run 'python docs/words.py'"


def test_every_table_of_words_stands_on_some_page_of_docs() -> None:
    placed = [name for page in PAGES if page.parent.name == "docs" for name in WORDS.places(page.read_text("utf-8"))]
    assert sorted(placed) == sorted(WORDS.WRITERS)


def first_cells(name: str) -> set[str]:
    """The words in the first column of a generated table."""
    return set(re.findall(r"^\| `([^`]+)`", WORDS.WRITERS[name](), re.MULTILINE))


def test_what_list_prints_is_on_its_page_and_nothing_else() -> None:
    assert first_cells("measures") == set(MEASURES)
    assert first_cells("criteria") == {c.spelling for c in CRITERIA.values()}
    assert first_cells("methods") == set(METHODS)
    assert first_cells("commands") == set(COMMANDS)


def test_every_measure_has_its_formula_and_no_unknown_one_has() -> None:
    page = prose(ROOT / "docs/measures.md")
    explained = {m for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)}
    assert explained - set(get_args(TraceMethod)) == set(MEASURES)


@pytest.mark.parametrize(
    ("page", "title", "words"),
    [
        ("checkpoints", "`--head`", HeadMode),
        ("measures", "method", TraceMethod),
        ("paths", "path", PathName),
        ("paths", "`--method`", MergeMethod),
        ("experiments", "protocol", ProtocolName),
    ],
)
def test_a_table_of_choices_has_all_of_them_and_no_other(page: str, title: str, words: Any) -> None:
    text = prose(ROOT / f"docs/{page}.md")
    (rows,) = re.findall(rf"^\| {re.escape(title)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert set(re.findall(r"^\| `([^`]+)`", rows, re.MULTILINE)) == set(get_args(words))


def test_sources_of_the_measures_are_those_of_the_docstrings() -> None:
    package = ROOT / "sharpscope"
    files = (package / "vocabulary.py", package / "config/study.py", *(package / "curvature").rglob("*.py"))
    code = " ".join(file.read_text(encoding="utf-8") for file in files)
    cited = re.findall(r"arXiv (\d{4}\.\d{5})|doi (10\.[^\s;,|]+)", prose(ROOT / "docs/measures.md"))
    assert len(cited) > 12
    assert [a or d for a, d in cited if (a or d) not in code] == []


def test_the_page_of_data_sets_has_every_spec_and_no_unknown_one() -> None:
    page = prose(ROOT / "docs/data.md")
    rows = " ".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    told = {name.partition("@")[0] for name in re.findall(r"`([^`]+)`", rows)}
    assert told == {layout.form for layout in LAYOUTS.values()}
    assert set(CORRUPTIONS) | set(COLLECTIONS) <= set(inline(ROOT / "docs/data.md"))


# -- names -------------------------------------------------------------------------------------------------------------
FLAGS = {f"--{f.name.replace('_', '-')}" for kind in COMMANDS.values() for f in dataclasses.fields(kind)}
NEGATED = {flag.replace("--", "--no-", 1) for flag in FLAGS}
EVERYWHERE = {"--help"}
"""Flags of every command that are no field of it."""
HALF = "<TAB>"
"""What is in a word that is half typed."""
FOLDERS = ("analyses", "benchmarks", "docs", "figures", "sharpscope", "tests")
MADE = ("figures/",)
"""Paths that only a run directory has."""


@pages
def test_flags_in_the_text_exist(page: Path) -> None:
    said = {flag for code in inline(page) if HALF not in code for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}
    assert said - FLAGS - NEGATED - EVERYWHERE == set()


@pages
def test_commands_targets_and_files_in_the_text_exist(page: Path) -> None:
    for code in inline(page):
        first, _, rest = code.partition(" ")
        if first == "sharpscope" and rest and HALF not in rest:
            assert rest.split()[0] in (*COMMANDS, "COMMAND"), code
        if first == "make":
            assert rest.split()[0] in targets(), code
        for path in re.findall(rf"(?:^|(?<=\s))(?:{'|'.join(FOLDERS)})/[\w./-]+", code):
            assert path in MADE or (ROOT / path).exists(), f"{page.name}: {path}"


# -- links -------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        assert target.is_file(), link
        assert page.parent.name != "docs" or target.parent == page.parent, f"{link}: the built page would not have it"
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation_and_readme_leads_to_nearly_all() -> None:
    there = {p.stem for p in PAGES if p.parent.name == "docs"} - {"index"}
    told = re.findall(r"```\{toctree\}\n(?:\:.*\n)+\n([^`]+)```", (ROOT / "docs/index.md").read_text(encoding="utf-8"))
    assert sorted(" ".join(told).split()) == sorted(there)
    linked = set(re.findall(r"\(docs/(\w+)\.md", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert linked == there - {"commands"}, "README has the table of commands itself"


def test_no_block_is_wider_than_a_page() -> None:
    every = blocks(*languages())
    assert [(b.place, line) for b in every for line in b.text.splitlines() if len(line) > 100] == []


def test_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100
