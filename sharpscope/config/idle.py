"""Settings of a study that change none of its numbers: each one that is given is refused, with what it would need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

from sharpscope.config.study import PERTURBATION_SIZE, VRF_FIELDS, StudyConfig
from sharpscope.errors import ConfigError
from sharpscope.vocabulary import MEASURES, SUMMED_TRACES, Cost, Measure, expand_measures

__all__ = ["changes_nothing", "check_no_idle"]

_HESSIAN: Final[tuple[Cost, ...]] = ("trace", "eigenvalues", "product")
"""The kinds of measures that are made of Hessian-vector products."""
_PRODUCTS: Final[tuple[Cost, ...]] = (*_HESSIAN, "outer")
"""The kinds of measures that consist of matrix products and are therefore affected by ``precision``."""


@dataclass(frozen=True)
class _Rule:
    """``setting`` changes something only where ``counts``; ``needs``: what it needs, as the end of a sentence."""

    setting: str
    counts: Callable[[StudyConfig], bool]
    needs: str


def _measured(which: Callable[[Measure], bool]) -> Callable[[StudyConfig], bool]:
    return lambda c: any(which(MEASURES[m]) for m in c.measures)


def _names(which: Callable[[Measure], bool]) -> str:
    return ", ".join(m.name for m in MEASURES.values() if which(m))


def _of_measures(setting: str, which: Callable[[Measure], bool]) -> _Rule:
    return _Rule(setting, _measured(which), f"one of {_names(which)} among measures")


def _by_radius(setting: str) -> _Rule:
    return _of_measures(setting, lambda m: m.radius == setting and m.rho is None)


def _repaired(c: StudyConfig) -> bool:
    return bool(c.repaired_alphas)


def _outside(c: StudyConfig) -> bool:
    return any(not 0 <= a <= 1 for a in (*c.alphas, *(c.repair_alphas or ())))


def _has_radius(measure: Measure) -> bool:
    return measure.radius is not None


def _is_layer_trace(measure: Measure) -> bool:
    return measure.cost == "trace" and measure.family == "hessian"


_OF_REPAIRS: Final = ("targets", "selects", "masks", "repair_limit")
"""Settings of the repaired paths."""

_RULES: Final = (
    _Rule("extrapolate", _outside, "an alpha outside [0, 1]"),
    _Rule("curvature_alphas", lambda c: bool(c.measures or c.density_layers), "a measure, or layers for densities"),
    _of_measures("perturbation_alphas", lambda m: m.taken_at == "perturbation_alphas"),
    _Rule(
        "perturbation_size",
        lambda c: _measured(_has_radius)(c) and c.probe_size > min(c.perturbation_size or math.inf, PERTURBATION_SIZE),
        f"a larger probe_size, and one of {_names(_has_radius)} among measures",
    ),
    _of_measures("noise_samples", lambda m: m.cost == "noise"),
    _of_measures("pgd_steps", lambda m: m.cost == "worst_case"),
    *map(_by_radius, ("rho_avg", "rho_linf", "rho_l2", "rho_geodesic")),
    _of_measures("normalize_logits", _has_radius),
    _of_measures("random_start", lambda m: m.cost == "worst_case"),
    _of_measures("eigen_method", lambda m: m.cost == "eigenvalues"),
    _Rule(
        "products",
        lambda c: bool(c.density_layers or c.eigenvectors) or _measured(lambda m: m.cost in _HESSIAN)(c),
        f"one of {_names(lambda m: m.cost in _HESSIAN)} among measures",
    ),
    _of_measures("trace_method", lambda m: m.cost == "trace"),
    _Rule(
        "atol_share",
        lambda c: c.trace_method in SUMMED_TRACES and _measured(_is_layer_trace)(c),
        f"trace_method {' or '.join(SUMMED_TRACES)}, and one of {_names(_is_layer_trace)} among measures",
    ),
    _Rule(
        "precision",
        lambda c: bool(c.density_layers or c.eigenvectors) or _measured(lambda m: m.cost in _PRODUCTS)(c),
        f"one of {_names(lambda m: m.cost in _PRODUCTS)} among measures",
    ),
    _Rule("densities", lambda c: not c.densities or c.repair_alphas != (), "repair_alphas"),
    *(_Rule(name, _repaired, "repaired paths: densities, and repair_alphas") for name in _OF_REPAIRS),
    *(_Rule(name, lambda c: "vrf" in c.output_baselines, "vrf among output_baselines") for name in VRF_FIELDS),
    _Rule("ensembles", lambda c: any(0 <= a <= 1 for a in c.alphas), "an alpha in [0, 1]"),
    _Rule("primary_measure", lambda c: c.primary_measure in expand_measures(c.measures), "that measure among measures"),
    _Rule("repair_alphas", lambda c: bool(c.densities) or not c.repair_alphas, "densities"),
)


def changes_nothing(config: StudyConfig, setting: str) -> bool:
    """Whether ``setting``, one of those that have a rule here, changes no number of this study."""
    return not next(rule for rule in _RULES if rule.setting == setting).counts(config)


def check_no_idle(config: StudyConfig) -> None:
    """Raise ConfigError for the first setting that differs from its default and changes nothing in this study.

    Limits that need not be reached (rtol, max_matvecs, limit, memory ...) change something whenever they are.
    """
    defaults = {f.name: f.default for f in fields(StudyConfig)}
    for rule in _RULES:
        if getattr(config, rule.setting) != defaults[rule.setting] and not rule.counts(config):
            raise ConfigError(
                f"{rule.setting}: changes nothing in this study; it needs {rule.needs}.\n"
                "Remedy: give that too, or leave the setting out."
            )
