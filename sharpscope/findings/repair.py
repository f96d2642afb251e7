"""Does making layers sparse repair the path? The gain is measured against the plain path at the same ID accuracy.

Pruning a delta moves the model back towards theta_0, and that alone changes OOD accuracy; a smaller alpha has the same
effect without any pruning. A repaired model is therefore compared with the point of the plain path that has the same
ID accuracy.

What one random mask gains may be luck. A random repair has several masks, and the control layers of mask i are drawn
for it alone: the pairs (mask, control) are independent draws, on the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError
from sharpscope.findings.frames import Answered, alpha_index, check_correct
from sharpscope.findings.losses import chord
from sharpscope.findings.matching import match_plain
from sharpscope.findings.resampling import stratified_means, why_no_interval
from sharpscope.findings.twolevels import OverDraws, max_min_over_draws, over_draws
from sharpscope.scores import Predictions
from sharpscope.seeds import derive
from sharpscope.tables.rows import table, unique_in_order
from sharpscope.vocabulary import DEFAULT_GROUP, GROUPS, Select, Target, draws_masks

__all__ = ["CONTRASTS", "CONTROLS", "Repairs", "Variant", "analyse_repairs"]

CONTROLS = ("none", *(group for group in GROUPS if group != "straggler"))
"""Values of the column ``control``: none for the stragglers themselves, else the layers made sparse in their place."""
CONTRASTS = (
    "pair", "name", "target", "select", "density", "num_alphas", "num_pairs", "gain", "gain_low", "gain_high",
    "difference", "difference_low", "difference_high", "note",
)  # fmt: skip
"""Columns of ``Repairs.contrasts``. ``gain`` is that of the sparse stragglers, averaged over alphas and masks;
``difference`` is this gain minus the gain of the controls, equally many parameters in random other layers, one set of
them for each of the ``num_pairs`` masks. The intervals hold for each row alone: they are not corrected for the number
of rows."""
ONE_MASK = "no interval: one mask"
"""The note beside a number that rests on a single random mask."""
_FEW = 0.02
Interval = tuple[float, float, float]
"""(estimate, low, high)."""


@dataclass(frozen=True)
class Variant:
    """One repair of the path with one mask, at several alphas, and its answers on every data set."""

    variant: str
    """Its name in the table, e.g. ``straggler:delta:random:0.5``, the same for all masks."""
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
    mask: int = 1
    """The number of the mask: the stragglers' mask i is set against that of the random layers with the same number."""

    @property
    def drawn(self) -> bool:
        """Whether another seed would make another model: the mask is random, or the layers are."""
        return self.control == "random_layers" or draws_masks(self.select, self.density)


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
    """The interval of ``estimate``, which allows for the choice of the best row (``twolevels.max_min_over_draws``)."""
    best: str
    """The name of the row that has the maximum, e.g. ``delta:magnitude:0.5``; empty where there is none."""
    flags: Mapping[str, Interval] = field(default_factory=dict)
    """Failure flag of accuracy -> its estimate and bounds on the repaired points of the row ``best``, with the formulas
    of ``failure_table``: F1 max over alphas of OOD(repaired) - OOD(0), F2 max of min(OOD(0), OOD(1)) - OOD(repaired),
    F4 max of chord(alpha) - OOD(repaired), each OOD(repaired) a mean over masks. The bounds allow for the choice of the
    row and of the alpha. A flag that is not in it cannot be told: the plain path lacks an end, or no repaired point
    lies where the flag is defined."""


@dataclass(frozen=True)
class _Cells:
    """Every model (variant, mask, alpha), matched with the plain path: arrays [K], replicates [R, K]."""

    of: Sequence[tuple[Variant, float]]
    id_accuracy: np.ndarray
    ood_accuracy: np.ndarray
    alpha: np.ndarray
    plain: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    """Share of the replicates in which the plain path never has the ID accuracy."""
    replicates: np.ndarray
    """Bootstrap replicates of the gain."""
    ood_replicates: np.ndarray
    """Those of the OOD accuracy [R, K]."""
    ends: tuple[np.ndarray, np.ndarray] | None
    """OOD accuracy [2] of the plain path at alpha 0 and 1, and its replicates [R, 2]; None where it lacks one."""
    span: str
    """The range of ID accuracy of the plain path, as text."""

    @property
    def gain(self) -> np.ndarray:
        return np.where(self.inside, self.ood_accuracy - self.plain, np.nan)


def analyse_repairs(
    pair: str,
    alphas: Sequence[float],
    correct: Mapping[str, Answered],
    roles: Mapping[str, str],
    variants: Sequence[Variant],
    *,
    group: str = DEFAULT_GROUP,
    pictures: Mapping[str, np.ndarray] | None = None,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Repairs:
    """Gain of every repaired model over the plain path at the same ID accuracy, and over the controls.

        gain = mean over masks of [OOD(repaired) - OOD(plain path where ID = ID(repaired))]

    ID and OOD accuracy are averages over their data sets. The interval has two levels (``twolevels.over_draws``): the
    examples, by a bootstrap within each data set and paired across all models, in which every replicate finds its own
    matching alpha; and the masks (for random layers with their layers), by their spread. A number that rests on one
    random draw, or on a set of fewer than ``resampling.FEWEST_IMAGES`` images, has no interval. A mask whose ID
    accuracy the plain path never has is left out; where no mask is left the row is "undefined". Replicates in which
    that happens use the nearest ID accuracy of the path; the note says so where they are more than 2 %.

    Args:
        pair: name of the pair.
        alphas: [A] of the plain path, increasing.
        correct: data set -> bool [A, n] (or predictions) of the plain path.
        roles: data set -> "id" | "ood".
        group: the name of the group of OOD sets that ``correct`` holds.
        pictures: data set -> [n], a number for the picture of each example; equal numbers are the same picture. A set
            that is not in it shares no picture with another.
        variants: the repairs and controls, one for each mask. The contrasts take the alphas at which every pair of
            stragglers and control can be matched.
        level: coverage of the intervals.
        bootstrap: number of replicates.
        seed: the run's seed.

    Returns:
        Repairs: the table, one row per variant and alpha in the order given, the contrasts, and the estimate on which
        the verdict rests.

    Raises:
        ConfigError: arrays, roles, names or controls that do not fit.
    """
    split = check_correct(alphas, correct, roles)
    names = [f"{v.variant}#{v.mask}" for v in variants]
    if len(set(names)) != len(names):
        raise ConfigError(f"repair: every mask of a variant needs its own number, got {', '.join(names)}.")
    of = [(v, float(alpha)) for v in variants for alpha in v.alphas]
    stacks = {role: _stacked(sets, variants) for role, sets in split.items()}
    nan = float("nan")
    none = Repairs(pair, group, table("repair", []), pd.DataFrame(columns=list(CONTRASTS)), nan, nan, nan, "")
    if not of:
        return none
    places = _places(of)
    sets = _control_sets(variants)
    heads = [{"pair": pair, "group": group, "n_controls": sets.get(_key(of[at[0]][0]), 0)} for at in places.values()]
    if not split["id"] or not split["ood"]:
        why = "no ID set was given" if not split["id"] else "no OOD set was given"
        blank = [_row([of[k] for k in at], [nan] * 7, "undefined", why) for at in places.values()]
        return replace(none, table=table("repair", [row | head for row, head in zip(blank, heads, strict=True)]))
    cells = _matched(pair, alphas, of, stacks, pictures, bootstrap, seed)
    few = why_no_interval({name: values for sets in stacks.values() for name, values in sets.items()}, bootstrap, level)
    rows = [_judged(cells, at, level, few) for at in places.values()]
    found = table("repair", [row | head for row, head in zip(rows, heads, strict=True)])
    return _contrasted(replace(none, table=found), cells, level, few)


def _key(v: Variant) -> tuple[str, str, float, bool]:
    """What stragglers and their random layers have in common; the last entry tells these two from other controls."""
    return v.target, v.select, v.density, v.control in ("none", "random_layers")


def _control_sets(variants: Sequence[Variant]) -> dict[tuple[str, str, float, bool], int]:
    """``_key`` -> the number of different sets of random layers."""
    of = [(_key(v), v.layers) for v in variants if v.control == "random_layers"]
    return {key: len({layers for other, layers in of if other == key}) for key, _ in of}


def _places(of: Sequence[tuple[Variant, float]]) -> dict[tuple[str, float], list[int]]:
    """(variant, alpha) -> the cells of its masks."""
    out: dict[tuple[str, float], list[int]] = {}
    for k, (v, alpha) in enumerate(of):
        out.setdefault((v.variant, alpha), []).append(k)
    return out


def _matched(
    pair: str,
    alphas: Sequence[float],
    of: Sequence[tuple[Variant, float]],
    stacks: Mapping[str, Mapping[str, Answered]],
    pictures: Mapping[str, np.ndarray] | None,
    bootstrap: int,
    seed: int,
) -> _Cells:
    def stream(name: str) -> np.random.Generator:
        return np.random.default_rng(derive(seed, "repair", pair, name))

    (id_mean, id_reps), (ood_mean, ood_reps) = (
        stratified_means(stacks[role], bootstrap, stream, pictures) for role in ("id", "ood")
    )
    fewest = min(len(id_reps), len(ood_reps))
    id_reps, ood_reps = id_reps[:fewest], ood_reps[:fewest]
    A = len(alphas)
    at, plain, inside = match_plain(id_mean[:A], ood_mean[:A], alphas, id_mean[A:])
    _, plain_reps, inside_reps = match_plain(id_reps[:, :A], ood_reps[:, :A], alphas, id_reps[:, A:])
    outside = 1 - inside_reps.mean(axis=0) if fewest else np.zeros(len(of))
    span = f"{id_mean[:A].min():.3f}-{id_mean[:A].max():.3f}"
    start, end = alpha_index(alphas, 0.0), alpha_index(alphas, 1.0)
    ends = None if start is None or end is None else (ood_mean[[start, end]], ood_reps[:, [start, end]])
    return _Cells(
        of, id_mean[A:], ood_mean[A:], at, plain, inside, outside, ood_reps[:, A:] - plain_reps, ood_reps[:, A:], ends,
        span,
    )  # fmt: skip


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


def _judged(cells: _Cells, at: Sequence[int], level: float, few: str) -> dict[str, object]:
    """The row of one variant at one alpha: the mean over its masks that can be matched."""
    known = [k for k in at if cells.inside[k]]
    of = [cells.of[k] for k in known or at]
    accuracies = [float(numbers[known or at].mean()) for numbers in (cells.id_accuracy, cells.ood_accuracy)]
    if not known:
        why = f"the plain path never has this ID accuracy (its range: {cells.span})"
        return _row(of, [*accuracies, *[float("nan")] * 5], "undefined", why)
    alone = len(known) == 1 and of[0][0].drawn
    outside = cells.outside[known].mean()
    said = [
        f"in {outside:.0%} of the replicates the plain path never has this ID accuracy" if outside > _FEW else "",
        f"{len(at) - len(known)} of {len(at)} masks are left out: the plain path never has their ID accuracy (its "
        f"range: {cells.span})" if len(known) < len(at) else "",
        few or (ONE_MASK if alone else ""),
    ]  # fmt: skip
    spread = over_draws(cells.gain[known][:, None], cells.replicates[:, known][:, :, None])
    low, high = (bound[0] for bound in spread.interval(level))
    bounds = [float("nan")] * 2 if few or alone else [low, high]
    numbers = [*accuracies, cells.alpha[known].mean(), cells.plain[known].mean(), spread.mean[0], *bounds]
    return _row(of, numbers, "ok", "; ".join(part for part in said if part))


def _row(of: Sequence[tuple[Variant, float]], numbers: Sequence[float], status: str, note: str) -> dict[str, object]:
    columns = ("id_accuracy", "ood_accuracy", "plain_alpha", "plain_ood_accuracy", "gain", "ci_low", "ci_high")
    v, alpha = of[0]
    return {
        "alpha": alpha,
        "variant": v.variant,
        "layers": " | ".join(unique_in_order("+".join(other.layers) for other, _ in of)),
        "target": v.target,
        "select": v.select,
        "density": v.density,
        "kept_fraction": float(np.mean([other.kept_fraction for other, _ in of])),
        "control": v.control,
        **{name: float(number) for name, number in zip(columns, numbers, strict=True)},
        "status": status,
        "note": note,
        "n_masks": len(of),
    }


def _contrasted(found: Repairs, cells: _Cells, level: float, few: str) -> Repairs:
    """``found`` with its contrasts, and the estimate made of them."""
    lines, spreads, names, repaired = [], [], [], []
    for key in unique_in_order((v.target, v.select, v.density) for v, _ in cells.of if v.control == "none"):
        name = ":".join(f"{part:g}" if isinstance(part, float) else str(part) for part in key)
        line: dict[str, object] = dict.fromkeys(CONTRASTS, float("nan"))
        line |= dict(zip(("target", "select", "density"), key, strict=True))
        line |= {"pair": found.pair, "name": name, "num_alphas": 0, "num_pairs": 0, "note": ""}
        lines.append(line)
        pairs = _pairs(cells, key)
        if not pairs.size:
            both = "every mask and its random-layer control"
            line["note"] = f"undefined: at no alpha does the plain path have the ID accuracies of {both}"
            continue
        why = few or (ONE_MASK if pairs.shape[1] == 1 else "")
        spread = _gain_and_difference(cells, pairs, bounded=not why)
        low, high = spread.interval(level)
        line |= {"num_pairs": pairs.shape[1], "num_alphas": pairs.shape[2], "note": why}
        for e, what in enumerate(("gain", "difference")):
            line |= {what: float(spread.mean[e]), f"{what}_low": float(low[e]), f"{what}_high": float(high[e])}
        spreads.append(spread)
        names.append(name)
        repaired.append(pairs[0])
    contrasts = pd.DataFrame(lines, columns=list(CONTRASTS))
    if not spreads:
        return replace(found, contrasts=contrasts)
    value, lower, upper, best = max_min_over_draws(spreads, level)
    flags = _flags_again(cells, repaired[best], 1 - (1 - level) / len(spreads)) if math.isfinite(lower) else {}
    return replace(
        found, contrasts=contrasts, estimate=value, ci_low=lower, ci_high=upper, best=names[best], flags=flags
    )


def _flags_again(cells: _Cells, masks: np.ndarray, level: float) -> dict[str, Interval]:
    """``Repairs.flags`` of the cells ``masks`` [masks, alphas]."""
    if cells.ends is None:
        return {}
    ends, drawn = cells.ends
    found: dict[str, list[OverDraws]] = {"F1": [], "F2": [], "F4": []}
    for at in masks.T:
        alpha = cells.of[at[0]][1]
        here, again = cells.ood_accuracy[at][:, None], cells.ood_replicates[:, at, None]
        if 0 < alpha <= 1:
            found["F1"].append(over_draws(here - ends[0], again - drawn[:, None, :1]))
        if 0 < alpha < 1:
            found["F2"].append(over_draws(ends - here, drawn[:, None, :] - again))
            line, lines = (chord(side[..., 0], side[..., 1], np.array([alpha])) for side in cells.ends)
            found["F4"].append(over_draws(line - here, lines[:, None] - again))
    return {flag: max_min_over_draws(parts, level)[:3] for flag, parts in found.items() if parts}


def _gain_and_difference(cells: _Cells, pairs: np.ndarray, *, bounded: bool) -> OverDraws:
    """Means over pairs of the stragglers' gain and of its difference to the random layers' gain, at all alphas."""
    mine, other = pairs
    gain, control = cells.gain[mine].mean(axis=1), cells.gain[other].mean(axis=1)
    own, its = cells.replicates[:, mine].mean(axis=2), cells.replicates[:, other].mean(axis=2)
    spread = over_draws(np.stack([gain, gain - control], axis=-1), np.stack([own, own - its], axis=-1))
    return spread if bounded else replace(spread, examples=np.full(2, np.nan))


def _pairs(cells: _Cells, key: tuple[object, ...]) -> np.ndarray:
    """Cells [2, pairs, alphas] of the stragglers and of the random layers with the same mask number.

    The alphas are those at which every pair is matched. Stragglers whose mask is not random have one mask, which is set
    against every control.
    """
    sides = []
    for control in ("none", "random_layers"):
        at: dict[int, dict[float, int]] = {}
        for k, (v, alpha) in enumerate(cells.of):
            if v.control == control and (v.target, v.select, v.density) == key:
                at.setdefault(v.mask, {})[alpha] = k
        sides.append(at)
    ours, controls = sides
    if len(ours) == 1 and not any(cells.of[k][0].drawn for at in ours.values() for k in at.values()):
        ours = dict.fromkeys(controls, next(iter(ours.values())))
    both = [(ours[mask], controls[mask]) for mask in ours if mask in controls]
    shared = [a for a in both[0][0] if all(_has(cells, at, a) for pair in both for at in pair)] if both else []
    return np.array([[[pair[side][a] for a in shared] for pair in both] for side in (0, 1)], dtype=int)


def _has(cells: _Cells, at: Mapping[float, int], alpha: float) -> bool:
    return alpha in at and bool(cells.inside[at[alpha]])
