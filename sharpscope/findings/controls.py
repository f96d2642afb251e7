"""What partial correlations hold fixed: splines of the covariates' ranks, the zero-shot models and the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sharpscope.findings.design import Design
from sharpscope.findings.rank_correlation import is_constant
from sharpscope.vocabulary import LEARNING_RATE

__all__ = ["FIRST_COVARIATES", "LEAST_LEFT", "Controls", "controls", "place_of"]

FIRST_COVARIATES = (LEARNING_RATE, "distance", "id_accuracy")
"""The order in which covariates are held fixed if there are too few pairs for all of them; other covariates follow in
the order given."""
LEAST_LEFT = 6
"""The smallest difference that is allowed between the effective n and the number of columns held fixed."""
_MOST_CURVES = (16, 4)
"""The most columns for one covariate: for the first one in the order, and for each other."""
_SHARE = 0.5
"""Curved columns are added as long as all columns are at most this share of the effective n. With straight ones alone
(ranks), a learning rate that acts non-monotonically on both sides is rejected in 43 % of nulls with 20 pairs and in
93 % with 60; with these in 3 to 5 %. One that acts on both sides from one value on, a jump, is rejected in 8 % with 60
pairs and 8 columns, in 5 to 6 % with 16. They cost power, at 20 pairs and a correlation of .7 a quarter of it."""
_GONE = 1e-6


@dataclass(frozen=True)
class Controls:
    """What is held fixed: ``basis`` [units, r], orthonormal, of the mean, the zero-shot models and the covariates.

    ``given``: the covariates that entered; ``left``: the effective n less the number of their columns.
    """

    basis: np.ndarray
    given: tuple[str, ...]
    left: int
    left_out: tuple[str, ...] = ()
    """Covariates that are not held fixed, because there are too few pairs."""
    collinear: tuple[str, ...] = ()
    """Covariates that the zero-shot models and the covariates before them determine."""

    def remove(self, values: np.ndarray) -> np.ndarray:
        """Residuals of ``values`` [..., units], of length one; NaN where nothing is left."""
        centred = values - values.mean(axis=-1, keepdims=True)
        rest = centred - (centred @ self.basis) @ self.basis.T
        norm = np.linalg.norm(rest, axis=-1, keepdims=True)
        gone = norm <= _GONE * np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-300)
        return np.where(gone, np.nan, rest / np.where(gone, 1.0, norm))


def controls(design: Design, covariates: Mapping[str, np.ndarray]) -> Controls:
    """The columns that stand for ``covariates`` (name -> [n], finite): natural cubic splines of their ranks.

    Every covariate first enters with its rank, in the order ``FIRST_COVARIATES`` and then as given, until n - k would
    fall below ``LEAST_LEFT``. Then, in turns, each gets one more spline column, up to 16 for the first and 4 for each
    other, while k is at most half of n. n is ``design.n_free``, k the number of columns besides the mean and the
    indicators of the zero-shot models. A constant covariate is no covariate.
    """
    n = design.n_free
    first = _Columns(design)
    ranks, chosen, left_out, collinear = {}, [], [], []
    for name in sorted(covariates, key=place_of):
        if is_constant(covariates[name]):
            continue
        r = (design.ranks(covariates[name]) - 1) / max(design.n_effective - 1, 1)
        if not first.can_add(r):
            collinear.append(name)
        elif n - first.k - 1 < LEAST_LEFT:
            left_out.append(name)
        else:
            first.add(r)
            ranks[name] = r
            chosen.append(name)
    curves = _curves(ranks, n)
    columns = _Columns(design)
    for name, r in ranks.items():
        for column in _natural_spline(r, curves[name]).T:
            if columns.can_add(column):
                columns.add(column)
    return Controls(columns.basis, tuple(chosen), n - columns.k, tuple(left_out), tuple(collinear))


def place_of(name: str) -> int:
    return FIRST_COVARIATES.index(name) if name in FIRST_COVARIATES else len(FIRST_COVARIATES)


class _Columns:
    """An orthonormal basis that begins with the mean and the zero-shot models; ``k`` columns were added to it."""

    def __init__(self, design: Design) -> None:
        start = np.column_stack([np.ones(design.n_effective), design.blocks()])
        self.basis = np.linalg.qr(start)[0]
        self.k = 0

    def _rest(self, column: np.ndarray) -> np.ndarray:
        for _ in range(2):  # once more: the first projection leaves rounding errors of the size of the column
            column = column - self.basis @ (self.basis.T @ column)
        return column

    def can_add(self, column: np.ndarray) -> bool:
        centred = column - column.mean()
        return bool(np.linalg.norm(self._rest(centred)) > _GONE * max(float(np.linalg.norm(centred)), 1e-300))

    def add(self, column: np.ndarray) -> None:
        rest = self._rest(column - column.mean())
        self.basis = np.column_stack([self.basis, rest / np.linalg.norm(rest)])
        self.k += 1


def _curves(ranks: Mapping[str, np.ndarray], n: int) -> dict[str, int]:
    """The number of columns of each covariate, whose ``ranks`` hold as many distinct values plus one or more."""
    caps = {name: min(_MOST_CURVES[min(i, 1)], len(np.unique(r)) - 1) for i, (name, r) in enumerate(ranks.items())}
    curves = dict.fromkeys(ranks, 1)
    while True:
        before = sum(curves.values())
        for name, cap in caps.items():
            total = sum(curves.values()) + 1
            least = min((c for m, c in curves.items() if c < caps[m]), default=0)
            if least == curves[name] < cap and total <= _SHARE * n and n - total >= LEAST_LEFT:
                curves[name] += 1
        if sum(curves.values()) == before:
            return curves


def _natural_spline(r: np.ndarray, columns: int) -> np.ndarray:
    """Natural cubic spline of ``r`` in [0, 1] without its constant: [len(r), columns], knots at equal distances.

    Source: Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, equation 5.4.
    """
    knots = np.linspace(0, 1, columns + 1)

    def part(j: int) -> np.ndarray:
        return (np.maximum(r - knots[j], 0) ** 3 - np.maximum(r - 1, 0) ** 3) / (1 - knots[j])

    return np.column_stack([r, *(part(j) - part(columns - 1) for j in range(columns - 1))])
