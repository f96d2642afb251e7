"""All names of the project and the facts behind them: layer groups, measures, metrics, criteria, modes, collections.

Every name is defined here once, and an unknown name is an error. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, get_args

from sharpscope.errors import ConfigError, did_you_mean, listing, shown

__all__ = [
    "ACCURACY_FLAGS",
    "ADVICE",
    "AGAINST",
    "AGREEMENT",
    "ALL",
    "ALPHA_SIDES",
    "AMONG_LARGEST",
    "AVERAGE",
    "BASELINE",
    "BASES",
    "BEST",
    "BUDGETS",
    "BY_COST",
    "CANNOT",
    "CLAIMS",
    "COLLECTIONS",
    "CONTRASTS",
    "CORRELATIONS",
    "CRITERIA",
    "DEFAULT_CRITERION",
    "DEFAULT_GROUP",
    "DENSE",
    "DOES_NOT_HOLD",
    "FISHER_FILES",
    "FIXED_ALPHAS",
    "FLAGS",
    "GROUPS",
    "GROUP_TITLES",
    "HOLDS",
    "LEARNING_RATE",
    "MEASURES",
    "METRICS",
    "OOD_MEAN",
    "OTHERS",
    "OUTPUT_BASELINES",
    "PAIRS",
    "PATHS",
    "PRIMARY_ALPHA",
    "PRIMARY_MEASURE",
    "PRIMARY_METRICS",
    "PROBE",
    "REMARKS",
    "SIDE_BY_SIDE",
    "SITUATIONS",
    "STATUSES",
    "STRAGGLERS",
    "SUMMED_TRACES",
    "TARGET",
    "UPGRADED",
    "ZERO_SHOT",
    "AddsUp",
    "Agreement",
    "AlphaFacts",
    "AlphaSide",
    "Base",
    "Cost",
    "Criterion",
    "Device",
    "Dtype",
    "EigenMethod",
    "EnsembleKind",
    "FigureStyle",
    "Flag",
    "Granularity",
    "Group",
    "HeadKind",
    "HeadMode",
    "LayerContrast",
    "Measure",
    "Measures",
    "MergeMethod",
    "Origin",
    "OutputBaseline",
    "PaperStyle",
    "PathFacts",
    "PathName",
    "Precision",
    "PrintedForm",
    "PrintedTable",
    "Products",
    "ResultFile",
    "ResultTable",
    "Select",
    "SelectOrScore",
    "Situation",
    "Standing",
    "Status",
    "Target",
    "TraceMethod",
    "TrackerName",
    "Words",
    "__version__",
    "budget_of",
    "check_metrics",
    "check_path_density",
    "criterion_spellings",
    "draws_masks",
    "ensemble_variant",
    "expand_measures",
    "from_outside",
    "parse_criterion",
    "parse_rule",
    "path_variant",
    "weight_on",
]

__version__: Final = "0.1.0"
"""The version of sharpscope; a run directory belongs to one version."""

Granularity = Literal["tensor", "module", "block"]
HeadKind = Literal["zeroshot", "stored", "text"]
"""The kinds of heads: built once from theta_0's text tower | taken from the checkpoints | rebuilt at every point."""
HeadMode = Literal["auto", "zeroshot", "stored", "text"]
"""``HeadKind``, and auto: the kind that the checkpoints ask for."""
Dtype = Literal["float32", "float64"]
Precision = Literal["full", "tf32", "bf16", "fp16"]
"""The arithmetic of matrix products: full (that of the weights) | tf32 (float32 with 10 bits of mantissa, on a GPU) |
bf16 | fp16 (autocast to bfloat16 or float16). A command that cannot use one of them refuses it and says why."""
Device = Literal["auto", "cpu", "cuda"]
Target = Literal["delta", "weight"]
Select = Literal["random", "magnitude"]
SelectOrScore = Literal["random", "magnitude", "score"]
"""``Select``, and score: the largest scores of a file. A study has no such file; the command sparsify takes one."""
OutputBaseline = Literal["ose", "vrf"]
EnsembleKind = Literal["logits", "probabilities"]
"""The outputs that an ensemble along alpha mixes."""
Base = Literal["finetuned", "zeroshot", "midpoint"]
Group = Literal["straggler", "random_layers", "all_layers", "everything"]
AlphaSide = Literal["finetuned", "zeroshot"]
"""The model whose weight is PRINTED as alpha; stored tables always have alpha on the fine-tuned side."""
FISHER_FILES: Final = ("fisher_0.safetensors", "fisher_1.safetensors")
"""The files of the Fisher information of theta_0 and of theta_1, in the folder that is asked for."""
TrackerName = Literal["tensorboard", "wandb"]
"""The experiment trackers that curves are written for."""
FigureStyle = Literal["paper", "screen"]
"""The look of written figures: that of a printed page | that of the report."""
PrintedForm = Literal["text", "markdown", "latex", "csv"]
"""The forms in which the command table prints."""
ResultTable = Literal["sharpness", "advice", "verdicts"]
PrintedTable = Literal["accuracy", "sharpness", "advice", "verdicts"]
"""``ResultTable``, and accuracy: the tables that the command table prints."""
ResultFile = Literal["wise-ft", "clip-benchmark"]
"""Other tools whose result files are written."""
PaperStyle = Literal["wise-ft", "alphas"]
"""The rows of a printed table of accuracies: those of WiSE-FT's Tables 1 and 3 | every alpha, as in its Tables 4, 5."""
PathName = Literal["linear", "lines", "fisher", "ties", "dare", "monosoup", "random"]
MergeMethod = Literal["uniform", "greedy", "model-stock", "ties", "dare"]
EigenMethod = Literal["lanczos", "power"]
Products = Literal["graph", "func"]
ClassPosition = Literal["end", "middle", "front"]
"""Where a learnt prompt has the class name: behind the context (CoOp's default) | between its halves | before it."""
TraceMethod = Literal["per_example", "controlled", "hutchinson", "xtrace", "hutchpp"]
SUMMED_TRACES: Final[tuple[TraceMethod, ...]] = ("per_example", "controlled")
"""The trace methods whose layers are independent: the whole model's trace is the sum of its layers' traces."""


def check_metrics(names: tuple[str, ...]) -> None:
    """Check the names of metrics.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        if name not in METRICS:
            near = did_you_mean(name, METRICS) or f" Known: {', '.join(METRICS)}."
            raise ConfigError(f"metrics: unknown metric '{shown(name, 60)}'.{near}")


def parse_criterion(text: str, key: str = "straggler_criterion") -> tuple[Criterion, str]:
    """``"change:hessian_trace"`` -> (criterion ``change``, ``"hessian_trace"``); ``"rewind"`` -> (``rewind``, ``""``).

    Raises:
        ConfigError: an unknown criterion or measure, a missing measure, or a measure for a criterion that takes none.
    """
    name, _, measure = text.partition(":")
    names = (*CRITERIA, *CRITERIA.not_loaded())
    if name not in names:
        known = ", ".join(criterion_spellings())
        raise ConfigError(
            f"{key}: '{shown(text, 60)}' is none of {known} (where M is a measure).{did_you_mean(name, names)}"
        )
    criterion = CRITERIA.find(name, key)
    if criterion.takes_measure and not measure:
        raise ConfigError(f"{key}: '{name}' needs a measure, e.g. {name}:hessian_trace.")
    if measure and not criterion.takes_measure:
        raise ConfigError(f"{key}: '{shown(text, 60)}': {name} takes no measure; write {name} alone.")
    if measure:
        expand_measures((measure,), key)
    return criterion, measure


def criterion_spellings() -> tuple[str, ...]:
    """The spellings of all known criteria; those of entry points that are not loaded yet come last."""
    return (*(c.spelling for c in CRITERIA.values()), *CRITERIA.not_loaded())


def parse_rule(rule: str) -> tuple[str, float]:
    """``"mad:2"`` -> ``("mad", 2.0)``.

    Raises:
        ConfigError: ``rule`` is not a straggler rule.
    """
    kind, _, number = rule.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("mad", "sd", "top", "abs", "null") or not math.isfinite(value):
        raise ConfigError(f"straggler_rule: '{shown(rule, 60)}' is none of mad:K, sd:T, top:K, abs:X, null:Q.")
    if kind == "null" and not 0 < value < 1:
        raise ConfigError(f"straggler_rule: '{rule}' needs a probability in (0, 1), e.g. null:0.05.")
    if kind == "top" and not (value >= 0 and value.is_integer()):
        raise ConfigError(f"straggler_rule: '{rule}' needs a whole number of layers, e.g. top:3.")
    return kind, value


ALL: Final = "(all)"
"""The layer name of the whole model: all parameters on which the logits depend at once, whether they move or not."""

DENSE: Final = "dense"
"""The variant name of the plain interpolation path, without any repair."""

STRAGGLERS: Final = "(stragglers)"
"""The layer name of each pair's own straggler layers taken together."""

OTHERS: Final = "(others)"
"""The layer name of all layers that are not stragglers of their pair, taken together."""

BEST: Final = "(best)"
"""The layer name of the single layer with the largest |correlation|, whichever it is."""

PRIMARY_MEASURE: Final = "hessian_trace"
PRIMARY_ALPHA: Final = 0.5
"""The measure and the alpha of the primary comparisons, which are fixed before any result is seen. A study can name
others."""

PRIMARY: Final = "primary"
EXPLORATORY: Final = "exploratory"
"""The families of correlations: tests that were named before looking, and those that are looked through for more."""

LEARNING_RATE: Final = "learning_rate"
"""The covariate with the largest influence on a fine-tuning. Sharpness is useful only if it predicts more than this
covariate does."""


BY_COST: Final = "instability"
"""The only published straggler criterion (arXiv 2410.16476): what a layer's own interpolation costs in loss."""


@dataclass(frozen=True)
class LayerContrast:
    """The layer names of rows that compare chosen layers with others."""

    chosen: str
    """The layer name of the chosen layers of every pair taken together."""
    others: str
    """|correlation| of the chosen layers minus that of all other layers taken together."""
    random: str
    """|correlation| of the chosen layers minus the median over random sets of as many layers; p is the share of the
    random sets that reach the chosen layers' |correlation|."""
    title: str
    """What the chosen layers are called in sentences."""


CONTRASTS: Final[Mapping[str, LayerContrast]] = {
    "stragglers": LayerContrast(STRAGGLERS, "(stragglers - others)", "(stragglers - random)", "the straggler layers"),
    "instability": LayerContrast(
        "(instability)",
        "(instability - others)",
        "(instability - random)",
        "the layers whose own interpolation costs most",
    ),
}
"""Claim -> the comparison of layers on which its verdict rests: those that the deciding criterion chooses, and those
that ``BY_COST`` chooses."""

GROUP_TITLES: Final[dict[str, str]] = {
    ALL: "whole model",
    STRAGGLERS: "stragglers",
    OTHERS: "all other layers",
    BEST: "best single layer",
    **{
        name: title
        for c in CONTRASTS.values()
        for name, title in (
            (c.others, f"{c.title}, less all others"),
            (c.random, f"{c.title}, less random sets"),
        )
    },
    CONTRASTS["instability"].chosen: "layers whose own path costs most",
}
"""Every layer name that stands for several layers, in the order of the tables -> its title in figures."""

REMARKS: Final = "Remarks:"
"""The word in the evidence of a verdict behind which remarks begin. The summary of a run shows those of conclusions and
leaves all others to the report."""

PAIRS: Final = "(pairs)"
"""The ``pair`` of rows that are computed over pairs, with one point per pair."""

OOD_MEAN: Final = "ood_mean"
"""The role of the mean over the OOD sets, and the data set of failure flags that are raised on it."""

DEFAULT_GROUP: Final = "ood"
"""The group of OOD sets that are given without a group's name."""

PROBE: Final = "probe"
"""The data set of the failure flag that is raised on the probe loss."""


@dataclass(frozen=True)
class PathFacts:
    """What follows from the name of a path from theta_0. Every path starts at theta_0 bit for bit."""

    title: str
    """Its name in the report and in figures."""
    text: str
    """What its points are, in one phrase."""
    ends_at_theta_1: bool
    """Whether its point at alpha = 1 is theta_1 bit for bit; otherwise it is an edit of theta_1."""
    extrapolates: bool
    """Whether it has points outside [0, 1]."""
    density: float | None = None
    """The fraction of the change's entries that it keeps by default; None for a path that keeps every entry."""


PATHS: Final[Mapping[PathName, PathFacts]] = {
    "linear": PathFacts("linear path", "the straight line to theta_1 (Wortsman et al. 2022)", True, True),
    "lines": PathFacts(
        "LiNeS path (Wang et al. 2024)", "the straight line to theta_1 with less change in shallow layers", False, True
    ),
    "fisher": PathFacts(
        "Fisher path (Matena & Raffel 2022)", "means weighted by the Fisher information of both ends", True, False
    ),
    "ties": PathFacts(
        "TIES path (Yadav et al. 2023)", "the straight line to theta_1 with only its largest changes", False, True, 0.2
    ),
    "dare": PathFacts(
        "DARE path (Yu et al. 2024)", "the straight line to theta_1 with few, rescaled changes", False, True, 0.1
    ),
    "monosoup": PathFacts(
        "MonoSoup path (Abdollahpoorrostam et al. 2026)",
        "the straight line to theta_1 with the singular directions of its change reweighted",
        False,
        True,
    ),
    "random": PathFacts(
        "random path (Wortsman et al. 2022)", "each weight is theta_1's with probability alpha", True, False
    ),
}
"""Every path that can be evaluated, the linear one first. The densities are those that the papers recommend: the
largest 20 % (Yadav et al., arXiv 2306.01708), a random 10 % (Yu et al., arXiv 2311.03099)."""


def check_path_density(density: float | None, paths: Iterable[PathName], key: str) -> None:
    """Check the fraction of a change's entries that paths keep.

    Raises:
        ConfigError: a density outside of (0, 1], or one where no path has any.
    """
    having = [name for name, facts in PATHS.items() if facts.density is not None]
    if density is not None and not 0 < density <= 1:
        raise ConfigError(f"{key}: {density} is outside (0, 1]; density is the fraction of entries KEPT.")
    if density is not None and not any(p in having for p in paths):
        raise ConfigError(f"{key}: has no effect without the path {' or '.join(having)}; the others keep every entry.")


def path_variant(path: str) -> str:
    """The variant of a path's accuracy rows: ``dense`` for the linear path, ``path:NAME`` for every other.

    >>> path_variant("linear"), path_variant("lines")
    ('dense', 'path:lines')
    """
    return DENSE if path == "linear" else f"path:{path}"


@dataclass(frozen=True)
class AlphaFacts:
    """How alpha is printed as the weight of one of the two models."""

    symbol: str
    text: str
    """The sentence, without its full stop, that says whose weight alpha is."""
    path: str
    """The point of the path at that weight."""
    source: str
    """Authors and year of the paper that writes it so."""


ALPHA_SIDES: Final[Mapping[AlphaSide, AlphaFacts]] = {
    "finetuned": AlphaFacts(
        "α", "α is the weight of the fine-tuned model", "θ(α) = (1 − α) θ₀ + α θ₁", "Wortsman et al. 2022"
    ),
    "zeroshot": AlphaFacts(
        "α′", "α′ = 1 − α is the weight of the zero-shot model", "θ(α′) = α′ θ₀ + (1 − α′) θ₁",
        "Abdollahpoorrostam 2024",
    ),
}  # fmt: skip
"""The model whose weight is printed -> how. Sources: Wortsman et al. 2022 (WiSE-FT, arXiv 2109.01903),
Abdollahpoorrostam 2024 (arXiv 2410.16476)."""


def weight_on(alpha: float, side: AlphaSide) -> float:
    """A stored ``alpha`` as the weight of the ``side`` model: alpha, or 1 - alpha without the rounding of binary.

    >>> weight_on(0.7, "zeroshot")
    0.3
    """
    return alpha if side == "finetuned" else round(1 - alpha, 12) + 0.0  # no negative zero


ZERO_SHOT: Final = "zero-shot"
"""The entry of the column ``method`` of a protocol for the zero-shot model, which was not trained."""
AVERAGE: Final = "average"
"""The entry of the column ``dataset`` of a protocol for the average over its data sets."""


def ensemble_variant(kind: EnsembleKind) -> str:
    """The variant of the accuracy rows of mixed outputs, ``ensemble:KIND``; alpha is the weight of theta_1's outputs.

    >>> ensemble_variant("logits")
    'ensemble:logits'
    """
    return f"ensemble:{kind}"


UPGRADED: Final = "upgraded"
"""The variant name of the path upgraded backbone + alpha * (the pair's change); alpha = 0 is the upgraded zero-shot."""


@dataclass(frozen=True)
class Status:
    """What the status of a row says of its numbers."""

    text: str
    """When a row has it, in one phrase."""
    has_value: bool
    """Whether the row's estimate is a number that can be used."""
    problem: bool
    """Whether the row is missing, or less exact than was asked for."""


STATUSES: Final[Mapping[str, Status]] = {
    "ok": Status("the estimate is as exact as was asked for", True, False),
    "not_converged": Status(
        "the budget was spent before the tolerance was reached; the note names the setting that buys more", True, True
    ),
    "failed": Status("the value is not finite or could not be computed; there is no number", False, True),
    "undefined": Status("the quantity has no meaning here; there is no number", False, True),
    "frozen": Status("the layer does not move; its sharpness is measured all the same", True, False),
}
"""Every entry of the columns ``status``. ``frozen`` replaces ok and not_converged of a layer whose delta is 0. What is
about the layer's own movement (a straggler score) has no number there."""


# ------------------------------------------------------------------------------------ words that users may add to
@dataclass(frozen=True)
class Origin:
    """The origin of a name that is not the package's own; it is part of a run's identity."""

    source: str
    """The file name of the plug-in, or the distribution of the entry point."""
    version: str
    """The sha256 of the plug-in's file, or the distribution's version."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


W = TypeVar("W", bound=_Named)


class Words(Mapping[str, W], Generic[W]):
    """The known words of one kind (such as measures), by name: the package's own in canonical order, then added ones.

    A word is added from outside by an entry point of ``group``, which is loaded when its name is asked for, or by a
    plug-in (``config.plugins.load_plugin``). No word can be replaced.
    """

    def __init__(self, kind: str, group: str, own: Iterable[W]) -> None:
        self.kind, self.group = kind, group
        self.origins: dict[str, Origin] = {}
        """The origins of the words from outside."""
        self._words = {word.name: word for word in own}
        self._recalled: set[str] = set()

    def __getitem__(self, name: str) -> W:
        return self._words[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def not_loaded(self) -> tuple[str, ...]:
        """The names of the group's entry points that are not loaded yet; they are listed without being imported."""
        return tuple(n for n in sorted(e.name for e in metadata.entry_points(group=self.group)) if n not in self)

    def find(self, name: str, key: str) -> W:
        """The word called ``name``; if an entry point has that name, it is loaded first.

        Raises:
            ConfigError: an unknown name, or an entry point that cannot be loaded or does not add a word of its name.
                The message begins with ``key``; for an unknown name it suggests the nearest known one.
        """
        if name not in self:
            found = next((e for e in metadata.entry_points(group=self.group) if e.name == name), None)
            if found is None:
                known = (*self, *self.not_loaded())
                near = did_you_mean(name, known) or f" Known: {listing(known, 12)}."
                raise ConfigError(f"{key}: unknown {self.kind} '{shown(name, 60)}'.{near}")
            self._load(found, key)
        return self[name]

    def add(self, word: W) -> None:
        """Add ``word``.

        Raises:
            ConfigError: the name is taken.
        """
        if word.name in self and word.name not in self._recalled:
            raise ConfigError(f"the {self.kind} '{shown(word.name, 60)}' exists already; choose another name.")
        self._words[word.name] = word
        self._recalled.discard(word.name)
        if _LOADING:
            origin, added = _LOADING[-1]
            self.origins[word.name] = origin
            added.append((self, word.name))

    def recall(self, word: W, origin: Origin) -> None:
        """Add a word from outside without its code, as a finished run's manifest records it; ``add`` may follow."""
        if word.name not in self:
            self._words[word.name], self.origins[word.name] = word, origin
            self._recalled.add(word.name)

    def remove(self, name: str) -> None:
        """Remove a word from outside, after its plug-in has failed half-way."""
        del self._words[name], self.origins[name]

    def _load(self, entry: metadata.EntryPoint, key: str) -> None:
        dist = entry.dist
        origin = Origin(dist.name if dist else entry.value, dist.version if dist else "")
        where = f"{key}: {self.kind} '{shown(entry.name, 60)}' of the package {shown(origin.source, 60)}"
        with from_outside(origin, where):
            entry.load()
            if entry.name not in self:
                raise ConfigError(f"importing {shown(entry.value, 100)} does not add a {self.kind} of that name.")


_LOADING: list[tuple[Origin, list[tuple[Words[Any], str]]]] = []
"""The origins being loaded at this moment, the innermost last, each with the words that it has added so far."""


@contextlib.contextmanager
def from_outside(origin: Origin, where: str) -> Iterator[list[tuple[Words[Any], str]]]:
    """Context manager that records ``origin`` for every word added inside; it yields the list of (words, name).

    If an exception is raised inside, the added words are removed again.

    Raises:
        ConfigError: any exception raised inside; the message begins with ``where``.
    """
    added: list[tuple[Words[Any], str]] = []
    _LOADING.append((origin, added))
    try:
        yield added
    except (Exception, SystemExit) as error:
        for words, name in added:
            words.remove(name)
        why = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {shown(error, 300)}"
        raise ConfigError(f"{where}: {why}") from error
    finally:
        _LOADING.pop()


AddsUp = Literal["sum", "norm", "max", "min", "magnitude", "none"]
"""The rule by which the values of several layers combine to one: sum | norm (the root of the sum of squares) | max
(the largest) | min (the smallest) | magnitude (the value of largest magnitude, with its sign) | none (they
cannot be combined)."""

Cost = Literal["trace", "eigenvalues", "product", "outer", "gradient", "noise", "worst_case"]
"""The kind of work that a measure does for each layer: trace, eigenvalues (Hessian-vector products until convergence) |
product (one such product) | outer (backward passes of the logits) | gradient (one backward pass of the loss for all
layers, two losses for each) | noise (losses under noise) | worst_case (gradients of an ascent)."""
BUDGETS: Final[dict[Cost, str]] = {
    "trace": "max_matvecs", "eigenvalues": "max_matvecs", "outer": "max_matvecs", "noise": "noise_samples",
    "worst_case": "pgd_steps",
}  # fmt: skip
"""Kind of work -> the setting that says how much of it is done; with more of it an estimate converges. The other kinds
are exact on the probe images."""


@dataclass(frozen=True)
class Measure:
    """One layer-wise measure with everything that follows from its name."""

    name: str
    """The name in flags, tables and figures."""
    text: str
    """A description in one phrase."""
    family: str
    """The module of ``sharpscope.curvature.measures`` that computes it (``own`` for a measure from outside)."""
    adds_up: AddsUp
    cost: Cost
    taken_at: Literal["alphas", "perturbation_alphas"] = "alphas"
    """The field of the study that says at which points of the path the measure is taken."""
    per_param: bool = True
    """Whether the estimate divided by the number of parameters has a meaning."""
    share: bool = True
    """Whether the estimate divided by the whole model's has a meaning."""
    radius: str | None = None
    """The setting that holds the radius of a measure of finite radius; None for every other measure."""
    rho: float | None = None
    """The radius that the name states, as in ``sharpness_max@0.001``; None: the radius is that of the setting."""

    def __post_init__(self) -> None:
        for field, given, known in (("adds_up", self.adds_up, AddsUp), ("cost", self.cost, Cost)):
            if given not in get_args(known):
                raise ConfigError(
                    f"measure '{shown(self.name, 60)}': {field} '{shown(given, 60)}' is none of "
                    f"{', '.join(get_args(known))}.{did_you_mean(str(given), get_args(known))}"
                )


def _eigenvalue(name: str, text: str, adds_up: AddsUp) -> Measure:
    return Measure(name, text, "hessian", adds_up, "eigenvalues", per_param=False)


def _along_gradient(name: str, text: str) -> Measure:
    return Measure(name, text, "hessian", "none", "product", per_param=False, share=False)


def _rise(name: str, text: str, adds_up: AddsUp, cost: Cost, radius: str, family: str = "perturbation") -> Measure:
    return Measure(name, text, family, adds_up, cost, taken_at="perturbation_alphas", radius=radius)


class Measures(Words[Measure]):
    """The measures by name; a measure of finite radius is also known as ``NAME@RHO``, which states its radius.

    ``sharpness_max@0.001`` beside ``sharpness_max@0.002`` takes one measure at two radii in one run: each is a measure
    of its own in every table. Only the names without a radius are listed.
    """

    def __getitem__(self, name: str) -> Measure:
        base, at, number = name.partition("@")
        measure = super().__getitem__(base)
        if not at:
            return measure
        rho = _positive(number)
        if rho is None or not measure.radius:
            raise KeyError(name)
        return replace(measure, name=f"{base}@{rho:g}", text=f"{measure.text}, for rho = {rho:g}", rho=rho)

    def find(self, name: str, key: str) -> Measure:
        """The measure called ``name``, as ``Words.find``; ``NAME@RHO`` also states the radius.

        Raises:
            ConfigError: also for a radius that is no positive number, or of a measure that has none.
        """
        base, at, number = name.partition("@")
        measure = super().find(base, key)
        if not at:
            return measure
        if not measure.radius:
            known = ", ".join(m.name for m in self.values() if m.radius)
            raise ConfigError(f"{key}: '{shown(name, 60)}': {base} has no radius; these measures have one: {known}.")
        if _positive(number) is None:
            raise ConfigError(
                f"{key}: '{shown(name, 60)}': the radius after @ needs to be a positive number, e.g. {base}@0.5."
            )
        return self[name]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Distinct ``names`` in the order of tables and figures, each measure's radii ascending; unknown ones last."""
        place = {name: i for i, name in enumerate(self)}
        known = {n: (place[n.partition("@")[0]], self[n].rho or 0.0) for n in dict.fromkeys(names) if n in self}
        return [*sorted(known, key=known.__getitem__), *(n for n in dict.fromkeys(names) if n not in known)]


def _positive(text: str) -> float | None:
    """The positive number that ``text`` spells; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


MEASURES: Final[Measures] = Measures("measure", "sharpscope.measures", (
    Measure("hessian_trace", "trace of the Hessian block H_ll, Hutchinson", "hessian", "sum", "trace"),
    Measure("weighted_trace", "trace of diag(|w|) H_ll diag(|w|), Hutchinson: infinitesimal adaptive sharpness",
            "hessian", "sum", "trace"),
    Measure("relative_flatness", "relative flatness: sum over pairs of neurons s, t of <w_s, w_t> tr H_st", "relative",
            "sum", "trace", per_param=False),
    Measure("ggn_trace", "trace of the generalised Gauss-Newton block", "gauss_newton", "sum", "outer"),
    Measure("fisher_trace", "trace of the Fisher information block, labels drawn from the model's own prediction",
            "gauss_newton", "sum", "outer"),
    _eigenvalue("lambda_max", "largest algebraic eigenvalue of H_ll", "max"),
    _eigenvalue("lambda_min", "smallest algebraic eigenvalue of H_ll", "min"),
    _eigenvalue("lambda_abs", "eigenvalue of H_ll of largest magnitude, with its sign", "magnitude"),
    _along_gradient("gradient_curvature", "g' H_ll g / g' g, the curvature along the layer's own gradient g"),
    _along_gradient("gradient_alignment",
                    "cosine of g and H_ll g: 1 where the gradient is an eigenvector of positive curvature"),
    Measure("gradient_norm", "norm of the loss's gradient with respect to the layer's weights", "gradient", "norm",
            "gradient", per_param=False),
    _rise("sharpness_avg", "mean rise of the loss under N(0, rho^2 diag(w^2)) noise on the layer", "sum", "noise",
          "rho_avg"),
    _rise("sharpness_avg_absolute", "mean rise of the loss under N(0, rho^2 I) noise on the layer", "sum", "noise",
          "rho_avg"),
    _rise("sharpness_avg_linf", "mean rise of the loss under uniform noise in the box |delta/w| <= rho on the layer",
          "sum", "noise", "rho_linf"),
    _rise("sharpness_avg_linf_absolute", "mean rise of the loss under uniform noise in the box |delta| <= rho on the "
          "layer", "sum", "noise", "rho_linf"),
    _rise("sharpness_max", "worst rise of the loss in the l-infinity ball |delta/w| <= rho, Auto-PGD", "max",
          "worst_case", "rho_linf"),
    _rise("sharpness_max_absolute", "worst rise of the loss in the l-infinity ball |delta| <= rho, Auto-PGD", "max",
          "worst_case", "rho_linf"),
    _rise("sharpness_max_l2", "worst rise of the loss in the l2 ball ||delta/w|| <= rho, Auto-PGD", "max",
          "worst_case", "rho_l2"),
    _rise("sharpness_max_l2_absolute", "worst rise of the loss in the l2 ball ||delta|| <= rho, Auto-PGD", "max",
          "worst_case", "rho_l2"),
    _rise("sharpness_geodesic", "worst rise of the loss along geodesics of length rho across the symmetries of "
          "attention, Auto-PGD", "max", "worst_case", "rho_geodesic", "geodesic"),
))  # fmt: skip
"""Every layer-wise measure, in the order of tables and figures."""


def budget_of(measure: str) -> str:
    """The flag that buys more of what an estimate of ``measure`` spends; empty for a measure that is exact or unknown.

    >>> budget_of("hessian_trace"), budget_of("sharpness_max@0.01"), budget_of("gradient_norm")
    ('--max-matvecs', '--pgd-steps', '')
    """
    known = MEASURES[measure] if measure.partition("@")[0] in MEASURES else None
    setting = BUDGETS.get(known.cost, "") if known else ""
    return f"--{setting.replace('_', '-')}" if setting else ""


def expand_measures(names: Iterable[str], key: str = "measures") -> tuple[str, ...]:
    """The measures in canonical order without repeats.

    Raises:
        ConfigError: an unknown name.
    """
    found = [MEASURES.find(name, key).name for name in names]  # all of them first: finding one may load it
    return tuple(MEASURES.in_order(found))


@dataclass(frozen=True)
class Standing:
    """The position of all other layers while one layer moves alone: ``alpha`` on the path, and ``text`` in words."""

    alpha: float
    text: str


BASES: Final[dict[Base, Standing]] = {
    "finetuned": Standing(1.0, "every other layer has its fine-tuned weights"),
    "zeroshot": Standing(0.0, "every other layer has its zero-shot weights"),
    "midpoint": Standing(0.5, "every other layer is half way between the two models"),
}
"""The bases of single-layer paths -> the position of the other layers. The first base decides which layers a loss
criterion chooses for repair."""


@dataclass(frozen=True)
class Criterion:
    """A straggler criterion: the way in which layers are scored before a rule chooses among them."""

    name: str
    text: str
    """One sentence that says what the score means."""
    source: str
    """Authors, year and arXiv id; ``ours`` where there is no paper."""
    of: Literal["path", "noise", "sharpness", "change"] = "path"
    """The input of the criterion: the losses on the layer's own path (``findings.criteria.NAME``), the losses under
    noise on the layer, one measure's estimates along the whole path, or these against the estimate at theta_0."""
    bases: tuple[Base, ...] = tuple(BASES)
    """The bases for which a criterion of losses is evaluated."""
    main: bool = False
    """Whether the ranking figure, which has room for four criteria, shows it by default."""
    rule: str = "mad:2"
    """The straggler rule that it uses where none is given."""

    @property
    def takes_measure(self) -> bool:
        """Whether the criterion needs a measure, as in ``share:hessian_trace``."""
        return self.of in ("sharpness", "change")

    @property
    def calibrated(self) -> bool:
        """Whether it has a null, so that the rule ``null:Q`` can be used with it."""
        return self.rule.startswith("null:")

    def rule_of(self, given: str | None) -> str:
        """The rule by which it chooses: the one ``given``, unless that is none or asks for a null that it lacks."""
        if given is None or (given.startswith("null:") and not self.calibrated):
            return self.rule
        return given

    @property
    def spelling(self) -> str:
        """The spelling in flags and tables: ``rewind``, or ``share:M`` for a measure M."""
        return f"{self.name}:M" if self.takes_measure else self.name


CRITERIA: Final[Words[Criterion]] = Words(
    "criterion",
    "sharpscope.criteria",
    (
        Criterion(
            BY_COST,
            "Largest loss on the layer's own path minus the mean loss of the path's two ends (LII).",
            "Frankle et al. 2020, arXiv 1912.05671; Abdollahpoorrostam 2024, arXiv 2410.16476",
            main=True,
        ),
        Criterion(
            "barrier",
            "Largest height of the loss on the layer's own path above the straight line between the path's two ends.",
            "Vlaar and Frankle 2022, arXiv 2106.16004; Adilova et al. 2024, arXiv 2307.06966",
        ),
        Criterion(
            "rewind",
            "Loss with this layer at theta_0 minus the loss with it at theta_1, all other layers unchanged.",
            "Zhang, Bengio and Singer 2019, arXiv 1902.01996",
            main=True,
        ),
        Criterion(
            "criticality",
            "Smallest ratio of the layer's squared movement to its noise variance at which the loss hardly rises.",
            "Chatterji, Neyshabur and Sedghi 2020, arXiv 1912.00528",
            of="noise",
            bases=("finetuned",),
        ),
        Criterion(
            "sharpness",
            "How far the logarithm of the layer's sharpness M stands out from the other layers along the path.",
            "ours",
            of="sharpness",
            bases=(),
        ),
        Criterion(
            "per_param",
            "How far the logarithm of the layer's sharpness M, divided by its number of parameters, stands out.",
            "ours",
            of="sharpness",
            bases=(),
        ),
        Criterion(
            "share",
            "How far the layer's share of the whole model's sharpness M stands out, on the linear scale.",
            "ours",
            of="sharpness",
            bases=(),
            main=True,
        ),
        Criterion(
            "change",
            "How far the rise of the logarithm of the layer's sharpness M above theta_0's stands out along the path.",
            "ours",
            of="change",
            bases=(),
            main=True,
            rule="null:0.05",
        ),
    ),
)
"""Every straggler criterion by name, in the order of the stragglers table; those from outside come last."""

AMONG_LARGEST: Final = "among the largest layers of theta_0"
"""The note beside a layer whose share of the sharpness already stands out at theta_0. For that reason alone it is no
straggler."""

DEFAULT_CRITERION: Final = "change:hessian_trace"
"""The straggler criterion that decides where none is named."""

SIDE_BY_SIDE: Final = (BY_COST, DEFAULT_CRITERION)
"""The two definitions of a straggler that report and figure compare: the only published one (a layer whose own
interpolation costs loss: Abdollahpoorrostam 2024, arXiv 2410.16476) and ours."""

METRICS: Final[dict[str, str]] = {
    "top1": "share of examples whose largest logit is the label's",
    "top5": "share of examples whose label is among the five largest logits",
    "mean_per_class": "accuracy on each class, averaged over classes",
    "macro_f1": "F1 of each class, averaged over classes (iWildCam)",
    "worst_group": "smallest accuracy over groups (FMoW: regions, without Other; Waterbirds: bird and background)",
    "pm0": "share of anchor frames that are right (sets of video frames)",
    "pm10": "share of anchor frames that are right together with all their neighbours within 10 frames (video frames)",
    "ece": "expected calibration error, 15 bins of equal width",
    "nll": "negative log-likelihood of the labels, nats",
    "i2t_r1": "share of images one of whose captions is nearest to the image among all captions (sets of captions)",
    "i2t_r5": "share of images one of whose captions is among the 5 nearest to the image (sets of captions)",
    "i2t_r10": "share of images one of whose captions is among the 10 nearest to the image (sets of captions)",
    "t2i_r1": "share of captions whose image is nearest to the caption among all images (sets of captions)",
    "t2i_r5": "share of captions whose image is among the 5 nearest to the caption (sets of captions)",
    "t2i_r10": "share of captions whose image is among the 10 nearest to the caption (sets of captions)",
}
"""Every metric of predictions by the name that flags and ``accuracy.metric`` use."""

PRIMARY_METRICS: Final[dict[str, str]] = {
    "iwildcam": "macro_f1",
    "fmow": "worst_group",
    "waterbirds": "worst_group",
    "imagenet-vid-robust": "pm0",
    "ytbb-robust": "pm0",
}
"""Data set -> the metric by which it is usually judged; top1 for every other data set. Sources: WILDS (Koh et al. 2021,
arXiv 2012.07421); Waterbirds (Sagawa et al. 2020, arXiv 1911.08731); video frames: pm-0 as in WiSE-FT's Table 6
(Wortsman et al. 2022, arXiv 2109.01903)."""

CORRELATIONS: Final = ("pearson", "spearman", "kendall")
"""Correlation coefficients of the correlations table, without a covariate."""

AGAINST: Final = ("ood_accuracy", "ood_gain")
"""The outcomes with which sharpness is correlated: OOD(alpha), and OOD(alpha) - OOD(0) of the same pair."""

OUTPUT_BASELINES: Final[dict[OutputBaseline, str]] = {
    "ose": "mean of the ends' probabilities",
    "vrf": "VRF: the ends' probabilities, weighted for every image",
}
"""The baselines that mix the outputs of the path's two ends -> their description. The name is also the ``variant`` of
their rows in the accuracy table, whose alpha is missing because they are not points of the path. VRF: Zhu et al. 2024,
arXiv 2411.06966."""


@dataclass(frozen=True)
class Agreement:
    """A measure of the agreement table: ``text`` says what it is, ``of`` what it needs beside a point of the path."""

    text: str
    of: Literal["end", "point", "ends"] = "end"
    """end (one end of the path, with which the point is compared) | point (nothing else) | ends (both ends)."""


AGREEMENT: Final[dict[str, Agreement]] = {
    "disagreement": Agreement("share of images for which the two models predict different classes"),
    "prediction_diversity": Agreement("share of images that exactly one of the two models gets right"),
    "only_end_right": Agreement("share of images that the end of the path gets right and the point gets wrong"),
    "only_point_right": Agreement("share of images that the point of the path gets right and the end gets wrong"),
    "kappa_complement": Agreement("1 minus Cohen's kappa of the two models' predictions"),
    "kl_divergence": Agreement("mean over images of KL(p_end || p_point) of the predicted probabilities, nats"),
    "cka_complement": Agreement("1 minus the linear centred kernel alignment of the image features"),
    "feature_distortion": Agreement("mean over images of the squared distance of the unit-length image features"),
    "feature_distance": Agreement("mean over images of the distance of the image features that the head reads"),
    "energy_gap": Agreement(
        "mean over images and random texts of the squared change of scale * <image feature, text feature>"
    ),
    "logit_gap": Agreement("mean over images and competing classes of the squared change of the logit"),
    "margin_difference": Agreement("margin of the point minus margin of the end"),
    "margin": Agreement("mean over images of the largest logit minus the second largest", "point"),
    "zeroshot_overrides": Agreement(
        "among images on which the two ends disagree, share for which the point agrees with theta_0", "ends"
    ),
    "zeroshot_overridden": Agreement(
        "among images on which the two ends disagree, share for which the point agrees with theta_1", "ends"
    ),
}
"""Every measure of the agreement table, in the order of figures. Those that compare a point of the path with one of its
ends are 0 where the two are the same model.

prediction_diversity, kappa_complement, kl_divergence, cka_complement, margins and overrides: Wortsman et al. 2022
(arXiv 2109.01903), section 5.1 and appendix E; their KL has the end in the first place here. cka: Kornblith et al. 2019
(arXiv 1905.00414). feature_distance: Kumar et al. 2022 (arXiv 2202.10054). feature_distortion, energy_gap: Nam et al.
2024 (arXiv 2404.00860), whose training penalty is half the energy gap.
"""

GROUPS: Final[dict[Group, str]] = {
    "straggler": "stragglers",
    "random_layers": "random other layers",
    "all_layers": "all layers, same number dropped",
    "everything": "all layers, same density",
}
"""The groups of layers that a repair makes sparse -> their label in figures: the stragglers and their controls."""


def draws_masks(select: Select, density: float) -> bool:
    """Whether the entries that a repair keeps are drawn at random, so that another seed keeps others."""
    return select == "random" and 0 < density < 1


@dataclass(frozen=True)
class Flag:
    """A way in which interpolation fails: ``text`` says when, ``estimate`` what the estimate is."""

    text: str
    estimate: str
    of: Literal["accuracy", "loss"] = "accuracy"
    """What it is raised on: the accuracies of OOD sets, or the losses on the probe."""


FLAGS: Final[dict[str, Flag]] = {
    "F1": Flag("no point of the path beats zero-shot", "best gain over zero-shot"),
    "F2": Flag("a point between the ends is worse than both", "largest depth below the worse end"),
    "F3": Flag("the probe loss between the ends rises above both", "largest rise above the worse end", "loss"),
    "F4": Flag("a point lies below the chord between the ends", "largest depth below the chord"),
}
"""The flags of the failure table; ``findings.failure.failure_table`` gives their formulas."""

ACCURACY_FLAGS: Final = tuple(name for name, flag in FLAGS.items() if flag.of == "accuracy")

HOLDS: Final = "holds"
DOES_NOT_HOLD: Final = "does not hold"
CANNOT: Final = "cannot be told"
"""The three verdicts on a claim."""

CLAIMS: Final[dict[str, str]] = {
    "whole": "whole-model sharpness is related to the OOD gain beyond learning rate, distance and ID accuracy",
    "stragglers": "the straggler layers' sharpness tells more about the OOD gain than that of other layers",
    "instability": "the layers whose own interpolation costs most tell more about the OOD gain than other layers",
    "repair": "making the straggler layers sparse repairs the failure",
    "question": "of two fine-tuned models with equal ID accuracy, sharpness on ID data tells which may be interpolated",
}
"""The claims that verdicts judge, in the words of the column ``claim``; ``question`` is that of the demo."""


@dataclass(frozen=True)
class Situation:
    """``known``: what is known in it. ``accuracy``: the word for the accuracy that its rules care for."""

    known: str
    accuracy: Literal["OOD", "target"] = "OOD"


SITUATIONS: Final[dict[str, Situation]] = {
    "measured": Situation("OOD test sets with labels were evaluated"),
    "target_labels": Situation("some images of the target have labels", "target"),
    "target_images": Situation("images of the target are there, without labels", "target"),
    "references": Situation("other pairs have OOD labels"),
    "none": Situation("nothing is known but the two checkpoints"),
}
"""What advice on alpha can rest on, the strongest first."""

BASELINE: Final = "baseline"
"""In the place of a situation: the rules that anybody can follow without knowing anything of the OOD data, and the
oracle against which regret is measured."""

TARGET: Final = "target"
"""The group of the images that a user brought as the target."""

FIXED_ALPHAS: Final = {"zeroshot": 0.0, "half": 0.5, "finetuned": 1.0}
"""The baselines that take the same alpha whatever the pair -> that alpha."""

ADVICE: Final[dict[str, dict[str, str]]] = {
    BASELINE: {
        **{
            rule: {0.0: "the zero-shot model, alpha 0", 1.0: "the fine-tuned model, alpha 1"}.get(a, f"alpha {a:g}")
            for rule, a in FIXED_ALPHAS.items()
        },
        "id_best": "best ID accuracy",
        "oracle": "best by OOD labels, the measure of regret",
    },
    "measured": {
        "ood_best": "best OOD accuracy",
        "mean_best": "best mean of ID and OOD accuracy",
        "keep_id": "best OOD accuracy that keeps the ID accuracy",
    },
    "target_labels": {"labels_best": "best accuracy on the labelled target images"},
    "target_images": {
        "atc": "average thresholded confidence (Garg et al. 2022)",
        "doc": "difference of confidences (Guillory et al. 2021)",
        "agl": "agreement on the line (Baek et al. 2022)",
        "agreement": "difference of agreements between points of the path (ours)",
    },
    "references": {
        "predicted": "largest gain predicted from learning rate, distance and sharpness",
        "learning_rate": "largest gain predicted from the learning rate alone",
        "best_fixed": "the one alpha that is best on average over the references",
    },
    "none": {"published": "what published paths of real CLIP models did; no alpha"},
}
"""Situation -> the rules that choose an alpha in it -> what the rule chooses."""


COLLECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "imagenet-shifts": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet"),
    "lipsum-imagenet": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch"),
    "domainnet-real": ("domainnet:clipart", "domainnet:painting", "domainnet:infograph", "domainnet:sketch"),
}
"""Collection -> its data set specs.

``imagenet-shifts`` are the natural shifts of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903). ``lipsum-imagenet`` (the
same without ObjectNet) and ``domainnet-real`` (the OOD domains for models fine-tuned on DomainNet real) are those of
Lipsum-FT (Nam et al. 2024, arXiv 2404.00860).
"""
