"""The situation ``measured``: OOD labels were given, and alpha is read off the front of ID and OOD accuracy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from sharpscope.findings.advising.along import AlongPath, Curve, Row, new_row, noted
from sharpscope.findings.resampling import simultaneous_band
from sharpscope.scores import percentile_interval

__all__ = ["FRONT", "front", "measured_rows"]

FRONT = ("pair", "group", "alpha", "id_accuracy", "id_low", "id_high", "ood_accuracy", "ood_low", "ood_high")
"""The columns of ``front``: accuracies in [0, 1] with pointwise intervals."""


def front(path: AlongPath) -> pd.DataFrame:
    """ID and OOD accuracy at every point of the path, for every group of OOD sets: columns ``FRONT``."""
    rows = []
    for group in path.groups or ("",):
        sides = [_bounded(curve, path) for curve in (path.id, path.groups.get(group))]
        for i, alpha in enumerate(path.alphas):
            rows.append((path.pair, group, alpha, *(float(part[i]) for side in sides for part in side)))
    return pd.DataFrame(rows, columns=list(FRONT))


def _bounded(curve: Curve | None, path: AlongPath) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if curve is None:
        missing = np.full(len(path.alphas), math.nan)
        return missing, missing, missing
    return (curve.values, *percentile_interval(curve.replicates, path.level))


def measured_rows(path: AlongPath, keep_id: float = 0.99) -> list[Row]:
    """The alphas that are best for OOD, for the mean of ID and OOD, and for OOD where ID accuracy is kept.

    The best of several noisy accuracies looks better than it is. The interval of the gain over zero-shot therefore
    holds for all points of the path together (``resampling.simultaneous_band``), whichever of them is chosen.

    Args:
        path: the pair's curves.
        keep_id: the share of the path's best ID accuracy that ``keep_id`` has to keep, in (0, 1].
    """
    rows = []
    for group, curve in path.groups.items():
        chosen = {"ood_best": (int(np.argmax(curve.values)), "")}
        if path.id is not None:
            floor = keep_id * float(path.id.values.max())
            kept = np.where(path.id.values >= floor, curve.values, -np.inf)
            said = f"ID accuracy at least {100 * floor:.1f} %, {keep_id:g} of the best on the path"
            chosen["mean_best"] = int(np.argmax(path.id.values + curve.values)), ""
            chosen["keep_id"] = int(np.argmax(kept)), said
        gains = curve.gains(path.alphas)
        if gains is not None:
            low, high = simultaneous_band(gains.values, gains.replicates, path.level)
        for rule, (i, said) in chosen.items():
            gain: Row = {}
            sure = curve.without_interval or "the gain's interval allows for the choice of alpha"
            note = noted(said, "chosen on these OOD labels", sure)
            if gains is None:
                note = noted(said, "chosen on these OOD labels; the path has no alpha 0, over which a gain is measured")
            else:
                gain = {"predicted_gain": float(gains.values[i]), "ci_low": float(low[i]), "ci_high": float(high[i])}
            row = new_row(path, "measured", rule, group, path.alphas[i], note, advised=True, **gain)
            rows.append(row | {"note": noted(note, f"mean over {'+'.join(curve.sets)}")})
    return rows
