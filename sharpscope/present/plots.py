"""Every figure of a study, each a function from tidy tables to Axes (one panel) or a Figure (several panels).

The tables have the columns of ``sharpscope.tables.schema``. No function touches matplotlib's global state or pyplot.
The reader's own style (``matplotlib.style.context``) is respected; settings that it leaves at their defaults are taken
from ``style.STYLE``.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpscope.errors import NoData
from sharpscope.present.agreementplots import agreement_along_alpha
from sharpscope.present.densityplots import spectral_density
from sharpscope.present.furtherplots import paths_along_alpha
from sharpscope.present.layerplots import heatmap, straggler_ranking
from sharpscope.present.pairplots import correlation, correlation_scatter, repair
from sharpscope.present.pathplots import accuracy_along_alpha, sharpness_along_alpha, wiseft_curves
from sharpscope.present.style import figure_of, plain_style
from sharpscope.tables.rows import measures_in, points_of, unique_in_order
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import SIDE_BY_SIDE

__all__ = ["all_figures"]


# ---------------------------------------------------------------------------------------------------------- all of them
def all_figures(
    tables: Mapping[str, pd.DataFrame],
    criterion: str | None = None,
    pairs: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
) -> dict[str, Figure]:
    """Every figure for which the tables hold data, by file name, independent of the machine's matplotlib settings.

    Args:
        tables: tables by the names of the schema, and optionally ``points`` (see ``correlation_scatter``). Without
            ``points`` the pairs of the run are plotted if there are at least three.
        criterion: the straggler criterion that decides, shown first.
        pairs: the order in which pairs are drawn (default: that of the tables).
        share: (k, n) to draw only every n-th figure from the k-th on, for one of n processes.
    """
    get = {name: _in_order(tables.get(name, pd.DataFrame()), pairs) for name in (*COLUMNS, "points")}
    path, failure, advice = (get[name] if len(get[name]) else None for name in ("path", "failure", "advice"))
    measures = measures_in(get["sharpness"]) if len(get["sharpness"]) else []
    points = get["points"]
    if not len(points) and len(get["sharpness"]) and len(get["accuracy"]):
        points = points_of(get["sharpness"], get["accuracy"])
        points = points if points["pair"].nunique() >= 3 else points.iloc[:0]
    draws: list[tuple[str, pd.DataFrame, Callable[[pd.DataFrame], Axes | Figure]]] = [
        ("wiseft_curve", get["accuracy"], lambda df: wiseft_curves(df, advice)),
        ("accuracy_along_alpha", get["accuracy"], lambda df: accuracy_along_alpha(df, path, failure, advice)),
        ("agreement", get["agreement"], agreement_along_alpha),
        ("paths_along_alpha", get["accuracy"], paths_along_alpha),
        ("sharpness_along_alpha", get["sharpness"], sharpness_along_alpha),
        *((f"heatmap_{_file_name(m)}", get["sharpness"], functools.partial(heatmap, measure=m)) for m in measures),
        ("spectral_density", get["density"], spectral_density),
        ("straggler_ranking", get["stragglers"], lambda df: straggler_ranking(df, _criteria(criterion))),
        ("repair", get["repair"], repair),
        ("correlation_path", get["correlations"], lambda df: correlation(df, "path")),
        ("correlation_held", _widest(get["correlations"]), lambda df: correlation(df, "pairs", held=True)),
        ("correlation_pairs", _widest(get["correlations"]), lambda df: correlation(df, "pairs")),
        ("correlation_scatter", points, correlation_scatter),
    ]
    figures = {}
    with plain_style():
        for name, table, draw in draws[share[0] :: share[1]]:
            with contextlib.suppress(NoData):
                if len(table):
                    figures[name] = figure_of(draw(table))
    return figures


def _criteria(deciding: str | None) -> list[str]:
    """The criteria that the ranking figure shows first: the deciding one, then the two that are compared."""
    return unique_in_order([*([deciding] if deciding else []), *SIDE_BY_SIDE])


def _widest(correlations: pd.DataFrame) -> pd.DataFrame:
    """The across-pair rows of the source with the most pairs: a run of two adds nothing to a shipped table of ten."""
    rows = correlations[correlations["scope"] == "pairs"] if len(correlations) else correlations
    if not len(rows):
        return rows
    most = rows.groupby("source")["n"].max()
    return rows[rows["source"] == most.idxmax()]


def _in_order(table: pd.DataFrame, pairs: Sequence[str]) -> pd.DataFrame:
    if not pairs or "pair" not in table:
        return table
    place = {name: i for i, name in enumerate(pairs)}
    return table.sort_values("pair", key=lambda s: s.map(lambda p: place.get(p, len(place))), kind="stable")


def _file_name(measure: str) -> str:
    return re.sub(r"\W", "_", measure, flags=re.ASCII)
