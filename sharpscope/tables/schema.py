"""The tables of a run and their columns: the interface between the packages and for everyone who reads a run directory.

Every row names its ``pair`` (a study may hold several). ``alpha`` is always the weight of the FINE-TUNED model:
theta(alpha) = (1 - alpha) * theta_0 + alpha * theta_1.
"""

from __future__ import annotations

from typing import Final

__all__ = ["COLUMNS", "KEYS"]

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "path": ("pair", "alpha", "loss", "loss_stderr", "distance_0", "distance_1", "num_moving", "status"),
    "sharpness": (
        "pair", "alpha", "layer", "granularity", "tower", "depth", "kind", "num_params", "measure", "estimate",
        "stderr", "stderr_images", "n", "residual", "converged", "num_matvecs", "seed", "status", "per_param", "share",
        "rho", "note",
    ),
    "density": (
        "pair", "alpha", "layer", "value", "density", "stderr", "width", "num_params", "num_matvecs", "seed", "status",
        "note",
    ),
    "eigenpairs": (
        "pair", "alpha", "layer", "rank", "eigenvalue", "residual", "converged", "num_params", "num_matvecs", "status",
    ),
    "accuracy": (
        "pair", "alpha", "variant", "dataset", "group", "role", "metric", "estimate", "ci_low", "ci_high", "n", "note",
        "primary",
    ),
    "stragglers": (
        "pair", "layer", "criterion", "base", "score", "threshold", "rule", "chosen", "probability", "status", "note",
    ),
    "failure": ("pair", "flag", "dataset", "group", "alpha", "estimate", "ci_low", "ci_high", "present", "note"),
    "repair": (
        "pair", "group", "alpha", "variant", "layers", "target", "select", "density", "kept_fraction", "control",
        "id_accuracy", "ood_accuracy", "plain_alpha", "plain_ood_accuracy", "gain", "ci_low", "ci_high", "status",
        "note", "n_masks", "n_controls", "n_stragglers",
    ),
    "correlations": (
        "pair", "layer", "measure", "against", "dataset", "group", "scope", "alpha", "method", "given", "estimate",
        "ci_low", "ci_high", "p_value", "q_value", "n", "n_effective", "family", "source", "status", "note", "left_out",
        "doubt",
    ),
    "residuals": (
        "pair", "group", "measure", "alpha", "source", "base", "setting", "learning_rate", "sharpness", "ood_gain",
        "residual_sharpness", "residual_gain", "given", "status", "note",
    ),
    "advice": (
        "pair", "situation", "rule", "group", "alpha", "layers", "density", "predicted_gain", "ci_low", "ci_high",
        "id_accuracy", "ood_accuracy", "regret", "best_baseline", "baseline_regret", "status", "note",
        "expected_regret", "advised", "regret_low", "regret_high",
    ),
    "agreement": (
        "pair", "alpha", "dataset", "measure", "estimate", "ci_low", "ci_high", "n", "status", "against", "note",
    ),
    "vrf": (
        "pair", "dataset", "bin", "distance_low", "distance_high", "distance", "zeroshot_accuracy",
        "finetuned_accuracy", "ratio", "ci_low", "ci_high", "n", "k", "failures", "status", "note",
    ),
    "verdicts": (
        "pair", "claim", "group", "source", "verdict", "estimate", "ci_low", "ci_high", "n", "n_effective", "evidence",
    ),
}  # fmt: skip
"""Table name -> columns, in order. New columns may be added; none is renamed or dropped.

Reading guide
  path.num_moving      number of parameters that differ between theta_0 and theta_1
  sharpness.num_params number of parameters of the layer; of ``(all)`` that of all on which the logits depend, moving or
                       not (``path.num_moving`` counts those that move)
  sharpness.stderr     standard error of the estimate on these images, from random directions
  sharpness.stderr_images  standard error over draws of images: how far other draws of ``n`` images would lead, the
                       error of the estimate included; empty where it is not known, for the reason in ``note``
  sharpness.n          number of probe images
  density              density of the eigenvalues of H_ll at ``value``, of integral 1 and smoothed by a Gaussian with
                       standard deviation ``width``
  density.stderr       standard error over random start vectors, widened for their small number; the choice of images
                       is not in it
  eigenpairs.rank      1 for the largest eigenvalue; its unit eigenvector is row rank - 1 of the arrays
                       ``LAYER:PARAMETER`` in eigenvectors/PAIR_ALPHA.npz
  accuracy.role        id | ood | ood_mean (``dataset`` then names the averaged sets, joined by ``+``)
  accuracy.group       name of the group of OOD sets; empty for ID sets, the same in all tables
  accuracy.metric      a key of ``METRICS``; ``primary`` for a mean of sets with different primary metrics
  accuracy.primary     whether this is the metric by which the set is usually judged, and which findings use
  accuracy.variant     ``dense`` or the repair with the number of its mask, e.g. ``straggler:delta:random:0.5#1``,
                       ``control:random_layers:delta:random:0.5#1`` (no number where nothing is random: magnitude); on
                       at most ``repair_limit`` images a set; ``path:lines`` for the points of a further path,
                       ``ensemble:logits`` for mixed outputs of the ends, with alpha as the weight of theta_1's
  stragglers.base      finetuned | zeroshot | midpoint (single-layer paths), or the alphas of a sharpness criterion
  repair.variant       that of the accuracy table without the number: one row for all masks, whose numbers are means
                       over ``n_masks`` of them
  repair.gain          OOD accuracy minus that of the plain path at the same ID accuracy (``plain_alpha``,
                       interpolated), on the same images. The interval covers the choice of images and of masks (and of
                       the random layers); none where one mask was drawn
  repair.layers        the layers joined by ``+``; the sets of random layers, where they differ, joined by `` | ``
  repair.n_controls    number of different sets of random layers, one of them for each mask of the stragglers; 0 for
                       controls on all layers
  repair.n_stragglers  number of the pair's stragglers by the rule; 0 where the layer with the highest score was made
                       sparse in their place
  correlations.measure a measure, its ``share:`` of the whole model, a ``covariate:``, or what interpolation costs in
                       loss (instability, barrier, rewind: of the whole path for the layer ``(all)``)
  correlations.scope   path (points along alpha of one pair: descriptive) | pairs (one point per pair, at ``alpha``:
                       evidence)
  correlations.source  run (this run's own pairs) | shipped (the table that comes with the embedded world)
  correlations.given   the covariates held fixed, joined by ``+``; empty for a plain correlation
  correlations.left_out  the covariates that were to be held fixed and are not, joined by ``+``: there are too few
                       pairs, or no pair tells them
  correlations.n_effective  number of units that move independently: pairs that differ in their seed alone are one, and
                       so is a setting on several zero-shot models
  correlations.family  primary (named before looking; ``q_value`` is Holm's over groups) | exploratory
  correlations.doubt   why no verdict may rest on the row: too few images to tell the models apart, or to hold ID
                       accuracy fixed, or too few units of each zero-shot model; empty where nothing speaks against it
  correlations.layer   also the ``others`` and ``random`` of ``CONTRASTS``: by how much the |correlation| of chosen
                       layers exceeds that of all other layers, and of random sets of as many layers
  residuals            the points behind the primary correlations of the whole model: sharpness and OOD gain of every
                       pair, and what is left of their ranks with the covariates in ``given`` held fixed
  residuals.base       the zero-shot model: its file's hash, or the name that the study gives
  residuals.setting    pairs of one setting differ in their seed or zero-shot model alone, and are one unit, as are
                       copies of one fine-tuned file; empty where nothing is known, and then the pair is a unit of its
                       own
  residuals.ood_gain   OOD accuracy at ``alpha`` minus that of zero-shot, mean over the group's sets, in [-1, 1]
  residuals.residual_sharpness  residual rank of sharpness in units of its standard deviation, the same for all pairs
                       of a unit. Over the units its Pearson correlation with ``residual_gain`` is the estimate of the
                       primary row of ``correlations``; empty where ``note`` gives a reason
  residuals.residual_gain  the same of the gain
  advice.situation     what the rule knows of the OOD data (a key of ``SITUATIONS``), the strongest first; ``baseline``
                       for rules that know nothing, and for the oracle
  advice.rule          a rule of ``ADVICE[situation]``
  advice.group         the group of OOD sets; ``target`` for images that a user brought
  advice.advised       whether this is the alpha that the situation advises; the others stand beside it
  advice.predicted_gain  gain in OOD (or target) accuracy over zero-shot: measured, estimated or predicted. That of an
                       alpha that labels chose is cross-fitted: chosen on one half of the images, judged on the other
  advice.regret        OOD accuracy lost to the alpha of the path that OOD labels choose, where there are any:
                       cross-fitted, so that no image judges what it chose. Below 0 where that choice is the worse one;
                       empty for ood_best, which is that choice
  advice.regret_low    with ``regret_high`` the interval of what the alpha loses to the truly best one of the path; it
                       holds for all alphas together, and so for one that these labels chose
  advice.expected_regret  the rule's mean regret where it was tested without this pair's OOD labels: on held-out shifts
                       of ID data, or on the references' settings, each left out in turn
  advice.baseline_regret  the same of ``best_baseline``, the best rule that knows nothing; for ``measured`` and
                       ``target_labels`` cross-fitted on these labels, the rule chosen on one half of the images as well
  advice.layers        the straggler layers to make sparse, at ``density``: filled where the mean gain of sparse
                       stragglers, and by how much it exceeds that of random layers, have intervals above 0 over other
                       pairs of the run, of at least four settings
  agreement.measure    a key of ``AGREEMENT``
  agreement.against    the end with which the point of the path is compared: zeroshot | finetuned; ends for measures
                       of both; empty for a measure of the point alone. 'evaluate --agreement-out FILE' compares
                       checkpoints with one another: pair A|B, against A, and alpha is missing
  agreement.n          number of images of which the estimate is a mean
  vrf                  the two ends' accuracies by the images' distance to the zero-shot model's failures: what VRF's
                       weights rest on ('run --output-baselines vrf')
  vrf.bin              1 for the images nearest to failures; the bins of a set hold about as many images each
  vrf.distance         mean squared distance of the bin's images to their ``k``-th nearest of the ``failures`` among the
                       training images, by the fine-tuned model's unit features; ``distance_low``, ``distance_high``:
                       the bin's smallest and largest
  vrf.ratio            finetuned_accuracy / zeroshot_accuracy, with an interval over draws of images
  verdicts.verdict     holds | does not hold | cannot be told
  verdicts.n_effective  as in correlations; empty where it has no meaning
"""

KEYS: Final[dict[str, tuple[str, ...]]] = {
    "path": ("pair", "alpha"),
    "sharpness": ("pair", "alpha", "layer", "measure"),
    "density": ("pair", "alpha", "layer", "value"),
    "eigenpairs": ("pair", "alpha", "layer", "rank"),
    "accuracy": ("pair", "alpha", "variant", "dataset", "role", "metric"),
    "stragglers": ("pair", "layer", "criterion", "base", "rule"),
    "failure": ("pair", "flag", "dataset", "group"),
    "repair": ("pair", "group", "variant", "alpha"),
    "correlations": (
        "pair", "layer", "measure", "against", "dataset", "group", "scope", "alpha", "method", "given", "source",
    ),
    "residuals": ("pair", "group", "source"),
    "advice": ("pair", "situation", "rule", "group"),
    "agreement": ("pair", "alpha", "dataset", "measure", "against"),
    "vrf": ("pair", "dataset", "bin"),
    "verdicts": ("pair", "claim", "group"),
}  # fmt: skip
"""Columns that identify a row of each table: no two rows agree on all of them."""
