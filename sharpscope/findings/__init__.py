"""Tables in, tables out: what the measured numbers of a study mean. pandas and scipy, no torch."""

from __future__ import annotations

from sharpscope.findings.advice import advice_table
from sharpscope.findings.correlation import pair_correlations, path_correlations
from sharpscope.findings.failure import failure_table
from sharpscope.findings.losses import LayerLosses, NoiseLosses
from sharpscope.findings.prediction import reference_table
from sharpscope.findings.repair import Repairs, Variant, analyse_repairs
from sharpscope.findings.selection import select
from sharpscope.findings.stragglers import chosen_layers, stragglers_table
from sharpscope.findings.verdicts import verdicts_table

__all__ = [
    "LayerLosses",
    "NoiseLosses",
    "Repairs",
    "Variant",
    "advice_table",
    "analyse_repairs",
    "chosen_layers",
    "failure_table",
    "pair_correlations",
    "path_correlations",
    "reference_table",
    "select",
    "stragglers_table",
    "verdicts_table",
]
