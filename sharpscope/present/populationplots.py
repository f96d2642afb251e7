"""A population of pairs and their gains along alpha; the table is ``pairs`` of analyses/emoji/verdicts.py."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.gainscales import gain_axis, rate_bar, rates_of
from sharpscope.present.style import INK, key, label, new_figure, styled
from sharpscope.tables.rows import unique_in_order

__all__ = ["gain_paths"]

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
    colours, norm = rates_of(pairs)
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
    gain_axis(axes[0, 0], pairs[[c for c in pairs.columns if _GAIN in c]].to_numpy(dtype=float))
    rate_bar(figure, axes, colours, norm)
    line: dict[str, Any] = {"color": INK["grey"], "lw": 0.9}
    beats = Line2D([], [], **line, label="some point beats zero-shot")
    key(figure, [beats, Line2D([], [], **line, ls=_FAILS, marker="x", ms=3.5, label="none does")])
    return figure


def _groups_of(pairs: pd.DataFrame) -> list[str]:
    return unique_in_order(c.partition(_GAIN)[0] for c in pairs.columns if _GAIN in c)
