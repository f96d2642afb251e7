"""What the straggler criteria say of a pair, in one sentence, and two definitions of a straggler side by side."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sharpscope.errors import shown
from sharpscope.present.alphas import said
from sharpscope.present.style import short_layer
from sharpscope.present.view import MOST_ROWS, Block, Cell, Grid, Line, cell, layer_cell
from sharpscope.tables.criteria import Overlap, choices, overlap, side_by_side
from sharpscope.tables.formats import number, percent
from sharpscope.tables.rows import records
from sharpscope.vocabulary import AMONG_LARGEST, SIDE_BY_SIDE

__all__ = ["agreement_of", "both_definitions", "who_is_named"]

_INTRODUCTION = (
    f"Two definitions of a straggler: {SIDE_BY_SIDE[0]}, the only published one (the layer's own interpolation costs "
    f"loss, arXiv 2410.16476), and {SIDE_BY_SIDE[1]}: the layer becomes sharp along the path, unlike the others."
)


def who_is_named(stragglers: pd.DataFrame, pair: str, deciding: str) -> str:
    """One sentence: whom the ``deciding`` criterion names, whom the published one, and how many criteria agree on whom.

    >>> who_is_named(run.stragglers, "failure", "change:hessian_trace")  # doctest: +SKIP
    'change:hessian_trace names no layer; instability names block 1 mlp; 3 of 8 criteria name conv1 (rewind, ...).'
    """
    found = choices(stragglers, pair, deciding)
    own = stragglers[(stragglers["pair"] == pair) & (stragglers["criterion"] == deciding)]
    parts = [f"{c} names {_some(found[c])}" for c in dict.fromkeys((deciding, SIDE_BY_SIDE[0])) if c in found]
    if len(own) and own["score"].isna().all():
        parts[0] = f"{deciding} has no score for any layer"
    votes = Counter(layer for chosen in found.values() for layer in chosen)
    if not votes:
        return "; ".join([*parts, f"none of {len(found)} criteria names a layer"]) + "."
    most = max(votes.values())
    layers = [x for x in votes if votes[x] == most]
    by = ", ".join(c for c, chosen in found.items() if layers[0] in chosen)
    agreed = f"{most} of {len(found)} criteria name "
    agreed += f"{_some(layers)} ({by})" if len(layers) == 1 else f"each of {_some(layers)}, and no layer has more"
    large = own.loc[own["note"].fillna("").str.contains(AMONG_LARGEST, regex=False), "layer"]
    told = f"{AMONG_LARGEST}: {_some(list(large))}" if len(large) else ""
    return "; ".join(x for x in (*parts, agreed, told) if x) + "."


def _some(layers: Sequence[str], most: int = 6) -> str:
    """The first ``most`` layers by their short names, or that there is none."""
    names = ", ".join(short_layer(x) for x in layers[:most])
    return (names + (f" and {len(layers) - most} more" if len(layers) > most else "")) or "no layer"


def agreement_of(found: Overlap) -> str:
    """One sentence on how far two criteria agree on the stragglers of one pair."""
    names = [", ".join(short_layer(x) for x in chosen[:6]) + (" and others" if len(chosen) > 6 else "")
             for chosen in found.chosen]  # fmt: skip
    first, second = (f"{c} chooses {who or 'no layer'}" for c, who in zip(found.criteria, names, strict=True))
    parts = [f"{first}; {second}"]
    if not math.isnan(found.jaccard):
        common = len(set(found.chosen[0]) & set(found.chosen[1]))
        either = len(set(found.chosen[0]) | set(found.chosen[1]))
        parts.append(f"{common} of {either} chosen layers in common (Jaccard {found.jaccard:.2f})")
    if found.top:
        parts.append(
            f"{found.shared_top} of the {found.top} highest in common, where chance gives {found.top_by_chance:.1f} "
            f"({found.layers} layers)"
        )
    if not math.isnan(found.spearman):
        parts.append(f"Spearman {found.spearman:+.2f} over the layers")
    return "; ".join(parts) + "."


def both_definitions(stragglers: pd.DataFrame, pairs: list[str]) -> tuple[list[Block], list[Grid]]:
    """For every pair that has both criteria: the sentence on their agreement, and the scores of its layers."""
    lines: list[Block] = []
    grids = []
    for pair in pairs:
        found, both = overlap(stragglers, pair), side_by_side(stragglers, pair)
        if found is None or both is None:
            continue
        lines = lines or [_INTRODUCTION]
        lines.append(Line(f"{shown(pair)}: {shown(said(agreement_of(found)), 900)}"))
        first, second = ({str(r["layer"]): r for r in records(rows.reset_index())} for rows in both)
        order = [x for x in first if x in second]
        high = set(sorted(order, key=lambda x: -max(_height(first[x]), _height(second[x])))[:MOST_ROWS])
        rows = [(layer_cell(x), *_cells(first[x]), *_cells(second[x])) for x in order if x in high]
        head = ("layer", *(what for c in SIDE_BY_SIDE for what in (c, "chosen", "probability")))
        caption = f"{pair}: both definitions of a straggler, layer by layer"
        if len(high) < len(order):
            caption += "; the layers nearest to their threshold or above it"
        grids.append(Grid.of(head, rows, caption, (1, 3, 4, 6), "tables/stragglers.csv", total=len(order)))
    return lines, grids


def _height(row: Mapping[str, Any]) -> float:
    """The score in units of its threshold; -inf for a layer without a score."""
    score, threshold = float(row["score"]), float(row["threshold"])
    return score / threshold if math.isfinite(score) and threshold > 0 else -math.inf


def _cells(row: Mapping[str, Any]) -> tuple[Cell, Cell, Cell]:
    chosen = bool(row["chosen"])
    score = cell(number(row["score"], 3), title=f"threshold {number(row['threshold'], 3)}; {row['note'] or ''}")
    return score, cell("yes" if chosen else "no", "bad" if chosen else ""), cell(percent(row["probability"], 0))
