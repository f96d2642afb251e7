"""Two families of tests: primary ones, which were named before the results were seen, and exploratory ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sharpscope.tables.rows import joint_rows, marginal_rows, nearest, widest_means
from sharpscope.vocabulary import ALL, CONTRASTS, EXPLORATORY, PRIMARY

__all__ = ["holm", "with_families"]


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


def with_families(correlations: pd.DataFrame, measure: str, alpha: float) -> pd.DataFrame:
    """The across-pair rows with ``family``, and with Holm's correction over groups as ``q_value`` of the primary ones.

    Primary, for every source of pairs, are two rows of each group of OOD sets: the Spearman correlation of the whole
    model's ``measure`` with the OOD gain at the alpha nearest ``alpha``, all covariates held fixed (the plain one where
    there are none), on the mean over the group's most sets; and by how much the correlation of the straggler layers
    exceeds that of all other layers. Each is one claim, corrected over groups. All else is exploratory.
    """
    out = correlations.assign(family=EXPLORATORY)
    at = (out["scope"] == "pairs") & (out["against"] == "ood_gain") & (out["method"] == "spearman")
    rows = out[at & out["layer"].isin((ALL, CONTRASTS["stragglers"].others)) & (out["measure"] == measure)]
    for _, own in rows.groupby(["source", "layer"], sort=True):
        own = widest_means(own[own["alpha"].astype(float) == nearest(own["alpha"], alpha)])
        held = joint_rows(own)
        chosen = held if len(held) else marginal_rows(own)
        out.loc[chosen.index, "family"] = PRIMARY
        out.loc[chosen.index, "q_value"] = holm(chosen["p_value"].to_numpy(dtype=float))
    return out
