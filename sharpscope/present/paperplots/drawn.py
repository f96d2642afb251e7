"""A figure with its caption, and the errors and choices that all figures of papers share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, ParamSpec

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sharpscope.atomic import write_atomic
from sharpscope.errors import NoData, did_you_mean, shown
from sharpscope.present.canvas import as_html, save
from sharpscope.present.style import INK, look_at, pair_looks, styled

__all__ = [
    "ENDS",
    "MADE_BY",
    "Drawn",
    "among",
    "lacks",
    "look",
    "pair_lines",
    "paper_figure",
    "range_of",
    "save_drawn",
]

P = ParamSpec("P")

MADE_BY: Final[dict[str, str]] = {
    "accuracy": "sharpscope run",
    "path": "sharpscope run",
    "sharpness": "sharpscope run --measures hessian_trace ...",
    "stragglers": "sharpscope run",
    "repair": "sharpscope run --densities 0.5",
    "correlations": "sharpscope run",
    "residuals": "sharpscope run",
    "agreement": "sharpscope run --agreement",
    "vrf": "sharpscope run --output-baselines vrf",
    "density": "sharpscope run --density-layers LAYER ...",
    "ensembles": "sharpscope run --ensembles logits probabilities",
    "few_shot": "sharpscope protocol few-shot",
    "upgrade": "sharpscope protocol upgrade",
    "upgraded": "sharpscope run --upgraded FILE",
    "changes": "sharpscope inspect A B --granularity tensor --out FILE",
    "slice": "sharpscope.loss_slice",
}
"""Table -> the command that makes it."""

ENDS: Final = (
    Line2D([], [], color=INK["black"], marker="*", ls="none", markersize=8, label="zero-shot (α = 0)"),
    Line2D([], [], color=INK["grey"], marker="s", ls="none", markersize=5, label="fine-tuned (α = 1)"),
)
"""The legend entries that explain the marks at the two ends of a path."""


@dataclass(frozen=True)
class Drawn:
    """A figure and the text for below it, which says how many models and images its marks stand for."""

    figure: Figure
    caption: str

    def _repr_html_(self) -> str:
        return as_html(self.figure, self.caption)


def paper_figure(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Decorator: draw in the common style (``style.styled``) and finish the caption as one paragraph."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        made: list[Drawn] = []

        def figure(*args: P.args, **kwargs: P.kwargs) -> Figure:
            made.append(draw(*args, **kwargs))
            return made[0].figure

        styled(figure)(*args, **kwargs)
        return Drawn(made[0].figure, " ".join(made[0].caption.split()))

    return wrapper


def save_drawn(drawn: Drawn, out: str | os.PathLike[str], name: str) -> tuple[Path, ...]:
    """Write ``OUT/NAME.png``, ``OUT/NAME.pdf`` and the caption ``OUT/NAME.txt``; returns the paths."""
    text = Path(out) / f"{name}.txt"
    files = save(drawn.figure, out, name)
    write_atomic(text, (drawn.caption + "\n").encode("utf-8"))
    return (*files, text)


def lacks(figure: str, table: str, what: str = "has no rows") -> NoData:
    """The error for a ``table`` that lacks what ``figure`` shows, with the command that makes the table."""
    return NoData(f"{figure}: the table {table} {what}; '{MADE_BY[table]}' makes it.")


def among(wanted: str, known: Iterable[str], kind: str) -> str:
    """``wanted`` if the table knows it; raises NoData that names the option ``kind`` and lists what there is."""
    names = list(dict.fromkeys(known))
    if wanted in names:
        return wanted
    listed = ", ".join(shown(n, 60) for n in names[:12]) or "none"
    raise NoData(f"{kind}: the table has no '{shown(wanted, 60)}'.{did_you_mean(wanted, names)} Known: {listed}.")


def look(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th method, variant or the like; pairs have those of ``pair_lines``."""
    return look_at(i).line


def pair_lines(
    pairs: Iterable[str], order: Sequence[str], lines: bool = True
) -> tuple[dict[str, dict[str, Any]], list[Line2D]]:
    """Colour and marker of every pair (``style.pair_looks``), and the legend's entries."""
    looks, entries = pair_looks(pairs, order)
    for entry in entries:
        entry.set(linewidth=1.4, markersize=4, alpha=1.0, linestyle="-" if lines else "none")
    return {pair: look.line for pair, look in looks.items()}, entries


def range_of(low: float, high: float) -> str:
    """``5`` or ``2 to 5``."""
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
