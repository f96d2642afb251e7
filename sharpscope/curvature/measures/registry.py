"""Every sharpness measure of every layer at one point of the path: the registry between probes and estimators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from sharpscope.curvature.arithmetic import in_precision, second_order
from sharpscope.curvature.eigen import RitzSpace
from sharpscope.curvature.measures.gauss_newton import OUTER, outer
from sharpscope.curvature.measures.hessian import TRACE_METHODS, TRACES, hessian_measures
from sharpscope.curvature.measures.perturbation import finite_radius
from sharpscope.curvature.measures.rows import EIGENVALUES, GRADIENT, MeasureResult, MeasureSettings, MeasureTable
from sharpscope.curvature.operator import Objective
from sharpscope.errors import ConfigError
from sharpscope.layers import Layer
from sharpscope.seeds import derive
from sharpscope.vocabulary import ALL, MEASURES

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
        layers: as ``weights.layers.split_layers`` gives them; the whole model is all of their parameters together.
        measures: names of ``schema.MEASURES``.
        settings: precision, radii, seed.
        key: makes the seeds of this point its own (pair name, alpha).
        warm: Ritz pairs by layer from a neighbouring point, as a former result's ``warm``: its eigenvectors are
            followed (``tracking.tracked``), otherwise Lanczos starts from the gradient.
        progress: called with the name of each finished measure.

    A layer whose numbers are not finite gets status ``failed`` and its reason, the others go on.

    Raises ConfigError for an unknown measure, trace method or precision, and where there is no layer.
    """
    settings = settings or MeasureSettings()
    unknown = [m for m in measures if m not in MEASURES]
    if unknown:
        raise ConfigError(f"measures: unknown measure '{unknown[0]}'. Known: {', '.join(MEASURES)}.")
    if settings.trace_method not in ("hutchinson", *TRACE_METHODS):
        known = ", ".join(("hutchinson", *TRACE_METHODS))
        raise ConfigError(f"trace_method: '{settings.trace_method}' is none of {known}.")
    if not layers:
        raise ConfigError("layers: the loss depends on no parameter, so that there is no curvature to measure.")
    names = tuple(n for x in layers for n in x.params)
    whole = Layer(ALL, names, ALL, -1, ALL, sum(x.num_params for x in layers))  # type: ignore[arg-type]
    everything = (whole, *layers)
    rough = in_precision(objective, settings.precision, theta)
    with second_order(tf32=settings.precision == "tf32"):
        table = MeasureTable(everything, partial(derive, settings.seed, *key), settings)
        facts: dict[str, Any] = {}
        spaces: dict[str, RitzSpace] = {}
        if any(m in measures for m in (*TRACES, *EIGENVALUES, *GRADIENT)):
            spaces, facts = hessian_measures(rough, theta, everything, measures, table, warm or {})
            progress("Hessian")
        for measure in (m for m in OUTER if m in measures):
            outer(rough, theta, everything, measure, table)
            progress(measure)
    with second_order():  # differences of losses: always in full precision
        for measure in measures:
            if measure.startswith("sharpness_"):
                finite_radius(objective, theta, everything, measure, table)
                progress(measure)
    order = {m: i for i, m in enumerate(MEASURES)}
    rows = sorted(table.rows(), key=lambda r: (order[r["measure"]], table.order[r["layer"]]))
    return MeasureResult([r for r in rows if r["measure"] in measures], spaces, facts)
