"""The situation ``references``: other pairs have OOD labels. They are used only for a pair of the same zero-shot model
whose features lie within theirs, and only by the OOD sets that are asked about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from sharpscope.findings.advising.along import AlongPath, Row, new_row, noted
from sharpscope.findings.design import Design
from sharpscope.findings.prediction import FEWEST_REFERENCES, Prediction, at_alpha, end_distance, predict_gain
from sharpscope.tables.rows import dense_rows, has_value, mean_accuracy, unique_in_order
from sharpscope.vocabulary import ALL, DEFAULT_GROUP, FIXED_ALPHAS, LEARNING_RATE

__all__ = [
    "Reference",
    "Regrets",
    "inside",
    "leave_one_setting_out",
    "reference_pairs",
    "reference_rows",
]

MEASURES = ("ggn_trace", "hessian_trace")
"""The sharpness of the whole model is taken from the first of these measures that every pair has."""


@dataclass(frozen=True)
class Reference:
    """What is known of one pair along its own alphas [A]; accuracies in [0, 1], features by name.

    ``ood``: mean OOD accuracy by group. ``features``: name -> one number, or [A] along the path. ``setting``: pairs of
    one setting differ by their seed alone and are left out together. ``base``: the zero-shot model; two pairs are of
    the same one where the texts are equal. ``sets``: group -> the OOD sets of which ``ood`` is the mean.
    """

    pair: str
    alphas: tuple[float, ...]
    ood: Mapping[str, np.ndarray] = field(default_factory=dict)
    id: np.ndarray | None = None
    features: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    setting: str = ""
    base: str = ""
    sets: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, pair: str, alphas: Sequence[float], distance: float, design: Design) -> Reference:
        """A pair without tables, by the distance between its ends and what ``design`` knows of its fine-tuning."""
        rate, setting, base = _tuning(pair, design)
        features = {"log_learning_rate": _log(rate), "log_distance": _log(distance)}
        return cls(pair, tuple(float(a) for a in alphas), features=features, setting=setting, base=base)

    def feature(self, name: str, alpha: float) -> float:
        """The feature ``name`` at ``alpha``, linear between the pair's alphas; NaN where it is not known."""
        value = self.features.get(name, math.nan)
        return float(at_alpha(value, self.alphas, alpha)) if isinstance(value, np.ndarray) else float(value)

    def gain(self, group: str, alpha: float) -> float:
        """OOD accuracy at ``alpha`` minus that at 0, linear between the pair's alphas; NaN where it is not known."""
        if group not in self.ood:
            return math.nan
        return float(at_alpha(self.ood[group], self.alphas, alpha) - at_alpha(self.ood[group], self.alphas, 0.0))


def reference_pairs(
    accuracy: pd.DataFrame,
    path: pd.DataFrame,
    sharpness: pd.DataFrame | None = None,
    design: Design | None = None,
    groups: Mapping[str, str] | None = None,
) -> list[Reference]:
    """The pairs of any number of runs, from their tables.

    Args:
        accuracy, path, sharpness: tables of the schema.
        design: the pairs' zero-shot models and settings, and their learning rates among its covariates.
        groups: OOD set -> its group, in place of that which the table's column ``group`` says; sets without any belong
            to the group ``ood``.

    Features are log_learning_rate, log_distance between the ends, and for each measure the log of the whole model's
    sharpness over that of alpha 0, ``log_ratio:MEASURE``, along the path.
    """
    rows = dense_rows(accuracy)
    ood = rows[rows["role"] == "ood"]
    own_group = ood["group"] if "group" in ood else [""] * len(ood)
    named = zip(ood["dataset"], own_group, strict=True)
    ood = ood.assign(
        group=[(groups or {}).get(d) or (g if isinstance(g, str) and g else DEFAULT_GROUP) for d, g in named]
    )
    out = []
    for pair in unique_in_order(rows["pair"]):
        own = ood[ood["pair"] == pair]
        alphas = tuple(sorted(float(a) for a in rows.loc[rows["pair"] == pair, "alpha"].dropna().unique()))
        rate, setting, base = _tuning(str(pair), design)
        features: dict[str, float | np.ndarray] = {
            "log_learning_rate": _log(rate),
            "log_distance": _log(end_distance(path[path["pair"] == pair])),
        }
        if sharpness is not None:
            features |= _ratios(sharpness[sharpness["pair"] == pair], alphas)
        by_group = {g: own[own["group"] == g] for g in unique_in_order(own["group"])}
        means = {g: _curve(part, alphas) for g, part in by_group.items()}
        sets = {g: frozenset(map(str, part["dataset"])) for g, part in by_group.items()}
        ids = rows[(rows["pair"] == pair) & (rows["role"] == "id")]
        known = _curve(ids, alphas) if len(ids) else None
        out.append(Reference(str(pair), alphas, means, known, features, setting, base, sets))
    return out


def _tuning(pair: str, design: Design | None) -> tuple[float, str, str]:
    """(learning rate, setting, zero-shot model) of a pair; NaN, its own name and "" where they are not known."""
    if design is None or pair not in design.pairs:
        return math.nan, pair, ""
    i = design.pairs.index(pair)
    rates = design.covariates.get(LEARNING_RATE)
    return math.nan if rates is None else float(rates[i]), design.setting[i] or pair, design.base[i]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _curve(rows: pd.DataFrame, alphas: Sequence[float]) -> np.ndarray:
    mean = mean_accuracy(rows)
    found = {round(float(a), 9): float(v) for a, v in zip(mean["alpha"], mean["estimate"], strict=True)}
    return np.array([found.get(round(a, 9), math.nan) for a in alphas])


def _ratios(sharpness: pd.DataFrame, alphas: Sequence[float]) -> dict[str, np.ndarray]:
    whole = sharpness[(sharpness["layer"] == ALL) & has_value(sharpness)]
    out = {}
    for measure in MEASURES:
        part = whole[whole["measure"] == measure]
        values = {round(float(a), 9): float(v) for a, v in zip(part["alpha"], part["estimate"], strict=True)}
        start = values.get(0.0, math.nan)
        logs = [_log(values.get(round(a, 9), math.nan) / start) if start > 0 else math.nan for a in alphas]
        if np.isfinite(logs).any():
            out[f"log_ratio:{measure}"] = np.array(logs)
    return out


# ------------------------------------------------------------------------------------------------------------ the rules
def _names(judged: Reference, others: Sequence[Reference], grid: Sequence[float]) -> tuple[str, ...]:
    """The features that the judged pair and all references have at every alpha of the grid that is not 0."""

    def everywhere(name: str) -> bool:
        return all(math.isfinite(r.feature(name, a)) for r in (judged, *others) for a in grid if a > 0)

    ratio = next((f"log_ratio:{m}" for m in MEASURES if everywhere(f"log_ratio:{m}")), "")
    return tuple(n for n in ("log_learning_rate", "log_distance", ratio) if n and everywhere(n))


def inside(judged: np.ndarray, references: np.ndarray) -> bool:
    """Whether features [p] lie inside those of n references [n, p]: each in their range, and together no farther out.

    The second condition compares the squared Mahalanobis distance from the references' mean (with a ridge of one pair,
    as in ``predict_gain``) with the largest of the references themselves. A column that is constant among the
    references must have the same value.

    Source: Cook 1977, https://doi.org/10.1080/00401706.1977.10489493 (leverage as a measure of extrapolation).
    """
    low, high = references.min(axis=0), references.max(axis=0)
    slack = 1e-9 * np.maximum(np.abs(high), 1.0)
    if not np.isfinite(judged).all() or (judged < low - slack).any() or (judged > high + slack).any():
        return False
    centre, spread = references.mean(axis=0), references.std(axis=0)
    scale = np.where(spread > 1e-12, spread, 1.0)
    z, new = (references - centre) / scale, (judged - centre) / scale
    inverse = np.linalg.inv(z.T @ z + np.eye(z.shape[1]))
    return float(new @ inverse @ new) <= float(np.einsum("ij,jk,ik->i", z, inverse, z).max()) + 1e-9


def _outside(judged: Reference, others: Sequence[Reference], names: Sequence[str], alpha: float) -> str:
    """Which feature lies outside the references, in words; empty where the judged pair is inside."""
    own = np.array([judged.feature(n, alpha) for n in names])
    known = np.array([[r.feature(n, alpha) for n in names] for r in others])
    if inside(own, known):
        return ""
    said = []
    for name, value, column in zip(names, own, known.T, strict=True):
        if not column.min() <= value <= column.max():
            value, low, high = (math.exp(v) for v in (value, column.min(), column.max()))
            title = _TITLES.get(name, "the rise of sharpness")
            said.append(f"{title} is {value:.3g}, and theirs are {low:.3g} to {high:.3g}")
    return noted(*said) or "its combination of features is farther from their mean than that of any of them"


_TITLES = {"log_learning_rate": "the learning rate", "log_distance": "the distance between the ends"}


def _predictions(
    judged: Reference,
    others: Sequence[Reference],
    names: Sequence[str],
    grid: Sequence[float],
    group: str,
    level: float | None,
) -> dict[float, Prediction]:
    out = {}
    for alpha in grid:
        if alpha > 0:
            known = [(r, g) for r in others if math.isfinite(g := r.gain(group, alpha))]
            settings = [r.setting for r, _ in known]
            if len(set(settings)) >= FEWEST_REFERENCES:
                x = np.array([[r.feature(n, alpha) for n in names] for r, _ in known])
                at = np.array([judged.feature(n, alpha) for n in names])
                out[alpha] = predict_gain(x, np.array([g for _, g in known]), at, settings, level=level)
    return out


def _chosen(predictions: Mapping[float, Prediction]) -> float:
    """The alpha with the largest predicted gain; 0, whose gain is 0, where none is positive."""
    alpha = max(predictions, key=lambda a: (predictions[a].gain, -a))
    return alpha if predictions[alpha].gain > 0 else 0.0


Unit = Literal["setting", "base"]
"""What is left out as a whole: all seeds of a setting, or all pairs of a zero-shot model."""


def _best_fixed(others: Sequence[Reference], grid: Sequence[float], group: str, unit: Unit = "setting") -> float:
    """The alpha of the grid with the best mean gain over the settings (or zero-shot models) of the references."""

    def mean(alpha: float) -> float:
        by: dict[str, list[float]] = {}
        for r in others:
            by.setdefault(getattr(r, unit), []).append(r.gain(group, alpha))
        return float(np.mean([np.nanmean(v) for v in by.values() if np.isfinite(v).any()]))

    return max(grid, key=lambda a: (mean(a), -a))


@dataclass(frozen=True)
class Regrets:
    """Rule -> the OOD accuracy that it loses on each setting of the references when that setting is left out.

    ``by_pair``: rule -> pair -> regret, ``by_setting``: rule -> setting -> mean regret over its pairs; a rule that
    refuses a pair, because it lies outside the others, has none there.
    """

    by_setting: Mapping[str, Mapping[str, float]]
    by_pair: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def mean(self, rule: str, among: Sequence[str] | None = None) -> float:
        """The mean over settings (those in ``among``), NaN where there is none."""
        known = [v for s, v in self.by_setting.get(rule, {}).items() if among is None or s in among]
        return float(np.mean(known)) if known else math.nan


def leave_one_setting_out(
    references: Sequence[Reference],
    grid: Sequence[float],
    group: str,
    names: Sequence[str],
    *,
    check: bool = True,
    unit: Unit = "setting",
) -> Regrets:
    """Every rule's regret on each setting, chosen from the pairs of all other settings.

    Args:
        references: pairs with OOD accuracies in ``group``.
        grid: the alphas that may be chosen.
        group: group of OOD sets.
        names: the features of the rule ``predicted``.
        check: whether a rule that predicts refuses a setting that lies outside the others; False shows what
            extrapolation would cost.
        unit: ``base`` leaves all pairs of a zero-shot model out in place of those of a setting, and the keys of
            ``by_setting`` are zero-shot models.

    Raises:
        ConfigError: fewer than ``FEWEST_REFERENCES`` pairs behind a prediction (never here: such a rule has no regret).
    """
    lost: dict[str, dict[str, list[float]]] = {}
    by_pair: dict[str, dict[str, float]] = {}
    for judged in references:
        others = [r for r in references if getattr(r, unit) != getattr(judged, unit)]
        if not others or group not in judged.ood or not any(math.isfinite(r.gain(group, grid[-1])) for r in others):
            continue
        curve = np.array([float(at_alpha(judged.ood[group], judged.alphas, a)) for a in grid])
        picks: dict[str, float] = dict(FIXED_ALPHAS)
        if judged.id is not None:
            picks["id_best"] = judged.alphas[int(np.nanargmax(judged.id))]
        picks["best_fixed"] = _best_fixed(others, grid, group, unit)
        picks |= _predicted_picks(judged, others, grid, group, names, check)
        for rule, alpha in picks.items():
            here = float(at_alpha(judged.ood[group], judged.alphas, alpha))
            if math.isfinite(here):
                regret = float(np.nanmax(curve)) - here
                lost.setdefault(rule, {}).setdefault(getattr(judged, unit), []).append(regret)
                by_pair.setdefault(rule, {})[judged.pair] = regret
    by_setting = {rule: {s: float(np.mean(v)) for s, v in by.items()} for rule, by in lost.items()}
    return Regrets(by_setting, by_pair)


def _predicted_picks(
    judged: Reference, others: Sequence[Reference], grid: Sequence[float], group: str, names: Sequence[str], check: bool
) -> dict[str, float]:
    picks = {}
    for rule, features in (("predicted", names), ("learning_rate", [n for n in names if n == "log_learning_rate"])):
        if not features or (check and _outside(judged, others, features, grid[-1])):
            continue
        if predictions := _predictions(judged, others, features, grid, group, None):
            picks[rule] = _chosen(predictions)
    return picks


# ------------------------------------------------------------------------------------------------------------- the rows
def reference_rows(
    path: AlongPath,
    judged: Reference,
    references: Sequence[Reference],
    held_back: Callable[[str], tuple[Row, str]] = lambda group: ({}, ""),
) -> list[Row]:
    """The alphas that the references advise, one row per rule and group of OOD sets; none for a pair outside of them.

    Only references of the judged pair's zero-shot model are used, and only those whose accuracy is the mean over the
    OOD sets that are asked about: those of the judged pair's group, or, where it has none, those of the references
    themselves, which then have to be the same for all. Advised is the rule with the smallest regret on the references,
    each setting left out in turn; at equal regret the simplest: best_fixed before learning_rate before predicted. With
    fewer than 4 settings that could be left out no regret is expected, and best_fixed is advised.

    Args:
        path: the judged pair's curves; its OOD labels serve for regret alone.
        judged: its features; its OOD accuracies are not looked at.
        references: other pairs.
        held_back: a function from a group to (layers and density to hold back, the reason), for the advised row.
    """
    others = [r for r in references if r.pair != judged.pair]
    rows: list[Row] = []
    for group in unique_in_order(g for r in others for g in r.ood):
        known = [r for r in others if group in r.ood and math.isfinite(r.gain(group, 1.0))]
        rows += _group_rows(path, judged, known, group, *held_back(group))
    return rows


def _comparable(
    path: AlongPath, judged: Reference, others: Sequence[Reference], group: str
) -> tuple[list[Reference], frozenset[str], str]:
    """(the references of the judged pair's zero-shot model and OOD sets, those sets, what was left out and why)."""
    own = [r for r in others if r.base == judged.base]
    bases = len(others) - len(own)
    curve = path.groups.get(group)
    asked = judged.sets.get(group) if curve is None else frozenset(curve.sets)
    found = {r.sets.get(group, frozenset()) for r in own}
    if asked is None and len(found) > 1:
        named = sorted(_named(sets) or "unknown" for sets in found)
        return [], frozenset(), f"the references' OOD sets differ: {' | '.join(named)}"
    if asked is None:
        asked = next(iter(found), frozenset())
    same = [r for r in own if r.sets.get(group, frozenset()) == asked]
    theirs = sorted({_named(r.sets.get(group, ())) or "unknown" for r in own if r not in same})
    left_out = noted(
        f"left out: {_pairs(bases)} of another zero-shot model, by the base that the study names or the file's hash"
        if bases else "",
        f"left out: {_pairs(len(own) - len(same))} with other OOD sets ({' | '.join(theirs)}, in place of "
        f"{_named(asked) or 'unknown'})" if theirs else "",
    )  # fmt: skip
    return same, asked, left_out


def _pairs(count: int) -> str:
    return f"{count} reference pair{'s' * (count != 1)}"


def _group_rows(
    path: AlongPath, judged: Reference, others: Sequence[Reference], group: str, held: Row, why: str
) -> list[Row]:
    grid = [a for a in path.alphas if 0 <= a <= 1]
    others, sets, left_out = _comparable(path, judged, others, group)
    settings = unique_in_order(r.setting for r in others)
    names = _names(judged, others, grid) if others else ()
    refused = _refusal(judged, others, settings, names, grid)
    if refused:
        refused = noted(refused, left_out)
        return [new_row(path, "references", rule, group, math.nan, refused) for rule in ("predicted", "best_fixed")]
    regrets = leave_one_setting_out(others, grid, group, names)
    picks: dict[str, tuple[float, Prediction | None]] = {"best_fixed": (_best_fixed(others, grid, group), None)}
    for rule, features in (("learning_rate", [n for n in names if n == "log_learning_rate"]), ("predicted", names)):
        predictions = _predictions(judged, others, features, grid, group, path.level) if features else {}
        if predictions:
            alpha = _chosen(predictions)
            picks[rule] = alpha, predictions.get(alpha, Prediction(0.0, 0.0, 0.0, len(settings)))
    judged_on = set(settings).intersection(*(regrets.by_setting.get(r, {}) for r in picks))
    among = sorted(judged_on) if len(judged_on) >= FEWEST_REFERENCES else []
    fixed = tuple(path.fixed())
    mean = {rule: regrets.mean(rule, among) for rule in (*fixed, *picks)}
    winner = min(picks, key=lambda r: round(mean[r], 9)) if among else "best_fixed"
    baselines = {r: mean[r] for r in (*fixed, "best_fixed") if math.isfinite(mean[r])}
    least = min(baselines, key=baselines.__getitem__) if baselines else ""
    rows = []
    for rule, (alpha, predicted) in picks.items():
        told: Row = {"expected_regret": mean[rule], "advised": rule == winner}
        if least:
            told |= {"best_baseline": least, "baseline_regret": baselines[least]}
        if predicted is not None:
            told |= {"predicted_gain": predicted.gain, "ci_low": predicted.low, "ci_high": predicted.high}
        if rule == winner:
            told |= held
        features = names if rule == "predicted" else ("log_learning_rate",) if rule == "learning_rate" else ()
        of = f"{_counted(others, settings)} decide, by their OOD labels{f' of {_named(sets)}' if sets else ''}"
        by = f"features: {', '.join(n.removeprefix('log_') for n in features)}" if features else ""
        tested = (
            f"expected regret: each of {len(among)} settings left out in turn"
            if among
            else f"no regret is expected: {len(judged_on)} settings could be left out in turn, and {FEWEST_REFERENCES} "
            "are needed"
        )
        rows.append(
            new_row(
                path,
                "references",
                rule,
                group,
                alpha,
                noted(of, left_out, by, tested, why if rule == winner else ""),
                **told,
            )
        )
    return rows


def _named(sets: Iterable[str]) -> str:
    return "+".join(sorted(sets))


def _counted(others: Sequence[Reference], settings: Sequence[str]) -> str:
    return f"{_pairs(len(others))} of {len(settings)} setting{'s' * (len(settings) != 1)}"


def _refusal(
    judged: Reference, others: Sequence[Reference], settings: Sequence[str], names: Sequence[str], grid: Sequence[float]
) -> str:
    count = _counted(others, settings)
    if len(settings) < FEWEST_REFERENCES:
        return f"no alpha: {count} with OOD labels; advice from references needs at least {FEWEST_REFERENCES} settings"
    if not grid or grid[0] != 0:
        return "no alpha: the path does not have alpha 0, over which gains are predicted"
    if not names:
        return f"no alpha: neither learning rate nor distance is known of this pair and all of the {count}"
    if outside := _outside(judged, others, names, grid[-1]):
        return f"no alpha: this pair lies outside the {count}: {outside}"
    return ""
