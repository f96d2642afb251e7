"""Rows of layers, which several figures share: which layers are shown, in what order, under what names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure

from sharpscope.layers import layer_key
from sharpscope.present.style import label, short_layer

__all__ = ["ROW", "colour_bar", "layer_rows", "left_out_note", "line_below_groups", "rows_axis"]

ROW = 0.148
"""The height of one layer's row in inches."""
MOST = 40
"""The most layers that a figure can name legibly; the table has the others."""


def layer_rows(table: pd.DataFrame, weight: pd.Series) -> tuple[list[str], int]:
    """The layers to show, in forward order after ``(all)`` and other groups, and the number of layers left out.

    Layers with the smallest ``weight`` are left out where there are more than ``MOST``.
    """
    groups = [n for n in table["layer"].unique() if n.startswith("(")]
    names = [n for n in table["layer"].unique() if not n.startswith("(")]
    if len(names) > MOST:
        largest = weight.abs().groupby(table["layer"]).max().drop(groups).fillna(-math.inf)
        order = pd.DataFrame({"w": -largest, "n": largest.index}).sort_values(["w", "n"])
        kept = list(order.index[:MOST])
    else:
        kept = names
    return [*sorted(groups, key=layer_key), *sorted(kept, key=layer_key)], len(names) - len(kept)


def line_below_groups(ax: Axes, layers: Sequence[str]) -> None:
    """Draw a gap between the whole model (and other groups) and the single layers."""
    groups = sum(n.startswith("(") for n in layers)
    if 0 < groups < len(layers):
        ax.axhline(groups, color="white", lw=2.5)


def rows_axis(ax: Axes, layers: Sequence[str], named: bool) -> None:
    """Make one row per layer, the first on top, with the layer's short name if ``named``."""
    ax.set(yticks=[], ylim=(len(layers), 0))
    if named:
        ax.tick_params(axis="y", length=0, labelsize=6.5)
        ax.set_yticks(np.arange(len(layers)) + 0.5, [label(short_layer(n)) for n in layers])


def left_out_note(count: int) -> str:
    """The note that says how many layers are shown in the table only."""
    return f"{count} more layers in the table" if count else ""


def colour_bar(figure: Figure, mappable: ScalarMappable, axes: np.ndarray, extend: str = "neither") -> Colorbar:
    """Draw a colour bar to the right of the panels, as high as one row of them and without a frame."""
    lines = len(axes)
    place: dict[str, Any] = {
        "aspect": 35,
        "pad": 0.02,
        "shrink": 0.9 / lines,
        "anchor": (0.0, 0.5 if lines == 1 else 1.0),
    }
    bar = figure.colorbar(mappable, ax=axes, extend=extend, **place)
    bar.ax.spines[:].set_visible(False)
    return bar
