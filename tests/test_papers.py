"""analyses/papers.yaml: every row of the papers names a command that the program takes, and papers.md says the same."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sharpscope.cli.main import parse
from tests.scripts import loaded

ROOT = Path(__file__).parents[1]
READ = {"In Search of the Successful Interpolation": 14, "WiSE-FT": 28, "Lipsum-FT": 17, "CLIPFit": 16, "ContCoOp": 10,
        "VRF": 8, "StarFT": 7, "R-Adapter": 9}  # fmt: skip
"""Paper -> how many tables, figures, ablations and protocols were found in it."""


@pytest.fixture(scope="module")
def papers() -> ModuleType:
    return loaded("analyses/papers.py")


def test_every_row_is_there_and_at_least_ninety_work(papers: ModuleType) -> None:
    rows = papers.read().rows
    assert Counter(row.paper.rpartition(" (")[0] for row in rows) == READ
    assert sum(row.state == "works" for row in rows) >= 90
    assert {row.step for row in rows if row.step} <= set(papers.read().steps)


def test_the_page_is_written_from_the_rows(papers: ModuleType) -> None:
    assert (ROOT / "analyses" / "papers.md").read_text(encoding="utf-8") == papers.markdown(papers.read())


def test_every_command_is_one_that_the_program_takes(papers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    for step, lines in papers.read().steps.items():
        for line in lines:
            program, *rest = shlex.split(line)
            if program == "sharpscope":
                parse(rest)
            else:
                assert program == "python" and (ROOT / rest[0]).is_file(), step


@pytest.mark.parametrize(("row", "said"), [
    ({"state": "work"}, "'work' is none of works, partly"),
    ({"state": "works"}, "names a step and its output"),
    ({"state": "works", "step": "gone", "output": "x"}, "step 'gone' is unknown"),
    ({"state": "missing"}, "says why"),
])  # fmt: skip
def test_a_row_that_contradicts_itself_is_an_error(
    papers: ModuleType, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    file = tmp_path / "papers.yaml"
    fields = ", ".join(f"{k}: {v}" for k, v in {"item": "x", **row}.items())
    file.write_text(f"words: {{}}\nsteps: {{}}\npapers:\n  P: [{{{fields}}}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        papers.read(file)


def test_a_step_runs_once_and_what_it_did_not_write_is_named(papers: ModuleType, tmp_path: Path) -> None:
    rows = (
        papers.Row("P", 1, "listed", "works", "listed", "listed.txt"),
        papers.Row("P", 2, "refused", "works", "refused", "none.csv"),
    )
    steps = {"listed": ("sharpscope list measures",), "refused": ("sharpscope list measure",)}
    made = papers.Papers(rows, steps)
    (fault,) = papers.run(made, tmp_path / "out", tmp_path / "log")
    assert "refused: exit 2" in fault and "not written: none.csv" in fault
    assert "hessian_trace" in (tmp_path / "out/listed.txt").read_text(encoding="utf-8")
    list(papers.run(papers.Papers(rows[:1], {"listed": steps["listed"]}), tmp_path / "out", tmp_path / "log"))
    assert (tmp_path / "log").read_text(encoding="utf-8").startswith("listed: there already")
