"""Every figure of a study at once, by the names of the files in its run directory.

No function touches matplotlib's global state or pyplot. The reader's own style (``matplotlib.style.context``) is
respected by the functions of ``sharpscope.plot``; settings that it leaves at their defaults are taken from
``style.STYLE``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from sharpscope.errors import NoData
from sharpscope.present.canvas import figure_of, plain_style
from sharpscope.present.paperplots.drawn import Drawn
from sharpscope.present.runfigures import drawings
from sharpscope.present.sources import Tables

__all__ = ["all_figures"]


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

    >>> shown = sharpscope.plot.all_figures({"accuracy": run.accuracy})["wiseft_curve"]

    Raises nothing where a figure lacks data: it is left out.
    """
    every = list(drawings(Tables.given(tables, criterion, pairs)).items())
    figures = {}
    with plain_style():
        for name, draw in every[share[0] :: share[1]]:
            with contextlib.suppress(NoData):
                drawn = draw()
                figures[name] = drawn.figure if isinstance(drawn, Drawn) else figure_of(drawn)
    return figures
