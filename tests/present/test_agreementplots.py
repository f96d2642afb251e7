"""The figure of agreement along alpha, and its section of the report."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sharpscope.errors import NoData
from sharpscope.present.agreementplots import agreement_along_alpha, agreement_section
from sharpscope.present.report import build_report
from sharpscope.present.view import Grid, Source
from sharpscope.vocabulary import AGREEMENT


def test_panels_show_the_distance_from_theta_0(tables: dict[str, pd.DataFrame]) -> None:
    table = tables["agreement"]
    table.loc[(table["measure"] == "kl_divergence") & (table["against"] == "zeroshot"), "estimate"] *= 7
    figure = agreement_along_alpha(table)
    assert len(figure.axes) == 2 * 6
    panels = {ax.get_title(loc="left"): ax for ax in figure.axes[:6]}
    curves = [line for line in panels["KL, nats"].lines if line.get_marker() == "o"]
    assert len(curves) == 3
    for line in curves:
        np.testing.assert_allclose(line.get_ydata(), [0, 3.5, 7])
    dashes = {
        line.get_linestyle() for line in panels["as θ₀, as θ₁ where they differ"].lines if line.get_marker() == "o"
    }
    assert dashes == {"-", ":"}
    with pytest.raises(NoData):
        agreement_along_alpha(table.assign(estimate=np.nan))


def test_the_section_is_there_where_the_table_is(tables: dict[str, pd.DataFrame]) -> None:
    section = agreement_section(Source(tables, {"agreement": b"png"}, {}, {}))
    assert section is not None and len(section.figures) == 1
    (grid,) = section.folded
    assert isinstance(grid, Grid)
    assert grid.head[3:] == ("clipart", "painting", "photo")
    assert [row[1].text for row in grid.rows if row[0].text == "success"] == list(AGREEMENT)
    assert {cell.text for row in grid.rows for cell in row[3:]} == {"0.500 [0.450, 0.550]"}
    assert agreement_section(Source({}, {}, {}, {})) is None
    assert "Agreement with the ends" in build_report(tables, {}, {})
    assert "Agreement with the ends" not in build_report({**tables, "agreement": tables["agreement"].iloc[:0]}, {}, {})
