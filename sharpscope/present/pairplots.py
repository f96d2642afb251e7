"""Figures of comparisons: repairs with their controls, and sharpness with OOD accuracy over layers and over pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from sharpscope.errors import NoData
from sharpscope.present.alphas import alpha_is
from sharpscope.present.layerrows import ROW, colour_bar, layer_rows, left_out_note, line_below_groups, rows_axis
from sharpscope.present.style import (
    COLOURS,
    INK,
    MARKERS,
    PAIR_COLOURS,
    SOURCES,
    Look,
    first_pairs,
    key,
    label,
    new_figure,
    pair_looks,
    plain_log,
    styled,
    title_of,
)
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import (
    MIDDLE,
    joint_rows,
    marginal_rows,
    measures_in,
    nearest,
    pairs_and_groups,
    sparse_layers,
    unique_in_order,
    widest_means,
)
from sharpscope.vocabulary import AGAINST, CONTRASTS, MEASURES, PAIRS, Group

__all__ = ["correlation", "correlation_scatter", "repair"]


# -------------------------------------------------------------------------------------------------------------- repair
@styled
def repair(table: pd.DataFrame, alpha: float | None = None) -> Figure:
    """Gain in OOD accuracy of every repair and its controls over the plain path at the same ID accuracy.

    Large marks with intervals are the repaired path at ``alpha``, small marks its other alphas. There is one panel per
    target, pair and group of OOD sets.

    Args:
        table: the table ``repair``.
        alpha: point of the repaired paths that is drawn with intervals; default: the one nearest 0.5.

    >>> shown = sharpscope.plot.repair(run.repair, alpha=0.3)

    Raises:
        NoData: the table has no finite gain.
    """
    rows = pairs_and_groups(table[table["gain"].notna()])
    if not len(rows):
        raise NoData("repair: the table has no gain to show.")
    rows = rows.assign(
        who=["straggler" if control == "none" else control for control in rows["control"]],
        how=[f"{label(s)}, keep {d:g}" for s, d in zip(rows["select"], rows["density"], strict=True)],
    )
    (pairs, fewer), targets = first_pairs(rows), sorted(set(rows["target"]))
    hows, groups = sorted(set(rows["how"])), sparse_layers(rows[rows["pair"].isin(pairs)])
    figure = new_figure(0.75 + len(targets) * (0.45 + 0.36 * len(hows)) * math.ceil(len(pairs) / 2))
    columns = min(2, len(pairs))
    axes = figure.subplots(
        len(targets) * math.ceil(len(pairs) / columns), columns, sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat:
        ax.set_visible(False)
    for p, pair in enumerate(pairs):
        for t, target in enumerate(targets):
            ax = axes[(p // columns) * len(targets) + t, p % columns]
            ax.set_visible(True)
            own = rows[(rows["pair"] == pair) & (rows["target"] == target)]
            at = _repair_panel(ax, own, hows, list(groups), alpha)
            ax.set_title(
                title_of(f"{pair}:", f"sparse {label(target)}" + (f", {alpha_is(at)}" if at is not None else ""), 32)
            )
            if t == len(targets) - 1 and p + columns >= len(pairs):
                ax.tick_params(labelbottom=True)
                ax.set_xlabel("OOD gain at equal ID accuracy (points)")
    handles = [
        Line2D(
            [],
            [],
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            ls="none",
            label=named,
        )
        for i, named in enumerate(groups.values())
    ]
    if rows["alpha"].nunique() > 1:
        handles.append(Line2D([], [], color=INK["grey"], marker=".", markersize=3, ls="none", label="the other alphas"))
    key(figure, handles, fewer)
    return figure


def _repair_panel(
    ax: Axes, rows: pd.DataFrame, hows: list[str], groups: Sequence[Group], alpha: float | None
) -> float | None:
    ax.axvline(0, color=INK["grey"], lw=0.8, zorder=0)
    ax.set(yticks=range(len(hows)), yticklabels=hows, ylim=(len(hows) - 0.45, -0.55))
    ax.grid(True, axis="x")
    ax.tick_params(axis="y", length=0)
    if not len(rows):
        return None
    at = nearest(rows["alpha"], MIDDLE if alpha is None else alpha)
    for g, group in enumerate(groups):
        colour, marker = COLOURS[g % len(COLOURS)], MARKERS[g % len(MARKERS)]
        for h, how in enumerate(hows):
            own = rows[(rows["who"] == group) & (rows["how"] == how)]
            y = h + (0.72 / len(groups)) * (g - (len(groups) - 1) / 2)
            others, one = own[own["alpha"] != at], own[own["alpha"] == at]
            ax.scatter(100 * others["gain"], np.full(len(others), y), s=4, color=colour, alpha=0.3, lw=0)
            bars = 100 * np.abs(np.stack([one["gain"] - one["ci_low"], one["ci_high"] - one["gain"]]))
            ax.errorbar(
                100 * one["gain"], np.full(len(one), y), xerr=bars, fmt=marker, color=colour, ms=3.6, elinewidth=1.0
            )
    return at


@styled
def correlation_scatter(points: pd.DataFrame, pair_order: Sequence[str] = ()) -> Figure:
    """Whole-model sharpness (x) and OOD gain over zero-shot (y): one point per pair, in its colour and mark.

    There is one panel per measure; with several groups of OOD sets one row per measure and one column per group.
    ``points`` has the columns pair, sharpness, ood_gain (0-1), measure, alpha and optionally group and source
    (``shipped`` points are hollow, and a line below the panels says so). If a pair and measure have several alphas, the
    one nearest 0.5 is shown. ``pair_order`` is the run's order of pairs, from which their colours follow; other pairs
    come after it, by name.

    >>> shown = sharpscope.plot.correlation_scatter(points)

    Raises:
        NoData: there is no finite point.
    """
    rows = points[np.isfinite(points["sharpness"].astype(float)) & np.isfinite(points["ood_gain"].astype(float))]
    rows = rows.assign(far=(rows["alpha"].astype(float) - MIDDLE).abs()).sort_values("far", kind="stable")
    rows = rows.assign(group=rows.get("group", ""), source=rows.get("source", "run"))
    rows = rows.drop_duplicates(["pair", "measure", "group"]).sort_index()
    if not len(rows):
        raise NoData("correlation_scatter: no pair has both a sharpness and an OOD gain.")
    groups = unique_in_order(rows["group"])
    panels = [(measure, group) for measure in measures_in(rows) for group in groups]
    columns = min(2, len(panels)) if len(groups) == 1 else len(groups)
    figure = new_figure((3.1 if columns == 1 else 2.2) * math.ceil(len(panels) / columns))
    axes = figure.subplots(math.ceil(len(panels) / columns), columns, sharey=True, squeeze=False)
    looks, entries = pair_looks(rows["pair"], pair_order)
    hollow = {pair for pair, source in zip(rows["pair"], rows["source"], strict=True) if source == "shipped"}
    drawn = {at: rows[(rows["measure"] == at[0]) & (rows["group"] == at[1])] for at in panels}
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(panels) and len(drawn[panels[k]]) > 0)
    for ((measure, group), own), ax in zip(drawn.items(), axes.flat, strict=False):
        if not len(own):
            continue
        x, y = own["sharpness"].to_numpy(float), 100 * own["ood_gain"].to_numpy(float)
        for pair, at_x, at_y in zip(own["pair"], x, y, strict=True):
            ax.plot(at_x, at_y, **_point(looks[pair], pair in hollow, 4.2 if len(looks) <= len(PAIR_COLOURS) else 2.8))
        if (x > 0).all() and x.max() > 5 * x.min():
            ax.set_xscale("log")
            plain_log(ax.xaxis)
        ax.axhline(0, color=INK["grey"], lw=0.8, zorder=0)
        ax.grid(True)
        ax.margins(0.14)
        alphas = sorted(set(own["alpha"]))
        named = label(measure if len(groups) == 1 else f"{measure}, {group}")
        ax.set_title(named + (f" at {alpha_is(alphas[0])}" if len(alphas) == 1 else ""))
        if list(axes.flat).index(ax) + columns >= len(panels):
            ax.set_xlabel("whole-model sharpness on ID data")
    for ax in axes[:, 0]:
        ax.set_ylabel("OOD gain over\nzero-shot (points)")
    for entry, (pair, look) in zip(entries, looks.items(), strict=False):  # the last entry may stand for several
        entry.set(**_point(look, pair in hollow, 4.2))
    key(figure, entries, f"hollow: {SOURCES['shipped']}" if hollow else "")
    return figure


def _point(look: Look, hollow: bool, size: float) -> dict[str, Any]:
    face = "white" if hollow else look.colour
    return look.line | {"mfc": face, "ms": size, "mew": 1.0, "ls": "none", "zorder": 3}


# ---------------------------------------------------------------------------------------------------------- correlation
@styled
def correlation(
    correlations: pd.DataFrame,
    scope: Literal["pairs", "path"] = "pairs",
    method: str = "spearman",
    against: str | None = None,
    alpha: float | None = None,
    held: bool = False,
) -> Figure:
    """Correlation of every (layer, measure) with OOD accuracy as a map; dots mark q < 0.05, hatching undefined cells.

    Each group of OOD sets has panels of its own; the data set is the group's mean over the most sets. Across pairs the
    rows are those of the source with the most pairs: a run of two adds nothing to a shipped table of ten.

    Args:
        correlations: the table ``correlations``.
        scope: path, with one panel per pair (descriptive), or pairs, with one panel (evidence).
        method: coefficient: spearman, pearson or kendall.
        against: ood_gain or ood_accuracy; default: ood_gain where the table has it.
        alpha: alpha at which pairs are compared; default: the one nearest 0.5.
        held: hold all covariates fixed at once, as far as there is room for them; without it none is.

    >>> shown = sharpscope.plot.correlation(run.correlations, "path", "pearson")

    Raises:
        NoData: the table has no such rows.
    """
    rows = correlations[(correlations["scope"] == scope) & (correlations["method"] == method)]
    rows = _widest(rows) if scope == "pairs" else rows
    table = joint_rows(rows) if held else marginal_rows(rows)
    table = table[~table["layer"].isin([n for c in CONTRASTS.values() for n in (c.others, c.random)])]
    if not len(table):
        fixed = ", all covariates held fixed" if held else ""
        raise NoData(f"correlation: no rows with scope {label(scope)} and method {label(method)}{fixed}.")
    names = unique_in_order(table["against"])
    against = against or next((a for a in reversed(AGAINST) if a in names), names[0])
    table = table[table["against"] == against]
    raw = table["measure"].map(MEASURES.__contains__)  # the shares and covariates of the table are left to the report
    table = table[raw] if raw.any() else table
    if not len(table):
        raise NoData(f"correlation: no rows against {label(against)}.")
    table = pairs_and_groups(widest_means(table))
    if not np.isfinite(table["estimate"]).any():
        raise NoData(f"correlation: every estimate with scope {label(scope)} is undefined.")
    at = None
    if table["alpha"].notna().any():
        at = nearest(table["alpha"], MIDDLE if alpha is None else alpha)
        table = table[table["alpha"] == at]
    table = table.sort_values("source", kind="stable").drop_duplicates(["pair", "layer", "measure"])
    pairs, fewer = first_pairs(table)
    layers, left_out = layer_rows(table, table["estimate"])
    measures = measures_in(table)
    columns = min(2 if len(measures) > 4 else 3, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = new_figure(lines * (ROW * max(4, len(layers)) + 1.15) + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False)
    norm = Normalize(-1, 1)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(pairs))
        if i < len(pairs):
            _correlation_panel(ax, table[table["pair"] == pairs[i]], layers, measures, norm, numbers=columns == 1)
            rows_axis(ax, layers, named=i % columns == 0)
            own = table[table["pair"] == pairs[i]]
            ax.set_title(_correlation_title(own, pairs[i].removeprefix(PAIRS).removeprefix(", "), scope, at))
    bar = colour_bar(figure, ScalarMappable(norm, colormaps["RdBu_r"]), axes)
    what = f"{label(method.capitalize())} correlation with {label(against.replace('_', ' ').replace('ood', 'OOD'))}"
    bar.set_label(f"{what}, covariates held fixed" if held else what)
    handles = []
    if (table["q_value"] < 0.05).any():
        handles.append(Line2D([], [], color="black", marker="o", markersize=2, ls="none", label="q < 0.05"))
    if table["estimate"].isna().any():
        handles.append(Patch(facecolor="#e3e3e3", edgecolor="#777777", hatch="/////", lw=0, label="undefined"))  # type: ignore[arg-type]
    key(figure, handles, left_out_note(left_out), fewer)
    return figure


def _widest(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the source with the most pairs."""
    return rows[rows["source"] == rows.groupby("source")["n"].max().fillna(0).idxmax()] if len(rows) else rows


def _correlation_title(own: pd.DataFrame, pair: str, scope: str, alpha: float | None) -> str:
    """The number of points, their alpha and their source."""
    n = int(own["n"].max()) if own["n"].notna().any() else 0
    if scope == "path":
        return title_of(pair, f"({n} alphas)", 27)
    shipped = ", shipped table" if (own["source"] == "shipped").all() else ""
    told = number_of(n, "pair") + ("" if alpha is None else f" at {alpha_is(alpha)}") + shipped
    return title_of(f"{pair}:", told, 27) if pair else told


def _correlation_panel(
    ax: Axes, rows: pd.DataFrame, layers: list[str], measures: list[str], norm: Normalize, numbers: bool
) -> None:
    place, column = {n: i for i, n in enumerate(layers)}, {m: i for i, m in enumerate(measures)}
    rows = rows[rows["layer"].isin(place)]
    grid = np.full((len(layers), len(measures)), np.nan)
    y, x = rows["layer"].map(place).to_numpy(int), rows["measure"].map(column).to_numpy(int)
    value, q = rows["estimate"].to_numpy(float), rows["q_value"].to_numpy(float)
    grid[y, x] = value
    ax.pcolormesh(np.ma.masked_invalid(grid), cmap="RdBu_r", norm=norm, linewidth=0)
    for i, j in np.argwhere(np.isnan(grid)):
        ax.add_patch(Rectangle((j, i), 1, 1, facecolor="#e3e3e3", edgecolor="#777777", hatch="/////", lw=0))
    for row, col, r, significant in zip(y, x, value, q < 0.05, strict=True):
        ink = "white" if abs(r) > 0.6 else "black"
        if numbers and np.isfinite(r):
            ax.text(
                col + 0.5,
                row + 0.52,
                f"{r:+.2f}".replace("0.", ".").replace("-", "−"),
                ha="center",
                va="center",
                fontsize=5,
                color=ink,
            )
        if significant:
            ax.plot([col + (0.9 if numbers else 0.5)], [row + 0.5], color=ink, marker="o", markersize=1.6)
    ax.spines[:].set_visible(False)
    ax.set_xticks(
        np.arange(len(measures)) + 0.5,
        [label(m) for m in measures],
        rotation=40,
        ha="right",
        rotation_mode="anchor",
        fontsize=6.5,
    )
    ax.tick_params(axis="x", length=0)
    line_below_groups(ax, layers)
