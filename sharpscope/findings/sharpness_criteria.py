"""The straggler criteria of sharpness: the level of a layer's sharpness along the path, and its change from theta_0."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np

from sharpscope.findings.frames import alpha_index
from sharpscope.findings.relativechange import changes_of
from sharpscope.findings.selection import Selection, select, standardise, sustained
from sharpscope.findings.sharpness import SharpnessGrid
from sharpscope.findings.straggler_rows import Rows, layer_rows
from sharpscope.seeds import derive
from sharpscope.vocabulary import AMONG_LARGEST, Criterion, parse_rule

__all__ = ["SUSTAINED", "change_rows", "level_rows", "sharpness_scores"]

SUSTAINED: Final = 0.8
"""The share of the alphas at which a layer's sharpness has to stand out (our choice). A larger value chooses fewer
layers."""
LARGEST: Final = "mad:2"
"""The rule by which a layer's share of the sharpness at theta_0 makes it one of the largest layers."""


def sharpness_scores(values: np.ndarray, rule: str) -> np.ndarray:
    """One score per layer from its sharpness along the path; ``select(scores, rule)`` then chooses layers.

    For mad:K, sd:T and top:K each value is first replaced by its z-score across layers at the same alpha; abs:X takes
    the value itself. The score is the level that the layer reaches at ``SUSTAINED`` of the alphas (``sustained``), so
    score > K means that the layer is an outlier at that many alphas.

    Args:
        values: [..., L, A]: log sharpness, or the share (linear); NaN where there is none.
        rule: the straggler rule.

    Returns:
        [..., L], NaN where too few alphas have a value.
    """
    kind, _ = parse_rule(rule)
    if kind != "abs":
        across = np.swapaxes(values, -1, -2)
        values = np.swapaxes(standardise(across, "sd" if kind == "sd" else "mad"), -1, -2)
    return sustained(values, SUSTAINED)


def _choose(scores: np.ndarray, rule: str, scored_as_z: bool, floor: float | None) -> Selection:
    """``select``, except that scores which are z-scores already are compared with K directly."""
    kind, number = parse_rule(rule)
    if scored_as_z and kind in ("mad", "sd"):
        return select(scores, f"abs:{number!r}")
    return select(scores, rule, floor=floor)


def level_rows(
    pair: str,
    criterion: Criterion,
    grids: Sequence[SharpnessGrid],
    rule: str,
    bootstrap: int,
    seed: int,
    still: Collection[str],
) -> Iterator[Rows]:
    """The rows of a criterion that judges how large sharpness is along the path, for every measure."""
    form, absolute = criterion.name, parse_rule(rule)[0] == "abs"
    for grid in grids:
        moving = np.array([name not in still for name in grid.layers])[:, None]
        rng = np.random.default_rng(derive(seed, "stragglers", pair, grid.measure))
        log = form != "share" and not absolute  # see SharpnessGrid.values for why shares stay linear
        values = np.where(moving, grid.values(form, log), np.nan)
        scores = sharpness_scores(values, rule)
        chosen = _choose(scores, rule, not absolute, None)
        drawn = np.where(moving, grid.draws(form, log, bootstrap, rng), np.nan)
        probability = _choose(sharpness_scores(drawn, rule), rule, not absolute, None).mask.mean(axis=0)
        notes = _notes(grid, [_along(grid, i, log) for i in range(len(grid.layers))])
        base = f"{SUSTAINED:.0%} of {len(grid.alphas)} alphas in [{grid.alphas[0]:g}, {grid.alphas[-1]:g}]"
        name = f"{form}:{grid.measure}"
        missing = ("undefined", "too few alphas have a value")
        yield layer_rows(pair, name, base, rule, grid.layers, still, scores, chosen, probability, notes, missing)


def change_rows(
    pair: str,
    criterion: Criterion,
    grids: Sequence[SharpnessGrid],
    rule: str,
    bootstrap: int,
    seed: int,
    still: Collection[str],
) -> Iterator[Rows]:
    """The rows of the criterion that judges the rise of sharpness above theta_0's, for every measure."""
    kind, number = parse_rule(rule)
    for grid in grids:
        name = f"{criterion.name}:{grid.measure}"
        rng = np.random.default_rng(derive(seed, "stragglers", pair, criterion.name, grid.measure))
        moving = np.array([layer not in still for layer in grid.layers])
        changes = changes_of(grid, moving, bootstrap, rng)
        missing = ("undefined", "no logarithm of the sharpness at theta_0 or at the end of the path")
        notes = _notes(grid, [_along(grid, i, False) for i in range(len(grid.layers))])
        if changes is None:
            scores, chosen = np.full(len(moving), np.nan), Selection(np.array(np.nan), np.zeros(len(moving), bool))
            probability = np.zeros(len(moving))
            missing = ("undefined", "the path has no estimate at theta_0 to compare with, or at theta_0 only")
        elif kind == "null":
            scores, chosen, probability = changes.calibrated(number, rng)
        else:
            scores, chosen = changes.relative, select(changes.relative, rule, floor=0.0)
            probability = select(changes.all_relative[:bootstrap], rule, floor=0.0).mask.mean(axis=0)
        relative = scores if changes is None else changes.relative
        notes = [_changed(c, note, missing[1]) for c, note in zip(relative, notes, strict=True)]
        base = f"{sum(0 <= a <= 1 for a in grid.alphas)} alphas in [0, 1] against theta_0"
        yield layer_rows(pair, name, base, rule, grid.layers, still, scores, chosen, probability, notes, missing)


def _changed(relative: float, note: str, missing: str) -> str:
    """``note`` behind the factor of a layer's change, or the reason why it has none."""
    said = f"changes {np.exp(relative):.3g} times as much as the median layer" if np.isfinite(relative) else missing
    return f"{said}; {note}" if note else said


def _notes(grid: SharpnessGrid, notes: Sequence[str]) -> list[str]:
    """``notes`` of the layers; those whose share stands out at theta_0 already are called the largest layers there."""
    start = alpha_index(grid.alphas, 0.0)
    if start is None:
        return list(notes)
    large = select(grid.share[:, start], LARGEST).mask
    return ["; ".join(x for x in (AMONG_LARGEST if big else "", n) if x) for big, n in zip(large, notes, strict=True)]


def _along(grid: SharpnessGrid, layer: int, log: bool) -> str:
    known = np.isfinite(grid.estimate[layer])
    parts = []
    negative = int((grid.estimate[layer][known] <= 0).sum())
    if log and negative:
        among = f"{negative} of {len(grid.alphas)} alphas"
        parts.append(f"estimate <= 0 at {among}: it has no logarithm there, so that the layer does not stand out")
    if not known.all():
        parts.append(f"no estimate at {int((~known).sum())} of {len(grid.alphas)} alphas")
    unknown = known & ~np.isfinite(grid.images[layer])
    if not grid.error[layer].any() and not np.nan_to_num(grid.images[layer]).any():
        parts.append("no stderr or residual, so the probability can only be 0 or 1")
    elif unknown.any():
        parts.append(
            f"the error over draws of images is unknown at {int(unknown.sum())} alphas, so the probability reflects "
            "the error of the estimate on these images only"
        )
    if grid.unconverged[layer].any():
        parts.append(f"not converged at {int(grid.unconverged[layer].sum())} alphas")
    return "; ".join(parts)
