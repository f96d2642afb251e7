"""One measure over layers at one alpha, as dots with their errors."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.present.alphas import alpha_is
from sharpscope.present.layerrows import ROW, layer_rows, left_out_note, rows_axis
from sharpscope.present.style import COLOURS, INK, first_pairs, key, label, new_figure, plain_log
from sharpscope.tables.rows import image_error, own_error

__all__ = ["layer_dots"]

_KINDS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "ok": ("", {"marker": "o", "color": COLOURS[0], "mfc": COLOURS[0]}),
    "not_converged": ("not converged", {"marker": "o", "color": COLOURS[0], "mfc": "white"}),
    "other_sign": ("estimate {} 0: its magnitude", {"marker": "x", "color": INK["bad"], "mfc": INK["bad"]}),
}
"""Kind of a point -> its entry in the key, and its look."""
_DEEPEST: Final = 1e-5
"""The smallest magnitude that has a place of its own, as a share of the largest; smaller values are noise around 0."""


def layer_dots(table: pd.DataFrame, measure: str) -> Figure:
    """The magnitude of ``measure`` of every layer (in forward order, downwards), one panel a pair, on one log axis.

    ``table``: the rows of the measure, of every pair at one alpha. Bars are one standard error over draws of images,
    where that is unknown the error of the estimate on these images. Values of the less frequent sign are crosses.
    """
    values = table["estimate"].where(np.isfinite(table["estimate"]))
    sign = -1.0 if (values < 0).sum() > (values > 0).sum() else 1.0
    layers, left_out = layer_rows(table, values)
    pairs, fewer = first_pairs(table)
    columns = min(3, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = new_figure(lines * (ROW * max(4, len(layers)) + 0.62) + 0.25)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    limits = _limits(values.abs(), _errors(table))
    seen: set[str] = set()
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(pairs))
    for i, (pair, ax) in enumerate(zip(pairs, axes.flat, strict=False)):
        own = table[table["pair"] == pair]
        ax.set(xscale="log", xlim=limits)
        seen |= _panel(ax, own[own["layer"].isin(layers)], layers, sign, limits[0])
        rows_axis(ax, layers, named=i % columns == 0)
        ax.grid(True, axis="x")
        ax.set_title(label(pair, 28 if columns < 3 else 17))
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(f"{'minus ' if sign < 0 else ''}{label(measure)} at {alpha_is(float(own['alpha'].iloc[0]))}")
        plain_log(ax.xaxis, 5)
    other = "≥" if sign < 0 else "≤"
    handles = [Line2D([], [], ls="none", ms=4, label=text.format(other), **look)
               for kind, (text, look) in _KINDS.items() if kind in seen and text]  # fmt: skip
    if "frozen" in seen:
        handles.append(Line2D([], [], color=INK["grey"], marker="|", ls="none", ms=7, mew=2, label="does not move"))
    key(figure, handles, "no mark: failed or not measured" if "absent" in seen else "", left_out_note(left_out), fewer)
    return figure


def _limits(sizes: pd.Series, errors: pd.Series) -> tuple[float, float]:
    known = sizes[sizes > 0]
    if not len(known):
        return 0.1, 1.0
    return max(float(known.min()), float(known.max()) * _DEEPEST) / 1.6, float((sizes + errors).max()) * 1.6


def _errors(rows: pd.DataFrame) -> pd.Series:
    return image_error(rows).fillna(own_error(rows)).fillna(0.0)


def _panel(ax: Axes, rows: pd.DataFrame, layers: list[str], sign: float, least: float) -> set[str]:
    """Draw one pair; returns the kinds of points that it has."""
    groups = sum(name.startswith("(") for name in layers)
    if 0 < groups < len(layers):
        ax.axhline(groups, color=INK["light"], lw=0.8, zorder=0)
    place = {name: i + 0.5 for i, name in enumerate(layers)}
    rows = rows.assign(y=rows["layer"].map(place), error=_errors(rows))
    known = rows[np.isfinite(rows["estimate"].astype(float))]
    other = sign * known["estimate"] <= 0
    kinds = known["status"].where(known["status"] == "not_converged", "ok").mask(other, "other_sign")
    for kind, (_, look) in _KINDS.items():
        own = known[kinds == kind]
        size = own["estimate"].abs().clip(lower=least)
        low = (size - own["error"]).clip(lower=least)
        style: dict[str, Any] = {"ls": "none", "ms": 3.4, "elinewidth": 0.8, "mew": 0.9, **look}
        ax.errorbar(size, own["y"], xerr=np.stack([size - low, own["error"]]), **style)
    still = rows.loc[rows["status"] == "frozen", "y"]
    ax.plot(np.full(len(still), 0.02), still, "|", ms=7, mew=2, color=INK["grey"], transform=ax.get_yaxis_transform())
    return set(kinds) | ({"frozen"} if len(still) else set()) | (set() if len(known) == len(layers) else {"absent"})
