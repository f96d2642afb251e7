"""Figures: what they show is what the tables hold, nothing overlaps or is cut off, and the bytes are reproducible."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from sharpscope import plot as plots
from sharpscope.errors import ConfigError, NoData
from sharpscope.present import canvas, style
from sharpscope.present.furtherplots import paths_along_alpha
from sharpscope.present.pathplots import sharpness_along_alpha, wiseft_curve
from sharpscope.present.style import PAIR_MARKS
from sharpscope.tables.files import csv_bytes
from sharpscope.tables.rows import points_of
from sharpscope.vocabulary import ALL, DENSE, OOD_MEAN, OUTPUT_BASELINES, PATHS, path_variant
from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "figures").glob("fig_*.py"))
NAMES = {
    "success": "$\\frac{x$ <script>\n",
    "failure": "_nolegend_ 层",
    "visual.transformer.resblocks.3.mlp": "$" + "x_" * 200,
    "mini:photo-dark": "folder:/data/\x1b[31m_$dark",
    "sharpness:hessian_trace": "sharpness:$\\hessian{",
}
Tables = dict[str, pd.DataFrame]


@pytest.fixture(scope="module")
def figures(few: Tables) -> dict[str, Figure]:
    return plots.all_figures(few)


@pytest.fixture(scope="module")
def drawn(figures: dict[str, Figure]) -> dict[str, tuple[bytes, bytes]]:
    some = ("wiseft_curve", "accuracy_along_alpha", "heatmap_lambda_max", "straggler_ranking", "correlation_pairs")
    return {name: canvas.figure_bytes(figures[name]) for name in some}


def with_paths(accuracy: pd.DataFrame) -> pd.DataFrame:
    """``accuracy`` with the same numbers, a little lower, for every path that can be chosen."""
    rows = [accuracy]
    for i, name in enumerate(n for n in PATHS if n != "linear"):
        lower = {c: accuracy[c] - 0.03 * (i + 1) * accuracy["alpha"] for c in ("estimate", "ci_low", "ci_high")}
        rows.append(accuracy[accuracy["variant"] == DENSE].assign(variant=path_variant(name), **lower))
    return pd.concat(rows, ignore_index=True)


def test_advised_alphas_are_ringed_on_their_pair_and_group(few: Tables, tables: Tables) -> None:
    accuracy, advice = few["accuracy"], tables["advice"]
    means = accuracy[(accuracy["variant"] == DENSE) & (accuracy["role"] == OOD_MEAN)].set_index(["pair", "alpha"])

    def rings(table: pd.DataFrame | None) -> list[list[float]]:
        figures = (wiseft_curve(accuracy, advice=table).figure, plots.accuracy_along_alpha(accuracy, advice=table))
        lines = [line for figure in figures for ax in figure.axes for line in ax.get_lines()]
        return [
            line.get_ydata().tolist()
            for line in lines
            if line.get_markerfacecolor() == "none" and line.get_ydata().size
        ]

    want = 100 * means.loc[("success", 0.4), "estimate"]
    assert rings(advice) == [[pytest.approx(want)]] * 2, "failure has advice without an alpha"
    assert rings(advice.assign(group="elsewhere")) == rings(None) == []
    both = pd.concat([advice, advice[:1].assign(alpha=0.8, rule="second")])
    assert [len(r) for r in rings(both)] == [2, 2]
    assert len(rings(advice.assign(group=""))) == 2, "advice for no group in particular holds for each"


def test_further_paths_are_drawn_where_there_are_any(few: Tables) -> None:
    """One black line and one of its own colour for each path in both panels, at the table's numbers."""
    with pytest.raises(NoData, match="no path but the linear one"):
        paths_along_alpha(few["accuracy"])
    accuracy = with_paths(few["accuracy"])
    figure = paths_along_alpha(accuracy)
    assert len(figure.axes) == 4  # two panels for each of two pairs
    assert [t.get_text() for t in figure.legends[0].get_texts()][:7] == list(PATHS)
    along, plane = figure.axes[:2]
    colours = [line.get_color() for line in along.get_lines()]
    assert len(colours) == len(set(colours)) == len(PATHS) == len(plane.get_lines())
    for line, name in zip(along.get_lines(), PATHS, strict=True):
        own = accuracy[(accuracy["variant"] == path_variant(name)) & (accuracy["pair"] == "success")]
        mean = own[own["role"] == "ood_mean"].sort_values("alpha")
        np.testing.assert_allclose(line.get_ydata(), 100 * mean["estimate"])
    width, height = figure.bbox.size
    for text, box in boxes(figure):
        assert box[0] >= -1 and box[1] >= -1 and box[2] <= width + 1 and box[3] <= height + 1, text.get_text()


@cache
def boxes(figure: Figure) -> list[tuple[Text, np.ndarray]]:
    """Every visible text with its box in pixels, after a draw: only then are labels where they will be."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    unseen = set()  # ticks beyond the limits exist but are not drawn
    for ax in figure.axes:
        unseen |= set() if ax.get_visible() else set(ax.findobj(Text))
        for axis, side in ((ax.xaxis, 0), (ax.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            unseen |= {t for t in axis.get_ticklabels(which="both") if not low <= t.get_position()[side] <= high}
    found = []
    for text in figure.findobj(lambda a: isinstance(a, Text) and a not in unseen):
        if text.get_visible() and text.get_text().strip():
            found.append((text, text.get_window_extent(renderer).extents))
    return found


def test_all_figures_are_there(figures: dict[str, Figure], few: Tables) -> None:
    heat = ["heatmap_hessian_trace", "heatmap_lambda_max", "heatmap_lambda_min"]
    rest = [
        "spectral_density",
        "straggler_ranking",
        "repair",
        "correlation_path",
        "correlation_pairs",
        "correlation_scatter",
        "sharpness_and_gain_ood",
    ]
    along = ["wiseft_curve", "accuracy_along_alpha", "agreement", "sharpness_along_alpha"]
    assert list(figures) == [*along, *heat, *rest]
    assert {figure.get_figwidth() for figure in figures.values()} == {5.5}
    quick = {name: few[name] for name in ("accuracy", "path", "density", "repair")}
    whole = {"wiseft_curve", "accuracy_along_alpha", "spectral_density", "repair"}
    parts = [plots.all_figures(quick, share=(k, 3)) for k in range(3)]
    assert sorted(name for part in parts for name in part) == sorted(whole)
    assert all(parts)
    assert max(figure.get_figheight() for figure in figures.values()) < 8.5


def test_png_and_pdf_are_the_same_bytes_each_time_and_carry_no_date(
    few: Tables, drawn: dict[str, tuple[bytes, bytes]], figures: dict[str, Figure]
) -> None:
    again = plots.all_figures({k: few[k] for k in ("accuracy", "advice", "path", "failure")})
    assert len(again) == 2
    for name, figure in again.items():
        assert canvas.figure_bytes(figure) == drawn[name]
        assert canvas.figure_bytes(figures[name]) == drawn[name]
    for png, pdf in drawn.values():
        assert png.startswith(b"\x89PNG") and pdf.startswith(b"%PDF")
        for word in (b"CreationDate", b"Producer", b"Creator", b"Software", b"Matplotlib"):
            assert word not in pdf and word not in png
        assert b"/Type3" not in pdf


def test_no_text_is_cut_off_and_tick_labels_keep_apart(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        width, height = figure.bbox.size
        for text, box in boxes(figure):
            where = f"{name}: {text.get_text()!r} at {box}"
            assert box[0] >= -1 and box[1] >= -1 and box[2] <= width + 1 and box[3] <= height + 1, where
        for ax in (a for a in figure.axes if a.get_visible()):
            for axis, side in ((ax.xaxis, 0), (ax.yaxis, 1)):
                labels = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible() and not t.get_rotation()]
                low, high = sorted(axis.get_view_interval())
                spans = [t.get_window_extent().extents for t in labels if low <= t.get_position()[side] <= high]
                spans = sorted((e[side], e[side + 2]) for e in spans)
                assert all(a[1] <= b[0] + 1 for a, b in pairwise(spans)), f"{name} {axis}"


@pytest.mark.slow
def test_titles_and_legends_do_not_cover_each_other(figures: dict[str, Figure], few: Tables) -> None:
    names = (
        "wise-ft 1e-5",
        "lipsum-ft seed 2",
        "a pair whose name is far too long for any title",
        "resnet50-quickgelu-lr3e-5-seed17-epoch10",
        "contcoop",
    )
    copies = [few["accuracy"], *(few["accuracy"].query("pair == 'success'").assign(pair=n) for n in names)]
    accuracy = pd.concat(copies, ignore_index=True)
    repair = pd.concat([few["repair"].query("pair == 'success'").assign(pair=n) for n in names], ignore_index=True)
    sharp = pd.concat([few["sharpness"].query("pair == 'success'").assign(pair=n) for n in names], ignore_index=True)
    many = [f"lr{i}-seed{i}" for i in range(40)]
    one = {t: few[t].query("pair == 'success'") for t in ("accuracy", "sharpness")}
    sweep = {
        t: pd.concat([own.assign(pair=n, estimate=own["estimate"] * (1 + i / 80)) for i, n in enumerate(many)])
        for t, own in one.items()
    }
    crowd = {
        "40 curves": wiseft_curve(sweep["accuracy"]).figure,
        "40 lines": sharpness_along_alpha(sweep["sharpness"]),
        "40 points": plots.correlation_scatter(points_of(sweep["sharpness"], sweep["accuracy"])),
        "7 pairs": plots.accuracy_along_alpha(accuracy, few["path"], few["failure"]),
        "7 curves": wiseft_curve(accuracy).figure,
        "5 repairs": plots.repair(repair.query("target == 'delta'")),
        "5 heat maps": plots.heatmap(sharp, "lambda_max"),
    }
    for name in ("40 curves", "40 lines"):  # as many names would leave no room for the panels
        assert crowd[name].legends[0].get_texts()[0].get_text() == "each of 40 pairs"
        assert all(ax.get_window_extent().height > 50 for ax in crowd[name].axes if ax.get_visible())
    assert not any(ax.texts for name in ("40 curves", "40 points") for ax in crowd[name].axes)
    assert crowd["7 pairs"].legends[0].get_texts()[-1].get_text() == "1 more pairs in the table"
    for name, figure in {**figures, **crowd}.items():
        for text, box in boxes(figure):
            assert box[0] >= -1 and box[2] <= figure.bbox.width + 1, f"{name}: {text.get_text()!r} is cut off"
        axes = [a for a in figure.axes if a.get_visible()]
        titles = [t for a in axes for t in (a.title, a._left_title) if t.get_text()]  # type: ignore[attr-defined]
        labels = [t for a in axes for t in (a.xaxis.label, a.yaxis.label) if t.get_text()]
        ends = [t.get_window_extent() for t in [*titles, *labels]] + [x.get_window_extent() for x in figure.legends]
        for i, one in enumerate(ends):
            for other in ends[i + 1 :]:
                overlap = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
                assert min(overlap) <= 1, f"{name}: two texts overlap at {one.extents} and {other.extents}"


def test_nothing_global_changes(few: Tables) -> None:
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 11.0}):
        ax = wiseft_curve(few["accuracy"])
        assert ax.xaxis.label.get_fontsize() == style.STYLE["axes.labelsize"]
        assert matplotlib.rcParams["font.size"] == 11.0
    with matplotlib.rc_context({"axes.labelsize": 13.0}):
        assert wiseft_curve(few["accuracy"]).xaxis.label.get_fontsize() == 13.0
    plots.all_figures({"accuracy": few["accuracy"]})
    assert dict(matplotlib.rcParams) == before


def bars_of(ax: Axes) -> list[float]:
    """The alphas of the bars that mark a point below both ends."""
    return [float(line.get_xdata()[0]) for line in ax.lines if line.get_linewidth() == 5]  # type: ignore[index]


def test_a_bar_stands_at_the_point_that_f2_finds_and_nowhere_else(few: Tables) -> None:
    figure = plots.accuracy_along_alpha(few["accuracy"], few["path"], few["failure"])
    panels = {ax.get_title(loc="left").split(" ")[0]: ax for ax in figure.axes if ax.get_title(loc="left")}
    assert {pair: bars_of(ax) for pair, ax in panels.items()} == {"success": [], "failure": [0.2]}
    assert not any(ax.patches for ax in figure.axes), "nothing is shaded between the points that were measured"
    assert panels["failure"].get_title(loc="left") == "failure (flags F1, F2, F3, F4)"
    assert panels["success"].get_title(loc="left") == "success (no failure flag)"
    calm = few["failure"].assign(present=few["failure"]["present"] & (few["failure"]["flag"] != "F2"))
    for failure in (calm, None):
        quiet = plots.accuracy_along_alpha(few["accuracy"], failure=failure)
        assert not any(bars_of(ax) or ax.patches for ax in quiet.axes)
        assert "below both ends (F2)" not in [text.get_text() for text in quiet.legends[0].get_texts()]
    assert len(quiet.axes) == 2 and len(figure.axes) == 4


def test_a_pair_has_panels_of_the_groups_that_it_was_measured_on_alone(few: Tables) -> None:
    def apart(table: pd.DataFrame) -> pd.DataFrame:
        own = (table["pair"] == "failure") & (table["group"] == "ood")
        return table.assign(group=table["group"].mask(own, "far"))

    accuracy, failure = apart(few["accuracy"]), apart(few["failure"])
    figure = plots.accuracy_along_alpha(accuracy, few["path"], failure)
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes if ax.get_title(loc="left")]
    assert titles == ["success, ood (no failure flag)", "failure, far (flags F1, F2, F3, F4)"]
    curves = plots.wiseft_curves(accuracy)
    legend = [text.get_text() for text in curves.legends[0].get_texts()]
    assert {"success", "failure"} <= set(legend) and len(legend) == len(set(legend))
    colours = {str(line.get_label()): line.get_color() for ax in curves.axes for line in ax.lines}
    assert colours["success"] != colours["failure"], "a pair has one colour in all panels"


def test_the_curve_starts_at_zero_shot_and_ends_at_fine_tuned(few: Tables) -> None:
    ax = wiseft_curve(few["accuracy"])
    assert isinstance(ax, Axes)
    lines = {
        line.get_label(): line.get_xydata() for line in ax.get_lines() if not str(line.get_label()).startswith("_")
    }
    assert set(lines) == {"success", "failure"}
    np.testing.assert_allclose(lines["success"][0], (56.5, 41.78), atol=0.01)
    np.testing.assert_allclose(lines["success"][-1], (89.8, 55.0556), atol=0.01)
    assert sorted(t.get_text() for t in ax.texts) == ["0.2", "0.2", "0.5", "0.5", "0.8", "0.8"]
    given = Figure().add_subplot()
    assert wiseft_curve(few["accuracy"], ax=given) is given


@pytest.mark.parametrize("measure", ["hessian_trace", "lambda_min", "lambda_max"])
def test_heat_maps_mark_what_has_no_logarithm_did_not_converge_or_failed(few: Tables, measure: str) -> None:
    table = few["sharpness"][few["sharpness"]["measure"] == measure]
    figure = plots.heatmap(few["sharpness"], measure)
    panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in panels] == ["success", "failure"]
    sign = -1 if measure == "lambda_min" else 1
    hatched = sum(isinstance(p, Rectangle) and p.get_hatch() is not None for ax in panels for p in ax.patches)
    assert hatched == (sign * table["estimate"] <= 0).sum()
    assert (hatched > 0) == (measure == "hessian_trace")
    rings = sum(len(c.get_offsets()) for ax in panels for c in ax.collections[1:])
    assert rings == table["status"].isin(("not_converged", "failed")).sum() > 0
    meshes = [ax.collections[0] for ax in panels]
    assert meshes[0].norm is meshes[1].norm
    shown = np.concatenate([m.get_array().compressed() for m in meshes])
    good = sign * table["estimate"]
    np.testing.assert_allclose(np.sort(shown), np.sort(good[good > 0]))
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert ("failed" in words) == (measure == "lambda_max")
    labels = [t.get_text() for t in panels[0].get_yticklabels()]
    assert labels[:3] == ["whole model", "conv1", "embed"] and labels[-1] == "head"
    assert panels[0].get_ylim()[0] > panels[0].get_ylim()[1]


def test_stragglers_are_filled_where_chosen(few: Tables) -> None:
    criteria = ["rewind", "sharpness:ggn_trace"]
    figure = plots.straggler_ranking(few["stragglers"], criteria)
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["rewind\nfinetuned", "sharpness\nggn_trace"]
    assert len(figure.axes) == 8
    table = few["stragglers"]
    for ax, pair in ((figure.axes[1], "success"), (figure.axes[5], "failure")):
        own = table[(table["pair"] == pair) & (table["criterion"] == "sharpness:ggn_trace")]
        chosen = [
            c
            for c in ax.collections
            if len(c.get_facecolor()) and tuple(c.get_facecolor()[0]) == to_rgba(style.COLOURS[1])
        ]
        assert sum(len(c.get_offsets()) for c in chosen) == own["chosen"].sum() > 0
        assert len(ax.texts) == (own["probability"] >= 0.005).sum()


def test_an_unknown_criterion_is_no_empty_panel(few: Tables) -> None:
    with pytest.raises(ConfigError, match="criteria: 'rewnd' is none of .* Did you mean 'rewind'"):
        plots.straggler_ranking(few["stragglers"], ["rewnd", "rewind"])


def test_the_main_criteria_are_shown_when_nobody_asks_for_others(few: Tables) -> None:
    figure = plots.straggler_ranking(few["stragglers"])
    families = [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes[:4]]
    assert families == ["share", "change", "instability", "rewind"]


@pytest.mark.parametrize(
    ("deciding", "first"),
    [
        (None, ["instability", "change"]),
        ("rewind", ["rewind", "instability", "change"]),
        ("share:hessian_trace", ["share", "instability", "change"]),
    ],
)
def test_both_definitions_of_a_straggler_stand_side_by_side(
    deciding: str | None, first: list[str], few: Tables
) -> None:
    figure = plots.all_figures({"stragglers": few["stragglers"]}, deciding)["straggler_ranking"]
    families = [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes[:4]]
    assert families[: len(first)] == first


def test_a_layer_that_does_not_move_is_known_by_its_status_and_keeps_its_colour(few: Tables) -> None:
    table = few["sharpness"].query("measure == 'lambda_max'").copy()

    def marked(table: pd.DataFrame) -> tuple[int, list[str], np.ndarray]:
        figure = plots.heatmap(table, "lambda_max")
        bars = [p for ax in figure.axes for p in ax.patches if p.get_facecolor() == to_rgba(style.INK["grey"])]
        words = [t.get_text() for t in figure.legends[0].get_texts()]
        mesh = next(c for c in figure.axes[0].collections if isinstance(c, QuadMesh))
        return len(bars), words, np.ma.filled(mesh.get_array(), np.nan)

    table["note"] = "the layer does not move"  # a note is for reading, not for deciding
    none, words, colours = marked(table)
    assert none == 0 and "does not move" not in words
    still = table["layer"].isin(("visual.conv1", "head"))
    bars, words, again = marked(table.assign(note="", status=table["status"].mask(still, "frozen")))
    assert bars == 4 and "does not move" in words  # two layers in each of two pairs
    np.testing.assert_array_equal(again, colours)


def test_the_legend_of_a_repair_does_not_call_a_layer_a_straggler_that_is_none(few: Tables) -> None:
    def legends(counts: dict[str, int]) -> list[str]:
        table = few["repair"].assign(n_stragglers=few["repair"]["pair"].map(counts).astype("Int64"))
        paper = plots.paper_sharpness_repair(table, few["accuracy"])
        both = [plots.repair(table), paper.figure]
        texts = [t.get_text() for figure in both for t in figure.legends[0].get_texts()] + [paper.caption]
        return [text for text in texts if "straggler" in text]

    one = "layer with the highest score"
    for text in legends({"success": 0, "failure": 0}):
        assert f"{one} (no straggler)" in text and "stragglers" not in text
    for text in legends({"success": 0, "failure": 2}):
        assert f"stragglers, or where none: {one}" in text
    for counts in ({"success": 1, "failure": 2}, {}):  # runs from before the column do not say it
        told = legends(counts)
        assert len(told) == 3 and not any(one in text for text in told)


def test_repair_shows_gain_in_points_beside_the_zero_line(few: Tables) -> None:
    figure = plots.repair(few["repair"], alpha=0.31)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels[:2]] == [
        "success: sparse delta, α = 0.3",
        "failure: sparse delta, α = 0.3",
    ]
    table = few["repair"]
    own = table[(table["pair"] == "success") & (table["target"] == "delta") & (table["alpha"] == 0.3)]
    points = np.concatenate([c.lines[0].get_xdata() for c in panels[0].containers]).astype(float)
    np.testing.assert_allclose(np.sort(points), np.sort(100 * own["gain"]))
    words = [t.get_text() for t in figure.legends[0].get_texts()]
    assert words[:2] == ["stragglers", "random other layers"]


def test_correlation_marks_significance_and_what_is_undefined(few: Tables) -> None:
    table = few["correlations"]
    figure = plots.correlation(table, "pairs", against="ood_accuracy")
    own = table[(table["scope"] == "pairs") & (table["method"] == "spearman") & ~table["measure"].str.contains(":")]
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "8 pairs at α = 0.3, shipped table"
    assert sum(p.get_hatch() is not None for p in ax.patches) == own["estimate"].isna().sum() > 0
    dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert len(dots) == (own["q_value"] < 0.05).sum() > 0
    assert len(ax.texts) == own["estimate"].notna().sum()
    path = plots.correlation(table, "path", "pearson")
    assert [a.get_title(loc="left") for a in path.axes[:2]] == ["success (11 alphas)", "failure (11 alphas)"]


def test_points_of_takes_the_gain_over_zero_shot(few: Tables) -> None:
    points = points_of(few["sharpness"].query("alpha < 0.32"), few["accuracy"])
    assert set(points["measure"]) == {"hessian_trace", "lambda_max", "lambda_min"} and len(points) == 6
    mean = few["accuracy"].query("pair == 'failure' and role == 'ood_mean'").set_index("alpha")["estimate"]
    row = points[(points["pair"] == "failure") & (points["measure"] == "lambda_max")].iloc[0]
    assert row["alpha"] == 0.3
    assert row["ood_gain"] == pytest.approx(mean[0.3] - mean[0.0])
    whole = few["sharpness"].query(
        f"pair == 'failure' and layer == '{ALL}' and measure == 'lambda_max' and alpha == 0.3"
    )
    assert row["sharpness"] == whole["estimate"].iloc[0]
    several = plots.correlation_scatter(points)
    assert len([a for a in several.axes if a.get_visible()]) == 3
    assert [text.get_text() for text in several.legends[0].texts] == ["failure", "success"]


@pytest.mark.parametrize("shipped", [{"failure"}, {"failure", "success"}])
def test_points_of_shipped_pairs_are_hollow_and_a_line_says_so(few: Tables, shipped: set[str]) -> None:
    points = points_of(few["sharpness"].query("measure == 'lambda_max'"), few["accuracy"])
    named = {source: ("shipped" if source in shipped else "run") for source in points["pair"]}
    figure = plots.correlation_scatter(points.assign(source=points["pair"].map(named)))
    dots = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [pair in shipped for pair in points["pair"]]
    (key,) = figure.legends
    told = {text.get_text(): line.get_markerfacecolor() for line, text in zip(key.get_lines(), key.texts, strict=True)}
    assert told.pop("hollow: shipped with the embedded world")
    assert {pair for pair, face in told.items() if face == "white"} == shipped and set(told) == set(named)


def test_mixed_outputs_have_marks_of_their_own(few: Tables) -> None:
    dense = few["accuracy"][few["accuracy"]["variant"] == "dense"]
    mixed = [dense[dense["alpha"] == 0.5].assign(variant=name, alpha=math.nan) for name in OUTPUT_BASELINES]
    (key,) = canvas.figure_of(plots.wiseft_curve(pd.concat([dense, *mixed]))).legends
    marks = {text.get_text(): line.get_marker() for line, text in zip(key.get_lines(), key.texts, strict=True)}
    own = {marks[name.upper()] for name in OUTPUT_BASELINES}
    assert len(own) == len(OUTPUT_BASELINES) and not own & {*PAIR_MARKS, "s", "*"}


def test_hostile_names_are_drawn_literally(few: Tables, rename: Callable[..., Tables]) -> None:
    dirty = rename(few, NAMES)
    dirty["sharpness"] = dirty["sharpness"][dirty["sharpness"]["measure"] == "lambda_max"]
    figures = plots.all_figures(dirty)
    assert len(figures) == 12
    words = set()
    for name in ("wiseft_curve", "heatmap_lambda_max", "straggler_ranking", "correlation_scatter"):
        FigureCanvasAgg(figures[name]).draw()
        words |= {t.get_text() for t in figures[name].findobj(Text)}
    assert " _nolegend_ □" in words
    assert "\\$\\frac{x\\$ <script>\\n" in {w[:40] for w in words} | words
    assert all(len(w) < 130 for w in words)
    assert [t.get_text() for t in figures["wiseft_curve"].legends[0].get_texts()][1] == " _nolegend_ □"


def test_densities_by_layer_and_pair_with_one_line_an_alpha(few: Tables) -> None:
    figure = plots.spectral_density(few["density"])
    assert len(figure.axes) == 4 and [t.get_text() for t in figure.legends[0].get_texts()] == [
        "α = 0", "α = 0.5", "α = 1",
    ]  # fmt: skip
    drawn = figure.axes[0].lines[0]
    rows = few["density"].query(f"layer == '{ALL}' and alpha == 0").sort_values("value")
    own = rows[rows["pair"] == rows["pair"].iloc[0]]
    assert list(drawn.get_xdata()) == list(own["value"])
    assert max(drawn.get_ydata()) == own["density"].max() and min(drawn.get_ydata()) > 0


def test_ten_thousand_layers_are_summarised(many: pd.DataFrame) -> None:
    figure = plots.heatmap(many, "hessian_trace")
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert len(labels) == 40
    largest = many[many["alpha"] == 0].nlargest(40, "estimate")["layer"].map(style.short_layer)
    assert set(labels) == set(largest)
    assert figure.legends[0].get_texts()[-1].get_text() == "9960 more layers in the table"
    FigureCanvasAgg(figure).draw()


def test_without_data_there_is_no_figure_but_an_error_that_says_so(few: Tables) -> None:
    empty = {name: df.iloc[:0] for name, df in few.items()}
    assert plots.all_figures(empty) == {}
    assert plots.all_figures({}) == {}
    for draw in (
        lambda t: wiseft_curve(t["accuracy"]),
        lambda t: plots.accuracy_along_alpha(t["accuracy"]),
        lambda t: plots.heatmap(t["sharpness"], "lambda_max"),
        lambda t: plots.sharpness_along_alpha(t["sharpness"]),
        lambda t: plots.straggler_ranking(t["stragglers"]),
        lambda t: plots.repair(t["repair"]),
        lambda t: plots.correlation(t["correlations"]),
        lambda t: plots.correlation_scatter(t["points"]),
    ):
        with pytest.raises(NoData, match="no "):
            draw(empty)
    assert issubclass(NoData, ConfigError)
    with pytest.raises(NoData, match="none of the criteria|no rows"):
        plots.correlation(few["correlations"], method="kendall")


def test_one_alpha_one_pair_and_nothing_finite(few: Tables) -> None:
    one = {k: df[df["pair"] == "success"] for k, df in few.items() if k != "correlations"}
    one = {k: df[df["alpha"] == 0.5] if "alpha" in df and k != "repair" else df for k, df in one.items()}
    one["sharpness"] = one["sharpness"].assign(estimate=np.nan, stderr=np.nan, status="failed")
    figures = plots.all_figures(one)
    assert {"wiseft_curve", "accuracy_along_alpha", "heatmap_lambda_max", "repair"} <= set(figures)
    assert "sharpness_along_alpha" not in figures and "correlation_scatter" not in figures
    for name in ("wiseft_curve", "accuracy_along_alpha", "heatmap_lambda_max"):
        FigureCanvasAgg(figures[name]).draw()


def test_layer_names_stay_distinct(layers: tuple[str, ...]) -> None:
    names = [ALL, *layers, *(f"transformer.resblocks.{i}.{p}" for i in range(12) for p in ("attn", "mlp"))]
    names += [
        "visual.layer1.0.conv1",
        "visual.layer1.0.conv2",
        "visual.trunk.stages.1.blocks.0.mlp",
        "text.transformer.resblocks.0",
    ]
    names += ["token_embedding.weight", "text_projection", "visual.transformer.resblocks.3.attn.in_proj_weight"]
    short = [style.short_layer(n) for n in names]
    assert len(set(short)) == len(set(names))
    assert max(map(len, short)) <= 26
    assert style.short_layer("visual.transformer.resblocks.3.mlp") == "block 3 mlp"


@pytest.mark.parametrize(
    "script",
    [s for s in SCRIPTS if s.stem not in ("fig_emoji", "fig_finetuners", "fig_published", "fig_slice")],
    ids=lambda p: p.stem,
)
def test_figure_scripts_write_pdf_and_png(
    script: Path, few: Tables, figures: dict[str, Figure], tmp_path: Path
) -> None:
    (tmp_path / "tables").mkdir()
    if script.stem == "fig_paths":
        few = {"accuracy": with_paths(few["accuracy"])}
    for name, df in few.items():
        if name != "points":
            (tmp_path / "tables" / f"{name}.csv").write_bytes(csv_bytes(df, name))
    module = loaded(f"figures/{script.name}")
    before = dict(matplotlib.rcParams)
    arguments = [str(tmp_path), "--out", str(tmp_path / "out")]
    if script.stem == "fig_robustness":
        with pytest.raises(SystemExit, match="2 distinct ID accuracies .*; a line needs 3.\nRemedy: a file of more"):
            module.main(arguments)
        sets = few["accuracy"].query("role == 'ood'")["dataset"].unique()
        models = pd.DataFrame([(s, 0.5 + 0.1 * i, 0.3 + 0.1 * i) for s in sets for i in range(3)])
        models.to_csv(tmp_path / "b.csv", index=False, header=["dataset", "id_accuracy", "ood_accuracy"])
        arguments += ["--baseline", str(tmp_path / "b.csv")]
    if script.stem == "fig_scatter":  # it takes three pairs
        copies = {name: few[name].query("pair == 'success'").assign(pair="third") for name in ("sharpness", "accuracy")}
        for name, third in copies.items():
            both = pd.concat([few[name], third], ignore_index=True)
            (tmp_path / "tables" / f"{name}.csv").write_bytes(csv_bytes(both, name))
    module.main(arguments)
    assert dict(matplotlib.rcParams) == before
    files = sorted((tmp_path / "out").iterdir())
    caption = [".txt"] if script.stem == "fig_sharpness_and_gain" else []
    assert [f.suffix for f in files] == [".pdf", ".png", *caption]
    assert len({f.stem for f in files}) == 1
    assert files[0].stem in {
        *figures,
        "robustness",
        "paths_along_alpha",
        "sharpness_and_gain",
    }  # the name that it has in a run directory
    assert all(f.stat().st_size > 5000 for f in files[:2])
    with pytest.raises(SystemExit, match="no such file"):
        module.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])


@pytest.mark.slow
def test_another_process_with_other_settings_writes_the_same_bytes_and_loads_no_torch(
    few: Tables, drawn: dict[str, tuple[bytes, bytes]], tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 17\naxes.grid: True\nxtick.major.pad: 9\nsavefig.dpi: 40\n")
    (tmp_path / "accuracy.csv").write_bytes(csv_bytes(few["accuracy"], "accuracy"))
    code = (
        "import sys\n"
        "from sharpscope.present import canvas, plots, report, style\n"
        "from sharpscope.tables.files import read_csv\n"
        "df = read_csv(sys.argv[1] + '/accuracy.csv', 'accuracy')\n"
        "figure = plots.all_figures({'accuracy': df})['wiseft_curve']\n"
        "for path, data in zip(sys.argv[2:], canvas.figure_bytes(figure)):\n"
        "    open(path, 'wb').write(data)\n"
        "other = {'torch', 'open_clip', 'matplotlib.pyplot', 'sharpscope.findings', 'sharpscope.study.run'}\n"
        "bad = other & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    outputs = [tmp_path / "a.png", tmp_path / "a.pdf"]
    env = {
        "PYTHONHASHSEED": "77",
        "MATPLOTLIBRC": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "PATH": "",
    }
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *map(str, outputs)], env=env, check=True, timeout=300)
    # the table comes back sorted: failure before success
    here = canvas.figure_bytes(
        plots.all_figures({"accuracy": few["accuracy"].sort_values("pair", kind="stable")})["wiseft_curve"]
    )
    assert tuple(path.read_bytes() for path in outputs) == here
