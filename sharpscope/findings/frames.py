"""Helpers that all findings share: positions of alphas, and tables turned into arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from sharpscope.errors import ConfigError
from sharpscope.scores import Counts, Predictions
from sharpscope.vocabulary import DEFAULT_GROUP

__all__ = ["Answered", "Scored", "accuracy_grid", "alpha_index", "check_correct", "members_of"]

ALPHA_TOLERANCE = 1e-9
Answered = np.ndarray | Predictions
"""Answers of several models on one data set: booleans [models, n], scored by the share that is True, or predictions,
scored by the metric they carry."""
Scored = Answered | Counts
"""Answers, or only the number of right ones."""
Given = TypeVar("Given", bound=Scored)


def alpha_index(alphas: Sequence[float], alpha: float) -> int | None:
    """The position of ``alpha`` in ``alphas`` (equal to within 1e-9), or None."""
    for i, value in enumerate(alphas):
        if abs(float(value) - alpha) <= ALPHA_TOLERANCE:
            return i
    return None


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
    alphas: Sequence[float], correct: Mapping[str, Given], roles: Mapping[str, str]
) -> dict[str, dict[str, Given]]:
    """Check the answers [alphas, n] in ``correct`` and split them by role into {"id": {...}, "ood": {...}}.

    Raises:
        ConfigError: an array of another shape or with other values than True and False, or an unknown role.
    """
    split: dict[str, dict[str, Given]] = {"id": {}, "ood": {}}
    values: Any
    for name, given in correct.items():
        values = given if isinstance(given, (Predictions, Counts)) else np.asarray(given)
        if len(values.shape) != 2 or values.shape[0] != len(alphas) or values.shape[1] == 0:
            raise ConfigError(f"correct['{name}']: needs shape [{len(alphas)} alphas, n >= 1], got {values.shape}.")
        if isinstance(values, np.ndarray):
            if values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
                raise ConfigError(f"correct['{name}']: needs True or False for every example.")
            values = values.astype(bool)
        role = roles.get(name)
        if role not in split:
            raise ConfigError(f"roles['{name}']: needs 'id' or 'ood', got {role!r}.")
        split[role][name] = values
    return split


def members_of(sets: Iterable[str], groups: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Group -> its OOD sets, both in the order of ``sets``; a set that ``groups`` lacks is in the default group.

    >>> members_of(["a", "b", "c"], {"a": "styles", "c": "styles"})
    {'styles': ['a', 'c'], 'ood': ['b']}
    """
    members: dict[str, list[str]] = {}
    for name in sets:
        members.setdefault((groups or {}).get(name, DEFAULT_GROUP), []).append(name)
    return members
