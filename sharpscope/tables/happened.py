"""What interpolation did to OOD accuracy, in one sentence for each group of OOD sets."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from sharpscope.tables.rows import average, dense_rows, flags_of, groups_in, of_group, ordered, widest_means
from sharpscope.vocabulary import OOD_MEAN

__all__ = ["what_happened"]

_Means = Mapping[float, Mapping[Hashable, Any]]
"""Alpha -> the mean OOD accuracy of one pair there, with its interval."""


def what_happened(accuracy: pd.DataFrame, failure: pd.DataFrame, order: Sequence[str] = ()) -> list[str]:
    """One sentence per group: the best point of every pair's path against zero-shot, its end, and the failure flags.

    The interval of the best point's gain, in points, allows for its choice (flag F1 of the table ``failure``). Where no
    other point is above zero-shot, that is said, for then zero-shot is the best point. The ends
    have their mean accuracies over the group's sets, which the sentence names. ``order``: that of the pairs.
    """
    dense = dense_rows(accuracy[accuracy["estimate"].notna()])
    sentences = []
    for group in groups_in(dense):
        rows = of_group(dense, group)
        means = widest_means(rows[rows["role"] == OOD_MEAN])
        pairs = ordered(rows["pair"], order)
        along = {str(p): _means(rows[rows["pair"] == p]) for p in pairs}
        along = {pair: means for pair, means in along.items() if 0.0 in means}
        starts = list(dict.fromkeys(_end(means, 0.0) for means in along.values()))
        told = starts if len(starts) == 1 < len(along) else []  # what all pairs have in common is said once
        told += [_of_pair(p, means, of_group(failure, group), bool(told)) for p, means in along.items()]
        if told:
            sets = f"({', '.join(str(means['dataset'].iloc[0]).split('+')) if len(means) else 'no mean'})"
            named = group if group.endswith(sets) else f"{group} {sets}"  # a group may be named after its sets
            sentences.append(f"{named}: {'; '.join(told)}.")
    return sentences


def _means(rows: pd.DataFrame) -> _Means:
    return {float(row["alpha"]): row for row in average(rows, "ood").to_dict("records")}


def _of_pair(pair: str, means: _Means, failure: pd.DataFrame, started: bool) -> str:
    """What happened along one pair; ``started``: the accuracy of zero-shot has been said."""
    own = failure[(failure["pair"] == pair) & (failure["dataset"] == OOD_MEAN) & (failure["flag"] == "F1")]
    best = ""
    if len(own) and math.isfinite(float(own["estimate"].iloc[0])):
        row = own.iloc[0]
        span = f" [{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]" if math.isfinite(row["ci_low"]) else ""
        gain = f"alpha {row['alpha']:g}, has {100 * row['estimate']:+.1f}{span} points over zero-shot"
        best = (
            f"its best point, {gain}" if row["estimate"] > 0 else f"no point beats zero-shot (the best other, {gain})"
        )
    ends = [_end(means, at) for at in _ENDS if at in means and not (started and at == 0)]
    flags, absent, unknown = flags_of(failure, pair)
    raised = f"failure flags {', '.join(flags)}" if flags else "no failure flag" if absent else ""
    undefined = f"{', '.join(unknown)} undefined or without interval" if unknown else ""
    return f"along {pair} {', '.join(x for x in (best, *ends, raised, undefined) if x)}"


_ENDS: Final = {0.0: "zero-shot", 1.0: "the fine-tuned model"}


def _end(means: _Means, at: float) -> str:
    return f"{_ENDS[at]} has {_percent(means[at])}"


def _percent(row: Mapping[Hashable, Any]) -> str:
    """An accuracy in percent with its interval, where it has one."""
    known = math.isfinite(row["ci_low"]) and math.isfinite(row["ci_high"])
    return f"{row['estimate']:.1f}{' [{:.1f}, {:.1f}]'.format(row['ci_low'], row['ci_high']) if known else ''} %"
