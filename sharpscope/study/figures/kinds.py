"""Every figure that can be drawn from run directories: those of a run, and those of the papers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd

from sharpscope import plot
from sharpscope.errors import NoData
from sharpscope.findings.pathheights import path_heights
from sharpscope.findings.robustness import BASELINES, baseline_points, effective_robustness, read_baseline
from sharpscope.present.kinds import Drawing, FigureKind, needs
from sharpscope.present.paperplots.prompting import upgrade_of
from sharpscope.present.runfigures import RUN_FIGURES
from sharpscope.present.sources import Tables
from sharpscope.study.figures.reading import settings_table
from sharpscope.tables.rows import unique_in_order

__all__ = ["FIGURES"]


def _baseline(accuracy: pd.DataFrame, baseline: str) -> pd.DataFrame:
    return baseline_points(accuracy, baseline) if baseline in BASELINES else read_baseline(baseline)


def _robustness(tables: Tables, *, baseline: str = "finetuned") -> dict[str, Any]:
    """Effective robustness.

    Args:
        baseline: models that define the line: zeroshot, finetuned or ends (of these runs), or a CSV file.
    """
    accuracy = tables.needed("accuracy")
    return {"robustness": effective_robustness(accuracy, _baseline(accuracy, baseline), baseline)}


def _scatter(tables: Tables, *, baseline: str | None = None) -> dict[str, Any]:
    """The plane of ID and OOD accuracy.

    Args:
        baseline: models that define the line: zeroshot, finetuned or ends (of these runs), or a CSV file; default: no
            line.
    """
    accuracy = tables.needed("accuracy")
    return {"accuracy": accuracy, "baseline": None if baseline is None else _baseline(accuracy, baseline)}


def _settings(tables: Tables, *, settings: Path | None = None) -> dict[str, pd.DataFrame]:
    """Accuracies and how every pair was tuned.

    Args:
        settings: CSV file with the column pair and one for each setting; default: the sweep's own settings.
    """
    accuracy = tables.needed("accuracy")
    return {"accuracy": accuracy, "settings": settings_table(settings, tables, unique_in_order(accuracy["pair"]))}


def _methods(tables: Tables, *, settings: Path | None = None) -> dict[str, pd.DataFrame]:
    """Accuracies and settings, of which there have to be some.

    Args:
        settings: CSV file with pair, method and a column for each number that was varied; default: the sweep's own.
    """
    read = _settings(tables, settings=settings)
    if set(read["settings"]) == {"pair"}:
        raise NoData(
            "paper_lipsum_tradeoff: nothing says how the pairs were tuned. It takes the runs of 'sharpscope sweep', or "
            "the settings of every pair as the second table of sharpscope.plot.paper_lipsum_tradeoff."
        )
    return read


def _correlation(tables: Tables) -> dict[str, Any]:
    """Several runs have no coefficient in common."""
    known = tables.found("correlations") if tables.alone else None
    return {name: tables.needed(name) for name in ("sharpness", "accuracy")} | {"correlations": known}


def _heights(tables: Tables) -> dict[str, Any]:
    path = tables.needed("path")
    return {"path": path, "heights": path_heights(path)}


def _upgrade(tables: Tables, *, from_: Literal["upgrade", "accuracy"] = "upgrade") -> dict[str, Any]:
    """The comparison of the old and the upgraded model.

    Args:
        from_: table to read: upgrade of a protocol, or accuracy of a run with --upgraded.
    """
    table = tables.needed(from_)
    return {"table": upgrade_of(table) if from_ == "accuracy" else table}


def _which_upgrade(tables: Tables) -> Sequence[Mapping[str, Any]]:
    """The protocol's table where there is one, else that of the accuracies."""
    alone = tables.found("upgrade") is None and tables.found("accuracy") is not None
    return ({"from_": "accuracy"} if alone else {},)


def _if_known(draw: Callable[..., Drawing], name: str, option: str) -> Callable[[Tables], Sequence[Mapping[str, Any]]]:
    """Where table ``name`` has no row of the default of ``option``, the first value that it has."""
    default = inspect.signature(draw).parameters[option].default

    def each(tables: Tables) -> Sequence[Mapping[str, Any]]:
        table = tables.found(name)
        values = [] if table is None else unique_in_order(table[option])
        return ({} if default in values or not values else {option: values[0]},)

    return each


def _shots(tables: Tables) -> dict[str, Any]:
    if not tables.images:
        raise NoData("paper_wiseft_shots: needs the number of images per class of every run, such as 4=runs/k4.")
    return {"accuracy": tables.needed("accuracy"), "images": tables.images}


FIGURES: Final[Mapping[str, FigureKind]] = {
    **RUN_FIGURES,
    **{
        kind.name: kind
        for kind in (
            FigureKind("robustness", plot.effective_robustness, _robustness),
            FigureKind("loss_slice", plot.loss_slice, needs(table="slice")),
            *(
                FigureKind(draw.__name__, draw, read, each=_if_known(draw, name, option))
                for draw, read, name, option in (
                    (plot.paper_sharpness_correlation, _correlation, "sharpness", "measure"),
                    (plot.paper_sharpness_layers, needs("sharpness", "stragglers"), "sharpness", "measure"),
                    (plot.paper_sharpness_repair, needs("repair", "accuracy"), "repair", "target"),
                )
            ),
            *(
                FigureKind(draw.__name__, draw, read)
                for draw, read in (
                    (plot.paper_sharpness_lii, _heights),
                    (plot.paper_wiseft_alpha, needs("accuracy")),
                    (plot.paper_wiseft_diversity, needs("agreement", "accuracy")),
                    (plot.paper_wiseft_ensembles, needs("accuracy")),
                    (plot.paper_wiseft_hyper, _settings),
                    (plot.paper_wiseft_scatter, _scatter),
                    (plot.paper_wiseft_shots, _shots),
                    (plot.paper_lipsum_energy, needs("agreement", "accuracy")),
                    (plot.paper_lipsum_tradeoff, _methods),
                    (plot.paper_clipfit_change, needs(changes="changes")),
                    (plot.paper_clipfit_shots, needs(table="few_shot")),
                    (plot.paper_vrf_ratio, needs("vrf", "accuracy")),
                )
            ),
            FigureKind("paper_contcoop_upgrade", plot.paper_contcoop_upgrade, _upgrade, each=_which_upgrade),
        )
    },
}
"""Name -> the figure: those of a run in the order of its report, then those of the papers."""
