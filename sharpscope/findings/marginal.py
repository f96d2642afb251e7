"""Plain correlations of many columns with one outcome, with clusters of pairs moved whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sharpscope.findings.design import Design
from sharpscope.findings.rank_correlation import correlate, is_constant, weighted_correlate
from sharpscope.findings.resampling import bca_interval, permutation_p
from sharpscope.tables.formats import number_of

__all__ = ["FEWEST", "Block", "empty_block", "marginal_block", "masks", "reasons"]

FEWEST = 4
"""The fewest independent points for which a correlation is computed."""


@dataclass(frozen=True)
class Block:
    """Results of one correlation method for all K columns: arrays [K]."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    n: np.ndarray
    """The number of points."""
    n_effective: np.ndarray
    """The number of independent ones."""
    given: list[str]
    """The covariates held fixed, joined by +."""
    left_out: list[str]
    """The covariates that were to be held fixed and are not, for lack of pairs or because no pair tells them, joined by
    +."""
    why: list[str]
    """Why a column has no value, or an empty string."""
    note: list[str]
    doubt: list[str]
    """Why nothing may be concluded from a column's value, or an empty string."""
    statistic: np.ndarray
    """[1, K]: the estimate."""
    null: np.ndarray
    """[1, B, K]: its values in the permutations."""


def masks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns that share the same usable points: (columns, points [n] bool)."""
    usable = np.isfinite(x) & np.isfinite(y)
    patterns, inverse = np.unique(usable, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        yield np.flatnonzero(inverse.ravel() == i), pattern


def reasons(x: np.ndarray, y: np.ndarray, needed: int, what: str, outcome: str) -> list[str]:
    m = x.shape[1]
    if m < needed:
        return [f"only {number_of(m, what)}; at least {needed} are needed"] * len(x)
    if is_constant(y):
        return [f"{outcome} is constant"] * len(x)
    return ["the measure is constant" if flat else "" for flat in is_constant(x)]


def empty_block(columns: int) -> Block:
    """Columns without values."""
    nan, counts = np.full(columns, np.nan), np.zeros(columns, dtype=int)
    return Block(
        estimate=nan, low=nan.copy(), high=nan.copy(), p=nan.copy(), n=counts, n_effective=counts.copy(),
        given=[""] * columns, left_out=[""] * columns, why=[""] * columns, note=[""] * columns,
        doubt=[""] * columns, statistic=nan[None].copy(), null=np.full((1, 0, columns), np.nan),
    )  # fmt: skip


def marginal_block(
    x: np.ndarray,
    y: np.ndarray,
    method: str,
    outcome: str,
    design: Design,
    keys: np.ndarray,
    rng: np.random.Generator,
    level: float,
) -> Block:
    """Estimate, BCa interval and permutation p of every row of ``x`` [K, n] against ``y`` [n] over units."""
    out = empty_block(len(x))
    null = np.full((len(keys), len(x)), np.nan)
    for columns, points in masks(x, y):
        own = design.subset(points)
        units = own.n_effective
        out.n[columns], out.n_effective[columns] = int(points.sum()), units
        if not units:
            why = [f"only 0 pairs; at least {FEWEST} are needed"] * len(columns)
        else:
            of_units = own.means if method == "pearson" else own.ranks
            xs, ys = of_units(x[np.ix_(columns, points)]), of_units(y[points])
            what = "pair" if units == points.sum() else "cluster"
            why = reasons(xs, ys, FEWEST, what, outcome)
        good = np.array([not w for w in why])
        if good.any():
            xs, picked = xs[good], columns[good]
            estimate = correlate(xs, ys[None], method)[0]
            null[:, picked] = correlate(xs, ys[own.orders(keys[:, points])], method)
            jack = weighted_correlate(xs, ys, 1 - np.eye(units), method)
            draws = weighted_correlate(xs, ys, own.resamples(len(keys), rng), method)
            out.estimate[picked] = out.statistic[0, picked] = estimate
            out.low[picked], out.high[picked] = bca_interval(estimate, draws, jack, level)
            out.p[picked] = permutation_p(estimate, null[:, picked])
            for k in np.flatnonzero(good)[~np.isfinite(estimate)]:
                why[k] = f"the measure or {outcome} varies by no more than rounding error"
        note = own.note(y[points]) if units else ""
        for column, reason in zip(columns, why, strict=True):
            out.why[column], out.note[column] = reason, note
    return replace(out, null=null[None])
