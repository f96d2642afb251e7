"""CONTRIBUTING.md's first two recipes, followed to the letter on a copy of the package, from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sharpscope.tables.files import read_csv

ROOT = Path(__file__).parents[1]
ARGV = (
    "run --zeroshot mini:zeroshot --finetuned mini:success --model mini --probe mini:photo "
    "--id mini:photo --ood mini:sketch --alphas 0 1 --granularity block "
    "--measures gradient_square gradient_curvature "
    "--straggler-criterion half_way --straggler-rule top:1 --probe-size 8 --batch-size 8 --limit 32 --max-matvecs 4 "
    "--layer-alphas 0 0.5 1 --criticality-noise 1 --densities 0.5 --targets delta --selects random --repair-alphas 0.5 "
    "--masks 1 --bootstrap 40 --threads 1 --out r"
)

COMMAND = """
import sys
from sharpscope.cli.main import main
from sharpscope.study import report
drawn = report.all_figures
report.all_figures = lambda tables, *how: drawn({"sharpness": tables["sharpness"]}, *how)
sys.exit(main())
"""
"""``sharpscope`` with the figures of sharpness alone, which takes a third of the time."""


def blocks() -> list[tuple[str, str]]:
    """(what the first line's comment says, the rest) of every block of Python."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return [tuple(b.split("\n", 1)) for b in re.findall(r"```python\n# (.*?)```", text, re.DOTALL)]  # type: ignore[misc]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a copy of the package that has the new measure and the new criterion."""
    home = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "sharpscope", home / "sharpscope", ignore=shutil.ignore_patterns("__pycache__"))
    for where, code in blocks():
        if row := re.fullmatch(r"a line of (\w+) in (.+)", where):
            file = home / row[2]
            source = file.read_text()
            first = re.search(rf"^{row[1]}: .*?\n(?= +[_A-Z]\w*\()", source, re.MULTILINE | re.DOTALL)
            assert first is not None, row[1]
            file.write_text(source[: first.end()] + code + source[first.end() :])
        else:
            assert not (home / where).exists()
            (home / where).write_text(code)
    # the folder that Python is started in comes before the installed package
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *ARGV.split()],
        cwd=home, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return home / "r"


def table(run: Path, name: str) -> pd.DataFrame:
    return read_csv(run / "tables" / f"{name}.csv", name)


def test_there_is_a_file_and_a_line_for_each_of_the_two_recipes() -> None:
    assert [bool(re.match("a line of", where)) for where, _ in blocks()] == [False, True, False, True]


def test_the_new_measure_is_right_in_every_table(followed: Path) -> None:
    sharpness = table(followed, "sharpness")
    mine = sharpness[sharpness["measure"] == "gradient_square"]
    assert set(mine["alpha"]) == {0.0, 1.0} and set(mine["status"]) <= {"ok", "frozen"}
    layers = mine[mine["layer"] != "(all)"].groupby(["pair", "alpha"])["estimate"].sum()
    whole = mine[mine["layer"] == "(all)"].set_index(["pair", "alpha"])["estimate"]
    assert layers.to_numpy() == pytest.approx(whole[layers.index].to_numpy(), rel=1e-4)  # sums of float32
    criteria = {"sharpness:gradient_square", "share:gradient_square", "per_param:gradient_square"}
    assert criteria <= set(table(followed, "stragglers")["criterion"])
    correlations = table(followed, "correlations")
    assert "gradient_square" in set(correlations["measure"])
    assert (followed / "figures" / "heatmap_gradient_square.png").exists()
    assert "squared norm of the layer&#39;s gradient" in (followed / "report.html").read_text()


def test_the_new_criterion_decides_and_is_right_in_every_table(followed: Path) -> None:
    stragglers = table(followed, "stragglers")
    mine = stragglers[stragglers["criterion"] == "half_way"]
    assert set(mine["base"]) == {"finetuned", "zeroshot", "midpoint"}
    of_base = mine[mine["base"] == "finetuned"].set_index(["pair", "layer"])
    assert np.isfinite(of_base.loc[of_base["status"] == "ok", "score"]).all()
    chosen = of_base[of_base["chosen"].astype(bool)]
    assert len(chosen) == 1  # top:1
    for pair, layer in chosen.index:
        assert of_base.loc[pair]["score"].idxmax() == layer
    repaired = table(followed, "repair")
    layers = repaired[repaired["control"].isin(("", "none"))].groupby("pair")["layers"].first()
    for pair, layer in chosen.index:
        assert layer in layers[pair]
    manifest = json.loads((followed / "manifest.json").read_text())
    assert manifest["config"]["straggler_criterion"] == "half_way"
    assert "half_way" in (followed / "report.html").read_text()
