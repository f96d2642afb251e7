"""What the tables of the emoji study say before any rule is applied: reliability and correlations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from population import ALPHA, MEASURE, Population
from scipy import stats

from sharpscope.findings.design import Design
from sharpscope.findings.layercontrast import ChosenLayers, random_sizes
from sharpscope.findings.partial import contrast, partial_correlation
from sharpscope.findings.pathcosts import path_costs
from sharpscope.findings.rank_correlation import is_constant, weighted_correlate
from sharpscope.findings.residuals import residual_rows
from sharpscope.findings.stragglers import chosen_by
from sharpscope.tables.rows import has_value, table
from sharpscope.vocabulary import ALL, BY_COST, DEFAULT_CRITERION, GROUP_TITLES, MEASURES

__all__ = [
    "CRITERIA",
    "by_base",
    "layer_rows",
    "predictors",
    "primary",
    "reliability",
    "residuals",
]

REPLICATES: Final = 2000
HALVES: Final = 200
SEED: Final = 15


# ---------------------------------------------------------------------------------------------------------- reliability
def reliability(population: Population) -> pd.DataFrame:
    """How well the outcome tells pairs apart, by group of OOD sets.

    ``half``: mean over random halves of the THINGS of the Spearman correlation, over pairs, of the gain on one half
    with that on the other, bases centred; ``reliability`` = 2 half / (1 + half), that of the gain on all things
    (Spearman 1910, Brown 1910). ``stderr``: the root mean square over pairs of a gain's standard error, things
    resampled; ``spread``: the standard deviation of the gain over pairs within bases; both in points. ``icc_setting``:
    the intra-class correlation of seeds of one setting.
    """
    rng, rows = np.random.default_rng(SEED), []
    for group in population.groups:
        halves = []
        for _ in range(HALVES):
            sides: list[list[np.ndarray]] = [[], []]
            for own in population.answers.values():
                half = rng.random(own.shown.shape[1]) < 0.5
                for side, things in zip(sides, (half, ~half), strict=True):
                    gain = own.gain(group, ALPHA, things)
                    side.append(gain - gain.mean())
            halves.append(stats.spearmanr(*map(np.concatenate, sides)).statistic)
        half = float(np.mean(halves))
        gain = population.gain(group).reindex(population.design.pairs).to_numpy()
        base = population.pairs["base"].to_numpy()
        centred = gain - pd.Series(gain).groupby(base).transform("mean").to_numpy()
        rows.append({
            "group": group, "pairs": len(gain), "half": half, "reliability": 2 * half / (1 + half),
            "stderr": 100 * _stderr(population, group),
            "spread": 100 * float(centred.std(ddof=population.design.n_bases)),
            "icc_setting": population.design.icc(centred, "setting"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _stderr(population: Population, group: str) -> float:
    """Root mean square over pairs of the standard error of a gain, things resampled (they occur in several sets)."""
    squares = []
    for own in population.answers.values():
        at = [j for j, g in enumerate(own.groups) if g == group]
        a, z = own.alphas.index(ALPHA), own.alphas.index(0.0)
        per_set = [(own.right[:, a, j] - own.right[:, z, j]) / own.shown[j].sum() for j in at]
        parts = np.mean(per_set, axis=0)[:, own.shown[at].any(axis=0)]
        squares.append(parts.shape[1] * parts.var(axis=1, ddof=1))
    return float(np.sqrt(np.concatenate(squares).mean()))


# --------------------------------------------------------------------------------------------------------- correlations
CRITERIA: Final = {"stragglers tell more": DEFAULT_CRITERION, "unstable layers tell more": BY_COST}
"""Claim -> the criterion that chooses its layers."""


def primary(population: Population, group: str, level: float) -> dict[str, Any]:
    """The joint partial Spearman correlation of the primary predictor with the gain on ``group``."""
    return _joint(population, group, {MEASURE: _whole(population, MEASURE)}, _held(population), level)[0]


def by_base(population: Population, group: str, level: float) -> dict[str, Any]:
    """``primary`` by the package's rule, stricter than the protocol's: every base has slopes of its own for all
    covariates and a curve of its own for the learning rate, and covariates may act together (``findings.controls``)."""
    own = dataclasses.replace(population.design, additive=False)
    return _joint(population, group, {MEASURE: _whole(population, MEASURE)}, _held(population), level, own)[0]


def residuals(population: Population, group: str) -> pd.DataFrame:
    """The points behind ``primary``, as the table ``residuals`` of a run has them: a row a pair."""
    design = population.design
    gain = population.gain(group).reindex(design.pairs).to_numpy()
    head = {"group": group, "measure": MEASURE, "alpha": ALPHA, "source": "run"}
    return table("residuals", residual_rows(_whole(population, MEASURE), gain, design, _held(population), head))


def layer_rows(population: Population, claim: str) -> pd.DataFrame:
    """Joint partial correlations of chosen layers, of all other layers, and of random sets, with each group's gain.

    Rows by ``layers``: chosen and others, r with its interval and p; difference, |r(chosen)| - |r(others)|, resampled
    in pairs; random, the median of |r| over random sets of as many layers, in place of an interval the middle 95 % of
    the sets, and as p the share of the sets that reach |r(chosen)|. A pair in which no layer, or every layer, is chosen
    is left out of all.
    """
    values = _by_layer(population)
    names = chosen_by(population.tables["stragglers"], CRITERIA[claim]) or {}
    chosen = np.array([[layer in names.get(p, ()) for p in values.columns] for layer in values.index], dtype=bool)
    rows = [_contrasted(population, group, values.to_numpy(), chosen) for group in population.groups]
    return pd.DataFrame([{"claim": claim, **row} for own in rows for row in own])


def _contrasted(population: Population, group: str, values: np.ndarray, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    design, held = population.design, _held(population)
    layers = ChosenLayers(values, chosen, MEASURES[MEASURE].adds_up)
    y = population.gain(group).reindex(design.pairs).to_numpy()
    keys = design.keys(REPLICATES, np.random.default_rng(SEED))
    found = contrast(layers.sets(), y, design, held, keys=keys, rng=np.random.default_rng(SEED))
    both = found.partial
    head = {"group": group, "n": both.n[0], "n_effective": both.n_effective[0], "given": both.given[0]}
    for k, name in enumerate(("chosen", "others")):
        numbers = _numbers(both.estimate[k], both.low[k], both.high[k], both.p[k])
        yield {**head, "layers": name, **numbers, "note": both.why[k] or both.note[k]}
    numbers = _numbers(found.estimate[0], found.low[0], found.high[0], found.p[0])
    yield {**head, "layers": "difference", **numbers, "note": both.why[0] or both.why[1]}
    size, sizes = abs(float(both.estimate[0])), np.empty(0)
    if math.isfinite(size):
        sizes = random_sizes(layers, y, design, held, keys=keys, seeds=(SEED, SEED + 1))
    middle = np.quantile(sizes, (0.5, 0.025, 0.975)) if len(sizes) else np.full(3, math.nan)
    reached = (1 + (sizes >= size - 1e-12).sum()) / (1 + len(sizes)) if len(sizes) else math.nan
    yield {**head, "layers": "random", **_numbers(*middle, reached), "note": f"{len(sizes)} random sets of layers"}


def _numbers(*values: float) -> dict[str, float]:
    return dict(zip(("estimate", "ci_low", "ci_high", "p_value"), map(float, values), strict=True))


def _by_layer(population: Population) -> pd.DataFrame:
    """[layers, pairs] the primary predictor of every layer, NaN where it has no value."""
    s = _at_alpha(population, MEASURE)
    own = s[~s["layer"].isin(GROUP_TITLES)].pivot(index="layer", columns="pair", values="estimate")
    return own.reindex(columns=list(population.design.pairs)).astype(float)


def predictors(population: Population, group: str) -> pd.DataFrame:
    """Every predictor of the gain: alone, and with all covariates but itself held fixed. Exploratory.

    ``alone``: Spearman's correlation within bases (of ranks less their base's mean), with the bootstrap's percentiles,
    settings resampled. ``kind``: sharpness | path (what interpolation costs in loss) | covariate. ``converged``: of
    sharpness, the share of the pairs whose estimate did.
    """
    held = _held(population)
    costs = path_costs(population.tables["path"])
    barrier = costs[(costs["layer"] == ALL) & (costs["measure"] == "barrier")].set_index("pair")["value"]
    known = {m: _whole(population, m) for m in dict.fromkeys(population.tables["sharpness"]["measure"])}
    kinds = dict.fromkeys(known, "sharpness") | {"barrier": "path"} | dict.fromkeys(held, "covariate")
    known |= {"barrier": barrier.reindex(population.design.pairs).to_numpy(dtype=float), **held}
    rows = []
    for name, values in known.items():
        given = {k: v for k, v in held.items() if k != name}
        (joint,) = _joint(population, group, {name: values}, given, 0.95)
        alone = _alone(population, values, population.gain(group))
        told = dict(zip(("alone", "alone_low", "alone_high"), alone, strict=True))
        share = _converged(population, name) if kinds[name] == "sharpness" else math.nan
        rows.append({**joint, "kind": kinds[name], **told, "converged": share})
    return pd.DataFrame(rows)


def _alone(population: Population, values: np.ndarray, gain: pd.Series) -> tuple[float, float, float]:
    """(correlation of centred ranks, low, high) over the pairs that have a value."""
    y = gain.reindex(population.design.pairs).to_numpy()
    known = np.isfinite(values) & np.isfinite(y)
    if is_constant(values[known]) or is_constant(y[known]):
        return math.nan, math.nan, math.nan
    design = population.design.subset(known)
    ranks = np.stack([design.centred_ranks(values[known]), design.centred_ranks(y[known])])
    weights = np.vstack([np.ones(design.n_effective), design.resamples(REPLICATES, np.random.default_rng(SEED))])
    found = weighted_correlate(ranks[:1], ranks[1], weights, "pearson")[:, 0]
    return float(found[0]), *(float(v) for v in np.nanquantile(found[1:], (0.025, 0.975)))


def _converged(population: Population, measure: str) -> float:
    s = _at_alpha(population, measure)
    return float(s.loc[s["layer"] == ALL, "converged"].astype(bool).mean())


def _whole(population: Population, measure: str) -> np.ndarray:
    """[pairs] the whole model's ``measure`` at the primary alpha, NaN where it is not finite."""
    s = _at_alpha(population, measure)
    own = s[s["layer"] == ALL]
    return own.set_index("pair")["estimate"].reindex(population.design.pairs).to_numpy(dtype=float)


def _at_alpha(population: Population, measure: str) -> pd.DataFrame:
    """The rows of ``measure`` at the primary alpha that have a value."""
    s = population.tables["sharpness"]
    return s[(s["measure"] == measure) & np.isclose(s["alpha"].astype(float), ALPHA) & has_value(s)]


def _held(population: Population) -> dict[str, np.ndarray]:
    """Covariate -> [pairs]: those of the protocol."""
    at = population.covariates
    own = at[np.isclose(at["alpha"].astype(float), ALPHA)].set_index("pair").reindex(population.design.pairs)
    found = {name: own[name].to_numpy(dtype=float) for name in ("distance", "id_accuracy")}
    return dict(population.design.covariates) | found


def _joint(
    population: Population,
    group: str,
    x: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    level: float,
    design: Design | None = None,
) -> list[dict[str, Any]]:
    design, rng = design or population.design, np.random.default_rng(SEED)
    y = population.gain(group).reindex(design.pairs).to_numpy()
    found = partial_correlation(
        np.stack(list(x.values())), y, design, given, keys=design.keys(REPLICATES, rng), rng=rng, level=level,
        outcome="the gain",
    )  # fmt: skip
    return [
        {
            "group": group, "predictor": name, "given": found.given[k], "estimate": float(found.estimate[k]),
            "ci_low": float(found.low[k]), "ci_high": float(found.high[k]), "p_value": float(found.p[k]),
            "n": int(found.n[k]), "n_effective": int(found.n_effective[k]), "note": found.note[k] or found.why[k],
        }
        for k, name in enumerate(x)
    ]  # fmt: skip
