"""Every sharpness measure of every layer at one point of the path: the registry between probes and estimators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import get_args

from torch import Tensor

from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures.rows import MeasureResult, MeasureSettings, MeasureTable, Point
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError, did_you_mean, shown
from sharpscope.layers import Layer, whole_model
from sharpscope.seeds import derive
from sharpscope.vocabulary import MEASURES, EigenMethod, TraceMethod, expand_measures

__all__ = ["measure_layers"]


def measure_layers(
    objective: Objective,
    theta: Mapping[str, Tensor],
    layers: Sequence[Layer],
    measures: Sequence[str],
    settings: MeasureSettings | None = None,
    *,
    key: Sequence[object] = (),
    warm: Mapping[str, RitzSpace] | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> MeasureResult:
    """All ``measures`` of every layer and of the whole model, ``(all)``, at ``theta``.

    Args:
        objective: the probe's loss; ``ggn_trace`` and ``fisher_trace`` also need its ``batch_logits``.
        theta: named tensors.
        layers: as ``layers.split_layers`` returns them; the whole model consists of all their parameters.
        measures: names of ``vocabulary.MEASURES``, in any order.
        settings: tolerances, budgets, radii, seed.
        key: (pair name, alpha), from which this point's seeds are derived, so that they differ from other points'.
        warm: Ritz pairs by layer from a neighbouring point, which are an earlier result's ``warm``. Their eigenvectors
            are followed (``tracking.tracked``); for other layers, Lanczos starts from the gradient.
        progress: called with the name of each finished measure.

    A layer whose numbers are not finite gets the status ``failed`` and the reason in its note; the other layers are
    measured all the same.

    Raises ConfigError for an unknown measure, trace method, eigenvalue method, way of products or precision, and where
    there is no layer.
    """
    settings = settings or MeasureSettings()
    wanted = expand_measures(measures)
    if settings.trace_method not in (known := get_args(TraceMethod)):
        near = did_you_mean(settings.trace_method, known)
        raise ConfigError(f"trace_method: '{shown(settings.trace_method)}' is none of {', '.join(known)}.{near}")
    if settings.eigen_method not in get_args(EigenMethod):
        words = ", ".join(get_args(EigenMethod))
        raise ConfigError(f"eigen_method: '{shown(settings.eigen_method)}' is none of {words}.")
    if not layers:
        raise ConfigError("layers: the loss depends on no parameter, so that there is no curvature to measure.")
    everything = (whole_model(layers), *layers)
    seed = partial(derive, settings.seed, *key)
    point = Point(objective, theta, everything, settings, seed, warm or {}, progress)
    table = MeasureTable(everything, objective)
    for family, names in _by_family(wanted).items():
        take = import_module(f"sharpscope.curvature.measures.{family}").take
        take(point, names, table)
        table.check(names)
    order = {m: i for i, m in enumerate(wanted)}
    rows = sorted(table.rows(), key=lambda r: (order[r["measure"]], table.order[r["layer"]]))
    return MeasureResult(rows, table.spaces, table.facts, table.parts)


def _by_family(measures: Sequence[str]) -> dict[str, list[str]]:
    """Each family -> its measures among ``measures``.

    The module ``sharpscope.curvature.measures.FAMILY`` has a function ``take(point, measures, table)``, which adds one
    row per layer and measure to the table.
    """
    families: dict[str, list[str]] = {}
    for name in measures:
        families.setdefault(MEASURES[name].family, []).append(name)
    return families
