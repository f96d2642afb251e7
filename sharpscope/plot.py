"""Every figure, each a function from tidy tables to Axes (one panel), a Figure (several panels) or a paper's figure.

In a notebook:

    run = sharpscope.report("runs/demo")
    sharpscope.plot.heatmap(run.sharpness, "lambda_max")  # shows itself as the value of a cell
    ax = sharpscope.plot.wiseft_curve(run.accuracy, ax=axes[0])  # or is drawn into axes of yours
    drawn = sharpscope.plot.paper_wiseft_alpha(run.accuracy)  # drawn.figure, drawn.caption

    sharpscope.plot.sharpness_along_alpha(run.sharpness, pair_order=run.order)  # pairs have the colours of the report

The tables have the columns of ``sharpscope.tables.schema``. No function touches matplotlib's global state or pyplot,
and the reader's own style (``matplotlib.style.context``) is respected. ``sharpscope figures RUN --out DIR`` writes all
of them.
"""

from sharpscope.present.agreementplots import agreement_along_alpha
from sharpscope.present.densityplots import spectral_density
from sharpscope.present.furtherplots import paths_along_alpha
from sharpscope.present.layerplots import heatmap, straggler_ranking
from sharpscope.present.pairplots import correlation, correlation_scatter, repair
from sharpscope.present.paperplots.drawn import Drawn
from sharpscope.present.paperplots.lipsum import paper_lipsum_energy, paper_lipsum_tradeoff
from sharpscope.present.paperplots.prompting import paper_clipfit_change, paper_clipfit_shots, paper_contcoop_upgrade
from sharpscope.present.paperplots.repaired import paper_sharpness_repair
from sharpscope.present.paperplots.sharpness import (
    paper_sharpness_correlation,
    paper_sharpness_layers,
    paper_sharpness_lii,
)
from sharpscope.present.paperplots.vrf import paper_vrf_ratio
from sharpscope.present.paperplots.wiseft_diversity import paper_wiseft_diversity
from sharpscope.present.paperplots.wiseft_paths import paper_wiseft_alpha, paper_wiseft_ensembles, paper_wiseft_scatter
from sharpscope.present.paperplots.wiseft_sweeps import paper_wiseft_hyper, paper_wiseft_shots
from sharpscope.present.pathplots import accuracy_along_alpha, sharpness_along_alpha, wiseft_curve, wiseft_curves
from sharpscope.present.plots import all_figures
from sharpscope.present.residualplots import sharpness_and_gain
from sharpscope.present.robustplots import effective_robustness
from sharpscope.present.sliceplots import loss_slice

__all__ = [
    "Drawn",
    "accuracy_along_alpha",
    "agreement_along_alpha",
    "all_figures",
    "correlation",
    "correlation_scatter",
    "effective_robustness",
    "heatmap",
    "loss_slice",
    "paper_clipfit_change",
    "paper_clipfit_shots",
    "paper_contcoop_upgrade",
    "paper_lipsum_energy",
    "paper_lipsum_tradeoff",
    "paper_sharpness_correlation",
    "paper_sharpness_layers",
    "paper_sharpness_lii",
    "paper_sharpness_repair",
    "paper_vrf_ratio",
    "paper_wiseft_alpha",
    "paper_wiseft_diversity",
    "paper_wiseft_ensembles",
    "paper_wiseft_hyper",
    "paper_wiseft_scatter",
    "paper_wiseft_shots",
    "paths_along_alpha",
    "repair",
    "sharpness_along_alpha",
    "sharpness_and_gain",
    "spectral_density",
    "straggler_ranking",
    "wiseft_curve",
    "wiseft_curves",
]
