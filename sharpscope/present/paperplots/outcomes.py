"""Accuracies as figures of papers draw them: in percent, ID beside OOD, with the number of images behind them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sharpscope.present.paperplots.drawn import lacks
from sharpscope.tables.formats import number_of
from sharpscope.tables.rows import average, primary_rows, unique_in_order
from sharpscope.vocabulary import DENSE, OOD_MEAN

__all__ = ["bars", "images_in_words", "model_sets", "paired", "paths_of"]

_VALUES = ("estimate", "ci_low", "ci_high")


def model_sets(accuracy: pd.DataFrame, figure: str, variants: tuple[str, ...] | None = (DENSE,)) -> pd.DataFrame:
    """The rows with an estimate by the primary metric of each set, along alpha; raises NoData where there are none.

    ``variants``: those to keep; None: all.
    """
    rows = accuracy[accuracy["estimate"].notna()]
    if variants is not None:
        rows = rows[rows["variant"].isin(variants)]
    rows = primary_rows(rows).sort_values("alpha", kind="stable") if len(rows) else rows
    if not len(rows):
        raise lacks(figure, "accuracy", "has no rows of the path")
    return rows


def paths_of(
    accuracy: pd.DataFrame, figure: str, variants: tuple[str, ...] | None = (DENSE,), ood: str | None = None
) -> pd.DataFrame:
    """ID and OOD accuracy in percent: pair, variant, alpha, id, id_low, id_high, ood, ood_low, ood_high.

    ``ood``: one OOD set; None: the mean over the OOD sets, of which the table has one group. Raises NoData where no
    pair has both.
    """
    rows = model_sets(accuracy, figure, variants)
    if ood is not None:
        rows = rows[(rows["role"] == "id") | ((rows["role"] == "ood") & (rows["dataset"] == ood))]
    out = []
    for pair in unique_in_order(rows["pair"]):
        own = rows[rows["pair"] == pair]
        for variant in unique_in_order(own["variant"]):
            one = own[own["variant"] == variant]
            both = average(one, "id").merge(average(one, "ood"), on="alpha", suffixes=("_id", "_ood"))
            out.append(both.assign(pair=pair, variant=variant))
    table = pd.concat(out, ignore_index=True) if out else pd.DataFrame()
    if not len(table):
        raise lacks(figure, "accuracy", "has no pair with both ID and OOD accuracy")
    names = {f"{c}_{r}": r + c.removeprefix("estimate").replace("ci", "") for r in ("id", "ood") for c in _VALUES}
    columns = ["pair", "variant", "alpha", *names.values()]
    return table.rename(columns=names)[columns].sort_values("alpha", kind="stable").reset_index(drop=True)


def paired(accuracy: pd.DataFrame, figure: str) -> dict[str, pd.DataFrame]:
    """``paths_of`` for the mean over the OOD sets, called ``mean``, and for every OOD set; the mean only of several."""
    sets = unique_in_order(accuracy.loc[accuracy["role"] == "ood", "dataset"])
    mean = {"mean": paths_of(accuracy, figure)} if len(sets) != 1 else {}
    return mean | {name: paths_of(accuracy, figure, ood=name) for name in sets}


def bars(rows: pd.DataFrame, role: str) -> np.ndarray | None:
    """Lengths [2, n] of the error bars below and above ``rows[role]``; None where an interval is missing."""
    low, high = rows[f"{role}_low"], rows[f"{role}_high"]
    if low.isna().any() or high.isna().any():
        return None
    return np.abs(np.stack([rows[role] - low, high - rows[role]]).astype(float))


def images_in_words(accuracy: pd.DataFrame) -> str:
    """``320 ID and 1,600 OOD images in 5 sets``: the test images behind every point of the path."""
    rows = primary_rows(accuracy[(accuracy["variant"] == DENSE) & (accuracy["role"] != OOD_MEAN)])
    each = rows.assign(n=rows["n"].astype("Float64")).groupby(["role", "dataset"])["n"].max().fillna(0.0)
    found = {role: float(each[role].sum()) if role in each.index else 0.0 for role in ("id", "ood")}
    if not min(found.values()):
        return "an unknown number of images"
    return f"{found['id']:,.0f} ID and {number_of(found['ood'], 'OOD image')} in {number_of(len(each['ood']), 'set')}"
