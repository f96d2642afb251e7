"""The verdicts of the emoji study, by the rules of protocol.md: python analyses/emoji/verdicts.py (about a minute)

Reads the tables that study.py kept and writes, beside them, reliability.csv, verdicts.csv, predictors.csv, repairs.csv,
advice.csv and pairs.csv. Nothing is trained or measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import evidence
import numpy as np
import pandas as pd
import tyro
from design import BASES, HELD_OUT, TRAINING
from population import ALPHA, MEASURE, RESULTS, Population, load
from scipy import stats

from sharpscope.atomic import write_atomic
from sharpscope.findings.families import holm
from sharpscope.tables.files import csv_bytes
from sharpscope.vocabulary import ALL, CANNOT, CONTRASTS, DOES_NOT_HOLD, HOLDS

RELIABLE: Final = 0.8
"""The least reliability of the outcome at which anything is concluded from correlations."""
ABSENT: Final = 0.2
"""A partial correlation whose whole 90 % interval lies within +- this value counts as absent."""
CONTRAST_ABSENT: Final = 0.1
"""Straggler layers tell no more than others where the 95 % interval of the difference lies below this value."""
REPAIR_ABSENT: Final = 0.5
"""Points below which a repair's whole advantage over random layers has to lie to count as none."""
REGRET_ABSENT: Final = 0.3
"""Points of regret that a rule has to be unable to save for it to count as no better than the best simple rule."""
FEWEST_FAILING: Final = 10
LEARNT: Final = ("best fixed", "learning rate", "learning rate and distance", "20 OOD labels", "200 OOD labels")
"""Rules of advice that need other pairs or OOD labels; the others are simple."""
COLUMNS: Final = ("claim", "group", "effect", "ci_low", "ci_high", "p_value", "n", "n_effective", "verdict", "evidence")


def main(results: Path = RESULTS) -> None:
    """Apply the rules.

    Args:
        results: Folder with the bases' tables; the verdicts are written into it.
    """
    population = load(results)
    training = population.of([b for b in population.bases if b in TRAINING])
    held_out = population.of([b for b in population.bases if b in HELD_OUT])
    reliable = evidence.reliability(training)
    correlated = evidence.correlations(training)
    again = evidence.correlations(held_out) if held_out.bases else None
    rows = [*whole(training, held_out, reliable), *layers(correlated, again, reliable)]
    predicted = pd.concat([evidence.predictors(training, g) for g in population.groups], ignore_index=True)
    folders = [f for b in training.bases if (f := results / f"base{b}" / "repairs").is_dir()]
    repaired = pd.concat([evidence.repairs(folders, g) for g in population.groups], ignore_index=True)
    paths = pd.concat([evidence.other_paths(folders, g) for g in population.groups], ignore_index=True)
    rows += repair_rows(repaired, population.groups)
    base = dict(zip(population.pairs["pair"], population.pairs["base"], strict=True))
    lost = [evidence.regrets(population, g) for g in population.groups]
    advice = pd.concat([evidence.advice_table(t, base, LEARNT) for t in lost], ignore_index=True)
    rows += [row for group in population.groups for row in advice_rows(advice[advice["group"] == group], group)]
    missing = [b for b in BASES if b not in population.bases]
    if missing:
        rows = [{**row, "verdict": CANNOT, "evidence": f"{row['evidence']} {_missing(missing)}"} for row in rows]
    tables = {
        "verdicts": pd.DataFrame(rows, columns=list(COLUMNS)),
        "reliability": reliable,
        "predictors": predicted,
        "repairs": repaired,
        "other_paths": paths,
        "advice": advice,
        "pairs": outcomes(population),
    }
    for name, table in tables.items():
        write_atomic(results / f"{name}.csv", csv_bytes(table, name))
    for row in rows:
        print(f"{row['claim']:28s} {row['group']:6s} {row['verdict']:16s} {row['evidence']}")


def _missing(bases: list[int]) -> str:
    return f"Not all bases are there yet: base {', '.join(map(str, bases))} is missing."


# ------------------------------------------------------------------------------------- (a) sharpness of the whole model
def whole(training: Population, held_out: Population, reliable: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """(a): does the whole model's sharpness tell the gain?"""
    first = {g: evidence.primary(training, g, 0.95) for g in training.groups}
    ninety = {g: evidence.primary(training, g, 0.90) for g in training.groups}
    adjusted = dict(zip(first, holm(np.array([r["p_value"] for r in first.values()])), strict=True))
    for group, row in first.items():
        second = evidence.primary(held_out, group, 0.95) if held_out.bases else None
        agrees = second is not None and second["p_value"] <= 0.10 and second["estimate"] * row["estimate"] > 0
        low, high = ninety[group]["ci_low"], ninety[group]["ci_high"]
        verdict = CANNOT
        if _reliable(reliable, group):
            if adjusted[group] <= 0.05 and agrees:
                verdict = HOLDS
            elif low > -ABSENT and high < ABSENT:
                verdict = DOES_NOT_HOLD
        text = (
            f"{MEASURE} of the whole model at alpha {ALPHA:g} and the gain: {_number(row)} with "
            f"{row['given'].replace('+', ', ')} held fixed, q {adjusted[group]:.3f} after Holm over groups; 90 % "
            f"interval [{low:+.2f}, {high:+.2f}]; held-out bases {_second(second)}; {_reliability(reliable, group)}."
        )
        yield _row("whole-model sharpness tells", group, row, verdict, text)


# ------------------------------------------------------------------------------------------------- (b) straggler layers
def layers(correlated: pd.DataFrame, again: pd.DataFrame | None, reliable: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """(b): do straggler layers tell more than others, by the default criterion and by the published one?"""
    for claim, names in CONTRASTS.items():
        for group in dict.fromkeys(correlated["group"]):
            own = _joint(correlated, group, names.chosen)
            others, randomly = (_joint(correlated, group, n) for n in (names.others, names.random))
            second = None if again is None else _joint(again, group, names.chosen)
            if own is None or others is None or randomly is None:
                text = "No joint correlation of these layers was computed."
                yield _row(_LAYERS[claim], group, {}, CANNOT, text)
                continue
            agrees = second is not None and second["p_value"] <= 0.10 and second["estimate"] * own["estimate"] > 0
            rare = randomly["status"] == "ok" and randomly["p_value"] <= 0.05
            verdict = CANNOT
            if _reliable(reliable, group) and own["status"] == others["status"] == "ok":
                if own["p_value"] <= 0.025 and rare and agrees and others["ci_low"] > 0:
                    verdict = HOLDS
                elif others["ci_high"] < CONTRAST_ABSENT:
                    verdict = DOES_NOT_HOLD
            text = (
                f"{MEASURE} of {names.title} and the gain: {_number(own)} (p {own['p_value']:.3f}); |correlation| less "
                f"that of all other layers {_number(others)}; random sets of as many layers reach it with p "
                f"{randomly['p_value']:.3f}; held-out bases {_second(second)}; {_reliability(reliable, group)}."
            )
            yield _row(_LAYERS[claim], group, others, verdict, text)


_LAYERS: Final = {"stragglers": "stragglers tell more", "instability": "unstable layers tell more"}


def _joint(table: pd.DataFrame, group: str, layer: str) -> dict[str, Any] | None:
    """The row of the primary measure of ``layer`` with the most covariates held fixed."""
    own = table[
        (table["group"] == group) & (table["layer"] == layer) & (table["measure"] == MEASURE)
        & (table["against"] == "ood_gain") & (table["method"] == "spearman") & (table["given"].str.contains(r"\+"))
    ]  # fmt: skip
    return None if not len(own) else {str(k): v for k, v in own.iloc[0].to_dict().items()}


# ------------------------------------------------------------------------------------------------------ (c) sparsifying
def repair_rows(repaired: pd.DataFrame, groups: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """(c): does sparsifying the stragglers of failing pairs gain, at equal ID accuracy, and more than random layers?"""
    for target in ("weight", "delta"):
        for group in groups:
            own = repaired[(repaired["group"] == group) & (repaired["target"] == target) & (repaired["density"] == 0.5)]
            gain, more = (_t_interval(100 * own[name].to_numpy(float)) for name in ("stragglers", "difference"))
            n = len(own)
            verdict = CANNOT
            if n >= FEWEST_FAILING:
                if gain[1] > 0 and more[1] > 0:
                    verdict = HOLDS
                elif gain[2] < REPAIR_ABSENT or more[2] < REPAIR_ABSENT:
                    verdict = DOES_NOT_HOLD
            text = (
                f"{n} failing pairs; density .5, target {target}: gain at equal ID accuracy {gain[0]:+.2f} "
                f"[{gain[1]:+.2f}, {gain[2]:+.2f}] points, less that of random layers {more[0]:+.2f} [{more[1]:+.2f}, "
                f"{more[2]:+.2f}]."
            )
            row = {"estimate": more[0], "ci_low": more[1], "ci_high": more[2], "n": n, "n_effective": n}
            yield _row(f"sparsifying repairs ({target})", group, row, verdict, text)


def _t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t over pairs; NaN bounds under two."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return float(known.mean()) if len(known) else math.nan, math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return float(known.mean()), float(known.mean() - half), float(known.mean() + half)


# ----------------------------------------------------------------------------------------------------------- (e) advice
def advice_rows(advice: pd.DataFrame, group: str) -> Iterator[dict[str, Any]]:
    """(e): does a rule lose less than the best simple rule?"""
    for row in advice[advice["learnt"]].to_dict("records"):
        verdict = CANNOT
        if row["minus_high"] < 0:
            verdict = HOLDS
        elif row["minus_low"] > -REGRET_ABSENT:
            verdict = DOES_NOT_HOLD
        text = (
            f"{row['rule']} loses {row['regret']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] points to the best "
            f"alpha, which is {row['minus_best']:+.2f} [{row['minus_low']:+.2f}, {row['minus_high']:+.2f}] beside the "
            f"best simple rule ({row['best_simple']})."
        )
        told = {"estimate": row["minus_best"], "ci_low": row["minus_low"], "ci_high": row["minus_high"],
                "n": row["pairs"], "n_effective": row["pairs"]}  # fmt: skip
        yield _row(f"{row['rule']} beats simple rules", group, told, verdict, text)


# ------------------------------------------------------------------------------------------------------------ in common
def outcomes(population: Population) -> pd.DataFrame:
    """One row a pair: settings, gains in points at every alpha, sharpness and covariates at the primary alpha."""
    out = population.pairs.drop(columns="diverged").set_index("pair")
    for own in population.answers.values():
        for group in population.groups:
            for alpha in own.alphas:
                out.loc[list(own.pairs), f"{group}_gain@{alpha:g}"] = 100 * own.gain(group, alpha)
    s = population.tables["sharpness"]
    s = s[(s["layer"] == ALL) & np.isclose(s["alpha"].astype(float), ALPHA)]
    at = population.covariates
    at = at[np.isclose(at["alpha"].astype(float), ALPHA)].set_index("pair")[["distance", "id_accuracy"]]
    return out.join(s.pivot(index="pair", columns="measure", values="estimate")).join(at).reset_index()


def _reliable(reliable: pd.DataFrame, group: str) -> bool:
    return float(reliable.set_index("group")["reliability"][group]) >= RELIABLE


def _reliability(reliable: pd.DataFrame, group: str) -> str:
    value = float(reliable.set_index("group")["reliability"][group])
    return f"reliability of the gain {value:.2f}" + ("" if value >= RELIABLE else f", under the {RELIABLE:g} required")


def _number(row: dict[str, Any]) -> str:
    return f"{row['estimate']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"


def _second(row: dict[str, Any] | None) -> str:
    return "not there" if row is None else f"{_number(row)}, p {row['p_value']:.3f}"


def _row(claim: str, group: str, row: dict[str, Any], verdict: str, text: str) -> dict[str, Any]:
    numbers = {k: row.get(k, math.nan) for k in ("ci_low", "ci_high", "p_value", "n", "n_effective")}
    return {"claim": claim, "group": group, "effect": row.get("estimate", math.nan), **numbers, "verdict": verdict,
            "evidence": text}  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
