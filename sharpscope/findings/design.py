"""The design of a comparison across pairs: zero-shot models are blocks, seed replicates of one setting are clusters."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from sharpscope.findings.frames import alpha_index
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import records

__all__ = ["FEWEST_BASES", "FEWEST_CLUSTERS", "FEWEST_PAIRS", "Design", "independent"]

FEWEST_CLUSTERS = 6
"""With fewer units (see ``Design``) there is no verdict, whatever the number of pairs."""
FEWEST_BASES = 6
"""A conclusion that rests on fewer zero-shot models is stated for these models only."""
FEWEST_PAIRS = 8
"""With fewer pairs no partial correlation is computed."""
_OWN_RANKS = 8
"""The fewest clusters of a zero-shot model that are ranked among themselves. Among all clusters, a learning rate that
acts nonlinearly looks different on models that are far apart, which no additive term holds fixed: three models of 50
pairs, a standard deviation of 3.3 noise widths apart, then reject 9 % of nulls."""
_OWN_STRATUM = 4
"""The fewest units that are resampled among themselves. Two residuals with mean 0 have the same product, so that
smaller blocks would seem to be without error; they are resampled together."""


@dataclass(frozen=True)
class Design:
    """Which pairs depend on each other, and the units that do not.

    A CLUSTER is a setting on a base: seed replicates. A UNIT is a setting, with its clusters on all of its bases. A
    setting that is used on one base is one cluster; one that is used on several is crossed with base. A unit's value is
    the mean of its clusters', a cluster's the mean of its pairs'. Units are permuted and resampled among those on the
    same bases, so that no value leaves its zero-shot model and nothing that belongs together parts.

    The effective n is the number of units. The design effect n / (1 + (m - 1) ICC) would credit more: it lies between
    the numbers of units and of pairs. But the intra-class correlation of a few clusters of two is known to no better
    than a few tenths, and what is moved as a whole needs no ICC. So the value at ICC = 1 is used, the smallest, and the
    ICC is only reported.

    Source: Winkler et al. 2015, https://doi.org/10.1016/j.neuroimage.2015.05.092 (whole-block exchangeability).
    """

    pairs: tuple[str, ...]
    base: tuple[str, ...]
    """The zero-shot model of each pair: the block."""
    setting: tuple[str, ...]
    """How each pair was fine-tuned, except for its seed; "" where nothing is known, so that the pair counts as a
    setting of its own."""
    covariates: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Numbers of the pairs that do not depend on alpha: name -> [n], NaN where unknown."""
    remarks: tuple[str, ...] = ()
    """What a reader of conclusions has to know of these facts."""
    file: tuple[str, ...] = ()
    """The content of each pair's fine-tuned file, "" where it is not known; default: of none. Pairs of one file are one
    unit under whatever names, and what one of them tells of the setting holds for all."""
    additive: bool = False
    """Whether covariates are taken to act alike on all zero-shot models and each by itself (``controls``): for a study
    that fixed this rule beforehand. What acts otherwise is then read as a relation."""

    # ----------------------------------------------------------------------------------------- units, as whole numbers
    @cached_property
    def told_setting(self) -> tuple[str, ...]:
        """[n] the setting of each pair, by its own word or by that of a copy of its file; "" where it is not known."""
        files = self.file or ("",) * len(self.pairs)
        told = {f: s for f, s in zip(reversed(files), reversed(self.setting), strict=True) if f and s}
        return tuple(told.get(f, s) for f, s in zip(files, self.setting, strict=True))

    @cached_property
    def unit_name(self) -> tuple[str, ...]:
        """[n] what pairs of one unit have in common: their setting, or their file; "" for a pair that is a unit of its
        own, because nothing is known of it."""
        count = Counter(self.file)
        files = self.file or ("",) * len(self.pairs)
        return tuple(
            s or (f"copies of file {f[:12]}" if f and count[f] > 1 else "")
            for s, f in zip(self.told_setting, files, strict=True)
        )

    @cached_property
    def _unit_of(self) -> np.ndarray:
        """[n] the unit of each pair."""
        return _codes([(bool(name), name or p) for p, name in zip(self.pairs, self.unit_name, strict=True)])

    @cached_property
    def _cluster_of(self) -> np.ndarray:
        """[n] the cluster of each pair."""
        return _codes(list(zip(self._unit_of.tolist(), self.base, strict=True)))

    @cached_property
    def _first(self) -> np.ndarray:
        """[clusters] the first pair of each cluster."""
        return np.unique(self._cluster_of, return_index=True)[1]

    @cached_property
    def _groups(self) -> list[np.ndarray]:
        """The units on the same bases, group by group."""
        units, bases = self._unit_of[self._first], _codes(self.base)[self._first]
        sets = [tuple(sorted(bases[units == unit].tolist())) for unit in range(self.n_effective)]
        codes = _codes(sets)
        return [np.flatnonzero(codes == g) for g in range(len(set(sets)))]

    @cached_property
    def _strata(self) -> list[np.ndarray]:
        """The units that are resampled among themselves."""
        large = [group for group in self._groups if len(group) >= _OWN_STRATUM]
        small = [unit for group in self._groups if len(group) < _OWN_STRATUM for unit in group]
        return large + ([np.array(small)] if small else [])

    @property
    def base_sets(self) -> Sequence[np.ndarray]:
        """The sets of zero-shot models on which units stand, each as the numbers of its units."""
        return self._groups

    @property
    def n_clusters(self) -> int:
        """The number of settings on bases: seed replicates count once."""
        return len(self._first)

    @property
    def n_bases(self) -> int:
        """The number of zero-shot models."""
        return len(set(self.base))

    @cached_property
    def n_effective(self) -> int:
        """The number of units."""
        return len(set(self._unit_of.tolist()))

    @property
    def n_free(self) -> int:
        """``n_effective`` less one for every set of bases beyond the first, whose mean is estimated."""
        return self.n_effective - max(len(self._groups) - 1, 0)

    @property
    def arrangements(self) -> float:
        """The number of ways in which the units can be permuted; infinite from 1e15 on."""
        logs = sum(math.lgamma(len(group) + 1) for group in self._groups)
        return math.inf if logs > math.log(1e15) else float(round(math.exp(logs)))

    # ------------------------------------------------------------------------------------------------------ its values
    def subset(self, known: np.ndarray) -> Design:
        """The pairs at which ``known`` [n] is true."""
        at = np.flatnonzero(known).tolist()
        pairs, base, setting = (tuple(own[i] for i in at) for own in (self.pairs, self.base, self.setting))
        numbers = {k: v[at] for k, v in self.covariates.items()}
        file = tuple(self.file[i] for i in at) if self.file else ()
        return dataclasses.replace(self, pairs=pairs, base=base, setting=setting, covariates=numbers, file=file)

    def reindexed(self, pairs: Sequence[str]) -> Design:
        """The same for ``pairs`` in their order; of one that is not in the design nothing is known."""
        place = {pair: i for i, pair in enumerate(self.pairs)}
        at = [place.get(pair) for pair in pairs]

        def texts(values: tuple[str, ...]) -> tuple[str, ...]:
            return tuple("" if i is None else values[i] for i in at)

        numbers = {k: np.array([math.nan if i is None else v[i] for i in at]) for k, v in self.covariates.items()}
        parts = (tuple(pairs), texts(self.base), texts(self.setting), numbers, self.remarks)
        return Design(*parts, texts(self.file) if self.file else (), self.additive)

    def means(self, values: np.ndarray) -> np.ndarray:
        """[..., n] -> [..., units]: the mean over a unit's clusters of the means over their pairs."""
        return _averaged(_averaged(values, self._cluster_of), self._unit_of[self._first])

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """[..., n] -> [..., units]: midranks of the units by the mean of the midranks of their pairs.

        Where every pair is a unit these are the midranks of the pairs. A monotone map of ``values`` changes nothing.
        """
        return stats.rankdata(self.means(stats.rankdata(values, axis=-1)), axis=-1)

    def centred_ranks(self, values: np.ndarray) -> np.ndarray:
        """[..., n] -> [..., units]: mean over a unit's bases of its cluster's rank less the mean rank on that base.

        Where every base has at least 8 clusters the rank is that among the base's own, as a share of their number: how
        far apart the zero-shot models are then changes nothing. With fewer it is the midrank among all clusters, since
        a rank among two or three says little.
        """
        clusters = _averaged(stats.rankdata(values, axis=-1), self._cluster_of)
        bases = _codes(self.base)[self._first]
        if np.bincount(bases).min() < _OWN_RANKS:
            ranks = stats.rankdata(clusters, axis=-1)
        else:
            ranks = np.empty(clusters.shape)
            for base in range(self.n_bases):
                own = bases == base
                ranks[..., own] = stats.rankdata(clusters[..., own], axis=-1) / own.sum()
        return _averaged(ranks - _averaged(ranks, bases)[..., bases], self._unit_of[self._first])

    def blocks(self) -> np.ndarray:
        """[units, groups - 1] indicators of the sets of bases, but of the first."""
        out = np.zeros((self.n_effective, max(len(self._groups) - 1, 0)))
        for column, group in enumerate(self._groups[1:]):
            out[group, column] = 1.0
        return out

    def of_pairs(self, values: np.ndarray) -> np.ndarray:
        """[..., units] -> [..., n]: every pair with the value of its unit."""
        return values[..., self._unit_of]

    def covariates_at(self, measured: pd.DataFrame | None, alpha: float) -> dict[str, np.ndarray]:
        """Covariate -> [n]: those ``measured`` at ``alpha`` (columns pair, alpha and a number each), then the design's
        own; NaN where unknown."""
        names = [] if measured is None else [c for c in measured.columns if c not in ("pair", "alpha")]
        found = {name: np.full(len(self.pairs), math.nan) for name in names}
        place = {pair: i for i, pair in enumerate(self.pairs)}
        for row in () if measured is None else records(measured):
            if row["pair"] in place and alpha_index((alpha,), float(row["alpha"])) is not None:
                for name in names:
                    found[name][place[row["pair"]]] = row[name]
        return found | dict(self.covariates)

    # ------------------------------------------------------------------------------------------------------ resampling
    def keys(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, n] random numbers, equal within a unit, from which ``orders`` of this design and its parts follow.

        Columns with different missing pairs are so permuted alike, and a maximum over them has one null.
        """
        return rng.random((count, self.n_effective))[:, self._unit_of]

    def orders(self, keys: np.ndarray) -> np.ndarray:
        """[B, n] ``keys`` -> permutations [B, units] among units on the same bases."""
        own = keys[:, np.unique(self._unit_of, return_index=True)[1]]
        out = np.zeros(own.shape, dtype=int)
        for group in self._groups:
            out[:, group] = group[np.argsort(own[:, group], axis=1)]
        return out

    def resamples(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, units] how often each unit is drawn, among units on the same bases; sets of bases with fewer than
        four units are drawn from together."""
        out = np.zeros((count, self.n_effective))
        for stratum in self._strata:
            out[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=count)
        return out

    @property
    def resampling_error(self) -> float:
        """The variance of a mean over units in ``resamples``, in units of that of one unit: (n - strata) / n^2."""
        return (self.n_effective - len(self._strata)) / self.n_effective**2

    # ------------------------------------------------------------------------------------------------------- in words
    def icc(self, values: np.ndarray, unit: str) -> float:
        """Intra-class correlation of ``values`` [n] within ``unit`` (base | setting), by one-way analysis of variance.

        (MSB - MSW) / (MSB + (m - 1) MSW), where m is the mean size of a class, corrected for unequal sizes. The result
        is in [-1, 1], and NaN with a single class or without a class of two.

        Source: Fisher 1925, Statistical Methods for Research Workers.
        """
        codes = self._unit_of if unit == "setting" else _codes(self.base)
        known = np.isfinite(values)
        if not known.any():
            return math.nan
        codes, v = np.unique(codes[known], return_inverse=True)[1], values[known]
        sizes = np.bincount(codes)
        groups, n = len(sizes), len(v)
        if groups < 2 or n == groups:
            return math.nan
        means = np.bincount(codes, v) / sizes
        between = float((sizes * (means - v.mean()) ** 2).sum() / (groups - 1))
        within = float(((v - means[codes]) ** 2).sum() / (n - groups))
        m = float((n - (sizes**2).sum() / n) / (groups - 1))
        total = between + (m - 1) * within
        return (between - within) / total if total > 0 else math.nan

    def note(self, values: np.ndarray) -> str:
        """What limits a conclusion from ``values`` [n], for a row's note: dependence, few bases, unknown settings."""
        said = []
        if self.n_effective < len(self.pairs):
            said.append(
                f"{len(self.pairs)} pairs are {self.n_effective} clusters (a setting's seeds and bases together)"
            )
        for unit in ("base", "setting"):
            if math.isfinite(icc := self.icc(values, unit)):
                said.append(f"intra-class correlation of {unit} {icc:.2f}")
        if self.n_effective < FEWEST_CLUSTERS:
            said.append(f"under {FEWEST_CLUSTERS} clusters: no verdict")
        if self.n_bases < FEWEST_BASES:
            said.append(
                "holds for this zero-shot model" if self.n_bases == 1 else f"holds for these {self.n_bases} models"
            )
        if unknown := sum(not s for s in self.told_setting):
            said.append(
                f"the setting of {number_of(unknown, 'pair')} is unknown, and each counts as a setting of its own"
            )
        return "; ".join([*said, *self.remarks])


def independent(pairs: Sequence[str]) -> Design:
    """Pairs of which neither base nor setting is known: one block, and no two that belong together."""
    return Design(tuple(pairs), ("",) * len(pairs), ("",) * len(pairs))


def _codes(names: Sequence[object]) -> np.ndarray:
    """Whole numbers for ``names``, in the order of their first appearance."""
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names], dtype=int)


def _averaged(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[..., n] -> [..., classes], the mean over each class of ``codes`` [n]."""
    sizes = np.bincount(codes)
    return values @ (codes[:, None] == np.arange(len(sizes))[None]) / sizes
