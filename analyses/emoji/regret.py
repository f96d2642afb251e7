"""What every rule that chooses alpha loses on the pairs of the emoji study, leave one base out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import evidence
import numpy as np
import pandas as pd
from population import Answers, Population

from sharpscope.findings.advising.references import Reference, leave_one_setting_out

__all__ = ["advice_table", "regrets"]

LABELS: Final = (20, 200)
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
            references.append(Reference(pair, own.alphas, curve, None, features, pair, pairs["base"][pair]))
    return {group: _regrets(population, group, references) for group in population.groups}


def _regrets(population: Population, group: str, references: Sequence[Reference]) -> pd.DataFrame:
    features = ("log_learning_rate", "log_distance")
    found = leave_one_setting_out(references, references[0].alphas, group, features, check=False, unit="base").by_pair
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
    rng, names = np.random.default_rng(evidence.SEED), sorted(set(of))
    draws = []
    for _ in range(evidence.REPLICATES):
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
    return pd.DataFrame(out).sort_values("regret", kind="stable", ignore_index=True)
