"""Traces and eigenvalues of the Hessian's blocks, and its curvature along the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature.arithmetic import ASYMMETRY
from sharpscope.curvature.eigen import ExtremeEigenvalues, RitzSpace, lanczos_steps
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.measures.gauss_newton import controlled_traces, no_control
from sharpscope.curvature.measures.rows import EIGENVALUES, GRADIENT, MeasureTable, eigen_rows, trace_row, trace_rows
from sharpscope.curvature.measures.solving import facts_of, solved
from sharpscope.curvature.operator import Estimator, Objective, check_symmetric
from sharpscope.curvature.trace import (
    TraceEstimate,
    hutchinson_steps,
    hutchpp_steps,
    per_example_steps,
    scaled,
    xtrace_steps,
)
from sharpscope.curvature.tracking import tracked_steps
from sharpscope.errors import NumericalError
from sharpscope.layers import Layer
from sharpscope.vocabulary import ALL

__all__: list[str] = []

TRACES = ("hessian_trace", "weighted_trace")
TRACE_METHODS: dict[str, Callable[..., Estimator[TraceEstimate]]] = {
    "per_example": per_example_steps,
    "controlled": per_example_steps,
    "xtrace": xtrace_steps,
    "hutchpp": hutchpp_steps,
}
_SUMMED = ("per_example", "controlled")
"""Methods by which the whole model's trace is the sum of its layers'."""


def hessian_measures(
    objective: Objective,
    theta: Mapping[str, Tensor],
    layers: Sequence[Layer],
    measures: Sequence[str],
    table: MeasureTable,
    warm: Mapping[str, RitzSpace],
) -> tuple[dict[str, RitzSpace], dict[str, Any]]:
    """Traces and eigenvalues: layer by layer on kept graphs, or all layers in lock step when graphs are rebuilt."""
    wanted = [m for m in (*TRACES, *EIGENVALUES, *GRADIENT) if m in measures]
    settings = table.settings
    note = no_control(objective, theta) if settings.trace_method == "controlled" else ""
    try:
        if settings.trace_method == "controlled" and "hessian_trace" in wanted and not note:
            facts = controlled_traces(objective, theta, layers, table)
            wanted.remove("hessian_trace")
            if not wanted:
                return {}, facts
        engine = HessianEngine(objective, theta, {x.name: x.params for x in layers}, memory=settings.memory)
        generator = torch.Generator().manual_seed(table.seed("symmetry"))
        check_symmetric(engine.operator(ALL), generator, rtol=ASYMMETRY[settings.precision])
    except NumericalError as error:
        table.fail(wanted, str(error))
        return {}, {}
    measures = wanted
    if any(m in measures for m in GRADIENT):
        _along_gradient(engine, table)
    work: dict[str, Estimator[TraceEstimate | ExtremeEigenvalues]] = {}
    common: dict[str, Any] = {
        "dtype": engine.dtype,
        "device": engine.device,
        "rtol": settings.rtol,
        "max_matvecs": settings.max_matvecs,
    }
    for x in layers:
        size = engine.blocks[x.name].size
        work |= _trace_tasks(engine, x.name, measures, table, common)
        if ends := [end for measure, end in EIGENVALUES.items() if measure in measures]:
            how = common | {"seed": table.seed("eigen", x.name), "ends": ends}
            work[f"eigen {x.name}"] = (
                tracked_steps(size, warm[x.name], **how)
                if x.name in warm
                else lanczos_steps(size, start=engine.gradient(x.name), **how)
            )
    results = solved(engine, work)
    if settings.trace_method in _SUMMED:
        _add_up(results, settings.rtol)
    spaces = {}
    for task, result in results.items():
        kind, layer = task.split(" ", 1)
        seed = table.seed(kind, layer)
        if isinstance(result, TraceEstimate) and kind == "weighted":
            trace_row(table, layer, "weighted_trace", result, seed, note)
        elif isinstance(result, TraceEstimate):
            trace_rows(table, layer, result, seed, note)
        else:
            eigen_rows(table, layer, result, seed)
            if result.space is not None:
                spaces[layer] = result.space
    return spaces, facts_of(engine)


def _trace_tasks(
    engine: HessianEngine, layer: str, measures: Sequence[str], table: MeasureTable, common: Mapping[str, Any]
) -> dict[str, Estimator[TraceEstimate]]:
    """The estimators of one layer's trace and weighted trace; what is added up from the layers needs none."""
    method, size = table.settings.trace_method, engine.blocks[layer].size
    plain, weighted = (m in measures for m in TRACES)
    if not (plain or weighted) or (method in _SUMMED and layer == ALL):
        return {}
    seed = table.seed("trace", layer)
    if method == "hutchinson":
        scale = engine.weights(layer).abs() if weighted else None
        return {f"trace {layer}": hutchinson_steps(size, seed=seed, scale=scale, **common)}
    steps = TRACE_METHODS[method]
    tasks = {f"trace {layer}": steps(size, seed=seed, **common)} if plain else {}
    if weighted and method in _SUMMED:
        seed = table.seed("weighted", layer)
        tasks[f"weighted {layer}"] = per_example_steps(size, seed=seed, scale=engine.weights(layer).abs(), **common)
    elif weighted:
        unscaled = steps(size, seed=table.seed("weighted", layer), **common)
        tasks[f"weighted {layer}"] = scaled(unscaled, engine.weights(layer).abs())
    return tasks


def _add_up(results: dict[str, Any], rtol: float) -> None:
    """The whole model's traces as the sums of its layers', which are independent; no product is spent on it."""
    for kind in ("trace", "weighted"):
        parts = [r for task, r in results.items() if task.split(" ", 1)[0] == kind]
        if parts:
            value = math.fsum(r.estimate for r in parts)
            stderr = math.sqrt(math.fsum(r.stderr**2 for r in parts))
            spent = max(r.num_matvecs for r in parts)
            results[f"{kind} {ALL}"] = TraceEstimate(value, stderr, stderr <= rtol * abs(value), spent)


def _along_gradient(engine: HessianEngine, table: MeasureTable) -> None:
    """g'Hg / g'g and cos(g, Hg) of every layer, from one product each in one pass; undefined at a zero gradient."""
    gradients = {layer: engine.gradient(layer) for layer in engine.blocks}
    products = engine.products({layer: g[:, None] for layer, g in gradients.items()})
    for layer, g in gradients.items():
        g, hg = g.double(), products[layer][:, 0].double()
        bend, size, length = (float(x) for x in (g @ hg, g @ g, hg.norm()))
        row: dict[str, Any] = {"seed": 0, "converged": True, "stderr": 0.0, "num_matvecs": 1}
        if size == 0:
            row |= {"stderr": math.nan, "status": "undefined", "note": "the gradient is zero"}
        table.add(layer, "gradient_curvature", bend / size if size else math.nan, **row)
        cosine = bend / (math.sqrt(size) * length) if size and length else 0.0 if size else math.nan
        table.add(layer, "gradient_alignment", cosine, **row)
