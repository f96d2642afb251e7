"""Two families of tests: primary ones, which were named before the results were seen, and exploratory ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sharpscope.tables.rows import joint_rows, marginal_rows, nearest, widest
from sharpscope.vocabulary import ALL, CONTRASTS, EXPLORATORY, PRIMARY

__all__ = ["holm", "named_rows", "with_families"]


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted so that the chance of one false rejection among all is at most the level; NaN is not counted.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    p = np.asarray(p, dtype=float)
    out = np.full(p.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    factor = len(order) - np.arange(len(order))
    out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factor))
    return out


def named_rows(correlations: pd.DataFrame, measure: str, alpha: float) -> pd.DataFrame:
    """The rows of the comparison that was named beforehand, for every source of pairs and group of OOD sets.

    They are the Spearman correlations across pairs of ``measure`` with the OOD gain, of whatever layers and given
    whatever covariates, at the alpha nearest ``alpha`` and on the mean over the most sets. Where runs have different
    sets in one group, that mean is known of a part of the pairs alone. The order of the rows changes nothing.
    """
    at = (correlations["scope"] == "pairs") & (correlations["against"] == "ood_gain")
    rows = correlations[at & (correlations["method"] == "spearman") & (correlations["measure"] == measure)]
    chosen = np.zeros(len(rows), dtype=bool)
    for here in rows.groupby(["source", "group"]).indices.values():
        own = rows.iloc[here]
        wide = own["dataset"] == widest(own["dataset"])
        chosen[here] = wide & (own["alpha"].astype(float) == nearest(own["alpha"], alpha))
    return rows[chosen]


def with_families(correlations: pd.DataFrame, measure: str, alpha: float) -> pd.DataFrame:
    """The across-pair rows with ``family``, and with Holm's correction over groups as ``q_value`` of the primary ones.

    Primary, for every source of pairs, is one row of each claim about layers in each group of OOD sets, among
    ``named_rows``: the correlation of the whole model's sharpness with all covariates held fixed (the plain one where
    there are none), and by how much that of the chosen layers of each of ``CONTRASTS`` exceeds that of all other
    layers. Each claim is corrected over groups. All else is exploratory, and no verdict rests on it.
    """
    out = correlations.assign(family=EXPLORATORY)
    rows = named_rows(out, measure, alpha)
    rows = rows[rows["layer"].isin((ALL, *(names.others for names in CONTRASTS.values())))]
    for _, own in rows.groupby(["source", "layer"], sort=True):
        held = joint_rows(own)
        chosen = held if len(held) else marginal_rows(own)
        out.loc[chosen.index, "family"] = PRIMARY
        out.loc[chosen.index, "q_value"] = holm(chosen["p_value"].to_numpy(dtype=float))
    return out
