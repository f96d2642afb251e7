"""Straggler layers: the layers whose own movement costs accuracy or loss, by every criterion.

A straggler is a layer whose own interpolation causes the drop along the path (arXiv 2410.16476). The criteria of
``vocabulary.CRITERIA`` for finding them are compared side by side; none of them uses OOD labels. For every layer the
table also gives the probability that it is chosen when the data are resampled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError, did_you_mean
from sharpscope.findings.criteria import loss_scores
from sharpscope.findings.criteria.criticality import criticality
from sharpscope.findings.frames import alpha_index
from sharpscope.findings.losses import LayerLosses, NoiseLosses, between_ends
from sharpscope.findings.selection import Selection, select, standardise, sustained
from sharpscope.findings.sharpness import SharpnessGrid, sharpness_grids
from sharpscope.scores import resample_counts
from sharpscope.seeds import derive
from sharpscope.tables.rows import table, unique_in_order
from sharpscope.vocabulary import CRITERIA, Criterion, parse_rule

__all__ = ["SUSTAINED", "chosen_by", "chosen_layers", "sharpness_scores", "stragglers_table"]

SUSTAINED = 0.8
"""The share of the alphas at which a layer's sharpness has to stand out (our choice). A larger value chooses fewer
layers."""


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


def stragglers_table(
    pair: str,
    losses: Sequence[LayerLosses],
    noise: NoiseLosses | None,
    sharpness: pd.DataFrame,
    *,
    rule: str = "mad:2",
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every criterion's score, threshold and choice for every layer of one pair.

    The criteria are those of ``vocabulary.CRITERIA`` in their order. A criterion of single-layer paths is evaluated for
    each of its bases, and a criterion of sharpness for every measure of the table. ``probability`` is the share of
    replicates in which the layer is chosen. A replicate resamples the probe examples (loss criteria) or draws the
    sharpness estimates again from their error over draws of images (see ``SharpnessGrid.draws``). Where that error is
    not known, which ``note`` says, the error of the estimate on these images is used: the stderr, or the residual where
    an estimate has no stderr. A layer that does not move has the status ``frozen``; it is recognised by this status in
    the sharpness table or by a distance of 0 in ``noise``.

    Args:
        pair: name of the pair.
        losses: single-layer paths, one entry per base, in any order.
        noise: losses under noise for the criterion criticality, or None.
        sharpness: the sharpness table (other pairs in it are ignored).
        rule: mad:K | sd:T | top:K | abs:X.
        bootstrap: number of replicates R.
        seed: the run's seed.

    Returns:
        Table ``stragglers``: criteria in the order above, layers in the order given. For a criterion of sharpness the
        score is a z-score and the threshold K (with abs:X the value itself and X). Where no layer is chosen, ``note``
        says why.

    Raises:
        ConfigError: an unknown rule, or losses that do not fit each other.

    Sources: Abdollahpoorrostam 2024, arXiv 2410.16476 (stragglers). The criteria's own sources are given at
    ``instability``, ``barrier``, ``rewind`` and ``criticality``.
    """
    grids = list(sharpness_grids(sharpness, pair))
    still = set[str]().union(*(g.frozen for g in grids))
    if noise is not None:
        still |= {name for name, d in zip(noise.layers, noise.distance_sq, strict=True) if d == 0}
    by_base: dict[str, LayerLosses] = {entry.base: entry for entry in losses}
    resampled = {base: _resampled(pair, entry.losses, bootstrap, seed) for base, entry in by_base.items()}
    frames: list[Rows] = []
    for criterion in CRITERIA.values():
        if criterion.of == "path":
            frames += _loss_rows(pair, criterion, by_base, resampled, rule, still)
        elif criterion.of == "noise":
            frames += _noise_rows(pair, criterion, by_base, noise, rule, bootstrap, seed, still)
        else:
            frames += _sharpness_rows(pair, criterion, grids, rule, bootstrap, seed, still)
    return table("stragglers", (row for rows in frames for row in rows))


Rows = list[dict[str, object]]


def _rows(
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
    empty = "" if chosen.mask.any() else _why_nobody(scores)
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


def _why_nobody(scores: np.ndarray) -> str:
    known = scores[np.isfinite(scores)]
    if not len(known):
        return "no layer chosen: no layer has a score"
    if not known.any():
        return "no layer chosen: the score of every layer is 0"
    return "no layer chosen: no score exceeds the threshold"


def _loss_rows(
    pair: str,
    criterion: Criterion,
    by_base: Mapping[str, LayerLosses],
    resampled: Mapping[str, np.ndarray],
    rule: str,
    still: Collection[str],
) -> Iterator[Rows]:
    for base in (b for b in criterion.bases if b in by_base):
        entry = by_base[base]
        means = np.asarray(entry.losses, dtype=float).mean(axis=-1)
        moving = np.array([name not in still for name in entry.layers])
        scores = np.where(moving, loss_scores(criterion.name, means, entry.alphas), np.nan)
        chosen = select(scores, rule, floor=0.0)
        again = np.where(moving, loss_scores(criterion.name, resampled[base], entry.alphas), np.nan)
        probability = select(again, rule, floor=0.0).mask.mean(axis=0)
        notes = [""] * len(entry.layers)
        if criterion.name == "instability":
            _, _, start, end = between_ends(means, entry.alphas)
            forced = np.abs(start - end) / 2
            notes = [f"{g:.3g} of the score is due to the different losses of the two ends alone" for g in forced]
        missing = ("failed", "the loss is not finite somewhere on this layer's path")
        yield _rows(pair, criterion.name, base, rule, entry.layers, still, scores, chosen, probability, notes, missing)


def _resampled(pair: str, losses: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """Mean losses of every bootstrap sample of the probe examples: [R, *losses.shape[:-1]].

    All bases and criteria share one random stream and are therefore judged on the same resamples.
    """
    n = losses.shape[-1]
    counts = resample_counts(n, bootstrap, np.random.default_rng(derive(seed, "stragglers", pair, n)))
    flat = np.asarray(losses, dtype=float).reshape(-1, n)
    means = np.full((bootstrap, len(flat)), np.nan)
    finite = np.isfinite(flat).all(axis=1)  # otherwise one NaN row would spread to all others through 0 * NaN
    means[:, finite] = counts.astype(float) @ flat[finite].T / n
    return means.reshape(bootstrap, *losses.shape[:-1])


def _noise_rows(
    pair: str,
    criterion: Criterion,
    by_base: Mapping[str, LayerLosses],
    noise: NoiseLosses | None,
    rule: str,
    bootstrap: int,
    seed: int,
    still: Collection[str],
) -> Iterator[Rows]:
    if noise is None:
        return
    moving = np.array([name not in still for name in noise.layers])
    (base,) = criterion.bases  # the noise is added where all other layers are fine-tuned
    entry = by_base.get(base)
    usable = entry is not None and entry.losses.shape[-1] == noise.losses.shape[-1]
    if entry is None or not usable:
        scores = np.full(len(noise.layers), np.nan)
        why = "the fine-tuned loss of the same probe examples is missing (single-layer paths, base finetuned)"
        chosen, notes = select(scores, rule, floor=0.0), [why] * len(noise.layers)
        zero, undefined = np.zeros(len(noise.layers)), ("undefined", why)
        yield _rows(pair, criterion.name, base, rule, noise.layers, still, scores, chosen, zero, notes, undefined)
        return
    # The loss at theta_1 itself: any layer at alpha = 1 with all other layers at theta_1.
    end = alpha_index(entry.alphas, 1.0)
    reference = np.asarray(entry.losses[0, end], dtype=float)
    values = np.asarray(noise.losses, dtype=float)
    raw, censored = criticality(values.mean(axis=-1), reference.mean(), noise)
    raw = np.where(moving, raw, np.nan)
    joined = np.concatenate([reference[None], values.reshape(-1, values.shape[-1])])
    again = _resampled(pair, joined, bootstrap, seed)
    drawn, _ = criticality(again[:, 1:].reshape(bootstrap, *values.shape[:3]), again[:, 0], noise)
    # Scores span orders of magnitude and may be 0 (a fully rewindable layer), so outliers are found on log(1 + score).
    absolute = parse_rule(rule)[0] == "abs"
    chosen = select(raw if absolute else np.log1p(raw), rule, floor=0.0)
    chosen = chosen if absolute else Selection(np.expm1(chosen.threshold), chosen.mask)
    drawn = np.where(moving, drawn, np.nan)
    probability = select(drawn if absolute else np.log1p(drawn), rule, floor=0.0).mask.mean(axis=0)
    notes = ["lower bound: every noise level tried raises the loss beyond the slack" if c else "" for c in censored]
    rms = ("undefined", "the layer's weights are all 0, so noise in units of their rms is undefined")
    yield _rows(pair, criterion.name, base, rule, noise.layers, still, raw, chosen, probability, notes, rms)


def _sharpness_rows(
    pair: str,
    criterion: Criterion,
    grids: Sequence[SharpnessGrid],
    rule: str,
    bootstrap: int,
    seed: int,
    still: Collection[str],
) -> Iterator[Rows]:
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
        notes = [_along(grid, i, log) for i in range(len(grid.layers))]
        base = f"{SUSTAINED:.0%} of {len(grid.alphas)} alphas in [{grid.alphas[0]:g}, {grid.alphas[-1]:g}]"
        name = f"{form}:{grid.measure}"
        missing = ("undefined", "too few alphas have a value")
        yield _rows(pair, name, base, rule, grid.layers, still, scores, chosen, probability, notes, missing)


def _along(grid: SharpnessGrid, layer: int, log: bool) -> str:
    known = np.isfinite(grid.estimate[layer])
    parts = []
    negative = int((grid.estimate[layer][known] <= 0).sum())
    if log and negative:
        parts.append(f"estimate <= 0, so no log, at {negative} of {len(grid.alphas)} alphas: these count as too low")
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


def chosen_layers(stragglers: pd.DataFrame, criterion: str, *, pair: str | None = None) -> tuple[str, ...]:
    """The layers that ``criterion`` chose, in the table's order (that of the forward pass); possibly none.

    For a loss criterion the first of its bases in the table counts: finetuned where the table has it.

    Args:
        stragglers: the table.
        criterion: e.g. ``share:hessian_trace``.
        pair: needed when the table holds several.

    Raises:
        ConfigError: no such criterion (with the nearest one), or several pairs and none named.
    """
    rows = stragglers if pair is None else stragglers[stragglers["pair"] == pair]
    if rows["pair"].nunique() > 1:
        raise ConfigError(f"chosen_layers: name one of the pairs {', '.join(unique_in_order(rows['pair']))}.")
    known = unique_in_order(rows["criterion"])
    if criterion not in known:
        raise ConfigError(f"criterion: '{criterion}' is not in the table.{did_you_mean(criterion, known)}")
    rows = rows[rows["criterion"] == criterion]
    return tuple(rows.loc[(rows["base"] == rows["base"].iloc[0]) & rows["chosen"].astype(bool), "layer"])


def chosen_by(stragglers: pd.DataFrame, criterion: str | None) -> dict[str, tuple[str, ...]] | None:
    """Pair -> the layers that ``criterion`` chose, or None where the table does not have it."""
    own = stragglers[stragglers["criterion"] == criterion]
    pairs = unique_in_order(own["pair"])
    return {str(pair): chosen_layers(own, str(criterion), pair=str(pair)) for pair in pairs} or None
