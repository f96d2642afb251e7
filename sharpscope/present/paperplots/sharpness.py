"""Figures of the sharpness paper: instability of the path, sharpness of layers along it, and against OOD accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sharpscope.layers import layer_key
from sharpscope.present.paperplots.drawn import Drawn, among, lacks, pair_lines, paper_figure, range_of
from sharpscope.present.paperplots.outcomes import images_in_words, paths_of
from sharpscope.present.style import (
    COLOURS,
    INK,
    first_pairs,
    key,
    label,
    new_figure,
    plain_log,
    short_layer,
    signed_ticks,
)
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import MIDDLE, marginal_rows, nearest, unique_in_order
from sharpscope.vocabulary import ALL, BASES, PRIMARY_MEASURE

__all__ = ["paper_sharpness_correlation", "paper_sharpness_layers", "paper_sharpness_lii"]

_SOURCE: Final = "After Abdollahpoorrostam 2024 (arXiv 2410.16476)."
_MOST_NAMED: Final = 7
_WIDE: Final = 8
"""Values that differ by more than this factor are drawn on a logarithmic axis."""
_DEEPEST: Final = 1e-5
_BENT: Final = 1e-3
"""The smallest value that has a place of its own, as a share of the largest: where all are above 0, and where some are
not; smaller ones are noise around 0."""


# ----------------------------------------------------------------------------------------------------------------- LII
@paper_figure
def paper_sharpness_lii(path: pd.DataFrame, heights: pd.DataFrame) -> Drawn:
    """Probe loss along the path, with its instability and its barrier as arrows, one panel per pair.

    The instability (LII) is the largest loss minus the mean of the ends; the barrier is the largest height above the
    chord between the ends, which leaves out what unequal ends force.

    Args:
        path: the table ``path``.
        heights: ``findings.path_heights`` of the same table.

    >>> drawn = sharpscope.plot.paper_sharpness_lii(run.path, heights)

    Raises:
        NoData: no pair has a loss at both ends.

    Source: Frankle et al. 2020 (arXiv 1912.05671); Abdollahpoorrostam 2024 (arXiv 2410.16476).
    """
    if not len(heights):
        raise lacks("sharpness_lii", "path", "has no pair with a finite loss at both ends")
    pairs, more = first_pairs(heights)
    columns = min(3, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = new_figure(1.75 * lines + 0.7)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(pairs))
    for i, (pair, ax) in enumerate(zip(pairs, axes.flat, strict=False)):
        height = heights[heights["pair"] == pair].iloc[0]
        _loss_panel(ax, path[(path["pair"] == pair) & path["loss"].notna()].sort_values("alpha"), height)
        ax.set_title(f"{label(pair, 20)}\nLII {height['lii']:.2f}, barrier {height['barrier']:.2f}", fontsize=7)
        ax.set_ylabel("probe loss (nats)" if i % columns == 0 else "")
        if i + columns >= len(pairs):
            ax.set_xlabel("α")
            ax.tick_params(labelbottom=True)
    key(
        figure,
        [
            Line2D([], [], color=COLOURS[0], marker="o", ms=3, label="loss on the path"),
            Line2D([], [], color=INK["grey"], ls=":", label="chord between the ends"),
            Line2D([], [], color=INK["grey"], ls="--", lw=0.9, label="mean of the ends"),
            Line2D([], [], color=COLOURS[1], lw=1.6, label="LII"),
            Line2D([], [], color=COLOURS[2], lw=1.6, label="barrier"),
        ],
        more,
    )
    points = heights["n"]
    caption = f"""Probe loss along the straight path of {number_of(len(pairs), "pair")} at
        {range_of(points.min(), points.max())} points; bands are one standard error over images. LII: largest loss
        minus the mean of the ends; barrier: largest height above the chord. Both are maxima over these points, so
        that noise makes them larger. {_SOURCE}"""
    return Drawn(figure, caption)


def _loss_panel(ax: Axes, rows: pd.DataFrame, height: pd.Series) -> None:
    x, y = rows["alpha"].to_numpy(), rows["loss"].to_numpy()
    error = rows["loss_stderr"].fillna(0.0)
    ax.fill_between(x, y - error, y + error, color=COLOURS[0], alpha=0.15, lw=0)
    ax.plot(x, y, color=COLOURS[0], marker="o", ms=2.4, lw=1.2, zorder=3)
    start, end = (float(rows.loc[rows["alpha"] == a, "loss"].iloc[0]) for a in (0.0, 1.0))
    ax.plot((0, 1), (start, end), color=INK["grey"], ls=":", lw=1.0)
    ax.axhline((start + end) / 2, color=INK["grey"], ls="--", lw=0.7, zorder=1)
    peak = float(y[np.isclose(x, height["lii_alpha"])][0])
    bump = float(y[np.isclose(x, height["barrier_alpha"])][0])
    same = 0.012 if height["lii_alpha"] == height["barrier_alpha"] else 0.0  # side by side, not on top of each other
    ax.vlines(height["lii_alpha"] - same, (start + end) / 2, peak, color=COLOURS[1], lw=1.6, zorder=2)
    ax.vlines(height["barrier_alpha"] + same, bump - height["barrier"], bump, color=COLOURS[2], lw=1.6, zorder=4)
    ax.grid(True, axis="y")


# -------------------------------------------------------------------------------------------------------------- layers
@paper_figure
def paper_sharpness_layers(
    sharpness: pd.DataFrame,
    stragglers: pd.DataFrame,
    measure: str = PRIMARY_MEASURE,
    criterion: str = "instability",
    base: str | None = None,
) -> Drawn:
    """Sharpness of every layer along alpha, one panel per pair: stragglers coloured and named, other layers grey.

    Args:
        sharpness: the sharpness table.
        stragglers: the table ``stragglers``, which says what layers are chosen.
        measure: the measure to draw.
        criterion: the criterion by which stragglers are chosen; default: the only definition that the paper has
            published, a layer whose own interpolation costs.
        base: the base of the criterion; default: the first one of ``vocabulary.BASES`` that the table has.

    >>> drawn = sharpscope.plot.paper_sharpness_layers(run.sharpness, run.stragglers, criterion="rewind")

    Raises:
        NoData: a measure, criterion or base that the tables lack.

    Source: Abdollahpoorrostam 2024 (arXiv 2410.16476), layer-wise sharpness and straggler layers.
    """
    among(measure, sharpness["measure"], "measure")
    among(criterion, stragglers["criterion"], "criterion")
    own = stragglers[stragglers["criterion"] == criterion]
    bases = unique_in_order(own["base"])
    base = among(base, bases, "base") if base else next((b for b in BASES if b in bases), bases[0])
    chosen = own[(own["base"] == base) & (own["chosen"] == True)]  # noqa: E712  the column may hold missing values
    table = sharpness[(sharpness["measure"] == measure) & np.isfinite(sharpness["estimate"])]
    if not len(table):
        raise lacks("sharpness_layers", "sharpness", f"has no finite {label(measure)}")
    pairs, more = first_pairs(table)
    named = sorted(unique_in_order(chosen.loc[chosen["pair"].isin(pairs), "layer"]), key=layer_key)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(named[:_MOST_NAMED])}
    columns = min(2, len(pairs))
    lines = math.ceil(len(pairs) / columns)
    figure = new_figure(2.1 * lines + 0.75)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(pairs))
    for i, (pair, ax) in enumerate(zip(pairs, axes.flat, strict=False)):
        mine = set(chosen.loc[chosen["pair"] == pair, "layer"])
        _layers_panel(ax, table[table["pair"] == pair], mine, colours)
        ax.set_title(f"{label(pair, 20)}: {number_of(len(mine), 'straggler')}")
        ax.set_ylabel(label(measure) if i % columns == 0 else "")
        if i + columns >= len(pairs):
            ax.set_xlabel("α (0 zero-shot, 1 fine-tuned)")
            ax.tick_params(labelbottom=True)
    scale = _value_axis(axes[0, 0], table["estimate"].to_numpy(dtype=float))
    handles = [
        Line2D([], [], color=INK["black"], ls="--", lw=1.3, label="whole model"),
        Line2D([], [], color="#bbbbbb", lw=0.8, label="other layers"),
        *(Line2D([], [], color=c, marker="o", ms=3, label=label(short_layer(n))) for n, c in colours.items()),
    ]
    told = table.merge(chosen[["pair", "layer"]], on=["pair", "layer"])
    if (told["status"] == "not_converged").any():
        handles.append(
            Line2D([], [], color=INK["grey"], marker="o", mfc="white", ls="none", ms=4, label="not converged")
        )
    fewer = len(named) - len(colours)
    key(figure, handles, more, f"{number_of(fewer, 'more straggler')} in grey-blue" if fewer else "")
    layers = table.loc[table["layer"] != ALL, "layer"].nunique()
    caption = f"""{label(measure)} of {number_of(layers, "layer")} along the straight path of
        {number_of(len(pairs), "pair")}, from {_most(table["n"]):,} probe images. Coloured: the stragglers by
        {criterion} (base {base}); a layer that is one in another panel only is grey. Bands are one standard error
        over images where it is known, hollow marks did not converge. {scale} {_SOURCE}"""
    return Drawn(figure, caption)


def _value_axis(ax: Axes, values: np.ndarray) -> str:
    """Choose the scale of the y axis by ``values``; returns the sentence of the caption about it."""
    sizes = np.abs(values[values != 0])
    if not len(sizes) or sizes.max() <= _WIDE * sizes.min():
        return "The vertical axis is linear."
    low, high = max(sizes.min(), sizes.max() * _DEEPEST), sizes.max()
    if (values > 0).all():
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(low / 1.5, high * 1.5)
        plain_log(ax.yaxis, 6)
        return "The vertical axis is logarithmic."
    low = 10.0 ** np.ceil(np.log10(max(low, high * _BENT)))
    ax.set_yscale("symlog", linthresh=low, linscale=0.5)
    bottom = values.min() * 1.5 if values.min() < -low else -low
    ax.set_ylim(bottom, high * 1.5 if values.max() > low else low)
    signed_ticks(ax.yaxis, low)
    return f"The vertical axis is logarithmic beyond ±{low:g} and linear between, for some values are 0 or less."


def _most(counts: pd.Series) -> int:
    known = counts.dropna()
    return int(known.max()) if len(known) else 0


def _layers_panel(ax: Axes, rows: pd.DataFrame, mine: set[str], colours: dict[str, str]) -> None:
    for layer, line in rows.sort_values("alpha", kind="stable").groupby("layer", sort=False):
        name = str(layer)
        if name == ALL:
            ax.plot(line["alpha"], line["estimate"], color=INK["black"], ls="--", lw=1.3, zorder=4)
        elif name in mine:
            colour = colours.get(name, "#7799bb")
            ax.plot(line["alpha"], line["estimate"], color=colour, lw=1.4, zorder=5)
            error = line["stderr_images"].fillna(line["stderr"]).fillna(0.0)
            low, high = line["estimate"] - error, line["estimate"] + error
            ax.fill_between(line["alpha"], low, high, color=colour, alpha=0.12, lw=0)
            for open_, part in line.groupby(line["status"] == "not_converged"):
                face = "white" if open_ else colour
                ax.plot(part["alpha"], part["estimate"], "o", ms=2.8, color=colour, mfc=face, zorder=6)
        else:
            ax.plot(line["alpha"], line["estimate"], color="#bbbbbb", lw=0.7, zorder=2)
    ax.grid(True, axis="y")


# --------------------------------------------------------------------------------------------------------- correlation
@paper_figure
def paper_sharpness_correlation(
    sharpness: pd.DataFrame,
    accuracy: pd.DataFrame,
    correlations: pd.DataFrame | None = None,
    measure: str = PRIMARY_MEASURE,
    layer: str = ALL,
    alpha: float = MIDDLE,
    pair_order: Sequence[str] = (),
) -> Drawn:
    """Mean OOD accuracy over sharpness: across models at one alpha (left), and along the path of each model (right).

    Args:
        sharpness: the sharpness table.
        accuracy: the accuracy table.
        correlations: the table ``correlations``; its coefficient for the left panel is printed where it is defined.
        measure: the measure to draw.
        layer: the layer whose sharpness is drawn; default: the whole model.
        alpha: the point of the left panel (the nearest one that the table has).
        pair_order: the run's order of pairs (``run.order``), from which their colours follow; default: by name.

    >>> drawn = sharpscope.plot.paper_sharpness_correlation(run.sharpness, run.accuracy, alpha=0.3)

    Raises:
        NoData: a measure or layer that the table lacks, or no point with both numbers.

    Source: Abdollahpoorrostam 2024 (arXiv 2410.16476); Andriushchenko et al. 2023 (arXiv 2302.07011).
    """
    among(measure, sharpness["measure"], "measure")
    among(layer, sharpness["layer"], "layer")
    values = sharpness[(sharpness["measure"] == measure) & (sharpness["layer"] == layer)]
    values = values[np.isfinite(values["estimate"])][["pair", "alpha", "estimate", "stderr_images", "status", "n"]]
    points = values.merge(paths_of(accuracy, "sharpness_correlation"), on=["pair", "alpha"])
    if not len(points):
        raise lacks("sharpness_correlation", "sharpness", "has no alpha at which accuracy is known too")
    looks, keys = pair_lines(points["pair"], pair_order)
    at = nearest(points["alpha"], alpha)
    here = points[np.isclose(points["alpha"], at)]
    figure = new_figure(2.75)
    left, right = figure.subplots(1, 2, sharey=True)
    if len(here) >= 4:
        sns.regplot(
            data=here, x="estimate", y="ood", ax=left, scatter=False, color=INK["grey"], ci=95, seed=0, truncate=True,
            line_kws={"lw": 1.0, "ls": "--"},
        )  # fmt: skip
    for pair, look in looks.items():
        one, own = here[here["pair"] == pair], points[points["pair"] == pair].sort_values("alpha")
        error = one["stderr_images"].fillna(0.0)
        left.errorbar(
            one["estimate"], one["ood"], xerr=error, yerr=_interval(one), ls="none", ms=4, elinewidth=0.7, **look
        )
        right.plot(own["estimate"], own["ood"], ms=2.4, lw=1.0, **look)
        for end, mark in ((0.0, "*"), (1.0, "s")):
            last = own[own["alpha"] == end]
            ink = INK["black"] if end == 0 else look["color"]
            right.scatter(
                last["estimate"], last["ood"], marker=mark, s=50 if end == 0 else 20, color=ink, lw=0, zorder=4
            )
    wide = (points["estimate"] > 0).all() and points["estimate"].max() > 8 * points["estimate"].min()
    if wide:
        right.set_xscale("log")
        plain_log(right.xaxis, 5)
    named = short_layer(layer)
    for ax in (left, right):
        ax.grid(True)
        ax.set_xlabel(f"{label(measure)}, {label(named)}", fontsize=7)
    left.set_ylabel("mean OOD accuracy (%)")
    told = _coefficient(correlations, measure, layer, at)
    left.set_title(f"models at α = {at:g}" + (f"\n{told}" if told else ""), fontsize=7)
    right.set_title("along the paths", fontsize=7)
    ends = [
        Line2D([], [], color=INK["black"], marker="*", ls="none", ms=7, label="zero-shot"),
        Line2D([], [], color=INK["grey"], marker="s", ls="none", ms=4, label="fine-tuned"),
    ]
    key(figure, [*keys, *ends])
    line = "The dashed line is the least-squares line with its 95 % band." if len(here) >= 4 else ""
    caption = f"""{label(measure)} of the {named} from {_most(values["n"]):,} probe images against mean accuracy out
        of distribution ({images_in_words(accuracy)}). Left: {number_of(len(here), "model")} at α = {at:g}; right:
        {len(points)} points of {number_of(len(looks), "path")}. Bars are one standard error (sharpness) and 95 %
        intervals (accuracy) over images. {line} {_SOURCE}"""
    return Drawn(figure, caption)


def _interval(rows: pd.DataFrame) -> np.ndarray:
    return np.nan_to_num(np.stack([rows["ood"] - rows["ood_low"], rows["ood_high"] - rows["ood"]])).clip(0)


def _coefficient(correlations: pd.DataFrame | None, measure: str, layer: str, alpha: float) -> str:
    """Spearman's coefficient over this run's pairs as the table has it; empty where it is undefined or missing."""
    if correlations is None:
        return ""
    rows = marginal_rows(correlations)
    rows = rows[
        (rows["scope"] == "pairs") & (rows["source"] == "run") & (rows["status"] == "ok")
        & (rows["method"] == "spearman") & (rows["against"] == "ood_accuracy")
        & (rows["measure"] == measure) & (rows["layer"] == layer)
        & np.isclose(rows["alpha"], alpha)
    ]  # fmt: skip
    rows = rows.sort_values("dataset", key=lambda names: -names.str.count(r"\+"), kind="stable")
    if not len(rows):
        return ""
    row = rows.iloc[0]
    return f"Spearman {row['estimate']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}], n = {int(row['n'])}"
