"""Statistics of the measured numbers of a study: tables in, tables out. Needs pandas and scipy, not torch.

The functions take the tables of a run (``run.sharpness``, ``run.accuracy`` ...) as DataFrames:

    runs = [sharpscope.run(config, out=folder) for config, folder in studies]
    sharpness, accuracy = (pandas.concat([r.tables[t] for r in runs]) for t in ("sharpness", "accuracy"))
    sharpscope.findings.pair_correlations(sharpness, accuracy)

The ``*_table`` functions make the tables of a run directory. ``instability``, ``barrier``, ``rewind`` and
``criticality`` score layers. ``effective_robustness`` compares OOD accuracy with a baseline's line. The intervals,
p-values and correlations that all of them use are public too.
"""

from __future__ import annotations

from sharpscope.findings.advice import Known, advice_table
from sharpscope.findings.advising.along import AlongPath, along_path
from sharpscope.findings.advising.images import (
    HeldOut,
    ImageCurve,
    agreement_difference,
    agreement_on_the_line,
    confidence_difference,
    held_out,
    image_curves,
    thresholded_confidence,
)
from sharpscope.findings.advising.labels import paired_difference
from sharpscope.findings.advising.published import PublishedFacts, Tuning, published_facts, published_paths
from sharpscope.findings.advising.references import Reference, Regrets, leave_one_setting_out, reference_pairs
from sharpscope.findings.correlation import pair_correlations
from sharpscope.findings.criteria import register_criterion
from sharpscope.findings.criteria.barrier import barrier
from sharpscope.findings.criteria.criticality import criticality
from sharpscope.findings.criteria.instability import instability
from sharpscope.findings.criteria.rewind import rewind
from sharpscope.findings.failure import failure_table
from sharpscope.findings.losses import LayerLosses, NoiseLosses
from sharpscope.findings.matching import match_plain
from sharpscope.findings.pathcorrelation import path_correlations
from sharpscope.findings.pathcosts import path_costs
from sharpscope.findings.prediction import Prediction, predict_gain, reference_table
from sharpscope.findings.rank_correlation import partial_spearman
from sharpscope.findings.repair import Repairs, Variant, analyse_repairs
from sharpscope.findings.resampling import (
    bca_interval,
    benjamini_hochberg,
    max_min_interval,
    permutation_p,
    simultaneous_band,
)
from sharpscope.findings.robustness import Baseline, baseline_points, effective_robustness, read_baseline
from sharpscope.findings.selection import Selection, select
from sharpscope.findings.stragglers import chosen_layers, stragglers_table
from sharpscope.findings.verdicts import verdicts_table
from sharpscope.scores import Counts, PathAnswers, percentile_interval

__all__ = [
    "AlongPath",
    "Baseline",
    "Counts",
    "HeldOut",
    "ImageCurve",
    "Known",
    "LayerLosses",
    "NoiseLosses",
    "PathAnswers",
    "Prediction",
    "PublishedFacts",
    "Reference",
    "Regrets",
    "Repairs",
    "Selection",
    "Tuning",
    "Variant",
    "advice_table",
    "agreement_difference",
    "agreement_on_the_line",
    "along_path",
    "analyse_repairs",
    "barrier",
    "baseline_points",
    "bca_interval",
    "benjamini_hochberg",
    "chosen_layers",
    "confidence_difference",
    "criticality",
    "effective_robustness",
    "failure_table",
    "held_out",
    "image_curves",
    "instability",
    "leave_one_setting_out",
    "match_plain",
    "max_min_interval",
    "pair_correlations",
    "paired_difference",
    "partial_spearman",
    "path_correlations",
    "path_costs",
    "percentile_interval",
    "permutation_p",
    "predict_gain",
    "published_facts",
    "published_paths",
    "read_baseline",
    "reference_pairs",
    "reference_table",
    "register_criterion",
    "rewind",
    "select",
    "simultaneous_band",
    "stragglers_table",
    "thresholded_confidence",
    "verdicts_table",
]
