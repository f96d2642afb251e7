"""The figure of sharpness and gain: what it shows, what its caption says, and where it is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba

from sharpscope.errors import NoData
from sharpscope.present.alphas import showing_alpha_on
from sharpscope.present.report import build_report
from sharpscope.present.residualplots import gain_caption, gain_file, sharpness_and_gain
from sharpscope.present.runfigures import RUN_FIGURES
from sharpscope.present.sources import Tables
from sharpscope.present.style import COLOURS, file_word
from sharpscope.study.figures.making import gain_figures
from sharpscope.tables.rows import one_a_unit
from sharpscope.vocabulary import ALL, PRIMARY
from tests.present.conftest import make_residuals


def told(residuals: pd.DataFrame, **more: Any) -> pd.DataFrame:
    """The primary correlation of ``residuals``, as the table has it."""
    units = one_a_unit(residuals)
    r = np.corrcoef(units["residual_sharpness"], units["residual_gain"])[0, 1]
    row = {"layer": ALL, "family": PRIMARY, "group": "ood", "source": "run", "given": "learning_rate+distance"}
    row |= {"estimate": r, "ci_low": r - 0.2, "ci_high": r + 0.2, "n": 10, "n_effective": 9, "status": "ok", "note": ""}
    return pd.DataFrame([row | more])


@pytest.fixture
def residuals() -> pd.DataFrame:
    return make_residuals()


def few(residuals: pd.DataFrame) -> pd.DataFrame:
    none = dict.fromkeys(("residual_sharpness", "residual_gain"), np.nan)
    return residuals.assign(**none, status="undefined", note="only 2 pairs; at least 8 are needed").iloc[:2]


def test_points_are_the_tables_and_the_line_is_the_estimate(residuals: pd.DataFrame) -> None:
    correlations = told(residuals)
    left, right, bar = sharpness_and_gain(residuals, correlations).figure.axes
    points = np.vstack([np.asarray(c.get_offsets()) for c in left.collections])
    want = np.column_stack([residuals["sharpness"], 100 * residuals["ood_gain"]])
    np.testing.assert_allclose(points[points[:, 0].argsort()], want[want[:, 0].argsort()])
    units = np.vstack([c.get_offsets() for c in right.collections])
    assert len(units) == 9 and np.corrcoef(units.T)[0, 1] == pytest.approx(correlations["estimate"][0])
    (line,) = right.get_lines()
    assert line.get_ydata()[-1] / line.get_xdata()[-1] == pytest.approx(correlations["estimate"][0])
    assert bar.get_ylabel() == "learning rate" and left.get_visible() and right.get_visible()
    inks = np.vstack([c.get_facecolors() for c in left.collections])
    assert len(np.unique(inks, axis=0)) == residuals["learning_rate"].nunique() == 9


def test_the_caption_has_estimate_interval_n_and_the_covariates(residuals: pd.DataFrame) -> None:
    drawn = sharpness_and_gain(residuals, told(residuals, estimate=0.5, ci_low=-0.25, ci_high=0.75))
    assert "partial Spearman correlation +0.50 [−0.25, +0.75], learning_rate, distance held fixed" in drawn.caption
    assert "(n = 10 pairs, n_effective = 9 settings)" in drawn.caption
    assert drawn.caption == gain_caption(residuals, told(residuals, estimate=0.5, ci_low=-0.25, ci_high=0.75))


def test_too_few_pairs_have_the_left_panel_alone_and_the_reason(residuals: pd.DataFrame) -> None:
    nothing = {"estimate": np.nan, "ci_low": np.nan, "ci_high": np.nan, "n": 2, "n_effective": 2}
    rows = few(residuals)
    drawn = sharpness_and_gain(rows, told(residuals, **nothing, status="undefined", note=rows["note"].iloc[0]))
    panel, bar = drawn.figure.axes
    assert panel.get_xlabel() == "Hessian trace at α = 0.5" and bar.get_ylabel() == "learning rate"
    assert "no partial correlation (n = 2 pairs, n_effective = 2 settings; only 2 pairs" in drawn.caption
    assert "slope" not in drawn.caption
    with pytest.raises(NoData, match="1 pair with a sharpness and an OOD gain, and it takes 2"):
        sharpness_and_gain(rows.iloc[:1], told(residuals))


def test_without_learning_rates_points_have_one_colour_and_the_key_says_so(residuals: pd.DataFrame) -> None:
    figure = sharpness_and_gain(residuals.assign(learning_rate=np.nan), told(residuals)).figure
    inks = np.vstack([c.get_facecolors() for ax in figure.axes for c in ax.collections])
    assert np.unique(inks, axis=0) == pytest.approx(np.array([to_rgba(COLOURS[0])]))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["learning rate unknown"]
    assert "learning rate" not in gain_caption(residuals.assign(learning_rate=np.nan), told(residuals)).split(".")[0]


def test_the_source_with_the_most_pairs_is_told_and_no_pair_counts_twice(residuals: pd.DataFrame) -> None:
    own = pd.concat([few(residuals), few(residuals).iloc[:1].assign(pair="mine")])
    both = pd.concat([residuals.assign(source="shipped"), own])
    drawn = sharpness_and_gain(both, told(residuals, source="shipped"))
    left = drawn.figure.axes[0]
    assert sum(len(c.get_offsets()) for c in left.collections) == 11
    hollow = [c for c in left.collections if not len(c.get_facecolors())]
    assert [len(c.get_offsets()) for c in hollow] == [1]
    assert "all pairs are those shipped" in drawn.caption and "another source (this run)" in drawn.caption


def test_a_value_below_0_has_no_place_on_a_logarithmic_axis_and_is_counted(residuals: pd.DataFrame) -> None:
    wide = residuals.assign(sharpness=[-1.0, *np.geomspace(1, 100, 9)])
    drawn = sharpness_and_gain(wide, told(residuals))
    assert drawn.figure.axes[0].get_xscale() == "log"
    assert "1 pair with a value of 0 or less has no place on the left" in drawn.caption
    many = residuals.assign(sharpness=[-1.0, -2.0, *np.geomspace(1, 100, 8)])
    assert sharpness_and_gain(many, told(residuals)).figure.axes[0].get_xscale() == "linear"


def test_every_group_has_a_figure_of_a_safe_name_of_its_own(residuals: pd.DataFrame) -> None:
    names = ("a/b", "a b", "plain-group", "ä" * 200)
    several = pd.concat([residuals.assign(group=name) for name in names])
    tables = Tables.given({"residuals": several, "correlations": told(residuals)})
    files = list(RUN_FIGURES["sharpness_and_gain"].drawings(tables))
    assert files == [gain_file(name) for name in names] and len(set(files)) == len(names)
    assert files[2] == "sharpness_and_gain_plain-group"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") and len(name) < 100 for name in files)
    assert file_word("a/b").startswith("a_b-")


def test_correlate_writes_png_pdf_and_caption_of_every_group(residuals: pd.DataFrame, tmp_path: Any) -> None:
    done = gain_figures(residuals, told(residuals), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{gain_file('ood')}.{end}" for end in ("pdf", "png", "txt")]
    assert list(done.files) == [gain_file("ood")]
    with pytest.raises(NoData, match="named before looking"):
        gain_figures(residuals.iloc[:0], told(residuals), tmp_path)


def test_the_report_shows_it_with_its_caption_and_links_the_table(residuals: pd.DataFrame) -> None:
    more = {"pair": "(pairs)", "scope": "pairs", "method": "spearman", "measure": "hessian_trace", "dataset": "a+b"}
    correlations = told(residuals, estimate=0.5, against="ood_gain", alpha=0.5, **more)
    tables = {"residuals": residuals, "correlations": correlations}
    page = build_report(tables, {gain_file("ood"): b"png"}, {})
    assert page.count("partial Spearman correlation +0.50") == 2  # the caption, and the alternative text
    assert 'href="tables/residuals.csv"' in page and f'href="figures/{gain_file("ood")}.pdf"' in page
    assert "tables/residuals.csv" not in build_report(tables, {}, {})


def test_alpha_is_told_once_as_the_weight_that_the_reader_chose(residuals: pd.DataFrame) -> None:
    own = few(residuals).assign(alpha=0.3, note="no path at alpha = 0.3")
    why = {"status": "undefined", "note": own["note"].iloc[0], "against": "ood_gain", "alpha": 0.3, "pair": "(pairs)"}
    more = {"scope": "pairs", "method": "spearman", "measure": "hessian_trace", "dataset": "a+b"}
    correlations = told(residuals, estimate=np.nan, **why, **more)
    with showing_alpha_on("zeroshot"):
        caption = gain_caption(own, correlations, "ood")
    assert "on ID data at α′ = 0.7" in caption and "no path at α′ = 0.7)" in caption
    tables = {"residuals": own, "correlations": correlations}
    page = build_report(tables, {gain_file("ood"): b"png"}, {}, side="zeroshot")
    assert page.count(caption) == 2  # below the figure, and as its alternative text
