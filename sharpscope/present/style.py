"""The common look of all figures: colours for the colour-blind, and short names."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
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
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from sharpscope.errors import shown
from sharpscope.present.canvas import ShownAxes, ShownFigure, figure_of
from sharpscope.tables.rows import unique_in_order, with_plain_layers
from sharpscope.vocabulary import GROUP_TITLES

__all__ = [
    "COLOURS",
    "INK",
    "MARKERS",
    "MOST_PAIRS",
    "OUTPUT_MARKS",
    "PAIR_COLOURS",
    "PAIR_MARKS",
    "SET_COLOURS",
    "SOURCES",
    "STYLE",
    "WIDTH",
    "Look",
    "file_word",
    "first_pairs",
    "key",
    "label",
    "look_at",
    "new_figure",
    "one_panel",
    "pair_looks",
    "places_of",
    "plain_log",
    "short_layer",
    "short_set",
    "signed_ticks",
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
"""The first colours: Okabe and Ito's palette, which stays distinct under all common kinds of colour blindness."""

SET_COLOURS: Final = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499",
)  # fmt: skip
"""The colours of data sets: Paul Tol's muted palette."""

_LONGEST_LAYER: Final = 26
"""The most characters of a layer's name in figures; longer names are cut in the middle."""

MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")
PAIR_COLOURS: Final = (*COLOURS, *SET_COLOURS)
"""The colours of pairs in the order of the run, and of other things that one figure tells apart."""
PAIR_MARKS: Final = tuple(mark for mark in MARKERS if mark != "s")
"""The marks of pairs and of paths, in their order; a square is the fine-tuned end of a path, and a star the other."""
OUTPUT_MARKS: Final = ("<", ">")
"""The marks of baselines that mix outputs, in the order of ``vocabulary.OUTPUT_BASELINES``: none is that of a pair."""
SOURCES: Final = {"shipped": "shipped with the embedded world", "run": "this run"}
"""The pairs of a table's column ``source``, as legends and captions call them."""
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

    @property
    def line(self) -> dict[str, Any]:
        """Colour and marker, for a line whose width the figure chooses."""
        return {"color": self.colour, "marker": self.marker}


def look_at(place: int) -> Look:
    """The look of the first, second ... of several things; the first 16 have colours of their own."""
    return Look(PAIR_COLOURS[place % len(PAIR_COLOURS)], PAIR_MARKS[place % len(PAIR_MARKS)])


_CROWD: Final = Look(INK["grey"], MARKERS[0])
"""The look of pairs that no colour is left for."""


def places_of(pairs: Iterable[str], order: Sequence[str] = ()) -> dict[str, int]:
    """Pair -> its place in ``order``, the run's; other pairs follow by name. The first comes first."""
    shown = set(pairs)
    every = unique_in_order([*order, *sorted(shown - set(order))])
    return {pair: place for place, pair in enumerate(every) if pair in shown}


def pair_looks(pairs: Iterable[str], order: Sequence[str] = ()) -> tuple[dict[str, Look], list[Line2D]]:
    """The look of every pair that is drawn, and the legend's entries, both in the order of ``places_of``.

    A pair's colour and marker follow from its place in ``order`` alone, the run's order of pairs, so that it has the
    same in every figure and in every part of the tables; where no order is known, from its place by name. Where the
    order has more pairs than there are colours, they cannot be told apart, and all have one look. So have pairs beyond
    the order that no colour is left for. One entry of the legend, the last one, says how many they are. Lines of more
    pairs than ``COLOURS`` are thin.
    """
    places = places_of(pairs, order)
    told = len(order or places) <= len(PAIR_COLOURS)
    chosen = {p: look_at(i) if told and i < len(PAIR_COLOURS) else _CROWD for p, i in places.items()}
    thin = len(places) > len(COLOURS)
    looks = {pair: _thinned(look) if thin else look for pair, look in chosen.items()}
    entries = [_entry(look, label(pair, 22)) for pair, look in looks.items() if chosen[pair] != _CROWD]
    if crowd := [pair for pair in looks if chosen[pair] == _CROWD]:
        text = f"each of {len(crowd)} {'other ' if entries else ''}pairs" if len(crowd) > 1 else label(crowd[0], 22)
        entries.append(_entry(_thinned(_CROWD), text))
    return looks, entries


def _thinned(look: Look) -> Look:
    return dataclasses.replace(look, width=0.7, size=1.6, opacity=0.8)


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


def signed_ticks(axis: Axis, threshold: float) -> None:
    """Few ticks on an axis that is logarithmic beyond +- ``threshold`` and linear between, as plain numbers."""
    low, high = sorted(axis.get_view_interval())
    ticks = [0.0]
    for sign, end in ((1.0, high), (-1.0, -low)):
        decades = int(math.log10(end / threshold) + 1e-9) if end >= threshold else -1
        step = max(1, math.ceil((decades + 1) / 3))
        ticks += [sign * threshold * 10.0**k for k in range(decades, -1, -step)]
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_number(value).replace("-", "−")))


def _plain_number(value: float) -> str:
    if not value or 1e-3 <= abs(value) < 1e5:
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


def file_word(text: str) -> str:
    """``text`` as a part of a file's name; where that changes it, with six digits of its hash, so that no two names of
    groups give one file.

    >>> file_word("natural-shifts"), file_word("a/b")
    ('natural-shifts', 'a_b-c14cdd')
    """
    word = re.sub(r"[^\w-]", "_", text, flags=re.ASCII)[:60]
    return word if word == text else f"{word}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def short_set(spec: str) -> str:
    """A data set spec as legends write it: ``mini:photo-dark`` -> ``photo-dark``, ``folder:/data/in-a`` -> ``in-a``."""
    tail = re.split(r"[:/\\]", spec.rstrip("/\\"))[-1]
    return label(tail or spec, 24)
