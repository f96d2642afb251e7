"""What a population of pairs says of claims: layers, repairs, predictors of the gain and rules that choose alpha.

The tables are those that analyses/emoji/verdicts.py writes; gains and regrets are in points.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.forestplots import (
    GAP,
    SMALL,
    Marks,
    estimates,
    forest,
    interval,
    panel_height,
    root_axis,
    words,
)
from sharpscope.present.style import COLOURS, INK, key, label, new_figure, styled
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import HOLDS

__all__ = ["advice", "layer_sizes", "predictors", "repairs"]

_WHO: Final = {
    "chosen": (COLOURS[1], "o", "the chosen layers"), "others": (COLOURS[0], "s", "all other layers"),
    "random": (INK["grey"], "D", "random sets: median, middle 95 %"),
}  # fmt: skip


@styled
def layer_sizes(layers: pd.DataFrame, verdicts: pd.DataFrame) -> Figure:
    """|Partial correlation| with the gain of chosen layers, of all others, and of random sets of as many layers.

    It is that over the training bases, on which verdicts rest. Intervals are mirrored where the estimate is negative,
    so that they may reach below 0.

    Args:
        layers: rows by bases (training | held-out), group, claim and layers (chosen | others | difference | random)
            with estimate, ci_low, ci_high.
        verdicts: rows by claim and group with effect, ci_low, ci_high and verdict.

    Raises:
        NoData: no layer has a correlation.
    """
    known = layers[layers["estimate"].notna() & layers["layers"].isin(_WHO) & (layers["bases"] == "training")]
    groups = unique_in_order(layers["group"])
    if not len(known):
        raise NoData("layer_sizes: no set of layers has a correlation.")
    sign = np.sign(known["estimate"].to_numpy(dtype=float))
    ends = np.sort(known[["ci_low", "ci_high"]].to_numpy(dtype=float) * sign[:, None], axis=1)
    known = known.assign(estimate=known["estimate"].abs(), ci_low=ends[:, 0], ci_high=ends[:, 1])
    claims, rows = unique_in_order(layers["claim"]), list(_WHO)
    names = {who: text.partition(":")[0] for who, (_, _, text) in _WHO.items()}
    figure = new_figure(0.65 + len(claims) * (0.45 + 1.2 * panel_height(rows)))
    axes = figure.subplots(len(claims), len(groups), sharey=True, sharex=True, squeeze=False)
    for line, claim in zip(axes, claims, strict=True):
        for ax, group in zip(line, groups, strict=True):
            own = known[(known["group"] == group) & (known["claim"] == claim)]
            marks = [Marks(text, ink, mark, estimates(own[own["layers"] == who], "layers"), filled=who != "random")
                     for who, (ink, mark, text) in _WHO.items()]  # fmt: skip
            forest(ax, rows, marks, names)
            ax.axvline(0.0, color=INK["grey"], lw=0.8, zorder=0)
            told = verdicts[(verdicts["group"] == group) & (verdicts["claim"] == claim)].iloc[0]
            ax.set_title(f"group {label(group)}, {label(claim)}:\nby {interval(told)}, {told['verdict']}")
    for ax in axes[-1]:
        ax.set_xlabel("|partial correlation|, training bases")
    key(figure, [m.handle for m in marks])
    return figure


_WAYS: Final = {
    "sparse weight": "stragglers sparse: weights", "sparse delta": "stragglers sparse: changes",
    "held back": "stragglers at α = 0", "lines": "LiNeS", "monosoup": "MonoSoup", "fisher": "Fisher merging",
}  # fmt: skip


@styled
def repairs(pairs: pd.DataFrame, ways: pd.DataFrame, verdicts: pd.DataFrame) -> Figure:
    """Failing pairs: left what sparse stragglers gain more than random layers, right every way's gain.

    Gains are over the plain path at equal ID accuracy. Dots are pairs; diamonds are means with t intervals.

    Args:
        pairs: rows by pair, group, target and density with ``difference`` in [-1, 1].
        ways: rows by group, way and what (gain | difference) with estimate, ci_low, ci_high and n, in points.
        verdicts: rows by claim (ends in ``(TARGET)``) and group with verdict.

    Raises:
        NoData: no failing pair was repaired.
    """
    own = pairs[(pairs["density"] == 0.5) & pairs["difference"].notna()]
    if not len(own):
        raise NoData("repairs: no failing pair was repaired.")
    groups = unique_in_order(ways["group"])
    rows = [way for way in _WAYS if way in set(ways["way"])]
    figure = new_figure(0.55 + len(groups) * (0.55 + panel_height(rows) * 1.1))
    axes = figure.subplots(len(groups), 2, sharex="col", squeeze=False, width_ratios=(1.0, 1.0))
    for (left, right), group in zip(axes, groups, strict=True):
        here = ways[ways["group"] == group]
        _over_random(left, own[own["group"] == group], here, verdicts[verdicts["group"] == group])
        gains = here[here["what"] == "gain"]
        forest(right, rows, [Marks("", INK["black"], "D", estimates(gains, "way"))], _WAYS)
        left.set_title(f"group {label(group)}: gain over random layers")
        right.set_title("gain of every way")
        for ax in (left, right):
            ax.axvline(0.0, color=INK["grey"], lw=0.8, zorder=0)
    for ax in axes[-1]:
        ax.set_xlabel("OOD points at equal ID accuracy")
    dot = Line2D([], [], ls="none", color=COLOURS[5], marker="o", ms=3, label="a failing pair")
    mean = Line2D([], [], color=INK["black"], marker="D", ms=3.6, lw=1.0, label="mean, 95 % t interval")
    key(figure, [dot, mean])
    return figure


_TARGETS: Final = {"sparse weight": "weights", "sparse delta": "changes"}


def _over_random(ax: Axes, pairs: pd.DataFrame, ways: pd.DataFrame, verdicts: pd.DataFrame) -> None:
    """One group: a row a target, its mean above its pairs, which are set off to cover no other."""
    means = estimates(ways[ways["what"] == "difference"], "way")
    forest(ax, list(_TARGETS), [Marks("", INK["black"], "D", means, shift=-0.2)], _TARGETS)
    for k, way in enumerate(_TARGETS):
        target = way.removeprefix("sparse ")
        points = np.sort(100 * pairs[pairs["target"] == target]["difference"].to_numpy(dtype=float))
        spread = 0.07 * (np.arange(len(points)) * 3 % 5 - 2)
        ax.scatter(points, k + 0.7 + spread, s=6, color=COLOURS[5], lw=0, zorder=2)
        told = verdicts[verdicts["claim"].str.endswith(f"({target})")].iloc[0]
        ax.text(1.0, k + 0.07, f"{told['n']:.0f} pairs: {told['verdict']}", ha="right", va="center",
                transform=ax.get_yaxis_transform(), **SMALL)  # fmt: skip


@styled
def predictors(table: pd.DataFrame) -> Figure:
    """What predicts the gain: every predictor alone, and with all covariates but itself held fixed.

    Args:
        table: rows by group and predictor with alone, alone_low, alone_high, estimate, ci_low and ci_high, and kind
            (sharpness | path | covariate), by which rows are grouped.

    Raises:
        NoData: no predictor has a correlation.
    """
    known = table[table["alone"].notna() | table["estimate"].notna()]
    if not len(known):
        raise NoData("predictors: no predictor has a correlation.")
    every = unique_in_order(known["predictor"])
    kinds = known.drop_duplicates("predictor").groupby("kind", sort=False)["predictor"]
    rows = [row for _, own in kinds for row in (*own, GAP)][:-1]
    names = {p: words(p) for p in every}
    groups = unique_in_order(known["group"])
    figure = new_figure(0.75 + 1.35 * panel_height(rows))
    axes = figure.subplots(1, len(groups), sharey=True, sharex=True, squeeze=False)
    for ax, group in zip(axes[0], groups, strict=True):
        own = known[known["group"] == group]
        alone = estimates(own, "predictor", ("alone", "alone_low", "alone_high"))
        joint = estimates(own, "predictor")
        marks = [Marks("alone, within zero-shot models", COLOURS[0], "o", alone, filled=False, shift=-0.17),
                 Marks("the other covariates held fixed", COLOURS[1], "s", joint, shift=0.17)]  # fmt: skip
        forest(ax, rows, marks, names)
        ax.axvline(0.0, color=INK["grey"], lw=0.8, zorder=0)
        ax.set_xlabel("rank correlation with the gain")
        ax.set_title(f"group {label(group)}")
    key(figure, [m.handle for m in marks])
    return figure


@styled
def advice(table: pd.DataFrame, verdicts: pd.DataFrame) -> Figure:
    """Mean regret of every rule that chooses alpha, and for learnt ones whether they beat the best simple rule.

    Args:
        table: rows by group and rule with learnt, regret, ci_low and ci_high in points.
        verdicts: rows by claim (begins with the rule) and group with verdict.

    Raises:
        NoData: no rule has a regret.
    """
    known = table[table["regret"].notna()]
    if not len(known):
        raise NoData("advice: no rule has a regret.")
    groups = unique_in_order(known["group"])
    order = known.groupby("rule")["regret"].mean().sort_values(kind="stable").index  # by name where two are equal
    learnt = set(known.loc[known["learnt"].astype(bool), "rule"])
    rows = [*(rule for rule in order if rule not in learnt), GAP, *(rule for rule in order if rule in learnt)]
    figure = new_figure(0.75 + 1.15 * panel_height(rows))
    axes = figure.subplots(1, len(groups), sharey=True, sharex=True, squeeze=False)
    columns = ("regret", "ci_low", "ci_high")
    for ax, group in zip(axes[0], groups, strict=True):
        own = known[known["group"] == group]
        kinds = (("simple rules", False, COLOURS[0], "o"), ("rules that learn", True, COLOURS[1], "s"))
        marks = [Marks(text, ink, mark, estimates(own[own["learnt"].astype(bool) == kind], "rule", columns))
                 for text, kind, ink, mark in kinds]  # fmt: skip
        places = forest(ax, rows, marks, {r: r.replace("alpha", "α =") for r in rows})
        root_axis(ax, float(known[["regret", "ci_high"]].max().max()))
        for row, place in zip(rows, places, strict=True):
            told = verdicts[(verdicts["group"] == group) & verdicts["claim"].str.startswith(f"{row} beats")]
            if row in learnt and len(told):
                verdict = str(told.iloc[0]["verdict"])
                ax.text(1.01, place, verdict, ha="left", va="center", transform=ax.get_yaxis_transform(), fontsize=6,
                        color=INK["black"] if verdict == HOLDS else INK["grey"])  # fmt: skip
        ax.set_xlabel("points lost to the best α")
        ax.set_title(f"group {label(group)}")
    note = "at the right: beats the best simple rule?"
    key(figure, [m.handle for m in marks], note)
    return figure
