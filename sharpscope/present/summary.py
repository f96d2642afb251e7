"""What a run says on the first screen: what happened on each group of OOD sets, what sharpness could tell, advice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from sharpscope.errors import shown
from sharpscope.present.advice import advised, alike, in_brief
from sharpscope.present.alphas import said
from sharpscope.present.criteria import who_is_named
from sharpscope.tables.happened import what_happened
from sharpscope.tables.rows import groups_in, in_group_order, ordered
from sharpscope.vocabulary import CANNOT, CLAIMS, REMARKS

__all__ = ["summary_lines"]


def summary_lines(tables: Mapping[str, pd.DataFrame], criterion: str, order: Sequence[str] = ()) -> Iterator[str]:
    """Lines of text, in blocks with headings.

    Args:
        tables: tables of the schema by name; a block whose tables are missing or empty is left out.
        criterion: the straggler criterion that decides.
        order: the order in which pairs are named.
    """
    groups = groups_in(tables["accuracy"]) if "accuracy" in tables else []
    known = {name: in_group_order(table, groups) for name, table in tables.items() if len(table)}
    if {"accuracy", "failure"} <= set(known):
        yield "What interpolation did to the mean OOD accuracy of each group of sets:"
        yield from (f"  {said(line)}" for line in what_happened(known["accuracy"], known["failure"], order))
    if "verdicts" in known:
        yield "What sharpness could tell of it:"
        yield from (f"  {line}" for line in _verdicts(known["verdicts"]))
    if "stragglers" in known:
        yield "Which layers stand out:"
        for pair in ordered(known["stragglers"]["pair"], order):
            yield f"  {shown(pair)}: {who_is_named(known['stragglers'], pair, criterion)}"
    if "advice" in known:
        yield "Advice:"
        for pair in ordered(known["advice"]["pair"], order):
            rows = advised(known["advice"], pair)
            for group in dict.fromkeys(row["group"] for row in rows):
                of = f"{shown(pair)}{f', {shown(group, 60)}' if group else ''}"
                own = [row for row in rows if row["group"] == group]
                yield f"  {of} ({own[0]['situation']}): {'; '.join(map(in_brief, alike(own)))}."


def _verdicts(verdicts: pd.DataFrame) -> Iterator[str]:
    """One line per claim and distinct answer, the study's question first.

    The remarks of a conclusion say for which models it holds and what it leaves open, and stand in its line. Those of a
    claim that cannot be told are left to the report.
    """
    for claim in dict.fromkeys((CLAIMS["question"], *CLAIMS.values())):
        own = verdicts[verdicts["claim"] == claim]
        of_pair = claim == CLAIMS["repair"]
        for (verdict, evidence), rows in own.groupby(["verdict", "evidence"], sort=False):
            where = ", ".join(dict.fromkeys(rows["group"]))
            pairs = f"; {', '.join(dict.fromkeys(rows['pair']))}" if of_pair else ""
            text = str(evidence)
            if verdict == CANNOT:
                text = re.split(rf" {re.escape(REMARKS)} ", text, maxsplit=1)[0]
            yield f"{claim} ({where}{pairs}): {str(verdict).upper()}. {said(text)}"
