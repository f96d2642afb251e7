"""A kind of figure: a function that draws, where its tables come from, its options, and the name of its files."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sharpscope.present.paperplots.drawn import Drawn
from sharpscope.present.sources import Tables

__all__ = ["Drawing", "FigureKind", "Option", "needs"]

Drawing = Axes | Figure | Drawn
"""What a function of ``sharpscope.plot`` returns."""
Read = Callable[..., Mapping[str, Any]]
"""A function of ``Tables``, and of options of its own, that returns arguments of a function that draws."""

_ORDER: Final = "pair_order"
"""The parameter of a function that colours pairs: the order of the run, which the tables know."""


@dataclass(frozen=True)
class Option:
    """A choice that a figure offers; its default stands in the function that draws, and nowhere else."""

    name: str
    kind: Any
    """The type of the option."""
    default: Any
    help: str


@dataclass(frozen=True)
class FigureKind:
    """A figure that is drawn from the tables of runs."""

    name: str
    plot: Callable[..., Drawing]
    """The function that draws. Its parameters that are no tables, nor the order of pairs, are options."""
    read: Read
    """What makes the other arguments; its keyword-only parameters are options of the figure too."""
    file: Callable[[Mapping[str, Any]], str] | None = None
    """A function from all options to the name of the files; None: the files are called ``name``."""
    each: Callable[[Tables], Sequence[Mapping[str, Any]]] = lambda tables: ({},)
    """The options of every figure of this kind that is drawn by default."""

    def options(self) -> dict[str, Option]:
        """The options by name."""
        reading = {p.name: p for p in inspect.signature(self.read).parameters.values() if p.kind is p.KEYWORD_ONLY}
        drawing = {p.name: p for p in inspect.signature(self.plot).parameters.values()}
        kinds = {**typing.get_type_hints(self.plot), **typing.get_type_hints(self.read)}
        told = {**_arguments(self.plot.__doc__), **_arguments(self.read.__doc__)}
        return {
            name: Option(name, kinds[name], p.default, told.get(name, ""))
            for name, p in {**drawing, **reading}.items()
            if name in reading or not (name == _ORDER or _is_data(kinds[name]))
        }

    def draw(self, tables: Tables, **options: Any) -> Drawing:
        """The figure; raises NoData where ``tables`` lack what it shows."""
        reading = inspect.signature(self.read).parameters
        arguments = dict(self.read(tables, **{k: v for k, v in options.items() if k in reading}))
        if _ORDER in inspect.signature(self.plot).parameters:
            arguments[_ORDER] = tables.pairs
        return self.plot(**arguments, **{k: v for k, v in options.items() if k not in reading})

    def file_name(self, options: Mapping[str, Any]) -> str:
        """The name of the files; an option that is not given has its default."""
        if self.file is None:
            return self.name
        return self.file({**{name: o.default for name, o in self.options().items()}, **options})

    def drawings(self, tables: Tables) -> dict[str, Callable[[], Drawing]]:
        """Name of the files -> what draws them, of every figure of this kind; drawing raises NoData."""
        return {self.file_name(options): self._drawing(tables, options) for options in self.each(tables)}

    def _drawing(self, tables: Tables, options: Mapping[str, Any]) -> Callable[[], Drawing]:
        return lambda: self.draw(tables, **options)


def needs(*names: str, optional: Sequence[str] = (), **renamed: str) -> Read:
    """A reader of tables by the names of the parameters; ``renamed`` are parameters of another name than the table."""

    def read(tables: Tables) -> dict[str, Any]:
        wanted = {name: name for name in names} | renamed
        return {
            **{parameter: tables.needed(name) for parameter, name in wanted.items()},
            **{name: tables.found(name) for name in optional},
        }

    return read


def _is_data(kind: Any) -> bool:
    """Whether a parameter of this type is a table or what a figure is drawn into."""
    inside = [kind, *typing.get_args(kind)]
    return any(k in (pd.DataFrame, Axes) or typing.get_origin(k) is Mapping for k in inside)


def _arguments(text: str | None) -> dict[str, str]:
    """Parameter -> what the section Args of a docstring says of it."""
    section = re.search(r"^Args:\n((?: +.*\n|\n(?=    ))+)", inspect.cleandoc(text or "") + "\n", re.MULTILINE)
    out: dict[str, str] = {}
    for entry in re.finditer(r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", section[1] if section else "", re.MULTILINE):
        out |= dict.fromkeys(re.split(r", *", entry[1]), " ".join(entry[2].split()))
    return out
