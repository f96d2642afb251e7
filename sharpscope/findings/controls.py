"""What partial correlations hold fixed: splines of the covariates' ranks, the zero-shot models and the mean."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from sharpscope.findings.design import Design
from sharpscope.findings.rank_correlation import is_constant
from sharpscope.vocabulary import LEARNING_RATE

__all__ = ["FIRST_COVARIATES", "LEAST_LEFT", "Controls", "controls", "place_of"]

FIRST_COVARIATES = (LEARNING_RATE, "distance", "id_accuracy")
"""The order in which covariates are held fixed if there are too few pairs for all of them; other covariates follow in
the order given."""
LEAST_LEFT = 6
"""The smallest difference that is allowed between the effective n and the number of columns held fixed."""
FEWEST_OWN = 12
"""The fewest units of a set of zero-shot models for which covariates have slopes of its own. Bases that break beyond
learning rates of their own, by five noise widths, are read as a relation in 3 to 6 % of nulls with 90 pairs over 3
bases and in 10 % with 120 over 6; with slopes and curves in common in 18 to 49 %. This costs power: with 60 pairs over
3 bases and a correlation of .5 it falls from 53 to 29 %, with 150 and .3 from 76 to 52 %."""
_TOO_FEW_EACH = (
    f"no zero-shot model has {FEWEST_OWN} units, too few to hold fixed what acts differently on each of them"
)
_MOST_CURVES = (16, 4)
"""The most columns for one covariate: for the first one in the order, and for each other."""
_SHARE = 0.5
_SHARE_BY_SET = 2 / 3
"""Curved columns are added as long as all columns are at most this share of the effective n (the second one where each
set of zero-shot models has slopes of its own). With straight ones alone (ranks), a learning rate that acts
non-monotonically on both sides is rejected in 43 % of nulls with 20 pairs and in 93 % with 60; with these in 3 to 5 %.
One that acts on both sides from one value on, a jump, is rejected in 8 % with 60 pairs and 8 columns, in 5 to 6 % with
16. They cost power, at 20 pairs and a correlation of .7 a quarter of it."""
_BEFORE_PRODUCTS = 3
"""Products enter where there is room for them beside splines of this many columns. With 20 pairs there is none: there
they would cost ten points of power."""
_PRODUCT_CURVES = 3
_STRAIGHT = ((0, 0),)
_CURVED = ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2))
"""The spline columns of two covariates that are multiplied. Without products a learning rate and a number of steps that
act only where both are large, by five noise widths, are rejected in 33 % of nulls with 60 pairs and in 72 % with 120;
with straight ones in 10 and 45 %, with all in 13 and 16 %. Straight ones cost a point or two of power, the others, at
120 pairs and a correlation of .3, ten points."""
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
    idle: int = 0
    """The number of units without weight, on sets of zero-shot models that have too few for a slope of their own."""
    doubt: str = ""
    """Why nothing may be concluded with these columns held fixed; empty where nothing speaks against it."""

    def remove(self, values: np.ndarray) -> np.ndarray:
        """Residuals of ``values`` [..., units], of length one; NaN where nothing is left."""
        centred = values - values.mean(axis=-1, keepdims=True)
        rest = centred - (centred @ self.basis) @ self.basis.T
        norm = np.linalg.norm(rest, axis=-1, keepdims=True)
        gone = norm <= _GONE * np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-300)
        return np.where(gone, np.nan, rest / np.where(gone, 1.0, norm))


def controls(design: Design, covariates: Mapping[str, np.ndarray]) -> Controls:
    """The columns that stand for ``covariates`` (name -> [n], finite), natural cubic splines of their ranks.

    Covariates enter in the order ``FIRST_COVARIATES`` and then as given, each with its rank, until n - k would fall
    below ``LEAST_LEFT``. Further columns follow as long as k is at most half of n (two thirds where sets of zero-shot
    models have slopes of their own). In turns each covariate gets one more spline column, up to 16 for the first and 4
    for each other; products of two ranks take their room before the fourth columns, products of splines what is left of
    half of n. n is ``design.n_free``, k the number of columns besides the mean and the indicators of the zero-shot
    models. A constant covariate is no covariate.

    Where units stand on several sets of zero-shot models (``Design.base_sets``), each set that has ``FEWEST_OWN`` of
    them has its own slope for every covariate and its own curve for the first, so that a learning rate that acts
    differently on each model is held fixed. Units of smaller sets then carry no weight: each has a column to itself. If
    every set is smaller, slopes and curves are common to all, and ``doubt`` says so.

    A design that is ``additive`` has common slopes and curves, and no products.
    """
    apart = len(design.base_sets) > 1 and not design.additive
    large = [own for own in design.base_sets if len(own) >= FEWEST_OWN]
    by_set = apart and bool(large)
    sets = large if by_set else [np.arange(design.n_effective)]
    idle = [unit for own in design.base_sets if by_set and len(own) < FEWEST_OWN for unit in own]
    columns = _Columns(design)
    columns.add(np.eye(design.n_effective)[idle])
    n, chosen = design.n_free, dict[str, _Covariate]()
    left_out, collinear = list[str](), list[str]()
    for name in sorted(covariates, key=place_of):
        if is_constant(covariates[name]):
            continue
        found = _Covariate.of(design.ranks(covariates[name]), sets, own_curves=not chosen)
        longer = copy.copy(columns)
        if not longer.add(found.slopes()):
            collinear.append(name)
        elif left_out or n - longer.k < LEAST_LEFT:
            left_out.append(name)
        else:
            columns, chosen[name] = longer, found
    half, room = (math.floor(min(share * n, n - LEAST_LEFT)) for share in (_SHARE, _SHARE_BY_SET if by_set else _SHARE))
    entered = list(chosen.values())
    if not design.additive:
        first_bends = sum(1 for _ in _bends(entered, columns.k, room, _BEFORE_PRODUCTS))
        columns.add(_products(entered, _STRAIGHT), max(room - first_bends, columns.k))
    columns.add(_bends(entered, columns.k, room))
    if not design.additive:
        columns.add(_products(entered, _CURVED), half)
    doubt = _TOO_FEW_EACH if apart and not by_set and chosen else ""
    left = n - columns.k
    return Controls(columns.basis, tuple(chosen), left, tuple(left_out), tuple(collinear), len(idle), doubt)


def place_of(name: str) -> int:
    return FIRST_COVARIATES.index(name) if name in FIRST_COVARIATES else len(FIRST_COVARIATES)


class _Columns:
    """An orthonormal basis that begins with the mean and the zero-shot models; ``k`` columns were added to it."""

    def __init__(self, design: Design) -> None:
        start = np.column_stack([np.ones(design.n_effective), design.blocks()])
        self.basis = np.linalg.qr(start)[0]
        self.k = 0

    def add(self, columns: Iterable[np.ndarray], room: float = math.inf) -> int:
        """Add the ``columns`` that those before them do not determine, until ``k`` is ``room``; how many these are."""
        before = self.k
        for column in columns:
            rest = centred = column - column.mean()
            for _ in range(2):  # once more: the first projection leaves rounding errors of the size of the column
                rest = rest - self.basis @ (self.basis.T @ rest)
            size = float(np.linalg.norm(rest))
            if self.k < room and size > _GONE * max(float(np.linalg.norm(centred)), 1e-300):
                self.basis = np.column_stack([self.basis, rest / size])
                self.k += 1
        return self.k - before


@dataclass(frozen=True)
class _Covariate:
    """The ranks of one covariate within each of ``sets`` of units, from 0 to 1, and the splines of these."""

    sets: Sequence[np.ndarray]
    ranks: Sequence[np.ndarray]
    units: int
    own_curves: bool
    """Whether each of ``sets`` has a curve of its own; if not, all have the same."""

    @classmethod
    def of(cls, ranks: np.ndarray, sets: Sequence[np.ndarray], own_curves: bool) -> _Covariate:
        own = [(stats.rankdata(ranks[at]) - 1) / max(len(at) - 1, 1) for at in sets]
        return cls(sets, own, len(ranks), own_curves)

    def slopes(self) -> list[np.ndarray]:
        """[units] for each set: its ranks, 0 elsewhere."""
        return [c for at, r in zip(self.sets, self.ranks, strict=True) for c in self._spline(at, r, 1)]

    @cached_property
    def _most(self) -> list[int]:
        """The columns that each curve can have: one less than its distinct ranks."""
        curves = self.ranks if self.own_curves else [np.concatenate(self.ranks)]
        return [len(np.unique(r)) - 1 for r in curves]

    def num_bends(self, columns: int) -> int:
        """The number of ``bends``."""
        return sum(max(min(columns, most) - 1, 0) for most in self._most)

    def bends(self, columns: int) -> list[np.ndarray]:
        """[units] each: what splines of ``columns`` columns have besides the ranks."""
        if not self.own_curves:
            return self.common(columns)[1:]
        parts = zip(self.sets, self.ranks, strict=True)
        return [c for at, r in parts for c in self._spline(at, r, columns)[1:]]

    def common(self, columns: int) -> list[np.ndarray]:
        """[units] each: one spline for all sets, the ranks first; fewer columns where there are few distinct ranks."""
        return self._spline(np.concatenate(self.sets), np.concatenate(self.ranks), columns)

    def _spline(self, at: np.ndarray, r: np.ndarray, columns: int) -> list[np.ndarray]:
        found = _natural_spline(r, max(min(columns, len(np.unique(r)) - 1), 1))
        out = np.zeros((found.shape[1], self.units))
        out[:, at] = (found - found.mean(axis=0)).T
        return list(out)


def _bends(
    covariates: Sequence[_Covariate], k: int, room: int, at_most: int = max(_MOST_CURVES)
) -> Iterator[np.ndarray]:
    """Spline columns of ``covariates``, taken in turns as long as they and the ``k`` before are at most ``room``; no
    spline has more than ``at_most``."""
    asked, grown = [1] * len(covariates), True
    while grown:
        grown = False
        for i, covariate in enumerate(covariates):
            more = [columns + (i == j) for j, columns in enumerate(asked)]
            total = k + sum(c.num_bends(m) for c, m in zip(covariates, more, strict=True))
            longer = covariate.num_bends(more[i]) > covariate.num_bends(asked[i])
            if longer and more[i] <= min(_MOST_CURVES[min(i, 1)], at_most) and total <= room:
                asked, grown = more, True
    for covariate, columns in zip(covariates, asked, strict=True):
        yield from covariate.bends(columns)


def _products(covariates: Sequence[_Covariate], degrees: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Products of two covariates' spline columns, by the ``degrees`` of the two; curved ones of the first covariate
    with each other, straight ones of all pairs."""
    curves = [covariate.common(_PRODUCT_CURVES) for covariate in covariates]
    for first, second in degrees:
        for i, j in itertools.combinations(range(len(curves)), 2):
            if (i == 0 or first == second == 0) and first < len(curves[i]) and second < len(curves[j]):
                yield curves[i][first] * curves[j][second]


def _natural_spline(r: np.ndarray, columns: int) -> np.ndarray:
    """Natural cubic spline of ``r`` in [0, 1] without its constant: [len(r), columns], knots at equal distances.

    Source: Hastie, Tibshirani and Friedman 2009, The Elements of Statistical Learning, equation 5.4.
    """
    knots = np.linspace(0, 1, columns + 1)

    def part(j: int) -> np.ndarray:
        return (np.maximum(r - knots[j], 0) ** 3 - np.maximum(r - 1, 0) ** 3) / (1 - knots[j])

    return np.column_stack([r, *(part(j) - part(columns - 1) for j in range(columns - 1))])
