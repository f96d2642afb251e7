"""Do chosen layers tell more about the OOD gain than other layers, and than random layers, across pairs?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sharpscope.findings.design import Design
from sharpscope.findings.partial import contrast, partial_correlation
from sharpscope.findings.reliability import SamplingError
from sharpscope.findings.sharpness import together
from sharpscope.tables.formats import number_of
from sharpscope.vocabulary import AddsUp, LayerContrast

__all__ = ["RANDOM_SETS", "ChosenLayers", "contrast_rows", "random_sizes"]

RANDOM_SETS: Final = 200
"""The number of random sets of layers (our choice). With more of them the share that reaches the chosen layers'
correlation is known more exactly; it is never below 1 / (1 + this number)."""


@dataclass(frozen=True)
class ChosenLayers:
    """The sharpness of every layer in every pair, and which of the layers are chosen there."""

    values: np.ndarray
    """[L, n], NaN where unknown."""
    chosen: np.ndarray
    """bool [L, n]."""
    adds_up: AddsUp
    """The rule by which the values of several layers combine to one."""

    def sets(self) -> np.ndarray:
        """[2, n] the sharpness of each pair's chosen layers together, and of all its other layers."""
        return np.stack([self._together(self.chosen), self._together(~self.chosen)])

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """[RANDOM_SETS, n] the same of random sets: each exchanges the layers by one permutation, the same in every
        pair, so that sets keep their sizes and how much they have in common from pair to pair."""
        orders = rng.permuted(np.tile(np.arange(len(self.values)), (RANDOM_SETS, 1)), axis=1)
        return np.stack([self._together(self.chosen[order]) for order in orders])

    def _together(self, which: np.ndarray) -> np.ndarray:
        """[n] the sharpness of each pair's layers ``which``; NaN where there is none, or one has no value."""
        out = np.full(self.values.shape[1], np.nan)
        for i in range(self.values.shape[1]):
            if which[:, i].any():
                out[i] = together(self.values[which[:, i], i], self.adds_up)
        return out


def contrast_rows(
    names: LayerContrast,
    layers: ChosenLayers,
    y: np.ndarray,
    design: Design,
    covariates: Mapping[str, np.ndarray],
    *,
    keys: np.ndarray,
    seeds: Sequence[int],
    level: float = 0.95,
    outcome: str = "the outcome",
    errors: Mapping[str, SamplingError] | None = None,
) -> Iterator[dict[str, Any]]:
    """Two rows of the table ``correlations``: the chosen layers against all others, and against random sets.

    With r the joint partial Spearman correlation with ``y``, all covariates held fixed, the first row's estimate is
    |r(chosen)| - |r(others)|, with an interval and p from resamples that are paired. The second row's estimate is
    |r(chosen)| minus the median of |r| over random sets (``ChosenLayers.random``). Its p is the share of random sets
    with at least the chosen layers' |r|.

    Args:
        names: the layer names of the rows.
        layers: the sharpness of n pairs' layers, and the chosen ones.
        y: [n] outcomes.
        design, covariates, keys, level, outcome, errors: as for ``partial_correlation``.
        seeds: of the resamples, and of the random sets.

    Yields:
        Rows without the columns that all rows of one outcome share (pair, measure, against, dataset ...).
    """
    rng = np.random.default_rng(seeds[0])
    # A pair in which nobody is chosen has no value in the first row, and is left out of the comparison.
    found = contrast(
        layers.sets(), y, design, covariates, keys=keys, rng=rng, level=level, outcome=outcome, errors=errors
    )
    one = found.partial
    head: dict[str, Any] = {"given": one.given[0], "left_out": one.left_out[0]}
    head |= {"n": int(one.n[0]), "n_effective": int(one.n_effective[0]), "doubt": one.doubt[0] or one.doubt[1]}
    empty = int((~layers.chosen.any(axis=0)).sum())
    nobody = f"no layer is chosen in {empty} of {number_of(len(y), 'pair')}" if empty else ""
    why = "; ".join(x for x in (nobody, one.why[0] or one.why[1]) if x)
    known = bool(np.isfinite(found.estimate[0]))
    alike = known and bool(found.high[0] - found.low[0] < 1e-9)
    low, high = (found.low, found.high) if not alike else (np.full(1, np.nan),) * 2
    more = np.where(np.abs(found.estimate) < 1e-12, 0.0, found.estimate)  # equal ranks, up to rounding
    numbers = (float(v[0]) for v in (more, low, high, found.p))
    first = dict(zip(("estimate", "ci_low", "ci_high", "p_value"), numbers, strict=True))
    status = {"status": "ok" if known else "undefined"}
    same = "no interval: the chosen layers and all other layers rank the pairs in the same order" if alike else ""
    note = "; ".join(x for x in (same, one.note[0]) if x) if known else why
    yield head | first | status | {"layer": names.others, "note": note}
    if not known:
        nothing = dict.fromkeys(("estimate", "ci_low", "ci_high", "p_value"), float("nan"))
        yield head | nothing | status | {"layer": names.random, "note": why}
        return
    sizes = random_sizes(layers, y, design, covariates, keys=keys, seeds=seeds)
    size = abs(float(one.estimate[0]))
    reached = int((sizes >= size - 1e-12).sum())
    share = {"p_value": (1 + reached) / (1 + len(sizes)), "ci_low": float("nan"), "ci_high": float("nan")}
    note = f"{reached} of {len(sizes)} random sets of as many layers have at least the chosen layers' |correlation|"
    estimate = size - float(np.median(sizes)) if len(sizes) else float("nan")
    yield head | share | status | {"layer": names.random, "estimate": estimate, "note": note}


def random_sizes(
    layers: ChosenLayers,
    y: np.ndarray,
    design: Design,
    covariates: Mapping[str, np.ndarray],
    *,
    keys: np.ndarray,
    seeds: Sequence[int],
) -> np.ndarray:
    """|joint partial correlation| of each random set of layers that has one, at most ``RANDOM_SETS`` of them.

    Arguments as for ``contrast_rows``.
    """
    randomly = layers.random(np.random.default_rng(seeds[1]))
    randomly[:, ~np.isfinite(layers.sets()).all(axis=0)] = np.nan
    rng = np.random.default_rng(seeds[0])
    null = partial_correlation(randomly, y, design, covariates, keys=keys[:1], rng=rng)
    return np.abs(null.estimate[np.isfinite(null.estimate)])
