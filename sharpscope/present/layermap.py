"""The layer map of the report: each layer's value at each point of the path, with its error, for the page's script."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import pandas as pd

from sharpscope.errors import shown
from sharpscope.layers import layer_key
from sharpscope.present.alphas import alpha_is, alpha_number, in_order_of_alpha, with_symbol
from sharpscope.present.style import short_layer
from sharpscope.present.view import LayerMap, Source, pairs_of
from sharpscope.tables.rows import image_error, measures_in, own_error, records
from sharpscope.vocabulary import ALL

__all__ = ["layer_map"]

_MOST_LAYERS: Final = 200
_MOST_CELLS: Final = 40_000
"""The most rows, and the most values (about 1 MB), that a page carries; the layers with the largest values are kept."""
_DIGITS: Final = 4


def layer_map(source: Source) -> LayerMap | None:
    """The map of all measures and pairs; None where no layer was measured.

    The error is that over draws of images, and where that is not known the error of the estimate on these images.
    """
    table = source.table("sharpness")
    table = table[table["layer"] != ALL]
    if not len(table):
        return None
    table = table.assign(error=image_error(table).fillna(own_error(table)))
    measures, pairs = measures_in(table), pairs_of(table, source.order)
    alphas = in_order_of_alpha(table["alpha"].dropna().unique())
    every = sorted(table["layer"].unique(), key=layer_key)
    room = min(max(_MOST_CELLS // max(len(measures) * len(pairs) * len(alphas), 1), 1), _MOST_LAYERS)
    layers = every if len(every) <= room else _largest(table, room)
    found = {(r["measure"], r["pair"], r["layer"], r["alpha"]): r for r in records(table[table["layer"].isin(layers)])}
    values = {
        shown(m, 60): {
            shown(p, 60): [[_value(found.get((m, p, layer, a))) for a in alphas] for layer in layers] for p in pairs
        }
        for m in measures
    }
    data = {
        "layers": [shown(x) for x in layers],
        "names": [shown(short_layer(x)) for x in layers],
        "symbol": with_symbol("α"),
        "heads": [alpha_number(a) for a in alphas],
        "points": [alpha_is(a) for a in alphas],
        "pairs": [shown(p, 60) for p in pairs],
        "values": values,
    }
    note = "" if len(layers) == len(every) else f"The {len(layers)} layers with the largest values of {len(every)}."
    return LayerMap(json.dumps(data, ensure_ascii=True, separators=(",", ":")), note)


def _largest(table: pd.DataFrame, most: int) -> list[str]:
    """The layers that come first in some measure, each measure's largest in turn, in the order of the forward pass."""
    size = table.assign(size=table["estimate"].abs()).groupby(["measure", "layer"])["size"].max()
    ranks = size.groupby(level="measure").rank(ascending=False).groupby(level="layer").min()
    return sorted(sorted(ranks.index, key=lambda x: (ranks[x], layer_key(x)))[:most], key=layer_key)


def _value(row: dict[str, Any] | None) -> list[Any]:
    """[estimate, error, images, status], None for what is not known."""
    if row is None:
        return [None, None, None, "not measured"]
    n = row.get("n")
    count = int(n) if isinstance(n, (int, float)) and math.isfinite(n) else None
    return [_rounded(row["estimate"]), _rounded(row["error"]), count, shown(row["status"], 40).replace("_", " ")]


def _rounded(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return float(f"{value:.{_DIGITS}g}") if known else None
