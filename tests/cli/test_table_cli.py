"""``sharpscope table`` as a user types it: runs and files in, a printed table out, nothing stored changes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sharpscope.cli import main as cli

PUBLISHED = Path(__file__).parents[1] / "exchange/published/wiseft_table5.csv"
E2E, LINEAR = "ViT-B/16, end-to-end", "ViT-B/16, linear classifier"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["table", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two run directories with the same pair, and a second whose accuracies are 1 point higher."""
    table = pd.read_csv(PUBLISHED)
    table = table[table["pair"] == E2E].assign(pair="wise")
    folders = tmp_path / "seed0", tmp_path / "seed1"
    for k, folder in enumerate(folders):
        (folder / "tables").mkdir(parents=True)
        table.assign(estimate=table["estimate"] + k / 100).to_csv(folder / "tables/accuracy.csv", index=False)
    return folders


def test_pairs_of_one_name_in_two_runs_are_seeds(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = [(r / "tables/accuracy.csv").read_bytes() for r in runs]
    words = (*map(str, runs), "--datasets", "imagenet", "imagenet-v2", "--alpha-on", "zeroshot")
    text = printed(capsys, *words)
    assert "68.8 ± 0.7" in text and "± is the standard deviation over 2 seeds." in text and "α′ = 0.5" in text
    table = pd.read_csv(io.StringIO(printed(capsys, *words, "--format", "csv")))
    assert list(table.columns[2:]) == [
        c + sd for c in ("imagenet", "imagenet-v2", "Avg shifts", "Avg ref., shifts") for sd in ("", " sd")
    ]
    assert table["imagenet"][0] == pytest.approx(68.8) and table["imagenet sd"][0] == pytest.approx(0.5**0.5)
    assert [(r / "tables/accuracy.csv").read_bytes() for r in runs] == before


def test_pairs_of_other_names_are_seeds_where_they_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    table = pd.read_csv(PUBLISHED).replace({"pair": {E2E: "a", LINEAR: "b"}})
    table.to_csv(tmp_path / "accuracy.csv", index=False)
    text = printed(
        capsys, str(tmp_path / "accuracy.csv"), "--seeds", "both=a,b", "--datasets", "imagenet", "--digits", "2"
    )
    (line,) = [line for line in text.splitlines() if "WiSE-FT, α = 0.5 " in line]
    assert line.split()[0] == "both" and line.endswith("79.95 ± 2.47")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "table: give at least one run"),
        ((str(PUBLISHED), "--seeds", "a"), "--seeds: 'a' is not NAME=PAIR,PAIR,..."),
        ((str(PUBLISHED), "--seeds", "x=a"), "seeds: no pair 'a'."),
        ((str(PUBLISHED), "--datasets", "imagenet-vv"), "datasets: the accuracies have no dataset 'imagenet-vv'. Did"),
        ((str(PUBLISHED), "--digits", "-1"), "--digits: needs a whole number from 0 to 10, got -1."),
        (("nowhere",), "nowhere: cannot be read"),
    ],
)
def test_bad_input(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", *words]) == 2
    assert told in capsys.readouterr().err


def test_torch_and_matplotlib_stay_out() -> None:
    code = (
        "import sys\nfrom sharpscope.cli.main import main\n"
        f"assert main(['table', {str(PUBLISHED)!r}]) == 0\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules), 'imported'"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
