"""A table as readers see it, in the forms in which it is pasted elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sharpscope.tables.formats import latex, markdown
from sharpscope.vocabulary import PrintedForm

__all__ = ["Printed"]


@dataclass(frozen=True)
class Printed:
    """``cells``: numbers as text, rounded. ``values``: the same rows unrounded, for csv, with as many columns as these
    need. ``numbers``: the columns of ``cells`` that are aligned to the right. ``notes``: what a reader has to know."""

    cells: pd.DataFrame
    values: pd.DataFrame
    numbers: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def text(self, form: PrintedForm = "text") -> str:
        """The table as plain text, GitHub's Markdown, LaTeX for the package booktabs, or csv with unrounded numbers."""
        if form == "csv":
            return self.values.to_csv(index=False).rstrip("\n")
        if form == "markdown":
            return "\n".join([markdown(self.cells, right=self.numbers), *self.notes])
        if form == "latex":
            table = latex(self.cells, right=self.numbers).rstrip("\n")
            return "\n".join([table, *(f"% {note}" for note in self.notes)])
        return "\n".join([self.cells.to_string(index=False), *self.notes])

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{note}</p>" for note in self.notes)
        return f"{self.cells.to_html(index=False)}{notes}"
