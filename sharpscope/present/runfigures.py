"""The figures of a run: from which tables each is drawn, with which options, under which name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sharpscope.errors import NoData
from sharpscope.present.agreementplots import agreement_along_alpha
from sharpscope.present.densityplots import spectral_density
from sharpscope.present.furtherplots import paths_along_alpha
from sharpscope.present.kinds import Drawing, FigureKind, needs
from sharpscope.present.layerplots import heatmap, straggler_ranking
from sharpscope.present.pairplots import correlation, correlation_scatter, repair
from sharpscope.present.pathplots import accuracy_along_alpha, sharpness_along_alpha, wiseft_curves
from sharpscope.present.residualplots import gain_file, sharpness_and_gain
from sharpscope.present.sources import Tables
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import groups_in, measures_in, points_of, unique_in_order
from sharpscope.vocabulary import SIDE_BY_SIDE

__all__ = ["RUN_FIGURES", "drawings"]

_FEWEST_POINTS: Final = 3
"""The fewest pairs for which the scatter plot is drawn: two points always lie on a line."""


def _stragglers(tables: Tables, *, criteria: Sequence[str] = ()) -> dict[str, Any]:
    """The ranking of stragglers.

    Args:
        criteria: at most four criteria; default: the one that decides in the run, then the two that are compared.
    """
    deciding = [tables.criterion] if tables.criterion else []
    shown = list(criteria) or unique_in_order([*deciding, *SIDE_BY_SIDE])
    return {"stragglers": tables.needed("stragglers"), "criteria": shown}


def _points(tables: Tables) -> dict[str, Any]:
    """The points of the scatter plot: those that are given, else those of the runs' own pairs."""
    points = tables.found("points")
    if points is None:
        points = points_of(tables.needed("sharpness"), tables.needed("accuracy"))
        if (count := points["pair"].nunique()) < _FEWEST_POINTS:
            raise NoData(
                f"correlation_scatter: the tables have {number_of(count, 'pair')} with a sharpness and an OOD gain, "
                f"and it takes {_FEWEST_POINTS}."
            )
    return {"points": points}


def _every_measure(tables: Tables) -> Sequence[Mapping[str, Any]]:
    sharpness = tables.found("sharpness")
    return [{}] if sharpness is None else [{"measure": measure} for measure in measures_in(sharpness)]


def _residuals(tables: Tables) -> dict[str, Any]:
    """Residuals are of the pairs of one comparison; those of several runs do not go together."""
    if not tables.alone:
        raise NoData(
            "sharpness_and_gain: the residuals of several runs do not belong together; 'sharpscope correlate RUN RUN "
            "... --figures FOLDER' draws it over the pairs of all."
        )
    return {name: tables.needed(name) for name in ("residuals", "correlations")}


def _every_group(tables: Tables) -> Sequence[Mapping[str, Any]]:
    residuals = tables.found("residuals") if tables.alone else None
    return [{"group": group} for group in groups_in(residuals)] if residuals is not None else [{}]


RUN_FIGURES: Final[Mapping[str, FigureKind]] = {
    kind.name: kind
    for kind in (
        FigureKind("wiseft_curve", wiseft_curves, needs("accuracy", optional=("advice",))),
        FigureKind(
            "accuracy_along_alpha",
            accuracy_along_alpha,
            needs("accuracy", optional=("path", "failure", "advice")),
        ),
        FigureKind("agreement", agreement_along_alpha, needs(table="agreement")),
        FigureKind("paths_along_alpha", paths_along_alpha, needs("accuracy")),
        FigureKind("sharpness_along_alpha", sharpness_along_alpha, needs("sharpness")),
        FigureKind(
            "heatmap",
            heatmap,
            needs("sharpness"),
            lambda o: "heatmap_" + re.sub(r"\W", "_", o["measure"], flags=re.ASCII),
            _every_measure,
        ),
        FigureKind("spectral_density", spectral_density, needs("density")),
        FigureKind("straggler_ranking", straggler_ranking, _stragglers),
        FigureKind("repair", repair, needs(table="repair")),
        FigureKind(
            "correlation",
            correlation,
            needs("correlations"),
            lambda o: "correlation_held" if o["held"] else f"correlation_{o['scope']}",
            lambda tables: ({"scope": "path"}, {"scope": "pairs", "held": True}, {"scope": "pairs"}),
        ),
        FigureKind("correlation_scatter", correlation_scatter, _points),
        FigureKind("sharpness_and_gain", sharpness_and_gain, _residuals, lambda o: gain_file(o["group"]), _every_group),
    )
}
"""Name -> the figure, in the order of the report."""


def drawings(tables: Tables) -> dict[str, Callable[[], Drawing]]:
    """Name -> what draws it, of every figure of a run; drawing raises NoData where the tables lack data."""
    return {name: draw for kind in RUN_FIGURES.values() for name, draw in kind.drawings(tables).items()}
