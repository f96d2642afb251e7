"""A population of pairs and what it says: paths, sharpness and gain, layers, repairs, predictors and advice by claim.

The tables are those that analyses/emoji/verdicts.py writes; gains and regrets are in points.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.forestplots import GAP, Marks, estimates, forest, panel_height, root_axis
from sharpscope.present.style import COLOURS, INK, MARKERS, key, label, new_figure, plain_log, styled
from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import HOLDS

__all__ = ["advice", "gain_paths", "layer_sizes", "predictors", "repairs", "sharpness_and_gain"]

_GAIN: Final = "_gain@"
_ALPHA: Final = "α (0 zero-shot, 1 fine-tuned)"
_FAILS: Final = (0, (2, 1.2))
"""The dashes of pairs on whose path no point beats zero-shot."""
_FACTS: Final[dict[str, Any]] = {"fontsize": 6.5, "color": INK["black"]}


# --------------------------------------------------------------------------------------------------------- the pairs
@styled
def gain_paths(pairs: pd.DataFrame) -> Figure:
    """OOD gain over zero-shot along alpha, one line a pair, coloured by learning rate; one panel a group of OOD sets.

    Dashed lines that end in a cross are pairs on whose path no point beats zero-shot. Where paths fall more than four
    times as deep as any rises, the axis is bent (asinh), so that both can be read.

    Args:
        pairs: a row a pair: learning_rate, GROUP_gain@ALPHA in points, GROUP_fails.

    Raises:
        NoData: no pair.
    """
    groups = _groups_of(pairs)
    if not len(pairs) or not groups:
        raise NoData("gain_paths: the table has no pair.")
    figure = new_figure(2.7)
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)
    colours, norm = _rates(pairs)
    for ax, group in zip(axes[0], groups, strict=True):
        columns = [c for c in pairs.columns if c.startswith(group + _GAIN)]
        alphas = [float(c.removeprefix(group + _GAIN)) for c in columns]
        fails = pairs[f"{group}_fails"].astype(bool)
        for part, look in ((pairs[~fails], {"ls": "-"}), (pairs[fails], {"ls": _FAILS, "marker": "x"})):
            for rate, gains in zip(part["learning_rate"], part[columns].to_numpy(dtype=float), strict=True):
                ax.plot(alphas, gains, color=colours(norm(rate)), lw=0.7, ms=3.5, markevery=[-1], clip_on=False, **look)
        ax.axhline(0.0, color=INK["grey"], ls=":", lw=1.0)
        ax.grid(axis="y")
        ax.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", ".25", ".5", ".75", "1"])
        ax.set_xlabel(_ALPHA)
        ax.set_title(f"group {label(group)}: {int(fails.sum())} of {len(pairs)} pairs fail")
    axes[0, 0].set_ylabel("OOD gain over zero-shot (points)")
    _gain_axis(axes[0, 0], pairs[[c for c in pairs.columns if _GAIN in c]].to_numpy(dtype=float))
    _rate_bar(figure, axes, colours, norm)
    line: dict[str, Any] = {"color": INK["grey"], "lw": 0.9}
    beats = Line2D([], [], **line, label="some point beats zero-shot")
    key(figure, [beats, Line2D([], [], **line, ls=_FAILS, marker="x", ms=3.5, label="none does")])
    return figure


def _gain_axis(ax: Axes, gains: np.ndarray) -> None:
    lowest, highest = float(np.nanmin(gains)), max(float(np.nanmax(gains)), 0.5)
    if lowest < -4 * highest:
        ax.set_yscale("asinh", linear_width=highest / 2)
        ticks = [t for t in (-80, -40, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20) if 1.1 * lowest <= t <= 1.2 * highest]
        ax.set_yticks(ticks, [f"{t:+g}".replace("+0", "0").replace("-", "−") for t in ticks])
        ax.minorticks_off()
    ax.set_ylim(1.1 * min(lowest, -0.5), 1.2 * highest)


@styled
def sharpness_and_gain(pairs: pd.DataFrame, residuals: pd.DataFrame, verdicts: pd.DataFrame, measure: str) -> Figure:
    """The gain at alpha .5 by the whole model's sharpness: left as it is, right what is left of both ranks.

    One row a group, with the verdict of the claim above the right panel. Colours are learning rates, marks zero-shot
    models; held-out models are hollow.

    Args:
        pairs: a row a pair: base, bases (training | held-out), learning_rate, GROUP_gain@0.5 in points, ``measure``.
        residuals: a row a setting: group, base, bases, learning_rate, sharpness, gain.
        verdicts: a row a group: group, effect, ci_low, ci_high, n, n_effective, verdict.

    Raises:
        NoData: no residual of a training base.
    """
    groups = unique_in_order(verdicts["group"])
    if not len(residuals) or not groups:
        raise NoData("sharpness_and_gain: no setting has both a sharpness and a gain.")
    figure = new_figure(0.6 + 1.95 * len(groups))
    axes = figure.subplots(len(groups), 2, squeeze=False, width_ratios=(1.0, 1.0))
    colours, norm = _rates(pairs)
    bases = sorted(set(pairs["base"]))
    for (left, right), group in zip(axes, groups, strict=True):
        known = pairs[pairs[measure] > 0]
        _points(left, known, measure, f"{group}{_GAIN}0.5", bases, colours, norm)
        left.set_xscale("log")
        _gain_axis(left, known[f"{group}{_GAIN}0.5"].to_numpy(dtype=float))
        plain_log(left.xaxis, 5)
        left.set_ylabel("gain at α = .5 (points)")
        left.set_xlabel(f"{_words(measure)} at α = .5")
        left.set_title(f"group {label(group)}")
        own = residuals[residuals["group"] == group]
        sizes = own.groupby("bases")[["sharpness", "gain"]].transform("std")
        own = own.assign(sharpness=own["sharpness"] / sizes["sharpness"], gain=own["gain"] / sizes["gain"])
        _points(right, own, "sharpness", "gain", bases, colours, norm)
        told = verdicts[verdicts["group"] == group].iloc[0]
        line = np.array([-2.5, 2.5])
        right.plot(line, float(told["effect"]) * line, color=INK["black"], lw=0.8, zorder=1)
        right.set(xlabel="sharpness, residual rank", ylabel="gain, residual rank")
        count = f"{told['n']:.0f} pairs, {told['n_effective']:.0f} settings"
        right.set_title(f"partial {_interval(told)}\n{told['verdict']} ({count})", **_FACTS)
        for ax in (left, right):
            ax.grid(True)
    _rate_bar(figure, axes, colours, norm)
    held_out = set(pairs.loc[pairs["bases"] == "held-out", "base"])
    key(figure, [
        Line2D([], [], ls="none", color=INK["grey"], marker=MARKERS[i % len(MARKERS)], ms=3.5, mew=0.8,
               mfc="white" if base in held_out else INK["grey"],
               label=f"{base}, held out" if base in held_out else base)
        for i, base in enumerate(bases)
    ])  # fmt: skip
    return figure


def _points(ax: Axes, own: pd.DataFrame, x: str, y: str, bases: list[str], colours: Colormap, norm: LogNorm) -> None:
    for i, base in enumerate(bases):
        part = own[own["base"] == base]
        inks = colours(norm(part["learning_rate"].to_numpy(dtype=float)))
        hollow = (part["bases"] == "held-out").any()
        face = "none" if hollow else inks
        ax.scatter(part[x], part[y], s=9, marker=MARKERS[i % len(MARKERS)], c=face, edgecolors=inks, linewidths=0.6)


# --------------------------------------------------------------------------------------------------------- by claim
_WHO: Final = {
    "chosen": (COLOURS[1], "o", "the chosen layers"), "others": (COLOURS[0], "s", "all other layers"),
    "random": (INK["grey"], "D", "random sets: median, middle 95 %"),
}  # fmt: skip


@styled
def layer_sizes(layers: pd.DataFrame, verdicts: pd.DataFrame) -> Figure:
    """|Partial correlation| with the gain of chosen layers, of all others, and of random sets of as many layers.

    Intervals are mirrored where the estimate is negative, so that they may reach below 0.

    Args:
        layers: rows by group, claim and layers (chosen | others | difference | random) with estimate, ci_low, ci_high.
        verdicts: rows by claim and group with effect, ci_low, ci_high and verdict.

    Raises:
        NoData: no layer has a correlation.
    """
    known = layers[layers["estimate"].notna() & layers["layers"].isin(_WHO)]
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
            ax.set_title(f"group {label(group)}, {label(claim)}:\nby {_interval(told)}, {told['verdict']}")
    for ax in axes[-1]:
        ax.set_xlabel("|partial correlation| with the gain")
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
                transform=ax.get_yaxis_transform(), **_FACTS)  # fmt: skip


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
    names = {p: _words(p) for p in every}
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
    mean = known.groupby("rule")["regret"].mean()
    learnt = set(known.loc[known["learnt"].astype(bool), "rule"])
    rows = [*sorted(set(mean.index) - learnt, key=lambda r: mean[r]), GAP, *sorted(learnt, key=lambda r: mean[r])]
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


# ------------------------------------------------------------------------------------------------------------ in common
def _groups_of(pairs: pd.DataFrame) -> list[str]:
    return unique_in_order(c.partition(_GAIN)[0] for c in pairs.columns if _GAIN in c)


def _rates(pairs: pd.DataFrame) -> tuple[Colormap, LogNorm]:
    """Colours of learning rates: the darker, the larger; the lightest colours are not used."""
    rates = pairs["learning_rate"].astype(float)
    low, high = float(rates.min()), float(rates.max())
    return colormaps["plasma_r"], LogNorm(low / (high / low) ** 0.12 if high > low else low / 2, max(high, low * 1.01))


def _rate_bar(figure: Figure, axes: np.ndarray, colours: Colormap, norm: LogNorm) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, location="right", aspect=40, pad=0.02)
    plain_log(bar.ax.yaxis, 6)
    bar.outline.set_visible(False)
    bar.set_label("learning rate")


_WORDS: Final = {
    "hessian_trace": "Hessian trace", "ggn_trace": "GGN trace", "lambda_max": "largest eigenvalue",
    "weighted_trace": "adaptive trace", "barrier": "loss barrier", "augment": "augmentation",
    "id_accuracy": "ID accuracy",
}  # fmt: skip


def _words(name: Any) -> str:
    """A column's name as an axis says it."""
    return _WORDS.get(str(name), label(str(name).replace("_", " ")))


def _interval(row: Any) -> str:
    text = f"{row['effect']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
    return text.replace("-", "−")
