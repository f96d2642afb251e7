"""The parts of a report before it becomes HTML: sections of paragraphs, tables and figures, with all text escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pandas as pd

from sharpscope.errors import shown
from sharpscope.present.alphas import alpha_number
from sharpscope.present.style import short_layer, short_set
from sharpscope.tables.files import normalised
from sharpscope.tables.formats import is_missing, with_error
from sharpscope.tables.rows import groups_in, in_group_order, records, unique_in_order
from sharpscope.vocabulary import OOD_MEAN

__all__ = [
    "MOST_ROWS",
    "Block",
    "Cell",
    "Figure",
    "Grid",
    "LayerMap",
    "Line",
    "Section",
    "Source",
    "absent",
    "alpha_cell",
    "cell",
    "data_notes",
    "estimate_cell",
    "flat",
    "images_left_out",
    "images_of",
    "in_order",
    "layer_cell",
    "layer_names",
    "pairs_of",
    "status_cell",
]

MOST_ROWS: Final = 30
"""The most rows of a table that the report prints; the others are counted, and the CSV file has them."""


@dataclass(frozen=True)
class Cell:
    """The text of one cell, with its CSS class ``kind`` (good, bad, open, note, mono ...) and tooltip ``title``."""

    text: str
    kind: str = ""
    title: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: column heads, rows of cells, the numeric columns, and a note on the rows that were left out.

    ``source``: the file that has all rows.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    numeric: frozenset[int] = frozenset()
    more: str = ""
    source: str = ""

    @classmethod
    def of(
        cls,
        head: Sequence[str],
        rows: Iterable[Sequence[Cell | str]],
        caption: str = "",
        numeric: Iterable[int] = (),
        source: str = "",
        most: int = MOST_ROWS,
        total: int = 0,
    ) -> Grid:
        """A grid of the first ``most`` of ``total`` rows (default: those given); ``source`` is the file of the rest."""
        every = [tuple(c if isinstance(c, Cell) else cell(c) for c in row) for row in rows]
        left_out = max(total, len(every)) - min(most, len(every))
        more = f"{left_out} more in {source}" if left_out else ""
        return cls(tuple(head), tuple(every[:most]), caption, frozenset(numeric), more, source)


@dataclass(frozen=True)
class Line:
    """A sentence about one pair, and a remark in small print."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class LayerMap:
    """Every layer's value at every point of the path as JSON, which the page's script draws; a remark beside it."""

    data: str
    note: str = ""


Block = str | Line | Grid | LayerMap
"""A block under a heading: a paragraph, one line for a pair, a table, or the layer map."""


@dataclass(frozen=True)
class Figure:
    """A PNG and its caption; ``wide`` figures take a row of their own.

    ``name``: that of its files in ``figures/``. ``alt``: what it shows, for those who cannot see it, where the caption
    does not say it.
    """

    png: bytes
    caption: str
    wide: bool = True
    name: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with its paragraphs and tables, figures, and tables that are ``folded`` at first."""

    title: str
    anchor: str
    blocks: tuple[Block, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: tuple[Grid, ...] = field(default=())
    tables: tuple[str, ...] = ()
    """The tables behind its figures that no grid prints."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the tables whose rows it prints or draws."""
        grids = [*(b for b in self.blocks if isinstance(b, Grid)), *self.folded]
        found = (g.source.removeprefix("tables/").removesuffix(".csv") for g in grids if g.source.endswith(".csv"))
        return tuple(dict.fromkeys((*found, *self.tables)))


def cell(value: Any, kind: str = "", title: str = "") -> Cell:
    """Any value as a cell, with control characters escaped; a missing value becomes a dash."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return Cell("—", kind, title)
    return Cell(shown(value, 2000) or "—", kind, shown(title, 2000) if title else "")


def alpha_cell(alpha: float) -> Cell:
    """``alpha`` as a cell, such as 0, 0.5 or 1; NaN becomes a dash."""
    return cell(None if math.isnan(float(alpha)) else alpha_number(alpha))


def layer_cell(name: str) -> Cell:
    """A layer's short name, with the full name as tooltip."""
    return cell(short_layer(name), "name", title=name)


def layer_names(joined: str) -> str:
    """``visual.conv1+head`` -> ``conv1, head``; of more than eight names the first eight and the number of the rest."""
    most = 8
    names = [n for n in joined.replace(";", "+").split("+") if n]
    text = ", ".join(short_layer(n) for n in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")


_STATUS_KINDS = {"ok": "", "frozen": "note", "undefined": "open", "not_converged": "open", "failed": "bad"}


def status_cell(status: str, note: str = "") -> Cell:
    """A status (ok, not converged, failed ...) as a cell, with the reason as tooltip."""
    return cell(status.replace("_", " "), _STATUS_KINDS.get(status, ""), note)


def estimate_cell(row: Mapping[str, Any]) -> Cell:
    """An estimate of the sharpness table with its uncertainty, marked if it did not converge or the layer is frozen."""
    status = str(row["status"])
    if not _finite(row["estimate"]):
        return status_cell(status, str(row["note"]))
    own = row["stderr"] if _finite(row["stderr"]) else row["residual"]
    images: Any = row.get("stderr_images")
    error = images if _finite(images) else own
    text = with_error(float(row["estimate"]), float(error) if _finite(error) else math.nan)
    text += "" if _finite(images) or not _finite(own) else " ‡"
    if status == "frozen":  # the loss has a curvature in this layer even if it does not move
        return cell(text + " ▪", "", str(row["note"] or ""))
    if status == "not_converged":
        return cell(text + " °", "open", f"not converged: {row['note']}")
    return cell(text, _STATUS_KINDS.get(status, ""), str(row["note"] or ""))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def pairs_of(table: pd.DataFrame, order: Sequence[str]) -> list[str]:
    """The pairs of a table: those of ``order`` first, in that order."""
    present = list(dict.fromkeys(table["pair"]))
    return [p for p in order if p in present] + [p for p in present if p not in order]


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested plain data as lines (name, text), a nested name joined by " · "; a list of plain values is one line."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{prefix} · {key}" if prefix else str(key))
    elif isinstance(value, (list, tuple)):
        if any(isinstance(v, (Mapping, list, tuple)) for v in value):
            for i, item in enumerate(value):
                yield from flat(item, f"{prefix} {i + 1}")
        else:
            yield prefix, ", ".join(map(_in_words, value)) if value else "none"
    else:
        yield prefix, _in_words(value)


def _in_words(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Source:
    """The input of a report: tables, figures, manifest and timing."""

    tables: Mapping[str, pd.DataFrame]
    figures: Mapping[str, bytes]
    manifest: Mapping[str, Any]
    timing: Mapping[str, Any]
    read: dict[str, pd.DataFrame] = field(default_factory=dict, repr=False)

    def table(self, name: str) -> pd.DataFrame:
        """The table ``name``, or an empty table with its columns; groups of OOD sets are in the order of figures."""
        if name not in self.read:
            found = self.tables.get(name)
            self.read[name] = normalised(pd.DataFrame() if found is None or not len(found) else found, name)
            if name != "accuracy":
                self.read[name] = in_group_order(self.read[name], groups_in(self.table("accuracy")))
        return self.read[name]

    @property
    def config(self) -> Mapping[str, Any]:
        config = self.manifest.get("config")
        if not isinstance(config, Mapping):
            identity = self.manifest.get("identity")
            config = identity.get("config") if isinstance(identity, Mapping) else None
        return config if isinstance(config, Mapping) else {}

    @property
    def order(self) -> list[str]:
        """Pairs in the order of the config."""
        pairs = self.config.get("pairs")
        return [str(p.get("name")) for p in pairs if isinstance(p, Mapping)] if isinstance(pairs, (list, tuple)) else []

    def in_words(self, text: str) -> str:
        """A sentence in which sets that were averaged stand as ``a+b``, with their short names in a list instead."""
        table = self.table("accuracy")
        for joined in unique_in_order(table.loc[table["role"] == OOD_MEAN, "dataset"]):
            text = text.replace(joined, ", ".join(short_set(spec) for spec in joined.split("+")))
        return text

    def figure(self, name: str, caption: str, wide: bool = True, alt: str = "") -> list[Figure]:
        """The figure of that name, if there is one; ``alt``: what it shows, behind the caption."""
        told = f"{caption} {alt}" if alt else ""
        return [Figure(self.figures[name], caption, wide, name, told)] if name in self.figures else []


def data_notes(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What the manifest says of its data sets that a reader of the numbers has to know, each sentence once."""
    said = (f"{name}: {shown(text, 300)}." for name, told in _of_sets(manifest) for text in told.get("said") or ())
    return tuple(dict.fromkeys((*said, *images_left_out(manifest))))


def images_left_out(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The images of the data sets that could not be read, and the classes without an image, each sentence once."""
    said = []
    for name, told in _of_sets(manifest):
        if count := told.get("skipped"):
            some = _first([shown(file, 60) for file in told.get("skipped_names") or ()], count)
            said.append(f"{name}: {count} image{'s' * (count != 1)} could not be read and were left out{some}.")
        if bare := told.get("without_images"):
            some = _first([f"'{shown(c, 40)}'" for c in bare], len(bare))
            said.append(f"{name}: {len(bare)} class{'es' * (len(bare) != 1)} without a readable image{some}.")
    return tuple(dict.fromkeys(said))


def _first(names: Sequence[str], total: int) -> str:
    """The first three names in brackets, with the number of the others."""
    told = names[:3]
    more = f" and {total - len(told)} more" if total > len(told) else ""
    return f" ({', '.join(told)}{more})" if told else ""


def _of_sets(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, what is known of it) of every data set of every pair."""
    data = manifest.get("data")
    pairs = [sets for sets in data.values() if isinstance(sets, Mapping)] if isinstance(data, Mapping) else []
    return ((shown(name), told) for sets in pairs for name, told in sets.items() if isinstance(told, Mapping))


def images_of(table: pd.DataFrame) -> str:
    """``48 probe images``, or the several numbers of them that the rows were measured on."""
    counts = sorted({int(n) for n in table["n"] if not is_missing(n)}) if "n" in table.columns else []
    return f"{' or '.join(str(n) for n in counts)} probe images" if counts else "an unknown number of probe images"


def absent(what: str) -> str:
    return f"This run has no {what}: the table is empty or missing."


def in_order(table: pd.DataFrame, order: Sequence[str]) -> list[dict[str, Any]]:
    """The rows sorted by pair in the config's order, otherwise in the order of the table."""
    place = {p: i for i, p in enumerate(pairs_of(table, order))}
    return sorted(records(table), key=lambda r: place[r["pair"]])
