"""Accuracies as papers print them: one row per point of a path, one column per data set, and their averages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.findings.frames import alpha_index
from sharpscope.tables.formats import MISSING, percent
from sharpscope.tables.printed import Printed
from sharpscope.tables.rows import MIDDLE, primary_rows, unique_in_order
from sharpscope.vocabulary import ALPHA_SIDES, DENSE, AlphaSide, PaperStyle, PrintedForm, weight_on

__all__ = ["AVERAGE", "AVERAGE_ALL", "Member", "PaperTable", "paper_table"]

AVERAGE: Final = "Avg shifts"
"""The column with the mean over the OOD sets."""
AVERAGE_ALL: Final = "Avg ref., shifts"
"""The column with the mean of two numbers: the mean over the ID sets and ``AVERAGE``."""

_OPTIMUM: Final = "The optimum is chosen for each column separately, on the test sets themselves."
Cells = dict[str, float]


@dataclass(frozen=True)
class Member:
    """One measured path: the accuracy rows of one pair of one source. Members of one ``name`` are seeds of it."""

    name: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class PaperTable:
    """A table of accuracies in percent, as papers print them.

    ``mean``: columns model, point, then one per data set and the averages, NaN where a number is missing. ``sd``: the
    standard deviations over seeds, of the same shape, NaN where there is one seed. ``seeds``: model -> number of seeds.
    ``notes``: what a reader of the table has to know. Source: Wortsman et al. 2022 (arXiv 2109.01903), Tables 1 to 5.
    """

    mean: pd.DataFrame
    sd: pd.DataFrame
    seeds: Mapping[str, int]
    notes: tuple[str, ...]

    def text(self, form: PrintedForm = "text", digits: int = 1) -> str:
        """The table in the form text, markdown, latex or csv, with ``digits`` decimals; csv is not rounded."""
        return self._printed(digits).text(form)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self._printed(1)._repr_html_()

    def _printed(self, digits: int) -> Printed:
        cells = self._cells(digits)
        return Printed(cells, self._wide(), tuple(cells.columns[2:]), self.notes)

    def _cells(self, digits: int) -> pd.DataFrame:
        out = self.mean.iloc[:, :2].copy()
        for column in self.mean.columns[2:]:
            pairs = zip(self.mean[column], self.sd[column], strict=True)
            out[column] = [_number(m, digits) + (f" ± {_number(s, digits)}" if s == s else "") for m, s in pairs]
        return out

    def _wide(self) -> pd.DataFrame:
        """Means, beside each a column with its standard deviation where there are several seeds."""
        out = self.mean.iloc[:, :2].copy()
        for column in self.mean.columns[2:]:
            out[column] = self.mean[column]
            if self.sd[column].notna().any():
                out[f"{column} sd"] = self.sd[column]
        return out


def paper_table(
    members: Sequence[Member],
    style: PaperStyle = "wise-ft",
    variants: Sequence[str] = (DENSE,),
    datasets: Sequence[str] = (),
    alpha_on: AlphaSide = "finetuned",
) -> PaperTable:
    """Accuracy in percent of every model at the points of its path, with the averages that WiSE-FT's tables print.

    ``Avg shifts`` is the mean over the OOD sets, and ``Avg ref., shifts`` is (mean over the ID sets + Avg shifts) / 2.
    The optimum of a column is its largest value over the alphas of the table; the averages have optima of their own.

    Args:
        members: the measured paths. Each number is the mean over the members of one name, with their standard
            deviation (n - 1). The optimum is taken for each member before the mean.
        style: wise-ft (zero-shot, fine-tuned, alpha 0.5, the optimum, and the optimum minus alpha 0.5) or alphas (every
            alpha, and the optimum).
        variants: variants of the accuracy table. One that is not on a path (ose, vrf) has a single row.
        datasets: the data sets to print and to average over, in this order; default: all, ID sets first.
        alpha_on: the model whose weight is printed as alpha. The rows are in the order of that weight.

    Raises:
        ConfigError: no member, or a variant or data set that no member has.

    Source: Wortsman et al. 2022 (arXiv 2109.01903), Tables 1, 3, 4, 5.
    """
    if not members:
        raise ConfigError("table: there is no accuracy to print.")
    names = unique_in_order(m.name for m in members)
    ids, shifts = _sets(members, datasets)
    columns = [*ids, *shifts, *([AVERAGE] if shifts else []), *([AVERAGE_ALL] if ids and shifts else [])]
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for name in names:
        own = [m for m in members if m.name == name]
        for variant in _known(variants, members):
            paths = [_Path.of(m, variant, ids, shifts) for m in own]
            if any(path.grid for path in paths):
                rows += _lines(name, variant, paths, columns, style, alpha_on)
    mean, sd = (pd.DataFrame([row[k] for row in rows], columns=["model", "point", *columns]) for k in (0, 1))
    seeds = {name: sum(m.name == name for m in members) for name in names}
    several = sorted({n for n in seeds.values() if n > 1})
    notes = [f"{ALPHA_SIDES[alpha_on].text} ({ALPHA_SIDES[alpha_on].source}).", _OPTIMUM]
    if several:
        notes.append(f"± is the standard deviation over {' or '.join(map(str, several))} seeds.")
    return PaperTable(mean, sd, seeds, tuple(notes))


def _known(variants: Sequence[str], members: Sequence[Member]) -> list[str]:
    """``variants`` without repeats, each of which at least one member has."""
    known = unique_in_order(v for m in members for v in m.rows["variant"])
    return [_among(variant, known, "variant") for variant in dict.fromkeys(variants)]


def _sets(members: Sequence[Member], wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """(ID sets, OOD sets): ``wanted`` in this order, or those of all members in the order of the tables."""
    pairs = unique_in_order((d, r) for m in members for d, r in zip(m.rows["dataset"], m.rows["role"], strict=True))
    roles = {d: r for d, r in pairs if r in ("id", "ood")}
    names = [_among(d, list(roles), "dataset") for d in dict.fromkeys(wanted)] or list(roles)
    return [d for d in names if roles[d] == "id"], [d for d in names if roles[d] == "ood"]


def _among(name: str, known: Sequence[str], what: str) -> str:
    if name not in known:
        near = did_you_mean(name, known) or f" Known: {', '.join(shown(k, 60) for k in known[:8])}."
        raise ConfigError(f"{what}s: the accuracies have no {what} '{shown(name, 60)}'.{near}")
    return name


@dataclass(frozen=True)
class _Path:
    """The accuracies in percent of one member at every alpha: {alpha: {column: value}}; alpha is NaN off a path."""

    grid: dict[float, Cells]

    @classmethod
    def of(cls, member: Member, variant: str, ids: Sequence[str], shifts: Sequence[str]) -> _Path:
        rows = primary_rows(member.rows[member.rows["variant"] == variant])
        rows = rows[rows["role"].isin(("id", "ood"))]
        grid: dict[float, Cells] = {}
        for alpha in sorted(rows["alpha"].unique()):
            here = rows[rows["alpha"].isna()] if math.isnan(alpha) else rows[rows["alpha"] == alpha]
            cells = {str(d): 100 * float(v) for d, v in zip(here["dataset"], here["estimate"], strict=True)}
            grid[float(alpha)] = cells | _averages(cells, ids, shifts)
        return cls(grid)

    @property
    def alphas(self) -> list[float]:
        return list(self.grid)

    def at(self, alpha: float) -> Cells:
        """The accuracies at ``alpha``; empty where the path has no such point."""
        if math.isnan(alpha):
            return next((cells for a, cells in self.grid.items() if math.isnan(a)), {})
        place = alpha_index(self.alphas, alpha)
        return {} if place is None else self.grid[self.alphas[place]]

    def optimum(self) -> Cells:
        """The largest value of every column over all alphas."""
        columns = unique_in_order(c for cells in self.grid.values() for c in cells)
        values = {c: [v for cells in self.grid.values() if (v := cells.get(c, math.nan)) == v] for c in columns}
        return {c: max(v, default=math.nan) for c, v in values.items()}


def _averages(cells: Cells, ids: Sequence[str], shifts: Sequence[str]) -> Cells:
    """The two averages of one row; NaN where a set of theirs is missing."""
    shift = _mean(cells.get(s, math.nan) for s in shifts)
    reference = _mean(cells.get(s, math.nan) for s in ids)
    return {AVERAGE: shift, AVERAGE_ALL: (reference + shift) / 2}


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else math.nan


def _lines(
    name: str, variant: str, paths: Sequence[_Path], columns: Sequence[str], style: PaperStyle, side: AlphaSide
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(means, standard deviations) of every row of one model and variant."""
    alphas = sorted({a for path in paths for a in path.alphas if a == a})
    title = {DENSE: "WiSE-FT"}.get(variant, variant)
    rows: list[tuple[str, list[Cells]]] = []
    if not alphas:
        rows.append((title, [path.at(math.nan) for path in paths]))
    elif style == "alphas":
        ordered = alphas if side == "finetuned" else alphas[::-1]
        rows += [(f"{title}, {_alpha(a, side)}", [path.at(a) for path in paths]) for a in ordered]
    else:
        ends = [("zero-shot", 0.0), ("fine-tuned", 1.0)] if variant == DENSE else []
        rows += [(what, [path.at(a) for path in paths]) for what, a in ends]
        rows.append((f"{title}, {_alpha(MIDDLE, side)}", [path.at(MIDDLE) for path in paths]))
    if alphas:
        best = [path.optimum() for path in paths]
        rows.append((f"{title}, optimal {ALPHA_SIDES[side].symbol}", best))
        if style == "wise-ft":
            gaps = [_difference(b, path.at(MIDDLE)) for b, path in zip(best, paths, strict=True)]
            rows.append((f"{title}, optimal {ALPHA_SIDES[side].symbol} minus {_alpha(MIDDLE, side)}", gaps))
    return [_summary({"model": name, "point": point}, cells, columns) for point, cells in rows]


def _summary(
    head: dict[str, str], cells: Sequence[Cells], columns: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    values = np.array([[one.get(c, math.nan) for c in columns] for one in cells])
    spread = values.std(axis=0, ddof=1) if len(cells) > 1 else np.full(len(columns), math.nan)
    return head | dict(zip(columns, values.mean(axis=0), strict=True)), head | dict(zip(columns, spread, strict=True))


def _difference(a: Cells, b: Cells) -> Cells:
    return {c: v - b.get(c, math.nan) for c, v in a.items()}


def _alpha(alpha: float, side: AlphaSide) -> str:
    return f"{ALPHA_SIDES[side].symbol} = {weight_on(alpha, side):.10g}"


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else percent(value / 100, digits).removesuffix(" %")
