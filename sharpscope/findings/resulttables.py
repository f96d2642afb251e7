"""The findings of a run as tables for a paper: sharpness with its errors, advice, and verdicts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sharpscope.errors import ConfigError, NoData, did_you_mean, shown
from sharpscope.tables.formats import MISSING, interval, is_missing, number, percent, points, with_error
from sharpscope.tables.printed import Printed
from sharpscope.tables.rows import MIDDLE, measures_in, nearest, records, unique_in_order
from sharpscope.vocabulary import GROUP_TITLES, ResultTable, budget_of

__all__ = ["RESULT_TABLES", "result_table"]

_ERRORS: Final = ("stderr_images", "stderr", "residual")
"""What a row of sharpness states as its error, the first that is known: the standard error over draws of images, that
of the estimate on these images, or the residual of an eigenvalue."""
_UNTOLD: Final = "‡ that error is not known: ± is that of the estimate on these images, of an eigenvalue its residual."
_NARROW: Final = 3
"""The number of measures that are printed by default: as many as fit into one column of a two-column page."""


def result_table(
    result: ResultTable, table: pd.DataFrame, *, measures: Sequence[str] = (), alpha: float | None = None
) -> Printed:
    """The rows of a run's table ``result`` as a paper prints them.

    sharpness: one row per layer in the order of the forward pass, one column per measure, ``estimate`` with its
    error (``_ERRORS``), both rounded to the error's digits; the status where there is no
    estimate. advice: the advised rules and what they are compared with, with OOD and ID accuracy in percent and the
    gain in points. verdicts: claims with their estimate, interval and verdict.

    Args:
        result: sharpness | advice | verdicts.
        table: the run's table of this name.
        measures: of sharpness, those to print, in this order; default: the first three.
        alpha: of sharpness, the point of the path; default: that nearest to .5.

    Raises:
        ConfigError: a measure or an alpha that the table does not have.
        NoData: the table has no row.
    """
    if table.empty:
        raise NoData(f"table: the run has no {result}.")
    return RESULT_TABLES[result](table, measures, alpha)


def _sharpness(table: pd.DataFrame, measures: Sequence[str], alpha: float | None) -> Printed:
    known = measures_in(table)
    for name in measures:
        if name not in known:
            near = did_you_mean(name, known) or f" Known: {', '.join(known)}."
            raise ConfigError(f"measures: the run has no measure '{shown(name, 60)}'.{near}")
    chosen = list(dict.fromkeys(measures)) or known[:_NARROW]
    at = nearest(table["alpha"].dropna().unique(), MIDDLE if alpha is None else alpha)
    if alpha is not None and not math.isclose(at, alpha, abs_tol=1e-9):
        raise ConfigError(f"alpha: sharpness was not measured at {alpha:g}; the nearest is {at:g}.")
    own = table[(table["alpha"] == at) & table["measure"].isin(chosen)]
    pairs = unique_in_order(own["pair"])
    cells, values = [], []
    for (pair, layer), rows in own.groupby(["pair", "layer"], sort=False):
        layer = str(layer)
        by = {str(r["measure"]): r for r in records(rows)}
        head = ({"pair": pair} if len(pairs) > 1 else {}) | {"layer": GROUP_TITLES.get(layer, layer)}
        cells.append(head | {m: _estimate(by[m]) if m in by else MISSING for m in chosen})
        wide = {f"{m}{end}": by[m][column] if m in by else math.nan
                for m in chosen for end, column in (("", "estimate"), *((f" {c}", c) for c in _ERRORS))}  # fmt: skip
        values.append({"pair": pair, "layer": layer, "alpha": at} | wide)
    notes = [
        f"Sharpness at α = {_alpha(at)}; ± is one standard error over draws of probe images.",
        *([_UNTOLD] if any("‡" in str(text) for row in cells for text in row.values()) else []),
    ]
    if len(open_ := own.loc[own["status"] == "not_converged", "measure"]):
        flags = ", ".join(unique_in_order(flag for name in open_ if (flag := budget_of(str(name)))))
        more = f" More of {flags} lowers it." if flags else ""
        notes.append(f"* the estimate did not converge: its error is larger than was asked for.{more}")
    if rest := [m for m in known if m not in chosen]:
        notes.append(f"Not printed: {', '.join(rest)}.")
    return Printed(pd.DataFrame(cells), pd.DataFrame(values), tuple(chosen), tuple(notes))


def _estimate(row: Mapping[str, Any]) -> str:
    if is_missing(row["estimate"]):
        return str(row["status"])
    mark = "*" if row["status"] == "not_converged" else ""
    known = next((c for c in _ERRORS if not is_missing(row[c])), "")
    error = float(row[known]) if known else math.nan
    text = with_error(row["estimate"], error) if error else number(float(row["estimate"]))
    return text + ("" if known == _ERRORS[0] else " ‡") + mark


def _advice(table: pd.DataFrame, measures: Sequence[str], alpha: float | None) -> Printed:
    own = table[table["advised"].astype(bool) | table["alpha"].notna()]
    if own.empty:
        raise NoData("table: no rule of the run's advice gives an alpha.")
    several = own["pair"].nunique() > 1
    cells = [
        ({"pair": r["pair"]} if several else {})
        | {
            "group": r["group"] or MISSING, "known": r["situation"], "rule": r["rule"], "α": _alpha(r["alpha"]),
            "OOD": _percent(r["ood_accuracy"]), "ID": _percent(r["id_accuracy"]),
            "gain": _interval(r, "predicted_gain", points), "advised": "yes" if r["advised"] else "",
        }
        for r in records(own)
    ]  # fmt: skip
    notes = ("Accuracies in percent; gain over zero-shot in points, with its interval.",)
    return Printed(pd.DataFrame(cells), own, ("α", "OOD", "ID", "gain"), notes)


def _verdicts(table: pd.DataFrame, measures: Sequence[str], alpha: float | None) -> Printed:
    several = table["pair"].nunique() > 1
    cells = [
        ({"pair": r["pair"]} if several else {})
        | {
            "claim": r["claim"], "group": r["group"] or MISSING, "estimate": _interval(r, "estimate", number),
            "n": MISSING if is_missing(r["n"]) else str(int(r["n"])), "verdict": r["verdict"],
        }
        for r in records(table)
    ]  # fmt: skip
    notes = ("The evidence behind each verdict stands in the run's table verdicts.",)
    return Printed(pd.DataFrame(cells), table, ("estimate", "n"), notes)


RESULT_TABLES: Final[dict[ResultTable, Callable[[pd.DataFrame, Sequence[str], float | None], Printed]]] = {
    "sharpness": _sharpness,
    "advice": _advice,
    "verdicts": _verdicts,
}
"""Table of a run -> the function that prints it."""


def _alpha(value: Any) -> str:
    """An alpha as papers print it: .5, 0, 1."""
    return MISSING if is_missing(value) else re.sub(r"^(-?)0\.", r"\1.", f"{float(value):g}")


def _percent(value: Any) -> str:
    return MISSING if is_missing(value) else percent(float(value)).removesuffix(" %")


def _interval(row: Mapping[str, Any], column: str, style: Callable[[float], str]) -> str:
    if is_missing(row[column]):
        return MISSING
    low, high = (math.nan if is_missing(row[c]) else float(row[c]) for c in ("ci_low", "ci_high"))
    return interval(float(row[column]), low, high, style)
