"""The sharpness tables of several pairs as arrays [measures, layers, pairs, alphas], with groups of layers added."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sharpscope.findings.frames import alpha_index, ordered, unique_in_order
from sharpscope.schema import ALL, MEASURES

__all__ = ["BEST", "OTHERS", "SHARE", "STRAGGLERS", "Cube", "sharpness_cube"]

STRAGGLERS = "(stragglers)"
"""Layer name of each pair's own straggler layers taken together."""
OTHERS = "(others)"
"""Layer name of all layers that are no stragglers of their pair."""
BEST = "(best)"
"""Layer name of whichever single layer has the largest |correlation|."""
SHARE = "share:"
GROUPS = (ALL, STRAGGLERS, OTHERS, BEST)


@dataclass(frozen=True)
class Cube:
    """``values`` [M, L, P, A], NaN where there is no finite estimate; ``present`` [M, L]: the table has such rows."""

    measures: tuple[str, ...]
    """Each measure raw and, behind it, ``share:`` of the whole model (1 for the whole model itself: left out)."""
    layers: tuple[str, ...]
    pairs: tuple[str, ...]
    alphas: tuple[float, ...]
    values: np.ndarray
    present: np.ndarray

    def columns(self) -> list[tuple[int, int]]:
        """(measure, layer) places that the table has, measures first."""
        return [(m, int(layer)) for m in range(len(self.measures)) for layer in np.flatnonzero(self.present[m])]


def _together(values: np.ndarray, measure: str) -> np.ndarray:
    """One number for the layers along axis 0: what adds up is added, extremes stay extremes; NaN if any is missing."""
    if measure == "lambda_min":
        return values.min(axis=0)
    if measure == "lambda_abs":
        largest = np.abs(np.where(np.isnan(values), -1.0, values)).argmax(axis=0)
        picked = np.take_along_axis(values, largest[None], axis=0)[0]
        return np.where(np.isnan(values).any(axis=0), np.nan, picked)
    if measure == "lambda_max" or measure.startswith("sharpness_max"):
        return values.max(axis=0)
    return values.sum(axis=0)


def sharpness_cube(
    sharpness: pd.DataFrame,
    pairs: Sequence[str],
    alphas: Sequence[float],
    stragglers: Mapping[str, Collection[str]] | None = None,
) -> Cube:
    """Arrange the rows of ``pairs`` at ``alphas``; rows whose status is failed or undefined have no value.

    Args:
        stragglers: pair -> its straggler layers; adds the layers ``(stragglers)`` and ``(others)``: traces and mean
            rises added up (exact for traces: H's diagonal blocks), eigenvalues and worst cases by their extreme. A
            pair without stragglers, or with one whose estimate is missing, has no value there.
    """
    rows = sharpness[sharpness["pair"].isin(list(pairs))]
    measures = ordered(rows["measure"], tuple(MEASURES))
    layers = ordered(rows["layer"], (ALL,))
    place = {name: i for i, name in enumerate(pairs)}
    column = {a: alpha_index(alphas, float(a)) for a in unique_in_order(rows["alpha"])}
    at_alpha = np.array([-1 if column[a] is None else column[a] for a in rows["alpha"]], dtype=int)
    at_measure = pd.Categorical(rows["measure"], categories=measures).codes.astype(int)
    at_layer = pd.Categorical(rows["layer"], categories=layers).codes.astype(int)
    at_pair = np.array([place[p] for p in rows["pair"]], dtype=int)
    bad = np.isin(rows["status"].to_numpy(), ("failed", "undefined"))
    shape = (len(measures), len(layers), len(pairs), len(alphas))
    present = np.zeros(shape[:2], dtype=bool)
    present[at_measure, at_layer] = True

    def filled(name: str) -> np.ndarray:
        numbers = rows[name].to_numpy(dtype=float)
        keep = (at_alpha >= 0) & np.isfinite(numbers) & ~bad
        out = np.full(shape, np.nan)
        out[at_measure[keep], at_layer[keep], at_pair[keep], at_alpha[keep]] = numbers[keep]
        return out

    raw, share = filled("estimate"), filled("share")
    shared = present.copy()
    if ALL in layers:
        shared[:, layers.index(ALL)] = False
    if stragglers is not None and measures:
        raw, share = _with_groups(raw, share, measures, layers, pairs, stragglers)
        layers = [*layers, STRAGGLERS, OTHERS]
        more = np.ones((len(measures), 2), dtype=bool)
        present, shared = np.hstack([present, more]), np.hstack([shared, more])
    names = [name for m in measures for name in (m, SHARE + m)]
    both = np.stack([raw, share], axis=1).reshape(2 * len(measures), *raw.shape[1:])
    seen = np.stack([present, shared], axis=1).reshape(2 * len(measures), present.shape[1])
    order = [layers.index(n) for n in ordered(layers, GROUPS)]
    return Cube(
        measures=tuple(names),
        layers=tuple(layers[i] for i in order),
        pairs=tuple(pairs),
        alphas=tuple(float(a) for a in alphas),
        values=both[:, order],
        present=seen[:, order],
    )


def _with_groups(
    raw: np.ndarray,
    share: np.ndarray,
    measures: Sequence[str],
    layers: Sequence[str],
    pairs: Sequence[str],
    stragglers: Mapping[str, Collection[str]],
) -> tuple[np.ndarray, np.ndarray]:
    groups = np.full((raw.shape[0], 2, *raw.shape[2:]), np.nan)
    for p, pair in enumerate(pairs):
        chosen = set(stragglers.get(pair, ()))
        members = [i for i, name in enumerate(layers) if name in chosen and name != ALL]
        others = [i for i, name in enumerate(layers) if name not in chosen and name != ALL]
        for m, measure in enumerate(measures):
            for g, group in enumerate((members, others)):
                if group and members:
                    groups[m, g, p] = _together(raw[m, group, p], measure)
    whole = raw[:, [layers.index(ALL)]] if ALL in layers else np.full_like(groups[:, :1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = groups / whole
    shares[~np.isfinite(shares)] = np.nan
    return np.concatenate([raw, groups], axis=1), np.concatenate([share, shares], axis=1)
