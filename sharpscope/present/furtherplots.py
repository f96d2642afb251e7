"""The figure of the paths beside the linear one: the same start, other ways away from it."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.errors import NoData
from sharpscope.present.alphas import alpha_axis, alpha_is
from sharpscope.present.style import COLOURS, INK, PAIR_MARKS, first_pairs, key, label, new_figure, styled
from sharpscope.tables.rows import average, groups_in, of_group, primary_rows, unique_in_order
from sharpscope.vocabulary import DEFAULT_GROUP, PATHS, PathName, path_variant

__all__ = ["paths_along_alpha"]

_BESIDE: Final = tuple(name for name in PATHS if name != "linear")


@styled
def paths_along_alpha(accuracy: pd.DataFrame) -> Figure:
    """Mean OOD accuracy of every path from theta_0: along alpha (left) and over ID accuracy (right).

    There is one row of panels for every pair and group of OOD sets.

    The linear path is black, with its interval. The star is alpha = 0, where all paths meet; the black square is
    theta_1, where the linear, the Fisher and the random path end; the other squares are edits of theta_1, where the
    others end. Alphas of different paths do not measure the same distance, so that curves are compared on the right.

    >>> shown = sharpscope.plot.paths_along_alpha(run.accuracy)

    Raises:
        NoData: the table has no path but the linear one.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), fig. 1, for the plane on the right.
    """
    shown: dict[PathName, pd.DataFrame] = {}
    for name in PATHS:
        rows = primary_rows(accuracy[(accuracy["variant"] == path_variant(name)) & accuracy["estimate"].notna()])
        if len(rows):
            shown[name] = rows.sort_values("alpha", kind="stable")
    if not set(_BESIDE) & set(shown):
        raise NoData("paths_along_alpha: the accuracy table has no path but the linear one.")
    every = pd.concat(shown.values())
    pairs, fewer = first_pairs(every)
    groups = groups_in(every) or [DEFAULT_GROUP]
    panels = [(pair, group) for pair in pairs for group in groups]
    figure = new_figure(2.1 * len(panels) + 0.55)
    axes = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
    for (along, plane), (pair, group) in zip(axes, panels, strict=True):
        for name, rows in shown.items():
            _draw(along, plane, of_group(rows[rows["pair"] == pair], group), name)
        along.set_title(label(f"{pair}, {group}" if len(groups) > 1 else pair, 34))
        along.set(ylabel="Mean OOD accuracy (%)")
        alpha_axis(along)
        plane.set(xlabel="ID accuracy (%)")
        for ax in (along, plane):
            ax.grid(True)
    handles = [
        Line2D([], [], color=_colour(name), marker=_marker(name), lw=_width(name), label=name)
        for name in unique_in_order(shown)
    ]
    handles.append(Line2D([], [], color=INK["black"], marker="*", ls="none", markersize=8, label=alpha_is(0)))
    handles.append(Line2D([], [], color=INK["grey"], marker="s", ls="none", markersize=5, label=alpha_is(1)))
    key(figure, handles, fewer)
    return figure


def _draw(along: Axes, plane: Axes, rows: pd.DataFrame, name: PathName) -> None:
    """One path of one pair in both panels."""
    ident, mean = average(rows, "id"), average(rows, "ood")
    style: dict[str, Any] = {"color": _colour(name), "lw": _width(name), "zorder": 2 + (name == "linear")}
    along.plot(mean["alpha"], mean["estimate"], marker=_marker(name), markersize=2.6, **style)
    if name == "linear":
        along.fill_between(mean["alpha"], mean["ci_low"], mean["ci_high"], color=style["color"], alpha=0.15, lw=0)
    both = ident.merge(mean, on="alpha", suffixes=("_id", "_ood"))
    plane.plot(both["estimate_id"], both["estimate_ood"], marker=_marker(name), markersize=2.6, **style)
    last = INK["black"] if PATHS[name].ends_at_theta_1 else _colour(name)
    for at, mark, size, colour in ((0.0, "*", 80, INK["black"]), (1.0, "s", 26, last)):
        end = both[both["alpha"] == at]
        plane.scatter(
            end["estimate_id"],
            end["estimate_ood"],
            marker=mark,
            s=size,
            color=colour,
            edgecolor="white",
            lw=0.6,
            zorder=5,
        )


def _colour(name: PathName) -> str:
    return INK["black"] if name == "linear" else COLOURS[_BESIDE.index(name) % len(COLOURS)]


def _marker(name: PathName) -> str:
    return "" if name == "linear" else PAIR_MARKS[_BESIDE.index(name) % len(PAIR_MARKS)]


def _width(name: PathName) -> float:
    return 1.8 if name == "linear" else 1.0
