"""Code of a user's own: what a plug-in or an entry point adds is known, marked as theirs, and never half there."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharpscope.config import plugins
from sharpscope.config.plugins import load_plugin, loaded_plugins, recall_words
from sharpscope.config.study import StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import MEASURES, Measure, Origin, Words, expand_measures, from_outside

ADDS = """
from sharpscope.vocabulary import MEASURES, Measure
MEASURES.add(Measure("{name}", "a test's own", "own", "sum", "product"))
"""


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test adds is taken back."""
    monkeypatch.setattr(plugins, "_LOADED", {})
    known, modules = set(MEASURES), set(sys.modules)
    yield
    for name in set(MEASURES) - known:
        MEASURES.remove(name)
    for name in set(sys.modules) - modules:
        if name.startswith(("sharpscope_plugin", "own_measures")):
            del sys.modules[name]


def plugin(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_plugin_s_word_is_known_and_its_origin_is_the_file_s_digest(tmp_path: Path) -> None:
    file = plugin(tmp_path, ADDS.format(name="mine"))
    with pytest.raises(ConfigError, match="measures: unknown measure 'mine'"):
        StudyConfig(measures=("mine",))
    load_plugin(file)
    assert StudyConfig(measures=("mine", "hessian_trace")).measures == ("mine", "hessian_trace")
    assert expand_measures(("mine", "lambda_max")) == ("lambda_max", "mine")
    assert MEASURES.origins["mine"] == Origin("mine.py", hashlib.sha256(file.read_bytes()).hexdigest())
    assert loaded_plugins() == (str(file),)


def test_the_same_bytes_are_run_once(tmp_path: Path) -> None:
    file = plugin(tmp_path, ADDS.format(name="mine"))
    load_plugin(file)
    load_plugin(plugin(tmp_path, file.read_text(), "copy.py"))
    assert loaded_plugins() == (str(file),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ADDS.format(name="half") + "1 / 0\n", "ZeroDivisionError: division by zero"),
        (ADDS.format(name="half") + "raise SystemExit(0)\n", "SystemExit: 0"),
        ("def (:\n", "SyntaxError: "),
        (ADDS.format(name="half") + ADDS.format(name="lambda_max"), "the measure 'lambda_max' exists already"),
        ("x = 1\n", "it registers nothing"),
    ],
)
def test_a_plugin_that_fails_is_named_and_leaves_nothing_behind(tmp_path: Path, text: str, words: str) -> None:
    file = plugin(tmp_path, text)
    before, modules = dict(MEASURES), set(sys.modules)
    with pytest.raises(ConfigError) as told:
        load_plugin(file)
    assert str(file) in str(told.value) and words in str(told.value)
    assert dict(MEASURES) == before and "half" not in MEASURES.origins and loaded_plugins() == ()
    assert not [m for m in set(sys.modules) - modules if m.startswith("sharpscope_plugin")]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.py cannot be read: No such file"):
        load_plugin(tmp_path / "none.py")


# -- entry points ------------------------------------------------------------------------------------------------------
@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution on sys.path whose metadata announce three measures."""
    (tmp_path / "own_measures.py").write_text(ADDS.format(name="fine"))
    (tmp_path / "own_measures_liar.py").write_text("")
    (tmp_path / "own_measures_broken.py").write_text("import nothing_of_that_name\n")
    info = tmp_path / "own-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(
        "[sharpscope.measures]\nfine = own_measures\nliar = own_measures_liar\nbroken = own_measures_broken\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_entry_points_are_listed_without_being_imported(installed: Path) -> None:
    assert MEASURES.not_loaded() == ("broken", "fine", "liar")
    assert "own_measures" not in sys.modules
    with pytest.raises(ConfigError, match="unknown measure 'finr'. Did you mean 'fine'"):
        MEASURES.find("finr", "measures")
    assert "own_measures" not in sys.modules


def test_an_entry_point_is_loaded_when_its_name_is_asked_for(installed: Path) -> None:
    assert StudyConfig(measures=("fine",)).measures == ("fine",)
    assert MEASURES.origins["fine"] == Origin("own", "1.5")
    assert MEASURES.not_loaded() == ("broken", "liar")


@pytest.mark.parametrize(
    ("name", "words"),
    [("liar", "does not add a measure of that name"), ("broken", "No module named 'nothing_of_that_name'")],
)
def test_an_entry_point_that_does_not_keep_its_word(installed: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        StudyConfig(measures=(name,))
    assert f"measures: measure '{name}' of the package own" in str(told.value)
    assert name not in MEASURES


# -- finished runs -----------------------------------------------------------------------------------------------------
def test_a_finished_run_tells_the_facts_of_its_words_and_none_of_their_code() -> None:
    facts = {"name": "theirs", "text": "t", "family": "own", "adds_up": "max", "cost": "product"} | {
        "taken_at": "alphas", "per_param": True, "share": False
    }  # fmt: skip
    told = {"word": facts, "origin": {"source": "x.py", "version": "ab"}}
    recall_words({"words": {"measure": {"theirs": told}}})
    assert MEASURES["theirs"].adds_up == "max" and MEASURES.origins["theirs"] == Origin("x.py", "ab")
    with from_outside(Origin("x.py", "cd"), "x"):
        MEASURES.add(Measure("theirs", "t", "own", "sum", "product"))  # the code comes later, and counts
    assert MEASURES["theirs"].adds_up == "sum" and MEASURES.origins["theirs"] == Origin("x.py", "cd")
    with pytest.raises(ConfigError, match="exists already"):
        MEASURES.add(Measure("theirs", "t", "own", "sum", "product"))


def test_words_are_a_mapping_in_their_own_order() -> None:
    words = Words("measure", "none", [Measure("b", "", "x", "sum", "trace"), Measure("a", "", "x", "max", "trace")])
    assert list(words) == ["b", "a"] and len(words) == 2 and words["a"].adds_up == "max" and "c" not in words
