"""What a run found, as a table that can be pasted: numbers rounded to their errors, and nothing lost in csv."""

from __future__ import annotations

import io
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sharpscope.cli.main import main
from sharpscope.errors import ConfigError, NoData, RunDirectoryError
from sharpscope.findings.resulttables import result_table
from sharpscope.study.papertables import printed_table
from sharpscope.tables.schema import COLUMNS


def made(name: str, *rows: dict[str, Any]) -> pd.DataFrame:
    blank = dict.fromkeys(COLUMNS[name])
    return pd.DataFrame([{**blank, "pair": "p", "note": "", **row} for row in rows], columns=list(COLUMNS[name]))


def sharp(layer: str, measure: str, estimate: float, stderr: float, **more: Any) -> dict[str, Any]:
    return {"layer": layer, "measure": measure, "estimate": estimate, "stderr": stderr, "alpha": 0.5, "status": "ok",
            **more}  # fmt: skip


SHARPNESS = made(
    "sharpness",
    sharp("(all)", "hessian_trace", 437.1, 33.2),
    sharp("(all)", "lambda_max", 25.04, math.nan, residual=0.2),
    sharp("head", "hessian_trace", 0.0941, 0.0221, status="not_converged"),
    sharp("head", "lambda_max", math.nan, math.nan, status="failed"),
    sharp("head", "hessian_trace", 7.0, 1.0, alpha=1.0),
)


def test_estimates_are_rounded_to_their_errors_and_csv_is_not() -> None:
    table = result_table("sharpness", SHARPNESS)
    assert table.cells.to_dict("list") == {
        "layer": ["whole model", "head"],
        "hessian_trace": ["437 ± 33 ‡", "0.094 ± 0.022 ‡*"],
        "lambda_max": ["25.04 ± 0.20 ‡", "failed"],
    }
    assert "at α = .5;" in table.notes[0] and "‡" in table.notes[1]
    assert "did not converge" in table.notes[2] and "More of --max-matvecs lowers it" in table.notes[2]
    back = pd.read_csv(io.StringIO(table.text("csv")))
    assert back["hessian_trace"].tolist() == [437.1, 0.0941] and back["hessian_trace stderr"].tolist() == [33.2, 0.0221]
    assert back["lambda_max residual"].tolist()[0] == 0.2
    assert back["layer"].tolist() == ["(all)", "head"] and set(back["alpha"]) == {0.5}


@pytest.mark.parametrize(
    ("alpha", "printed"), [(0.5, ".5"), (10.5, "10.5"), (-0.5, "-.5"), (0.0, "0"), (100.05, "100.05")]
)
def test_an_alpha_loses_its_leading_zero_and_no_other(alpha: float, printed: str) -> None:
    note = result_table("sharpness", SHARPNESS.assign(alpha=alpha)).notes[0]
    assert note.startswith(f"Sharpness at α = {printed};")


def test_models_are_compared_by_the_error_over_draws_of_images() -> None:
    """The error over directions is 0 of an exact trace; over images it is not, and it is the one that is printed."""
    rows = (
        sharp("(all)", "hessian_trace", 437.1, 9.0, stderr_images=51.0),
        sharp("(all)", "ggn_trace", 350.2, 0.0, stderr_images=41.0),
        sharp("(all)", "lambda_max", 25.04, math.nan, residual=0.2, stderr_images=3.1),
    )
    table = result_table("sharpness", made("sharpness", *rows))
    assert table.cells.to_dict("records") == [
        {"layer": "whole model", "hessian_trace": "440 ± 50", "ggn_trace": "350 ± 40", "lambda_max": "25.0 ± 3.1"}
    ]
    assert not any("‡" in note for note in table.notes)
    assert pd.read_csv(io.StringIO(table.text("csv")))["ggn_trace stderr_images"].tolist() == [41.0]


def test_measures_and_the_alpha_are_chosen_and_unknown_ones_refused() -> None:
    one = result_table("sharpness", SHARPNESS, measures=["lambda_max"])
    assert list(one.cells.columns) == ["layer", "lambda_max"] and one.notes[-1] == "Not printed: hessian_trace."
    end = result_table("sharpness", SHARPNESS, alpha=1.0)
    assert end.cells["hessian_trace"].tolist() == ["7.0 ± 1.0 ‡"] and "α = 1;" in end.notes[0]
    with pytest.raises(ConfigError, match="Did you mean 'lambda_max'"):
        result_table("sharpness", SHARPNESS, measures=["lambda_mx"])
    with pytest.raises(ConfigError, match=r"not measured at 0.7; the nearest is 0.5"):
        result_table("sharpness", SHARPNESS, alpha=0.7)
    with pytest.raises(NoData, match="no sharpness"):
        result_table("sharpness", SHARPNESS[:0])


def test_advice_and_verdicts_in_percent_points_and_words() -> None:
    rule = {"situation": "target", "group": "styles", "alpha": 0.25, "ood_accuracy": 0.5234, "id_accuracy": 0.91,
            "advised": True, "predicted_gain": 0.0567, "ci_low": 0.02, "ci_high": 0.09}  # fmt: skip
    advice = made("advice", {**rule, "rule": "labels"}, {"rule": "none", "situation": "target", "advised": False})
    (row,) = result_table("advice", advice).cells.to_dict("records")
    assert row == {"group": "styles", "known": "target", "rule": "labels", "α": ".25", "OOD": "52.3", "ID": "91.0",
                   "gain": "+5.7 [+2.0, +9.0]", "advised": "yes"}  # fmt: skip
    claim = {"claim": "sharpness tells", "group": "", "verdict": "cannot be told", "estimate": -0.351, "ci_low": -0.9,
             "ci_high": 0.68, "n": 10}  # fmt: skip
    (told,) = result_table("verdicts", made("verdicts", claim)).cells.to_dict("records")
    assert told == {"claim": "sharpness tells", "group": "—", "estimate": "−0.351 [−0.900, 0.680]", "n": "10",
                    "verdict": "cannot be told"}  # fmt: skip
    both = result_table("verdicts", made("verdicts", claim, {**claim, "pair": "q"}))
    assert both.cells["pair"].tolist() == ["p", "q"]


def test_the_command_prints_every_table_of_a_run(
    smallest_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(smallest_run[0])
    for what, word in (("sharpness", "gradient_norm"), ("advice", "OOD"), ("verdicts", "verdict")):
        for form, mark in (("latex", "\\toprule"), ("markdown", "| ---"), ("text", word), ("csv", ",")):
            assert main(["table", root, "--what", what, "--format", form]) == 0
            told = capsys.readouterr().out
            assert word in told.replace("\\_", "_") and mark in told, (what, form)
    csv = pd.read_csv(io.StringIO(printed_table(root, "verdicts").text("csv")))
    assert csv["claim"].tolist() == pd.read_csv(Path(root) / "tables/verdicts.csv")["claim"].tolist()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--what", "sharpness", "--rows", "alphas"], "--rows: has no meaning with --what sharpness"),
        (["--what", "verdicts", "--alpha", "0.5"], "--alpha: has no meaning with --what verdicts"),
        (["--measures", "lambda_max"], "--measures: has no meaning with --what accuracy"),
        (["other", "--what", "advice"], "--what advice takes one run directory, got 2"),
    ],
)
def test_a_flag_of_another_table_is_refused(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(tmp_path), *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_the_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no tables/verdicts.csv"):
        printed_table(tmp_path, "verdicts")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_without_a_complaint(tmp_path: Path) -> None:
    table = result_table("sharpness", SHARPNESS).text("latex")
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(f"{head}{table}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]
