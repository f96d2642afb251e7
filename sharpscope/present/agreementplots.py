"""The figure and the report section on how far the points of the path agree with its ends."""

from __future__ import annotations

import math
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.alphas import alpha_axis, with_symbol
from sharpscope.present.style import INK, SET_COLOURS, first_pairs, key, label, new_figure, short_set, styled
from sharpscope.present.view import Cell, Grid, Section, Source, alpha_cell, cell, pairs_of, status_cell
from sharpscope.tables.formats import interval, number
from sharpscope.tables.rows import MIDDLE, nearest, unique_in_order
from sharpscope.vocabulary import AGREEMENT

__all__ = ["agreement_along_alpha", "agreement_section"]

_SHOWN: Final = ("prediction_diversity", "kl_divergence", "cka_complement", "energy_gap", "margin_difference")
"""The measures of the figure, all against theta_0. One more panel shows whose prediction the point takes where the two
ends disagree."""
_TITLES: Final = {"prediction_diversity": "one of two right", "kl_divergence": "KL, nats",
                  "cka_complement": "1 − CKA", "energy_gap": "energy gap",
                  "margin_difference": "margin difference"}  # fmt: skip
_OVERRIDES: Final = {"zeroshot_overrides": "-", "zeroshot_overridden": ":"}
_ROW: Final = 1.35


@styled
def agreement_along_alpha(table: pd.DataFrame) -> Figure:
    """How far theta(alpha) is from theta_0 on every test set, one row of panels per pair, with intervals.

    The first five panels compare with theta_0. The last shows, among the images on which the two ends disagree, the
    share that the point gives to theta_0 (solid) and to theta_1 (dotted).

    Args:
        table: the table ``agreement``.

    >>> shown = sharpscope.plot.agreement_along_alpha(run.agreement)

    Raises:
        NoData: the table has no estimate.
    """
    rows = table[table["estimate"].notna()].sort_values("alpha", kind="stable")
    rows = rows[((rows["against"] == "zeroshot") & rows["measure"].isin(_SHOWN)) | rows["measure"].isin(_OVERRIDES)]
    if not len(rows):
        raise NoData("agreement_along_alpha: the agreement table has no estimate.")
    pairs, more = first_pairs(rows)
    sets = unique_in_order(rows["dataset"])
    colours = {name: SET_COLOURS[i % len(SET_COLOURS)] for i, name in enumerate(sets)}
    figure = new_figure(_ROW * 2 * len(pairs) + 0.5)
    grid = figure.subplots(2 * len(pairs), 3, squeeze=False, sharex=True)
    for i, pair in enumerate(pairs):
        panels = [ax for line in grid[2 * i : 2 * i + 2] for ax in line]
        own = rows[rows["pair"] == pair]
        for ax, measure in zip(panels, _SHOWN, strict=False):
            _panel(ax, own[own["measure"] == measure], colours, "-")
            ax.set_title(label(_TITLES[measure]), fontsize=7)
        for measure, dashes in _OVERRIDES.items():
            _panel(panels[-1], own[own["measure"] == measure], colours, dashes)
        panels[-1].set_title("as θ₀, as θ₁ where they differ", fontsize=7)
        for ax in grid[2 * i : 2 * i + 2, 0]:
            ax.set_ylabel(label(pair, 18))
    for ax in grid[-1]:
        alpha_axis(ax)
    handles = [Line2D([], [], color=colours[name], label=short_set(name)) for name in sets]
    key(figure, [*handles, _dashes("-", "as θ₀"), _dashes(":", "as θ₁")], more)
    return figure


def _dashes(dashes: str, text: str) -> Line2D:
    return Line2D([], [], color=INK["grey"], ls=dashes, label=text)


def _panel(ax: Axes, rows: pd.DataFrame, colours: dict[str, str], dashes: str) -> None:
    ax.grid(True, axis="y")
    ax.axhline(0, color=INK["grey"], lw=0.6, zorder=0)
    for name, own in rows.groupby("dataset", sort=False):
        colour = colours[str(name)]
        ax.plot(own["alpha"], own["estimate"], color=colour, ls=dashes, lw=1.1, marker="o", ms=2.0)
        ax.fill_between(own["alpha"], own["ci_low"], own["ci_high"], color=colour, alpha=0.15, lw=0)


def agreement_section(source: Source) -> Section | None:
    """The numbers at the middle of the path, and the figure; None for a run without the table."""
    table = source.table("agreement")
    if not len(table):
        return None
    sets = unique_in_order(table["dataset"])
    rows = []
    for pair in pairs_of(table, source.order):
        own = table[(table["pair"] == pair) & (table["against"] != "finetuned")]
        alpha = nearest(own["alpha"], MIDDLE)
        at = own[own["alpha"] == alpha].set_index(["measure", "dataset"])
        for measure in (m for m in AGREEMENT if m in at.index.get_level_values(0)):
            values = [_value(at, (measure, dataset)) for dataset in sets]
            rows.append((cell(pair), cell(measure, title=AGREEMENT[measure].text), alpha_cell(alpha), *values))
    head = ("pair", "measure", with_symbol("α"), *(short_set(dataset) for dataset in sets))
    caption = with_symbol(
        "At the point nearest the middle, against the zero-shot model. The table has every α and both ends."
    )
    figures = source.figure(
        "agreement",
        "Each test set along α against θ₀: share of images that one of the two gets right alone, KL divergence, "
        "1 − CKA of the features, energy gap on random texts, difference of margins; and whose prediction the point "
        "takes where the two ends disagree.",
    )
    grid = Grid.of(head, rows, caption, range(2, len(head)), "tables/agreement.csv", most=90)
    said = "How the points of the path differ from its ends, beyond accuracy (Wortsman et al. 2022, Nam et al. 2024)."
    return Section("Agreement with the ends", "agreement", (said,), tuple(figures), folded=(grid,))


def _value(rows: pd.DataFrame, key: tuple[str, str]) -> Cell:
    if key not in rows.index:
        return cell(None)
    row = rows.loc[[key]].iloc[0]
    if math.isnan(row["estimate"]):
        return status_cell(str(row["status"]), str(row["note"]))
    return cell(interval(float(row["estimate"]), float(row["ci_low"]), float(row["ci_high"]), number))
