"""Effective robustness: OOD accuracy above the value that a named baseline predicts from the ID accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from scipy import special, stats

from sharpscope.errors import ConfigError, ResultsError, shown
from sharpscope.scores import percentile_interval
from sharpscope.seeds import derive
from sharpscope.tables.rows import dense_rows, mean_accuracy
from sharpscope.vocabulary import OOD_MEAN

__all__ = ["BASELINES", "COLUMNS", "Baseline", "baseline_points", "effective_robustness", "points", "read_baseline"]

COLUMNS = (
    "pair", "alpha", "dataset", "id_accuracy", "ood_accuracy", "expected", "estimate", "ci_low", "ci_high",
    "baseline", "baseline_n", "note",
)  # fmt: skip
"""Columns of ``effective_robustness``."""
BASELINES: Final[dict[str, tuple[float, ...]]] = {"zeroshot": (0.0,), "finetuned": (1.0,), "ends": (0.0, 1.0)}
"""The baselines that consist of a run's own models: name -> the alphas of these models."""


_FEWEST: Final = 3


@dataclass(frozen=True)
class Baseline:
    """Models that define the expected OOD accuracy: logit(OOD) = intercept + slope * logit(ID).

    ``id_accuracy`` and ``ood_accuracy`` [m] are those of the m models; ``id_n`` and ``ood_n`` [m] are the numbers of
    examples behind them, 0 where not known. The line is fitted by least squares on the logit scale.

    Source: Taori et al. 2020, arXiv 2007.00644, section 3.
    """

    id_accuracy: np.ndarray
    ood_accuracy: np.ndarray
    id_n: np.ndarray
    ood_n: np.ndarray

    def fit(self) -> tuple[float, float]:
        """The fitted line as (intercept, slope)."""
        lines = _fits(_logit(self.id_accuracy, self.id_n)[None], _logit(self.ood_accuracy, self.ood_n)[None])
        return float(lines[0, 0]), float(lines[0, 1])


def points(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Every point of the plain path on every OOD set and on the mean of these sets, by the sets' primary metrics.

    Columns: pair, alpha, dataset, id_accuracy (the mean over the ID sets), ood_accuracy, id_n, ood_n.
    """
    rows = dense_rows(accuracy)
    known = rows.assign(n=rows["n"].astype("Float64").fillna(0).astype(float))
    ids = mean_accuracy(rows[rows["role"] == "id"]).rename(columns={"estimate": "id_accuracy", "n": "id_n"})
    ood = known[known["role"].isin(("ood", OOD_MEAN))].rename(columns={"estimate": "ood_accuracy", "n": "ood_n"})
    ood = ood.drop_duplicates(["pair", "alpha", "dataset"])  # the mean over one set has the set's name and values
    both = ood.merge(ids, on=["pair", "alpha"])
    finite = np.isfinite(both["id_accuracy"]) & np.isfinite(both["ood_accuracy"])
    columns = ["pair", "alpha", "dataset", "id_accuracy", "ood_accuracy", "id_n", "ood_n"]
    return both.loc[finite, columns].reset_index(drop=True)


def baseline_points(accuracy: pd.DataFrame, name: str) -> pd.DataFrame:
    """The points of the baseline ``name`` (zeroshot, finetuned or ends), in the columns of ``points``.

    Points with equal accuracies count once, such as the zero-shot model that several pairs share.

    Raises:
        ConfigError: another name.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline: '{shown(name)}' is neither a file nor one of {', '.join(BASELINES)}.")
    found = points(accuracy)
    return found[found["alpha"].isin(BASELINES[name])].drop_duplicates(["dataset", "id_accuracy", "ood_accuracy"])


def read_baseline(path: str | Path) -> pd.DataFrame:
    """A baseline from a CSV file, for instance the 204 models of Taori et al. 2020.

    The file has one row per model and data set with the columns dataset, id_accuracy and ood_accuracy (fractions), and
    optionally id_n, ood_n and model. Or it has the columns dataset, intercept and slope of a line that was fitted
    elsewhere; the intervals then leave out the uncertainty of that line.

    Raises:
        ResultsError: a file that cannot be read, a missing column, or a value out of range (with its line and column).

    Source: Taori et al. 2020, arXiv 2007.00644 (models that set the line).
    """
    try:
        table = pd.read_csv(path)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as e:
        raise ResultsError(f"baseline {shown(path)}: cannot be read ({shown(e, 80)}).") from None
    wanted = ("dataset", "intercept", "slope") if "slope" in table else ("dataset", "id_accuracy", "ood_accuracy")
    if lost := [c for c in wanted if c not in table]:
        raise ResultsError(f"baseline {shown(path)}: no column '{lost[0]}'; needs dataset, id_accuracy, ood_accuracy "
                           "(or dataset, intercept, slope).")  # fmt: skip
    for column in wanted[1:]:
        numbers = pd.to_numeric(table[column], errors="coerce")
        bad = ~np.isfinite(numbers) | ((numbers < 0) | (numbers > 1) if "accuracy" in column else False)
        if bad.any():
            line = int(np.flatnonzero(bad)[0])
            kind = "fraction between 0 and 1" if "accuracy" in column else "number"
            raise ResultsError(
                f"baseline {shown(path)}, line {line + 2}, column '{column}': "
                f"{shown(table[column].iloc[line], 40)} is not a {kind}."
            )
        table[column] = numbers
    return table.assign(dataset=table["dataset"].astype(str))


def effective_robustness(
    accuracy: pd.DataFrame,
    baseline: pd.DataFrame,
    name: str,
    *,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """OOD - inv_logit(b + k logit(ID)) of every point of the plain path, for each OOD set that the baseline has.

    b and k are fitted by least squares of logit(OOD) on logit(ID) over the baseline's models for the same OOD set.
    Accuracies of 0 and 1 are moved inside by half an example. The interval is a percentile bootstrap over three sources
    of noise at once: the model's own accuracies and the baseline's accuracies (both binomial, with ID and OOD images
    independent), and the choice of the baseline's models, which are resampled. An accuracy whose number of examples is
    not known counts as exact.

    Args:
        accuracy: the accuracy table.
        baseline: a table as ``baseline_points`` or ``read_baseline`` return it.
        name: the name of the baseline in the column ``baseline``.
        bootstrap: number of replicates.
        level: coverage of the intervals.
        seed: the run's seed.

    Returns:
        Columns ``COLUMNS``; ``baseline_n`` is the number of the baseline's models (0 for a line that was given). The
        estimate is NaN, with the reason in ``note``, for an OOD set that the baseline lacks and for a baseline with
        fewer than 3 distinct ID accuracies: two models lie on a line whatever they are.

    Raises:
        ResultsError: no point has both an ID and an OOD accuracy.

    Source: Taori et al. 2020, arXiv 2007.00644, section 3: rho(f) = acc2(f) - beta(acc1(f)).
    """
    out = []
    for dataset, own in points(accuracy).groupby("dataset", sort=False):
        rng = np.random.default_rng(derive(seed, "robustness", name, dataset))
        mine = baseline[baseline["dataset"] == dataset]
        out.append(_judged(own, mine, rng, bootstrap, level).assign(baseline=name))
    if not out:
        raise ResultsError("effective robustness: no point has both an ID and an OOD accuracy.")
    return pd.concat(out, ignore_index=True)[list(COLUMNS)]


def _judged(
    own: pd.DataFrame, baseline: pd.DataFrame, rng: np.random.Generator, replicates: int, level: float
) -> pd.DataFrame:
    blank = own.assign(expected=math.nan, estimate=math.nan, ci_low=math.nan, ci_high=math.nan, baseline_n=0, note="")
    given = "slope" in baseline
    if not len(baseline):
        return blank.assign(note="undefined: the baseline has no model for this data set")
    notes = []
    if given:
        line = np.array([[float(baseline["intercept"].iloc[0]), float(baseline["slope"].iloc[0])]])
        lines, m = np.repeat(line, replicates, axis=0), 0
        notes.append("the baseline's line was given: the interval leaves out its uncertainty")
    else:
        counts = [
            baseline[c].fillna(0).to_numpy(float) if c in baseline else np.zeros(len(baseline))
            for c in ("id_n", "ood_n")
        ]
        base = Baseline(baseline["id_accuracy"].to_numpy(float), baseline["ood_accuracy"].to_numpy(float), *counts)
        m = len(baseline)
        distinct = len(np.unique(base.id_accuracy))
        if distinct < _FEWEST:
            why = f"{distinct} distinct ID accurac{'y' if distinct == 1 else 'ies'} (models: {m})"
            return blank.assign(baseline_n=m, note=f"undefined: the baseline has {why}; a line needs {_FEWEST}")
        line = np.array([base.fit()])
        lines = _resampled_lines(base, replicates, rng)
    x, y = own["id_accuracy"].to_numpy(float), own["ood_accuracy"].to_numpy(float)
    id_n, ood_n = own["id_n"].to_numpy(float), own["ood_n"].to_numpy(float)
    expected = special.expit(line[0, 0] + line[0, 1] * _logit(x, id_n))
    xs, ys = _drawn(x, id_n, replicates, rng), _drawn(y, ood_n, replicates, rng)
    reps = ys - special.expit(lines[:, :1] + lines[:, 1:] * _logit(xs, id_n))
    low, high = np.full(len(x), math.nan), np.full(len(x), math.nan)
    if m or (id_n > 0).any():  # otherwise neither models nor examples were resampled
        low, high = percentile_interval(reps, level, skip_nan=True)
    return own.assign(
        expected=expected, estimate=y - expected, ci_low=low, ci_high=high, baseline_n=m, note="; ".join(notes)
    )


def _resampled_lines(base: Baseline, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """(intercept, slope) of resampled baselines: [R, 2]; a draw whose models all have one ID accuracy is repeated."""
    m = len(base.id_accuracy)
    x, y = _drawn(base.id_accuracy, base.id_n, replicates, rng), _drawn(base.ood_accuracy, base.ood_n, replicates, rng)
    pick = rng.integers(0, m, size=(replicates, m))
    for _ in range(100):
        flat = np.ptp(base.id_accuracy[pick], axis=1) == 0
        if not flat.any():
            break
        pick[flat] = rng.integers(0, m, size=(int(flat.sum()), m))
    rows = np.arange(replicates)[:, None]
    return _fits(_logit(x[rows, pick], base.id_n[pick]), _logit(y[rows, pick], base.ood_n[pick]))


def _fits(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares (intercept, slope) of every row: [R, 2]; a row without spread in x has NaN."""
    dx = x - x.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (dx * y).sum(axis=1) / (dx**2).sum(axis=1)
    return np.stack([y.mean(axis=1) - slope * x.mean(axis=1), slope], axis=1)


def _drawn(p: np.ndarray, n: np.ndarray, replicates: int, rng: np.random.Generator) -> np.ndarray:
    """Binomial accuracies [R, K] around ``p``; exact where ``n`` is 0."""
    count = np.maximum(n, 1).astype(int)
    drawn = stats.binom.rvs(count, np.clip(p, 0, 1), size=(replicates, len(p)), random_state=rng) / count
    return np.where(n > 0, drawn, p)


def _logit(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """logit of accuracies kept half an example (or 1e-6) inside (0, 1)."""
    edge = np.where(n > 0, 0.5 / np.maximum(n, 1), 1e-6)
    return np.asarray(special.logit(np.clip(p, edge, 1 - edge)))
