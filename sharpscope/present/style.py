"""The common look of all figures: colours for the colour-blind, and short names."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import matplotlib
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sharpscope.errors import shown
from sharpscope.present.canvas import ShownAxes, ShownFigure, figure_of
from sharpscope.tables.rows import unique_in_order, with_plain_layers
from sharpscope.vocabulary import GROUP_TITLES

__all__ = [
    "COLOURS",
    "INK",
    "MARKERS",
    "MOST_PAIRS",
    "SET_COLOURS",
    "STYLE",
    "WIDTH",
    "Look",
    "first_pairs",
    "key",
    "label",
    "new_figure",
    "one_panel",
    "pair_looks",
    "place_labels",
    "plain_log",
    "short_layer",
    "short_set",
    "styled",
    "title_of",
]

P = ParamSpec("P")
R = TypeVar("R", Axes, Figure)

MOST_PAIRS: Final = 6
"""The most pairs that a figure with one panel per pair shows; the table has the others."""

WIDTH: Final = 5.5
"""Width of every figure in inches: the text width of a NeurIPS, ICML-appendix or ICLR page."""

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of pairs: Okabe and Ito's palette, which stays distinct under all common kinds of colour blindness."""

SET_COLOURS: Final = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499",
)  # fmt: skip
"""The colours of data sets: Paul Tol's muted palette."""

_LABEL_SIZE: Final = 6.0
"""The size in points of texts next to marks."""
_LONGEST_LAYER: Final = 26
"""The most characters of a layer's name in figures; longer names are cut in the middle."""

MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")
INK: Final = {"black": "#1a1a1a", "grey": "#666666", "light": "#d9d9d9", "bad": "#D55E00"}

STYLE: Final[dict[Any, Any]] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "grid.color": "#ececec",
    "grid.linewidth": 0.5,
}
"""Values for every setting that the reader's own style leaves at matplotlib's default."""


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorator: draw with STYLE in place of matplotlib's defaults; the reader's own settings take precedence."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        ours = {k: v for k, v in STYLE.items() if matplotlib.rcParams[k] == matplotlib.rcParamsDefault[k]}
        with matplotlib.rc_context(ours):
            drawn = draw(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})
            for ax in figure_of(drawn).axes:  # ticks take the settings of the moment they are made: make them now
                ax.xaxis.get_major_ticks(), ax.yaxis.get_major_ticks()
            return drawn

    return wrapper


def _plain(value: Any) -> Any:
    return with_plain_layers(value) if isinstance(value, pd.DataFrame) else value


def first_pairs(df: pd.DataFrame) -> tuple[list[str], str]:
    """The pairs that a figure with one panel per pair shows, and a note on the number of the others."""
    every = unique_in_order(df["pair"])
    rest = len(every) - MOST_PAIRS
    return every[:MOST_PAIRS], f"{rest} more pairs in the table" if rest > 0 else ""


@dataclass(frozen=True)
class Look:
    """How one pair is drawn."""

    colour: str
    marker: str
    width: float = 1.4
    """Width of lines in points."""
    size: float = 2.8
    """Size of the marks on a line in points."""
    opacity: float = 1.0


def pair_looks(pairs: Sequence[str]) -> tuple[dict[str, Look], list[Line2D]]:
    """The look of every pair, and the legend's entries.

    As many pairs as there are colours have one each, and a name in the legend. More pairs than that cannot be told
    apart by a legend: all of them have one thin look, and one entry says how many they are.
    """
    if len(pairs) > len(COLOURS):
        one = Look(COLOURS[0], MARKERS[0], width=0.7, size=1.6, opacity=0.55)
        return dict.fromkeys(pairs, one), [_entry(one, f"each of {len(pairs)} pairs")]
    looks = {pair: Look(*both) for pair, both in zip(pairs, zip(COLOURS, MARKERS, strict=True), strict=False)}
    return looks, [_entry(look, label(pair, 22)) for pair, look in looks.items()]


def _entry(look: Look, text: str) -> Line2D:
    return Line2D(
        [], [], color=look.colour, marker=look.marker, lw=look.width, markersize=look.size + 0.7, alpha=look.opacity,
        label=text,
    )  # fmt: skip


def title_of(name: str, remark: str, room: int) -> str:
    """``name`` and ``remark`` on one line of ``room`` characters, or each on its own."""
    if len(name) + len(remark) < room:
        return f"{label(name)} {remark}".strip()
    return f"{label(name, room)}\n{remark}".strip()


def key(figure: Figure, handles: Sequence[Artist], *notes: str) -> None:
    """A legend below all panels, in as many columns as fit; ``notes`` are entries without a mark."""
    entries = [*handles, *(Line2D([], [], ls="none", label=note) for note in notes if note)]
    if entries:
        letter = float(matplotlib.rcParams["font.size"]) * 0.88 * 0.58 / 72  # inches, about
        widths = [0.5 + letter * len(str(h.get_label())) for h in entries]
        room = figure.get_figwidth() - 0.1
        columns = next((n for n in range(len(entries), 1, -1) if _columns_width(widths, n) <= room), 1)
        place: dict[str, Any] = {"loc": "outside lower center", "columnspacing": 1.2, "handlelength": 1.6}
        figure.legend(handles=entries, ncols=columns, **place)


def _columns_width(widths: Sequence[float], columns: int) -> float:
    """Width of a legend that fills its columns one after the other; the first columns may be one entry longer."""
    rows, longer = divmod(len(widths), columns)
    total, start = 0.0, 0
    for column in range(columns):
        end = start + rows + (column < longer)
        total, start = total + max(widths[start:end]), end
    return total


def plain_log(axis: Axis, most: int = 7) -> None:
    """Few ticks on a logarithmic axis, as plain numbers (1000, 0.02) where those are short."""
    low, high = sorted(abs(v) or 1e-300 for v in axis.get_view_interval())
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=most))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_number(value)))


def _plain_number(value: float) -> str:
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:g}"
    digits, power = f"{value:.0e}".split("e")
    return f"{digits}e{int(power)}"


def new_figure(height: float) -> Figure:
    """An empty figure of ``height`` inches outside pyplot's state; its layout leaves room for the axes' labels."""
    return ShownFigure(
        figsize=(WIDTH, height),
        layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.04, wspace=0.02, hspace=0.02),
        facecolor="white",
    )


def one_panel(height: float) -> Axes:
    """The only axes of a new figure of ``height`` inches."""
    return new_figure(height).add_subplot(axes_class=ShownAxes)


# ------------------------------------------------------------------------------------------------------- names as text
@functools.cache
def _glyphs() -> frozenset[int]:
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return frozenset(FT2Font(path).get_charmap())


def label(text: object, limit: int = 60) -> str:
    """``text`` such that matplotlib shows it literally: no mathematics, no hidden legend entry, no missing glyph."""
    clean = "".join(c if ord(c) in _glyphs() else "□" for c in shown(text, limit)).replace("$", r"\$")
    return " " + clean if clean.startswith("_") else clean


def short_layer(name: str) -> str:
    """A layer's name as figures write it: towers and containers dropped, blocks numbered, long names cut in the middle.

    >>> short_layer("visual.transformer.resblocks.3.mlp"), short_layer("transformer.resblocks.0.attn")
    ('block 3 mlp', 'text block 0 attn')
    >>> short_layer("visual.layer2.1.conv1"), short_layer("(all)")
    ('layer2.1 conv1', 'whole model')
    """
    if name in GROUP_TITLES:
        return GROUP_TITLES[name]
    text = shown(name, 400)
    tower = ""
    if text.startswith("visual."):
        text = text.removeprefix("visual.").removeprefix("trunk.")
    elif re.match(r"(text\.|transformer\.|token_embedding|positional_embedding|ln_final|text_projection)", text):
        text, tower = text.removeprefix("text."), "text "
    text = re.sub(r"(?:transformer\.)?(?:resblocks|blocks|layers)\.(\d+)", r"block \1", text)
    text = re.sub(r"stages\.(\d+)", r"stage \1", text)
    text = re.sub(r"\.(?!\d)", " ", text)
    text = tower + text.removeprefix("text_" if tower else "")
    half = _LONGEST_LAYER // 2
    return text if len(text) <= _LONGEST_LAYER else f"{text[: half - 1]}…{text[-(_LONGEST_LAYER - half) :]}"


def short_set(spec: str) -> str:
    """A data set spec as legends write it: ``mini:photo-dark`` -> ``photo-dark``, ``folder:/data/in-a`` -> ``in-a``."""
    tail = re.split(r"[:/\\]", spec.rstrip("/\\"))[-1]
    return label(tail or spec, 24)


def place_labels(
    ax: Axes,
    at: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    avoid: Sequence[tuple[float, float]] = (),
    *,
    laid_out: bool = False,
) -> None:
    """Write ``texts`` next to the points ``at`` where they cover nothing; a text without a free place is left out.

    Points are in data units. The limits of the axes must be final. ``laid_out``: the figure's layout is final too, as
    after ``draw_without_rendering``, which takes a time that grows with the number of panels.
    """
    figure = figure_of(ax)
    if not laid_out:
        figure.draw_without_rendering()  # the layout determines the positions of points
    unit = figure.dpi / 72.0
    frame = ax.get_window_extent()
    place = ax.transData.transform
    blocked = [(x - 2 * unit, y - 2 * unit, x + 2 * unit, y + 2 * unit) for x, y in (place(p) for p in [*at, *avoid])]
    for point, text, colour in zip(at, texts, colours, strict=True):
        x, y = place(point)
        wide, high = 0.62 * _LABEL_SIZE * len(text) * unit, 1.1 * _LABEL_SIZE * unit
        for distance in (4.0, 7.0, 11.0):
            gap = distance * unit
            spots = [
                (sx * (gap + (wide / 2 if sx else 0)), sy * (gap + (high / 2 if sy else 0)))
                for sx, sy in ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
            ]
            free = next(
                (s for s in spots if _is_free((x + s[0], y + s[1]), (wide, high), frame.extents, blocked)), None
            )
            if free is None:
                continue
            cx, cy = x + free[0], y + free[1]
            blocked.append((cx - wide / 2, cy - high / 2, cx + wide / 2, cy + high / 2))
            style: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": _LABEL_SIZE,
                "color": colour,
                "annotation_clip": False,
            }
            ax.annotate(text, point, (free[0] / unit, free[1] / unit), textcoords="offset points", **style)
            break


def _is_free(
    centre: tuple[float, float], box: tuple[float, float], frame: Sequence[float], blocked: Sequence[tuple[float, ...]]
) -> bool:
    left, right = centre[0] - box[0] / 2, centre[0] + box[0] / 2
    low, high = centre[1] - box[1] / 2, centre[1] + box[1] / 2
    if left < frame[0] or right > frame[2] or low < frame[1] or high > frame[3]:
        return False
    return not any(left < b[2] and right > b[0] and low < b[3] and high > b[1] for b in blocked)
