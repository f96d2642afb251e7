"""What advice knows of pairs besides their accuracies: how they were tuned, and the pairs of the embedded world as
references."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sharpscope.findings.advising.published import Tuning
from sharpscope.findings.advising.references import Reference, reference_pairs
from sharpscope.findings.design import Design
from sharpscope.miniworld import shipped
from sharpscope.study.designs import shipped_design
from sharpscope.tables.files import read_csv
from sharpscope.tables.rows import points_of, stacked
from sharpscope.vocabulary import LEARNING_RATE

__all__ = ["points_beside_shipped", "shipped_references", "shipped_table", "tuning_of"]


def tuning_of(design: Design, pair: str, facts: Mapping[str, Any] | None) -> Tuning:
    """The pair's learning rate, and whether only the head moved; None where the run was made before its manifest said
    so."""
    rates = design.covariates.get(LEARNING_RATE)
    rate = math.nan if rates is None else float(rates[design.pairs.index(pair)])
    told = (facts or {}).get("head_only")
    return Tuning(rate, told if isinstance(told, bool) else None)


@functools.cache
def shipped_table(name: str) -> pd.DataFrame:
    """The embedded world's across-pair table, as ``analyses/world.py`` computed it; read once, never changed."""
    return read_csv(shipped.pairs_table(name), name)


def points_beside_shipped(sharpness: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """The points of ``correlation_scatter``: a run's pairs (source ``run``) and the other shipped pairs (``shipped``).

    A pair of the run that has the name of a shipped one takes its place.
    """
    own = {"sharpness": sharpness, "accuracy": accuracy}
    ours = {pair for table in own.values() for pair in table["pair"]}
    known = {name: shipped_table(name) for name in own}
    both = {name: stacked(name, [own[name], known[name][~known[name]["pair"].isin(ours)]]) for name in own}
    points = points_of(both["sharpness"], both["accuracy"])
    return points.assign(source=["run" if pair in ours else "shipped" for pair in points["pair"]])


def shipped_references(groups: Mapping[str, str], known: Sequence[str] = ()) -> list[Reference]:
    """The embedded world's pairs as references, without those in ``known``.

    ``groups``: OOD set -> its group. Other OOD sets are left out, unless there are none, and then the world's own
    groups count.
    """
    accuracy, path, sharpness = (shipped_table(t) for t in ("accuracy", "path", "sharpness"))
    if groups:
        accuracy = accuracy[(accuracy["role"] != "ood") | accuracy["dataset"].isin(list(groups))]
    pairs = reference_pairs(accuracy, path, sharpness, shipped_design(), groups)
    return [pair for pair in pairs if pair.pair not in known]
