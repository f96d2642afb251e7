"""Correlation of ID sharpness with OOD accuracy: descriptive along one path, evidence across pairs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sharpscope.findings.frames import accuracy_grid, alpha_index
from sharpscope.findings.pathcosts import with_costs
from sharpscope.findings.rank_correlation import (
    correlate,
    is_constant,
    partial_null,
    partial_spearman,
    weighted_correlate,
)
from sharpscope.findings.resampling import bca_interval, benjamini_hochberg, permutation_p
from sharpscope.findings.sharpness import Cube, sharpness_cube
from sharpscope.scores import resample_counts
from sharpscope.seeds import derive
from sharpscope.tables.rows import dense_rows, groups_in, of_group, table, unique_in_order
from sharpscope.vocabulary import AGAINST, ALL, BEST, CORRELATIONS, GROUP_TITLES, OOD_MEAN, PAIRS

__all__ = ["COVARIATE", "FEWEST", "pair_correlations", "path_correlations"]

COVARIATE = "covariate:"
"""Prefix of the ``measure`` in rows that correlate a covariate itself, instead of sharpness, with OOD accuracy.
Sharpness adds information only if it beats these rows."""
FEWEST = 4
"""The fewest points for which a correlation is computed; a partial correlation needs one point more."""
PATH_NOTE = "descriptive: points along one path are not independent"


@dataclass(frozen=True)
class _Block:
    """Results of one correlation method for all K columns: arrays [K]; ``null`` [B, K] or None."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    n: np.ndarray
    why: list[str]
    """Why a column has no value, or an empty string."""
    null: np.ndarray | None = None


def _masks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns that share the same usable points: (columns, points [n] bool)."""
    usable = np.isfinite(x) & np.isfinite(y)
    patterns, inverse = np.unique(usable, axis=0, return_inverse=True)
    for i, pattern in enumerate(patterns):
        yield np.flatnonzero(inverse.ravel() == i), pattern


def _reasons(x: np.ndarray, y: np.ndarray, needed: int, what: str, outcome: str) -> list[str]:
    m = x.shape[1]
    if m < needed:
        return [f"only {m} {what}; at least {needed} are needed"] * len(x)
    if is_constant(y):
        return [f"{outcome} is constant"] * len(x)
    return ["the measure is constant" if flat else "" for flat in is_constant(x)]


def _empty(columns: int, count: int) -> _Block:
    nan = np.full(columns, np.nan)
    return _Block(nan, nan.copy(), nan.copy(), nan.copy(), np.full(columns, count), [""] * columns)


def _block(
    x: np.ndarray,
    y: np.ndarray,
    method: str,
    outcome: str,
    perms: np.ndarray,
    boot: np.random.Generator,
    level: float,
    given: tuple[str, np.ndarray] | None = None,
) -> _Block:
    """Estimate, BCa interval and permutation p of every row of ``x`` [K, n] against ``y`` [n] over pairs."""
    out = _empty(len(x), 0)
    null = np.full((len(perms), len(x)), np.nan)
    z = None if given is None else given[1]
    for columns, points in _masks(x, y if z is None else np.where(np.isfinite(z), y, np.nan)):
        m = int(points.sum())
        out.n[columns] = m
        xs, ys, needed = x[np.ix_(columns, points)], y[points], FEWEST + (given is not None)
        why = (
            _reasons(xs, ys, needed, "pairs", outcome)
            if m
            else [f"only 0 pairs; at least {needed} are needed"] * len(columns)
        )
        zs = None if z is None else z[points]
        if zs is not None and m >= needed and is_constant(zs):
            why = [f"{given[0] if given else ''} is constant"] * len(columns)
        good = np.array([not w for w in why])
        if good.any():
            xs, picked = xs[good], columns[good]
            weights = resample_counts(m, len(perms), boot)
            jack = weighted_correlate(xs, ys, 1 - np.eye(m), method, zs)
            draws = weighted_correlate(xs, ys, weights, method, zs)
            if zs is None:
                estimate = correlate(xs, ys[None], method)[0]
                null[:, picked] = correlate(xs, y[perms][:, points], method)
            else:
                estimate = partial_spearman(xs, ys, zs)
                null[:, picked] = partial_null(xs, ys, zs, np.argsort(perms[:, points], axis=1))
            out.estimate[picked] = estimate
            out.low[picked], out.high[picked] = bca_interval(estimate, draws, jack, level)
            out.p[picked] = permutation_p(estimate, null[:, picked])
            for k in np.flatnonzero(good)[~np.isfinite(estimate)]:
                why[k] = (
                    f"{given[0]} orders the pairs exactly as the measure or {outcome} does, or in reverse"
                    if given
                    else f"the measure or {outcome} varies by no more than rounding error"
                )
        for column, reason in zip(columns, why, strict=True):
            out.why[column] = reason
    return replace(out, null=null)


def pair_correlations(
    sharpness: pd.DataFrame,
    accuracy: pd.DataFrame,
    covariates: pd.DataFrame | None = None,
    *,
    source: str,
    seed: int = 0,
    bootstrap: int = 1000,
    level: float = 0.95,
    alphas: Sequence[float] | None = None,
    stragglers: Mapping[str, Collection[str]] | None = None,
    costs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Correlation across pairs at each fixed alpha, with one point per pair.

    Every layer and measure (raw and ``share:``) is correlated at every alpha with OOD accuracy and with OOD gain: by
    Pearson, Spearman and Kendall (tau-b), and by Spearman with a covariate held fixed (``spearman|id_accuracy``,
    ``spearman|distance`` ...). Per-parameter values differ from raw ones by a constant factor in each layer, would
    give the same numbers and are left out.

    Intervals come from a BCa bootstrap over PAIRS. p is two-sided, from permutations of the outcome over pairs, and
    never 0; for a partial correlation the residuals of the outcome given the covariate are permuted. The row
    ``(best)`` holds the layer with the largest |correlation|. Its p is that of the maximum over layers, and it has no
    interval because it was picked for being large. q is Benjamini-Hochberg over the layers of one (measure, alpha,
    method); for a single test such as ``(all)`` it equals p.

    Args:
        sharpness: sharpness table of several pairs.
        accuracy: accuracy table of the same pairs (the plain path's rows are used).
        covariates: columns pair, alpha and one or more numbers (distance, id_accuracy, learning_rate ...); NaN allowed.
        source: "run" | "shipped".
        seed: seed of the resampling.
        bootstrap: number of bootstrap replicates, and of permutations.
        level: coverage of the intervals.
        alphas: the alphas to use; by default all above 0 at which every pair that has sharpness has it, or, where no
            pair has any, at which every pair has an accuracy.
        stragglers: pair -> straggler layers; adds the layers ``(stragglers)`` and ``(others)``.
        costs: what interpolation costs in loss (``pathcosts.path_costs``); adds the measures instability, barrier and
            rewind of the whole path, layer ``(all)``, and of single layers. They do not change with alpha, and of
            several layers together they have no value.

    Returns:
        Table ``correlations`` with scope "pairs" and pair "(pairs)". With fewer than 4 points (5 for a partial
        correlation) or a constant column the status is "undefined", and the note says why.

    Raises:
        ConfigError: ``stragglers`` is given and the sharpness table has an unknown measure.

    Sources: Efron 1987, https://doi.org/10.1080/01621459.1987.10478410 (BCa); Freedman and Lane 1983,
    https://doi.org/10.1080/07350015.1983.10509354 (partial permutation); Benjamini and Hochberg 1995,
    https://doi.org/10.1111/j.2517-6161.1995.tb02031.x (q).
    """
    accuracy = dense_rows(accuracy)
    measured = set(sharpness["pair"]) | (set() if costs is None else set(costs["pair"]))
    pairs = sorted(measured & set(accuracy["pair"]))
    chosen = _common_alphas(sharpness, accuracy, pairs) if alphas is None else [float(a) for a in alphas]
    cube = sharpness_cube(sharpness, pairs, chosen, stragglers)
    cube = cube if costs is None else with_costs(cube, costs)
    z_names = [] if covariates is None else [c for c in covariates.columns if c not in ("pair", "alpha")]
    rows: list[dict[str, object]] = []
    for dataset, group in _means_of(accuracy):
        ood = accuracy_grid(accuracy, OOD_MEAN, dataset, pairs, chosen)
        start = accuracy_grid(accuracy, OOD_MEAN, dataset, pairs, (0.0,))
        for a, alpha in enumerate(chosen):
            given = {name: _covariate(covariates, name, pairs, alpha) for name in z_names}
            for against, y in zip(AGAINST, (ood[:, a], ood[:, a] - start[:, 0]), strict=True):
                known = np.isfinite(y)
                head = {"pair": PAIRS, "against": against, "dataset": dataset, "scope": "pairs", "alpha": alpha}
                head["group"] = group
                part = _one_outcome(cube, a, y, known, given, {**head, "source": source}, seed, bootstrap, level)
                rows.extend(part)
    return table("correlations", rows)


def _one_outcome(
    cube: Cube,
    a: int,
    y: np.ndarray,
    known: np.ndarray,
    given: Mapping[str, np.ndarray],
    head: Mapping[str, object],
    seed: int,
    bootstrap: int,
    level: float,
) -> Iterator[dict[str, object]]:
    keys = cube.columns()
    labels = [(cube.measures[m], cube.layers[layer]) for m, layer in keys]
    x = cube.values[[m for m, _ in keys], [layer for _, layer in keys], :, a][:, known] if keys else np.empty((0, 0))
    n, outcome = int(known.sum()), str(head["against"])
    perms = _permutations(n, bootstrap, derive(seed, "permutation", head["dataset"], head["alpha"]))
    zs = {name: z[known] for name, z in given.items()}
    whole = [(COVARIATE + name, ALL) for name in zs]
    x = x.reshape(len(keys), n)
    plain = np.vstack([x, *(z[None] for z in zs.values())])
    for method in CORRELATIONS:
        boot = np.random.default_rng(derive(seed, "pairs", head["dataset"], head["alpha"], method))
        block = _block(plain, y[known], method, outcome, perms, boot, level)
        yield from _rows(labels + whole, block, {**head, "method": method})
    for name, z in zs.items():
        boot = np.random.default_rng(derive(seed, "pairs", head["dataset"], head["alpha"], "partial", name))
        block = _block(x, y[known], "spearman", outcome, perms, boot, level, (name, z))
        yield from _rows(labels, block, {**head, "method": f"spearman|{name}"})


def _rows(labels: Sequence[tuple[str, str]], block: _Block, head: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Rows of one method: for each measure its ``(best)`` row, then its layers with q over these layers."""
    for measure in unique_in_order(m for m, _ in labels):
        here = [k for k, (m, _) in enumerate(labels) if m == measure]
        single = np.array([k for k in here if labels[k][1] not in GROUP_TITLES], dtype=int)
        q = block.p.copy()
        q[single] = benjamini_hochberg(block.p[single])
        if len(single) > 1:
            yield _best_row(measure, single, labels, block, head)
        for k in here:
            bad = not np.isfinite(block.estimate[k])
            flat = (
                "" if bad or np.isfinite(block.low[k]) else "no interval: all resamples agree, or too few have a value"
            )
            yield {
                **head,
                "layer": labels[k][1],
                "measure": measure,
                "estimate": float(block.estimate[k]),
                "ci_low": float(block.low[k]),
                "ci_high": float(block.high[k]),
                "p_value": float(block.p[k]),
                "q_value": float(q[k]),
                "n": int(block.n[k]),
                "status": "undefined" if bad else "ok",
                "note": block.why[k] if bad else flat,
            }


def _best_row(
    measure: str, single: np.ndarray, labels: Sequence[tuple[str, str]], block: _Block, head: Mapping[str, object]
) -> dict[str, object]:
    nan = float("nan")
    row = {**head, "layer": BEST, "measure": measure, "ci_low": nan, "ci_high": nan}
    known = single[np.isfinite(block.estimate[single])]
    if not len(known) or block.null is None:
        n = int(block.n[single].max())
        why = f"no layer has a correlation ({block.why[single[0]]})"
        none = {"estimate": nan, "p_value": nan, "q_value": nan, "n": n, "status": "undefined", "note": why}
        return {**row, **none}
    size = np.abs(block.estimate[known])
    best = min(known[size >= size.max() - 1e-12], key=lambda k: labels[k][1])  # a tie does not depend on row order
    estimate = block.estimate[best]
    largest = np.abs(np.where(np.isfinite(block.null[:, known]), block.null[:, known], 1.0)).max(axis=1)
    p = float(permutation_p(np.array([estimate]), largest[:, None])[0])
    allowed = "p_value allows for the choice of the layer; a layer chosen this way has no interval"
    note = f"best of {len(known)} layers: {labels[best][1]}; {allowed}"
    some = {"estimate": float(estimate), "p_value": p, "q_value": p, "n": int(block.n[best])}
    return {**row, **some, "status": "ok", "note": note}


def path_correlations(sharpness: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Correlation along alpha inside each pair: descriptive only.

    The points of one path are not independent and both curves bend with alpha. n is therefore not a sample size, and
    neither an interval nor a p-value is given. (A circular-shift test of 11 points could not give a p below 1/11, and
    a path is not periodic.) OOD accuracy and OOD gain differ by a constant along one path, so both give the same
    correlation.

    Returns:
        Table ``correlations`` with scope "path" and alpha NaN. With fewer than 4 alphas or a constant column the status
        is "undefined", and the note says why.

    Raises:
        ConfigError: the sharpness table has an unknown measure, which has no rule by which layers add up.
    """
    accuracy = dense_rows(accuracy)
    rows: list[dict[str, object]] = []
    nan = float("nan")
    for pair in unique_in_order(sharpness["pair"]):
        alphas = sorted(unique_in_order(float(v) for v in sharpness.loc[sharpness["pair"] == pair, "alpha"]))
        cube = sharpness_cube(sharpness, [pair], alphas)
        keys = cube.columns()
        x = np.array([cube.values[m, layer, 0] for m, layer in keys])
        for dataset, group in _means_of(accuracy[accuracy["pair"] == pair]):
            ood = accuracy_grid(accuracy, OOD_MEAN, dataset, [pair], alphas)[0]
            start = accuracy_grid(accuracy, OOD_MEAN, dataset, [pair], (0.0,))[0, 0]
            for against, y in zip(AGAINST, (ood, ood - start), strict=True):
                for method in CORRELATIONS:
                    block = _path_block(x, y, method, against)
                    for k, (m, layer) in enumerate(keys):
                        bad = not np.isfinite(block.estimate[k])
                        rows.append(
                            {
                                "pair": pair,
                                "layer": cube.layers[layer],
                                "measure": cube.measures[m],
                                "against": against,
                                "dataset": dataset,
                                "group": group,
                                "scope": "path",
                                "alpha": nan,
                                "method": method,
                                "estimate": float(block.estimate[k]),
                                "ci_low": nan,
                                "ci_high": nan,
                                "p_value": nan,
                                "q_value": nan,
                                "n": int(block.n[k]),
                                "source": "run",
                                "status": "undefined" if bad else "ok",
                                "note": block.why[k] if bad else PATH_NOTE,
                            }
                        )
    return table("correlations", rows)


def _path_block(x: np.ndarray, y: np.ndarray, method: str, outcome: str) -> _Block:
    out = _empty(len(x), 0)
    for columns, points in _masks(x, y):
        out.n[columns] = int(points.sum())
        xs, ys = x[np.ix_(columns, points)], y[points]
        why = (
            _reasons(xs, ys, FEWEST, "alphas", outcome)
            if points.any()
            else [f"only 0 alphas; at least {FEWEST} are needed"] * len(xs)
        )
        good = np.array([not w for w in why])
        if good.any():
            out.estimate[columns[good]] = correlate(xs[good], ys[None], method)[0]
        for column, reason in zip(columns, why, strict=True):
            out.why[column] = reason
    return out


def _permutations(n: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (count, 1)), axis=1)


def _common_alphas(sharpness: pd.DataFrame, accuracy: pd.DataFrame, pairs: Sequence[str]) -> list[float]:
    table = sharpness if len(sharpness) else accuracy
    sets = [
        set(table.loc[table["pair"] == p, "alpha"].astype(float).round(9)) for p in pairs if p in set(table["pair"])
    ]
    return sorted(a for a in set.intersection(*sets) if a > 0) if sets else []


def _means_of(accuracy: pd.DataFrame) -> list[tuple[str, str]]:
    """The means over OOD sets that the table has: (the names of their sets, their group)."""
    means = accuracy[accuracy["role"] == OOD_MEAN]
    return [(d, g) for g in groups_in(means) for d in unique_in_order(of_group(means, g)["dataset"])]


def _covariate(covariates: pd.DataFrame | None, name: str, pairs: Sequence[str], alpha: float) -> np.ndarray:
    out = np.full(len(pairs), np.nan)
    if covariates is None:
        return out
    for pair, at, value in zip(covariates["pair"], covariates["alpha"], covariates[name], strict=True):
        if pair in pairs and alpha_index((alpha,), float(at)) is not None:
            out[list(pairs).index(pair)] = value
    return out
