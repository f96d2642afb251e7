"""Accuracy rows with intervals, from what points of weight space answered on data sets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sharpscope.clip.datasets.dataset import Dataset
from sharpscope.clip.metrics import Scored, estimates
from sharpscope.errors import shown
from sharpscope.tables.rows import mean_row
from sharpscope.vocabulary import DEFAULT_GROUP, OOD_MEAN

__all__ = ["accuracy_rows", "dataset_note", "mean_rows", "reported"]

Row = dict[str, Any]


def reported(dataset: Dataset, more: Iterable[str] = ()) -> tuple[str, ...]:
    """The metrics that a data set's rows report: those usual for the set (the first is primary), top1, and ``more``."""
    return tuple(dict.fromkeys([*dataset.metrics, "top1", *more]))


def accuracy_rows(
    pair: str,
    alpha: float,
    variant: str,
    given: Mapping[str, Scored],
    roles: Mapping[str, str],
    metrics: Mapping[str, Sequence[str]] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
    level: float = 0.95,
    notes: Mapping[str, str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Rows of the accuracy table: every metric of every data set, with its interval (``metrics.estimates``).

    ``given``: data set name -> ``answers``. ``roles``: name -> ``id`` or ``ood``. ``groups``: name of an OOD set -> its
    group (default: ``DEFAULT_GROUP``). ``metrics``: name -> the metrics to
    report, the first of which is primary (default: top1). A metric that is not defined for a set has no row.
    """
    rows = []
    for name, one in given.items():
        wanted = ("top1",) if metrics is None else metrics[name]
        group = (groups or {}).get(name, DEFAULT_GROUP) if roles[name] == "ood" else ""
        found = estimates(one, wanted, level=level, bootstrap=bootstrap, seed=seed, key=(pair, alpha, variant, name))
        for metric, (value, low, high) in found.items():
            said = [
                (notes or {}).get(name, ""),
                "" if math.isfinite(low) else "no interval: the bootstrap replicates do not differ",
                ""
                if not math.isfinite(low) or low <= value <= high
                else f"the interval is corrected for the bias of {metric} and excludes the estimate",
            ]
            note = "; ".join(x for x in said if x)
            row = _row(pair, alpha, variant, name, group, roles[name], metric, value, low, high, one.size(metric), note)
            rows.append(row | {"primary": metric == wanted[0]})
    return rows


def mean_rows(
    rows: Sequence[Row], role: str = "ood", to: str = OOD_MEAN, clusters: Mapping[str, Hashable] | None = None
) -> list[Row]:
    """The macro average over the data sets of ``role`` as rows of role ``to``; see ``tables.rows.mean_row``.

    Every ``group`` of sets has means of its own: one row for the mean of the sets' primary metrics, and one for each
    other metric that all of its sets have. ``clusters``: data set -> its cluster, for sets that show the same pictures.
    """
    own = [r for r in rows if r["role"] == role]
    groups = dict.fromkeys(r["group"] for r in own)
    return [row for group in groups for row in _means([r for r in own if r["group"] == group], to, clusters)]


def _means(own: Sequence[Row], to: str, clusters: Mapping[str, Hashable] | None) -> list[Row]:
    names = list(dict.fromkeys(r["dataset"] for r in own))
    first = [r for r in own if r["primary"]]
    kinds = list(dict.fromkeys(r["metric"] for r in first))
    out = [_mean(first, to, clusters) | {"primary": True}]
    for metric in dict.fromkeys(r["metric"] for r in own):
        parts = [r for r in own if r["metric"] == metric]
        if len(parts) == len(names) and kinds != [metric]:
            out.append(_mean(parts, to, clusters) | {"primary": False})
    return out


def _mean(parts: Sequence[Row], role: str, clusters: Mapping[str, Hashable] | None) -> Row:
    row = mean_row(parts, role, clusters)
    known = math.isfinite(row["ci_low"]) and math.isfinite(row["ci_high"])
    said = [row["note"], "" if known else "no interval: at least one of the averaged data sets has none"]
    return row | {"note": "; ".join(x for x in said if x)}


def dataset_note(dataset: Dataset) -> str:
    """What a reader of an accuracy needs to know about its data set.

    Skipped images, classes without images, which classes compete, and how labels got their names where that was not by
    the names themselves.
    """
    facts = dataset.facts
    said = []
    if facts.get("skipped"):
        said.append(f"{facts['skipped']} unreadable images skipped")
    if bare := facts.get("without_images"):
        some = ", ".join(f"'{shown(name, 40)}'" for name in bare[:3]) + ", ..." * (len(bare) > 3)
        said.append(f"no readable image of class {some}")
    if dataset.classes is not None:
        said.append(f"scored among {len(dataset.classes)} of {len(dataset.classnames)} classes")
    if dataset.projection is not None:
        said.append(
            f"scored among {len(dataset.target_names)} classes, each by the largest logit of its member classes"
        )
    if bare := [dataset.target_names[t] for t in dataset.targets_without_class]:
        said.append(f"the head has no class for '{shown(', '.join(bare), 200)}': images of these count as wrong")
    said += facts.get("said", ())
    return "; ".join(said)


def _row(
    pair: str,
    alpha: float,
    variant: str,
    dataset: str,
    group: str,
    role: str,
    metric: str,
    estimate: float,
    low: float,
    high: float,
    n: int,
    note: str,
) -> Row:
    return {
        "pair": pair,
        "alpha": alpha,
        "variant": variant,
        "dataset": dataset,
        "group": group,
        "role": role,
        "metric": metric,
        "estimate": estimate,
        "ci_low": low,
        "ci_high": high,
        "n": n,
        "note": note,
    }
