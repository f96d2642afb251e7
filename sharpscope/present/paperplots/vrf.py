"""VRF's figure of ratios: accuracy of the fine-tuned over that of the zero-shot model by the distance to failures."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sharpscope.present.paperplots.drawn import Drawn, lacks, paper_figure, range_of
from sharpscope.present.style import INK, SET_COLOURS, first_pairs, key, new_figure, plain_log, short_set, title_of
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import unique_in_order

__all__ = ["paper_vrf_ratio"]

_MARKS: Final = ("o", "^", "D", "v", "P", "X")


@paper_figure
def paper_vrf_ratio(vrf: pd.DataFrame, accuracy: pd.DataFrame) -> Drawn:
    """The ratio of the two ends' accuracies against the squared distance to the zero-shot model's failures.

    One panel per pair, one curve per data set, one mark per bin of distance, at the bin's mean distance. Above 1 the
    fine-tuned model is the better one. VRF's weight assumes that the ratio falls with the distance.

    Args:
        vrf: the table vrf.
        accuracy: the accuracy table, which says which sets are ID.

    >>> drawn = sharpscope.plot.paper_vrf_ratio(run.vrf, run.accuracy)

    Raises:
        NoData: no bin has a ratio above 0.

    Source: Zhu et al. 2024 (VRF, arXiv 2411.06966).
    """
    rows = vrf[vrf["ratio"].notna() & (vrf["ratio"] > 0)].sort_values("distance", kind="stable")
    if not len(rows):
        raise lacks("vrf_ratio", "vrf", "has no ratio above 0")
    pairs, more = first_pairs(rows.sort_values("pair", kind="stable"))
    ids = set(accuracy.loc[accuracy["role"] == "id", "dataset"])
    sets = sorted(unique_in_order(rows["dataset"]), key=lambda name: (name not in ids, name))
    looks = {s: (SET_COLOURS[i % len(SET_COLOURS)], _MARKS[i % len(_MARKS)]) for i, s in enumerate(sets)}
    columns = min(len(pairs), 3)
    lines = -(-len(pairs) // columns)
    figure = new_figure(2.2 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    for ax in axes.flat[len(pairs) :]:
        ax.set_visible(False)
    for ax, pair in zip(axes.flat, pairs, strict=False):
        own = rows[rows["pair"] == pair]
        ax.axhline(1, color=INK["grey"], lw=0.8, zorder=0)
        for name in unique_in_order(own["dataset"]):
            _curve(ax, own[own["dataset"] == name], *looks[name], dashes="-" if name in ids else "--")
        ax.set_title(title_of(pair, f"(k = {int(own['k'].iloc[0])})", 40), fontsize=8)
        ax.set(yscale="log", xlabel="squared distance to the k-th failure")
        plain_log(ax.yaxis, 6)
        ax.grid(True)
    for line in axes:
        line[0].set_ylabel("accuracy ratio")
    keys = [
        Line2D([], [], color=looks[s][0], marker=looks[s][1], ls="-" if s in ids else "--", ms=4,
               label=short_set(s) + (" (ID)" if s in ids else ""))
        for s in sets
    ]  # fmt: skip
    undrawn = len(vrf) - len(rows)
    key(figure, keys, more, f"{number_of(undrawn, 'bin')} without a ratio above 0" if undrawn else "")
    shown = rows[rows["pair"].isin(pairs)]
    n, failures = shown["n"].astype(float), shown["failures"].astype(float)
    caption = f"""Accuracy of the fine-tuned divided by that of the zero-shot model
        on {number_of(len(sets), "data set")}, {number_of(len(pairs), "pair")},
        in bins of {range_of(n.min(), n.max())} images by their squared distance to the
        k-th nearest of {range_of(failures.min(), failures.max())} training images on which only the fine-tuned model is
        right (unit features of the fine-tuned model). Above 1 the fine-tuned model is better. Bars are intervals over
        draws of images (delta method on the logarithm of the ratio). After Zhu et al. 2024 (VRF, arXiv 2411.06966)."""
    return Drawn(figure, caption)


def _curve(ax: Axes, rows: pd.DataFrame, colour: str, mark: str, dashes: str) -> None:
    ratio = rows["ratio"].to_numpy()
    error = np.stack([ratio - rows["ci_low"], rows["ci_high"] - ratio]).clip(0)
    ax.errorbar(
        rows["distance"], ratio, yerr=np.nan_to_num(error), color=colour, marker=mark, ls=dashes, ms=3.2, lw=1.0,
        elinewidth=0.7,
    )  # fmt: skip
