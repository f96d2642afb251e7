"""The one description of a study: command line, YAML file, notebook and manifest are all this object.

No torch here: ``sharpscope --help`` imports this module and must answer at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from typing_extensions import Doc

from sharpscope.config.collections import expand_specs
from sharpscope.config.fields import check_keys, checked_fields, plain
from sharpscope.config.models import MINI
from sharpscope.config.oodgroups import expand_ood, flat_ood, ood_groups, split_group
from sharpscope.config.ranges import check_products, check_ranges
from sharpscope.config.specs import check_classes, read_spec
from sharpscope.config.spellings import current_keys
from sharpscope.errors import ConfigError, shown
from sharpscope.vocabulary import (
    ALL,
    CRITERIA,
    DEFAULT_CRITERION,
    MEASURES,
    PAIRS,
    PATHS,
    PRIMARY_ALPHA,
    PRIMARY_MEASURE,
    ClassPosition,
    Device,
    Dtype,
    EigenMethod,
    EnsembleKind,
    Granularity,
    HeadMode,
    OutputBaseline,
    PathName,
    Precision,
    Products,
    Select,
    Target,
    TraceMethod,
    check_metrics,
    check_path_density,
    criterion_spellings,
    expand_measures,
    parse_criterion,
    parse_rule,
)

__all__ = [
    "ALPHAS",
    "DEFAULT_MEASURES",
    "PERTURBATION_SIZE",
    "VRF_FIELDS",
    "PairConfig",
    "StudyConfig",
    "checkpoint_stem",
]

PERTURBATION_SIZE: Final = 256
"""The default of ``perturbation_size``, in probe examples. Raised, the measures of finite radius cost more."""
ALPHAS: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(11))
DEFAULT_MEASURES: tuple[str, ...] = (
    "hessian_trace",
    "weighted_trace",
    "ggn_trace",
    "lambda_max",
    "lambda_abs",
    "sharpness_avg",
    "sharpness_max",
    "sharpness_max_l2",
)


def checkpoint_stem(source: str | os.PathLike[str]) -> str:
    """The name of a checkpoint in tables: NAME of ``mini:NAME``, else the file name without extension."""
    return Path(str(source).removeprefix("mini:")).stem


@dataclass(frozen=True)
class PairConfig:
    """Two checkpoints of one architecture: the zero-shot one and what fine-tuning made of it.

    ``name``: the pair's name in tables and figures; ``zeroshot``, ``finetuned``: checkpoint files, or ``mini:NAME``.
    ``covariates``: numbers that are known of the pair, by name (``learning_rate`` ...), which correlations across pairs
    hold fixed; ``setting``, ``base``: names of its recipe and of its zero-shot model, where the files do not tell.
    """

    name: str
    """The pair's name in tables and figures."""
    zeroshot: str
    """Checkpoint file of theta_0 (or ``mini:zeroshot``)."""
    finetuned: str
    """Checkpoint file of theta_1 (or ``mini:success``, ``mini:failure`` ...)."""
    covariates: dict[str, float] = field(default_factory=dict)
    """Numbers that are known of the pair, such as learning_rate, which correlations across pairs hold fixed. They win
    over what the fine-tuned file states."""
    setting: str | None = None
    """Name of all that the fine-tuning was but its seed: pairs of one setting on one base are replicates, which count
    once. Default: what the fine-tuned file states."""
    base: str | None = None
    """Name of the zero-shot model, within which pairs are compared; default: the content of its file."""


@functools.cache
def _measures_help() -> str:
    """The help text of ``measures``, made from the vocabulary when asked for. No installed package is loaded for it."""
    outside = MEASURES.not_loaded()
    more = f" Installed packages add {', '.join(outside)}." if outside else ""
    return f"Sharpness measures to take for every layer and for the whole model: {', '.join(MEASURES)}.{more}"


def _criterion_help() -> str:
    """The help text of ``straggler_criterion``, made from the vocabulary when asked for."""
    known = ", ".join(criterion_spellings())
    return f"Criterion that chooses the stragglers to repair: {known} (M is a measure). All criteria are reported."


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides the numbers of a run; a run directory belongs to exactly one of these.

    ``sharpscope run --help`` says what each field means; the names are the same in YAML, notebook and manifest.

    Raises ConfigError, naming the field, for a value of another type, an unknown name or a number out of its range.
    """

    pairs: tuple[PairConfig, ...] = ()
    """The pairs to analyse, side by side in one report."""
    model: str = "ViT-B-32"
    """open_clip model name, path of an open_clip config JSON, or ``mini``."""
    head: HeadMode = "auto"
    """Where the classification head comes from. zeroshot: built once from theta_0's text tower and frozen; stored:
    taken from the checkpoints and interpolated (a theta_0 without a head gets its zero-shot head); text: rebuilt from
    the text tower at every alpha; auto: stored if the fine-tuned checkpoint has a head, else text if the text tower
    moves, else zeroshot."""
    probe: str = "mini:photo"
    """Data set spec of the ID training examples on which the loss and its curvature are measured."""
    id: tuple[str, ...] = ()
    """Data set specs of the ID test sets."""
    ood: tuple[str, ...] = ()
    """Data set specs of the OOD test sets, or names of collections (imagenet-shifts, lipsum-imagenet, domainnet-real).
    NAME=SPEC puts a set into a group (styles=mini:sketch natural=mini:photo-dark); without NAME= the group is ood. Each
    group has its own mean, verdicts and advice. In a study file: ood: {styles: [...], natural: [...]}."""
    metrics: tuple[str, ...] = ()
    """Metrics to report in addition to top1 and each data set's primary metric: top5, mean_per_class, macro_f1,
    worst_group, pm0, pm10, ece, nll. Findings always use the primary metric (iWildCam: macro_f1; FMoW, Waterbirds:
    worst_group; video frames: pm0; others: top1)."""
    head_file: str | None = None
    """File that holds a classification head alone (task_vectors' head_DATASET.pt), for each checkpoint that has no
    head."""
    data_root: str | None = None
    """Folder under which named data sets and relative paths are looked up."""
    classnames: str | None = None
    """Text file with one class name per line, or ``imagenet``, in the order of the head; default: the names that the
    checkpoints tell. Where they tell none and the head is made from text, the names of the probe set's classes."""
    class_position: ClassPosition | None = None
    """Where the class name stands in a file's learnt prompts (CoOp): end, middle or front; default: end is assumed, as
    the report then says."""
    templates: str | None = None
    """Text file with one prompt template per line, ``{}`` for the class name, or ``imagenet``; default: the model's or
    a plain one."""

    alphas: tuple[float, ...] = ALPHAS
    """Points of the path: 0 is the zero-shot model, 1 the fine-tuned one."""
    extrapolate: bool = False
    """Allow alphas outside [0, 1]."""
    paths: tuple[PathName, ...] = ("linear",)
    """Which paths from theta_0 are evaluated: linear, which is always evaluated and first; lines (LiNeS, less change in
    shallow layers), ties (only the largest changes), dare (a random part of the changes, rescaled), monosoup (singular
    directions of the change reweighted), fisher (means weighted by Fisher information, which is computed on the probe
    set) and random (each weight is theta_1's with probability alpha). Each further path is evaluated at every alpha on
    every test set; its accuracies have the variant path:NAME. Curvature, stragglers, failure, repair and correlations
    are taken on the linear path only."""
    path_density: float | None = None
    """Fraction of the change's entries that the paths ties and dare keep; default: .2 for ties, .1 for dare, as their
    papers recommend."""
    granularity: Granularity = "module"
    """What counts as one layer: a tensor, a module, or a block."""
    measures: Annotated[tuple[str, ...], Doc(_measures_help())] = DEFAULT_MEASURES
    curvature_alphas: tuple[float, ...] | None = None
    """Points of ``alphas`` at which the measures are taken; default: all. With fewer points a study takes less time;
    loss and accuracy are measured at all ``alphas``."""
    perturbation_alphas: tuple[float, ...] | None = None
    """The alphas at which the measures of finite radius (sharpness_avg, sharpness_max ...) are taken; default: the
    first, the middle and the last. At one alpha they cost about three times what all other measures do."""
    perturbation_size: int | None = PERTURBATION_SIZE
    """Largest number of probe examples on which the measures of finite radius are taken, spread evenly over the probe
    set; null in a study file: all. The cost is proportional to it. The worst case over fewer examples is larger
    (m-sharpness, Foret et al. 2021, 2010.01412), so that only numbers of the same size can be compared."""
    dtype: Dtype = "float32"
    """Arithmetic of path, loss and curvature."""
    precision: Precision = "full"
    """Arithmetic of the matrix products inside Hessian-vector products and Gauss-Newton traces: full (that of dtype),
    tf32 (on a GPU) or bf16 (autocast); the error that this makes is measured and written into the manifest. Only
    finetune takes fp16."""
    device: Device = "auto"
    """Device to compute on; auto takes CUDA if it is available."""
    seed: int = 0
    """Seed of probes, noise, masks and bootstrap; nothing else is random."""
    probe_size: int = 1024
    """Number of ID training examples in the probe set. Andriushchenko et al. 2023 (2302.07011) take 1024, for ImageNet
    2048; what 2410.16476 takes is not public."""
    batch_size: int = 128
    """Number of examples per batch, on the probe set and in evaluation."""
    limit: int | None = None
    """Largest number of test examples per data set (a fixed, stratified choice); default: all."""
    atol_share: float = 0.001
    """Share of the whole model's trace that counts as a layer's own where that is smaller: a trace also stops at
    stderr <= rtol * atol_share * |trace of the whole model|. With a larger share layers that hold little of the trace
    take fewer products, and their errors become wider than rtol of themselves; 0 asks every layer for its own rtol,
    so that one whose trace is near zero takes all ``max_matvecs``. Trace methods per_example and controlled."""
    rtol: float = 0.05
    """Relative tolerance, a fraction below 1 (5 % is 0.05): a trace stops at stderr <= rtol * |estimate|, an eigenvalue
    at residual <= rtol * |lambda|. For the smaller end of the spectrum, once it is followed along alpha, only the part
    of the residual that matters counts (docs/measures.md)."""
    max_matvecs: int = 100
    """Largest number of Hessian-vector products for each (layer, alpha) and kind of estimate. If they are spent before
    rtol is reached, the status is not_converged."""
    trace_method: TraceMethod = "per_example"
    """How traces are estimated: per_example (a Rademacher vector for each example; the whole model's trace is the sum
    over its layers), controlled (per_example on the Hessian minus a part whose trace is computed from first derivatives
    and added: the part that comes through the image features where they can be told, else the Gauss-Newton part),
    hutchinson (a Rademacher vector shared by all examples, the reference), xtrace or hutchpp."""
    density_layers: tuple[str, ...] = ()
    """Layers whose spectral density is taken by stochastic Lanczos quadrature; ``(all)`` is the whole model."""
    density_alphas: tuple[float, ...] | None = None
    """The alphas at which the spectral density is taken; default: the first, the middle and the last."""
    eigenvectors: int = 0
    """Number of top eigenvectors of the Hessian to save for each of eigenvector_layers, as npz files in the folder
    eigenvectors/ of the run directory; each vector is as large as the layer."""
    eigenvector_layers: tuple[str, ...] = (ALL,)
    """Layers whose eigenvectors are saved; ``(all)`` is the whole model."""
    eigenvector_alphas: tuple[float, ...] | None = None
    """The alphas at which eigenvectors are saved; default: the first, the middle and the last."""
    noise_samples: int = 8
    """Number of Gaussian perturbations for sharpness_avg."""
    pgd_steps: int = 20
    """Number of Auto-PGD steps for sharpness_max."""
    rho_avg: float = 0.1
    """Radius of sharpness_avg (Andriushchenko et al. 2023 take .1, .2, .4 and .8 for ViTs). Several radii in one run:
    --measures sharpness_avg@0.1 sharpness_avg@0.2, and so for every measure of finite radius."""
    rho_linf: float = 0.002
    """Radius of sharpness_max and sharpness_avg_linf (Andriushchenko et al. 2023: .0005, .001, .002 and .004)."""
    rho_l2: float = 0.5
    """Radius of sharpness_max_l2 (Andriushchenko et al. 2023: .5, 1, 2 and 4)."""
    rho_geodesic: float = 0.05
    """Radius of sharpness_geodesic, the length of its geodesics. In units of it a head's weights are nearer to each
    other than in units of sharpness_max_l2, so that the same number perturbs attention more."""
    normalize_logits: bool = False
    """Take the measures of finite radius of the loss of normalised logits (f - mean f) / ||f - mean f||, which does not
    change when the logits are rescaled (Andriushchenko et al. 2023). The curvature stays that of the plain loss."""
    random_start: bool = False
    """Start worst-case searches from a random point of the ball instead of its middle."""
    eigen_method: EigenMethod = "lanczos"
    """How eigenvalues are computed: lanczos (followed along alpha), or power (power iteration from a random vector at
    every alpha, a slow reference; it needs a larger max_matvecs, and two eigenvalues that are close to each other in
    magnitude leave it not_converged)."""
    products: Products = "graph"
    """How Hessian-vector products are computed: graph (double backward on a kept gradient graph), or func (torch.func's
    jvp of grad, an independent and slower second route, which keeps no graph)."""

    agreement: bool = False
    """Compare every point of the path with both ends on every test set: predictions, probabilities, features, energies,
    margins (table agreement.csv). It takes one more pass over the test sets for each worker, and memory for the ends'
    outputs."""
    output_baselines: tuple[OutputBaseline, ...] = ()
    """Ensembles of the two ends' outputs to evaluate in addition to the path: ose (the mean of their probabilities) and
    vrf (a mean whose weight depends on the image, Zhu et al. 2024; the zero-shot model's failures are looked for in the
    training set of the probe, confidence is calibrated on the first ID set)."""
    vrf_images: int | None = None
    """Number of training images in which vrf looks for failures (a fixed, stratified choice); default: all, as in the
    released code."""
    vrf_k: int | None = None
    """Number of the nearest failure to which vrf measures an image's distance; default: round(1000 F / N) for F
    failures among N training images, as in the released code (.078 % of the failures for ImageNet)."""
    vrf_centre: float = 1.5
    """Squared distance at which vrf gives both ends the same weight, the paper's a."""
    vrf_width: float = 0.6
    """Width of vrf's sigmoid, the paper's b: the larger, the more slowly the weight changes with the distance."""
    ensembles: tuple[EnsembleKind, ...] = ()
    """Ensembles of the two ends' outputs to evaluate at every alpha in [0, 1]: logits, (1 - alpha) f_0 + alpha f_1
    (Wortsman et al. 2022), and probabilities, the same mean of softmax outputs. Their accuracies have the variant
    ensemble:KIND."""
    upgraded: str | None = None
    """A better zero-shot checkpoint, on which the path's change theta_1 - theta_0 is evaluated too (compatibility). The
    prompts of a prompt method are used there unchanged."""
    upgraded_model: str | None = None
    """Architecture of ``upgraded``; default: ``model``. Learnt prompts need a text tower of the same width there, a
    head needs image features of the same length, other changes a tower with the same tensors."""

    layer_alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points of the single-layer paths (instability, rewind, criticality); the first is 0, the last 1."""
    criticality_noise: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Noise levels of the criticality criterion, in multiples of the root mean square of the layer's weights."""
    straggler_criterion: Annotated[str, Doc(_criterion_help())] = DEFAULT_CRITERION
    straggler_rule: str | None = None
    """Scores that make a layer a straggler: ``null:Q`` (above a threshold that some layer exceeds with probability Q at
    most where no layer changes unlike the others; change:M only), ``mad:K`` (above the median by more than K robust
    standard deviations), ``sd:T`` (above the mean by more than T standard deviations), ``top:K`` (the K largest),
    ``abs:X`` (above X). Default: null:0.05 for change:M, mad:2 for every other criterion."""
    bootstrap: int = 1000
    """Number of bootstrap and permutation replicates."""
    level: float = 0.95
    """Nominal coverage of every interval; a higher level gives wider intervals."""

    densities: tuple[float, ...] = (0.5,)
    """Fractions of entries KEPT when the stragglers are made sparse."""
    targets: tuple[Target, ...] = ("delta", "weight")
    """delta: dropped entries return to theta_0; weight: dropped entries become 0."""
    selects: tuple[Select, ...] = ("random",)
    """Which entries are kept: random, a seeded choice; magnitude, the largest |delta| (target weight: |weight|)."""
    repair_alphas: tuple[float, ...] | None = (0.25, 0.5, 0.75)
    """Points of the repaired paths; they need not be among ``alphas``. null in a study file: the points of ``alphas``
    strictly between the ends."""
    masks: int = 5
    """Number of random masks of each repair, each set against control layers of its own (a random choice of layers with
    about as many parameters). The verdict on repairs needs at least 2; with few masks its interval is wide."""
    repair_limit: int = 2000
    """Largest number of test examples per data set on which repaired paths are evaluated, and the plain path that they
    are compared with (a fixed, stratified choice among those of ``limit``)."""
    primary_measure: str = PRIMARY_MEASURE
    """Measure of the comparison across pairs that is named before looking: the whole model's, with the OOD gain on each
    group of OOD sets. Verdicts rest on it; all other correlations are exploratory."""
    primary_alpha: float = PRIMARY_ALPHA
    """The alpha of that comparison; the nearest one that is measured is taken."""
    shipped_pairs: bool = False
    """Add the across-pair table that comes with the embedded world to the correlations (marked ``shipped``)."""

    threads: int = 0
    """CPU threads of each worker process; 0 means the cores that this process may use (affinity, cgroup quota) divided
    by jobs, and OMP_NUM_THREADS at most. The number is part of the config because sums in another order differ in the
    last bit."""
    jobs: int = 0
    """Number of processes that share the work. 0 means two on a CPU with two cores or more, because two processes of
    one thread each get more done than one of two threads. It means one on an accelerator, where torchrun starts the
    processes, and in a script that lacks the guard ``if __name__ == "__main__":``."""
    split_units: bool = False
    """The ranks of torchrun measure each unit of the probe set together (curvature, eigenvectors, single layers): every
    rank takes a share of the probe's batches, of which there have to be as many as ranks. For few units or a large
    probe set. Units that evaluate test images are shared out as ever. The number of ranks belongs to the run; results
    agree with those of one process up to rounding."""
    memory: float | None = None
    """Memory in GiB that kept gradient graphs may take in each worker; default: half of the
    host's free memory, or three quarters of a GPU's, / jobs."""
    image_cache: float = 4.0
    """Memory in GiB that decoded test images may take, in all jobs together. Sets that do not fit are decoded again for
    the repaired paths, and for every group of points that fits into memory together. With 0 no set stays, but for 128
    images of each, which are compared with the other sets beforehand."""
    title: str | None = None
    """Headline of the report."""
    question: str | None = None
    """The question printed on top of the report, answered by this run's numbers."""
    caveat: str | None = None
    """What a reader must know before the answer: printed above it in the report and first in the terminal."""
    tags: dict[str, str] = field(default_factory=dict)
    """Notes of your own, which are kept in the manifest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ood", flat_ood(self.ood))
        for name, value in checked_fields(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "id", expand_specs(self.id))  # a collection's name stands for its sets
        object.__setattr__(self, "ood", expand_ood(self.ood))
        _check(self)
        object.__setattr__(self, "paths", ("linear", *(p for p in self.paths if p != "linear")))

    @property
    def processes(self) -> int:
        """The number of processes that share the work. ``jobs`` 0 counts as one wherever no study is run."""
        return self.jobs or 1

    @property
    def ood_groups(self) -> dict[str, str]:
        """OOD set spec -> the name of its group, in the order given."""
        return ood_groups(self.ood)

    @property
    def measured_alphas(self) -> tuple[float, ...]:
        """The points at which the sharpness measures are taken."""
        return self.alphas if self.curvature_alphas is None else self.curvature_alphas

    @property
    def repaired_alphas(self) -> tuple[float, ...]:
        """Points of the repaired paths; none where no density is given."""
        inner = tuple(a for a in self.alphas if 0 < a < 1) if self.repair_alphas is None else self.repair_alphas
        return inner if self.densities else ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; ``StudyConfig.from_dict`` turns it back."""
        data = plain(dataclasses.asdict(self))
        later = ("covariates", "setting", "base")
        data["pairs"] = [{k: v for k, v in pair.items() if k not in later or v} for pair in data["pairs"]]
        return data

    def check_complete(self) -> None:
        """Raise ConfigError where something is missing that every study needs: a pair, a test set, a measure.

        Nothing heavy is imported and no file opened for it, so that a mistake is told at once.
        """
        if not self.pairs:
            raise ConfigError(
                "pairs: nothing to analyse: give two checkpoints (--zeroshot A --finetuned B), or a study file "
                "(sharpscope run study.yaml).\n'sharpscope demo' needs neither."
            )
        if not self.id and not self.ood:
            raise ConfigError("id, ood: give at least one test set (--id SPEC --ood SPEC ...).")
        _, measure = parse_criterion(self.straggler_criterion)
        if measure and measure not in self.measures:  # else it would be found out when everything has been computed
            free = ", ".join(c.name for c in CRITERIA.values() if not c.takes_measure)
            raise ConfigError(
                f"straggler_criterion: '{self.straggler_criterion}' needs {measure} among measures.\n"
                f"Remedy: add it, or choose a criterion that needs no measure ({free})."
            )
        for role, specs in (("probe", (self.probe,)), ("id", self.id), ("ood", tuple(self.ood_groups))):
            check_classes(specs, role)
        mini = [read_spec(spec).kind == "mini" for spec in (self.probe, *self.id, *self.ood_groups)]
        if mini[0] and not any(mini[1:]) and self.model != MINI:
            raise ConfigError(
                f"probe: {self.probe} has pictures of the embedded world, and nothing else in this study is of it.\n"
                "Remedy: --probe SPEC with training images of the task (imagenet@train, folder:PATH/train ...)."
            )
        if both := [spec for spec in self.ood_groups if spec in self.id]:
            raise ConfigError(
                f"ood: '{shown(both[0], 60)}' is among id too; a set is in distribution or out of it.\n"
                "Remedy: leave it out of one of the two."
            )

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, source: str = "config") -> StudyConfig:
        """Build from plain data.

        Keys of older versions of sharpscope are taken too (``config.spellings``). Raises ConfigError naming ``source``,
        the key and, for an unknown one, the nearest that is known.
        """
        try:
            data = current_keys(data)
            check_keys(data, cls)
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


def _check(c: StudyConfig) -> None:
    _check_alphas("alphas", c.alphas, c.extrapolate)
    for name in ("curvature_alphas", "perturbation_alphas", "density_alphas", "eigenvector_alphas", "repair_alphas"):
        if (alphas := getattr(c, name)) is not None:
            _check_alphas(name, alphas, c.extrapolate)
    if not c.alphas:
        raise ConfigError("alphas: give at least one, e.g. --alphas 0 0.5 1.")
    _check_alphas("layer_alphas", c.layer_alphas, False)
    if len(c.layer_alphas) < 2 or (c.layer_alphas[0], c.layer_alphas[-1]) != (0.0, 1.0):
        raise ConfigError(f"layer_alphas: has to go from 0 to 1, got {list(c.layer_alphas)}.")
    for name in ("curvature_alphas", "eigenvector_alphas"):
        if not set(getattr(c, name) or ()) <= set(c.alphas):
            raise ConfigError(f"{name}: each must be one of alphas.")
    of = "alphas" if c.curvature_alphas is None else "curvature_alphas"
    for name in ("perturbation_alphas", "density_alphas"):
        if not set(getattr(c, name) or ()) <= set(c.measured_alphas):
            raise ConfigError(f"{name}: each must be one of {of}.")
    if c.curvature_alphas == ():
        raise ConfigError("curvature_alphas: give at least one point; to measure no curvature, set measures: [].")
    if c.precision == "fp16":
        raise ConfigError(
            "precision: only finetune takes fp16; second derivatives leave float16's range (6e-8 to 65504), and only "
            "training scales its loss against that.\nRemedy: bf16, which has the range of float32."
        )
    if c.precision != "full" and c.dtype != "float32":
        raise ConfigError(f"precision: {c.precision} goes with dtype float32 only, got {c.dtype}.")
    expand_measures(c.measures)
    MEASURES.find(c.primary_measure, "primary_measure")
    _check_alphas("primary_alpha", (c.primary_alpha,), c.extrapolate)
    check_products(c)
    check_metrics(c.metrics)
    criterion, _ = parse_criterion(c.straggler_criterion)
    if c.straggler_rule is not None and parse_rule(c.straggler_rule)[0] == "null" and not criterion.calibrated:
        with_null = ", ".join(x.spelling for x in CRITERIA.values() if x.calibrated)
        raise ConfigError(
            f"straggler_rule: '{c.straggler_rule}' needs a criterion with a null, and {c.straggler_criterion} has "
            f"none; choose {with_null}, or mad:K, sd:T, top:K or abs:X."
        )
    check_ranges(
        c,
        least={
            "jobs": 0,
            "threads": 0,
            "image_cache": 0,
            "atol_share": 0,
            "limit": 1,
            "perturbation_size": 2,
            "vrf_images": 1,
            "vrf_k": 1,
            "eigenvectors": 0,
        }
        | dict.fromkeys(_COUNTS, 1),
        positive=(
            "rtol",
            "rho_avg",
            "rho_linf",
            "rho_l2",
            "rho_geodesic",
            "memory",
            "criticality_noise",
            "vrf_width",
        ),
    )
    if c.upgraded_model is not None and c.upgraded is None:
        raise ConfigError("upgraded_model: names the architecture of upgraded, and upgraded is missing.")
    if not 0 < c.level < 1:
        raise ConfigError(f"level: needs a number between 0 and 1, e.g. 0.95, got {c.level}.")
    for density in c.densities:
        if not 0 <= density <= 1:
            raise ConfigError(f"densities: {density} is outside [0, 1]; density is the fraction of entries KEPT.")
    lists = (
        "id",
        "ood",
        "metrics",
        "measures",
        "density_layers",
        "eigenvector_layers",
        "densities",
        "targets",
        "selects",
    )
    if not c.criticality_noise:
        raise ConfigError("criticality_noise: needs at least one noise level, e.g. 1; fewer levels cost less.")
    for name in (*lists, "criticality_noise", "output_baselines", "ensembles", "paths"):
        values = getattr(c, name)
        if name == "ood":
            values = tuple(split_group(v)[1] for v in values)
        if twice := [v for i, v in enumerate(values) if v in values[:i]]:
            raise ConfigError(f"{name}: '{shown(twice[0], 60)}' is given twice.")
    check_path_density(c.path_density, c.paths, "path_density")
    bent = [p for p in c.paths if not PATHS[p].extrapolates]
    if bent and (outside := [a for a in c.alphas if not 0 <= a <= 1]):
        raise ConfigError(f"paths: {bent[0]} has no points outside [0, 1], and alphas has {outside[0]:g}.")
    if c.density_alphas is not None and not c.density_layers:
        raise ConfigError("density_alphas: says where density_layers are looked at, and no layer is named there.")
    if not c.eigenvectors:
        for name in ("eigenvector_layers", "eigenvector_alphas"):
            if getattr(c, name) != getattr(type(c), name):
                raise ConfigError(f"{name}: says where eigenvectors are saved, and eigenvectors is 0.")
    elif not c.eigenvector_layers or c.eigenvector_alphas == ():
        raise ConfigError("eigenvectors: needs a layer in eigenvector_layers and an alpha in eigenvector_alphas.")
    for i, pair in enumerate(c.pairs):
        _check_name(f"pairs[{i}].name", pair.name)
    names = [p.name for p in c.pairs]
    if len(set(names)) != len(names):
        raise ConfigError(f"pairs: every pair needs its own name, got {shown(', '.join(names))}.")


def _check_name(where: str, name: str) -> None:
    """A pair's name stands in tables, captions and the keys of units: one line, no slash, none of the tables' words."""
    if "/" in name or not name.isprintable():
        better = re.sub(r"[^\w.+-]+", "-", name).strip("-") or "pair"
        raise ConfigError(
            f"{where}: '{shown(name, 60)}' has a slash or a control character in it, and units of work are filed by "
            f"the pair's name.\nRemedy: another name, e.g. {shown(better, 60)}."
        )
    if name in (PAIRS, ALL):
        raise ConfigError(f"{where}: '{name}' is a word of the tables' own; give the pair another name.")


VRF_FIELDS = ("vrf_images", "vrf_k", "vrf_centre", "vrf_width")
"""The settings of the output baseline vrf."""
_COUNTS = (
    "probe_size", "batch_size", "max_matvecs", "noise_samples", "pgd_steps", "bootstrap", "masks", "repair_limit",
)  # fmt: skip


def _check_alphas(name: str, alphas: tuple[float, ...], extrapolate: bool) -> None:
    if bad := [alpha for alpha in alphas if not math.isfinite(alpha)]:
        raise ConfigError(f"{name}: {bad[0]} is not a finite number.")
    if len(set(alphas)) != len(alphas):
        raise ConfigError(f"{name}: duplicated values in {list(alphas)}; give every alpha once.")
    if list(alphas) != sorted(alphas):
        raise ConfigError(f"{name}: {list(alphas)} is not in increasing order.")
    for alpha in alphas:
        if not extrapolate and not 0 <= alpha <= 1:
            raise ConfigError(f"{name}: {alpha} is outside [0, 1]; extrapolation has to be asked for (--extrapolate).")
