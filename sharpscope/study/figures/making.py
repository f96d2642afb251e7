"""Drawing and writing every figure for which runs have tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from sharpscope.errors import ConfigError, NoData, ResultsError, did_you_mean, shown
from sharpscope.present.alphas import showing_alpha_on
from sharpscope.present.canvas import paper_style, plain_style, save
from sharpscope.present.kinds import Drawing
from sharpscope.present.paperplots.drawn import Drawn, save_drawn
from sharpscope.present.sources import Tables
from sharpscope.study.figures.kinds import FIGURES
from sharpscope.study.figures.reading import tables_of
from sharpscope.tables.formats import number_of
from sharpscope.vocabulary import AlphaSide, FigureStyle

__all__ = ["STYLES", "WrittenFigures", "figures", "gain_figures", "write"]

STYLES: Final[Mapping[FigureStyle, Callable[[], AbstractContextManager[None]]]] = {
    "paper": paper_style,
    "screen": plain_style,
}
"""The style of figures by its name."""


@dataclass(frozen=True)
class WrittenFigures:
    """What was written into a folder, and what was not drawn."""

    folder: Path
    files: Mapping[str, tuple[Path, ...]]
    """Name -> PNG, PDF and, for a paper's figure, the caption."""
    reasons: Mapping[str, str]
    """Name -> why the figure was not drawn."""

    def __str__(self) -> str:
        lines = [f"{number_of(len(self.files), 'figure')} in {shown(self.folder)}: {', '.join(self.files)}"]
        names: dict[str, list[str]] = {}
        for name, why in self.reasons.items():
            names.setdefault(why.removeprefix(f"{name}: "), []).append(name)
        return "\n".join([*lines, *(f"not drawn: {', '.join(own)}: {why}" for why, own in names.items())])


def figures(
    runs: Sequence[str],
    out: str | os.PathLike[str],
    *,
    only: Sequence[str] = (),
    group: str | None = None,
    style: FigureStyle = "paper",
    alpha_on: AlphaSide = "finetuned",
) -> WrittenFigures:
    """Write every figure for which ``runs`` have tables into the folder ``out``, each as PNG and PDF.

    Args:
        runs: run directories and files, see ``reading.tables_of``.
        out: the folder.
        only: names of figures, of ``FIGURES`` or of their files; default: all.
        group: the group of OOD sets to draw.
        style: the look: paper (8 points, thin lines) or screen (as in the report).
        alpha_on: the model whose weight the figures of a run show as alpha. Those of the papers keep that of the
            fine-tuned model.

    Raises:
        ConfigError: an unknown name, run or group.
        NoData: nothing can be drawn.
    """
    return _written(_chosen(tables_of(runs, group), only), out, style, alpha_on)


def gain_figures(residuals: pd.DataFrame, correlations: pd.DataFrame, out: str | os.PathLike[str]) -> WrittenFigures:
    """Write ``plot.sharpness_and_gain`` of every group of OOD sets into the folder ``out``, with its caption.

    Raises NoData where no group has two pairs.
    """
    if not len(residuals):
        raise NoData("sharpness_and_gain: no pair has the measure that was named before looking.")
    tables = Tables.given({"residuals": residuals, "correlations": correlations})
    return _written(FIGURES["sharpness_and_gain"].drawings(tables), out, "paper", "finetuned")


def _written(
    drawings: Mapping[str, Callable[[], Drawing]], out: str | os.PathLike[str], style: FigureStyle, alpha_on: AlphaSide
) -> WrittenFigures:
    files: dict[str, tuple[Path, ...]] = {}
    reasons: dict[str, str] = {}
    with STYLES[style](), showing_alpha_on(alpha_on):
        for name, draw in drawings.items():
            try:
                drawn = draw()
            except (ConfigError, ResultsError) as why:
                text = " ".join(str(why).split())
                reasons[name] = text if text.startswith(f"{name}:") else f"{name}: {text}"
            else:
                files[name] = write(drawn, out, name)
    if not files:
        raise NoData(f"figures: none of {len(reasons)} can be drawn.\n{next(iter(reasons.values()))}")
    return WrittenFigures(Path(out), files, reasons)


def _chosen(tables: Tables, only: Sequence[str]) -> dict[str, Callable[[], Drawing]]:
    """Name of the files -> the function that draws them, for all figures that are asked for."""
    every = {kind: FIGURES[kind].drawings(tables) for kind in FIGURES}
    by_file = {name: draw for drawings in every.values() for name, draw in drawings.items()}
    chosen: dict[str, Callable[[], Drawing]] = {}
    for name in only:
        if name not in every and name not in by_file:
            known = list(dict.fromkeys([*every, *by_file]))
            near = did_you_mean(name, known) or f" Known: {', '.join(known)}."
            raise ConfigError(f"--only: no figure is called '{shown(name, 60)}'.{near}")
        chosen |= every[name] if name in every else {name: by_file[name]}
    return chosen or by_file


def write(drawn: Drawing, out: str | os.PathLike[str], name: str) -> tuple[Path, ...]:
    """Write a figure as PNG and PDF, a paper's figure with its caption; returns the paths."""
    return save_drawn(drawn, out, name) if isinstance(drawn, Drawn) else save(drawn, out, name)
