"""Several runs in one report: every pair under a name of its own, and nothing that is true of one run only."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from sharpscope.cli import main as cli
from sharpscope.errors import ConfigError, RunDirectoryError
from sharpscope.study.sidebyside import reports
from sharpscope.tables.files import read_csv
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import PAIRS


@pytest.fixture
def two(smallest_run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The smallest run twice, in folders a and b; no figure is drawn."""
    monkeypatch.setattr("sharpscope.study.sidebyside.all_figures", lambda *_: {})
    roots = [tmp_path / name for name in ("a", "b")]
    for root in roots:
        shutil.copytree(smallest_run[0], root)
    return roots


def test_every_pair_of_every_run_stands_there_under_a_name_of_its_own(two: list[Path], tmp_path: Path) -> None:
    before = {p: p.read_bytes() for root in two for p in root.rglob("*") if p.is_file()}
    run = reports(two, tmp_path / "both")
    assert run.order == ("success (a)", "success (b)")
    for name in COLUMNS:
        own = read_csv(two[0] / "tables" / f"{name}.csv", name)
        own = own[own["pair"] != PAIRS]
        together = read_csv(tmp_path / "both/tables" / f"{name}.csv", name)
        assert len(together) == 2 * len(own)
        for folder in "ab":
            part = together[together["pair"] == f"success ({folder})"].assign(pair="success")
            key = [c for c in part.columns if part[c].notna().any()]
            assert len(part) == len(own)
            if len(part):
                left, right = (t[key].sort_values(key, ignore_index=True) for t in (part, own))
                pd.testing.assert_frame_equal(left, right, check_dtype=False)
    assert PAIRS not in set(run.verdicts["pair"]) and len(run.accuracy)
    page = run.report.read_text()
    assert page.count("success (a)") > 2 and page.count("success (b)") > 2 and "a and b, side by side" in page
    assert before == {p: p.read_bytes() for root in two for p in root.rglob("*") if p.is_file()}, "runs do not change"
    again = reports(two, tmp_path / "both")
    assert again.report.read_text() == page


def test_pairs_of_different_names_keep_them(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in [two[1] / "manifest.json", *(two[1] / "tables").glob("*.csv")]:
        path.write_text(path.read_text().replace('"success"', '"other"').replace("success,", "other,"))
    run = reports(two, tmp_path / "both")
    assert run.order == ("success", "other") and set(run.accuracy["pair"]) == {"success", "other"}


def test_groups_of_one_name_with_other_sets_are_kept_apart(two: list[Path], tmp_path: Path) -> None:
    accuracy = read_csv(two[1] / "tables/accuracy.csv", "accuracy")
    (spec,) = set(accuracy.loc[accuracy["role"] == "ood", "dataset"])
    together = reports(two, tmp_path / "same")
    assert set(together.accuracy["group"]) == {"", "ood"}, "the same sets are one group"
    for path in (two[1] / "tables").glob("*.csv"):
        path.write_text(path.read_text().replace(spec, "folder:elsewhere"))
    run = reports(two, tmp_path / "both")
    names = {"success (a)": f"ood ({spec})", "success (b)": "ood (folder:elsewhere)"}
    for table in (run.accuracy, run.failure, run.advice):
        for pair, own in table[table["group"] != ""].groupby("pair"):
            assert set(own["group"]) == {names[pair]}
    for line in (x for x in run.summary().splitlines() if "along success" in x):
        (pair,) = (p for p in names if p in line)
        assert line.strip().startswith(f"{names[pair]}: along {pair}"), "the sets of the pair's own run, said once"
    page = run.report.read_text()
    assert page.count("on the OOD sets of") == 2, "each pair is judged on the sets that it was measured on"


def test_what_cannot_be_put_side_by_side_is_refused_before_anything_is_written(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "both"
    with pytest.raises(ConfigError, match="need two run directories at least"):
        reports(two[:1], out)
    with pytest.raises(ConfigError, match="two run directories are called 'a'.*\nRemedy: rename"):
        reports([two[0], two[0]], out)
    with pytest.raises(ConfigError, match="holds something else.\nRemedy: a new folder"):
        reports(two, two[0])
    (two[1] / "tables/advice.csv").unlink()
    with pytest.raises(RunDirectoryError, match="advice.csv: no such file; 'sharpscope report RUN' writes the tables"):
        reports(two, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("report a b", "several runs need a folder.*Remedy: --out FOLDER"),
        ("report a --out c", "the report of one run is written into its directory"),
        ("report a b --out c --export wise-ft", "Remedy: sharpscope report RUN --export"),
        ("report", "name a run directory"),
    ],
)
def test_flags_that_do_not_go_together_are_told(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(flags.split()) == 2
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))
