"""The rows of the stragglers table that one criterion makes of its scores and its choice."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from sharpscope.findings.relativechange import NULL_DRAWS
from sharpscope.findings.selection import Selection
from sharpscope.vocabulary import parse_rule

__all__ = ["Rows", "layer_rows"]

Rows = list[dict[str, object]]


def layer_rows(
    pair: str,
    criterion: str,
    base: str,
    rule: str,
    layers: Sequence[str],
    still: Collection[str],
    scores: np.ndarray,
    chosen: Selection,
    probability: np.ndarray,
    notes: Sequence[str],
    missing: tuple[str, str],
) -> Rows:
    threshold = float(chosen.threshold)
    empty = "" if chosen.mask.any() else _why_nobody(scores, threshold, rule)
    rows: Rows = []
    for i, layer in enumerate(layers):
        status, note = "ok", notes[i]
        if layer in still:
            status, note = "frozen", "the layer does not move"
        elif not np.isfinite(scores[i]):
            status, note = missing[0], note or missing[1]
        rows.append(
            {
                "pair": pair,
                "layer": layer,
                "criterion": criterion,
                "base": base,
                "score": float(scores[i]),
                "threshold": threshold if np.isfinite(threshold) else float("nan"),
                "rule": rule,
                "chosen": bool(chosen.mask[i]),
                "probability": float(probability[i]),
                "status": status,
                "note": "; ".join(part for part in (note, empty) if part),
            }
        )
    return rows


def _why_nobody(scores: np.ndarray, threshold: float, rule: str) -> str:
    known = scores[np.isfinite(scores)]
    if not len(known):
        return "no layer chosen: no layer has a score"
    kind, chance = parse_rule(rule)
    if kind == "null" and not np.isfinite(threshold):
        return f"no layer chosen: {NULL_DRAWS} simulations of the null cannot show a chance as small as {chance:g}"
    if not known.any():
        return "no layer chosen: the score of every layer is 0"
    return "no layer chosen: no score exceeds the threshold"
