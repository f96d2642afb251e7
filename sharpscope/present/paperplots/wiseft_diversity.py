"""WiSE-FT's figure of diversity: how differently the two ends predict, who overrides whom, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sharpscope.present.paperplots.drawn import Drawn, among, lacks, pair_lines, paper_figure, range_of
from sharpscope.present.style import INK, key, new_figure, places_of, short_set
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import AGREEMENT

__all__ = ["paper_wiseft_diversity"]

_MEASURES: Final = {
    "prediction_diversity": "prediction diversity",
    "kappa_complement": "1 − Cohen's κ",
    "kl_divergence": "KL divergence (nats)",
    "cka_complement": "1 − CKA of features",
}
"""The measures of the panels, each of the fine-tuned against the zero-shot model -> the panel's title."""
_MOST_PAIRS: Final = 7
_MOST_SETS: Final = 12
_Looks = Mapping[str, Mapping[str, Any]]
"""Pair -> its colour and marker."""


@paper_figure
def paper_wiseft_diversity(
    agreement: pd.DataFrame, accuracy: pd.DataFrame, pairs: Sequence[str] = (), pair_order: Sequence[str] = ()
) -> Drawn:
    """Six panels by data set: four measures of diversity of the two ends, overrides along alpha, and margins.

    A point of the path overrides an end where the two ends disagree and the point predicts as the other one. The panel
    shows the share of these images that the point gives to the zero-shot model, for ID and OOD sets.

    Args:
        agreement: the agreement table.
        accuracy: the accuracy table, which says which sets are ID.
        pairs: the pairs to draw; default: the first seven.
        pair_order: the run's order of pairs (``run.order``), from which their colours follow; default: by name.

    >>> drawn = sharpscope.plot.paper_wiseft_diversity(run.agreement, run.accuracy, ["success"])

    Raises:
        NoData: no estimate at alpha = 1, or an unknown pair.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), fig. 5 and figs. 27 to 30.
    """
    rows = agreement[agreement["estimate"].notna()].sort_values("alpha", kind="stable")
    ends = rows[(rows["against"] == "zeroshot") & np.isclose(rows["alpha"], 1.0)]
    if not len(ends):
        raise lacks("wiseft_diversity", "agreement", "has no comparison of the fine-tuned with the zero-shot model")
    every = list(places_of(rows["pair"], pair_order))
    chosen = [among(p, every, "pairs") for p in pairs] or every[:_MOST_PAIRS]
    looks, lines_key = pair_lines(chosen, pair_order or every, lines=False)
    ids = set(accuracy.loc[accuracy["role"] == "id", "dataset"])
    order = sorted(unique_in_order(rows["dataset"]), key=lambda name: name not in ids)
    sets = order[:_MOST_SETS]
    figure = new_figure(2 * (0.15 * len(sets) + 0.016 * len(sets) * len(chosen) + 0.75) + 0.6)
    axes = figure.subplots(2, 3)
    for ax, (measure, title) in zip(axes.flat, _MEASURES.items(), strict=False):
        _sets_axis(ax, sets, ids)
        own = ends[ends["measure"] == measure]
        for i, (pair, look) in enumerate(looks.items()):
            _row_marks(ax, own[own["pair"] == pair], sets, _offset(i, len(looks)), look)
        ax.set_title(title, fontsize=7)
    _margins(axes[1, 1], rows[rows["measure"] == "margin"], looks, sets, ids)
    _overrides(axes[1, 2], rows[rows["measure"] == "zeroshot_overrides"], looks, ids)
    for ax in (axes[0, 1], axes[0, 2], axes[1, 1]):
        ax.set_yticklabels([])
    keys = [
        *lines_key,
        Line2D([], [], color=INK["grey"], marker="o", ls="none", ms=4, mfc="white", label="margin at α = 0"),
        Line2D([], [], color=INK["grey"], marker="o", ls="none", ms=4, label="margin at α = 1"),
        Line2D([], [], color=INK["grey"], ls="-", label="ID sets"),
        Line2D([], [], color=INK["grey"], ls="--", label="OOD sets"),
    ]
    left = [(len(every) - len(chosen), "more pair"), (len(order) - len(sets), "more set")]
    key(figure, keys, *(f"{number_of(n, what)} in the table" for n, what in left if n > 0))
    n = ends.groupby("dataset")["n"].max()
    caption = f"""How the zero-shot and the fine-tuned model differ on {number_of(len(sets), "data set")} with
        {range_of(n.min(), n.max())} images each, {number_of(len(chosen), "pair")}; the ID sets are on top.
        Prediction diversity is the {AGREEMENT["prediction_diversity"].text}. Overrides:
        {AGREEMENT["zeroshot_overrides"].text}, mean over the sets. Margin: {AGREEMENT["margin"].text}. Bars are 95
        % intervals over images. After Wortsman et al. 2022 (arXiv 2109.01903), fig. 5 and figs. 27 to 30."""
    return Drawn(figure, caption)


def _offset(i: int, count: int) -> float:
    return 0.66 * (i - (count - 1) / 2) / max(count, 2)


def _sets_axis(ax: Axes, sets: Sequence[str], ids: set[str]) -> None:
    names = [f"{short_set(s)} (ID)" if s in ids else short_set(s) for s in sets]
    ax.set_yticks(range(len(sets)), names)
    ax.set_ylim(len(sets) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    ax.margins(x=0.12)
    last = sum(s in ids for s in sets)
    if 0 < last < len(sets):
        ax.axhline(last - 0.5, color=INK["light"], lw=0.8, zorder=0)


def _row_marks(
    ax: Axes, rows: pd.DataFrame, sets: Sequence[str], shift: float, style: Mapping[str, Any], filled: bool = True
) -> None:
    own = rows[rows["dataset"].isin(sets)]
    at = np.array([sets.index(d) for d in own["dataset"]]) + shift
    value = own["estimate"].to_numpy()
    error = np.stack([value - own["ci_low"], own["ci_high"] - value]).clip(0)
    ax.errorbar(
        value, at, xerr=np.nan_to_num(error), fmt=style["marker"], ms=3.2, color=style["color"], elinewidth=0.7,
        mew=0.8, mfc=style["color"] if filled else "white",
    )  # fmt: skip


def _margins(ax: Axes, rows: pd.DataFrame, looks: _Looks, sets: Sequence[str], ids: set[str]) -> None:
    _sets_axis(ax, sets, ids)
    for i, (pair, look) in enumerate(looks.items()):
        own = rows[rows["pair"] == pair]
        for alpha, filled in ((0.0, False), (1.0, True)):
            at = own[np.isclose(own["alpha"], alpha)]
            _row_marks(ax, at, sets, _offset(i, len(looks)), look, filled)
    ax.set_title("margin (logits)", fontsize=7)


def _overrides(ax: Axes, rows: pd.DataFrame, looks: _Looks, ids: set[str]) -> None:
    for pair, look in looks.items():
        own = rows[rows["pair"] == pair]
        for inside, dashes in ((True, "-"), (False, "--")):
            mean = own[own["dataset"].isin(ids) == inside].groupby("alpha")["estimate"].mean()
            ax.plot(mean.index, mean, ls=dashes, ms=2.4, lw=1.0, **look)
    ax.set(xlabel="α", ylim=(-0.03, 1.03))
    ax.grid(True)
    ax.set_title("zero-shot overrides (share)", fontsize=7)
