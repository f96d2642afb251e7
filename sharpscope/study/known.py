"""What runs know of how their pairs were fine-tuned, and the reference pairs that they make for each other's advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sharpscope.findings.advising.published import Tuning
from sharpscope.findings.advising.references import Reference, reference_pairs
from sharpscope.miniworld import shipped
from sharpscope.tables.files import read_csv

__all__ = ["shipped_references", "shipped_table", "told_of", "tuning_of"]

Told = dict[str, float | str]


def told_of(covariates: Mapping[str, float], facts: Mapping[str, Any] | None) -> Told:
    """What is known of one pair's fine-tuning by name: its file's facts, and over them what the study file says."""
    end = (facts or {}).get("finetuned")
    found = end.get("finetuning") if isinstance(end, Mapping) else None
    return {**(found if isinstance(found, Mapping) else {}), **covariates}


def tuning_of(told: Mapping[str, float | str], facts: Mapping[str, Any] | None) -> Tuning:
    """The learning rate, and whether only the head moved."""
    rate, moves = told.get("learning_rate", math.nan), str((facts or {}).get("what moves") or "")
    return Tuning(
        float(rate) if isinstance(rate, (int, float)) else math.nan,
        moves.startswith("only the head") if moves else None,
    )


def shipped_table(name: str) -> pd.DataFrame:
    """The embedded world's across-pair table, as ``analyses/world.py`` computed it."""
    return read_csv(shipped.pairs_table(name), name)


def shipped_references(groups: Mapping[str, str], known: Sequence[str] = ()) -> list[Reference]:
    """The embedded world's pairs as references, without those in ``known``.

    ``groups``: OOD set -> its group. Other OOD sets are left out, unless there are none, and then the world's own
    groups count.
    """
    accuracy, path, sharpness = (shipped_table(t) for t in ("accuracy", "path", "sharpness"))
    if groups:
        accuracy = accuracy[(accuracy["role"] != "ood") | accuracy["dataset"].isin(list(groups))]
    pairs = reference_pairs(accuracy, path, sharpness, shipped.tunings(), groups)
    return [pair for pair in pairs if pair.pair not in known]
