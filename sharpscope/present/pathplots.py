"""The figures of accuracy, loss and whole-model sharpness along the path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sharpscope.errors import ConfigError, NoData
from sharpscope.present.advice import advised_alphas
from sharpscope.present.alphas import alpha_axis, alpha_is, alpha_number, with_symbol
from sharpscope.present.canvas import figure_of
from sharpscope.present.placing import place_labels
from sharpscope.present.style import (
    COLOURS,
    INK,
    OUTPUT_MARKS,
    SET_COLOURS,
    Look,
    first_pairs,
    key,
    label,
    new_figure,
    one_panel,
    pair_looks,
    plain_log,
    short_set,
    styled,
    title_of,
)
from sharpscope.tables.rows import (
    average,
    dense_rows,
    flags_of,
    groups_in,
    image_error,
    measures_in,
    of_group,
    own_error,
    primary_rows,
    unique_in_order,
)
from sharpscope.vocabulary import ALL, DEFAULT_GROUP, OOD_MEAN, OUTPUT_BASELINES

__all__ = ["accuracy_along_alpha", "sharpness_along_alpha", "wiseft_curve", "wiseft_curves"]

_RING: dict[str, Any] = {
    "ls": "none", "marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": INK["black"],
    "markeredgewidth": 1.1,
}  # fmt: skip
_BELOW: dict[str, Any] = {"color": INK["bad"], "lw": 5, "alpha": 0.3, "zorder": 0, "solid_capstyle": "butt"}
_WRITTEN = (0.2, 0.5, 0.8)
"""The alphas that the WiSE-FT curve labels with their value."""


def _dense(accuracy: pd.DataFrame, figure: str) -> pd.DataFrame:
    """The plain path's rows that have an estimate, along alpha; raises NoData where there are none."""
    rows = dense_rows(accuracy[accuracy["estimate"].notna()]).sort_values("alpha", kind="stable")
    if not len(rows):
        raise NoData(f"{figure}: the accuracy table has no rows of the plain path.")
    return rows


def _bars(rows: pd.DataFrame) -> np.ndarray | None:
    if rows["ci_low"].isna().any():
        return None
    estimate = rows["estimate"].to_numpy()
    return np.abs(np.stack([estimate - rows["ci_low"], rows["ci_high"] - estimate]))


# ----------------------------------------------------------------------------------------------------------- WiSE-FT
@styled
def wiseft_curve(
    accuracy: pd.DataFrame,
    ax: Axes | None = None,
    group: str | None = None,
    advice: pd.DataFrame | None = None,
    pair_order: Sequence[str] = (),
) -> Axes:
    """Mean OOD accuracy (y) over mean ID accuracy (x), both in percent, along each pair's path.

    The ends are marked, alpha is written next to some points, and light bars are intervals. Output-space baselines
    (``vocabulary.OUTPUT_BASELINES``) are separate marks, where the table has them. ``group`` is the group of OOD sets
    that is averaged; None is the only one. ``advice`` rings the points whose alpha is advised. ``pair_order`` is the
    run's order of pairs, from which their colours follow; default: by name.

    >>> shown = sharpscope.plot.wiseft_curve(run.accuracy, group="ood")

    Raises:
        NoData: no pair has both ID and OOD rows.
        ConfigError: the table has several groups and none is named.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), fig. 1.
    """
    groups = groups_in(accuracy)
    if group is None and len(groups) > 1:
        raise ConfigError(f"wiseft_curve: name one of the groups of OOD sets, {', '.join(groups)}; or wiseft_curves.")
    ax = ax or one_panel(3.3)
    pairs, marks = _curve(ax, accuracy, group or (groups or [DEFAULT_GROUP])[0], advice, pair_order)
    key(figure_of(ax), [*pair_looks(pairs, pair_order)[1], *marks], _numbers(ax))
    return ax


@styled
def wiseft_curves(accuracy: pd.DataFrame, advice: pd.DataFrame | None = None, pair_order: Sequence[str] = ()) -> Figure:
    """``wiseft_curve`` of every group of OOD sets, side by side; the axis of ID accuracy is the same.

    ``advice`` rings the points whose alpha is advised. ``pair_order`` is the run's order of pairs, from which their
    colours follow; default: by name.

    >>> shown = sharpscope.plot.wiseft_curves(run.accuracy, run.advice, pair_order=run.order)

    Raises:
        NoData: no pair has both ID and OOD rows.
    """
    groups = groups_in(accuracy) or [DEFAULT_GROUP]
    columns = min(2, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = new_figure(lines * (3.3 if len(groups) == 1 else 2.7) + 0.3 * (len(groups) > 1))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    order = pair_order or sorted(set(accuracy["pair"]))  # one colour a pair, also where a panel lacks some of them
    drawn: list[str] = []
    marks: dict[str, Line2D] = {}
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(groups))
    for group, ax in zip(groups, axes.flat, strict=False):
        pairs, own = _curve(ax, accuracy, group, advice, order)
        drawn += pairs
        marks |= {str(mark.get_label()): mark for mark in own}
        if len(groups) > 1:
            ax.set_title(f"OOD sets: {label(group, 30)}")
            ax.tick_params(labelbottom=True)
    key(figure, [*pair_looks(drawn, order)[1], *marks.values()], _numbers(*axes.flat))
    return figure


def _numbers(*axes: Axes) -> str:
    """What the numbers beside points are; empty where there are none."""
    return with_symbol("numbers: α") if any(ax.texts for ax in axes) else ""


def _curve(
    ax: Axes, accuracy: pd.DataFrame, group: str, advice: pd.DataFrame | None, order: Sequence[str]
) -> tuple[list[str], list[Line2D]]:
    """Draw every pair's curve on the OOD sets of one group: (the pairs, the legend's entries beside them)."""
    accuracy = of_group(accuracy, group)
    dense = _dense(accuracy, "wiseft_curve")
    curves = {}
    for pair in unique_in_order(dense["pair"]):
        rows = dense[dense["pair"] == pair]
        both = average(rows, "id").merge(average(rows, "ood"), on="alpha", suffixes=("_id", "_ood"))
        if len(both):
            curves[pair] = both
    if not curves:
        raise NoData("wiseft_curve: no pair has ID and OOD accuracy at the same alphas.")
    at: list[tuple[float, float]] = []
    texts: list[str] = []
    inks: list[str] = []
    every: list[tuple[float, float]] = []
    rings = 0
    looks, _ = pair_looks(curves, order)
    for pair, look in looks.items():
        rows = curves[pair]
        x, y = rows["estimate_id"].to_numpy(), rows["estimate_ood"].to_numpy()
        bars: dict[str, Any] = {
            axis: _bars(rows.rename(columns={f"{c}_{role}": c for c in ("estimate", "ci_low", "ci_high")}))
            for axis, role in (("xerr", "id"), ("yerr", "ood"))
        }
        ax.errorbar(x, y, **bars, fmt="none", ecolor=look.colour, alpha=0.28 * look.opacity, elinewidth=0.8, zorder=1)
        ax.plot(
            x, y, color=look.colour, marker=look.marker, markersize=look.size, lw=look.width, alpha=look.opacity,
            label=label(pair, 22), zorder=2,
        )  # fmt: skip
        ringed = rows[np.isin(rows["alpha"], advised_alphas(advice, pair, group))]
        rings += len(ringed)
        if len(ringed):
            ax.plot(ringed["estimate_id"], ringed["estimate_ood"], **_RING, zorder=5)
        ends = rows[["alpha", "estimate_id", "estimate_ood"]].to_numpy()
        for alpha, ex, ey in ends[np.isin(ends[:, 0], (0.0, 1.0))]:
            mark, size = ("*", 90) if alpha == 0 else ("s", 4.3 * look.size**2)
            ax.scatter(
                [ex],
                [ey],
                s=size,
                marker=mark,
                color=INK["black"] if alpha == 0 else look.colour,
                edgecolor="white",
                lw=0.6,
                zorder=4,
            )
        along = np.linspace(
            0, len(x) - 1, 8 * len(x)
        )  # points on the line between the marks, which no number may cover
        every += list(zip(np.interp(along, range(len(x)), x), np.interp(along, range(len(x)), y), strict=True))
        inner = rows[(rows["alpha"] > 0) & (rows["alpha"] < 1)]
        for wanted in _WRITTEN:
            far = (inner["alpha"] - wanted).abs().to_numpy()
            if len(far) and far.min() < 0.05:
                row = inner.iloc[int(far.argmin())]
                at.append((row["estimate_id"], row["estimate_ood"]))
                texts.append(alpha_number(row["alpha"]))
                inks.append(look.colour)
    mixed = _outputs(ax, accuracy, looks)
    ax.grid(True)
    ax.set(xlabel="ID accuracy (%)", ylabel="Mean OOD accuracy (%)")
    ends_key = [
        Line2D([], [], color=INK["black"], marker="*", ls="none", markersize=8, label=f"zero-shot ({alpha_is(0)})"),
        Line2D([], [], color=INK["grey"], marker="s", ls="none", markersize=5, label=f"fine-tuned ({alpha_is(1)})"),
    ]
    if rings:
        ends_key.append(Line2D([], [], **_RING, label=with_symbol("advised α")))
    if len(curves) <= len(COLOURS):  # numbers at more lines than can be told apart would tell nothing
        place_labels(ax, at, texts, inks, avoid=every)
    return list(curves), [*ends_key, *mixed]


def _outputs(ax: Axes, accuracy: pd.DataFrame, looks: Mapping[str, Look]) -> list[Line2D]:
    """Draw a mark for each pair's mixed outputs; returns their legend entries."""
    keys = []
    for variant, mark in zip(OUTPUT_BASELINES, OUTPUT_MARKS, strict=True):
        rows = primary_rows(accuracy[(accuracy["variant"] == variant) & accuracy["estimate"].notna()]).assign(alpha=0.0)
        for pair, look in looks.items():
            own = rows[rows["pair"] == pair]
            both = average(own, "id").merge(average(own, "ood"), on="alpha") if len(own) else own
            if len(both):
                at = both["estimate_x"], both["estimate_y"]
                ax.scatter(
                    *at, marker=mark, s=5.4 * look.size**2, color=look.colour, edgecolor="white", lw=0.6, zorder=4
                )
        if len(rows):
            keys.append(Line2D([], [], color=INK["grey"], marker=mark, ls="none", markersize=5, label=variant.upper()))
    return keys


# ------------------------------------------------------------------------------------------------- along the path
@styled
def accuracy_along_alpha(
    accuracy: pd.DataFrame,
    path: pd.DataFrame | None = None,
    failure: pd.DataFrame | None = None,
    advice: pd.DataFrame | None = None,
) -> Figure:
    """Accuracy and loss along each pair's path, with a bar at the point that flag F2 finds below BOTH ends.

    Thin lines are the OOD sets, the thick line with a band is their mean, and the dashed line is ID. Every group of OOD
    sets on which a pair was measured has a panel of its own. With ``path`` a lower panel shows the probe loss and the
    chord between its ends. ``failure`` adds the flags that were raised and the bar, ``advice`` rings the OOD mean at
    the alphas that are advised.

    >>> shown = sharpscope.plot.accuracy_along_alpha(run.accuracy, run.path, run.failure)

    Raises:
        NoData: the table has no rows of the plain path.
    """
    dense = _dense(accuracy, "accuracy_along_alpha")
    pairs, fewer = first_pairs(dense)
    groups = {p: groups_in(dense[dense["pair"] == p]) or [DEFAULT_GROUP] for p in pairs}
    panels, several = max(map(len, groups.values())), len(groups_in(dense)) > 1
    loss = path is not None and bool(path["loss"].notna().any())
    columns = min(2, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    sets = sorted(unique_in_order(dense[dense["role"] == "ood"]["dataset"]))
    colours = (
        dict(zip(sets, SET_COLOURS, strict=False)) if len(sets) <= len(SET_COLOURS) else dict.fromkeys(sets, "#aaaaaa")
    )
    high = panels + loss
    figure = new_figure(lines * (2.2 * panels + 0.8 * loss) + 0.55)
    ratios = ([2.3] * panels + [1.0] * loss) * lines
    grid = figure.add_gridspec(lines * high, columns, height_ratios=ratios)
    below, rings, first = False, 0, None
    for i, pair in enumerate(pairs):
        row, column = divmod(i, columns)
        ax: Axes | None = None
        for g, group in enumerate(groups[pair]):
            if ax is not None:
                ax.tick_params(labelbottom=False)
            ax = figure.add_subplot(grid[row * high + g, column], sharey=first, sharex=ax)
            first = first or ax
            own = of_group(dense[dense["pair"] == pair], group)
            _accuracy_panel(ax, own, colours)
            means = average(own, "ood")
            ringed = means[np.isin(means["alpha"], advised_alphas(advice, pair, group))]
            rings += len(ringed)
            if len(ringed):  # a line of no points that is not clipped would upset the layout
                ax.plot(ringed["alpha"], ringed["estimate"], **_RING, zorder=5, clip_on=False)
            flags = failure if failure is None else of_group(failure, group)
            for alpha in _below_both_ends(pair, flags):
                ax.axvline(alpha, **_BELOW)
                below = True
            ax.set_title(_with_flags(pair, flags, group if several else ""))
            ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            if column == 0:
                ax.set_ylabel("Accuracy (%)")
        assert ax is not None
        last = ax
        if loss and path is not None:
            last = figure.add_subplot(grid[row * high + panels, column], sharex=ax)
            _loss_panel(last, path[path["pair"] == pair])
            ax.tick_params(labelbottom=False)
            last.set_ylabel("Probe loss" if column == 0 else "")
        alpha_axis(last, ends=True)
    handles = [
        Line2D([], [], color=INK["black"], lw=2.0, label="OOD mean"),
        Line2D([], [], color=INK["grey"], lw=1.2, ls="--", label="ID"),
    ]
    if rings:
        handles.append(Line2D([], [], **_RING, label=with_symbol("advised α")))
    if below:
        handles.append(Line2D([], [], **_BELOW, label="below both ends (F2)"))
    if len(sets) <= len(SET_COLOURS):
        handles += [Line2D([], [], color=colours[s], lw=1.0, label=short_set(s)) for s in sets]
    else:
        handles.append(Line2D([], [], color="#aaaaaa", lw=0.8, label=f"each of {len(sets)} OOD sets"))
    key(figure, handles, fewer)
    return figure


def _accuracy_panel(ax: Axes, rows: pd.DataFrame, colours: Mapping[str, str]) -> None:
    for dataset, one in rows[rows["role"] == "ood"].groupby("dataset", sort=True):
        ax.plot(one["alpha"], 100 * one["estimate"], color=colours[str(dataset)], lw=0.8, alpha=0.9)
    ident, mean = average(rows, "id"), average(rows, "ood")
    ax.plot(ident["alpha"], ident["estimate"], color=INK["grey"], ls="--", lw=1.2)
    ax.plot(mean["alpha"], mean["estimate"], color=INK["black"], lw=2.0)
    ax.fill_between(mean["alpha"], mean["ci_low"], mean["ci_high"], color=INK["black"], alpha=0.18, lw=0)
    ax.grid(True, axis="y")


def _below_both_ends(pair: str, failure: pd.DataFrame | None) -> list[float]:
    """The alpha that flag F2 of the OOD mean names, where the flag is raised: the only point that was tested."""
    if failure is None:
        return []
    rows = failure[(failure["pair"] == pair) & (failure["dataset"] == OOD_MEAN) & (failure["flag"] == "F2")]
    return [float(alpha) for alpha in rows.loc[rows["present"] == True, "alpha"]]  # noqa: E712  may hold missing values


def _with_flags(pair: str, failure: pd.DataFrame | None, group: str) -> str:
    """The pair's name, the group of OOD sets where there are several, and the flags that were raised on it."""
    own, pair = pair, f"{pair}, {group}" if group else pair
    if failure is None or not (failure["pair"] == own).any():
        return label(pair, 34)
    raised, absent, _ = flags_of(failure, own)
    if raised:
        said = f"(flags {', '.join(map(label, sorted(raised)))})"
    else:
        said = "(no failure flag)" if absent else "(failure flags open)"
    return title_of(pair, said, 34)


def _loss_panel(ax: Axes, rows: pd.DataFrame) -> None:
    rows = rows[rows["loss"].notna()].sort_values("alpha")
    ax.grid(True, axis="y")
    if not len(rows):
        return
    ax.plot(rows["alpha"], rows["loss"], color=COLOURS[0], lw=1.2)
    error = rows["loss_stderr"].fillna(0.0)
    ax.fill_between(rows["alpha"], rows["loss"] - error, rows["loss"] + error, color=COLOURS[0], alpha=0.2, lw=0)
    ends = rows.iloc[[0, -1]]
    ax.plot(ends["alpha"], ends["loss"], color=INK["grey"], lw=0.8, ls=":")


# --------------------------------------------------------------------------------------------------------- whole model
@styled
def sharpness_along_alpha(sharpness: pd.DataFrame, pair_order: Sequence[str] = ()) -> Figure:
    """Each measure of the whole model along the path, one line per pair.

    Bars are one error over draws of images, where that is unknown one error of the estimate on these images; hollow
    marks did not converge. The axis is logarithmic where all values are positive and differ by more than a factor of 8.
    ``pair_order`` is the run's order of pairs, from which their colours follow; default: by name.

    >>> shown = sharpscope.plot.sharpness_along_alpha(run.sharpness)

    Raises:
        NoData: the table has no estimate of the whole model.
    """
    table = sharpness[(sharpness["layer"] == ALL) & np.isfinite(sharpness["estimate"])]
    if not len(table):
        raise NoData("sharpness_along_alpha: the sharpness table has no estimate of the whole model.")
    measures = measures_in(table)
    looks, handles = pair_looks(table["pair"], pair_order)
    columns = min(3, len(measures))
    lines = math.ceil(len(measures) / columns)
    figure = new_figure(1.3 * lines + (0.45 if lines > 1 else 0.8))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True)
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(measures))
    for k, measure in enumerate(measures):
        ax = axes.flat[k]
        own = table[table["measure"] == measure].sort_values("alpha", kind="stable")
        for pair, look in looks.items():
            _line(ax, own[own["pair"] == pair], look)
        values = own["estimate"]
        if (values > 0).all() and values.max() > 8 * values.min():
            ax.set_yscale("log")
            plain_log(ax.yaxis)
        elif values.abs().max() >= 1e4 or values.abs().max() < 1e-2:
            ax.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
            ax.yaxis.get_offset_text().set_fontsize(6)
            ax.yaxis.get_offset_text().set_ha("right")
        if (values <= 0).any() and (values >= 0).any():
            ax.axhline(0, color=INK["grey"], lw=0.6, zorder=0)
        ax.grid(True, axis="y")
        ax.set_title(label(measure, 26), fontsize=7)
        if k + columns >= len(measures):
            alpha_axis(ax)
            ax.tick_params(labelbottom=True)
    if (table["status"] == "not_converged").any():
        handles.append(
            Line2D([], [], color=INK["grey"], marker="o", markerfacecolor="white", ls="none", label="not converged")
        )
    key(figure, handles)
    return figure


def _line(ax: Axes, rows: pd.DataFrame, look: Look) -> None:
    if not len(rows):
        return
    error = image_error(rows).fillna(own_error(rows)).fillna(0.0)
    width, opacity = 0.8 * look.width, look.opacity
    ax.errorbar(
        rows["alpha"], rows["estimate"], yerr=error, color=look.colour, lw=width, elinewidth=width * 0.7, alpha=opacity
    )
    for open_, own in rows.groupby(rows["status"] == "not_converged"):
        ax.plot(
            own["alpha"], own["estimate"], color=look.colour, ls="none", marker=look.marker, markersize=look.size,
            markerfacecolor="white" if open_ else look.colour, alpha=opacity, zorder=3,
        )  # fmt: skip
