"""Partial correlation of ranks given all covariates at once, with clusters moved whole within their zero-shot model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sharpscope.findings.controls import FEWEST_OWN, Controls, controls, place_of
from sharpscope.findings.design import Design
from sharpscope.findings.marginal import Block, empty_block, masks
from sharpscope.findings.rank_correlation import is_constant
from sharpscope.findings.reliability import (
    LEAST_RELIABILITY,
    SamplingError,
    at_reliability,
    reliability_of,
    with_errors,
)
from sharpscope.findings.resampling import permutation_p
from sharpscope.findings.residuals import known_of, residuals
from sharpscope.scores import percentile_interval
from sharpscope.tables.formats import number_of

__all__ = ["MOST_MOVED", "Contrast", "Partial", "contrast", "partial_correlation"]

MOST_MOVED = 0.1
"""Nothing is concluded where the sampling errors of a covariate may move the correlation by more than this (our
choice). With a larger value ID sets of fewer images suffice."""


@dataclass(frozen=True)
class Partial(Block):
    """Partial correlations of K columns.

    ``given`` holds the covariates held fixed; where there is no value, those that were to be. ``statistic`` [2, K] is
    the correlation itself and a studentised one, ``null`` [2, B, K] their values in the permutations; p is the larger
    of the two permutation p-values.
    """

    draws: np.ndarray
    """[B, K] replicates of the estimate, of which the interval consists; columns with the same pairs are paired."""


def partial_correlation(
    x: np.ndarray,
    y: np.ndarray,
    design: Design,
    covariates: Mapping[str, np.ndarray],
    *,
    keys: np.ndarray,
    rng: np.random.Generator,
    level: float = 0.95,
    outcome: str = "the outcome",
    errors: Mapping[str, SamplingError] | None = None,
) -> Partial:
    """Partial Spearman correlation of every row of ``x`` with ``y``, all of ``covariates`` held fixed at once.

    x, y and the covariates become ranks of units (``Design``). The estimate is the correlation of the residuals of x
    and y with respect to the zero-shot models and to splines of the covariates' ranks (``residuals``).

    For p the residuals of y are permuted, units within their zero-shot models, and taken again (Freedman and Lane). It
    is the larger of two: that of the correlation, and that of sum(e_x e_y) / sqrt(sum(e_x^2 e_y^2)) (DiCiccio and
    Romano). Where a learning rate moves the spread of both residuals, as the ends of a ranking do, the first rejects
    .07 to .09 of nulls at .05; the second does so with 8 units or with blocks of two. Together they keep the level
    (benchmarks/results/nulls.log), at the cost of a few points of power.

    The interval resamples units. With r* the correlation of a resample of the residuals, its replicates are
    tanh(z - c (z* - z)), z = atanh r. The factor c = 1 / sqrt((n - k - 3) v), v the variance of a resampled mean of n
    units, gives z the variance 1 / (n - k - 3) that it has; without it the interval at .95 covers .7 to .8. Refitting
    every resample would leave an interval of all of [-1, 1] at 20 units.

    Where the errors of the outcome are known, every replicate gets another draw of them: with e the residuals of the
    ranks of y and e* those of y with one more error, atanh(e_x . e*) - atanh(e_x . e) is added to its z. The
    reliability of the outcome beside the covariates (``reliability_of``) is in the note, and below
    ``LEAST_RELIABILITY`` the column is doubtful. It is also where the errors of a covariate move the estimate by more
    than ``MOST_MOVED`` (``at_reliability``): what a covariate with errors is to hold fixed it holds fixed in part.

    Args:
        x: [K, n] values, NaN where unknown.
        y: [n] outcomes.
        design: the blocks and clusters of the n pairs.
        covariates: name -> [n]; a pair without one of them is left out and counted in the note. A covariate that no
            pair has is named there.
        keys: ``design.keys``; their number is that of permutations and of replicates.
        rng: generator of the resamples.
        level: coverage of the interval.
        outcome: the name of y in messages.
        errors: the sampling errors of the outcome (under its name ``outcome``) and of covariates, over draws of images.

    Returns:
        Estimates in [-1, 1]. A column with fewer than 8 pairs, or without room for one covariate, has none, and ``why``
        says so.

    Sources: Freedman and Lane 1983, https://doi.org/10.1080/07350015.1983.10509354; Winkler et al. 2014,
    https://doi.org/10.1016/j.neuroimage.2014.01.060 (permutation within blocks); DiCiccio and Romano 2017,
    https://doi.org/10.1080/01621459.2016.1202117 (studentised permutation).
    """
    known, complete = known_of(covariates, len(y))
    unknown = [name for name in covariates if name not in known]
    asked = "+".join(sorted(known, key=place_of))
    out = _nothing(len(x), len(keys), asked)
    for here, pattern in masks(x, y):
        without = int((pattern & ~complete).sum())
        points = pattern & complete
        said = (
            [f"{number_of(without, 'pair')} without a covariate {'is' if without == 1 else 'are'} left out"]
            if without
            else []
        )
        said += [f"{name} is not known of any pair" for name in unknown]
        _fill(out, here, x[here][:, points], y[points], design.subset(points), {k: v[points] for k, v in known.items()},
              keys[:, points], rng, level, outcome, said, _cut(errors, points))  # fmt: skip
        for k in here:
            out.left_out[k] = "+".join(filter(None, (out.left_out[k], *unknown)))
    return out


def _nothing(columns: int, count: int, asked: str) -> Partial:
    """Columns without values."""
    nothing = np.full((2, count, columns), np.nan)
    blank = vars(empty_block(columns)) | {"given": [asked] * columns, "statistic": np.full((2, columns), np.nan)}
    return Partial(**(blank | {"null": nothing, "draws": nothing[0].copy()}))


def _fill(
    out: Partial,
    here: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    design: Design,
    covariates: Mapping[str, np.ndarray],
    keys: np.ndarray,
    rng: np.random.Generator,
    level: float,
    outcome: str,
    said: Sequence[str],
    errors: Mapping[str, SamplingError | None],
) -> None:
    """Fill the columns ``here`` of ``out``, which have the same pairs."""
    out.n[here], out.n_effective[here] = len(y), design.n_effective
    found = residuals(x, y, design, covariates, outcome)
    if found.why:
        for k in here:
            out.why[k] = "; ".join([found.why, *said])
        return
    held, ex, ey = found.held, found.x, found.y
    said = [*said, *_remarks(held, design, level)]
    estimate = np.clip(ex @ ey, -1.0, 1.0)
    permuted = held.remove(ey[design.orders(keys)])
    statistic = np.stack([estimate, _studentised(ex, ey[None])[0]])
    null = np.stack([np.clip(permuted @ ex.T, -1.0, 1.0), _studentised(ex, permuted)])
    draws = _replicates(
        ex, ey, estimate, design.resamples(len(keys), rng), design.resampling_error * max(held.left - 3, 1)
    )
    doubts = [held.doubt] if held.doubt else []
    if (error := errors.get(outcome)) is not None:
        drawn = with_errors(y, error, design, held, len(keys), rng)
        share = reliability_of(ey, drawn)
        said.append(f"reliability of {outcome} {'' if error.paired else 'at least '}{share:.2f}")
        if share < LEAST_RELIABILITY:
            doubts.append(_unreliable(outcome, share, error.paired))
        draws = _moved(draws, estimate, drawn @ ex.T)
    elif outcome in errors:
        said.append(f"the sampling error of {outcome} is not known")
    moved = _moved_by(x, y, design, covariates, held, errors, len(keys), rng)
    out.estimate[here], out.draws[:, here] = estimate, draws
    out.statistic[:, here], out.null[..., here] = statistic, null
    out.p[here] = np.max([permutation_p(s, n) for s, n in zip(statistic, null, strict=True)], axis=0)
    out.low[here], out.high[here] = percentile_interval(draws, level)
    words = "; ".join([*said, design.note(y)])
    for k, value, row, why in zip(here, estimate, x, moved, strict=True):
        out.doubt[k] = "; ".join([*doubts, *why])
        out.given[k], out.left_out[k], out.note[k] = "+".join(held.given), "+".join(held.left_out), words
        if not np.isfinite(value):
            out.why[k] = "the measure is constant" if is_constant(row) else f"{out.given[k]} determines the measure"


def _remarks(held: Controls, design: Design, level: float) -> list[str]:
    said = []
    if held.idle:
        said.append(f"{held.idle} units carry no weight, on zero-shot models with fewer than {FEWEST_OWN}")
    if held.left_out:
        said.append(f"covariates left out, so that n - k is {held.left}: {', '.join(held.left_out)}")
    if held.collinear:
        said.append(f"covariates left out, because the others determine them: {', '.join(held.collinear)}")
    if design.arrangements * (1 - level) < 1:
        said.append(f"the clusters can be permuted in only {design.arrangements:g} ways")
    return said


def _cut(errors: Mapping[str, SamplingError] | None, points: np.ndarray) -> dict[str, SamplingError | None]:
    return {name: error.subset(points) for name, error in (errors or {}).items()}


def _unreliable(outcome: str, share: float, paired: bool) -> str:
    if paired:
        why = f"the reliability of {outcome} is {share:.2f}, below {LEAST_RELIABILITY:g}"
        return f"the OOD sets have too few images to tell the models apart: {why}"
    why = f"the reliability of {outcome} may be {share:.2f}, below {LEAST_RELIABILITY:g}"
    return f"the OOD sets may have too few images to tell the models apart: by their intervals alone, {why}"


def _moved(draws: np.ndarray, estimate: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """``draws`` [B, K] of ``estimate`` [K], each moved in z as far as ``drawn`` [B, K] lies from the estimate."""
    most = 1 - 1e-9
    z, moved, at = (np.arctanh(np.clip(v, -most, most)) for v in (draws, np.nan_to_num(drawn), estimate))
    return np.tanh(z + moved - at)


def _moved_by(
    x: np.ndarray,
    y: np.ndarray,
    design: Design,
    covariates: Mapping[str, np.ndarray],
    held: Controls,
    errors: Mapping[str, SamplingError | None],
    count: int,
    rng: np.random.Generator,
) -> list[list[str]]:
    """For every row of ``x`` the covariates whose sampling errors move its partial correlation too far, in words."""
    out: list[list[str]] = [[] for _ in x]
    for name in held.given:
        if (error := errors.get(name)) is None:
            continue
        others = controls(design, {other: covariates[other] for other in held.given if other != name})
        z = others.remove(design.centred_ranks(covariates[name]))
        share = reliability_of(z, with_errors(covariates[name], error, design, others, count, rng))
        ex, ey = others.remove(design.centred_ranks(x)), others.remove(design.centred_ranks(y))
        at = [at_reliability(ex @ z, float(ey @ z), ex @ ey, one) for one in (share, 1.0)]
        far = ~(np.abs(at[0] - at[1]) <= MOST_MOVED)  # NaN is far
        for k in np.flatnonzero(far):
            least = "" if error.paired else "at least "
            out[k].append(
                f"{name} is measured on too few images to be held fixed: its reliability beside the other covariates "
                f"is {least}{share:.2f}, and errors of that size may move the correlation by more than {MOST_MOVED:g}"
            )
    return out


def _studentised(ex: np.ndarray, ey: np.ndarray) -> np.ndarray:
    """[B, K]: sum ex ey / sqrt(sum (ex ey)^2) of residuals ``ex`` [K, m] and ``ey`` [B, m]."""
    spread = np.square(ey) @ np.square(ex).T
    return np.where(spread > 0, (ey @ ex.T) / np.sqrt(np.where(spread > 0, spread, 1.0)), np.nan)


def _replicates(ex: np.ndarray, ey: np.ndarray, estimate: np.ndarray, weights: np.ndarray, error: float) -> np.ndarray:
    """Replicates [B, K] of the estimates, see ``partial_correlation``; ``error``: the variance that they would have, in
    units of the one that they should have."""
    top, sx, sy = weights @ (ex * ey).T, weights @ np.square(ex).T, (weights @ np.square(ey))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = top / np.sqrt(sx * sy)
    most = 1 - 1e-9
    z = np.arctanh(np.clip(estimate, -most, most))
    off = np.arctanh(np.clip(np.nan_to_num(resampled), -most, most)) - z
    return np.tanh(z - off / np.sqrt(error))


@dataclass(frozen=True)
class Contrast:
    """|first| - |other| of the partial correlations of one column and of K - 1 others, arrays [K - 1]."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    partial: Partial
    """The partial correlations of all K columns."""


def contrast(
    x: np.ndarray,
    y: np.ndarray,
    design: Design,
    covariates: Mapping[str, np.ndarray],
    *,
    keys: np.ndarray,
    rng: np.random.Generator,
    level: float = 0.95,
    outcome: str = "the outcome",
    errors: Mapping[str, SamplingError] | None = None,
) -> Contrast:
    """How much more than each other row of ``x`` [K, n] its first row tells about ``y``: |r_0| - |r_k|, paired.

    All rows are cut to the pairs that every one of them has, and resampled together. Each correlation keeps the sign of
    its estimate in all resamples, so that one near 0 is not made larger by taking the size of its replicates. p is that
    of the interval's inversion, 2 min(P(d* <= 0), P(d* >= 0)), never 0. Arguments as for ``partial_correlation``.
    """
    common = np.where(np.isfinite(x).all(axis=0), x, np.nan)
    found = partial_correlation(
        common, y, design, covariates, keys=keys, rng=rng, level=level, outcome=outcome, errors=errors
    )
    signed = np.sign(found.estimate) * found.draws
    draws = signed[:, :1] - signed[:, 1:]
    size = np.abs(found.estimate)
    estimate = size[0] - size[1:]
    low, high = percentile_interval(draws, level)
    tail = np.minimum((draws <= 0).sum(axis=0), (draws >= 0).sum(axis=0))
    p = np.where(np.isfinite(estimate), np.minimum(1.0, 2 * (1 + tail) / (1 + len(draws))), np.nan)
    return Contrast(estimate, low, high, p, found)
