"""The one description of a study: command line, YAML file, notebook and manifest are all this object.

No torch here: ``sharpscope --help`` imports this module and must answer at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.schema import MEASURES

__all__ = [
    "ALPHAS",
    "DEFAULT_MEASURES",
    "Device",
    "Dtype",
    "Granularity",
    "HeadMode",
    "PairConfig",
    "StudyConfig",
    "expand_measures",
]

Granularity = Literal["tensor", "module", "block"]
HeadMode = Literal["zeroshot", "stored", "text"]
Dtype = Literal["float32", "float64"]
Device = Literal["auto", "cpu", "cuda"]
Target = Literal["delta", "weight"]
Select = Literal["random", "magnitude"]

ALPHAS: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(11))
DEFAULT_MEASURES: tuple[str, ...] = (
    "hessian_trace",
    "weighted_trace",
    "ggn_trace",
    "lambda_max",
    "lambda_min",
    "lambda_abs",
    "sharpness_avg",
    "sharpness_max",
    "sharpness_max_l2",
)


@dataclass(frozen=True)
class PairConfig:
    """Two checkpoints of one architecture: the zero-shot one and what fine-tuning made of it."""

    name: str
    """How tables and figures call the pair."""
    zeroshot: str
    """Checkpoint file of theta_0 (or ``mini:zeroshot``)."""
    finetuned: str
    """Checkpoint file of theta_1 (or ``mini:success``, ``mini:failure`` ...)."""


@dataclass(frozen=True)
class StudyConfig:
    """Everything that decides the numbers of a run; a run directory belongs to exactly one of these."""

    pairs: tuple[PairConfig, ...] = ()
    """The pairs to analyse, side by side in one report."""
    model: str = "ViT-B-32"
    """open_clip model name, path of an open_clip config JSON, or ``mini``."""
    head: HeadMode = "stored"
    """zeroshot: built once from theta_0's text tower, frozen; stored: taken from the checkpoints and interpolated (theta_0
    without one gets its zero-shot head); text: rebuilt from the text tower at every alpha."""
    probe: str = "mini:photo"
    """Data set spec of the ID training examples on which the loss and its curvature are measured."""
    id: tuple[str, ...] = ()
    """Data set specs of the ID test sets."""
    ood: tuple[str, ...] = ()
    """Data set specs of the OOD test sets; their average is reported with their names."""
    data_root: str | None = None
    """Folder under which relative ``folder:`` paths are looked up."""
    classnames: str | None = None
    """Text file with one class name a line; default: the probe set's own."""
    templates: str | None = None
    """Text file with one prompt template a line, ``{}`` for the class name; default: the model's or one plain prompt."""

    alphas: tuple[float, ...] = ALPHAS
    """Points of the path, on the fine-tuned side."""
    extrapolate: bool = False
    """Allow alphas outside [0, 1]."""
    granularity: Granularity = "module"
    """What a layer is: every tensor, every module, or every block."""
    measures: tuple[str, ...] = DEFAULT_MEASURES
    """Which sharpness measures to take for every layer and the whole model."""
    adversarial_alphas: tuple[float, ...] | None = None
    """The alphas at which the expensive Auto-PGD measures are taken; default: all."""
    dtype: Dtype = "float32"
    """Arithmetic of path, loss and curvature."""
    device: Device = "auto"
    """Where to compute; auto takes CUDA when there is one."""
    seed: int = 0
    """Seed of probes, noise, masks and bootstrap; nothing else is random."""
    probe_size: int = 1024
    """How many ID training examples make the probe set (2410.16476 and Andriushchenko et al. 2023: 1024)."""
    batch_size: int = 128
    """Examples a batch, for the probe and the evaluation."""
    eval_limit: int | None = None
    """At most this many test examples a data set (a fixed, stratified choice); default: all."""
    rtol: float = 0.05
    """Relative tolerance: traces stop at stderr <= rtol * |estimate|, eigenvalues at residual <= rtol * |lambda|."""
    max_matvecs: int = 100
    """Hessian-vector products at most for each (layer, alpha) and kind of estimate; spent without reaching rtol: not_converged."""
    noise_samples: int = 8
    """Gaussian perturbations for sharpness_avg."""
    pgd_steps: int = 20
    """Auto-PGD steps for sharpness_max."""
    rho_avg: float = 0.1
    """Radius of sharpness_avg (Andriushchenko et al. 2023's grid for adaptive ViT: .1 .2 .4 .8)."""
    rho_linf: float = 0.002
    """Radius of sharpness_max (their grid: .0005 .001 .002 .004)."""
    rho_l2: float = 0.5
    """Radius of sharpness_max_l2 (their grid: .5 1 2 4)."""

    criticality_noise: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Noise levels of the criticality criterion, in units of the layer's own weight rms."""
    straggler_measure: str = "hessian_trace"
    """Which sharpness measure decides the stragglers that are repaired; the other criteria are reported beside it."""
    straggler_rule: str = "mad:2"
    """How scores become a set: ``mad:K`` (median + K robust sd), ``sd:T`` (mean + T sd), ``top:K``, ``abs:X``."""
    bootstrap: int = 1000
    """Bootstrap and permutation replicates."""
    level: float = 0.95
    """Coverage of every interval."""

    densities: tuple[float, ...] = (0.5, 0.9)
    """Fractions of entries KEPT when the stragglers are made sparse."""
    targets: tuple[Target, ...] = ("delta", "weight")
    """delta: dropped entries return to theta_0; weight: dropped entries become 0."""
    selects: tuple[Select, ...] = ("random", "magnitude")
    """Which entries are kept: a random choice, or the largest |delta| (|weight|)."""
    repair_alphas: tuple[float, ...] | None = None
    """Points of the repaired paths; default: those of ``alphas`` strictly between the ends."""
    shipped_pairs: bool = False
    """Add the across-pair table that comes with the embedded world to the correlations (marked ``shipped``)."""

    threads: int = 0
    """CPU threads of each worker; 0: cores / jobs. Part of the config because sums in another order differ in the last bit."""
    jobs: int = 1
    """Worker processes."""
    memory: float | None = None
    """GiB that kept gradient graphs may take in each worker; default: half of what is free / jobs."""
    title: str | None = None
    """Headline of the report."""
    question: str | None = None
    """The question printed on top of the report, answered by this run's numbers."""
    tags: dict[str, str] = field(default_factory=dict)
    """Free notes kept in the manifest."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def path_alphas(self) -> tuple[float, ...]:
        return self.alphas

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON and YAML; ``StudyConfig.from_dict`` turns it back."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: dict[str, Any], *, source: str = "config") -> StudyConfig:
        """Build from plain data; raises ConfigError naming an unknown key and its nearest known one."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise ConfigError(f"{source}: unknown key '{shown(key)}'.{did_you_mean(str(key), known)}")
        values = {k: _tupled(v) for k, v in data.items()}
        if "pairs" in values:
            values["pairs"] = tuple(_pair(p, source) for p in data["pairs"])
        return cls(**values)


def expand_measures(names: tuple[str, ...]) -> tuple[str, ...]:
    """The measures in canonical order without repeats; raises ConfigError for an unknown name."""
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"measures: unknown measure '{shown(name)}'.{did_you_mean(name, MEASURES)} Known: {', '.join(MEASURES)}.")
    return tuple(m for m in MEASURES if m in names)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list) else value


def _pair(data: Any, source: str) -> PairConfig:
    if isinstance(data, PairConfig):
        return data
    wanted = [f.name for f in dataclasses.fields(PairConfig)]
    if not isinstance(data, dict) or set(data) != set(wanted):
        raise ConfigError(f"{source}: every pair needs exactly the keys {', '.join(wanted)}; got {shown(data)}.")
    return PairConfig(**{k: str(v) for k, v in data.items()})


def _check(c: StudyConfig) -> None:
    for name, kind in (("head", HeadMode), ("granularity", Granularity), ("dtype", Dtype), ("device", Device)):
        value = getattr(c, name)
        if value not in get_args(kind):
            raise ConfigError(f"{name}: '{shown(value)}' is none of {', '.join(get_args(kind))}.{did_you_mean(str(value), get_args(kind))}")
    _check_alphas("alphas", c.alphas, c.extrapolate)
    if not c.alphas:
        raise ConfigError("alphas: give at least one, e.g. --alphas 0 0.5 1.")
    for name in ("adversarial_alphas", "repair_alphas"):
        value = getattr(c, name)
        if value is not None:
            _check_alphas(name, value, c.extrapolate)
    if c.adversarial_alphas is not None and not set(c.adversarial_alphas) <= set(c.alphas):
        raise ConfigError("adversarial_alphas: each must be one of alphas.")
    expand_measures(c.measures)
    for name in ("probe_size", "batch_size", "max_matvecs", "noise_samples", "pgd_steps", "bootstrap", "jobs"):
        if not (isinstance(getattr(c, name), int) and getattr(c, name) >= 1):
            raise ConfigError(f"{name}: needs a whole number of at least 1, got {shown(getattr(c, name))}.")
    if c.eval_limit is not None and c.eval_limit < 1:
        raise ConfigError(f"eval_limit: needs a whole number of at least 1, got {c.eval_limit}.")
    for name in ("rtol", "rho_avg", "rho_linf", "rho_l2"):
        if not (math.isfinite(getattr(c, name)) and getattr(c, name) > 0):
            raise ConfigError(f"{name}: needs a positive number, got {shown(getattr(c, name))}.")
    if not 0 < c.level < 1:
        raise ConfigError(f"level: needs a number between 0 and 1, got {c.level}.")
    for density in c.densities:
        if not 0 <= density <= 1:
            raise ConfigError(f"densities: {density} is outside [0, 1]; density is the fraction of entries KEPT.")
    names = [p.name for p in c.pairs]
    if len(set(names)) != len(names):
        raise ConfigError(f"pairs: every pair needs its own name, got {', '.join(names)}.")
    parse_rule(c.straggler_rule)


def _check_alphas(name: str, alphas: tuple[float, ...], extrapolate: bool) -> None:
    if len(set(alphas)) != len(alphas):
        raise ConfigError(f"{name}: duplicated values in {list(alphas)}; give every alpha once.")
    if list(alphas) != sorted(alphas):
        raise ConfigError(f"{name}: {list(alphas)} is not in increasing order.")
    for alpha in alphas:
        if not math.isfinite(alpha) or (not extrapolate and not 0 <= alpha <= 1):
            raise ConfigError(f"{name}: {alpha} is outside [0, 1]; extrapolation has to be asked for (--extrapolate).")


def parse_rule(rule: str) -> tuple[str, float]:
    """``"mad:2"`` -> ``("mad", 2.0)``; raises ConfigError for anything that is not a straggler rule."""
    kind, _, number = rule.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("mad", "sd", "top", "abs") or not math.isfinite(value):
        raise ConfigError(f"straggler_rule: '{shown(rule)}' is none of mad:K, sd:T, top:K, abs:X.")
    return kind, value
