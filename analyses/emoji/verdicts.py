"""The verdicts of the emoji study, by the rules of protocol.md: python analyses/emoji/verdicts.py (about a minute)

Reads the tables that study.py kept and writes, beside them, verdicts.csv and what it rests on: ``tables`` says which.
Nothing is trained or measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import evidence
import numpy as np
import pandas as pd
import regret
import remedies
import tyro
from design import BASES, HELD_OUT, TRAINING
from population import ALPHA, MEASURE, RELIABLE, RESULTS, Population, load
from styles import csv_of

from sharpscope.atomic import write_atomic
from sharpscope.errors import NoData
from sharpscope.findings.families import holm
from sharpscope.vocabulary import ALL, CANNOT, DOES_NOT_HOLD, HOLDS

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
    found = tables(load(results), results)
    for name, table in found.items():
        write_atomic(results / f"{name}.csv", csv_of(table))
    for row in found["verdicts"].to_dict("records"):
        print(f"{row['claim']:40s} {row['group']:6s} {row['verdict']:16s} {row['evidence']}")


def tables(population: Population, results: Path) -> dict[str, pd.DataFrame]:
    """The verdicts and every table that they and the figures rest on, by name.

    Raises:
        NoData: no training base is there.
    """
    groups, parts = population.groups, _parts(population)
    if not parts["training"].bases:
        raise NoData("none of the training bases has results; 'make study BASE=0' makes those of base 0.")
    there = {name: part for name, part in parts.items() if part.bases}
    folders = [f for b in parts["training"].bases if (f := results / f"base{b}" / "repairs").is_dir()]
    failing = {g: set(population.pairs["pair"][population.fails(g)]) for g in groups}
    repaired = _stacked(remedies.repairs(folders, g, failing[g]) for g in groups)
    paths = _stacked(remedies.other_paths(folders, g, failing[g]) for g in groups)
    base = dict(zip(population.pairs["pair"], population.pairs["base"], strict=True))
    once = set(population.pairs.loc[population.pairs["seed"] == 0, "pair"])
    lost = {g: t[t["pair"].isin(once)] for g, t in regret.regrets(population).items()}
    found = {
        "reliability": evidence.reliability(parts["training"]),
        "residuals": _stacked(evidence.residuals(p, g).assign(bases=n) for n, p in there.items() for g in groups),
        "by_base": by_base(there),
        "layers": _stacked(
            evidence.layer_rows(part, claim).assign(bases=name)
            for name, part in there.items() for claim in evidence.CRITERIA
        ),
        "predictors": _stacked(evidence.predictors(parts["training"], g) for g in groups),
        "repairs": repaired,
        "other_paths": paths,
        "ways": _stacked(remedies.ways(repaired, paths, g) for g in groups),
        "regrets": _stacked(lost.values()),
        "advice": _stacked(regret.advice_table(t, base, LEARNT) for t in lost.values()),
        "pairs": outcomes(population),
    }  # fmt: skip
    return {"verdicts": judged(population, found), **found}


def _parts(population: Population) -> dict[str, Population]:
    """The training and the held-out bases that are there."""
    return {
        "training": population.of([b for b in population.bases if b in TRAINING]),
        "held-out": population.of([b for b in population.bases if b in HELD_OUT]),
    }


def judged(population: Population, found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The verdicts from the other tables; none but "cannot be told" before all bases are there."""
    reliable, parts = found["reliability"], _parts(population)
    rows = [
        *whole(parts["training"], parts["held-out"], reliable), *layers(found["layers"], reliable),
        *repair_rows(found["ways"]), *advice_rows(found["advice"]),
    ]  # fmt: skip
    if missing := [b for b in BASES if b not in population.bases]:
        rows = [{**row, "verdict": CANNOT, "evidence": f"{row['evidence']} {_missing(missing)}"} for row in rows]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _stacked(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """One table of several; empty ones have no say in its types."""
    every = list(parts)
    return pd.concat([p for p in every if len(p)] or every[:1], ignore_index=True)


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
        low, high = ninety[group]["ci_low"], ninety[group]["ci_high"]
        verdict = CANNOT
        if _reliable(reliable, group):
            if adjusted[group] <= 0.05 and _agrees(second, row):
                verdict = HOLDS
            elif low > -ABSENT and high < ABSENT:
                verdict = DOES_NOT_HOLD
        text = (
            f"{MEASURE} of the whole model at alpha {ALPHA:g} and the gain: {_number(row)} with "
            f"{row['given'].replace('+', ', ')} held fixed, q {adjusted[group]:.3f} after Holm over groups; 90 % "
            f"interval [{low:+.2f}, {high:+.2f}]; held-out bases {_second(second)}; {_reliability(reliable, group)}."
        )
        yield _row("whole-model sharpness tells", group, row, verdict, text)


def by_base(parts: Mapping[str, Population]) -> pd.DataFrame:
    """(a) by the package's stricter rule, beside the registered one: ``evidence.by_base``, and its q after Holm."""
    found = []
    for name, part in parts.items():
        rows = [evidence.by_base(part, group, 0.95) for group in part.groups]
        adjusted = holm(np.array([row["p_value"] for row in rows]))
        found += [{"bases": name, **row, "q_value": q} for row, q in zip(rows, adjusted, strict=True)]
    return pd.DataFrame(found)


# ------------------------------------------------------------------------------------------------- (b) straggler layers
def layers(layered: pd.DataFrame, reliable: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """(b): do straggler layers tell more than others, by the default criterion and by the published one?"""
    for (claim, group), own in layered.groupby(["claim", "group"], sort=False):
        rows = {(str(r["bases"]), str(r["layers"])): r for r in own.to_dict("records")}
        chosen, less, randomly = (rows["training", name] for name in ("chosen", "difference", "random"))
        second = rows.get(("held-out", "chosen"))
        verdict = CANNOT
        if _reliable(reliable, group):
            tells = chosen["p_value"] <= 0.025 and randomly["p_value"] <= 0.05 and _agrees(second, chosen)
            if tells and less["ci_low"] > 0:
                verdict = HOLDS
            elif less["ci_high"] < CONTRAST_ABSENT:
                verdict = DOES_NOT_HOLD
        text = (
            f"{MEASURE} of the layers that {evidence.CRITERIA[claim]} chooses and the gain: {_number(chosen)}, "
            f"{_p(chosen)}, over the {chosen['n']:.0f} pairs in which it chooses any; |correlation| less that of all "
            f"other layers {_number(less)}; random sets of as many layers reach it with {_p(randomly)}; held-out bases "
            f"{_second(second)}; {_reliability(reliable, group)}."
        )
        yield _row(claim, group, less, verdict, text)


# ------------------------------------------------------------------------------------------------------ (c) sparsifying
def repair_rows(ways: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """(c): does sparsifying the stragglers of failing pairs gain, at equal ID accuracy, and more than random layers?"""
    for group in dict.fromkeys(ways["group"]):
        for target in ("weight", "delta"):
            own = ways[(ways["group"] == group) & (ways["way"] == f"sparse {target}")].set_index("what")
            gain, more = ({str(k): v for k, v in own.loc[what].items()} for what in ("gain", "difference"))
            n = int(more["n"])
            verdict = CANNOT
            if n >= FEWEST_FAILING:
                if gain["ci_low"] > 0 and more["ci_low"] > 0:
                    verdict = HOLDS
                elif gain["ci_high"] < REPAIR_ABSENT or more["ci_high"] < REPAIR_ABSENT:
                    verdict = DOES_NOT_HOLD
            text = (
                f"{n} failing pairs; density .5, target {target}: gain at equal ID accuracy {_number(gain)} points, "
                f"less that of random layers {_number(more)}."
            )
            yield _row(f"sparsifying repairs ({target})", group, more | {"n": n, "n_effective": n}, verdict, text)


# ----------------------------------------------------------------------------------------------------------- (e) advice
def advice_rows(advice: pd.DataFrame) -> Iterator[dict[str, Any]]:
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
        yield _row(f"{row['rule']} beats simple rules", row["group"], told, verdict, text)


# ------------------------------------------------------------------------------------------------------------ in common
def outcomes(population: Population) -> pd.DataFrame:
    """One row a pair: settings, gains in points at every alpha, sharpness and covariates at the primary alpha."""
    out = population.pairs.drop(columns="diverged").set_index("pair")
    training = {f"base{b}" for b in TRAINING}
    out["bases"] = ["training" if base in training else "held-out" for base in out["base"]]
    for own in population.answers.values():
        for group in population.groups:
            for alpha in own.alphas:
                out.loc[list(own.pairs), f"{group}_gain@{alpha:g}"] = 100 * own.gain(group, alpha)
    for group in population.groups:
        out[f"{group}_fails"] = population.fails(group)
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


def _agrees(second: dict[str, Any] | None, first: dict[str, Any]) -> bool:
    """Whether the held-out bases have the same sign with p <= .10."""
    return second is not None and second["p_value"] <= 0.10 and second["estimate"] * first["estimate"] > 0


def _p(row: dict[str, Any]) -> str:
    return "p < 0.001" if row["p_value"] < 0.001 else f"p {row['p_value']:.3f}"


def _second(row: dict[str, Any] | None) -> str:
    return "not there" if row is None else f"{_number(row)}, {_p(row)}"


def _row(claim: str, group: str, row: dict[str, Any], verdict: str, text: str) -> dict[str, Any]:
    numbers = {k: row.get(k, math.nan) for k in ("ci_low", "ci_high", "p_value", "n", "n_effective")}
    return {"claim": claim, "group": group, "effect": row.get("estimate", math.nan), **numbers, "verdict": verdict,
            "evidence": text}  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
