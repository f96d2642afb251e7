"""The design of a comparison across pairs: zero-shot models are blocks, seed replicates of one setting are clusters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import stats

__all__ = ["FEWEST_BASES", "FEWEST_CLUSTERS", "FEWEST_PAIRS", "Design", "independent"]

FEWEST_CLUSTERS = 6
"""With fewer clusters in all there is no verdict, whatever the number of pairs."""
FEWEST_BASES = 6
"""A conclusion from fewer zero-shot models says that it holds for these."""
FEWEST_PAIRS = 8
"""With fewer pairs no partial correlation is computed."""
_OWN_STRATUM = 4
"""The fewest clusters that are resampled among themselves. Two residuals with mean 0 have the same product, so that
smaller blocks would seem to be without error; they are resampled together."""


@dataclass(frozen=True)
class Design:
    """Which pairs depend on each other.

    A CLUSTER is a setting on a base: seed replicates, which count as one unit and whose values are averaged. A MOVER is
    a setting with all of its clusters. A setting that is used on one base has one cluster; one that is used on several
    (it is crossed with base) has one on each. Movers are permuted as wholes, and only with movers on the same bases, so
    that a value never leaves its zero-shot model and the replicates of a setting never part.

    The effective n is the number of movers, which is that of clusters where no setting is crossed. The design effect
    n / (1 + (m - 1) ICC) would credit more: it lies between the numbers of movers and of pairs. But the intra-class
    correlation of a few clusters of two is known to no better than a few tenths, and a permutation of whole movers is
    valid whatever it is. Hence its value at ICC = 1 is used, the smallest, and the ICC is only reported.

    Source: Winkler et al. 2015, https://doi.org/10.1016/j.neuroimage.2015.05.092 (whole-block exchangeability).
    """

    pairs: tuple[str, ...]
    base: tuple[str, ...]
    """The zero-shot model of each pair: the block."""
    setting: tuple[str, ...]
    """All that is known of how each pair was fine-tuned, but its seed; "" where nothing is: a setting of its own."""
    covariates: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Numbers of the pairs that do not depend on alpha: name -> [n], NaN where unknown."""

    # ------------------------------------------------------------------------------------------ units, as whole numbers
    @cached_property
    def _movers(self) -> np.ndarray:
        """[n] the mover of each pair."""
        names = [("known", s) if s else ("own", p) for p, s in zip(self.pairs, self.setting, strict=True)]
        return _codes(names)

    @cached_property
    def _clusters(self) -> np.ndarray:
        """[n] the cluster of each pair."""
        return _codes(list(zip(self._movers.tolist(), self.base, strict=True)))

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.bincount(self._clusters) if self.pairs else np.zeros(0, dtype=int)

    @cached_property
    def _first(self) -> np.ndarray:
        """[clusters] the first pair of each cluster."""
        return np.unique(self._clusters, return_index=True)[1]

    @cached_property
    def _groups(self) -> list[np.ndarray]:
        """Movers on the same bases: each group is [movers, bases] clusters, bases in one order."""
        movers, bases = self._movers[self._first], _codes(self.base)[self._first]
        groups: dict[tuple[int, ...], list[list[int]]] = {}
        for mover in np.unique(movers):
            own = np.flatnonzero(movers == mover)
            own = own[np.argsort(bases[own])]
            groups.setdefault(tuple(bases[own].tolist()), []).append(own.tolist())
        return [np.array(group) for group in groups.values()]

    @cached_property
    def _strata(self) -> list[list[np.ndarray]]:
        """Movers that are resampled among themselves, each as the array of its clusters."""
        large = [list(group) for group in self._groups if len(group) >= _OWN_STRATUM]
        small = [mover for group in self._groups if len(group) < _OWN_STRATUM for mover in group]
        return large + ([small] if small else [])

    @property
    def resampling_error(self) -> float:
        """The variance of a mean over movers in ``resamples``, in units of that of one mover: (n - strata) / n^2."""
        return (self.n_effective - len(self._strata)) / self.n_effective**2

    @property
    def n_clusters(self) -> int:
        """The number of settings on bases: seed replicates count once."""
        return len(self._sizes)

    @property
    def n_bases(self) -> int:
        """The number of zero-shot models."""
        return len(set(self.base))

    @property
    def n_effective(self) -> int:
        """The number of units that are moved independently."""
        return sum(len(group) for group in self._groups)

    @property
    def n_free(self) -> int:
        """``n_effective`` less one for every set of bases beyond the first, whose mean is estimated."""
        return self.n_effective - max(len(self._groups) - 1, 0)

    @property
    def arrangements(self) -> float:
        """The number of ways in which the movers can be permuted; infinite from 1e15 on."""
        logs = sum(math.lgamma(len(group) + 1) for group in self._groups)
        return math.inf if logs > math.log(1e15) else float(round(math.exp(logs)))

    # ------------------------------------------------------------------------------------------------------ its parts
    def subset(self, known: np.ndarray) -> Design:
        """The pairs at which ``known`` [n] is true."""
        at = np.flatnonzero(known).tolist()
        parts = {name: tuple(getattr(self, name)[i] for i in at) for name in ("pairs", "base", "setting")}
        return dataclasses.replace(self, **parts, covariates={k: v[at] for k, v in self.covariates.items()})

    def means(self, values: np.ndarray) -> np.ndarray:
        """[..., n] -> [..., clusters], the mean over the pairs of each cluster."""
        total = np.zeros((*values.shape[:-1], self.n_clusters))
        np.add.at(total, (..., self._clusters), values)
        return total / self._sizes

    def ranks(self, values: np.ndarray) -> np.ndarray:
        """[..., n] -> midranks of the clusters [..., clusters], by the mean of the midranks of their pairs.

        Without replicates these are the midranks of the pairs. A monotone map of ``values`` changes nothing.
        """
        return stats.rankdata(self.means(stats.rankdata(values, axis=-1)), axis=-1)

    def blocks(self) -> np.ndarray:
        """[clusters, bases - 1] indicators of the zero-shot models, but of the first."""
        codes = _codes(self.base)[self._first]
        return (codes[:, None] == np.arange(1, self.n_bases)[None]).astype(float)

    # ------------------------------------------------------------------------------------------------------ resampling
    def keys(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, n] random numbers, equal within a mover, from which ``orders`` of this design and its parts follow.

        Columns with different missing pairs are so permuted alike, and a maximum over them has one null.
        """
        movers = int(self._movers.max()) + 1 if self.pairs else 0
        return rng.random((count, movers))[:, self._movers]

    def orders(self, keys: np.ndarray) -> np.ndarray:
        """[B, n] ``keys`` -> permutations [B, clusters] that keep bases and carry movers as wholes."""
        out = np.tile(np.arange(self.n_clusters), (len(keys), 1))
        by_cluster = keys[:, self._first]
        for group in self._groups:
            order = np.argsort(by_cluster[:, group[:, 0]], axis=1)
            for column in group.T:
                out[:, column] = column[order]
        return out

    def resamples(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count, clusters] how often each cluster is drawn: movers are drawn as wholes, on the same bases.

        Sets of bases with fewer than four movers are drawn from together.
        """
        out = np.zeros((count, self.n_clusters))
        for stratum in self._strata:
            drawn = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=count)
            for i, clusters in enumerate(stratum):
                out[:, clusters] = drawn[:, i, None]
        return out

    # ------------------------------------------------------------------------------------------------------- in words
    def icc(self, values: np.ndarray, unit: str) -> float:
        """Intra-class correlation of ``values`` [n] within ``unit`` (base | setting), by one-way analysis of variance.

        (MSB - MSW) / (MSB + (m - 1) MSW), where m is the mean size of a class, corrected for unequal sizes. The result
        is in [-1, 1], and NaN with a single class or without a class of two.

        Source: Fisher 1925, Statistical Methods for Research Workers.
        """
        codes = self._movers if unit == "setting" else _codes(self.base)
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
        """What limits a conclusion from ``values`` [n], for the note of a row: dependence, few bases, unknown settings."""
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
            s = "model" if self.n_bases == 1 else f"{self.n_bases} models"
            said.append(f"holds for this zero-shot {s}" if self.n_bases == 1 else f"holds for these {s}")
        if unknown := sum(not s for s in self.setting):
            said.append(f"the setting of {unknown} pairs is unknown, and each counts as a setting of its own")
        return "; ".join(said)


def independent(pairs: Sequence[str]) -> Design:
    """Pairs of which neither base nor setting is known: one block, and no two that belong together."""
    return Design(tuple(pairs), ("",) * len(pairs), ("",) * len(pairs))


def _codes(names: Sequence[object]) -> np.ndarray:
    """Whole numbers for ``names``, in the order of their first appearance."""
    place = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([place[name] for name in names], dtype=int)
