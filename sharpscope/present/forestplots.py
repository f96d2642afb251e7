"""Estimates with their intervals, one below the other: the panel that several figures of a population share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sharpscope.present.style import INK, label

__all__ = ["GAP", "SMALL", "Marks", "estimates", "forest", "interval", "panel_height", "root_axis", "words"]

GAP: Final = ""
"""A row without a name and of half the height, which separates groups of rows."""
SMALL: Final[dict[str, Any]] = {"fontsize": 6.5, "color": INK["black"]}
"""The text style of verdicts and counts in a panel."""
_ROOM: Final = 0.155
"""The height of a row in inches."""
_HALF: Final = 0.5
Estimates = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Marks:
    """One mark in every row that has an estimate: row -> (estimate, low, high)."""

    label: str
    colour: str
    marker: str
    values: Estimates
    filled: bool = True
    shift: float = 0.0
    """Downwards, in rows."""

    @property
    def handle(self) -> Line2D:
        """Its entry in a key."""
        return Line2D([], [], ls="none", label=self.label, **self._look)

    @property
    def _look(self) -> dict[str, Any]:
        face = self.colour if self.filled else "white"
        return {"color": self.colour, "marker": self.marker, "ms": 3.6, "mfc": face, "mew": 0.9}


def estimates(table: pd.DataFrame, name: str, columns: Sequence[str] = ("estimate", "ci_low", "ci_high")) -> Estimates:
    """Column ``name`` -> the numbers of ``columns``, for the rows that have the first of them."""
    known = table[table[columns[0]].notna()]
    numbers = zip(*(known[c].astype(float) for c in columns), strict=True)
    return {str(row): (value, low, high) for row, (value, low, high) in zip(known[name], numbers, strict=True)}


def forest(
    ax: Axes, rows: Sequence[str], marks: Sequence[Marks], names: Mapping[str, str] | None = None
) -> list[float]:
    """Draw the rows downwards; returns their places on the axis. ``names``: row -> its label."""
    heights = [_HALF if row == GAP else 1.0 for row in rows]
    places = list(np.cumsum(heights) - np.array(heights) / 2)
    at = {row: place for row, place in zip(rows, places, strict=True) if row != GAP}
    for mark in marks:
        for row, (value, low, high) in mark.values.items():
            if row in at:
                ax.hlines(at[row] + mark.shift, low, high, color=mark.colour, lw=1.0)
                ax.plot([value], [at[row] + mark.shift], ls="none", **mark._look)
    ax.set_yticks([at[row] for row in at], [(names or {}).get(row, row) for row in at])
    ax.set_ylim(sum(heights), 0.0)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return places


def panel_height(rows: Sequence[str]) -> float:
    """Inches that the rows of a panel need, without its axis and title."""
    return _ROOM * sum(_HALF if row == GAP else 1.0 for row in rows)


_TICK_GAP: Final = 0.08
"""The smallest distance between two ticks, as a share of the axis: labels of nearer ones would touch."""


def root_axis(ax: Axes, highest: float) -> None:
    """A horizontal axis of square roots from 0, for losses that reach from tenths to tens of points."""
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0.0)), np.square))
    ax.set_xlim(0.0, 1.05 * highest)
    kept = [0.0]
    for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 40, 80):
        if tick <= 1.05 * highest and np.sqrt(tick / highest) - np.sqrt(kept[-1] / highest) > _TICK_GAP:
            kept.append(tick)
    ax.set_xticks(kept, [f"{t:g}" for t in kept])
    ax.axvline(0.0, color=INK["grey"], lw=0.6)


_WORDS: Final = {
    "hessian_trace": "Hessian trace", "ggn_trace": "GGN trace", "lambda_max": "largest eigenvalue",
    "weighted_trace": "adaptive trace", "barrier": "loss barrier", "augment": "augmentation",
    "id_accuracy": "ID accuracy",
}  # fmt: skip


def words(name: Any) -> str:
    """A column's name as an axis says it."""
    return _WORDS.get(str(name), label(str(name).replace("_", " ")))


def interval(row: Any) -> str:
    text = f"{row['effect']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
    return text.replace("-", "−")
