"""Every word of the project with what follows from it: layers' groups, measures, metrics, criteria, modes, collections.

A name stands here once and is read everywhere; an unknown one is an error. Light: no torch, no numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = [
    "ALL",
    "COLLECTIONS",
    "DENSE",
    "MEASURES",
    "METRICS",
    "STATUSES",
    "UPGRADED",
    "Device",
    "Dtype",
    "Granularity",
    "HeadMode",
    "OutputBaseline",
    "Precision",
    "Select",
    "Target",
    "TraceMethod",
    "__version__",
    "expand_measures",
    "expand_specs",
    "parse_rule",
]

__version__: Final = "0.1.0"
"""The version of sharpscope; a run directory belongs to one."""

Granularity = Literal["tensor", "module", "block"]
HeadMode = Literal["auto", "zeroshot", "stored", "text"]
Dtype = Literal["float32", "float64"]
Precision = Literal["full", "tf32", "bf16", "fp16"]
"""Arithmetic of matrix products: full (that of the weights) | tf32 (float32 with 10 bits of mantissa, on a GPU) | bf16,
fp16 (autocast to bfloat16, float16). A command that cannot use one of them refuses it and says why."""
Device = Literal["auto", "cpu", "cuda"]
Target = Literal["delta", "weight"]
Select = Literal["random", "magnitude"]
OutputBaseline = Literal["ose", "vrf"]
TraceMethod = Literal["per_example", "controlled", "hutchinson", "xtrace", "hutchpp"]


def expand_measures(names: tuple[str, ...], key: str = "measures") -> tuple[str, ...]:
    """The measures in canonical order without repeats; raises ConfigError for an unknown name."""
    for name in names:
        if name not in MEASURES:
            near = did_you_mean(name, MEASURES) or f" Known: {', '.join(MEASURES)}."
            raise ConfigError(f"{key}: unknown measure '{shown(name, 60)}'.{near}")
    return tuple(m for m in MEASURES if m in names)


def check_metrics(names: tuple[str, ...], key: str = "metrics") -> None:
    """Raise ConfigError for a metric of an unknown name."""
    for name in names:
        if name not in METRICS:
            near = did_you_mean(name, METRICS) or f" Known: {', '.join(METRICS)}."
            raise ConfigError(f"{key}: unknown metric '{shown(name, 60)}'.{near}")


def check_criterion(criterion: str) -> None:
    kind, _, measure = criterion.partition(":")
    if kind in ("sharpness", "share", "per_param") and measure:
        expand_measures((measure,), "straggler_criterion")
    elif criterion not in (known := ("instability", "rewind", "criticality")):
        near = did_you_mean(criterion, known)
        raise ConfigError(
            f"straggler_criterion: '{shown(criterion, 60)}' is none of {', '.join(known)}, "
            f"sharpness:M, share:M, per_param:M (M a measure).{near}"
        )


def parse_rule(rule: str) -> tuple[str, float]:
    """``"mad:2"`` -> ``("mad", 2.0)``; raises ConfigError for anything that is not a straggler rule."""
    kind, _, number = rule.partition(":")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("mad", "sd", "top", "abs") or not math.isfinite(value):
        raise ConfigError(f"straggler_rule: '{shown(rule, 60)}' is none of mad:K, sd:T, top:K, abs:X.")
    if kind == "top" and not (value >= 0 and value.is_integer()):
        raise ConfigError(f"straggler_rule: '{rule}' needs a whole number of layers, e.g. top:3.")
    return kind, value


ALL: Final = "(all)"
"""The layer name of the whole model: all moving parameters at once."""

DENSE: Final = "dense"
"""The variant name of the plain interpolation path, without any repair."""

UPGRADED: Final = "upgraded"
"""The variant name of the path that the pair's change makes on an upgraded backbone: alpha 0 is its zero-shot model."""

STATUSES: Final = ("ok", "not_converged", "failed", "undefined", "frozen")
"""ok | not_converged (budget spent before the tolerance) | failed (not finite; the reason in ``note``) |
undefined (the quantity has no meaning here) | frozen (the layer does not move: delta = 0)."""

MEASURES: Final[dict[str, str]] = {
    "hessian_trace": "tr H_ll, Hutchinson",
    "weighted_trace": "tr(diag(|w|) H_ll diag(|w|)), Hutchinson: infinitesimal adaptive sharpness",
    "ggn_trace": "tr of the generalised Gauss-Newton block",
    "fisher_trace": "tr of the Fisher information block, labels drawn from the model's own prediction",
    "lambda_max": "largest algebraic eigenvalue of H_ll, Lanczos",
    "lambda_min": "smallest algebraic eigenvalue of H_ll, Lanczos",
    "lambda_abs": "eigenvalue of H_ll of largest magnitude, with its sign",
    "gradient_curvature": "g' H_ll g / g' g, the curvature along the layer's own gradient g",
    "gradient_alignment": "cosine of g and H_ll g: 1 where the gradient is an eigenvector of positive curvature",
    "sharpness_avg": "mean rise of the loss under N(0, rho^2 diag(w^2)) noise on the layer",
    "sharpness_avg_absolute": "mean rise of the loss under N(0, rho^2 I) noise on the layer",
    "sharpness_max": "worst rise of the loss in the l-infinity ball |delta/w| <= rho, Auto-PGD",
    "sharpness_max_absolute": "worst rise of the loss in the l-infinity ball |delta| <= rho, Auto-PGD",
    "sharpness_max_l2": "worst rise of the loss in the l2 ball ||delta/w|| <= rho, Auto-PGD",
    "sharpness_max_l2_absolute": "worst rise of the loss in the l2 ball ||delta|| <= rho, Auto-PGD",
}
"""Every layer-wise measure by the name that flags, tables and figures use."""

METRICS: Final[dict[str, str]] = {
    "top1": "share of examples whose largest logit is the label's",
    "top5": "share of examples whose label is among the five largest logits",
    "mean_per_class": "mean over classes of the share that is right",
    "macro_f1": "mean over classes of F1 (iWildCam)",
    "worst_group": "smallest share that is right over groups (FMoW: regions, without Other)",
    "ece": "expected calibration error, 15 bins of equal width",
    "nll": "negative log-likelihood of the labels, nats",
}
"""Every metric of predictions by the name that flags and ``accuracy.metric`` use."""

COLLECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "imagenet-shifts": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet"),
    "lipsum-imagenet": ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch"),
    "domainnet-real": ("domainnet:clipart", "domainnet:painting", "domainnet:infograph", "domainnet:sketch"),
}
"""Collection -> its data set specs.

``imagenet-shifts``: the natural shifts of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903). ``lipsum-imagenet`` (the
same without ObjectNet) and ``domainnet-real`` (what is held against DomainNet real): Lipsum-FT (Nam et al. 2024, arXiv
2404.00860).
"""


def expand_specs(specs: Iterable[str]) -> tuple[str, ...]:
    """``specs`` with every collection's name replaced by its members, each once, in order of first appearance.

    Repeats that the caller wrote out are kept, so that a check for duplicates still sees them.

    >>> expand_specs(["imagenet", "lipsum-imagenet"])[:3]
    ('imagenet', 'imagenet-v2', 'imagenet-r')
    """
    given = list(specs)
    out: list[str] = []
    for spec in given:
        members = COLLECTIONS.get(spec)
        out += [spec] if members is None else [m for m in members if m not in out and m not in given]
    return tuple(out)
