"""What a figure is drawn from: tables by name, each read when a figure asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from sharpscope.errors import NoData
from sharpscope.present.paperplots.drawn import MADE_BY
from sharpscope.tables.rows import groups_in, in_group_order, with_plain_layers

__all__ = ["Tables", "not_made"]


def not_made(where: str, name: str, what: str) -> NoData:
    """The error for a table that is not there or empty, with the command that makes it."""
    made = f"; '{MADE_BY[name]}' makes this table" if name in MADE_BY else ""
    return NoData(f"{where}: {what}{made}.")


@dataclass(frozen=True)
class Tables:
    """The tables of one or several runs, and what figures have to know besides."""

    read: Callable[[str], pd.DataFrame]
    """The table of a name; raises NoData for one that is not there or has no rows."""
    criterion: str | None = None
    """The straggler criterion that decides, shown first."""
    pairs: Sequence[str] = ()
    """The order in which pairs are drawn; empty: that of the tables."""
    alone: bool = True
    """Whether all tables are of one run."""
    images: Mapping[str, int] = field(default_factory=dict)
    """Pair -> the number of training images per class, where that is told."""

    @classmethod
    def given(
        cls, tables: Mapping[str, pd.DataFrame], criterion: str | None = None, pairs: Sequence[str] = ()
    ) -> Tables:
        """The tables of a dictionary, by the names of the schema."""

        def read(name: str) -> pd.DataFrame:
            table = tables.get(name, pd.DataFrame())
            if not len(table):
                raise not_made(f"the table {name}", name, "has no rows")
            return with_plain_layers(table)

        return cls(read, criterion, pairs)

    def needed(self, name: str) -> pd.DataFrame:
        """The table ``name`` in the order of the pairs; raises NoData where it is not there or has no rows."""
        return self._in_order(name)

    def found(self, name: str) -> pd.DataFrame | None:
        """The table ``name``, or None where it is not there or has no rows."""
        try:
            return self._in_order(name)
        except NoData:
            return None

    def _groups(self) -> list[str]:
        """The groups of OOD sets in the order of the accuracies, so that all figures have one order."""
        try:
            return groups_in(self.read("accuracy"))
        except NoData:
            return []

    def _in_order(self, name: str) -> pd.DataFrame:
        table = self.read(name)
        if name != "accuracy" and "group" in table and table["group"].nunique() > 1:
            table = in_group_order(table, self._groups())
        if not self.pairs or "pair" not in table:
            return table
        place = {pair: i for i, pair in enumerate(self.pairs)}
        return table.sort_values("pair", key=lambda s: s.map(lambda p: place.get(p, len(place))), kind="stable")
