"""``sharpscope.plot``: the example of every function runs, and what it gives shows itself in a notebook."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from types import FunctionType, SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import sharpscope
from sharpscope import plot
from sharpscope.findings.pathheights import path_heights
from sharpscope.present.canvas import figure_bytes, figure_of
from sharpscope.study.figures.kinds import FIGURES
from tests.present.test_paperplots import _changes, _few_shot, _upgrade, _with_variants

Tables = dict[str, pd.DataFrame]
DRAW = [name for name in plot.__all__ if isinstance(getattr(plot, name), FunctionType)]
WIDTH = 550


@pytest.fixture(scope="module")
def known(few: Tables, layers: tuple[str, ...]) -> dict[str, Any]:
    """What the examples name: a small run, and tables that stand alone."""
    few = {
        name: df[df["alpha"].isin((0.0, 0.3, 0.5, 1.0)) | df["alpha"].isna()] if "alpha" in df else df
        for name, df in few.items()
    }
    few = {name: df[~df["layer"].isin(layers[4:])] if "layer" in df else df for name, df in few.items()}
    path = [few["accuracy"].query("variant == 'dense'").assign(variant="path:lines")]
    accuracy = pd.concat([_with_variants(few["accuracy"]), *path], ignore_index=True)
    agreement = few["agreement"].assign(dataset="mini:" + few["agreement"]["dataset"])
    points = [(p, 0.5, d, 0.6, 0.4, 0.35, 0.05, 0.0, 0.1, "models.csv", 3, "") for p in ("a", "b") for d in ("x", "y")]
    columns = ["pair", "alpha", "dataset", "id_accuracy", "ood_accuracy", "expected", "estimate", "ci_low", "ci_high"]
    robust = pd.DataFrame(points, columns=[*columns, "baseline", "baseline_n", "note"])
    step = np.linspace(-1, 1, 5)
    return {
        "run": SimpleNamespace(**{**few, "accuracy": accuracy, "agreement": agreement}, order=("success", "failure")),
        "sharpscope": SimpleNamespace(plot=plot, robustness=lambda runs, baseline: robust),
        "points": few["points"],
        "slice": pd.DataFrame({"step_1": step, "step_2": np.nan, "loss": step**2, "loss_stderr": 0.1}),
        "settings": pd.DataFrame({"pair": ["success", "failure"], "method": ["a", "a"], "lr": [1e-3, 3e-3]}),
        "changes": _changes(),
        "few_shot": _few_shot(),
        "upgrade": _upgrade(),
        "heights": path_heights(few["path"]),
    }


@pytest.mark.parametrize("name", DRAW)
def test_the_example_runs_and_what_it_gives_shows_itself(name: str, known: dict[str, Any]) -> None:
    function = getattr(plot, name)
    (example,) = doctest.DocTestParser().get_examples(inspect.getdoc(function) or "")
    assert f"sharpscope.plot.{name}(" in example.source
    before, scope = dict(matplotlib.rcParams), dict(known)
    exec(example.source, scope)
    with_caption = inspect.signature(function).return_annotation == "Drawn"
    made = scope["drawn" if with_caption else "shown"]
    assert dict(matplotlib.rcParams) == before
    takes_axes = "ax" in inspect.signature(function).parameters
    kind = plot.Drawn if with_caption else Axes if takes_axes else Figure
    assert isinstance(made, kind)
    if with_caption:
        assert made._repr_html_.__func__ is plot.Drawn._repr_html_ and hasattr(made.figure, "_repr_png_")
    else:
        assert hasattr(made, "_repr_png_")


def test_a_cell_shows_a_figure_and_axes_as_the_png_of_the_file(few: Tables) -> None:
    ax = plot.wiseft_curve(few["accuracy"])
    png, size = ax._repr_png_()  # type: ignore[attr-defined]
    assert size == {"width": WIDTH}
    layout = figure_of(ax).get_layout_engine()
    assert layout is not None and layout.__class__.__name__ == "ConstrainedLayoutEngine"  # still free to be changed
    assert figure_bytes(plot.wiseft_curve(few["accuracy"]))[0] == png


def test_a_papers_figure_shows_its_caption_as_text() -> None:
    made = plot.paper_clipfit_shots(_few_shot())
    told = plot.Drawn(made.figure, "a < b")._repr_html_()
    assert told.startswith(f'<figure><img width="{WIDTH}" alt="" src="data:image/png;base64,iVBOR')
    assert told.endswith("<figcaption>a &lt; b</figcaption></figure>")


@pytest.mark.parametrize("name", [n for n in DRAW if "ax" in inspect.signature(getattr(plot, n)).parameters])
def test_one_panel_is_drawn_into_the_axes_that_are_given(name: str, few: Tables, known: dict[str, Any]) -> None:
    ax = Figure().add_subplot()
    table = {"wiseft_curve": few["accuracy"], "loss_slice": known["slice"]}[name]
    assert getattr(plot, name)(table, ax=ax) is ax


def test_every_figure_of_a_run_or_a_paper_is_public() -> None:
    assert {kind.plot for kind in FIGURES.values()} <= {getattr(plot, name) for name in DRAW}


def test_the_module_opens_when_it_is_first_used_and_not_before() -> None:
    code = (
        "import sys, sharpscope\nassert 'matplotlib' not in sys.modules\n"
        "sharpscope.plot.heatmap\nassert not {'torch', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sharpscope.plot is plot and "plot" in dir(sharpscope)
