"""A population of pairs: their gains along alpha, and sharpness with gain as it is and with covariates held fixed.

The tables are those that analyses/emoji/verdicts.py writes.
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
from sharpscope.present.forestplots import SMALL, interval, words
from sharpscope.present.style import INK, MARKERS, key, label, new_figure, plain_log, styled
from sharpscope.tables.rows import unique_in_order

__all__ = ["gain_paths", "sharpness_and_gain"]

_GAIN: Final = "_gain@"
_ALPHA: Final = "α (0 zero-shot, 1 fine-tuned)"
_FAILS: Final = (0, (2, 1.2))
"""The dash pattern for pairs on whose path no point beats zero-shot."""


# --------------------------------------------------------------------------------------------------------- the pairs
@styled
def gain_paths(pairs: pd.DataFrame) -> Figure:
    """OOD gain over zero-shot along alpha, one line per pair, coloured by learning rate; one panel a group of OOD sets.

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
        left.set_xlabel(f"{words(measure)} at α = .5")
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
        right.set_title(f"partial {interval(told)}\n{told['verdict']} ({count})", **SMALL)
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
