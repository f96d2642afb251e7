"""The accuracies of one pair along its path, and the OOD accuracy that each rule loses against the best alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sharpscope.findings.frames import Scored, alpha_index, check_correct
from sharpscope.findings.prediction import at_alpha
from sharpscope.findings.resampling import stratified_means, why_no_interval
from sharpscope.scores import min_replicates, percentile_interval
from sharpscope.seeds import derive
from sharpscope.vocabulary import BASELINE, DEFAULT_GROUP

__all__ = ["AlongPath", "Curve", "Row", "along_path", "baseline_rows", "best_baseline", "new_row", "noted"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Accuracies [A] along the path, the mean over ``sets``, and their bootstrap [R, A] (``stratified_means``)."""

    values: np.ndarray
    replicates: np.ndarray
    sets: tuple[str, ...]
    without_interval: str = ""
    """Why the accuracies have no interval; empty where they have one."""

    def gains(self, alphas: Sequence[float]) -> Curve | None:
        """The accuracies minus that of alpha 0; None where the path does not have alpha 0."""
        start = alpha_index(alphas, 0.0)
        if start is None:
            return None
        gains = self.values - self.values[start], self.replicates - self.replicates[:, [start]]
        return Curve(*gains, self.sets, self.without_interval)


@dataclass(frozen=True)
class AlongPath:
    """One pair's mean ID accuracy, and its mean OOD accuracy in every group of OOD sets, at the points of its path."""

    pair: str
    alphas: tuple[float, ...]
    id: Curve | None = None
    groups: Mapping[str, Curve] = field(default_factory=dict)
    level: float = 0.95

    def id_at(self, alpha: float) -> float:
        """ID accuracy at ``alpha``, linear between the points of the path; NaN where it is not known."""
        if self.id is None or not math.isfinite(alpha):
            return math.nan
        return float(at_alpha(self.id.values, self.alphas, alpha))

    def id_best(self) -> float:
        """The smallest alpha with the best ID accuracy; NaN where no ID set was evaluated."""
        return math.nan if self.id is None else self.alphas[int(np.argmax(self.id.values))]

    def fixed(self) -> dict[str, float]:
        """The alphas of the rules that look at no OOD label: ``vocabulary.ADVICE[BASELINE]`` without the oracle."""
        return {"zeroshot": 0.0, "half": 0.5, "finetuned": 1.0, "id_best": self.id_best()}

    def cost(self, group: str, alpha: float) -> tuple[Row, str]:
        """(ood_accuracy and regret of ``alpha`` in ``group``, a note with the regret's interval).

        Every replicate of the bootstrap chooses the best alpha again.
        """
        curve = self.groups.get(group)
        if curve is None or not math.isfinite(alpha):
            return {}, ""
        here = float(at_alpha(curve.values, self.alphas, alpha))
        regret, said = float(curve.values.max()) - here, []
        if math.isfinite(here) and alpha_index(self.alphas, alpha) is None:
            said.append(f"alpha {alpha:g} is not on the grid: accuracy interpolated between its neighbours")
        if math.isfinite(regret) and len(curve.replicates) >= min_replicates(self.level):
            lost = curve.replicates.max(axis=1) - at_alpha(curve.replicates, self.alphas, alpha)
            low, high = (100 * float(x) for x in percentile_interval(lost, self.level))
            said.append(f"regret {self.level:.0%} interval [{low:.1f}, {high:.1f}] points")
        return {"ood_accuracy": here, "regret": regret}, "; ".join(said)


def along_path(
    pair: str,
    alphas: Sequence[float],
    correct: Mapping[str, Scored],
    roles: Mapping[str, str],
    groups: Mapping[str, str] | None = None,
    *,
    pictures: Mapping[str, np.ndarray] | None = None,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> AlongPath:
    """From the answers to every image to the curves of one pair.

    Args:
        pair: its name.
        alphas: [A] increasing.
        correct: data set -> bool [A, n], predictions, or numbers of right answers.
        roles: data set -> "id" | "ood".
        groups: OOD set -> its group; a set that is not in it belongs to the group ``ood``.
        pictures: data set -> [n], a number for the picture of each example; equal numbers are the same picture. A set
            that is not in it shares no picture with another.
        level: coverage of the intervals.
        bootstrap: number of replicates.
        seed: the run's seed.

    Raises:
        ConfigError: arrays, alphas or roles that do not fit each other.
    """
    split = check_correct(alphas, correct, roles)

    def curve(sets: Mapping[str, Scored]) -> Curve:
        def stream(name: str) -> np.random.Generator:
            return np.random.default_rng(derive(seed, "advice", pair, name))

        why = why_no_interval(sets, bootstrap, level)
        return Curve(*stratified_means(sets, bootstrap, stream, pictures), tuple(sets), why)

    by_group: dict[str, dict[str, Scored]] = {}
    for name, values in split["ood"].items():
        by_group.setdefault((groups or {}).get(name, DEFAULT_GROUP), {})[name] = values
    return AlongPath(
        pair,
        tuple(float(a) for a in alphas),
        curve(split["id"]) if split["id"] else None,
        {group: curve(sets) for group, sets in by_group.items()},
        level,
    )


def new_row(path: AlongPath, situation: str, rule: str, group: str, alpha: float, note: str = "", **more: Any) -> Row:
    """A row of the table advice; what is not given is missing, and an alpha that is missing makes it undefined."""
    nan = math.nan
    row: Row = {"pair": path.pair, "situation": situation, "rule": rule, "group": group, "alpha": alpha}
    row |= {"layers": "", "density": nan, "predicted_gain": nan, "ci_low": nan, "ci_high": nan}
    row |= {"id_accuracy": path.id_at(alpha), "ood_accuracy": nan, "regret": nan, "expected_regret": nan}
    row |= {"best_baseline": "", "baseline_regret": nan, "advised": False}
    cost, said = path.cost(group, alpha)
    known = math.isfinite(alpha) and math.isfinite(cost.get("ood_accuracy", 0.0))
    return row | cost | {"status": "ok" if known else "undefined", "note": noted(note, said)} | more


def noted(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def baseline_rows(path: AlongPath) -> list[Row]:
    """The rules that need no knowledge, and the oracle, in every group of OOD sets (or without one)."""
    rows = []
    for group in path.groups or ("",):
        for rule, alpha in path.fixed().items():
            note = "" if rule != "id_best" else _validated(path)
            rows.append(new_row(path, BASELINE, rule, group, alpha, note))
        curve = path.groups.get(group)
        best = math.nan if curve is None else path.alphas[int(np.argmax(curve.values))]
        told = "chosen on the OOD labels: not advice, but what regret is measured against"
        rows.append(
            new_row(path, BASELINE, "oracle", group, best, "no OOD set was given" if curve is None else told)
            | ({} if curve is None else {"note": told})
        )
    return rows


def _validated(path: AlongPath) -> str:
    if path.id is None:
        return "no ID set was given"
    return f"the ID test sets ({'+'.join(path.id.sets)}) serve as validation"


def best_baseline(rows: Sequence[Row], group: str) -> Row:
    """best_baseline and baseline_regret: of the baselines in ``group``, that with the smallest regret."""
    known = [
        row
        for row in rows
        if (row["situation"], row["group"]) == (BASELINE, group)
        and row["rule"] != "oracle"
        and math.isfinite(row["regret"])
    ]
    if not known:
        return {}
    least = min(known, key=lambda row: float(row["regret"]))
    return {"best_baseline": least["rule"], "baseline_regret": least["regret"]}
