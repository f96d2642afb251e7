"""The tables of protocols as text: Markdown with percentages, mean and standard deviation over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import pandas as pd

from sharpscope.vocabulary import AVERAGE, ZERO_SHOT

__all__ = ["markdown_of"]

_NOTE = "Accuracies in %; with several seeds their mean ± their standard deviation (number of seeds: {})."


def markdown_of(protocol: str, table: pd.DataFrame) -> str:
    """The Markdown text of a protocol's table (``findings.protocols``), rows in the order of ``table``."""
    header, rows = _LAYOUTS[protocol](table)
    seeds = " or ".join(str(n) for n in sorted(set(table.loc[table["method"] != ZERO_SHOT, "seeds"])))
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", _NOTE.format(seeds)]) + "\n"


_Lines = list[list[str]]
_HALVES = (("base_accuracy", "base_sd"), ("new_accuracy", "new_sd"), ("h", "h_sd"))


def _base_to_new(table: pd.DataFrame) -> tuple[list[str], _Lines]:
    rows = [[*_beginning(r), *(_spread(r, *of) for of in _HALVES)] for r in table.to_dict("records")]
    return ["method", "data set", "base", "new", "H"], rows


def _few_shot(table: pd.DataFrame) -> tuple[list[str], _Lines]:
    """One column for each number of shots."""
    shots = sorted(set(table["shots"]))
    rows = []
    for (method, dataset), part in table.groupby(["method", "dataset"], sort=False):
        cell = {r["shots"]: _spread(r, "accuracy", "accuracy_sd") for r in part.to_dict("records")}
        rows.append([_name(method), _name(dataset), *(cell.get(s, "") for s in shots)])
    return ["method", "data set", *(f"{s} shots" if s else "zero-shot" for s in shots)], rows


def _cross_dataset(table: pd.DataFrame) -> tuple[list[str], _Lines]:
    rows = []
    for r in table.to_dict("records"):
        what = "average of the others" if r["dataset"] == AVERAGE else r["dataset"]
        tuned = " (tuned on)" if r["role"] == "source" else ""
        rows.append([_name(r["method"]), _name(what) + tuned, _spread(r, "accuracy", "accuracy_sd")])
    return ["method", "data set", "accuracy"], rows


def _upgrade(table: pd.DataFrame) -> tuple[list[str], _Lines]:
    rows = [
        [
            *_beginning(r),
            _percent(r["old_zeroshot"]),
            _spread(r, "old", "old_sd"),
            _percent(r["upgraded_zeroshot"]),
            _spread(r, "upgraded", "upgraded_sd"),
            f"{100 * r['gain']:+.2f} [{100 * r['ci_low']:+.2f}, {100 * r['ci_high']:+.2f}]",
        ]
        for r in table.to_dict("records")
    ]
    return ["method", "data set", "old zero-shot", "old", "upgraded zero-shot", "upgraded", "gain"], rows


_LAYOUTS: dict[str, Callable[[pd.DataFrame], tuple[list[str], _Lines]]] = {
    "base-to-new": _base_to_new,
    "few-shot": _few_shot,
    "cross-dataset": _cross_dataset,
    "upgrade": _upgrade,
}


def _name(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _spread(row: Mapping[Hashable, Any], name: str, deviation: str) -> str:
    mean = _percent(row[name])
    return mean if math.isnan(row[deviation]) else f"{mean} ± {_percent(row[deviation])}"


def _beginning(row: Mapping[Hashable, Any]) -> list[str]:
    return [_name(row["method"]), _name(row["dataset"])]
