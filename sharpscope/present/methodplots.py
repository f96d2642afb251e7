"""Fine-tuning methods side by side: ID and OOD accuracy at the end and at the best point of the path, and sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.style import COLOURS, INK, key, label, new_figure, plain_log, styled

__all__ = ["methods"]

_ROW = 0.19
_TOWERS = {"image": COLOURS[0], "text": COLOURS[2]}


@styled
def methods(table: pd.DataFrame) -> Figure:
    """OOD accuracy, ID accuracy and Hessian trace of each method, one row per method.

    The methods are sorted by the OOD accuracy at the best point of their path. Filled marks are the fine-tuned end and
    open marks the point of the path with the best OOD accuracy. Marks are means over the seeds; small dots are single
    seeds.

    Args:
        table: one row per method and seed (rows with ``seed`` = mean are left out) with ``method``, ``id_zeroshot``,
            ``id``, ``id_best``, ``ood_zeroshot``, ``ood``, ``ood_best``, ``trace_image`` and ``trace_text``. Accuracies
            are fractions.

    Raises:
        NoData: the table has no rows.
    """
    table = table[table["seed"].astype(str) != "mean"]
    if not len(table):
        raise NoData("methods: the table has no seeds to show.")
    mean = table.groupby("method").mean(numeric_only=True)
    order = [str(m) for m in mean["ood_best"].sort_values(ascending=False, kind="stable").index]
    places = {method: i for i, method in enumerate(order)}
    at = table["method"].map(places).to_numpy(dtype=float)
    figure = new_figure(_ROW * len(order) + 1.0)
    axes = figure.subplots(1, 3, sharey=True, width_ratios=(1.25, 1.0, 0.8))
    for ax, role, title in zip(axes, ("ood", "id"), ("OOD accuracy, %", "ID accuracy, %"), strict=False):
        _accuracy_panel(ax, table, mean.loc[order], at, role)
        ax.set_title(title)
    _trace_panel(axes[2], table, mean.loc[order], at)
    axes[2].set_title("trace at the end")
    axes[0].set_yticks(range(len(order)), [label(m, 20) for m in order])
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    for ax in axes:
        ax.grid(axis="x")
        ax.tick_params(axis="y", length=0)
    seeds = table["seed"].nunique()
    key(
        figure,
        [
            Line2D([], [], color=INK["grey"], ls=":", lw=1.0, label="zero-shot"),
            _mark(COLOURS[0], True, "fine-tuned end"),
            _mark(COLOURS[0], False, "best point of the path (OOD)"),
            *(_mark(c, True, f"{tower} tower's trace", "D") for tower, c in _TOWERS.items()),
        ],
        f"small: {seeds} seeds" if seeds > 1 else "",
    )
    return figure


def _mark(colour: str, filled: bool, text: str, shape: str = "o") -> Line2D:
    face = colour if filled else "white"
    return Line2D([], [], color=colour, marker=shape, ls="none", ms=4.5, mfc=face, mew=1.0, label=text)


def _accuracy_panel(ax: Axes, table: pd.DataFrame, mean: pd.DataFrame, at: Any, role: str) -> None:
    places, colour = np.arange(len(mean)), COLOURS[0]
    end, best = 100 * mean[role], 100 * mean[f"{role}_best"]
    ax.axvline(100 * float(mean[f"{role}_zeroshot"].mean()), color=INK["grey"], ls=":", lw=1.0)
    ax.hlines(places, np.minimum(end, best), np.maximum(end, best), color=colour, lw=1.0)
    for column, shift in ((role, 0.28), (f"{role}_best", -0.28)):
        ax.plot(100 * table[column], at + shift, ".", ms=2.0, color=INK["grey"])
    ax.plot(best, places, "o", ms=4.5, mfc="white", mec=colour, mew=1.0, zorder=3)
    ax.plot(end, places, "o", ms=4.5, color=colour, zorder=4)


def _trace_panel(ax: Axes, table: pd.DataFrame, mean: pd.DataFrame, at: Any) -> None:
    for tower, colour in _TOWERS.items():
        name = f"trace_{tower}"
        if name not in table:
            continue
        positive = table[name] > 0  # the trace of an indefinite Hessian may be negative: no logarithm
        ax.plot(table[name][positive], at[positive] + 0.28, ".", ms=2.0, color=INK["grey"])
        shown = mean[name].where(mean[name] > 0)
        ax.plot(shown, np.arange(len(mean)), "D", ms=3.8, color=colour)
    ax.set_xscale("log")
    plain_log(ax.xaxis, 4)
