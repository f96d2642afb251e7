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
from sharpscope.findings.criteria.instability import forced_part
from sharpscope.findings.frames import alpha_index
from sharpscope.findings.losses import LayerLosses, NoiseLosses
from sharpscope.findings.selection import Selection, select
from sharpscope.findings.sharpness import ImageParts, sharpness_grids
from sharpscope.findings.sharpness_criteria import change_rows, level_rows
from sharpscope.findings.straggler_rows import Rows, layer_rows
from sharpscope.scores import resample_counts
from sharpscope.seeds import derive
from sharpscope.tables.rows import table, unique_in_order
from sharpscope.vocabulary import BY_COST, CRITERIA, Criterion, parse_rule

__all__ = ["chosen_by", "chosen_layers", "stragglers_table"]


def stragglers_table(
    pair: str,
    losses: Sequence[LayerLosses],
    noise: NoiseLosses | None,
    sharpness: pd.DataFrame,
    *,
    parts: ImageParts | None = None,
    rule: str | None = None,
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
        parts: what each probe image adds to the estimates, where it is known. With it the images are resampled in
            pairs along the path; without it, the error of a change is bounded by those of its two ends.
        rule: mad:K | sd:T | top:K | abs:X, for every criterion, or null:Q for change:M. None: each criterion's own
            (``vocabulary.Criterion.rule``), which those without a null also use beside null:Q.
        bootstrap: number of replicates R.
        seed: the run's seed.

    Returns:
        Table ``stragglers``: criteria in the order above, layers in the order given. For a criterion of sharpness the
        score is a z-score and the threshold K (with abs:X the value itself and X). For change:M it is the z-score of
        ``Changes.calibrated`` with null:Q, and with every other rule the layer's change of log sharpness minus the
        median layer's. Where no layer is chosen, ``note`` says why. It also says of the layers of a sharpness
        criterion which are among the largest at theta_0.

    Raises:
        ConfigError: an unknown rule, or losses that do not fit each other.

    Sources: Abdollahpoorrostam 2024, arXiv 2410.16476 (stragglers). The criteria's own sources are given at
    ``instability``, ``barrier``, ``rewind`` and ``criticality``.
    """
    grids = list(sharpness_grids(sharpness, pair, parts))
    still = set[str]().union(*(g.frozen for g in grids))
    if noise is not None:
        still |= {name for name, d in zip(noise.layers, noise.distance_sq, strict=True) if d == 0}
    by_base: dict[str, LayerLosses] = {entry.base: entry for entry in losses}
    resampled = {base: _resampled(pair, entry.losses, bootstrap, seed) for base, entry in by_base.items()}
    frames: list[Rows] = []
    for criterion in CRITERIA.values():
        own = criterion.rule_of(rule)
        if criterion.of == "path":
            frames += _loss_rows(pair, criterion, by_base, resampled, own, still)
        elif criterion.of == "noise":
            frames += _noise_rows(pair, criterion, by_base, noise, own, bootstrap, seed, still)
        elif criterion.of == "sharpness":
            frames += level_rows(pair, criterion, grids, own, bootstrap, seed, still)
        else:
            frames += change_rows(pair, criterion, grids, own, bootstrap, seed, still)
    return table("stragglers", (row for rows in frames for row in rows))


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
        if criterion.name == BY_COST:
            forced = forced_part(means, entry.alphas)
            notes = [f"{g:.3g} of the score is due to the different losses of the two ends alone" for g in forced]
        missing = ("failed", "the loss is not finite somewhere on this layer's path")
        yield layer_rows(
            pair, criterion.name, base, rule, entry.layers, still, scores, chosen, probability, notes, missing
        )


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
        yield layer_rows(pair, criterion.name, base, rule, noise.layers, still, scores, chosen, zero, notes, undefined)
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
    yield layer_rows(pair, criterion.name, base, rule, noise.layers, still, raw, chosen, probability, notes, rms)


def chosen_layers(stragglers: pd.DataFrame, criterion: str, *, pair: str | None = None) -> tuple[str, ...]:
    """The layers that ``criterion`` chose, in the table's order (that of the forward pass); possibly none.

    For a loss criterion the first of its bases in the table counts: finetuned where the table has it.

    Args:
        stragglers: the table.
        criterion: e.g. ``change:hessian_trace``.
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
