"""Prediction of one pair's OOD gain from the sharpness, distance and OOD gain of other pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from sharpscope.errors import ConfigError
from sharpscope.findings.frames import alpha_index
from sharpscope.tables.rows import dense_rows, groups_in, has_value, mean_accuracy, of_group, unique_in_order
from sharpscope.vocabulary import ALL, DEFAULT_GROUP, OOD_MEAN

__all__ = [
    "FEWEST_REFERENCES",
    "REFERENCE",
    "Prediction",
    "along",
    "at_alpha",
    "end_distance",
    "predict_gain",
    "reference_table",
]

FEWEST_REFERENCES = 4
"""The fewest settings from which a gain is predicted, or a rule's regret expected. Seeds of one setting count once."""
REFERENCE = (
    "pair",
    "alpha",
    "measure",
    "sharpness",
    "log_ratio",
    "distance",
    "id_accuracy",
    "ood_accuracy",
    "ood_gain",
    "group",
)
"""Columns of a reference table. ``sharpness`` is that of the layer ``(all)``; ``log_ratio`` is log(sharpness(alpha) /
sharpness(0)), NaN where either is <= 0; ``distance`` is that between theta_0 and theta_1; accuracies are in [0, 1];
``ood_gain`` is OOD(alpha) - OOD(0), the mean over the sets of ``group``."""


def reference_table(sharpness: pd.DataFrame, accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
    """The whole model's sharpness, distance and accuracies of every pair along its path: columns ``REFERENCE``.

    There is one row for every group of OOD sets.

    Args:
        sharpness, accuracy, path: tables of the schema with any number of pairs. The distance is that of
            ``end_distance``; all pairs must have it in the same unit.
    """
    groups = groups_in(accuracy) or [DEFAULT_GROUP]
    frames = [_references(sharpness, of_group(accuracy, g), path).assign(group=g) for g in groups]
    return pd.concat(frames, ignore_index=True)[list(REFERENCE)]


def _references(sharpness: pd.DataFrame, accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
    accuracy = dense_rows(accuracy)
    whole = sharpness[(sharpness["layer"] == ALL) & has_value(sharpness)]
    known = {role: _means(accuracy[accuracy["role"] == role]) for role in ("id", OOD_MEAN)}
    span = {str(pair): end_distance(rows) for pair, rows in path.groupby("pair", sort=False)}
    rows = []
    for pair in sorted(unique_in_order(whole["pair"])):
        for measure in sorted(unique_in_order(whole.loc[whole["pair"] == pair, "measure"])):
            part = whole[(whole["pair"] == pair) & (whole["measure"] == measure)]
            values = {round(float(a), 9): float(v) for a, v in zip(part["alpha"], part["estimate"], strict=True)}
            start = values.get(0.0, math.nan)
            for alpha in sorted(values):
                ratio = values[alpha] / start if start > 0 else math.nan
                ood = known[OOD_MEAN].get((pair, alpha), math.nan)
                rows.append(
                    {
                        "pair": pair,
                        "alpha": alpha,
                        "measure": measure,
                        "sharpness": values[alpha],
                        "log_ratio": math.log(ratio) if ratio > 0 else math.nan,
                        "distance": span.get(pair, math.nan),
                        "id_accuracy": known["id"].get((pair, alpha), math.nan),
                        "ood_accuracy": ood,
                        "ood_gain": ood - known[OOD_MEAN].get((pair, 0.0), math.nan),
                    }
                )
    return pd.DataFrame(rows, columns=[c for c in REFERENCE if c != "group"])


def _means(rows: pd.DataFrame) -> dict[tuple[str, float], float]:
    """(pair, alpha) -> accuracy averaged over the data sets in ``rows``."""
    mean = mean_accuracy(rows)
    points = zip(mean["pair"], mean["alpha"], mean["estimate"], strict=True)
    return {(str(pair), round(float(alpha), 9)): float(estimate) for pair, alpha, estimate in points}


def end_distance(path: pd.DataFrame) -> float:
    """The distance between theta_0 and theta_1 from one pair's rows of the table ``path``; NaN where none tells it.

    It is ``distance_0`` at alpha = 1. Where the path lacks that point it is the smallest ``distance_0 + distance_1``:
    by the triangle inequality no point has a smaller sum, and every point of a straight line between the ends has
    exactly this one, while points beyond an end have a larger one.
    """
    at_end = path.loc[np.isclose(path["alpha"].to_numpy(dtype=float), 1.0), "distance_0"].dropna()
    known = at_end if len(at_end) else (path["distance_0"] + path["distance_1"]).dropna()
    return float(known.min()) if len(known) else math.nan


@dataclass(frozen=True)
class Prediction:
    """Predicted OOD gain over the zero-shot model (an accuracy difference), with its prediction interval.

    ``n`` is the number of settings behind it.
    """

    gain: float
    low: float
    high: float
    n: int


def predict_gain(
    features: np.ndarray,
    gains: np.ndarray,
    judged: np.ndarray,
    settings: Sequence[object] | None = None,
    *,
    ridge: float = 1.0,
    level: float | None = 0.95,
) -> Prediction:
    """Ridge regression over settings, with a prediction interval from its leave-one-setting-out errors.

    Pairs of one setting differ in their seed alone and tell one thing. Features and gains are therefore averaged within
    each of the n settings before anything else. Columns are standardised to Z and the intercept is not shrunk:
    b = (Z'Z + ridge I)^-1 Z'y. Leaving setting i out gives every pair j of it the error e_ij = y_ij - yhat_(-i)(x_ij)
    with variance sigma^2 (1 + h_(-i)(x_ij)), where h = 1/m + z'(Z'Z + ridge I)^-1 z is the leverage among the m other
    settings. sigma^2 is the mean over settings of the mean over their pairs of e_ij^2 / (1 + h_(-i)), so that it holds
    both what differs between settings and what differs between seeds. The interval is yhat +- t_{n-1-p} sigma
    sqrt(1 + h(x)). This studentised leave-one-out interval replaces jackknife+, whose 95 % interval is infinite with
    fewer than 19 settings.

    Args:
        features: [N, p], one row per reference pair.
        gains: [N] OOD gains of the reference pairs.
        judged: [p] features of the judged pair.
        settings: [N] the setting of each reference pair; None: every pair is a setting of its own.
        ridge: penalty (our choice: 1, the weight of one setting that shows no effect). A larger value pulls the
            prediction towards the mean gain.
        level: coverage of the interval; None: no interval, and so one fit in place of n + 1.

    Raises:
        ConfigError: fewer than 4 settings.

    Sources: Hoerl and Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634 (ridge); Barber et al. 2021, arXiv
    1905.02928 (jackknife+).
    """
    named = list(range(len(gains))) if settings is None else list(settings)
    places = {name: i for i, name in enumerate(dict.fromkeys(named))}
    of = np.array([places[name] for name in named], dtype=int)
    n, p = len(places), features.shape[1]
    if n < FEWEST_REFERENCES:
        raise ConfigError(f"advice: references of {n} settings; a prediction needs at least {FEWEST_REFERENCES}.")
    x = np.array([features[of == i].mean(axis=0) for i in range(n)])
    y = np.array([gains[of == i].mean() for i in range(n)])
    guess, leverage = _ridge(x, y, judged, ridge)
    if level is None:
        return Prediction(guess, math.nan, math.nan, n)
    errors = []
    for i in range(n):
        keep = np.arange(n) != i
        told = [(gains[k], *_ridge(x[keep], y[keep], features[k], ridge)) for k in np.flatnonzero(of == i)]
        errors.append(np.mean([(gain - other) ** 2 / (1 + far) for gain, other, far in told]))
    half = stats.t.ppf((1 + level) / 2, max(n - 1 - p, 1)) * math.sqrt(float(np.mean(errors)) * (1 + leverage))
    return Prediction(guess, guess - half, guess + half, n)


def _ridge(features: np.ndarray, gains: np.ndarray, at: np.ndarray, ridge: float) -> tuple[float, float]:
    centre, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-12 * np.maximum(np.abs(centre), 1e-300), spread, 1.0)
    z, new = (features - centre) / scale, (at - centre) / scale
    inverse = np.linalg.inv(z.T @ z + ridge * np.eye(z.shape[1]))
    guess = gains.mean() + new @ inverse @ z.T @ (gains - gains.mean())
    return float(guess), float(1 / len(gains) + new @ inverse @ new)


def at_alpha(curve: np.ndarray, grid: Sequence[float], alpha: float) -> np.ndarray:
    """``curve`` [..., A] at ``alpha``, linear between grid points; NaN outside the grid."""
    place = alpha_index(grid, alpha)
    if place is not None:
        return curve[..., place]
    if not grid[0] <= alpha <= grid[-1]:
        return np.full(curve.shape[:-1], np.nan)
    right = int(np.searchsorted(grid, alpha))
    step = (alpha - grid[right - 1]) / (grid[right] - grid[right - 1])
    return (1 - step) * curve[..., right - 1] + step * curve[..., right]


def along(rows: pd.DataFrame, column: str, alpha: float) -> float:
    """``column`` of one pair's ``rows`` at ``alpha``, linear between that pair's own alphas; NaN outside them."""
    if not len(rows):
        return math.nan
    line = rows.sort_values("alpha")
    return float(at_alpha(line[column].to_numpy(dtype=float), [float(a) for a in line["alpha"]], alpha))
