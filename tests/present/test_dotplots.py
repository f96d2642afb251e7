"""Measures at one alpha as dots, and values of both signs on a logarithmic axis."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from sharpscope import plot
from sharpscope.present.paperplots.sharpness import paper_sharpness_layers
from sharpscope.vocabulary import ALL
from tests.present.conftest import LAYERS, make_sharpness, make_stragglers

FEW = LAYERS[:4]


@pytest.fixture
def one_alpha() -> pd.DataFrame:
    table = make_sharpness(FEW, ("sharpness_avg",)).query("alpha == 0.5").assign(status="ok")
    return table.assign(estimate=table["estimate"].abs())


def dots(ax: Axes, marker: str) -> dict[float, float]:
    """Row -> value of every mark of one kind."""
    lines = [line for container in ax.containers for line in container.lines[:1] if line.get_marker() == marker]
    return {float(y): float(x) for line in lines for x, y in np.asarray(line.get_xydata())}


def test_a_measure_at_one_alpha_is_a_dot_a_layer_with_its_error(one_alpha: pd.DataFrame) -> None:
    figure = plot.heatmap(one_alpha, "sharpness_avg")
    for ax, pair in zip(figure.axes, ("success", "failure"), strict=True):
        own = one_alpha[one_alpha["pair"] == pair].set_index("layer")
        want = {i + 0.5: own.loc[name, "estimate"] for i, name in enumerate((ALL, *FEW))}
        assert dots(ax, "o") == pytest.approx(want) and ax.get_xscale() == "log"
        assert ax.get_xlabel() == "sharpness_avg at α = 0.5"
        bars = np.vstack([b.get_segments() for c in ax.containers for b in c.lines[2] if len(b.get_segments())])
        error = {float(y): (high - low) / 2 for (low, y), (high, _) in bars}
        assert error == pytest.approx({i + 0.5: own.loc[n, "stderr_images"] for i, n in enumerate((ALL, *FEW))})
    assert (
        len(plot.heatmap(make_sharpness(FEW, ("sharpness_avg",)), "sharpness_avg").axes) == 3
    )  # with a bar of colours


def test_the_other_sign_is_a_cross_at_its_magnitude_and_what_is_missing_is_said(one_alpha: pd.DataFrame) -> None:
    at = (one_alpha["pair"] == "success") & (one_alpha["layer"] == FEW[0])
    gone = (one_alpha["pair"] == "failure") & (one_alpha["layer"] == FEW[1])
    table = one_alpha.assign(estimate=one_alpha["estimate"].mask(at, -one_alpha["estimate"]).mask(gone))
    figure = plot.heatmap(table.assign(status=table["status"].mask(gone, "failed")), "sharpness_avg")
    (left, right) = figure.axes
    assert dots(left, "x") == pytest.approx({1.5: one_alpha.loc[at, "estimate"].iloc[0]})
    assert 1.5 not in dots(left, "o") and 2.5 not in dots(right, "o") and len(dots(right, "o")) == 4
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["estimate ≤ 0: its magnitude", "no mark: failed or not measured"]
    negative = plot.heatmap(table.assign(estimate=-table["estimate"]), "sharpness_avg")
    assert negative.axes[0].get_xlabel() == "minus sharpness_avg at α = 0.5"
    assert dots(negative.axes[0], "x") == dots(left, "x")


def layered(values: np.ndarray) -> tuple[Axes, str]:
    table = make_sharpness(FEW, ("hessian_trace",)).query("pair == 'success'").assign(status="ok", stderr_images=1e-6)
    drawn = paper_sharpness_layers(table.assign(estimate=values[: len(table)]), make_stragglers(FEW))
    return drawn.figure.axes[0], drawn.caption


def test_every_negative_trace_has_its_place() -> None:
    values = np.geomspace(1e-4, 1e3, 55) * np.where(np.arange(55) % 5 == 2, -1, 1)
    ax, caption = layered(values)
    low, high = ax.get_ylim()
    assert ax.get_yscale() == "symlog" and low < values.min() and values.max() < high
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.get_lines()])
    assert set(np.round(values, 12)) <= set(np.round(drawn, 12)) and np.isfinite(drawn).all()
    assert "logarithmic beyond ±1 and linear between, for some values are 0 or less" in caption
    ticks = [float(t) for t in ax.get_yticks()]
    assert 0.0 in ticks and min(ticks) < 0 < max(ticks) and len(ticks) <= 7
    assert ticks == sorted(ticks)


def test_positive_traces_have_a_logarithmic_axis_and_narrow_ones_a_linear_one() -> None:
    ax, caption = layered(np.geomspace(1.0, 1e3, 55))
    assert ax.get_yscale() == "log" and "The vertical axis is logarithmic." in caption
    ax, caption = layered(np.linspace(1.0, 2.0, 55))
    assert ax.get_yscale() == "linear" and "The vertical axis is linear." in caption
