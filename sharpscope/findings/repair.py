"""Does making layers sparse repair the path? The gain is measured against the plain path at the same ID accuracy.

Pruning a delta moves the model back towards theta_0, and that alone changes OOD accuracy; a smaller alpha has the same
effect without any pruning. A repaired model is therefore compared with the point of the plain path that has the same
ID accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError
from sharpscope.findings.frames import Answered, alpha_index, check_correct
from sharpscope.findings.resampling import max_min_interval, stratified_means
from sharpscope.scores import Predictions, min_replicates, percentile_interval
from sharpscope.seeds import derive
from sharpscope.tables.rows import table, unique_in_order
from sharpscope.vocabulary import DEFAULT_GROUP, GROUPS, Select, Target

__all__ = ["CONTRASTS", "CONTROLS", "Repairs", "Variant", "analyse_repairs", "match_plain"]

CONTROLS = ("none", *(group for group in GROUPS if group != "straggler"))
"""Values of the column ``control``: none for the stragglers themselves, else the layers made sparse in their place."""
CONTRASTS = (
    "pair", "target", "select", "density", "num_alphas", "gain", "gain_low", "gain_high",
    "difference", "difference_low", "difference_high", "note",
)  # fmt: skip
"""Columns of ``Repairs.contrasts``. ``gain`` is that of the sparse stragglers, averaged over alphas; ``difference`` is
this gain minus the gain of its control, equally many parameters in random other layers. The percentile intervals hold
for each row alone: they are not corrected for the number of rows."""
_FEW = 0.02


@dataclass(frozen=True)
class Variant:
    """One repair of the path at several alphas, and its answers on every data set."""

    variant: str
    """Its name in the tables, e.g. ``straggler:delta:random:0.5``."""
    layers: tuple[str, ...]
    target: Target
    select: Select
    density: float
    """Fraction of entries to keep, as asked for."""
    kept_fraction: float
    """Fraction of entries that were kept."""
    control: str
    """none (the stragglers) | random_layers | all_layers (as many entries dropped) | everything (same density)."""
    alphas: tuple[float, ...]
    correct: Mapping[str, Answered]
    """Data set -> bool [len(alphas), n] or predictions; the data sets and examples of the plain path."""


@dataclass(frozen=True)
class Repairs:
    """The results of all repairs of one pair."""

    pair: str
    group: str
    """The group of OOD sets on which the gains are judged."""
    table: pd.DataFrame
    """Table ``repair``."""
    contrasts: pd.DataFrame
    """One row per (target, select, density) of the stragglers that has a random-layer control."""
    estimate: float
    """The maximum over these rows of min(gain, difference to the control); > 0 if some sparsity of the stragglers beats
    both the plain path and the control."""
    ci_low: float
    ci_high: float
    """The interval of ``estimate``, which allows for the choice of the best row (``resampling.max_min_interval``)."""
    best: str
    """The row that has the maximum, e.g. ``delta:magnitude:0.5``; empty where there is none."""


def match_plain(
    id_path: np.ndarray, ood_path: np.ndarray, alphas: Sequence[float], wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The point of the plain path that has a given ID accuracy: linear between alphas, FIRST crossing from alpha = 0.

    Several alphas fit if the ID accuracy is not monotone. The smallest of them is taken, which needs ID data only.
    Where the path never has the wanted accuracy, the nearest accuracy that it has is used.

    Args:
        id_path, ood_path: [..., A] accuracies of the plain path.
        alphas: [A] increasing.
        wanted: [..., K] ID accuracies to be matched.

    Returns:
        (alpha [..., K], OOD accuracy there [..., K], inside [..., K] whether the path has that ID accuracy).
    """
    grid = np.asarray(alphas, dtype=float)
    low, high = id_path.min(axis=-1)[..., None], id_path.max(axis=-1)[..., None]
    inside = (wanted >= low - 1e-12) & (wanted <= high + 1e-12)
    gap = id_path[..., None, :] - np.clip(wanted, low, high)[..., None]
    if len(grid) == 1:
        shape = gap.shape[:-1]
        return np.broadcast_to(grid[0], shape), np.broadcast_to(ood_path[..., :1], shape), inside
    crosses = gap[..., :-1] * gap[..., 1:] <= 0
    first = crosses.argmax(axis=-1)[..., None]
    here = np.take_along_axis(gap, first, axis=-1)
    there = np.take_along_axis(gap, first + 1, axis=-1)
    # The step is 0 where the left end has the wanted value, and also where both ends of the segment have it.
    step = np.where(here == there, 0.0, here / np.where(here == there, 1.0, here - there))[..., 0]
    left = first[..., 0]
    ood = np.broadcast_to(ood_path[..., None, :], gap.shape)
    before = np.take_along_axis(ood, first, axis=-1)[..., 0]
    after = np.take_along_axis(ood, first + 1, axis=-1)[..., 0]
    return grid[left] + step * (grid[left + 1] - grid[left]), before + step * (after - before), inside


def analyse_repairs(
    pair: str,
    alphas: Sequence[float],
    correct: Mapping[str, Answered],
    roles: Mapping[str, str],
    variants: Sequence[Variant],
    *,
    group: str = DEFAULT_GROUP,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Repairs:
    """Gain of every repaired model over the plain path at the same ID accuracy, and over the controls.

        gain = OOD(repaired) - OOD(plain path where ID = ID(repaired))

    ID and OOD accuracy are averages over their data sets. The interval is a percentile bootstrap over examples, drawn
    within each data set and paired across all models. Every replicate finds its own matching alpha, so the interval
    includes the uncertainty of the match. A repaired model whose ID accuracy the plain path never has is "undefined".
    Replicates in which that happens use the nearest ID accuracy of the path; the note says so where they are more than
    2 %.

    Args:
        pair: name of the pair.
        alphas: [A] of the plain path, increasing.
        correct: data set -> bool [A, n] (or predictions) of the plain path.
        roles: data set -> "id" | "ood".
        group: the name of the group of OOD sets that ``correct`` holds.
        variants: the repairs and controls. An alpha at which one of them cannot be matched is left out of its average.
        level: coverage of the intervals.
        bootstrap: number of replicates.
        seed: the run's seed.

    Returns:
        Repairs: the table in the order of ``variants`` and their alphas, the contrasts, and the estimate on which the
        verdict rests.

    Raises:
        ConfigError: arrays, roles, names or controls that do not fit.
    """
    split = check_correct(alphas, correct, roles)
    names = [v.variant for v in variants]
    if len(set(names)) != len(names):
        raise ConfigError(f"repair: every variant needs its own name, got {', '.join(names)}.")
    cells = [(i, j) for i, v in enumerate(variants) for j in range(len(v.alphas))]
    stacks = {role: _stacked(sets, variants) for role, sets in split.items()}
    nan = float("nan")
    if not cells or not split["id"] or not split["ood"]:
        why = "no ID set was given" if not split["id"] else "no OOD set was given"
        blank = [_row(pair, variants[i], j, [nan] * 7, "undefined", why) | {"group": group} for i, j in cells]
        return Repairs(pair, group, table("repair", blank), pd.DataFrame(columns=list(CONTRASTS)), nan, nan, nan, "")
    (id_mean, id_reps), (ood_mean, ood_reps) = (
        stratified_means(
            list(stacks[role].values()),
            bootstrap,
            [np.random.default_rng(derive(seed, "repair", pair, name)) for name in stacks[role]],
        )
        for role in ("id", "ood")
    )
    A = len(alphas)
    at, plain, inside = match_plain(id_mean[:A], ood_mean[:A], alphas, id_mean[A:])
    _, plain_reps, inside_reps = match_plain(id_reps[:, :A], ood_reps[:, :A], alphas, id_reps[:, A:])
    gain = np.where(inside, ood_mean[A:] - plain, nan)
    gain_reps = ood_reps[:, A:] - plain_reps
    low, high = percentile_interval(gain_reps, level)
    outside = 1 - inside_reps.mean(axis=0)
    enough = bootstrap >= min_replicates(level)
    few = "" if enough else f"no interval: {bootstrap} bootstrap replicates are too few for level {level:g}"
    rows = []
    for k, (i, j) in enumerate(cells):
        numbers = [id_mean[A + k], ood_mean[A + k], at[k], plain[k], gain[k], low[k], high[k]]
        if inside[k]:
            far = (
                f"in {outside[k]:.0%} of the replicates the plain path never has this ID accuracy"
                if outside[k] > _FEW
                else ""
            )
            rows.append(_row(pair, variants[i], j, numbers, "ok", "; ".join(part for part in (far, few) if part)))
        else:
            span = f"{id_mean[:A].min():.3f}-{id_mean[:A].max():.3f}"
            why = f"the plain path never has this ID accuracy (its range: {span})"
            rows.append(_row(pair, variants[i], j, [*numbers[:2], nan, nan, nan, nan, nan], "undefined", why))
    found = table("repair", [row | {"group": group} for row in rows])
    return _contrasted(pair, group, found, variants, cells, gain, gain_reps, level)


def _stacked(sets: Mapping[str, Answered], variants: Sequence[Variant]) -> dict[str, Answered]:
    """Data set -> bool [A + cells, n] or predictions: the plain path, then every variant at its alphas."""
    out: dict[str, Answered] = {}
    for name, plain in sets.items():
        rows = plain.predicted if isinstance(plain, Predictions) else plain
        parts = [rows]
        for v in variants:
            given = v.correct.get(name, np.empty((0, 0)))
            part = np.asarray(given.predicted if isinstance(given, Predictions) else given)
            if part.shape != (len(v.alphas), plain.shape[1]):
                want = f"[{len(v.alphas)}, {plain.shape[1]}]"
                raise ConfigError(f"repair '{v.variant}': correct['{name}'] needs shape {want}, got {part.shape}.")
            parts.append(part.astype(rows.dtype))
        both = np.concatenate(parts)
        out[name] = replace(plain, predicted=both) if isinstance(plain, Predictions) else both
    for v in variants:
        if v.control not in CONTROLS:
            raise ConfigError(f"repair '{v.variant}': control '{v.control}' is none of {', '.join(CONTROLS)}.")
    return out


def _row(pair: str, v: Variant, j: int, numbers: Sequence[float], status: str, note: str) -> dict[str, object]:
    columns = ("id_accuracy", "ood_accuracy", "plain_alpha", "plain_ood_accuracy", "gain", "ci_low", "ci_high")
    return {
        "pair": pair,
        "alpha": float(v.alphas[j]),
        "variant": v.variant,
        "layers": "+".join(v.layers),
        "target": v.target,
        "select": v.select,
        "density": v.density,
        "kept_fraction": v.kept_fraction,
        "control": v.control,
        **{name: float(number) for name, number in zip(columns, numbers, strict=True)},
        "status": status,
        "note": note,
    }


def _contrasted(
    pair: str,
    group: str,
    rows: pd.DataFrame,
    variants: Sequence[Variant],
    cells: Sequence[tuple[int, int]],
    gain: np.ndarray,
    reps: np.ndarray,
    level: float,
) -> Repairs:
    keys = unique_in_order((v.target, v.select, v.density) for v in variants if v.control == "none")
    lines, values, draws, names = [], [], [], []
    for key in keys:
        ours = _cells(variants, cells, key, "none")
        controls = _cells(variants, cells, key, "random_layers")
        pairs_of = [
            ([k for k in ours[a] if np.isfinite(gain[k])], [k for k in controls.get(a, ()) if np.isfinite(gain[k])])
            for a in ours
        ]
        matched = [(mine, other) for mine, other in pairs_of if mine and other]
        head = dict(zip(("pair", "target", "select", "density"), (pair, *key), strict=True))
        if not matched:
            missing = {name: float("nan") for name in CONTRASTS[5:-1]}
            both = "both this variant and a random-layer control"
            why = f"undefined: at no alpha does the plain path have the ID accuracies of {both}"
            lines.append({**head, "num_alphas": 0, **missing, "note": why})
            continue
        own = np.mean([gain[mine].mean() for mine, _ in matched])
        other = np.mean([gain[rest].mean() for _, rest in matched])
        own_reps = np.mean([reps[:, mine].mean(axis=1) for mine, _ in matched], axis=0)
        other_reps = np.mean([reps[:, rest].mean(axis=1) for _, rest in matched], axis=0)
        cell, draw = np.array([own, own - other]), np.stack([own_reps, own_reps - other_reps], axis=1)
        low, high = percentile_interval(draw, level)
        line = {"gain": own, "gain_low": low[0], "gain_high": high[0]}
        line |= {"difference": own - other, "difference_low": low[1], "difference_high": high[1]}
        lines.append({**head, "num_alphas": len(matched), **{k: float(v) for k, v in line.items()}, "note": ""})
        values.append(cell)
        draws.append(draw)
        names.append(":".join(f"{part:g}" if isinstance(part, float) else str(part) for part in key))
    contrasts = pd.DataFrame(lines, columns=list(CONTRASTS))
    if not values:
        nan = float("nan")
        return Repairs(pair, group, rows, contrasts, nan, nan, nan, "")
    estimate, lower, upper, best = max_min_interval(np.array(values), np.stack(draws, axis=1), level)
    return Repairs(pair, group, rows, contrasts, estimate, lower, upper, names[best])


def _cells(
    variants: Sequence[Variant], cells: Sequence[tuple[int, int]], key: tuple[object, ...], control: str
) -> dict[float, list[int]]:
    """alpha -> the cells of all variants with that key and control, for instance of several random draws."""
    out: dict[float, list[int]] = {}
    for k, (i, j) in enumerate(cells):
        v = variants[i]
        if (v.target, v.select, v.density) == key and v.control == control:
            known = alpha_index(list(out), v.alphas[j])
            out.setdefault(v.alphas[j] if known is None else list(out)[known], []).append(k)
    return out
