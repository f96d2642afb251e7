"""Advice on alpha from ID data and weights alone, and the OOD accuracy that each rule loses to the best alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from sharpscope.findings.frames import Answered, alpha_index, check_correct
from sharpscope.findings.prediction import FEWEST_REFERENCES, Prediction, along, at_alpha, predict_gain
from sharpscope.findings.resampling import scores_of, stratified_means
from sharpscope.scores import min_replicates, percentile_interval
from sharpscope.seeds import derive
from sharpscope.tables.rows import table, unique_in_order
from sharpscope.vocabulary import DEFAULT_GROUP

__all__ = ["RULES", "advice_table"]

RULES = ("zeroshot", "half", "finetuned", "id_best", "sharpscope", "oracle")
_MEASURES = ("ggn_trace", "hessian_trace")
"""The prediction uses the first of these measures that yields one at any alpha."""
_SAFE = ("pair", "alpha", "measure", "log_ratio", "distance")
NOT_FROM_ID = "the ID data of this pair cannot show whether sparse straggler layers would raise its OOD accuracy"


def advice_table(
    pair: str,
    alphas: Sequence[float],
    correct: Mapping[str, Answered],
    roles: Mapping[str, str],
    features: pd.DataFrame | None = None,
    references: pd.DataFrame | None = None,
    *,
    stragglers: Sequence[str] = (),
    reference_repairs: pd.DataFrame | None = None,
    group: str = DEFAULT_GROUP,
    level: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The alpha that each rule advises for one pair, and its regret where OOD labels exist.

    The rules are

        zeroshot    alpha = 0
        half        alpha = 0.5
        finetuned   alpha = 1
        id_best     the smallest alpha with the best mean accuracy on the ID sets
        sharpscope  the alpha with the largest predicted OOD gain over zero-shot
        oracle      the alpha that is best on the OOD labels (regret 0 by definition)

    ``sharpscope`` predicts the gain at every alpha > 0 from other pairs, each alpha on its own (``predict_gain`` on
    the log sharpness ratio and the log distance); the gain at alpha = 0 is 0. If no interior alpha beats the better
    end, that end is advised and the note says "do not interpolate". With fewer than 4 reference pairs it falls back to
    alpha = 0.5, with prediction NaN and status "undefined". Only the oracle sees OOD labels of the judged pair: the
    accuracies in ``features`` and all reference rows of the judged pair are dropped.

    Args:
        pair: the judged pair.
        alphas: [A] increasing.
        correct: data set -> bool [A, n] or predictions.
        roles: data set -> "id" | "ood".
        features: ``reference_table`` rows of the judged pair.
        references: ``reference_table`` rows of other pairs.
        stragglers: the judged pair's straggler layers, advised only with ``reference_repairs``.
        reference_repairs: ``repair`` tables of pairs with stragglers; rows of the judged pair are dropped. The
            stragglers and a density are advised if some sparsity of the stragglers raised OOD accuracy on the OTHER
            pairs at equal ID accuracy: at least 4 pairs, and the t interval of the mean over pairs lies above 0 after
            a Bonferroni correction over sparsities. Otherwise no layers are advised.
        group: the group of OOD sets that ``correct``, ``features`` and ``references`` hold.
        level: coverage of the intervals.
        bootstrap: number of replicates.
        seed: the run's seed.

    Returns:
        Table ``advice``. ci_low and ci_high belong to predicted_gain (over zero-shot). The regret's interval is in
        ``note``: a paired bootstrap in which every replicate chooses the oracle's alpha again.

    Raises:
        ConfigError: arrays, alphas or roles that do not fit each other.
    """
    split = check_correct(alphas, correct, roles)
    grid = [float(a) for a in alphas]
    ood, ood_reps = _curve(split["ood"], bootstrap, seed, pair)
    id_mean = np.mean([scores_of(v) for v in split["id"].values()], axis=0) if split["id"] else None
    rows = []
    for rule in RULES:
        row: dict[str, Any] = {
            "pair": pair,
            "group": group,
            "rule": rule,
            "layers": "",
            "density": math.nan,
            "status": "ok",
        }
        row |= {"predicted_gain": math.nan, "ci_low": math.nan, "ci_high": math.nan}
        note = ""
        if rule == "id_best":
            if id_mean is None:
                row |= {"alpha": math.nan, "status": "undefined"}
                note = "no ID set was given"
            else:
                row["alpha"] = grid[int(np.argmax(id_mean))]
                note = f"the ID test sets ({'+'.join(split['id'])}) serve as validation"
        elif rule == "oracle":
            row["alpha"] = math.nan if ood is None else grid[int(np.argmax(ood))]
            row["status"] = "undefined" if ood is None else "ok"
            note = (
                "no OOD set was given"
                if ood is None
                else "chosen on the OOD labels: not advice, but what regret is measured against"
            )
        elif rule == "sharpscope":
            ours, note = _sharpscope(pair, grid, features, references, level)
            held, why = _held_back(pair, stragglers, reference_repairs, level)
            row |= ours | held
            note = f"{note}; {why}"
        else:
            row["alpha"] = {"zeroshot": 0.0, "half": 0.5, "finetuned": 1.0}[rule]
        rows.append(row | _regret(row, note, grid, ood, ood_reps, level))
    return table("advice", rows)


def _curve(
    sets: Mapping[str, Answered], bootstrap: int, seed: int, pair: str
) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not sets:
        return None, None
    rngs = [np.random.default_rng(derive(seed, "advice", pair, name)) for name in sets]
    return stratified_means(list(sets.values()), bootstrap, rngs)


def _regret(
    row: Mapping[str, Any],
    note: str,
    grid: Sequence[float],
    ood: np.ndarray | None,
    reps: np.ndarray | None,
    level: float,
) -> dict[str, Any]:
    alpha = float(row["alpha"])
    if ood is None or reps is None or not math.isfinite(alpha):
        return {"regret": math.nan, "ood_accuracy": math.nan, "note": note}
    here = float(at_alpha(ood, grid, alpha))
    regret = float(ood.max()) - here
    parts = [note] if note else []
    if math.isfinite(here) and alpha_index(grid, alpha) is None:
        parts.append(f"alpha {alpha:g} is not on the grid: accuracy interpolated between its neighbours")
    if math.isfinite(regret) and row["rule"] != "oracle" and len(reps) >= min_replicates(level):
        low, high = percentile_interval(reps.max(axis=1) - at_alpha(reps, grid, alpha), level)
        parts.append(f"regret {level:.0%} interval [{float(low):.4f}, {float(high):.4f}]")
    undefined = {} if math.isfinite(here) else {"status": "undefined"}
    return {**undefined, "regret": regret, "ood_accuracy": here, "note": "; ".join(parts)}


def _sharpscope(
    pair: str,
    grid: Sequence[float],
    features: pd.DataFrame | None,
    references: pd.DataFrame | None,
    level: float,
) -> tuple[dict[str, Any], str]:
    fallback = {"alpha": 0.5, "status": "undefined"}
    if references is None or not len(references[references["pair"] != pair]):
        return fallback, "undefined: no reference pairs; alpha = 0.5 is a convention, not a finding"
    others = references[references["pair"] != pair]
    own = None if features is None else features.loc[features["pair"] == pair, list(_SAFE)]
    if own is None or not len(own):
        return fallback, "undefined: no whole-model sharpness of this pair; alpha = 0.5 is a convention"
    best: tuple[float, Prediction] | None = None
    ends: dict[float, float] = {0.0: 0.0}
    measure, used = "", 0
    for name in _MEASURES:
        predictions = {a: _predicted(own, others, name, a, level) for a in grid if 0 < a <= 1}
        usable = {a: p for a, p in predictions.items() if p is not None}
        if usable:
            measure, used = name, max(p.n for p in usable.values())
            if 1.0 in usable:
                ends[1.0] = usable[1.0].gain
            best = max(usable.items(), key=lambda item: (item[1].gain, -item[0]))
            break
    if best is None:
        count = others["pair"].nunique()
        return fallback, (
            f"undefined: fewer than {FEWEST_REFERENCES} of {count} reference pairs have positive "
            f"{' or '.join(_MEASURES)}, a distance and OOD accuracy; alpha = 0.5 is a convention"
        )
    about = f"{used} reference pairs, {measure} of the whole model"
    end, end_gain = max(ends.items(), key=lambda item: item[1])
    if best[1].gain <= end_gain:
        note = (
            f"do not interpolate: no alpha between 0 and 1 has a larger predicted gain than alpha = {end:g} ({about})"
        )
        chosen = usable.get(end)
        if chosen is None:  # alpha = 0: the zero-shot model itself, gain 0 by definition
            return {"alpha": end, "predicted_gain": 0.0, "ci_low": 0.0, "ci_high": 0.0}, note
        return {"alpha": end, "predicted_gain": chosen.gain, "ci_low": chosen.low, "ci_high": chosen.high}, note
    alpha, p = best
    over = f"predicted OOD gain {p.gain - end_gain:+.4f} over alpha = {end:g}, the end with the larger predicted gain"
    return {"alpha": alpha, "predicted_gain": p.gain, "ci_low": p.low, "ci_high": p.high}, f"{over} ({about})"


def _predicted(own: pd.DataFrame, others: pd.DataFrame, measure: str, alpha: float, level: float) -> Prediction | None:
    judged = _features(own[own["measure"] == measure], alpha)
    if judged is None:
        return None
    rows, gains = [], []
    part = others[others["measure"] == measure]
    for name in sorted(unique_in_order(part["pair"])):
        one = part[part["pair"] == name]
        x, gain = _features(one, alpha), along(one, "ood_gain", alpha)
        if x is not None and math.isfinite(gain):
            rows.append(x)
            gains.append(gain)
    if len(rows) < FEWEST_REFERENCES:
        return None
    return predict_gain(np.array(rows), np.array(gains), judged, level=level)


def _features(rows: pd.DataFrame, alpha: float) -> np.ndarray | None:
    distance = float(rows["distance"].iloc[0]) if len(rows) else math.nan
    ratio = along(rows, "log_ratio", alpha)
    return np.array([ratio, math.log(distance)]) if math.isfinite(ratio) and distance > 0 else None


def _held_back(
    pair: str, stragglers: Sequence[str], repairs: pd.DataFrame | None, level: float
) -> tuple[dict[str, Any], str]:
    """Advised straggler layers and density, from the gains of sparsity on OTHER pairs; by default none."""
    if repairs is None or not stragglers:
        return {}, NOT_FROM_ID
    rows = repairs[(repairs["pair"] != pair) & (repairs["control"] == "none") & (repairs["status"] == "ok")]
    means = rows.groupby(["target", "select", "density", "pair"], sort=True)["gain"].mean().reset_index()
    groups = [(key, g["gain"].to_numpy()) for key, g in means.groupby(["target", "select", "density"], sort=True)]
    tested = [(key, g) for key, g in groups if len(g) >= FEWEST_REFERENCES]
    best: tuple[float, Any, int] | None = None
    for key, gains in tested:
        half = float(special.stdtrit(len(gains) - 1, 1 - (1 - level) / (2 * len(tested))))
        low = float(gains.mean() - half * gains.std(ddof=1) / math.sqrt(len(gains)))
        if low > 0 and (best is None or low > best[0]):
            best = (low, key, len(gains))
    if best is None and not tested:
        return {}, NOT_FROM_ID
    if best is None:
        few = f"at least {FEWEST_REFERENCES} other pairs"
        return {}, f"{NOT_FROM_ID}, and no sparsity has a mean gain over {few} whose interval lies above 0"
    target, select, density = best[1]
    what = f"{target}:{select} sparsity of the stragglers"
    why = f"{what} raised OOD accuracy by at least {best[0]:.4f} on average over {best[2]} other pairs"
    return {"layers": "+".join(stragglers), "density": float(density)}, why
