"""The situation ``measured``: OOD labels were given, and alpha is read off the front of ID and OOD accuracy."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd

from sharpscope.findings.advising.along import (
    AlongPath,
    Choice,
    Curve,
    Row,
    best_place,
    fixed_regret,
    gain_over_zeroshot,
    new_row,
    noted,
)
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

    The best of several noisy accuracies looks better than it is. The gain over zero-shot, the regret and that of the
    best baseline are therefore cross-fitted (``Curve.crossfit``): chosen on one half of the OOD images and judged on
    the other. The interval of the gain holds for all points of the path together (``resampling.simultaneous_band``),
    whichever of them is chosen, and it is widened to the gain where that lies outside. ``ood_accuracy`` is the measured
    one, that of the table accuracy, on the images that chose.

    Args:
        path: the pair's curves.
        keep_id: the share of the path's best ID accuracy that ``keep_id`` has to keep, in (0, 1].
    """
    rows = []
    for group, curve in path.groups.items():
        choices: dict[str, tuple[Choice, str]] = {"ood_best": (best_place, "")}
        if path.id is not None:
            known = path.id.values
            floor = keep_id * float(known.max())
            said = f"ID accuracy at least {100 * floor:.1f} %, {keep_id:g} of the best on the path"
            choices["mean_best"] = functools.partial(_best_mean, known), ""
            choices["keep_id"] = functools.partial(_best_kept, known >= floor), said
        gains = curve.gains(path.alphas)
        if gains is not None:
            low, high = simultaneous_band(gains.values, gains.replicates, path.level)
        for rule, (choice, said) in choices.items():
            i = choice(curve.values)
            gain = gain_over_zeroshot(curve, path.alphas, choice)
            if gains is None:
                told = "chosen on these OOD labels; the path has no alpha 0, over which a gain is measured"
            else:
                centre = gain["predicted_gain"]
                gain |= {"ci_low": min(float(low[i]), centre), "ci_high": max(float(high[i]), centre)}
                told = _told(curve, curve.without_interval(path.level))
            note = noted(said, told, f"mean over {'+'.join(curve.sets)}")
            more = gain | fixed_regret(path, curve)
            rows.append(
                new_row(path, "measured", rule, group, path.alphas[i], note, choice=choice, advised=True, **more)
            )
    return rows


def _best_mean(known: np.ndarray, values: np.ndarray) -> int:
    return best_place(known + values)


def _best_kept(kept: np.ndarray, values: np.ndarray) -> int:
    return best_place(np.where(kept, values, -np.inf))


def _told(curve: Curve, few: str) -> str:
    """What gain and regret rest on."""
    judged = (
        "chosen on these OOD labels; gain and regret are judged on halves of the images that had no part in the choice"
        if len(curve.halves)
        else "chosen on these OOD labels, on which its gain is too large on average"
    )
    return noted(judged, few or "the gain's interval allows for the choice of alpha")
