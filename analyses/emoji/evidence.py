"""What the tables of the emoji study say before any rule is applied: reliability, correlations, repairs, regrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from population import ALPHA, MEASURE, Population
from scipy import stats

from sharpscope.findings import pair_correlations, reference_pairs
from sharpscope.findings.advising.references import leave_one_setting_out
from sharpscope.findings.matching import match_plain
from sharpscope.findings.partial import partial_correlation
from sharpscope.findings.pathcosts import path_costs
from sharpscope.findings.stragglers import chosen_by
from sharpscope.tables.files import read_csv
from sharpscope.vocabulary import ALL, BY_COST, DEFAULT_CRITERION

__all__ = ["advice_table", "correlations", "other_paths", "predictors", "primary", "regrets", "reliability", "repairs"]

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
def correlations(population: Population, level: float = 0.95) -> pd.DataFrame:
    """The table ``correlations`` of these pairs at the primary alpha, stragglers by both criteria."""
    t = population.tables
    return pair_correlations(
        t["sharpness"], t["accuracy"], population.covariates, source="run", seed=SEED, bootstrap=REPLICATES,
        level=level, alphas=(ALPHA,), stragglers=chosen_by(t["stragglers"], DEFAULT_CRITERION),
        by_instability=chosen_by(t["stragglers"], BY_COST), costs=path_costs(t["path"], t["stragglers"]),
        design=population.design, primary=(MEASURE, ALPHA),
    )  # fmt: skip


def primary(population: Population, group: str, level: float) -> dict[str, Any]:
    """The joint partial Spearman correlation of the primary predictor with the gain on ``group``."""
    return _joint(population, group, {MEASURE: _whole(population, MEASURE)}, _held(population), level)[0]


def predictors(population: Population, group: str) -> pd.DataFrame:
    """Every predictor of the gain: alone, and with all covariates but itself held fixed. Exploratory.

    ``alone``: Spearman's correlation within bases (of ranks less their base's mean).
    """
    held = _held(population)
    costs = path_costs(population.tables["path"])
    barrier = costs[(costs["layer"] == ALL) & (costs["measure"] == "barrier")].set_index("pair")["value"]
    known = {m: _whole(population, m) for m in dict.fromkeys(population.tables["sharpness"]["measure"])}
    known |= {"barrier": barrier.reindex(population.design.pairs).to_numpy(dtype=float), **held}
    rows = []
    for name, values in known.items():
        given = {k: v for k, v in held.items() if k != name}
        rows += _joint(population, group, {name: values}, given, 0.95)
        rows[-1]["alone"] = _alone(population, values, population.gain(group))
    return pd.DataFrame(rows)


def _alone(population: Population, values: np.ndarray, gain: pd.Series) -> float:
    design = population.design
    y = gain.reindex(design.pairs).to_numpy()
    return float(np.corrcoef(design.centred_ranks(values), design.centred_ranks(y))[0, 1])


def _whole(population: Population, measure: str) -> np.ndarray:
    """[pairs] the whole model's ``measure`` at the primary alpha, NaN where it is not finite."""
    s = population.tables["sharpness"]
    own = s[(s["layer"] == ALL) & (s["measure"] == measure) & np.isclose(s["alpha"].astype(float), ALPHA)]
    return own.set_index("pair")["estimate"].reindex(population.design.pairs).to_numpy(dtype=float)


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
    """LiNeS, MonoSoup and Fisher merging of the failing pairs at the primary alpha: gain at equal ID accuracy."""
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
                rows.append({"pair": pair, "group": group, "path": variant.removeprefix("path:"),
                             "gain": there - float(at[0]), "inside": bool(inside[0])})  # fmt: skip
    return pd.DataFrame(rows, columns=["pair", "group", "path", "gain", "inside"])


# --------------------------------------------------------------------------------------------------------------- advice
def regrets(population: Population, group: str) -> pd.DataFrame:
    """Pair x rule -> the accuracy lost to the path's best alpha; rules that learn from pairs see the other bases'."""
    t = population.tables
    known = reference_pairs(t["accuracy"], t["path"], t["sharpness"], population.design)
    base = dict(zip(population.pairs["pair"], population.pairs["base"], strict=True))
    by_base = [replace(r, setting=base[r.pair]) for r in known]
    grid = list(known[0].alphas)
    sets = {
        "learning rate": ["log_learning_rate"],
        "learning rate and distance": ["log_learning_rate", "log_distance"],
    }
    out: dict[str, Mapping[str, float]] = {}
    for rule, names in sets.items():
        found = leave_one_setting_out(by_base, grid, group, names, check=False).by_pair
        out |= {_TITLES[k]: v for k, v in found.items() if k in _TITLES}
        out[rule] = found["predicted"]
    for own in population.answers.values():
        curves, val = own.accuracy(group), next(j for j, s in enumerate(own.sets) if s.endswith("@val"))
        valid = own.right[:, :, val].sum(axis=2)
        for i, pair in enumerate(own.pairs):
            best = curves[i].max()
            out.setdefault("ID validation", {})[pair] = best - curves[i][int(np.argmax(valid[i]))]  # type: ignore[index]
            for n in LABELS:
                out.setdefault(f"{n} OOD labels", {})[pair] = _labelled(own, i, group, n)  # type: ignore[index]
    return pd.DataFrame(out).rename_axis("pair").reset_index().assign(group=group)


_TITLES: Final = {"zeroshot": "zero-shot", "half": "alpha .5", "finetuned": "fine-tuned", "best_fixed": "best fixed"}


def _labelled(own: Any, i: int, group: str, n: int, draws: int = 40) -> float:
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
