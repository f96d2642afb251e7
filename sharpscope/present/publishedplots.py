"""Published paths: the OOD gain along alpha by learning rate, and what every rule that chooses an alpha loses."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.style import COLOURS, INK, key, new_figure, styled

__all__ = ["published"]

_GAIN: Final = "gain_at_"
_DASHES: Final = {"end-to-end": "-", "head only": (0, (3, 1.5))}
_LOOKS: Final = {"end-to-end": (COLOURS[0], "o", -0.17), "head only": (COLOURS[1], "D", 0.17)}
_BREAK: Final = -13.0
"""The gain in points at which the left axis is broken: calm paths stay above it, failing ones fall far below."""
_FIXED: Final = "alpha "
_ENDS: Final = {"alpha 0": "zero-shot, 0", "alpha 1": "fine-tuned, 1"}
_RULES: Final = {
    "id_best": "best on ImageNet",
    "best_fixed": "best of other settings",
    "learning_rate (unchecked)": "rate, other settings",
    "learning_rate (path left out)": "rate, other paths",
}


@styled
def published(paths: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Left the OOD gain over zero-shot along alpha, one line a path; right the mean regret of each rule.

    Lines are coloured by learning rate, and dashed where only the head was trained. Bars are the intervals of the
    table.

    Args:
        paths: a row a path with ``learning_rate``, ``tuned`` (end-to-end | head only) and ``gain_at_ALPHA`` in [-1, 1].
        summary: rows with ``question`` = regret have ``population``, ``what`` (the rule), ``effect``, ``ci_low`` and
            ``ci_high`` in [0, 1].

    Raises:
        NoData: a table without rows to show.
    """
    rows = summary[(summary["question"] == "regret") & summary["population"].isin(_LOOKS)]
    if not len(paths) or not len(rows):
        raise NoData("published: the tables have no path or no regret to show.")
    figure = new_figure(3.6)
    panels: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.0))
    _gains(panels[0], paths)
    _regrets(panels[1].subplots(), rows)
    trained = [Line2D([], [], color=INK["black"], ls=dash, label=name) for name, dash in _DASHES.items()]
    marks = [
        Line2D([], [], color=colour, marker=mark, ls="none", ms=4, label=f"regret, {name}")
        for name, (colour, mark, _) in _LOOKS.items()
    ]
    key(figure, [*trained, *marks])
    return figure


def _gains(panel: Any, paths: pd.DataFrame) -> None:
    """The paths on an axis that is broken at ``_BREAK``, and the colours of the learning rates below it."""
    columns = [c for c in paths.columns if c.startswith(_GAIN)]
    alphas = [float(c.removeprefix(_GAIN)) for c in columns]
    rates = sorted(set(paths["learning_rate"]))
    colours = dict(zip(rates, sns.color_palette("plasma_r", len(rates) + 1)[1:], strict=True))
    top, bottom = panel.subplots(2, 1, sharex=True, height_ratios=(2.4, 1.0))
    for ax in (top, bottom):
        ax.axhline(0.0, color=INK["grey"], ls=":", lw=1.0)
        for (rate, tuned), own in paths.groupby(["learning_rate", "tuned"]):
            ax.plot(alphas, 100 * own[columns].T, color=colours[rate], ls=_DASHES[str(tuned)], lw=1.0)
        ax.grid(axis="y")
    gains = 100 * paths[columns]
    lowest, highest = float(gains.to_numpy().min()), float(gains.to_numpy().max())
    for rate, own in gains[gains.min(axis=1) < _BREAK].groupby(paths["learning_rate"]):
        several = f" ({len(own)} paths)" if len(own) > 1 else ""
        middle = float(own.iloc[:, len(alphas) // 2].max())
        bottom.text(0.5, middle + 0.02 * abs(lowest), f"{_rate(rate)}{several}", ha="center", va="bottom", fontsize=6)
    top.set_ylim(_BREAK, 1.1 * max(highest, 1.0))
    bottom.set_ylim(min(1.08 * lowest, 2 * _BREAK), _BREAK)
    _broken(top, bottom)
    top.set_title("OOD gain over zero-shot, points")
    bottom.set_xlabel("α (0 zero-shot, 1 fine-tuned)")
    bottom.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "0.25", "0.5", "0.75", "1"])
    norm = BoundaryNorm(np.arange(len(rates) + 1) - 0.5, len(rates))
    bar = panel.colorbar(
        ScalarMappable(norm, ListedColormap([colours[r] for r in rates])),
        ax=[top, bottom], location="bottom", ticks=range(len(rates)), aspect=28, pad=0.03,
    )  # fmt: skip
    bar.set_ticklabels([_rate(rate) for rate in rates], fontsize=6)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    bar.set_label("learning rate")


def _rate(rate: Any) -> str:
    """A learning rate in few letters: 3e-5."""
    return f"{rate:.0e}".replace("e-0", "e-")


def _broken(top: Axes, bottom: Axes) -> None:
    """Marks where the axis of two panels is cut."""
    top.spines["bottom"].set_visible(False)
    top.tick_params(axis="x", length=0)
    cut: dict[str, Any] = {"marker": [(-1, -0.5), (1, 0.5)], "ms": 5, "ls": "none", "color": INK["grey"], "mew": 0.8}
    cut["clip_on"] = False
    top.plot([0], [0], transform=top.transAxes, **cut)
    bottom.plot([0], [1], transform=bottom.transAxes, **cut)


def _regrets(ax: Axes, rows: pd.DataFrame) -> None:
    """One row a rule, fixed alphas first, on an axis of square roots, since regrets reach from .1 to tens of points."""
    fixed = [str(w) for w in dict.fromkeys(rows["what"]) if str(w).startswith(_FIXED)]
    order = [*fixed, *(w for w in _RULES if w in set(rows["what"]))]
    names = {w: _ENDS.get(w, w.removeprefix(_FIXED)) for w in fixed} | _RULES
    gap = [i + 0.6 * (i >= len(fixed)) for i in range(len(order))]
    places = dict(zip(order, gap, strict=True))
    for population, (colour, mark, shift) in _LOOKS.items():
        own = rows[(rows["population"] == population) & rows["what"].isin(places)]
        at = own["what"].map(places).to_numpy(dtype=float) + shift
        low, value, high = (100 * own[c].to_numpy(dtype=float) for c in ("ci_low", "effect", "ci_high"))
        ax.hlines(at, low, high, color=colour, lw=0.9)
        ax.plot(value, at, ls="none", marker=mark, color=colour, ms=3.2)
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    ax.set_xlim(0.0, 1.05 * 100 * float(rows["ci_high"].max()))
    ax.set_xticks([0, 0.5, 2, 5, 10, 20], ["0", "0.5", "2", "5", "10", "20"])
    ax.set_yticks(gap, [names[w] for w in order])
    ax.set_ylim(gap[-1] + 0.6, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("points lost to the best α")
    ax.set_title("mean regret of α, by rule")
