"""Every command line and every block of Python of README and docs/, run in a folder that is made for them.

``PARSED`` says which command lines are not run, and why: those are parsed as far as files go (``parsed.py``). Every
other line is run with the settings of ``CHEAP``, and has to end with exit code 0; a line of a program that is not known
here is a failure. Python is run as it is printed, but for the settings of ``CHEAPER``.
"""

from __future__ import annotations

import functools
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharpscope.cli import main as cli
from sharpscope.clip.datasets import mini
from sharpscope.config import plugins
from sharpscope.curvature.measures import own
from sharpscope.study import report, sidebyside
from sharpscope.vocabulary import MEASURES
from tests.docs.blocks import ROOT, Command, blocks, commands, languages
from tests.docs.made import TINY, make, tiny_flags
from tests.docs.parsed import parsed

PARSED: tuple[tuple[str, str], ...] = (
    (r"sharpscope demo", "takes minutes"),
    (r"sharpscope protocol", "trains a dozen models; tests/study/test_protocols.py runs them"),
    (r"sharpscope sweep", "trains dozens of models; tests/study/test_sweep.py runs one"),
    (r"sharpscope run study.yaml --gran", "is a study of two pairs; README's study is run"),
    (r"sharpscope run .*styles=", "is a study like README's, which is run"),
    (r"sharpscope run .*pets-study", "is a study like README's, which is run"),
    (
        r"sharpscope run --plugin",
        "is a study; tests/study/test_plugins.py runs one, and here the file is loaded",
    ),
    (r"sharpscope report .*--alpha-on", "is the report again; tests/present/test_alphas.py has it"),
    (r"sharpscope .*--slurm", "needs a cluster"),
    (r"sharpscope .*--shard", "is a run like the others; tests/study/test_ranks.py runs shards"),
    (r"sharpscope .*hf-hub:", "needs the network"),
    (r"torchrun .*", "needs several ranks; tests/study/test_ranks.py has them"),
    (r"python benchmarks/.*", "takes minutes"),
    (r"make .*", "sets up an environment"),
    (r"pip install .*", "needs the network"),
)
"""(The lines that are only parsed, as a pattern; why)."""
CHEAP: dict[str, list[str]] = {
    "run": tiny_flags(),
    "plan": tiny_flags(),
    "finetune": ["--steps", "1", "--batch-size", "2", "--out", "tuned"],
    "evaluate": ["--model", "mini", "--templates", "one.txt", "--limit", "4", "--batch-size", "8"],
    "figures": ["--only", "wiseft_curve"],
    "advise": ["--bootstrap", "20"],
    "merge": ["--model", "mini", "--templates", "one.txt"],
    "fisher": ["--probe-size", "4"],
}
"""Command -> flags that make it cheap. One that the line has too is replaced, unless it is among ``KEPT``."""
KEPT = ("--model", "--measures", "--alphas", "--only", "--granularity")
CHEAPER = (
    ("size=64", "size=6"),
    ("alphas=(0, 0.5, 1),\n)", "**TINY,\n)"),
    ('measures=("hessian_trace",)', 'measures=("hessian_trace",), max_matvecs=4'),
    ("path.at(0.5), directions", "path.at(0.5), directions, points=3"),
)
"""What is printed in a block of Python -> what is run: fewer images, a smaller study."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The made folder, as working directory; the world is small, and reports are without figures, which others test."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("pages")
        patch.chdir(root)
        for module in (report, sidebyside):
            patch.setattr(module, "all_figures", lambda *tables, **how: {})
        patch.setattr(mini, "MINI_SIZES", {"train": 96, "val": 48, "test": 96})
        make(root)
        yield root
    plugins._LOADED.clear()
    if "gradient_cube" in MEASURES:
        MEASURES.remove("gradient_cube")
    own._FUNCTIONS.pop("gradient_cube", None)


def reason(command: Command) -> str:
    """Why a line is not run; empty for one that is."""
    return next((why for pattern, why in PARSED if re.match(pattern, " ".join(command.words))), "")


ALL = commands()


@pytest.mark.parametrize("command", [c for c in ALL if not reason(c)], ids=str)
def test_a_line_does_what_it_says(command: Command, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = here(command.words)
    if program == "sharpscope":
        assert cli.main(cheap(words)) == 0, capsys.readouterr().err
    elif program == "python" and words[0].startswith("figures/"):
        figure(words)
    else:
        pytest.fail(f"{command.place}: how is '{' '.join(command.words)}' run? Nobody said.")


@pytest.mark.parametrize("command", [c for c in ALL if reason(c)], ids=str)
def test_a_line_that_is_not_run_is_right_as_far_as_files_go(command: Command, folder: Path) -> None:
    program, *words = here(command.words)
    parsed(program, words)


def test_every_reason_not_to_run_a_line_is_used() -> None:
    lines = [" ".join(c.words) for c in ALL]
    assert [p for p, _ in PARSED if not any(re.match(p, line) for line in lines)] == []
    assert sum(not reason(c) for c in ALL) > sum(bool(reason(c)) for c in ALL), "most lines are run"


PYTHON = [b for b in blocks("python") if not b.name]


@pytest.mark.parametrize("page", list(dict.fromkeys(b.page for b in PYTHON)))
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, folder: Path) -> None:
    """All of a page's blocks in one notebook, so to speak."""
    names: dict[str, Any] = {"TINY": TINY}
    for block in PYTHON:
        if block.page == page:
            code = functools.reduce(lambda text, change: text.replace(*change), CHEAPER, block.text)
            exec(compile("\n" * (block.line - 1) + code, page, "exec"), names)
    if "table" in names:
        assert set(names["table"]["alpha"]) == {0.0, 0.5, 1.0} and (names["table"]["status"] != "failed").all()


def test_every_change_of_what_is_printed_is_needed() -> None:
    assert [old for old, _ in CHEAPER if not any(old in b.text for b in PYTHON)] == []


def test_every_block_has_a_language_that_some_test_looks_at() -> None:
    assert languages() <= {"sh", "python", "yaml", "text", "{toctree}"}


# -- a line, as it is run here -----------------------------------------------------------------------------------------


def here(words: tuple[str, ...]) -> list[str]:
    """``words`` with the made folder's data, and the embedded world's model in place of the named ones."""
    out = [re.sub(r"(^|:)/data\b", r"\1data", word) for word in words]
    for flag in ("--model", "--upgraded-model"):
        if flag in out and words[0] != "python":
            out[out.index(flag) + 1] = "mini"
    for i, word in enumerate(out):
        if word == "imagenet" and out[i - 1] == "--templates":
            out[i] = "one.txt"
    return out


def cheap(words: list[str]) -> list[str]:
    """``words`` with the flags of ``CHEAP`` in place of their own."""
    flags = CHEAP.get(words[0], [])
    kept, dropped = [], False
    for word in words:
        if word.startswith("--"):
            dropped = word in flags and word not in KEPT
        if not dropped:
            kept.append(word)
    given, taken = [], False
    for word in flags:
        if word.startswith("--"):
            taken = word not in kept
        if taken:
            given.append(word)
    return [*kept, *given]


def figure(words: list[str]) -> None:
    """Run a script of figures/ in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
        try:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code
    if "--out" in words:
        assert list(Path(words[words.index("--out") + 1]).glob("*.pdf"))
