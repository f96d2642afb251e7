"""``sharpscope figures`` and the scripts in figures/: one function a figure, with one name, one default, one reason."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest

from sharpscope import plot
from sharpscope.cli.figures import Figures
from sharpscope.cli.main import main
from sharpscope.errors import ConfigError, NoData
from sharpscope.present.canvas import figure_bytes, figure_of
from sharpscope.present.sources import Tables
from sharpscope.present.style import COLOURS
from sharpscope.study.figures import making, script
from sharpscope.study.figures.kinds import FIGURES
from sharpscope.study.figures.making import figures
from sharpscope.study.figures.reading import tables_of
from sharpscope.study.papertables import paper_table
from sharpscope.tables.files import csv_bytes, read_csv
from tests.present import conftest as made
from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
OF_ANALYSES = {"fig_emoji", "fig_finetuners", "fig_published"}
"""Scripts that draw tables of analyses/, which no run has."""
SCRIPTS = sorted(p for p in (ROOT / "figures").glob("*.py") if p.stem not in OF_ANALYSES)
TABLES = ("accuracy", "path", "failure", "advice", "sharpness", "stragglers")
DRAWN = ("wiseft_curve", "straggler_ranking")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with some of the tables of a run, its pairs in another order than the tables'."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    (root / "tables").mkdir(parents=True)
    every = made.make_tables(made.LAYERS[:5]) | {"sharpness": made.make_sharpness(made.LAYERS[:5], ("lambda_max",))}
    for name in TABLES:
        table = every[name]
        table = table[table["alpha"].isin((0.0, 0.5, 1.0))] if "alpha" in table and name != "advice" else table
        (root / "tables" / f"{name}.csv").write_bytes(csv_bytes(table, name))
    config = {"pairs": [{"name": p} for p in made.CURVES], "straggler_criterion": "rewind"}
    (root / "manifest.json").write_text(json.dumps({"config": config}))
    return root


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Name -> what would be written, in place of images, which take most of the time."""
    kept: dict[str, Any] = {}
    for module in (making, script):
        monkeypatch.setattr(module, "write", lambda drawn, out, name: kept.update({name: drawn}) or ())
    return kept


def test_every_figure_has_a_script_and_every_script_a_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[tuple[str, str]] = []
    for path in SCRIPTS:
        monkeypatch.setattr(script, "figure_script", lambda name, text, stem=path.stem: named.append((stem, name)))
        loaded(f"figures/{path.name}")
    assert sorted(name for _, name in named) == sorted(FIGURES)
    assert all(stem == name for stem, name in named if "paper" in stem + name)
    assert not list((ROOT / "figures").glob("*.mplstyle"))


def test_screen_figures_are_those_of_the_report_byte_for_byte(run: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 17.0}):  # the machine's own settings
        done = figures([str(run)], tmp_path, only=[*DRAWN, "agreement"], style="screen")
    assert dict(matplotlib.rcParams) == before
    tables = {name: read_csv(run / "tables" / f"{name}.csv", name) for name in ("accuracy", "advice", "stragglers")}
    report = plot.all_figures(tables, "rewind", list(made.CURVES))
    assert list(done.files) == list(DRAWN) and list(done.reasons) == ["agreement"]
    for name, files in done.files.items():
        assert [f.name for f in files] == [f"{name}.png", f"{name}.pdf"]
        assert tuple(f.read_bytes() for f in files) == figure_bytes(report[name]), name


def test_what_can_be_drawn_is_drawn_and_the_rest_is_listed_with_its_reason(
    run: Path, unwritten: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["figures", str(run), "--out", "unused"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    of_run = {
        "wiseft_curve",
        "accuracy_along_alpha",
        "sharpness_along_alpha",
        "heatmap_lambda_max",
        "straggler_ranking",
    }
    papers = {f"paper_{name}" for name in (
        "sharpness_correlation", "sharpness_layers", "sharpness_lii", "wiseft_alpha", "wiseft_hyper", "wiseft_scatter",
    )}  # fmt: skip
    assert set(unwritten) == of_run | {"straggler_ranking"} | papers
    assert first == f"{len(unwritten)} figures in unused: {', '.join(unwritten)}"
    assert all(line.startswith("not drawn: ") for line in rest)
    reasons = {name: line for line in rest for name in line.split(": ")[1].split(", ")}
    kinds = {name.split("_lambda")[0] for name in unwritten} | set(reasons)
    names = {"correlation_path", "correlation_held", "correlation_pairs"}
    assert kinds - names == set(FIGURES) - {"correlation"} and names <= kinds
    assert "tables/agreement.csv: no such file; 'sharpscope run --agreement' makes this table" in reasons["agreement"]
    assert "it takes 3" in reasons["correlation_scatter"]
    assert "such as 4=runs/k4" in reasons["paper_wiseft_shots"]
    assert "Remedy: a file of more models" in reasons["robustness"]  # two fine-tuned models make no line
    own = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Figures)}
    for why in reasons.values():  # a flag is that of this command, or stands with the command that has it
        outside = re.sub(r"'sharpscope [^']*'", "", why)
        assert set(re.findall(r"--[a-z][a-z-]*", outside)) <= own, why


def test_the_manifest_decides_order_and_criterion_and_the_style_sheet_the_look(
    run: Path, unwritten: dict[str, Any]
) -> None:
    sizes = {}
    for style in making.STYLES:
        figures([str(run)], "unused", only=DRAWN, style=style)
        curve, ranking = (unwritten[name] for name in DRAWN)
        named = [t.get_text() for t in curve.legends[0].get_texts()]
        assert named[:2] == list(made.CURVES)  # the tables have them in the order of the alphabet
        assert ranking.axes[0].get_title(loc="left").startswith("rewind")
        sizes[style] = curve.axes[0].get_xticklabels()[0].get_fontsize()
    assert sizes == {"paper": 6.5, "screen": 7.0}


def copied(run: Path, root: Path, pairs: dict[str, str]) -> str:
    """The run in another folder, with its pairs called otherwise and in the order of ``pairs``."""
    (root / "tables").mkdir(parents=True)
    for file in (run / "tables").iterdir():
        table = read_csv(file, file.stem)
        (root / "tables" / file.name).write_bytes(csv_bytes(table.assign(pair=table["pair"].map(pairs)), file.stem))
    (root / "manifest.json").write_text(json.dumps({"config": {"pairs": [{"name": p} for p in pairs.values()]}}))
    return str(root)


def test_pairs_of_several_runs_come_as_the_runs_are_named_and_as_each_config_has_them(
    run: Path, tmp_path: Path, unwritten: dict[str, Any]
) -> None:
    late = copied(run, tmp_path / "a-late", {"success": "zeta", "failure": "mid"})
    early = copied(run, tmp_path / "b-early", {"failure": "nu", "success": "mid"})
    for runs, expected in (
        ((early, late), ["nu", "b-early: mid", "zeta", "a-late: mid"]),
        ((late, early), ["zeta", "a-late: mid", "nu", "b-early: mid"]),
    ):
        figures(runs, "unused", only=["wiseft_curve", "paper_wiseft_alpha"])
        for drawn in unwritten.values():
            (key,) = figure_of(getattr(drawn, "figure", drawn)).legends
            lines = {text.get_text(): line for line, text in zip(key.get_lines(), key.texts, strict=True)}
            assert list(lines)[:4] == expected and [lines[p].get_color() for p in expected] == list(COLOURS[:4])
    images = tables_of([f"4={early}", f"2={late}"]).needed("accuracy")["pair"]
    told = [f"4: nu of {early}", f"4: mid of {early}", f"2: zeta of {late}", f"2: mid of {late}"]
    assert list(dict.fromkeys(images)) == told


def test_a_printed_table_has_the_pairs_in_the_order_of_each_config(run: Path, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other", {"success": "zeta", "failure": "mid"})
    printed = paper_table([run, other]).mean["model"]
    assert list(dict.fromkeys(printed)) == [*made.CURVES, "zeta", "mid"]


def test_groups_of_every_table_have_the_order_of_the_accuracies() -> None:
    accuracy = pd.DataFrame({"pair": "p", "dataset": ["a", "b"], "group": ["styles", "natural"]})
    repair = pd.DataFrame({"pair": "p", "group": ["natural", "natural", "styles"], "gain": [1.0, 2.0, 3.0]})
    assert list(Tables.given({"accuracy": accuracy, "repair": repair}).needed("repair")["gain"]) == [3.0, 1.0, 2.0]
    assert list(Tables.given({"repair": repair}).needed("repair")["gain"]) == [1.0, 2.0, 3.0]


def test_one_reason_for_several_figures_is_said_once(run: Path, unwritten: dict[str, Any]) -> None:
    done = str(figures([str(run)], "unused", only=["wiseft_curve", "agreement", "repair", "paper_wiseft_diversity"]))
    told = [line for line in done.splitlines() if "agreement.csv" in line]
    assert told == [next(x for x in told if x.startswith("not drawn: agreement, paper_wiseft_diversity: "))]
    assert "not drawn: repair: " in done


def test_a_papers_figure_comes_with_its_caption(run: Path, tmp_path: Path) -> None:
    (files,) = figures([str(run)], tmp_path, only=["paper_sharpness_lii"]).files.values()
    assert [f.suffix for f in files] == [".png", ".pdf", ".txt"]
    assert files[2].read_text().startswith("Loss") or "arXiv" in files[2].read_text()


def test_runs_and_files_are_drawn_together(run: Path, tmp_path: Path, unwritten: dict[str, Any]) -> None:
    step = {"step_1": [-1.0, 0.0, 1.0], "step_2": None, "loss": [1.0, 0.5, 1.0], "loss_stderr": 0.1}
    pd.DataFrame(step).to_csv(tmp_path / "slice.csv", index=False)
    figures([f"4={run}", str(tmp_path / "slice.csv")], "unused", only=["paper_wiseft_shots", "loss_slice"])
    assert list(unwritten) == ["paper_wiseft_shots", "loss_slice"]
    tables = tables_of([f"4={run}"])
    assert dict(tables.images) == {f"4: {pair} of {run}": 4 for pair in made.CURVES}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"only": ["heatmaps"]}, "no figure is called 'heatmaps'. Did you mean 'heatmap'"),
        ({"only": ["heatmap_lambda_mx"]}, "Did you mean 'heatmap_lambda_max'"),
        ({"group": "odd"}, "no OOD sets are in the group 'odd'. Did you mean 'ood'"),
    ],
)
def test_an_unknown_word_is_an_error_with_a_suggestion(
    run: Path, arguments: dict[str, Any], said: str, unwritten: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=said):
        figures([str(run)], "unused", **arguments)
    assert not unwritten


def test_where_nothing_can_be_drawn_there_is_one_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"none of 1 can be drawn.\nrepair: .*repair.csv: no such file"):
        figures([str(run)], tmp_path / "out", only=["repair"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_options_of_scripts_have_the_functions_defaults_and_a_help(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = (line.split('"')[1] for line in path.read_text().splitlines() if line.startswith("main = "))
    kind, text = FIGURES[name], loaded(f"figures/{path.name}").__doc__
    parsed = vars(script._parser(kind, text).parse_args(["RUN"]))
    data = {"sources", "out", "group"} - set(kind.options())
    assert {k: v for k, v in parsed.items() if k not in data} == {o.name: o.default for o in kind.options().values()}
    defaults = {k: p.default for f in (kind.plot, kind.read) for k, p in inspect.signature(f).parameters.items()}
    assert all(defaults[o.name] == o.default for o in kind.options().values())
    assert all(o.help for o in kind.options().values()), "an option without a line in the docstring's Args"
