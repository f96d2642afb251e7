"""The figure of a slice of the loss: its values on a line, or as contours in a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sharpscope.errors import NoData
from sharpscope.present.style import COLOURS, INK, label, one_panel, styled

__all__ = ["loss_slice"]

_LEVELS = 12
"""The number of contours in a plane."""


@styled
def loss_slice(
    table: pd.DataFrame, names: Sequence[str] = ("direction 1", "direction 2"), ax: Axes | None = None
) -> Axes:
    """The loss along one direction, with a band of one standard error on each side, or contours along two.

    A cross or a dotted line marks the point through which the slice goes.

    Args:
        table: the table that ``sharpscope.loss_slice`` returns.
        names: what the directions are, for the axes' labels.
        ax: the axes to draw into; default: those of a figure of their own.

    >>> shown = sharpscope.plot.loss_slice(slice, ["top eigenvector", "gradient"])

    Raises:
        NoData: the table has no finite loss, or its steps in a plane are no grid.
    """
    finite = table[np.isfinite(table["loss"])]
    if not len(finite):
        raise NoData("loss_slice: the table has no finite loss.")
    plane = bool(finite["step_2"].notna().any())
    ax = ax or one_panel(3.6 if plane else 2.4)
    ax.set_xlabel(f"step along {label(names[0])}")
    if plane:
        _contours(ax, table, label(names[1] if len(names) > 1 else "direction 2"))
        return ax
    rows = finite.sort_values("step_1")
    x, y, error = (rows[c].to_numpy(float) for c in ("step_1", "loss", "loss_stderr"))
    ax.plot(x, y, color=COLOURS[0])
    if np.isfinite(error).any():
        ax.fill_between(x, y - error, y + error, color=COLOURS[0], alpha=0.2, lw=0)
    if x[0] <= 0 <= x[-1]:
        ax.axvline(0, color=INK["grey"], lw=0.7, ls=":", zorder=0)
    ax.set_ylabel("loss (nats)")
    return ax


def _contours(ax: Axes, table: pd.DataFrame, second: str) -> None:
    grid = table.pivot_table(index="step_2", columns="step_1", values="loss", dropna=False)
    if min(grid.shape) < 2:
        raise NoData("loss_slice: a plane needs at least two steps along each direction.")
    x, y, values = grid.columns.to_numpy(float), grid.index.to_numpy(float), np.ma.masked_invalid(grid.to_numpy(float))
    filled = ax.contourf(x, y, values, levels=_LEVELS, cmap="cividis")
    ax.contour(x, y, values, levels=filled.levels, colors="white", linewidths=0.4)
    if x[0] <= 0 <= x[-1] and y[0] <= 0 <= y[-1]:
        ax.plot(0, 0, marker="+", color="white", ms=7, mew=1.2)
    ax.set_ylabel(f"step along {second}")
    bar = ax.figure.colorbar(filled, ax=ax, pad=0.02)
    bar.set_label("loss (nats)")
    bar.outline.set_visible(False)
