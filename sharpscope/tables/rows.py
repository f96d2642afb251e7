"""Rows of the tables that several rooms need: one metric, the plain path, means, one point a pair, covariates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sharpscope.tables.files import normalised
from sharpscope.tables.schema import COLUMNS
from sharpscope.vocabulary import ALL, DENSE

__all__ = [
    "average",
    "covariates",
    "dense_rows",
    "ordered",
    "points_of",
    "primary_rows",
    "stacked",
    "table",
    "unique_in_order",
]

_FIRST_METRICS: Final = ("top1", "accuracy")
"""Which metric stands for a set where no row says which one is primary; else the first one in the table."""


# ------------------------------------------------------------------------------------------------------------- tables
def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """``rows`` as the table ``name`` of the schema: exactly its columns, in their order."""
    return pd.DataFrame(list(rows), columns=list(COLUMNS[name]))


def stacked(name: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of the schema from several, empty ones included."""
    rows = [row for frame in frames for row in frame.to_dict("records")]
    return normalised(pd.DataFrame(rows, columns=list(COLUMNS[name])), name)


def unique_in_order(values: Iterable[Any]) -> list[Any]:
    """The distinct values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Distinct ``names``: those in ``first`` in that order, then the others as they appear."""
    seen = unique_in_order(names)
    return [n for n in first if n in seen] + [n for n in seen if n not in first]


# ----------------------------------------------------------------------------------------------------------- accuracy
def primary_rows(accuracy: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """The rows of one metric a data set.

    ``metric`` where it is given; else the primary one of every set, where the column ``primary`` tells it (top1 for the
    rows that do not tell); else top1, accuracy, or the first metric of the table.
    """
    if metric is None and "primary" in accuracy and accuracy["primary"].notna().any():
        told = accuracy["primary"].astype("boolean")
        return accuracy[told.fillna(accuracy["metric"] == _FIRST_METRICS[0]).astype(bool)]
    if metric is None:
        metric = next(iter(ordered(accuracy["metric"], _FIRST_METRICS)), _FIRST_METRICS[0])
    return accuracy[accuracy["metric"] == metric]


def dense_rows(accuracy: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """``primary_rows`` of the plain path, without any repair."""
    return primary_rows(accuracy[accuracy["variant"] == DENSE], metric)


def average(rows: pd.DataFrame, role: str) -> pd.DataFrame:
    """alpha, estimate, ci_low, ci_high of one pair's ID or OOD accuracy, in percent.

    OOD: the ``ood_mean`` rows over the most sets; without any, and for ID, the mean of the sets (with an interval only
    when it is one set).
    """
    mean = rows[rows["role"] == f"{role}_mean"]
    if len(mean):
        names = sorted(mean["dataset"].unique(), key=lambda d: (-d.count("+"), d))
        chosen = mean[mean["dataset"] == names[0]]
    else:
        chosen = rows[rows["role"] == role]
    columns = ["estimate", "ci_low", "ci_high"]
    if chosen["dataset"].nunique() > 1:
        out = chosen.groupby("alpha")[columns].mean().reset_index()
        out[columns[1:]] = math.nan
    else:
        out = chosen[["alpha", *columns]].reset_index(drop=True)
    out[columns] *= 100
    return out


def covariates(accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
    """pair, alpha, distance from theta_0 and ID accuracy: what sharpness has to be held against."""
    dense = dense_rows(accuracy[accuracy["role"] == "id"])
    mean = dense.groupby(["pair", "alpha"])["estimate"].mean().rename("id_accuracy").reset_index()
    distance = path[["pair", "alpha", "distance_0"]].rename(columns={"distance_0": "distance"})
    return distance.merge(mean, on=["pair", "alpha"], how="left")


def points_of(sharpness: pd.DataFrame, accuracy: pd.DataFrame, alpha: float = 0.5) -> pd.DataFrame:
    """Whole-model sharpness and OOD gain at the alpha nearest ``alpha``, a row a pair and measure.

    For ``correlation_scatter``: columns pair, sharpness, ood_gain (OOD accuracy minus zero-shot's), measure, alpha.
    """
    dense = dense_rows(accuracy[accuracy["estimate"].notna()]).sort_values("alpha", kind="stable")
    rows = []
    whole = sharpness[(sharpness["layer"] == ALL) & sharpness["estimate"].notna()]
    for pair in unique_in_order(whole["pair"]):
        mean = average(dense[dense["pair"] == pair], "ood").set_index("alpha")["estimate"] / 100
        if 0.0 not in mean.index:
            continue
        for measure, own in whole[whole["pair"] == pair].groupby("measure", sort=False):
            own = own[own["alpha"].isin(mean.index)]
            if len(own):
                best = own.iloc[int((own["alpha"] - alpha).abs().to_numpy().argmin())]
                gain = mean[best["alpha"]] - mean[0.0]
                rows.append((pair, best["estimate"], gain, measure, best["alpha"]))
    return pd.DataFrame(rows, columns=["pair", "sharpness", "ood_gain", "measure", "alpha"])
