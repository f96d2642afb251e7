"""Correlation of ID sharpness with OOD accuracy across pairs: the evidence, all covariates held fixed at once first."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sharpscope.findings.design import Design, independent
from sharpscope.findings.families import with_families
from sharpscope.findings.frames import accuracy_grid
from sharpscope.findings.layercontrast import ChosenLayers, contrast_rows
from sharpscope.findings.marginal import FEWEST, Block, marginal_block
from sharpscope.findings.partial import partial_correlation
from sharpscope.findings.pathcorrelation import means_of
from sharpscope.findings.pathcosts import with_costs
from sharpscope.findings.resampling import benjamini_hochberg, permutation_p
from sharpscope.findings.sharpness import Cube, sharpness_cube
from sharpscope.seeds import derive
from sharpscope.tables.rows import dense_rows, nearest, table
from sharpscope.vocabulary import (
    AGAINST,
    ALL,
    BEST,
    CONTRASTS,
    CORRELATIONS,
    GROUP_TITLES,
    MEASURES,
    OOD_MEAN,
    OTHERS,
    PAIRS,
    PRIMARY_ALPHA,
    PRIMARY_MEASURE,
)

__all__ = ["COVARIATE", "FEWEST", "pair_correlations"]

_NOBODY = dict.fromkeys(
    (OTHERS, *(name for c in CONTRASTS.values() for name in (c.chosen, c.others, c.random))),
    "; a pair in which no layer is chosen has no value",
)
"""The words that are appended to the reason why a group of layers has no correlation."""
COVARIATE = "covariate:"
"""Prefix of the ``measure`` in rows that correlate a covariate itself, instead of sharpness, with OOD accuracy.
Sharpness adds information only if it beats these rows."""


def pair_correlations(
    sharpness: pd.DataFrame,
    accuracy: pd.DataFrame,
    covariates: pd.DataFrame | None = None,
    *,
    source: str,
    seed: int = 0,
    bootstrap: int = 1000,
    level: float = 0.95,
    alphas: Sequence[float] | None = None,
    stragglers: Mapping[str, Collection[str]] | None = None,
    by_instability: Mapping[str, Collection[str]] | None = None,
    costs: pd.DataFrame | None = None,
    design: Design | None = None,
    primary: tuple[str, float] = (PRIMARY_MEASURE, PRIMARY_ALPHA),
) -> pd.DataFrame:
    """Correlation across pairs at each fixed alpha, with one point per pair.

    Every layer and measure (raw and ``share:``) is correlated at every alpha with OOD accuracy and with OOD gain. First
    by Spearman with all covariates held fixed at once (``partial.partial_correlation``), the evidence: the column
    ``given`` names them. Then, beside it, by Pearson, Spearman and Kendall (tau-b) alone, and by Spearman with each
    covariate held fixed. Per-parameter values differ from raw ones by a constant factor in each layer, would give the
    same numbers and are left out.

    Pairs that share a setting are one unit, and units are permuted and resampled within their zero-shot models (see
    ``Design``; ``n`` counts pairs, ``n_effective`` units). Intervals without covariates come from a BCa bootstrap. p is
    two-sided, from permutations of the outcome, and never 0. The row ``(best)`` holds the layer with the largest
    |correlation|. Its p is that of the maximum over layers, and it has no interval because it was picked for being
    large. q is Benjamini-Hochberg over the layers of one (measure, alpha, method, given); for a single test such as
    ``(all)`` it equals p. The rows that were named before looking are the family ``primary``, and their q is Holm's
    over the groups of OOD sets (``families.with_families``).

    Args:
        sharpness: sharpness table of several pairs.
        accuracy: accuracy table of the same pairs (the plain path's rows are used).
        covariates: columns pair, alpha and one or more numbers (distance, id_accuracy ...); NaN allowed.
        source: "run" | "shipped".
        seed: seed of the resampling.
        bootstrap: number of bootstrap replicates, and of permutations.
        level: coverage of the intervals.
        alphas: the alphas to use; by default all above 0 at which every pair that has sharpness has it, or, where no
            pair has any, at which every pair has an accuracy.
        stragglers: pair -> straggler layers; adds the layers ``(stragglers)`` and ``(others)``, and for the primary
            measure and alpha the contrasts of the two and of random sets of layers (``layercontrast.contrast_rows``).
        by_instability: pair -> the layers that the criterion instability chooses; adds their contrasts.
        costs: what interpolation costs in loss (``pathcosts.path_costs``); adds the measures instability, barrier and
            rewind of the whole path, layer ``(all)``, and of single layers. They do not change with alpha, and of
            several layers together they have no value.
        design: which pairs depend on each other, and their covariates that do not depend on alpha; None: no two do.
        primary: the measure and the alpha that were named before looking.

    Returns:
        Table ``correlations`` with scope "pairs" and pair "(pairs)". With fewer than 4 units (a partial correlation: 8
        pairs, and 6 units more than columns held fixed) or a constant column the status is "undefined", and the note
        says why.

    Raises:
        ConfigError: ``stragglers`` is given and the sharpness table has an unknown measure.

    Sources: Efron 1987, https://doi.org/10.1080/01621459.1987.10478410 (BCa); Benjamini and Hochberg 1995,
    https://doi.org/10.1111/j.2517-6161.1995.tb02031.x (q).
    """
    accuracy = dense_rows(accuracy)
    measured = set(sharpness["pair"]) | (set() if costs is None else set(costs["pair"]))
    pairs = sorted(measured & set(accuracy["pair"]))
    chosen = _common_alphas(sharpness, accuracy, pairs) if alphas is None else [float(a) for a in alphas]
    cube = sharpness_cube(sharpness, pairs, chosen, stragglers)
    cube = cube if costs is None else with_costs(cube, costs)
    design = (independent(pairs) if design is None else design).reindexed(pairs)
    rows: list[dict[str, object]] = []
    for dataset, group in means_of(accuracy):
        ood = accuracy_grid(accuracy, OOD_MEAN, dataset, pairs, chosen)
        start = accuracy_grid(accuracy, OOD_MEAN, dataset, pairs, (0.0,))
        for a, alpha in enumerate(chosen):
            given = design.covariates_at(covariates, alpha)
            rng = np.random.default_rng(derive(seed, "permutation", dataset, alpha))
            keys = design.keys(bootstrap, rng)
            for against, y in zip(AGAINST, (ood[:, a], ood[:, a] - start[:, 0]), strict=True):
                known = np.isfinite(y)
                head = {"pair": PAIRS, "against": against, "dataset": dataset, "scope": "pairs", "alpha": alpha}
                head |= {"group": group, "source": source}
                here = {name: z[known] for name, z in given.items()}
                outcome = _Outcome(y[known], design.subset(known), keys[:, known], here, head, seed, level)
                rows.extend(outcome.rows(cube, a, known))
                if against == "ood_gain" and alpha == nearest(chosen, primary[1]):
                    sets = {"stragglers": stragglers, "instability": by_instability}
                    rows.extend(outcome.contrasts(cube, a, known, primary[0], sets))
    return with_families(table("correlations", rows), *primary)


@dataclass(frozen=True)
class _Outcome:
    """One outcome ``y`` [n] of the pairs that have it, and all that its correlations need."""

    y: np.ndarray
    design: Design
    keys: np.ndarray
    given: Mapping[str, np.ndarray]
    head: Mapping[str, object]
    seed: int
    level: float

    def rows(self, cube: Cube, a: int, known: np.ndarray) -> Iterator[dict[str, object]]:
        """Rows of all columns of ``cube`` at its alpha number ``a``: joint, marginal, then given one covariate each."""
        at = cube.columns()
        labels = [(cube.measures[m], cube.layers[layer]) for m, layer in at]
        x = cube.values[[m for m, _ in at], [layer for _, layer in at], :, a][:, known] if at else np.empty((0, 0))
        x = x.reshape(len(at), len(self.y))
        seen: set[tuple[str, str, str]] = set()
        told = {name: z for name, z in self.given.items() if np.isfinite(z).any()}
        if told:
            yield from self._partial(labels, x, self.given, seen)
        whole = [(COVARIATE + name, ALL) for name in self.given]
        plain = np.vstack([x, *(z[None] for z in self.given.values())])
        for method in CORRELATIONS:
            block = marginal_block(
                plain, self.y, method, self._name, self.design, self.keys, self._rng(method), self.level
            )
            yield from _rows(labels + whole, block, {**self.head, "method": method})
        for name, z in told.items():
            yield from self._partial(labels, x, {name: z}, seen)

    def contrasts(
        self,
        cube: Cube,
        a: int,
        known: np.ndarray,
        measure: str,
        sets: Mapping[str, Mapping[str, Collection[str]] | None],
    ) -> Iterator[dict[str, object]]:
        """Rows that compare chosen layers with the others, for every claim of ``CONTRASTS`` whose sets are given."""
        single = [i for i, name in enumerate(cube.layers) if name not in GROUP_TITLES]
        if measure not in cube.measures or not single or not self.given or not known.any():
            return
        values = cube.values[cube.measures.index(measure), single, :, a][:, known]
        pairs = [pair for pair, here in zip(cube.pairs, known, strict=True) if here]
        for claim, names in CONTRASTS.items():
            if (chosen := sets.get(claim)) is None:
                continue
            picked = np.array([[cube.layers[i] in chosen.get(p, ()) for p in pairs] for i in single], dtype=bool)
            seeds = [derive(self.seed, claim, kind, self.head["dataset"]) for kind in ("contrast", "random sets")]
            layers = ChosenLayers(values, picked, MEASURES[measure].adds_up)
            rows = contrast_rows(
                names, layers, self.y, self.design, self.given, keys=self.keys, seeds=seeds, level=self.level
            )
            for row in rows:
                yield {**self.head, "method": "spearman", "measure": measure, "q_value": row["p_value"], **row}

    def _partial(
        self,
        labels: Sequence[tuple[str, str]],
        x: np.ndarray,
        given: Mapping[str, np.ndarray],
        seen: set[tuple[str, str, str]],
    ) -> Iterator[dict[str, object]]:
        """Rows given ``given``; those that stand already, because nothing else had room, are not repeated."""
        block = partial_correlation(
            x, self.y, self.design, given, keys=self.keys, rng=self._rng(*given), level=self.level, outcome=self._name
        )
        for row in _rows(labels, block, {**self.head, "method": "spearman"}):
            key = (str(row["layer"]), str(row["measure"]), str(row["given"]))
            if key not in seen:
                seen.add(key)
                yield row

    @property
    def _name(self) -> str:
        return str(self.head["against"])

    def _rng(self, *what: str) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, "pairs", self.head["dataset"], self.head["alpha"], *what))


def _rows(labels: Sequence[tuple[str, str]], block: Block, head: Mapping[str, object]) -> Iterator[dict[str, object]]:
    """Rows of one method: for each measure its ``(best)`` row, then its layers with q over these layers."""
    of_measure: dict[str, list[int]] = {}
    for k, (measure, _) in enumerate(labels):
        of_measure.setdefault(measure, []).append(k)
    estimate, low, high, p = (v.tolist() for v in (block.estimate, block.low, block.high, block.p))
    for measure, here in of_measure.items():
        single = np.array([k for k in here if labels[k][1] not in GROUP_TITLES], dtype=int)
        q = block.p.copy()
        q[single] = benjamini_hochberg(block.p[single])
        if len(single) > 1:
            yield _best_row(measure, single, labels, block, head)
        for k in here:
            bad = not math.isfinite(estimate[k])
            flat = "" if bad or math.isfinite(low[k]) else "no interval: all resamples agree, or too few have a value"
            yield {
                **head,
                "layer": labels[k][1],
                "measure": measure,
                "estimate": estimate[k],
                "ci_low": low[k],
                "ci_high": high[k],
                "p_value": p[k],
                "q_value": float(q[k]),
                "given": block.given[k],
                "left_out": block.left_out[k],
                "n": int(block.n[k]),
                "n_effective": int(block.n_effective[k]),
                "status": "undefined" if bad else "ok",
                "note": (block.why[k] + _NOBODY.get(labels[k][1], ""))
                if bad
                else "; ".join(filter(None, (flat, block.note[k]))),
            }


def _best_row(
    measure: str,
    single: np.ndarray,
    labels: Sequence[tuple[str, str]],
    block: Block,
    head: Mapping[str, object],
) -> dict[str, object]:
    nan = float("nan")
    first = int(single[0])
    row = {**head, "layer": BEST, "measure": measure, "ci_low": nan, "ci_high": nan, "given": block.given[first]}
    row["left_out"] = block.left_out[first]
    known = single[np.isfinite(block.estimate[single])]
    if not len(known):
        n, effective = int(block.n[single].max()), int(block.n_effective[single].max())
        why = f"no layer has a correlation ({block.why[first]})"
        none: dict[str, object] = {"estimate": nan, "p_value": nan, "q_value": nan, "n": n, "n_effective": effective}
        none |= {"status": "undefined", "note": why}
        return {**row, **none}
    size = np.abs(block.estimate[known])
    best = min(known[size >= size.max() - 1e-12], key=lambda k: labels[k][1])  # a tie does not depend on row order
    estimate = block.estimate[best]
    null = block.null[..., known]
    largest = np.where(np.isfinite(null), np.abs(null), np.inf).max(axis=-1)
    p = max(float(permutation_p(s[[best]], n[:, None])[0]) for s, n in zip(block.statistic, largest, strict=True))
    allowed = "p_value allows for the choice of the layer; a layer chosen this way has no interval"
    chosen = f"best of {len(known)} layers: {labels[best][1]}; {allowed}"
    note = "; ".join(filter(None, (chosen, block.note[best])))
    some = {"estimate": float(estimate), "p_value": p, "q_value": p, "n": int(block.n[best])}
    some |= {"n_effective": int(block.n_effective[best])}
    some |= {"given": block.given[best], "left_out": block.left_out[best]}
    return {**row, **some, "status": "ok", "note": note}


def _common_alphas(sharpness: pd.DataFrame, accuracy: pd.DataFrame, pairs: Sequence[str]) -> list[float]:
    table = sharpness if len(sharpness) else accuracy
    sets = [
        set(table.loc[table["pair"] == p, "alpha"].astype(float).round(9)) for p in pairs if p in set(table["pair"])
    ]
    return sorted(a for a in set.intersection(*sets) if a > 0) if sets else []
