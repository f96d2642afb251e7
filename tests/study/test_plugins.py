"""A measure of a user's own in a whole study: in every table and the report, resumable, and part of the identity."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest

from sharpscope.config import plugins
from sharpscope.config.plugins import load_plugin
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.measures import own
from sharpscope.errors import RunDirectoryError
from sharpscope.study.demo import demo_config
from sharpscope.study.report import write_derived
from sharpscope.study.run import Run, run
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import MEASURES

PLUGIN = """
from pathlib import Path
from sharpscope.curvature.measures.own import register_measure

@register_measure("gradient_square", "squared norm of the layer's gradient", adds_up="sum")
def gradient_square(layer):
    return float(layer.gradient @ layer.gradient)
"""


def forget() -> None:
    plugins._LOADED.clear()
    if "gradient_square" in MEASURES:
        MEASURES.remove("gradient_square")
    own._FUNCTIONS.pop("gradient_square", None)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(PLUGIN)
    yield file
    forget()


def config() -> StudyConfig:
    return dataclasses.replace(
        demo_config(), pairs=demo_config().pairs[:1], ood=("mini:sketch",), alphas=(0.0, 1.0), granularity="block",
        measures=("hessian_trace", "gradient_square"), straggler_criterion="share:gradient_square", probe_size=8,
        batch_size=8, limit=32, max_matvecs=4, layer_alphas=(0.0, 1.0), criticality_noise=(1.0,),
        repair_alphas=(), bootstrap=40, shipped_pairs=False, jobs=2, perturbation_alphas=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    plugin: Path, tmp_path_factory: pytest.TempPathFactory, drawing: Callable[..., AbstractContextManager[None]]
) -> Run:
    load_plugin(plugin)
    with drawing("sharpness"):
        return run(config(), tmp_path_factory.mktemp("run") / "r")


def test_it_is_in_every_table_that_has_measures_and_in_the_report(finished: Run) -> None:
    assert not finished.failed_units  # one of the two jobs is another process, which ran the file too
    mine = finished.sharpness[finished.sharpness["measure"] == "gradient_square"]
    assert set(mine["status"]) <= {"ok", "frozen"} and set(mine["alpha"]) == {0.0, 1.0}
    layers = mine[mine["layer"] != "(all)"].groupby(["pair", "alpha"])["estimate"].sum()
    whole = mine[mine["layer"] == "(all)"].set_index(["pair", "alpha"])["estimate"]
    assert layers.to_numpy() == pytest.approx(whole[layers.index].to_numpy(), rel=1e-4)  # sums of float32
    assert {"share:gradient_square", "per_param:gradient_square"} <= set(finished.stragglers["criterion"])
    assert "gradient_square" in set(finished.correlations["measure"])
    html = finished.report.read_text()
    assert "gradient_square" in html and "squared norm of the layer&#39;s gradient" in html
    assert (finished.root / "figures" / "heatmap_gradient_square.png").exists()


def test_the_file_s_digest_is_in_the_run_s_identity(finished: Run, plugin: Path) -> None:
    manifest = json.loads((finished.root / "manifest.json").read_text())
    source, digest = manifest["identity"]["from_outside"]["measure"]["gradient_square"]
    assert source == "mine.py" and len(digest) == 64


def test_resumed_with_the_same_file_the_units_are_kept(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sharpscope.study.run.write_derived", lambda directory, done, *_: write_derived(directory, done)
    )
    monkeypatch.setattr("sharpscope.study.report.all_figures", lambda *_: {})  # drawn once for ``finished``
    copy = tmp_path / "r"
    shutil.copytree(finished.root, copy)
    again = run(config(), copy)
    pd.testing.assert_frame_equal(again.sharpness, finished.sharpness)
    lines = [json.loads(line) for line in (copy / "log.jsonl").read_text().splitlines()]
    assert len([x for x in lines if x["event"] == "start"]) == 2
    assert len([x for x in lines if x["event"] == "unit"]) == len(
        [x for x in map(json.loads, (finished.root / "log.jsonl").read_text().splitlines()) if x["event"] == "unit"]
    )


def test_another_file_is_another_experiment(finished: Run, plugin: Path, tmp_path: Path) -> None:
    copy = tmp_path / "r"
    shutil.copytree(finished.root, copy)
    forget()
    changed = tmp_path / "mine.py"
    changed.write_text(PLUGIN + "# changed\n")
    load_plugin(changed)
    try:
        with pytest.raises(RunDirectoryError, match="from_outside"):
            run(config(), copy)
    finally:
        forget()
        load_plugin(plugin)


def test_report_and_correlate_need_the_tables_only_and_run_no_code_of_the_file(finished: Run, tmp_path: Path) -> None:
    """In a fresh process that never heard of the file, which is gone by then."""
    copy = tmp_path / "r"
    shutil.copytree(finished.root, copy)
    before = {p.name: p.read_bytes() for p in (copy / "tables").glob("*.csv")}
    both = (
        "import sys; from sharpscope.cli.main import main; from sharpscope.study import report; "
        "report.all_figures = lambda *_: {}; "  # drawn once for ``finished``
        f"sys.exit(main(['report', {str(copy)!r}]) or main(['correlate', {str(copy)!r}, '--csv']))"
    )
    done = subprocess.run([sys.executable, "-c", both], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gradient_square" in done.stdout
    assert {p.name: p.read_bytes() for p in (copy / "tables").glob("*.csv")} == before
    assert len(read_csv(copy / "tables" / "sharpness.csv", "sharpness")) == len(finished.sharpness)
