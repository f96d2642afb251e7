"""The figures whose rows are layers: heat maps and the ranking of stragglers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from sharpscope.errors import NoData
from sharpscope.present.alphas import alpha_label, alpha_number, in_order_of_alpha
from sharpscope.present.dotplots import layer_dots
from sharpscope.present.layerrows import ROW, colour_bar, layer_rows, left_out_note, line_below_groups, rows_axis
from sharpscope.present.style import COLOURS, INK, first_pairs, key, label, new_figure, plain_log, styled
from sharpscope.vocabulary import ALL, CRITERIA, MEASURES, PRIMARY_MEASURE, parse_criterion

__all__ = ["heatmap", "straggler_ranking"]


# ------------------------------------------------------------------------------------------------------------ heat map
@styled
def heatmap(sharpness: pd.DataFrame, measure: str = PRIMARY_MEASURE) -> Figure:
    """One measure over layers (in forward order, downwards) and alpha: one panel per pair, one log colour scale.

    Where most values are negative (``lambda_min``) the colour shows minus the value. Values of the other sign have no
    logarithm and are hatched. A ring marks an estimate that did not converge, a cross an estimate that failed, and a
    bar on the left a layer whose weights are the same at both ends.

    A measure that every pair has at one alpha alone is drawn as dots over layers, with one standard error, on one log
    axis; a cross in place of the dot says that the value is of the other sign.

    Args:
        sharpness: the sharpness table.
        measure: sharpness measure to draw.

    >>> shown = sharpscope.plot.heatmap(run.sharpness, "lambda_max")

    Raises:
        NoData: the table has no row of ``measure``.
    """
    table = sharpness[sharpness["measure"] == measure]
    if not len(table):
        raise NoData(f"heatmap: the sharpness table has no rows of '{label(measure)}'.")
    if (table.groupby("pair")["alpha"].nunique() == 1).all():
        return layer_dots(table, measure)
    values = table["estimate"].where(np.isfinite(table["estimate"]))
    sign = -1.0 if (values < 0).sum() > (values > 0).sum() else 1.0
    good = (sign * values)[sign * values > 0]
    low, high = (good.min(), good.max()) if len(good) else (0.1, 1.0)
    low = max(low, high * 1e-5)  # five decades of colour; smaller values are noise around 0
    norm = LogNorm(low, high if high > low else low * 1.1)
    layers, left_out = layer_rows(table, values)
    pairs, fewer = first_pairs(table)
    columns = min(3, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = new_figure(lines * (ROW * max(4, len(layers)) + 0.62) + 0.25)
    axes = figure.subplots(lines, columns, squeeze=False)
    seen: set[str] = set()
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(pairs))
        if i < len(pairs):
            seen |= _heat_panel(ax, table[table["pair"] == pairs[i]], layers, sign, norm)
            rows_axis(ax, layers, named=i % columns == 0)
            ax.set_title(label(pairs[i], 28 if columns < 3 else 17))
            ax.set_xlabel(alpha_label(ends=columns < 3))
    below = "min" if len(good) and good.min() < low else "neither"
    bar = colour_bar(figure, ScalarMappable(norm, colormaps["viridis"]), axes, below)
    plain_log(bar.long_axis)
    bar.set_label(("minus " if sign < 0 else "") + label(measure))
    marks = _marks("≥ 0" if sign < 0 else "≤ 0")
    key(figure, [marks[m] for m in marks if m in seen], left_out_note(left_out), fewer)
    return figure


def _marks(other_sign: str) -> dict[str, Any]:
    ring: dict[str, Any] = {
        "marker": "o",
        "ls": "none",
        "markerfacecolor": "white",
        "markeredgecolor": "black",
        "markersize": 3.4,
        "markeredgewidth": 0.6,
    }
    return {
        "other_sign": Patch(
            facecolor="#e3e3e3", edgecolor="#777777", hatch="/////", lw=0, label=f"estimate {other_sign}: no log"
        ),
        "not_converged": Line2D([], [], **ring, label="not converged"),
        "failed": Line2D([], [], color=INK["bad"], marker="x", ls="none", markersize=4, label="failed"),
        "absent": Patch(facecolor="#f4f4f4", edgecolor="#bbbbbb", lw=0.4, label="not measured"),
        "frozen": Line2D(
            [], [], color=INK["grey"], marker="|", ls="none", markersize=7, markeredgewidth=2, label="does not move"
        ),
    }


def _heat_panel(ax: Axes, rows: pd.DataFrame, layers: list[str], sign: float, norm: LogNorm) -> set[str]:
    alphas = in_order_of_alpha(rows["alpha"])
    column = {alpha: j for j, alpha in enumerate(alphas)}
    place = {name: i for i, name in enumerate(layers)}
    rows = rows[rows["layer"].isin(place)]
    grid = np.full((len(layers), len(alphas)), np.nan)
    y, x = rows["layer"].map(place).to_numpy(int), rows["alpha"].map(column).to_numpy(int)
    grid[y, x] = sign * rows["estimate"].to_numpy(float)
    ax.set_facecolor("#f4f4f4")
    ax.pcolormesh(np.ma.masked_where(~(np.isfinite(grid) & (grid > 0)), grid), cmap="viridis", norm=norm, linewidth=0)
    ax.spines[:].set_visible(False)
    step = 1 if len(alphas) <= 6 else math.ceil(len(alphas) / 6)
    shown = range(0, len(alphas), step)
    ax.set(xticks=[i + 0.5 for i in shown], xticklabels=[alpha_number(alphas[i]) for i in shown])
    line_below_groups(ax, layers)
    seen = set()
    for i, j in np.argwhere(np.isfinite(grid) & (grid <= 0)):
        ax.add_patch(Rectangle((j, i), 1, 1, facecolor="#e3e3e3", edgecolor="#777777", hatch="/////", lw=0))
        seen.add("other_sign")
    symbols: tuple[tuple[str, dict[str, Any]], ...] = (
        ("not_converged", {"marker": "o", "facecolor": "white", "edgecolor": "black", "s": 7, "lw": 0.5}),
        ("failed", {"marker": "x", "color": INK["bad"], "s": 12, "lw": 1.0}),
    )
    for status, style in symbols:
        at = rows["status"].to_numpy() == status
        if at.any():
            ax.scatter(x[at] + 0.5, y[at] + 0.5, zorder=3, **style)
            seen.add(status)
    still = sorted(set(y[(rows["status"] == "frozen").to_numpy(bool)]))
    wide = 0.02 * len(alphas)
    for i in still:
        ax.add_patch(Rectangle((-1.5 * wide, i + 0.1), wide, 0.8, facecolor=INK["grey"], lw=0, clip_on=False))
        seen.add("frozen")
    ax.set_xlim(0, len(alphas))
    measured = np.zeros(grid.shape, bool)
    measured[y, x] = np.isfinite(rows["estimate"].to_numpy(float)) | (rows["status"] == "failed").to_numpy()
    return seen | (set() if measured.all() else {"absent"})


# ---------------------------------------------------------------------------------------------------------- stragglers
@styled
def straggler_ranking(stragglers: pd.DataFrame, criteria: Sequence[str] | None = None) -> Figure:
    """Score of every layer by each criterion, filled where chosen, with the rule's threshold and the probability (%).

    Rows are layers in forward order; there is one panel per pair and criterion.

    Args:
        stragglers: the table ``stragglers``.
        criteria: at most four names as the table writes them; default: the main criteria of ``vocabulary.CRITERIA``.

    >>> shown = sharpscope.plot.straggler_ranking(run.stragglers, ["rewind"])

    Raises:
        ConfigError: an unknown criterion.
        NoData: the table has no finite score.
    """
    for name in criteria or ():
        parse_criterion(name, "criteria")
    table = stragglers[np.isfinite(stragglers["score"])]
    if not len(table):
        raise NoData("straggler_ranking: the table has no score to show.")
    panels = _panels(table, criteria)
    if not panels:
        raise NoData("straggler_ranking: the table has none of the criteria asked for.")
    spread = table["score"] / table.groupby(["pair", "criterion", "base", "rule"])["score"].transform(
        lambda s: s.abs().max() or 1.0
    )
    layers, left_out = layer_rows(table, spread)
    layers = [n for n in layers if n != ALL]
    pairs, fewer = first_pairs(table)
    figure = new_figure(len(pairs) * (0.13 * max(5, len(layers)) + 0.45) + 0.4)
    axes = figure.subplots(len(pairs), len(panels), squeeze=False)
    for p, pair in enumerate(pairs):
        for c, (criterion, base, rule) in enumerate(panels):
            ax = axes[p, c]
            own = table[
                (table["pair"] == pair)
                & (table["criterion"] == criterion)
                & (table["base"] == base)
                & (table["rule"] == rule)
            ]
            _ranking_panel(ax, own, layers)
            rows_axis(ax, layers, named=c == 0)
            family, _, of = criterion.partition(":")
            title = f"{label(family, 22)}\n{label(of or base, 22)}"
            ax.set_title(title, fontsize=6.5)
        axes[p, 0].set_ylabel(label(pair, 30), fontsize=8)
    handles = [
        Line2D([], [], color=COLOURS[1], marker="o", ls="none", label="chosen"),
        Line2D([], [], color=COLOURS[0], marker="o", markerfacecolor="white", ls="none", label="not chosen"),
        Line2D([], [], color=INK["grey"], ls="--", lw=0.8, label="threshold"),
    ]
    key(figure, handles, "numbers: probability of being chosen, %", left_out_note(left_out), fewer)
    return figure


def _panels(table: pd.DataFrame, criteria: Sequence[str] | None) -> list[tuple[str, str, str]]:
    """(criterion, base, rule) of at most four panels: those asked for, then one per criterion, of the same measure.

    Main criteria come before others, and criteria of sharpness before those of losses. Criteria that the vocabulary
    does not know (of a run whose plugin is not loaded) come last.
    """
    kinds = list(table[["criterion", "base", "rule"]].drop_duplicates().itertuples(index=False, name=None))
    first = list(criteria or ())
    measures = [c.partition(":")[2] for c in first]
    measures += MEASURES.in_order({c.partition(":")[2] for c, _, _ in kinds if ":" in c})

    def rank(kind: tuple[str, str, str]) -> tuple[int, ...]:
        name, _, measure = kind[0].partition(":")
        known = CRITERIA.get(name)
        return (
            first.index(kind[0]) if kind[0] in first else len(first),
            known is None or not known.main,
            known is None or not known.takes_measure,
            list(CRITERIA).index(name) if known else len(CRITERIA),
            measures.index(measure) if measure in measures else 99,
        )

    chosen: dict[str, tuple[str, str, str]] = {}
    for kind in sorted(kinds, key=rank):
        name = kind[0] if kind[0] in first else kind[0].partition(":")[0]
        if name not in {c.partition(":")[0] for c in chosen} and name not in chosen:
            chosen[name] = kind
    return list(chosen.values())[:4]


def _ranking_panel(ax: Axes, rows: pd.DataFrame, layers: list[str]) -> None:
    place = {name: i + 0.5 for i, name in enumerate(layers)}
    rows = rows[rows["layer"].isin(place)]
    for edge in np.arange(len(layers)) + 0.5:
        ax.axhline(edge, color="#ececec", lw=0.5, zorder=0)
    if not len(rows):
        ax.text(0.5, 0.5, "no score", transform=ax.transAxes, ha="center", color=INK["grey"])
        return
    chosen = rows["chosen"].fillna(False).astype(bool).to_numpy()
    y = rows["layer"].map(place).to_numpy(float)
    score = rows["score"].to_numpy(float)
    ax.scatter(score[~chosen], y[~chosen], s=11, facecolor="white", edgecolor=COLOURS[0], lw=0.9, zorder=2)
    ax.scatter(score[chosen], y[chosen], s=14, color=COLOURS[1], lw=0, zorder=3)
    threshold = rows["threshold"].dropna()
    limits = np.array([*score, *threshold[np.isfinite(threshold)].unique()])
    wide = bool((limits > 0).all() and limits.max() > 1000 * limits.min())
    low, high = np.log10([limits.min(), limits.max()]) if wide else (limits.min(), limits.max())
    span = (high - low) or 1.0
    ends = (low - 0.08 * span, high + 0.36 * span)  # the right third holds the probabilities
    if wide:
        ax.set_xscale("log")
    ax.set_xlim(*(10.0 ** np.array(ends) if wide else ends))
    for value in threshold[np.isfinite(threshold)].unique():
        ax.axvline(value, color=INK["grey"], ls="--", lw=0.8, zorder=1)
    for row_y, probability in zip(y.tolist(), rows["probability"], strict=True):
        if probability >= 0.005:
            style: dict[str, Any] = {"ha": "right", "va": "center", "fontsize": 5.5, "color": INK["grey"]}
            ax.text(0.99, row_y, f"{100 * probability:.0f}", transform=ax.get_yaxis_transform(), **style)
    if wide:
        plain_log(ax.xaxis, most=3)
    else:
        ax.locator_params(axis="x", nbins=3)
