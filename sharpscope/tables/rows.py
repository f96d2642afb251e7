"""Selections from the tables that several packages need: primary metrics, plain path, means, points, covariates."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sharpscope.errors import ConfigError
from sharpscope.layers import layer_key
from sharpscope.scores import independent_mean
from sharpscope.tables.experiments import EVERY_COLUMNS
from sharpscope.tables.files import normalised
from sharpscope.tables.schema import KEYS
from sharpscope.vocabulary import (
    ALL,
    DEFAULT_GROUP,
    DENSE,
    GROUPS,
    MEASURES,
    OOD_MEAN,
    PRIMARY,
    PROBE,
    STATUSES,
    Group,
)

__all__ = [
    "MIDDLE",
    "average",
    "covariates",
    "dense_rows",
    "flags_of",
    "groups_in",
    "has_value",
    "image_error",
    "in_group_order",
    "joint_rows",
    "marginal_rows",
    "mean_accuracy",
    "mean_row",
    "measures_in",
    "nearest",
    "of_group",
    "one_a_unit",
    "ordered",
    "own_error",
    "pairs_and_groups",
    "points_of",
    "primary_of_the_whole",
    "primary_rows",
    "records",
    "sparse_layers",
    "stacked",
    "table",
    "unique_in_order",
    "widest",
    "widest_means",
    "with_ordered_layers",
    "with_plain_layers",
    "without_stragglers",
]

MIDDLE: Final = 0.5
"""The alpha of the point that represents a path where a table or a figure has room for only one."""
_FIRST_METRICS: Final = ("top1", "accuracy")
"""If no row says which metric is primary, the first of these metrics that the table has is used, or else the first
metric of the table."""


# ------------------------------------------------------------------------------------------------------------- tables
def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """``rows`` as the table ``name`` of the schema: exactly its columns, in their order."""
    return pd.DataFrame(list(rows), columns=list(EVERY_COLUMNS[name]))


def stacked(name: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of the schema from several, empty ones included."""
    columns = list(EVERY_COLUMNS[name])
    parts = [frame.reindex(columns=columns).astype(object) for frame in frames if len(frame)]
    return normalised(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns), name)


def with_ordered_layers(table: pd.DataFrame, layers: Sequence[str] | None = None) -> pd.DataFrame:
    """The table with its layers as an ordered categorical, so that sorting and grouping keep the forward order.

    ``layers``: the order; default: that of ``layers.layer_key`` of the layers in the table. A table without the column
    ``layer`` is returned as it is.
    """
    if "layer" not in table.columns:
        return table
    order = sorted(set(table["layer"]), key=layer_key) if layers is None else list(layers)
    return table.assign(layer=pd.Categorical(table["layer"], order, ordered=True))


def with_plain_layers(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its layers as text again."""
    categorical = "layer" in table.columns and isinstance(table["layer"].dtype, pd.CategoricalDtype)
    return table.assign(layer=table["layer"].astype("str")) if categorical else table


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries by column."""
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]


def unique_in_order(values: Iterable[Any]) -> list[Any]:
    """The distinct values in the order in which they first appear."""
    return list(dict.fromkeys(values))


def one_a_unit(residuals: pd.DataFrame) -> pd.DataFrame:
    """The first pair of every unit in the rows of one group and source: pairs of one setting are one unit, and a pair
    of unknown setting is a unit of its own."""
    unknown = residuals["setting"] == ""
    unit = pd.DataFrame({"known": ~unknown, "name": residuals["setting"].mask(unknown, residuals["pair"])})
    return residuals[~unit.duplicated()]


def has_value(table: pd.DataFrame) -> pd.Series:
    """Whether each row has an estimate that can be used, by its status (that of a frozen layer can)."""
    return ~table["status"].isin([name for name, status in STATUSES.items() if not status.has_value])


def own_error(sharpness: pd.DataFrame) -> pd.Series:
    """Error of the estimate on these images, row by row: stderr, else the residual (a bound, so on the safe side)."""
    own = pd.to_numeric(sharpness["stderr"]).astype(float)
    return own.fillna(pd.to_numeric(sharpness["residual"]).astype(float)).abs()


def image_error(sharpness: pd.DataFrame) -> pd.Series:
    """Error over draws of images, row by row; NaN where it is not known (every row of a table from before it was)."""
    if "stderr_images" not in sharpness.columns:
        return pd.Series(math.nan, sharpness.index)
    return pd.to_numeric(sharpness["stderr_images"]).astype(float)


def nearest(values: Iterable[float], wanted: float) -> float:
    """The finite value nearest to ``wanted`` (the smaller one if two are equally near); NaN where there is none."""
    known = [float(v) for v in values if math.isfinite(float(v))]
    return min(known, key=lambda v: (abs(v - wanted), v)) if known else math.nan


def measures_in(table: pd.DataFrame) -> list[str]:
    """The measures of a table in the vocabulary's order; unknown measures come last, by name."""
    return MEASURES.in_order(sorted(set(table["measure"])))


def ordered(names: Iterable[str], first: Sequence[str]) -> list[str]:
    """Distinct ``names``: those in ``first`` in that order, then the others as they appear."""
    seen = unique_in_order(names)
    return [n for n in first if n in seen] + [n for n in seen if n not in first]


# ----------------------------------------------------------------------------------------------------------- accuracy
def primary_rows(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The rows of one metric per data set.

    This is the primary metric of every set where the column ``primary`` says it (top1 for rows in which it is missing).
    Without the column it is top1, accuracy or the first metric of the table.
    """
    if "primary" in accuracy and accuracy["primary"].notna().any():
        told = accuracy["primary"].astype("boolean")
        return accuracy[told.fillna(accuracy["metric"] == _FIRST_METRICS[0]).astype(bool)]
    metric = next(iter(ordered(accuracy["metric"], _FIRST_METRICS)), _FIRST_METRICS[0])
    return accuracy[accuracy["metric"] == metric]


def dense_rows(accuracy: pd.DataFrame) -> pd.DataFrame:
    """``primary_rows`` of the plain path, that is without repairs."""
    return primary_rows(accuracy[accuracy["variant"] == DENSE])


def groups_in(frame: pd.DataFrame) -> list[str]:
    """The groups of OOD sets in a table, in order of appearance; rows of ID sets and of the probe have none."""
    return [g for g in unique_in_order(_groups(frame)) if g]


def in_group_order(frame: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """The table's rows in the order of ``groups``, otherwise as they are; rows of no or another group come first."""
    if "group" not in frame.columns or len(groups) < 2:
        return frame
    place = {group: i for i, group in enumerate(groups)}
    return frame.sort_values("group", key=lambda own: own.map(lambda g: place.get(g, -1)), kind="stable")


def of_group(frame: pd.DataFrame, group: str) -> pd.DataFrame:
    """The rows that belong to ``group`` and those that belong to none (ID sets, the probe loss)."""
    return frame[_groups(frame).isin((group, ""))]


def pairs_and_groups(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with ``PAIR, GROUP`` in the column ``pair`` where it has several groups, for figures of both."""
    if len(groups_in(frame)) < 2:
        return frame
    named = [f"{p}, {g}" if g else str(p) for p, g in zip(frame["pair"], _groups(frame), strict=True)]
    return frame.assign(pair=named)


def _groups(frame: pd.DataFrame) -> pd.Series:
    """The group of every row. OOD rows of tables from before groups existed are in ``DEFAULT_GROUP``."""
    given = frame["group"] if "group" in frame else pd.Series("", index=frame.index)
    given = given.astype(object).fillna("").astype(str)
    if "role" not in frame:
        return given
    return given.mask((given == "") & frame["role"].isin(("ood", OOD_MEAN)), DEFAULT_GROUP)


def marginal_rows(correlations: pd.DataFrame) -> pd.DataFrame:
    """The rows of correlations without a covariate held fixed."""
    return correlations[_given(correlations) == ""]


def primary_of_the_whole(correlations: pd.DataFrame) -> pd.DataFrame:
    """The correlations of the whole model that were named before looking: one row a source and group of OOD sets."""
    if "family" not in correlations:  # tables from before anything was named
        return correlations.iloc[:0]
    return correlations[(correlations["family"] == PRIMARY) & (correlations["layer"] == ALL)]


def joint_rows(correlations: pd.DataFrame) -> pd.DataFrame:
    """Of the rows that differ in nothing but the covariates held fixed, the one with the most of them, at least one."""
    held = correlations[_given(correlations) != ""]
    keys = [k for k in KEYS["correlations"] if k in held.columns and k != "given"]
    most = _given(held).map(lambda given: given.count("+")).sort_values(ascending=False, kind="stable").index
    first = held.loc[most].drop_duplicates(keys).index
    return held.loc[held.index.isin(first)]


def _given(correlations: pd.DataFrame) -> pd.Series:
    """The column ``given``; tables from before it existed hold no joint partial."""
    if "given" not in correlations:
        return pd.Series("", correlations.index)
    return correlations["given"].astype(object).fillna("").astype(str)


def flags_of(failure: pd.DataFrame, pair: str) -> tuple[list[str], list[str], list[str]]:
    """(flags that are present, absent, open) for a pair, in the rows of the OOD mean and the probe loss.

    With several groups of OOD sets a flag is present if it is in one of them; ``of_group`` selects one group's rows.

    A flag is open where it is undefined or has no interval: then nothing says that the path does not fail. Tables
    without these rows are judged by all of their rows.
    """
    own = failure[failure["pair"] == pair]
    main = own[own["dataset"].isin((OOD_MEAN, PROBE))]
    rows = main if len(main) else own
    names = [str(flag) for flag in unique_in_order(rows["flag"])]
    present = set(rows.loc[rows["present"] == True, "flag"])  # noqa: E712  the column may hold missing values
    unknown = set(rows.loc[rows[["estimate", "ci_low", "ci_high"]].isna().any(axis=1), "flag"]) - present
    return (
        [f for f in names if f in present],
        [f for f in names if f not in present | unknown],
        [f for f in names if f in unknown],
    )


def without_stragglers(repair: pd.DataFrame) -> list[str]:
    """The pairs in a table of repairs that have no straggler, so that the layer with the highest score was repaired."""
    if "n_stragglers" not in repair:  # tables from before it was told
        return []
    return unique_in_order(repair.loc[pd.to_numeric(repair["n_stragglers"]) == 0, "pair"])


def sparse_layers(repair: pd.DataFrame) -> dict[Group, str]:
    """The groups of layers that a table of repairs makes sparse -> what they are, for legends."""
    there = set(repair["control"].replace("none", "straggler"))
    named: dict[Group, str] = {group: text for group, text in GROUPS.items() if group in there}
    if "straggler" in named and (without := without_stragglers(repair)):
        one = "layer with the highest score"
        every = len(without) == repair["pair"].nunique()
        named["straggler"] = f"{one} (no straggler)" if every else f"{named['straggler']}, or where none: {one}"
    return named


def mean_row(
    parts: Sequence[Mapping[str, Any]], role: str = OOD_MEAN, clusters: Mapping[str, Hashable] | None = None
) -> dict[str, Any]:
    """The accuracy row of the macro average over K data sets of one model: m = 1/K sum_k m_k, with equal weights.

    Args:
        parts: the accuracy rows of the sets, one row per set.
        role: the role of the new row.
        clusters: data set -> its cluster: sets of one cluster show the same pictures (a set and its corruptions). A set
            that is not in it is independent of all others.

    Returns:
        A row in the group of the sets, whose ``dataset`` is their names joined by ``+``. ``metric`` is that of the
        sets, or ``primary`` where they differ; the note then names each. The interval is that of a mean of sets that
        are independent from cluster to cluster (``scores.independent_mean``), NaN where one of them has none. It covers
        the choice of images within these sets, not the choice of sets. ``n`` is the total number of examples, missing
        where that of one set is.
    """
    values, lows, highs = ([float(r[c]) for r in parts] for c in ("estimate", "ci_low", "ci_high"))
    of = [(clusters or {}).get(str(r["dataset"]), (i,)) for i, r in enumerate(parts)]
    mean, low, high = independent_mean(values, lows, highs, of)
    kinds = unique_in_order(r["metric"] for r in parts)
    counts = [r["n"] for r in parts]
    return {
        **{c: parts[0][c] for c in ("pair", "alpha", "variant")},
        "dataset": "+".join(str(r["dataset"]) for r in parts),
        "group": parts[0].get("group", ""),
        "role": role,
        "metric": kinds[0] if len(kinds) == 1 else "primary",
        "estimate": mean,
        "ci_low": low,
        "ci_high": high,
        "n": None if any(pd.isna(n) for n in counts) else int(sum(counts)),
        "note": "" if len(kinds) == 1 else "mean of " + ", ".join(f"{r['metric']} of {r['dataset']}" for r in parts),
    }


def mean_accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean over the data sets in ``rows`` at every point, in order of appearance: pair, alpha, estimate, n.

    ``rows`` has one metric per set and one role (see ``dense_rows``). ``n`` is the total number of examples, in which a
    set of unknown size counts as 0.
    """
    known = rows.assign(n=rows["n"].astype("Float64").fillna(0).astype(float))
    points = known.groupby(["pair", "alpha"], sort=False)
    return points.agg(estimate=("estimate", "mean"), n=("n", "sum")).reset_index()


def widest(names: Iterable[str]) -> str:
    """The mean over the most data sets among ``names`` (``a+b``, ``a+b+c``); of equals the first by name."""
    return min(names, key=lambda name: (-name.count("+"), name))


def widest_means(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose ``dataset`` is the mean over the most sets of their group."""
    parts = [frame[_groups(frame) == g] for g in unique_in_order(_groups(frame))]
    return pd.concat([p[p["dataset"] == widest(p["dataset"])] for p in parts]) if parts else frame


def average(rows: pd.DataFrame, role: str) -> pd.DataFrame:
    """One pair's ID or OOD accuracy along alpha, in percent: alpha, estimate, ci_low, ci_high.

    For OOD these are the ``ood_mean`` rows over the most sets. Without such rows, and for ID, it is the mean of the
    sets, with an interval only if there is a single set.

    Raises:
        ConfigError: OOD rows of several groups, which have no mean in common (``of_group`` selects one).
    """
    if role == "ood" and len(groups := groups_in(rows)) > 1:
        raise ConfigError(
            f"group: the table has several groups of OOD sets ({', '.join(groups)}), which have no mean in common.\n"
            "Remedy: name one of them (--group NAME of 'sharpscope figures')."
        )
    mean = rows[rows["role"] == f"{role}_mean"]
    chosen = mean[mean["dataset"] == widest(mean["dataset"])] if len(mean) else rows[rows["role"] == role]
    columns = ["estimate", "ci_low", "ci_high"]
    if chosen["dataset"].nunique() > 1:
        out = chosen.groupby("alpha")[columns].mean().reset_index()
        out[columns[1:]] = math.nan
    else:
        out = chosen[["alpha", *columns]].reset_index(drop=True)
    out[columns] *= 100
    return out


def covariates(accuracy: pd.DataFrame, path: pd.DataFrame) -> pd.DataFrame:
    """The covariates that every run measures: pair, alpha, distance from theta_0 and ID accuracy."""
    dense = dense_rows(accuracy[accuracy["role"] == "id"])
    mean = mean_accuracy(dense).rename(columns={"estimate": "id_accuracy"}).drop(columns="n")
    distance = path[["pair", "alpha", "distance_0"]].rename(columns={"distance_0": "distance"})
    return distance.merge(mean, on=["pair", "alpha"], how="left")


def points_of(sharpness: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Whole-model sharpness and OOD gain at the alpha nearest ``MIDDLE``, one row per pair, measure and group.

    The columns are those of ``correlation_scatter``: pair, sharpness, ood_gain (OOD accuracy minus that of zero-shot),
    measure, alpha and the group of OOD sets.
    """
    frames = [_points(sharpness, of_group(accuracy, group)).assign(group=group) for group in groups_in(accuracy)]
    return pd.concat(frames, ignore_index=True) if frames else _points(sharpness, accuracy).assign(group="")


def _points(sharpness: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
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
                best = own[own["alpha"] == nearest(own["alpha"], MIDDLE)].iloc[0]
                gain = mean[best["alpha"]] - mean[0.0]
                rows.append((pair, best["estimate"], gain, measure, best["alpha"]))
    return pd.DataFrame(rows, columns=["pair", "sharpness", "ood_gain", "measure", "alpha"])
