"""Straggler criteria side by side: the layers that each one chooses, and how far they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sharpscope.tables.rows import unique_in_order
from sharpscope.vocabulary import DEFAULT_CRITERION, SIDE_BY_SIDE

__all__ = ["Overlap", "choices", "overlap", "side_by_side"]

_TOP = 5
"""The largest number of layers at the top of both rankings that are compared."""


@dataclass(frozen=True)
class Overlap:
    """How far two criteria agree on the layers of one pair."""

    criteria: tuple[str, str]
    chosen: tuple[tuple[str, ...], tuple[str, ...]]
    """The layers that each criterion chooses, in forward order."""
    jaccard: float
    """Number of layers that both choose over the number that either chooses; NaN where neither chooses one."""
    top: int
    """k: the number of layers at the top of each ranking that are compared; 0 where ties leave no such top."""
    shared_top: int
    """Number of layers that are among the k highest of both."""
    top_by_chance: float
    """k^2 / L, the mean of ``shared_top`` for two rankings of L layers that have nothing to do with each other."""
    spearman: float
    """Rank correlation of the two scores over the layers; NaN for a constant score or fewer than three layers."""
    layers: int
    """L: the number of layers with a score by both criteria."""


def choices(stragglers: pd.DataFrame, pair: str, deciding: str) -> dict[str, tuple[str, ...]]:
    """Criterion -> the layers of ``pair`` that it chooses, in forward order, for every criterion that can be compared.

    These are the criteria without a measure, and those with the measure of the criterion ``deciding`` (without one,
    that of the default criterion). A criterion of single-layer paths is taken at its first base in the table.
    """
    measure = (deciding if ":" in deciding else DEFAULT_CRITERION).partition(":")[2]
    own = stragglers[stragglers["pair"] == pair]
    found: dict[str, tuple[str, ...]] = {}
    for criterion in unique_in_order(own["criterion"]):
        if criterion.partition(":")[2] in ("", measure):
            rows = own[own["criterion"] == criterion]
            rows = rows[rows["base"] == rows["base"].iloc[0]]
            found[criterion] = tuple(rows.loc[rows["chosen"].fillna(False).astype(bool), "layer"])
    return found


def side_by_side(
    stragglers: pd.DataFrame, pair: str, criteria: tuple[str, str] = SIDE_BY_SIDE
) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """The rows of both criteria for one pair, each indexed by layer, or None where one of them has no rows.

    A criterion of single-layer paths is taken at its first base in the table, as everywhere a criterion decides.
    """
    own = stragglers[stragglers["pair"] == pair]
    found = []
    for criterion in criteria:
        rows = own[own["criterion"] == criterion]
        if not len(rows):
            return None
        found.append(rows[rows["base"] == rows["base"].iloc[0]].set_index("layer"))
    return found[0], found[1]


def overlap(stragglers: pd.DataFrame, pair: str, criteria: tuple[str, str] = SIDE_BY_SIDE) -> Overlap | None:
    """How far two ``criteria`` agree on the layers of ``pair``; None where the table lacks one of them."""
    both = side_by_side(stragglers, pair, criteria)
    if both is None:
        return None
    first, second = (tuple(rows.index[rows["chosen"].fillna(False).astype(bool)]) for rows in both)
    either = set(first) | set(second)
    scores = pd.DataFrame({i: rows["score"].astype(float) for i, rows in enumerate(both)})
    scores = scores.loc[np.isfinite(scores.to_numpy()).all(axis=1)]
    ranks, count = scores.rank(), len(scores)
    varied = count >= 3 and bool((ranks.nunique() > 1).all())
    k = next((k for k in range(min(_TOP, count // 2), 0, -1) if not _tied(scores, k)), 0)
    tops = [set(scores[i].nlargest(k).index) for i in scores]
    return Overlap(
        criteria=criteria,
        chosen=(first, second),
        jaccard=len(set(first) & set(second)) / len(either) if either else math.nan,
        top=k,
        shared_top=len(tops[0] & tops[1]),
        top_by_chance=k * k / count if count else math.nan,
        spearman=float(ranks[0].corr(ranks[1])) if varied else math.nan,
        layers=count,
    )


def _tied(scores: pd.DataFrame, k: int) -> bool:
    """Whether it is arbitrary which layers are the ``k`` highest of one of the criteria."""
    ranked = np.sort(scores.to_numpy(dtype=float), axis=0)[::-1]
    return bool((ranked[k - 1] == ranked[k]).any())
