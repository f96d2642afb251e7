"""What the tables of the emoji study say before any rule is applied: reliability, correlations, repairs, regrets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from population import ALPHA, MEASURE, Answers, Population
from scipy import stats

from sharpscope.findings.advising.references import Reference, leave_one_setting_out
from sharpscope.findings.layercontrast import layer_sets, random_sizes
from sharpscope.findings.matching import match_plain
from sharpscope.findings.partial import contrast, controls, partial_correlation
from sharpscope.findings.pathcosts import path_costs
from sharpscope.findings.rank_correlation import is_constant, weighted_correlate
from sharpscope.findings.stragglers import chosen_by
from sharpscope.tables.files import read_csv
from sharpscope.tables.rows import has_value
from sharpscope.vocabulary import ALL, BY_COST, DEFAULT_CRITERION, GROUP_TITLES, LEARNING_RATE, MEASURES

__all__ = [
    "CRITERIA",
    "advice_table",
    "layer_rows",
    "other_paths",
    "predictors",
    "primary",
    "regrets",
    "reliability",
    "repairs",
    "residuals",
    "t_interval",
    "ways",
]

REPLICATES: Final = 2000
HALVES: Final = 200
SEED: Final = 15
LABELS: Final = (20, 200)


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


def residuals(population: Population, group: str) -> pd.DataFrame:
    """What is left of the ranks of the primary predictor and of the gain, one row a setting: setting, base, group,
    learning_rate, sharpness, gain. The correlation of the last two is the estimate of ``primary``."""
    design, held = population.design, _held(population)
    x, y = _whole(population, MEASURE), population.gain(group).reindex(design.pairs).to_numpy()
    known = np.isfinite([x, y, *held.values()]).all(axis=0)
    own = design.subset(known)
    fixed = controls(own, {k: v[known] for k, v in held.items()})
    first = [own.setting.index(s) for s in dict.fromkeys(own.setting)]
    return pd.DataFrame({
        "setting": [own.setting[i] for i in first], "base": [own.base[i] for i in first], "group": group,
        "learning_rate": own.covariates[LEARNING_RATE][first],
        "sharpness": fixed.remove(own.centred_ranks(x[known])), "gain": fixed.remove(own.centred_ranks(y[known])),
    })  # fmt: skip


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
    design, held, how = population.design, _held(population), MEASURES[MEASURE].adds_up
    y = population.gain(group).reindex(design.pairs).to_numpy()
    keys = design.keys(REPLICATES, np.random.default_rng(SEED))
    found = contrast(layer_sets(values, chosen, how), y, design, held, keys=keys, rng=np.random.default_rng(SEED))
    both = found.partial
    head = {"group": group, "n": both.n[0], "n_effective": both.n_effective[0], "given": both.given[0]}
    for k, name in enumerate(("chosen", "others")):
        numbers = _numbers(both.estimate[k], both.low[k], both.high[k], both.p[k])
        yield {**head, "layers": name, **numbers, "note": both.why[k] or both.note[k]}
    numbers = _numbers(found.estimate[0], found.low[0], found.high[0], found.p[0])
    yield {**head, "layers": "difference", **numbers, "note": both.why[0] or both.why[1]}
    size, sizes = abs(float(both.estimate[0])), np.empty(0)
    if math.isfinite(size):
        sizes = random_sizes(values, chosen, how, y, design, held, keys=keys, seeds=(SEED, SEED + 1))
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
    settings resampled. ``kind``: sharpness | path (what interpolation costs in loss) | covariate.
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
        rows.append(
            {**joint, "kind": kinds[name], **dict(zip(("alone", "alone_low", "alone_high"), alone, strict=True))}
        )
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
) -> list[dict[str, Any]]:
    design, rng = population.design, np.random.default_rng(SEED)
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


# -------------------------------------------------------------------------------------------------------------- repairs
def repairs(folders: Sequence[Path], group: str) -> pd.DataFrame:
    """The gain of every repair at equal ID accuracy, by failing pair.

    ``difference`` = stragglers - random, the repair's gain minus that of as many parameters in random other layers.
    """
    rows = []
    for folder in folders:
        t = read_csv(folder / "repair.csv.gz", "repair")
        t = t[(t["group"] == group) & np.isclose(t["alpha"].astype(float), ALPHA)]
        for (pair, target, density), own in t.groupby(["pair", "target", "density"], sort=True):
            gain = own.set_index("control")["gain"].astype(float)
            if {"none", "random_layers"} <= set(gain.index):
                rows.append({"pair": pair, "group": group, "target": target, "density": density,
                             "stragglers": gain["none"], "random": gain["random_layers"],
                             "difference": gain["none"] - gain["random_layers"]})  # fmt: skip
    columns = ["pair", "group", "target", "density", "stragglers", "random", "difference"]
    return pd.DataFrame(rows, columns=columns)


def other_paths(folders: Sequence[Path], group: str) -> pd.DataFrame:
    """LiNeS, MonoSoup and Fisher merging of the failing pairs at the primary alpha: gain at equal ID accuracy.

    As for repairs there is none where the plain path never has the ID accuracy.
    """
    rows = []
    for folder in folders:
        t = read_csv(folder / "accuracy.csv.gz", "accuracy")
        t = t[t["primary"].astype(bool)]
        ids = t[t["role"] == "id"].groupby(["pair", "variant", "alpha"], sort=True)["estimate"].mean()
        ood = t[(t["role"] == "ood_mean") & (t["group"] == group)].set_index(["pair", "variant", "alpha"])["estimate"]
        for pair in dict.fromkeys(t["pair"]):
            plain_id, plain_ood = ids[pair]["dense"].sort_index(), ood[pair]["dense"].sort_index()
            for variant in sorted({v for v in ids[pair].index.get_level_values(0) if v.startswith("path:")}):
                here, there = float(ids[pair, variant, ALPHA]), float(ood[pair, variant, ALPHA])
                alphas = [float(a) for a in plain_id.index]
                _, at, inside = match_plain(
                    plain_id.to_numpy(float), plain_ood.to_numpy(float), alphas, np.array([here])
                )
                gain = there - float(at[0]) if inside[0] else math.nan
                rows.append({"pair": pair, "group": group, "path": variant.removeprefix("path:"), "gain": gain})
    return pd.DataFrame(rows, columns=["pair", "group", "path", "gain"])


def ways(repaired: pd.DataFrame, paths: pd.DataFrame, group: str) -> pd.DataFrame:
    """Mean gain of every way over the plain path at equal ID accuracy, in points, t intervals over failing pairs.

    ``way``: sparse weight, sparse delta (density .5), held back (density 0 of the delta: stragglers have an alpha of
    0 of their own), or a path. ``what``: gain, and for the first three difference, the gain less that of random layers.
    """
    sparse = {"sparse weight": ("weight", 0.5), "sparse delta": ("delta", 0.5), "held back": ("delta", 0.0)}
    found: dict[tuple[str, str], np.ndarray] = {}
    for way, (target, density) in sparse.items():
        own = repaired[(repaired["group"] == group) & (repaired["target"] == target) & (repaired["density"] == density)]
        known = own.dropna(subset=["stragglers", "random"])
        found[way, "gain"], found[way, "difference"] = (known[c].to_numpy(float) for c in ("stragglers", "difference"))
    for path, own in paths[paths["group"] == group].groupby("path", sort=True):
        found[str(path), "gain"] = own["gain"].dropna().to_numpy(float)
    rows = []
    for (way, what), values in found.items():
        mean, low, high = t_interval(100 * values)
        rows.append({"group": group, "way": way, "what": what, "estimate": mean, "ci_low": low, "ci_high": high,
                     "n": len(values)})  # fmt: skip
    return pd.DataFrame(rows)


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t over pairs; no bounds under two values."""
    n = len(values)
    if n < 2:
        return float(values.mean()) if n else math.nan, math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


# --------------------------------------------------------------------------------------------------------------- advice
_ALPHAS: Final = {"zero-shot": 0.0, "alpha .5": 0.5, "fine-tuned": 1.0}
_RULES: Final = {
    "best fixed": "best_fixed",
    "learning rate": "learning_rate",
    "learning rate and distance": "predicted",
}
"""Rules that learn from other bases' pairs, and their names in ``leave_one_setting_out``."""


def regrets(population: Population) -> dict[str, pd.DataFrame]:
    """Group -> [pair x rule] the accuracy lost to the path's best alpha; rules that learn from pairs see the other
    bases'."""
    at = population.covariates
    distance = at[np.isclose(at["alpha"].astype(float), 1.0)].set_index("pair")["distance"]
    pairs = population.pairs.set_index("pair")
    references = []
    for own in population.answers.values():
        curves = {group: own.accuracy(group) for group in population.groups}
        for i, pair in enumerate(own.pairs):
            features = {"log_learning_rate": np.log(pairs["learning_rate"][pair]),
                        "log_distance": np.log(distance[pair])}  # fmt: skip
            curve = {group: values[i] for group, values in curves.items()}
            references.append(Reference(pair, own.alphas, curve, None, features, setting=pairs["base"][pair]))
    return {group: _regrets(population, group, references) for group in population.groups}


def _regrets(population: Population, group: str, references: Sequence[Reference]) -> pd.DataFrame:
    features = ("log_learning_rate", "log_distance")
    found = leave_one_setting_out(references, references[0].alphas, group, features, check=False).by_pair
    out: dict[str, dict[str, float]] = {rule: dict(found.get(name, {})) for rule, name in _RULES.items()}
    for own in population.answers.values():
        curves, val = own.accuracy(group), next(j for j, s in enumerate(own.sets) if s.endswith("@val"))
        valid = own.right[:, :, val].sum(axis=2)
        for i, pair in enumerate(own.pairs):
            for rule, alpha in _ALPHAS.items():
                out.setdefault(rule, {})[pair] = curves[i].max() - curves[i][own.alphas.index(alpha)]
            out.setdefault("ID validation", {})[pair] = curves[i].max() - curves[i][int(np.argmax(valid[i]))]
            for n in LABELS:
                out.setdefault(f"{n} OOD labels", {})[pair] = _labelled(own, i, group, n)
    return pd.DataFrame(out, dtype=float).rename_axis("pair").reset_index().assign(group=group)


def _labelled(own: Answers, i: int, group: str, n: int, draws: int = 40) -> float:
    """The mean regret of the best alpha on ``n`` labelled drawings of the group, over random choices of them."""
    at = [j for j, g in enumerate(own.groups) if g == group]
    sets, things = np.nonzero(own.shown[at])
    hits = own.right[i][:, np.array(at)[sets], things] / own.shown[np.array(at)[sets], things]
    curve, rng, lost = own.accuracy(group)[i], np.random.default_rng(n), []
    for _ in range(draws):
        means = hits[:, rng.choice(hits.shape[1], n, replace=False)].mean(axis=1)
        tied = np.flatnonzero(means == means.max())
        lost.append(curve.max() - curve[tied[(len(tied) - 1) // 2]])
    return float(np.mean(lost))


def advice_table(lost: pd.DataFrame, base: Mapping[str, str], learnt: Sequence[str]) -> pd.DataFrame:
    """Mean regret of every rule, and minus the best simple rule's, with intervals from resampled bases and pairs.

    ``learnt``: the rules that are not simple. Points. The best simple rule is chosen on all pairs, and again in every
    resample.
    """
    rules = [c for c in lost.columns if c not in ("pair", "group")]
    simple = [r for r in rules if r not in learnt]
    values = 100 * lost[rules].to_numpy(dtype=float)
    of = np.array([base[p] for p in lost["pair"]])
    rng, names = np.random.default_rng(SEED), sorted(set(of))
    draws = []
    for _ in range(REPLICATES):
        rows = [rng.choice(np.flatnonzero(of == b), (of == b).sum()) for b in rng.choice(names, len(names))]
        draws.append(values[np.concatenate(rows)].mean(axis=0))
    means, draw = values.mean(axis=0), np.array(draws)
    at = [rules.index(r) for r in simple]
    best, best_draws = means[at].min(), draw[:, at].min(axis=1)
    out = []
    for k, rule in enumerate(rules):
        low, high = np.quantile(draw[:, k], (0.025, 0.975))
        minus = draw[:, k] - best_draws
        out.append({
            "group": lost["group"].iloc[0], "rule": rule, "learnt": rule in learnt, "pairs": len(values),
            "regret": means[k], "ci_low": low, "ci_high": high, "best_simple": simple[int(np.argmin(means[at]))],
            "minus_best": means[k] - best, "minus_low": np.quantile(minus, 0.025),
            "minus_high": np.quantile(minus, 0.975),
        })  # fmt: skip
    return pd.DataFrame(out).sort_values("regret", ignore_index=True)
