"""The accuracies of one pair along its path, and the OOD accuracy that each rule loses against the best alpha.

The best of several noisy accuracies looks better than it is. What a choice by labels is worth is therefore read off
images that did not make the choice, and intervals hold for all alphas together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np

from sharpscope.findings.advising.halves import halved_means
from sharpscope.findings.frames import Scored, alpha_index, check_correct, members_of
from sharpscope.findings.prediction import at_alpha
from sharpscope.findings.resampling import stratified_means, too_few_images
from sharpscope.scores import min_replicates
from sharpscope.seeds import derive
from sharpscope.vocabulary import BASELINE, FIXED_ALPHAS

__all__ = [
    "AlongPath",
    "Choice",
    "Curve",
    "Row",
    "along_path",
    "baseline_rows",
    "best_place",
    "curve_of",
    "few_replicates",
    "fixed_regret",
    "gain_over_zeroshot",
    "new_row",
    "noted",
]

Row = dict[str, Any]
Choice = Callable[[np.ndarray], int]
"""A rule that chooses by labels: accuracies [A] on some images -> the place of the chosen alpha."""
SPLITS: Final = 10
"""How often a data set is cut into halves. More splits change the mean over them less from seed to seed."""


def few_replicates(count: int, level: float) -> str:
    """Why there is no interval at ``level`` from ``count`` bootstrap replicates; empty where there is one."""
    need = min_replicates(level)
    return "" if count >= need else f"no interval: {count} bootstrap replicates, and level {level:g} needs {need}"


@dataclass(frozen=True)
class Curve:
    """Accuracies [A] along the path, the mean over ``sets``, and their bootstrap [R, A] (``stratified_means``).

    ``halves``: [S, 2, A] the accuracies on both halves of S splits of the images; none ([0, 2, A]) where the images
    cannot be split, because a set has a single one or tells only how many answers are right. ``too_few``: why there are
    no replicates; empty where there are as many as were asked for.
    """

    values: np.ndarray
    replicates: np.ndarray
    sets: tuple[str, ...]
    halves: np.ndarray = field(default_factory=lambda: np.empty((0, 2, 0)))
    too_few: str = ""

    def without_interval(self, level: float) -> str:
        """Why there is no interval at ``level``; empty where there is one."""
        return self.too_few or few_replicates(len(self.replicates), level)

    def gains(self, alphas: Sequence[float]) -> Curve | None:
        """The accuracies minus that of alpha 0; None where the path does not have alpha 0."""
        start = alpha_index(alphas, 0.0)
        if start is None:
            return None
        return Curve(
            self.values - self.values[start],
            self.replicates - self.replicates[:, [start]],
            self.sets,
            self.halves - self.halves[..., [start]],
            self.too_few,
        )

    def crossfit(self, worth: Callable[[np.ndarray, np.ndarray], float]) -> float:
        """The mean of ``worth(choosing, judging)`` over both directions of every split; NaN where there is none.

        ``choosing`` and ``judging`` are the accuracies [A] on the two halves of the images. Whatever is chosen by the
        first is judged on images that had no part in the choice, so that the result is unbiased for a choice on half
        of the images, which is a little worse than one on all of them.

        Source: Stone 1974, Journal of the Royal Statistical Society B 36:111-147 (cross-validatory assessment).
        """
        found = [worth(*sides) for split in self.halves for sides in (split, split[::-1])]
        return float(np.mean(found)) if found else math.nan


def best_place(values: np.ndarray) -> int:
    """The choice of the largest accuracy, the first of equal ones."""
    return int(np.argmax(values))


def curve_of(
    sets: Mapping[str, Scored],
    bootstrap: int,
    seed: int,
    *words: str,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> Curve:
    """The mean over ``sets`` along the path; ``words``: what the random numbers from ``seed`` are for.

    ``pictures``: data set -> [n], a number for the picture of each example, of sets that have pictures in common.
    """

    def stream(*name: str) -> np.random.Generator:
        return np.random.default_rng(derive(seed, *words, *name))

    means, replicates = stratified_means(sets, bootstrap, stream, pictures)
    halves = halved_means(sets, SPLITS, lambda n: stream("halves", str(n)), pictures)
    return Curve(means, replicates, tuple(sets), halves, too_few_images(sets))


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
        return {**FIXED_ALPHAS, "id_best": self.id_best()}

    def cost(self, group: str, alpha: float, choice: Choice | None = None) -> tuple[Row, str]:
        """(ood_accuracy of ``alpha`` in ``group`` and its regret with bounds, what there is to say of them).

        ``regret`` is what ``alpha`` loses to the alpha that OOD labels choose, cross-fitted (``Curve.crossfit``). An
        alpha that OOD labels chose is chosen again on each half of the images, by ``choice``. The best alpha itself has
        no regret by this measure, whatever it loses in truth, and so it has none in the table.

        The bounds are those of max_b (mu_b - mu_a), the regret of alpha a. They hold for all alphas together, and so
        for any that is chosen after a look at the labels: with t_ba = (replicate - estimate) / se of the difference,

            low  = max_b (m_b - m_a - q se_ba),    q   = quantile of max over (a, b) of t
            high = max_b (m_b - m_a + q_b se_ba),  q_b = quantile of max over a of -t, at each b (for the true best b)

        Source: Romano and Wolf 2005, Journal of the American Statistical Association 100 (the max-type quantile).
        """
        curve = self.groups.get(group)
        if curve is None or not math.isfinite(alpha):
            return {}, ""
        here = float(at_alpha(curve.values, self.alphas, alpha))
        if not math.isfinite(here):
            return {"ood_accuracy": here}, ""
        said = []
        if alpha_index(self.alphas, alpha) is None:
            said.append(f"alpha {alpha:g} is not on the grid: accuracy interpolated between its neighbours")

        def lost(choosing: np.ndarray, judging: np.ndarray) -> float:
            own = at_alpha(judging, self.alphas, alpha) if choice is None else judging[choice(choosing)]
            return float(judging[best_place(choosing)] - own)

        regret = math.nan if choice is best_place else curve.crossfit(lost)
        if not math.isfinite(regret) and choice is not best_place:
            said.append("no regret: the images cannot be split into some that choose and others that judge")
        low, high = self._regret_bounds(group, alpha)
        if few := curve.without_interval(self.level):
            said.append(few)
        else:
            told = f"[{100 * low:.1f}, {100 * high:.1f}] points"
            said.append(f"regret {100 * self.level:g}% interval {told}, for all alphas together")
        return {"ood_accuracy": here, "regret": regret, "regret_low": low, "regret_high": high}, noted(*said)

    def _regret_bounds(self, group: str, alpha: float) -> tuple[float, float]:
        if self.groups[group].without_interval(self.level):
            return math.nan, math.nan
        place = alpha_index(self._bounded_alphas, alpha)
        bounds = self._bounds[group] if place is not None else self._bounds_at([*self._bounded_alphas, alpha], group)
        return bounds[-1 if place is None else place]

    @cached_property
    def _bounded_alphas(self) -> list[float]:
        """The points of the path, then the alphas of fixed rules between them."""
        ends = self.alphas[0], self.alphas[-1]
        between = [a for a in self.fixed().values() if ends[0] <= a <= ends[1] and alpha_index(self.alphas, a) is None]
        return [*self.alphas, *between]

    @cached_property
    def _bounds(self) -> dict[str, list[tuple[float, float]]]:
        return {group: self._bounds_at(self._bounded_alphas, group) for group in self.groups}

    def _bounds_at(self, alphas: Sequence[float], group: str) -> list[tuple[float, float]]:
        curve = self.groups[group]
        values, draws = (
            np.stack([at_alpha(x, self.alphas, a) for a in alphas], axis=-1) for x in (curve.values, curve.replicates)
        )
        gaps = curve.values[:, None] - values[None]
        errors = curve.replicates[:, :, None] - draws[:, None, :] - gaps
        se = errors.std(axis=0, ddof=1)
        t = errors / np.where(se > 0, se, 1.0)
        tail = (1 + self.level) / 2
        joint = max(0.0, float(np.quantile(t.max(axis=(1, 2)), tail, method="higher")))
        of_best = np.maximum(0.0, np.quantile((-t).max(axis=2), tail, axis=0, method="higher"))
        low = np.maximum(0.0, (gaps - joint * se).max(axis=0))  # between points the path may be no better than the line
        high = (gaps + of_best[:, None] * se).max(axis=0)
        return list(zip(low.tolist(), high.tolist(), strict=True))


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
    words = ("advice", pair)
    ood = members_of(split["ood"], groups)
    return AlongPath(
        pair,
        tuple(float(a) for a in alphas),
        curve_of(split["id"], bootstrap, seed, *words, pictures=pictures) if split["id"] else None,
        {
            group: curve_of({n: split["ood"][n] for n in sets}, bootstrap, seed, *words, pictures=pictures)
            for group, sets in ood.items()
        },
        level,
    )


def gain_over_zeroshot(curve: Curve, alphas: Sequence[float], choice: Choice) -> Row:
    """predicted_gain of the alpha that ``choice`` takes by the labels of ``curve``; empty without alpha 0.

    The gain is cross-fitted; where the images cannot be split it is that of the labels that chose, which is too large
    on average. That of alpha 0 is 0.
    """
    gains = curve.gains(alphas)
    if gains is None:
        return {}
    best = choice(curve.values)
    if best == alpha_index(alphas, 0.0):
        return {"predicted_gain": 0.0}
    judged = gains.crossfit(lambda choosing, judging: float(judging[choice(choosing)]))
    return {"predicted_gain": judged if math.isfinite(judged) else float(gains.values[best])}


def new_row(
    path: AlongPath,
    situation: str,
    rule: str,
    group: str,
    alpha: float,
    note: str = "",
    *,
    choice: Choice | None = None,
    **more: Any,
) -> Row:
    """A row of the table advice; what is not given is missing, and an alpha that is missing makes it undefined.

    ``choice``: how the rule chose ``alpha`` by the labels of ``group``, where it did.
    """
    nan = math.nan
    row: Row = {"pair": path.pair, "situation": situation, "rule": rule, "group": group, "alpha": alpha}
    row |= {"layers": "", "density": nan, "predicted_gain": nan, "ci_low": nan, "ci_high": nan}
    row |= {"id_accuracy": path.id_at(alpha), "ood_accuracy": nan, "regret": nan, "expected_regret": nan}
    row |= {"regret_low": nan, "regret_high": nan, "best_baseline": "", "baseline_regret": nan, "advised": False}
    cost, said = path.cost(group, alpha, choice)
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
        best = math.nan if curve is None else path.alphas[best_place(curve.values)]
        told = "chosen on the OOD labels: not advice, but what regret is measured against, so that its own is 0"
        oracle = new_row(path, BASELINE, "oracle", group, best, "no OOD set was given" if curve is None else told)
        rows.append(oracle if curve is None else oracle | {"note": told, "regret": 0.0})
    return rows


def _validated(path: AlongPath) -> str:
    if path.id is None:
        return "no ID set was given"
    return f"the ID test sets ({'+'.join(path.id.sets)}) serve as validation"


def fixed_regret(path: AlongPath, curve: Curve, choice: Choice = best_place) -> Row:
    """best_baseline and baseline_regret: the best of the rules without data, and what it loses, by labels of ``curve``.

    The best alpha (by ``choice``) AND the best of those rules are chosen on one half of the images and judged on the
    other (``Curve.crossfit``): the best of several rules by the same labels would look better than it is.
    ``best_baseline`` is the one that all labels choose; empty where no rule has an alpha on the path.
    """
    fixed = {rule: alpha for rule, alpha in path.fixed().items() if math.isfinite(alpha)}
    on_path = {r: a for r, a in fixed.items() if math.isfinite(float(at_alpha(curve.values, path.alphas, a)))}
    if not on_path:
        return {}

    def least(values: np.ndarray) -> str:
        return max(on_path, key=lambda rule: float(at_alpha(values, path.alphas, on_path[rule])))

    def lost(choosing: np.ndarray, judging: np.ndarray) -> float:
        own = at_alpha(judging, path.alphas, on_path[least(choosing)])
        return float(judging[choice(choosing)] - own)

    return {"best_baseline": least(curve.values), "baseline_regret": curve.crossfit(lost)}
