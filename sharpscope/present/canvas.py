"""How a figure becomes an image: in a notebook's cell by itself, and as files that contain no date."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import PlaceHolderLayoutEngine

from sharpscope.atomic import write_atomic
from sharpscope.errors import NoData

__all__ = [
    "ShownAxes",
    "ShownFigure",
    "as_html",
    "figure_bytes",
    "figure_of",
    "paper_style",
    "plain_style",
    "save",
]

_DPI: Final = 200
"""The resolution of PNG files in dots per inch."""
_CELL_DPI: Final = 100
"""The resolution that sets the size of a figure in a notebook; it is drawn at twice this resolution to look sharp."""
_BYTES: Final[dict[Any, Any]] = {"pdf.fonttype": 42, "pdf.compression": 6, "svg.hashsalt": "sharpscope"}
_PAPER: Final = Path(__file__).with_name("paper.mplstyle")


# -------------------------------------------------------------------------------------------------------------- styles
@contextmanager
def plain_style() -> Iterator[None]:
    """Context manager: matplotlib's defaults, so that the machine's matplotlibrc does not change a byte of a report."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@contextmanager
def paper_style() -> Iterator[None]:
    """Context manager: the style sheet of printed figures (``paper.mplstyle``) on matplotlib's defaults."""
    with plain_style():
        matplotlib.style.use(_PAPER)
        yield


# ------------------------------------------------------------------------------------------------------------ notebooks
class ShownFigure(Figure):
    """A figure that a notebook shows as the value of a cell, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """(PNG, the size at which it is shown); the layout stays free for what is added to the figure later."""
        engine, canvas, own_dpi = self.get_layout_engine(), self.canvas, self.dpi
        try:
            return _png(self), {"width": round(_CELL_DPI * float(self.get_figwidth()))}
        finally:
            self.dpi = own_dpi
            self.set_canvas(canvas)
            self.set_layout_engine(engine)


class ShownAxes(Axes):
    """The only panel of a ``ShownFigure``: as the value of a cell it shows its figure."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]] | None:
        figure = figure_of(self)
        return figure._repr_png_() if isinstance(figure, ShownFigure) else None


def as_html(figure: Figure, caption: str) -> str:
    """A figure with the text below it, for a notebook."""
    png, size = figure._repr_png_() if isinstance(figure, ShownFigure) else (figure_bytes(figure)[0], {})
    width = "".join(f' {name}="{value}"' for name, value in size.items())
    data, text = base64.b64encode(png).decode("ascii"), html.escape(caption)
    return f'<figure><img{width} alt="" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


# --------------------------------------------------------------------------------------------------------------- files
def figure_bytes(figure: Figure | Axes) -> tuple[bytes, bytes]:
    """(PNG, PDF) of a figure without date or version, fonts embedded: one matplotlib always gives the same bytes."""
    figure = figure_of(figure)
    canvas, own_dpi, pdf = figure.canvas, figure.dpi, io.BytesIO()
    try:  # prints on the canvases, since savefig draws everything twice
        png = _png(figure)
        with plain_style(), matplotlib.rc_context(_BYTES):
            FigureCanvasPdf(figure).print_pdf(pdf, metadata={"Creator": None, "Producer": None, "CreationDate": None})
    finally:
        figure.dpi = own_dpi
        figure.set_canvas(canvas)
    return png, pdf.getvalue()


def _png(figure: Figure) -> bytes:
    """The PNG of ``figure``, whose layout is fitted once: every further draw would shift the axes slightly.

    The caller puts the canvas and the resolution back.
    """
    engine, png = figure.get_layout_engine(), io.BytesIO()
    with plain_style(), matplotlib.rc_context(_BYTES):
        if engine is not None and not isinstance(engine, PlaceHolderLayoutEngine):
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.dpi = _DPI
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    return png.getvalue()


def save(figure: Figure | Axes, out: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Write ``OUT/NAME.png`` and ``OUT/NAME.pdf``, each whole or not at all; returns the two paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / f"{name}.png", folder / f"{name}.pdf")
    for path, data in zip(paths, figure_bytes(figure), strict=True):
        write_atomic(path, data)
    return paths


def figure_of(drawn: Figure | Axes) -> Figure:
    """The figure that contains ``drawn``, which may be that figure itself."""
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    if isinstance(figure, SubFigure):
        figure = figure.figure
    if not isinstance(figure, Figure):
        raise NoData("these axes belong to no figure.")
    return figure
