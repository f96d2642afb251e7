"""What the findings share: tables with the columns of the schema, and tables turned into arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError
from sharpscope.schema import COLUMNS, DENSE
from sharpscope.scores import Predictions

__all__ = [
    "Answered",
    "accuracy_grid",
    "alpha_index",
    "check_correct",
    "one_metric",
    "ordered",
    "table",
    "unique_in_order",
]

ALPHA_TOLERANCE = 1e-9
METRICS = ("top1", "accuracy")
Answered = np.ndarray | Predictions
"""What models answered on one data set: bool [models, n] (judged by the share that is right), or predictions."""


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """``rows`` as the table ``name`` of the schema: exactly its columns, in their order."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS[name]))


def unique_in_order(values: Iterable[Any]) -> list[Any]:
    """The distinct values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Distinct ``names``: those in ``first`` in that order, then the others as they appear."""
    seen = unique_in_order(names)
    return [n for n in first if n in seen] + [n for n in seen if n not in first]


def alpha_index(alphas: Sequence[float], alpha: float) -> int | None:
    """Where ``alpha`` is in ``alphas`` (to 1e-9), or None."""
    for i, value in enumerate(alphas):
        if abs(float(value) - alpha) <= ALPHA_TOLERANCE:
            return i
    return None


def one_metric(accuracy: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """The rows of the plain path and of one metric: ``metric``; or every set's primary one, where the table tells it,
    else top1; or the first in the table."""
    rows = accuracy[accuracy["variant"] == DENSE]
    if metric is None and "primary" in rows and rows["primary"].notna().any():
        told = rows["primary"].astype("boolean")
        return rows[told.fillna(rows["metric"] == METRICS[0]).astype(bool)]
    if metric is None:
        names = ordered(rows["metric"], METRICS)
        metric = names[0] if names else METRICS[0]
    return rows[rows["metric"] == metric]


def accuracy_grid(
    accuracy: pd.DataFrame, role: str, dataset: str, pairs: Sequence[str], alphas: Sequence[float]
) -> np.ndarray:
    """Estimates of one data set as [pairs, alphas], NaN where the table has none."""
    rows = accuracy[(accuracy["role"] == role) & (accuracy["dataset"] == dataset)]
    grid = np.full((len(pairs), len(alphas)), np.nan)
    place = {name: i for i, name in enumerate(pairs)}
    for pair, alpha, estimate in zip(rows["pair"], rows["alpha"], rows["estimate"], strict=True):
        column = alpha_index(alphas, float(alpha))
        if pair in place and column is not None:
            grid[place[pair], column] = estimate
    return grid


def check_correct(
    alphas: Sequence[float], correct: Mapping[str, Answered], roles: Mapping[str, str]
) -> dict[str, dict[str, Answered]]:
    """``correct`` split by role into {"id": {...}, "ood": {...}}, each for [alphas, n]; raises ConfigError."""
    split: dict[str, dict[str, Answered]] = {"id": {}, "ood": {}}
    for name, given in correct.items():
        values = given if isinstance(given, Predictions) else np.asarray(given)
        if len(values.shape) != 2 or values.shape[0] != len(alphas) or values.shape[1] == 0:
            raise ConfigError(f"correct['{name}']: needs shape [{len(alphas)} alphas, n >= 1], got {values.shape}.")
        if isinstance(values, np.ndarray) and values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
            raise ConfigError(f"correct['{name}']: needs one True or False an example.")
        role = roles.get(name)
        if role not in split:
            raise ConfigError(f"roles['{name}']: needs 'id' or 'ood', got {role!r}.")
        split[role][name] = values if isinstance(values, Predictions) else values.astype(bool)
    return split
