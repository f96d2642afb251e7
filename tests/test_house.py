"""The plan of the house: the map, the floors, the doors; words that stand once; parameters that something passes."""

from __future__ import annotations

import ast
import configparser
import re
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import sharpscope
from sharpscope import curvature, exchange, findings, plot, vocabulary, weights

ROOT = Path(sharpscope.__file__).parent
PROJECT = ROOT.parent
TREES = {path.relative_to(PROJECT): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}
USERS = TREES | {
    path.relative_to(PROJECT): ast.parse(path.read_text("utf-8"))
    for room in ("analyses", "benchmarks", "figures")
    for path in sorted((PROJECT / room).rglob("*.py"))
}
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
LOOSE = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}


# ---------------------------------------------------------------------- the landing
def test_every_room_and_loose_file_is_on_the_map_once() -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| \d+ \| (.*?) \|", text, re.MULTILINE)
    named = re.findall(r"`([\w./]+)`", " ".join(rows))
    assert sorted(named) == sorted([*(f"{room}/" for room in ROOMS), *(f"{file}.py" for file in LOOSE)])


def test_every_room_and_loose_file_has_a_floor() -> None:
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    floors = re.split(r"[\s|]+", config["importlinter:contract:floors"]["layers"].strip())
    assert sorted(floors) == sorted(f"sharpscope.{name}" for name in [*ROOMS, *LOOSE, "__main__"])


def test_few_files_lie_loose() -> None:
    assert len(LOOSE) <= 9, "beside __init__ and __main__; a tenth belongs into a room"


def test_every_door_says_what_is_behind_it() -> None:
    for file, tree in TREES.items():
        said = ast.get_docstring(tree) or ""
        first = said.partition("\n\n")[0]
        assert len(first.split()) >= 3 and first[-1] in ".:?", f"{file}: {first!r}"


# ---------------------------------------------------------------------- words stand once
def _literals() -> Iterator[tuple[Path, frozenset[str]]]:
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                words = {n.value for n in ast.walk(node.slice) if isinstance(n, ast.Constant)}
                if len(words) > 1:
                    yield file, frozenset(map(str, words))


def test_every_choice_of_words_is_written_once() -> None:
    """Two Literals with the same words are one type with two definitions, of which one will be forgotten."""
    where = defaultdict(list)
    for file, words in _literals():
        where[words].append(str(file))
    assert not {" ".join(sorted(words)): files for words, files in where.items() if len(files) > 1}


def test_no_list_of_the_vocabulary_is_written_again() -> None:
    """A tuple, list or set that has all words of one kind; a dict has something of its own to say of each."""
    kinds = {name: frozenset(value) for name, value in vars(vocabulary).items() if isinstance(value, (dict, tuple))}
    kinds |= {name: frozenset(vars(vocabulary)[name]) for name in ("MEASURES", "CRITERIA")}
    kinds |= {name: frozenset(typing.get_args(value)) for name, value in vars(vocabulary).items()}
    again = []
    for file, tree in TREES.items():
        if file.name == "vocabulary.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set)) and len(node.elts) > 2:
                words = frozenset(n.value if isinstance(n, ast.Constant) else None for n in node.elts)
                again += [f"{file}:{node.lineno}: {name}" for name, known in kinds.items() if words == known]
    assert not again


# ---------------------------------------------------------------------- parameters that something passes
SEAMS = {
    "Claims.clock": "tests turn the clock",
    "FeatureCache.limit": "tests fill a small cache",
    "cores.root": "tests show another machine's files",
    "published_sentences.facts": "tests know other facts",
    "warning.facts": "tests know other facts",
    "overlap.criteria": "tests compare two that are not the default",
    "ratio_bins.bins": "tests count by hand",
    "EndOutputs.limit": "tests fill a small cache",
    "parse.source": "the study file's name, for its errors",
    "_stragglers.criteria": "the command figures reads its options off the signature",
}
"""Parameters that only tests pass, and why they are there."""


def _public() -> set[str]:
    return {name for door in (sharpscope, curvature, exchange, findings, plot, weights) for name in door.__all__}


def _calls() -> tuple[dict[str, set[str]], dict[str, int], set[str]]:
    """Of every name that is called: the keywords given, the most positions filled, and whether a * hides more."""
    keywords: dict[str, set[str]] = defaultdict(set)
    positions: dict[str, int] = defaultdict(int)
    hidden: set[str] = set()
    for tree in USERS.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function, given = node.func, list(node.args)
            if ast.unparse(function).endswith("partial") and given:
                function = given.pop(0)
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            keywords[name] |= {k.arg for k in node.keywords if k.arg}
            positions[name] = max(positions[name], len(given))
            if any(k.arg is None for k in node.keywords) or any(isinstance(a, ast.Starred) for a in given):
                hidden.add(name)
    return keywords, positions, hidden


def _optional(function: ast.FunctionDef, method: bool) -> Iterator[tuple[str, int | None]]:
    """(name, position) of the parameters that have defaults; the position of a keyword-only one is None."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)][int(method) :]
    count = len(function.args.defaults)
    yield from ((name, names.index(name)) for name in (names[-count:] if count else []))
    with_default = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    yield from ((a.arg, None) for a, default in with_default if default is not None)


def test_every_optional_parameter_of_an_inner_function_is_given_by_somebody() -> None:
    """A parameter with a default that no call gives is a feature that nobody reaches: wire it, or take it out."""
    keywords, positions, hidden = _calls()
    public, idle = _public(), set()
    for tree in TREES.values():
        for home in (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))):
            owner = home.name if isinstance(home, ast.ClassDef) else ""
            for function in (f for f in home.body if isinstance(f, ast.FunctionDef)):
                called = owner if function.name == "__init__" else function.name
                theirs = called in public or (owner in public and not called.startswith("_"))
                if theirs or called in hidden or called not in keywords or called.startswith("__"):
                    continue
                for name, position in _optional(function, bool(owner)):
                    if name not in keywords[called] and (position is None or positions[called] <= position):
                        idle.add(f"{called}.{name}")
    assert idle - set(SEAMS) == set(), "nobody gives them"
    assert set(SEAMS) - idle == set(), "somebody gives them after all: take them off the table"


def test_no_room_has_two_classes_of_one_name() -> None:
    """Two files of a room that mean different things by one name mislead whoever works in it."""
    where = defaultdict(set)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[file.parts[1], node.name].add(str(file))
    assert not {name: files for name, files in where.items() if len(files) > 1}


def test_classifiers_name_the_pythons_on_which_the_installed_wheel_gave_the_tables_of_the_source_tree() -> None:
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    claimed = set(re.findall(r"Python :: (3\.\d+)", config["metadata"]["classifiers"]))
    log = (PROJECT / "benchmarks/results/wheels.log").read_text(encoding="utf-8")
    tried = set(re.findall(r"^Python (3\.\d+), .*byte for byte those of the source tree$", log, re.M))
    assert claimed == tried and len(claimed) > 1
