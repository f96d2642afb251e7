"""Matches accuracies measured elsewhere to the pairs of runs by the names of their checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from sharpscope.errors import ResultsError, did_you_mean, shown
from sharpscope.exchange.measured import Measured, stem
from sharpscope.exchange.reading import accuracy_table
from sharpscope.tables.rows import groups_in, mean_row, of_group, table, unique_in_order
from sharpscope.vocabulary import DENSE, OOD_MEAN, PRIMARY_METRICS

__all__ = ["RunPair", "join_accuracy", "matched", "with_means"]


@dataclass(frozen=True)
class RunPair:
    """A pair of a run: its name in the tables and the file of its fine-tuned end."""

    name: str
    finetuned: str


def join_accuracy(
    models: Sequence[Measured],
    pairs: Sequence[RunPair],
    *,
    match: Sequence[str] = (),
    ids: Sequence[str] = (),
) -> pd.DataFrame:
    """The accuracy table of ``pairs`` from models that were measured elsewhere, with the means over OOD sets.

    A model belongs to a pair, as its fine-tuned end or as the point of its path at the alpha given in the file, if one
    of the model's names is the path of the pair's checkpoint; else if one is the pair's name; else if one is the last
    part of that path, or the path the last part of the name (file suffixes are ignored). A model cannot belong to two
    pairs.

    Args:
        models: the measured models.
        pairs: the pairs of the runs.
        match: rules that override the names: ``PAIR=MODEL``, or ``PAIR@ALPHA=MODEL`` for one alpha of a pair.
        ids: names of the ID sets.

    Raises:
        ResultsError: pairs that match no model or more than one; the message lists all of them.
    """
    chosen, lost = matched(models, pairs, match)
    if lost:
        names = unique_in_order(m.names[0] for m in models)
        some = ", ".join(shown(n, 40) for n in names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "")
        raise ResultsError(
            f"{len(lost)} of {len(pairs)} pairs cannot be matched by name: {shown('; '.join(lost), 400)}.\n"
            f"Measured: {some}.\nRemedy: --match PAIR=MODEL (or PAIR@ALPHA=MODEL)."
        )
    parts = [accuracy_table(own, ids).assign(pair=name) for name, own in chosen.items()]
    return with_means(pd.concat(parts, ignore_index=True))


def matched(
    models: Sequence[Measured], pairs: Sequence[RunPair], match: Sequence[str] = ()
) -> tuple[dict[str, list[Measured]], list[str]]:
    """(pair -> its models, descriptions of the pairs that could not be matched)."""
    told = [_rule(rule, pairs, models) for rule in match]
    chosen: dict[str, list[Measured]] = {}
    lost = []
    taken_by: dict[str, list[str]] = {}
    for pair in pairs:
        rules = [(alpha, name) for of, alpha, name in told if of == pair.name]
        given = [m for alpha, name in rules for m in _placed(models, name, alpha)]
        if any(alpha is None for alpha, _ in rules):
            chosen[pair.name] = given
            continue
        groups = _by_name(models, pair)
        if len(groups) > 1:
            lost.append(f"{pair.name} ({len(groups)} models: {', '.join(groups)})")
        elif groups or given:
            taken = {m.alpha for m in given}
            own = [m for g in groups.values() for m in g if m.alpha not in taken]
            chosen[pair.name] = given + own
            for name in groups:
                taken_by.setdefault(name, []).append(pair.name)
        else:
            lost.append(pair.name)
    lost += [f"{' and '.join(who)} (one model: {name})" for name, who in taken_by.items() if len(who) > 1]
    return chosen, lost


def _rule(rule: str, pairs: Sequence[RunPair], models: Sequence[Measured]) -> tuple[str, float | None, str]:
    """``PAIR=MODEL`` or ``PAIR@ALPHA=MODEL`` as (pair, alpha or None, model)."""
    names = sorted((p.name for p in pairs), key=len, reverse=True)
    for name in names:
        found = re.fullmatch(re.escape(name) + r"(?:@(\d+(?:\.\d+)?))?=(.+)", rule)
        if found:
            known = {n for m in models for n in m.names}
            if found.group(2) not in known:
                near = did_you_mean(found.group(2), known)
                raise ResultsError(f"--match {shown(rule)}: no model '{shown(found.group(2), 60)}' was measured.{near}")
            return name, None if found.group(1) is None else float(found.group(1)), found.group(2)
    raise ResultsError(
        f"--match {shown(rule)}: needs PAIR=MODEL or PAIR@ALPHA=MODEL, where PAIR is one of {shown(', '.join(names))}."
    )


def _placed(models: Sequence[Measured], name: str, alpha: float | None) -> list[Measured]:
    """The models called ``name``; with ``alpha`` only the one of largest alpha, placed at ``alpha``."""
    own = [m for m in models if name in m.names]
    if alpha is None:
        return own
    last = max(own, key=lambda m: m.alpha)
    return [Measured(last.names, alpha, last.values, last.where, last.variant, last.counts, last.trained_on, last.note)]


def _by_name(models: Sequence[Measured], pair: RunPair) -> dict[str, list[Measured]]:
    """The models that match the pair by the most reliable kind of name that matches any, grouped by their own name."""
    kinds: list[Callable[[str], bool]] = [
        lambda name: name == pair.finetuned,
        lambda name: name == pair.name,
        lambda name: _same_file(name, pair.finetuned),
    ]
    for fits in kinds:
        groups: dict[str, list[Measured]] = {}
        for m in models:
            if any(fits(name) for name in m.names):
                groups.setdefault(m.names[0], []).append(m)
        if groups:
            return groups
    return {}


def _same_file(name: str, path: str) -> bool:
    """Whether the shorter of two paths is the last part of the longer one; file suffixes are ignored.

    >>> _same_file("finetuned", "/data/a/finetuned.pt"), _same_file("b/finetuned.pt", "/data/a/finetuned.pt")
    (True, False)
    """
    a, b = ([*re.split(r"[/\\]", p)[:-1], stem(p)] for p in (name, path))
    k = min(len(a), len(b))
    return a[-k:] == b[-k:]


def with_means(accuracy: pd.DataFrame) -> pd.DataFrame:
    """An accuracy table with ``primary`` filled in and, where it has no mean, the means over the groups of OOD sets.

    Only OOD sets that every point has enter a mean. See ``tables.rows.mean_row`` for the mean and its interval.

    Raises:
        ResultsError: no set is OOD, or no OOD set was measured at every point.
    """
    known = accuracy.get("primary", pd.Series(pd.NA, index=accuracy.index)).astype("boolean")
    own = pd.Series(
        [m == _primary(str(d), accuracy) for d, m in zip(accuracy["dataset"], accuracy["metric"], strict=True)],
        index=accuracy.index,
    )
    out = accuracy.assign(primary=known.fillna(own).astype(bool))
    if (out["role"] == OOD_MEAN).any():
        return out
    ood = out[(out["role"] == "ood") & out["primary"] & (out["variant"] == DENSE)]
    if not len(ood):
        sets = ", ".join(unique_in_order(out["dataset"]))
        raise ResultsError(
            f"accuracy: none of the sets ({shown(sets)}) counts as out of distribution.\n"
            "Remedy: name the sets that are in distribution with --id."
        )
    means = [_means(of_group(ood, group), group) for group in groups_in(ood)]
    return pd.concat([out, *means], ignore_index=True)


def _means(ood: pd.DataFrame, group: str) -> pd.DataFrame:
    """The mean over the OOD sets of one group at every point, as rows of the accuracy table."""
    points = {
        key: dict(zip(g["dataset"], g.to_dict("records"), strict=True)) for key, g in ood.groupby(["pair", "alpha"])
    }
    common = [d for d in unique_in_order(ood["dataset"]) if all(d in sets for sets in points.values())]
    if not common:
        raise ResultsError(
            f"accuracy: no OOD set of the group '{shown(group, 40)}' was measured at every point, so no mean is "
            "comparable between points."
        )
    left = [d for d in unique_in_order(ood["dataset"]) if d not in common]
    said = f"without {', '.join(left)}, because some points lack it" if left else ""
    rows = []
    for measured in points.values():
        row = mean_row([measured[d] for d in common])
        note = "; ".join(x for x in (row["note"], said) if x)
        rows.append(row | {"group": group, "note": note, "primary": True})
    return table("accuracy", rows)


def _primary(dataset: str, accuracy: pd.DataFrame) -> str:
    there = set(accuracy.loc[accuracy["dataset"] == dataset, "metric"])
    for name, metric in PRIMARY_METRICS.items():
        if name in dataset.casefold() and metric in there:  # others write FMOWOOD, IWildCamOODNonEmpty ...
            return metric
    return "top1" if "top1" in there else min(there)
