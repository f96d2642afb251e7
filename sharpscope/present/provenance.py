"""Report sections on the run itself: rows that did not converge or failed, and how the run was made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sharpscope.present.alphas import alpha_convention, alpha_is
from sharpscope.present.style import short_layer
from sharpscope.present.view import (
    MOST_ROWS,
    Block,
    Cell,
    Grid,
    Line,
    Section,
    Source,
    cell,
    flat,
    images_left_out,
    status_cell,
)
from sharpscope.tables.formats import MISSING, number
from sharpscope.tables.rows import records
from sharpscope.vocabulary import STATUSES, budget_of

__all__ = ["making", "problems"]


def problems(source: Source) -> Section:
    counts: list[tuple[Cell, ...]] = []
    listed: list[tuple[bool, tuple[Cell, ...]]] = []
    total = 0
    for name in ("path", "sharpness", "stragglers", "repair", "correlations", "advice", "agreement"):
        table = source.table(name)
        fine = [name for name, status in STATUSES.items() if not status.problem]
        bad = table[~table["status"].isin((*fine, "")) & table["status"].notna()]
        by = ["measure"] if name in ("sharpness", "agreement") else []
        bad = bad.assign(what=bad[by[0]] if by else "")
        for (what, status), group in bad.groupby(["what", "status"], sort=True):
            counts.append(
                (
                    cell(name),
                    cell(what),
                    status_cell(str(status)),
                    cell(f"{len(group)} of {_total(table, by, str(what))}"),
                    cell(budget_of(str(what)) if status == "not_converged" else ""),
                )
            )
        if name in ("path", "sharpness", "repair"):
            first = bad.sort_values("status", key=lambda s: s != "failed", kind="stable").head(MOST_ROWS)
            listed += [
                (
                    str(r["status"]) != "failed",
                    (
                        cell(name),
                        cell(r["pair"]),
                        cell(_where(r)),
                        status_cell(str(r["status"])),
                        cell(r["note"] or "", "note"),
                    ),
                )
                for r in records(first.assign(note=first.get("note", "")))
            ]
            total += len(bad)
    title = "What did not converge, failed or is undefined"
    left_out = tuple(map(Line, images_left_out(source.manifest)))
    if not counts:
        calm = "Every estimate of this run is finite and converged, or the run has no estimates."
        return Section(title, "problems", (*left_out, calm))
    heads = ("table", "what", "status", "rows", "raise to go on")
    grid = Grid.of(heads, counts, numeric=(3,), source="tables/", most=60)
    head = ("table", "pair", "where", "status", "reason")
    ordered = [row for _, row in sorted(listed, key=lambda item: item[0])]
    rest = (Grid.of(head, ordered, "One by one, failures first", (), "the table files", total=total),) if listed else ()
    return Section(title, "problems", (*left_out, grid), folded=rest)


def _total(table: pd.DataFrame, by: list[str], what: str) -> int:
    return int((table[by[0]] == what).sum()) if by else len(table)


def _where(row: Mapping[str, Any]) -> str:
    parts = [short_layer(str(row["layer"]))] if "layer" in row else []
    parts += [str(row[c]) for c in ("measure", "variant") if c in row]
    return ", ".join([*parts, alpha_is(row["alpha"])])


_ELSEWHERE = {"pairs", "identity", "config", "timing", "inputs", "contents", "data", "layers"}
"""The keys of the manifest that this section leaves out, because another section shows them or they are folded away."""
_IN_WORDS: Mapping[str, str] = {
    "alpha_on": "α in the tables is the weight of",
    "draws": "version of the random streams",
    "format": "format of the run directory",
    "n": "images",
    "numbered": "classes have fixed numbers",
    "matching": "labels matched by",
    "said": "to know",
    "size": "probe examples",
    "skipped": "unreadable images",
    "skipped_names": "the first of them",
    "streamed": "decoded as it is read",
    "two_orders": "two orders of the classes",
    "unnamed": "classes known by number only",
    "without_images": "classes without a readable image",
}
"""Facts of the manifest by the name that the report gives them; others are readable as they are."""


def making(source: Source) -> Section:
    manifest = source.manifest
    identity = manifest.get("identity")
    facts = {**(identity if isinstance(identity, Mapping) else {}), **manifest}
    blocks: list[Block] = [alpha_convention()]
    if source.timing:
        blocks.append(_timing(source.timing))
    versions = facts.get("versions")
    elsewhere = {*_ELSEWHERE, *(versions if isinstance(versions, Mapping) else ())}  # the identity has some of them too
    told = {_IN_WORDS.get(k, k): v for k, v in facts.items() if k not in elsewhere}
    shown = _facts(told, "Versions, hardware, seeds")
    config, data = _facts(source.config, "Configuration"), _data(facts.get("data"))
    if shown:
        blocks.append(shown)
    elif not config:
        blocks.append("The manifest of this run is empty.")
    return Section("How it was made", "making", tuple(blocks), folded=tuple(g for g in (config, data) if g))


def _facts(facts: Any, caption: str) -> Grid | None:
    rows = [(cell(k, "head"), cell(v)) for k, v in flat(facts)] if isinstance(facts, Mapping) else []
    return Grid.of(("", ""), rows, caption, source="manifest.json", most=200) if rows else None


_NOTHING = ("", "none", "no", "0", MISSING)
"""The texts of a fact that says nothing of a data set."""


def _data(facts: Any) -> Grid | None:
    """One row for each data set, with the pairs that have it alike; what all have in common is in the caption.

    Nothing is said of what none of them has (no image was skipped, say).
    """
    rows: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for pair, sets in (facts if isinstance(facts, Mapping) else {}).items():
        for name, told in (sets if isinstance(sets, Mapping) else {}).items():
            known = {_IN_WORDS.get(k, k): v for k, v in told.items()} if isinstance(told, Mapping) else told
            lines = tuple(flat(known, "" if isinstance(told, Mapping) else "what is known"))
            rows.setdefault((str(name), lines), []).append(str(pair))
    if not rows:
        return None
    known = [{key: text for key, text in told if text not in _NOTHING} for _, told in rows]
    keys = list(dict.fromkeys(key for told in known for key in told))
    same = [k for k in keys if len(rows) > 1 and len({told.get(k) for told in known}) == 1]
    head = ("data set", *(k for k in keys if k not in same), "pairs")
    body = [
        (cell(name, "head"), *(cell(told.get(k, MISSING)) for k in keys if k not in same), cell(", ".join(pairs)))
        for ((name, _), pairs), told in zip(rows.items(), known, strict=True)
    ]
    common = ", ".join(f"{k} {known[0][k]}" for k in same)
    caption = f"Data sets (all: {common})" if common else "Data sets"
    return Grid.of(head, body, caption, source="manifest.json", most=200)


def _timing(timing: Mapping[str, Any]) -> Grid:
    rows = []
    for kind, entry in timing.items():
        known = entry if isinstance(entry, Mapping) else {"seconds": entry}
        units, seconds = known.get("units"), known.get("seconds")
        each = number(float(seconds) / float(units)) if units and seconds is not None else MISSING
        rows.append(
            (cell(kind), cell(units), cell(number(math.nan if seconds is None else float(seconds))), cell(each))
        )
    return Grid.of(("kind of work", "units", "seconds", "seconds per unit"), rows, "Time", (1, 2, 3), "log.jsonl")
