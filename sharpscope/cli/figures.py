"""The command ``figures``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from sharpscope.cli.options import given
from sharpscope.cli.outcome import Outcome
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import AlphaSide, FigureStyle

__all__ = ["Figures"]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Write every figure for which runs have tables, those of the papers too, as PNG and PDF.

    A figure of a paper comes with its caption as text. What cannot be drawn is listed with the reason.
    """

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN [RUN ...]")]
    """Run directories; K=RUN for a run whose models were tuned on K images per class; also the CSV file of
    'sharpscope inspect A B --granularity tensor --out FILE' or of sharpscope.loss_slice."""
    out: str
    """Folder to write to. Files of the same names are replaced."""
    only: tuple[str, ...] = ()
    """Figures to draw, such as wiseft_curve, heatmap or paper_wiseft_scatter; default: all."""
    group: str | None = None
    """Group of OOD sets to draw; needed by figures that average over OOD sets where a run has several groups."""
    style: FigureStyle = "paper"
    """paper: 8-point text and thin lines for a printed page; screen: as in the report."""
    alpha_on: AlphaSide = "finetuned"
    """Model whose weight is shown as alpha in the figures of a run. zeroshot: alpha' = 1 - alpha, as 2410.16476 writes
    it; the papers' figures keep the weight of the fine-tuned model."""

    def __call__(self) -> Outcome:
        if not self.runs:
            raise ConfigError("figures: give at least one run directory.")
        from sharpscope.study.figures.making import figures

        return Outcome(str(figures(**given(self))))
