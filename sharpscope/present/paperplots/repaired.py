"""The sharpness paper's figure of the repair: accuracy with sparse layers beside the plain path."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from sharpscope.present.paperplots.drawn import Drawn, among, lacks, paper_figure
from sharpscope.present.paperplots.outcomes import images_in_words, paths_of
from sharpscope.present.style import COLOURS, INK, MARKERS, first_pairs, key, label, new_figure
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import sparse_layers

__all__ = ["paper_sharpness_repair"]

_MOST_PAIRS: Final = 4


@paper_figure
def paper_sharpness_repair(
    repair: pd.DataFrame, accuracy: pd.DataFrame, target: str = "weight", select: str = "random", density: float = 0.5
) -> Drawn:
    """OOD and ID accuracy along alpha: the plain path, and its points with stragglers or control layers made sparse.

    Args:
        repair: the table ``repair``.
        accuracy: the accuracy table of the plain path.
        target: weight (dropped weights become 0, as in the paper) or delta (they return to theta_0).
        select: the choice of the weights that are kept.
        density: the fraction of weights kept (the nearest one that the table has).

    >>> drawn = sharpscope.plot.paper_sharpness_repair(run.repair, run.accuracy, target="delta")

    Raises:
        NoData: a target or choice that the table lacks.

    Source: Abdollahpoorrostam 2024 (arXiv 2410.16476): sparse straggler layers repair the failure.
    """
    if not len(repair):
        raise lacks("sharpness_repair", "repair")
    among(target, repair["target"], "target")
    among(select, repair["select"], "select")
    known = repair["density"].dropna()
    kept = float(known.iloc[(known - density).abs().argmin()])
    rows = repair[(repair["target"] == target) & (repair["select"] == select) & (repair["density"] == kept)]
    rows = rows.assign(group=["straggler" if c == "none" else c for c in rows["control"]])
    plain = paths_of(accuracy, "sharpness_repair")
    every, _ = first_pairs(rows)
    pairs = every[:_MOST_PAIRS]
    groups = sparse_layers(rows[rows["pair"].isin(pairs)])
    figure = new_figure(1.75 * len(pairs) + 0.85)
    axes = figure.subplots(len(pairs), 2, squeeze=False, sharex=True)
    for line, pair in zip(axes, pairs, strict=True):
        path = plain[plain["pair"] == pair]
        for ax, role in zip(line, ("ood", "id"), strict=True):
            ax.plot(path["alpha"], path[role], color=INK["black"], marker="o", ms=2.2, lw=1.2)
            if path[f"{role}_low"].notna().all():
                ax.fill_between(
                    path["alpha"], path[f"{role}_low"], path[f"{role}_high"], color=INK["black"], alpha=0.1, lw=0
                )
            for g, group in enumerate(groups):
                own = rows[(rows["pair"] == pair) & (rows["group"] == group)].sort_values("alpha")
                value = own.groupby("alpha")[f"{role}_accuracy"].mean()
                ax.plot(
                    value.index, 100 * value, color=COLOURS[g], marker=MARKERS[g + 1], ms=4, lw=1.0,
                    ls="-" if group == "straggler" else "--", zorder=4 if group == "straggler" else 3,
                )  # fmt: skip
            ax.set_ylabel("mean OOD accuracy (%)" if role == "ood" else "ID accuracy (%)")
            ax.grid(True, axis="y")
        line[0].set_title(label(pair, 30))
    for ax in axes[-1]:
        ax.set_xlabel("α (0 zero-shot, 1 fine-tuned)")
    handles = [Line2D([], [], color=INK["black"], marker="o", ms=3, label="plain path")]
    handles += [
        Line2D(
            [],
            [],
            color=COLOURS[g],
            marker=MARKERS[g + 1],
            ms=4,
            ls="-" if n == "straggler" else "--",
            label=f"sparse: {named}",
        )
        for g, (n, named) in enumerate(groups.items())
    ]
    more = repair["pair"].nunique() - len(pairs)
    key(figure, handles, f"{number_of(more, 'more pair')} in the table" if more > 0 else "")
    gains = rows[rows["group"] == "straggler"]["gain"]
    finite = 100 * gains[np.isfinite(gains)]
    made = groups.get("straggler", "")
    said = f"""The gain of what is solid over the plain path at the same ID accuracy is {finite.min():+.1f} to
        {finite.max():+.1f} points where it is defined.""" if len(finite) else ""  # fmt: skip
    of = f"{made}, solid, and controls, dashed" if made else "controls, dashed"
    where = "set to 0" if target == "weight" else "returned to the zero-shot model"
    caption = f"""Accuracy along the straight path of {number_of(len(pairs), "pair")}, and with
        {100 * (1 - kept):.0f} % of the weights of some layers {where} ({select} choice): {of};
        {images_in_words(accuracy)}. The band is the 95 % interval of the plain path over images.
        {said} After Abdollahpoorrostam 2024 (arXiv 2410.16476)."""
    return Drawn(figure, caption)
