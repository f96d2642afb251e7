"""The scatter plot of OOD and ID accuracy on logit axes, with the line of a baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData, shown
from sharpscope.present.alphas import alpha_is
from sharpscope.present.scales import logit, percent_ticks
from sharpscope.present.style import INK, Look, key, label, new_figure, pair_looks, short_set, styled
from sharpscope.tables.rows import unique_in_order

__all__ = ["effective_robustness"]

_MOST_SETS = 6


@styled
def effective_robustness(robustness: pd.DataFrame, pair_order: Sequence[str] = ()) -> Figure:
    """OOD accuracy (y) over ID accuracy (x) on logit axes, one panel per OOD set.

    The grey line is the OOD accuracy that the baseline predicts. Effective robustness is the height above this line;
    bars are its interval.

    Args:
        robustness: pair, alpha, dataset, id_accuracy, ood_accuracy, expected, estimate, ci_low, ci_high, baseline and
            baseline_n, as ``findings.robustness.effective_robustness`` returns them.
        pair_order: the run's order of pairs (``run.order``), from which their colours follow; default: by name.

    >>> shown = sharpscope.plot.effective_robustness(sharpscope.robustness(["runs/demo"], "models.csv"))

    Raises:
        NoData: no point has both an ID and an OOD accuracy, or the baseline has no line for any set; the reason is that
            of the table.

    Source: Taori et al. 2020 (arXiv 2007.00644), fig. 1.
    """
    rows = robustness[np.isfinite(robustness["id_accuracy"]) & np.isfinite(robustness["ood_accuracy"])]
    if not len(rows):
        raise NoData("effective_robustness: no point has both an ID and an OOD accuracy.")
    if not np.isfinite(rows["expected"]).any():
        why = "; ".join(unique_in_order(shown(note, 200) for note in rows["note"]))
        raise NoData(
            f"effective_robustness: there is no line. {why}.\nRemedy: a file of more models as the baseline of "
            "sharpscope.robustness, whose table sharpscope.plot.effective_robustness draws."
        )
    sets = sorted(unique_in_order(rows["dataset"]), key=lambda d: d.count("+"))
    drawn, fewer = sets[:_MOST_SETS], len(sets) - _MOST_SETS
    columns = min(2, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    figure = new_figure(2.45 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False)
    looks, handles = pair_looks(rows["pair"], pair_order)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(drawn))
        if i < len(drawn):
            _panel(ax, rows[rows["dataset"] == drawn[i]], looks)
            ax.set_title(_title(drawn[i]))
            if i % columns == 0:
                ax.set_ylabel("OOD accuracy (%, logit scale)")
            if i + columns >= len(drawn):
                ax.set_xlabel("ID accuracy (%, logit scale)")
    known = rows[np.isfinite(rows["expected"])]
    count = int(known["baseline_n"].max()) if len(known) else 0
    of = f" ({count} models)" if count else ""
    handles += [
        Line2D([], [], color=INK["black"], marker="*", ls="none", markersize=8, label=f"zero-shot ({alpha_is(0)})"),
        Line2D([], [], color=INK["grey"], marker="s", ls="none", markersize=5, label=f"fine-tuned ({alpha_is(1)})"),
    ]
    if len(known):
        name = label(str(known["baseline"].iloc[0]), 30)
        handles.append(Line2D([], [], color=INK["grey"], ls="--", lw=1.0, label=f"expected: {name}{of}"))
    key(figure, handles, f"{fewer} more sets in the table" if fewer > 0 else "")
    return figure


def _title(dataset: str) -> str:
    parts = dataset.split("+")
    return short_set(dataset) if len(parts) == 1 else f"mean of {len(parts)} OOD sets"


def _panel(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, Look]) -> None:
    for pair, look in looks.items():
        own = rows[rows["pair"] == pair].sort_values("alpha")
        x, y = logit(own["id_accuracy"]), logit(own["ood_accuracy"])
        # the interval of the height above the line, drawn at the point
        low, high = (logit(own["expected"] + own[c]) for c in ("ci_low", "ci_high"))
        known = np.isfinite(low) & np.isfinite(high)
        ax.vlines(x[known], low[known], high[known], color=look.colour, alpha=0.3 * look.opacity, lw=0.8)
        ax.plot(
            x, y, color=look.colour, marker=look.marker, markersize=look.size, lw=look.width, alpha=look.opacity,
            zorder=2,
        )  # fmt: skip
        for alpha, mark, size in ((0.0, "*", 80), (1.0, "s", 3.6 * look.size**2)):
            at = np.isclose(own["alpha"], alpha)
            ink = INK["black"] if alpha == 0 else look.colour
            ax.scatter(x[at], y[at], s=size, marker=mark, color=ink, edgecolor="white", lw=0.6, zorder=4)
    heights = logit(rows["ood_accuracy"])
    line = rows[np.isfinite(rows["expected"])].sort_values("id_accuracy").drop_duplicates("id_accuracy")
    if len(line):  # straight on these axes
        x, y = logit(line["id_accuracy"]), logit(line["expected"])
        if len(line) > 1 and x[-1] > x[0]:
            slope = (y[-1] - y[0]) / (x[-1] - x[0])
            room = 0.15 * (x[-1] - x[0])
            x, y = np.append(x[0] - room, x[-1] + room), np.append(y[0] - slope * room, y[-1] + slope * room)
        ax.plot(x, y, color=INK["grey"], ls="--", lw=1.0, zorder=1)
        heights = np.append(heights, y)
    ax.grid(True)
    ax.margins(x=0.1)
    room = max(0.05, 0.15 * float(np.ptp(heights)))  # bars may leave the panel: near 0 they are long on this scale
    ax.set_ylim(float(heights.min()) - room, float(heights.max()) + room)
    for axis in (ax.xaxis, ax.yaxis):
        percent_ticks(axis)
