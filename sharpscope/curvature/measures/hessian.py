"""Traces and eigenvalues of the Hessian's blocks, and its curvature along the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature.arithmetic import ASYMMETRY, second_order
from sharpscope.curvature.eigen import EigenEstimate, End, ExtremeEigenvalues, lanczos_steps
from sharpscope.curvature.functional import engine_for
from sharpscope.curvature.graphs import Use, plan_memory
from sharpscope.curvature.hvp import HessianEngine, NoSecondDerivative
from sharpscope.curvature.imageerrors import added, batch_sizes, error_over_images
from sharpscope.curvature.measures.gauss_newton import controlled_traces, no_control
from sharpscope.curvature.measures.rows import ONE_UNIT, MeasureSettings, MeasureTable, Point, trace_row
from sharpscope.curvature.measures.solving import Sampled, check, facts_of, sampled_tasks, solved, with_images
from sharpscope.curvature.operator import Estimator, Objective
from sharpscope.curvature.power import power_ends_steps
from sharpscope.curvature.trace import (
    TraceEstimate,
    hutchinson_steps,
    hutchpp_steps,
    scaled,
    xtrace_steps,
)
from sharpscope.curvature.tracking import tracked_steps
from sharpscope.errors import NumericalError
from sharpscope.vocabulary import ALL, SUMMED_TRACES

__all__ = ["take"]

_ENDS: dict[str, End] = {"lambda_max": "largest", "lambda_min": "smallest", "lambda_abs": "dominant"}
"""Each eigenvalue measure -> the end of the spectrum at which its eigenvalue lies."""
_TRACES = ("hessian_trace", "weighted_trace")
_GRADIENT = ("gradient_curvature", "gradient_alignment")
_METHODS: dict[str, Callable[..., Estimator[TraceEstimate]]] = {
    "xtrace": xtrace_steps,
    "hutchpp": hutchpp_steps,
}


def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
    """Add the rows of traces and eigenvalues.

    The layers are measured one after the other where all gradient graphs are kept in memory, and in lock step where
    graphs have to be rebuilt, so that one rebuild serves all layers.
    """
    with second_order(tf32=point.settings.precision == "tf32"):
        _take(point, list(measures), table)
    point.progress("Hessian")


def _take(point: Point, wanted: list[str], table: MeasureTable) -> None:
    settings = point.settings
    note = no_control(point.rough, point.theta) if settings.trace_method == "controlled" else ""
    try:
        if settings.trace_method == "controlled" and "hessian_trace" in wanted and not note:
            controlled_traces(point, table)
            wanted.remove("hessian_trace")
            if not wanted:
                return
        use = _use(wanted, settings)
        if use == "both" and _better_apart(point):
            for part in ([m for m in wanted if m in _TRACES], [m for m in wanted if m not in _TRACES]):
                _take(point, part, table)
            return
        engine = engine_for(settings.products)(point.rough, point.theta, point.blocks, memory=settings.memory, use=use)
        check(engine, point.seed, ASYMMETRY[settings.precision])
    except NoSecondDerivative as error:
        _without(engine.without_second_derivative() | {ALL: str(error)}, point, wanted, table)
        return
    except NumericalError as error:
        table.fail(wanted, str(error))
        return
    table.facts = facts_of(engine)
    if any(m in wanted for m in _GRADIENT):
        _along_gradient(engine, wanted, table)
    work: dict[str, Estimator[TraceEstimate | ExtremeEigenvalues]] = {}
    common: dict[str, Any] = {
        "dtype": engine.dtype,
        "device": engine.device,
        "rtol": settings.rtol,
        "max_matvecs": settings.max_matvecs,
    }
    if settings.trace_method in SUMMED_TRACES:
        work |= _summed_traces(engine, wanted, point)
    for x in point.layers:
        size = engine.blocks[x.name].size
        if settings.trace_method not in SUMMED_TRACES:
            work |= _trace_tasks(engine, x.name, wanted, point, common)
        if ends := [end for measure, end in _ENDS.items() if measure in wanted]:
            how = common | {"seed": point.seed("eigen", x.name), "ends": ends}
            if settings.eigen_method == "power":
                work[f"eigen {x.name}"] = power_ends_steps(size, **how)
            elif x.name in point.warm:
                work[f"eigen {x.name}"] = tracked_steps(size, point.warm[x.name], **how)
            else:
                work[f"eigen {x.name}"] = lanczos_steps(size, start=engine.gradient(x.name), **how)
    results = solved(engine, work)
    if settings.trace_method in SUMMED_TRACES:
        results = with_images(engine, results, seed=point.seed("images"))
        _add_up(results, settings.rtol)
    for task, result in results.items():
        kind, layer = task.split(" ", 1)
        seed = point.seed(kind, layer)
        if isinstance(result, TraceEstimate):
            said = note or (engine.note(layer) if settings.trace_method in SUMMED_TRACES else "")
            _trace_rows(table, layer, kind, result, seed, said, wanted, settings.rtol, engine.objective)
        else:
            _eigen_rows(table, layer, result, seed, wanted, point, engine)
            if result.space is not None:
                table.spaces[layer] = result.space


def _use(wanted: Sequence[str], settings: MeasureSettings) -> Use:
    """What the wanted measures ask the engine for: traces of independent layers take ``Probes``, all else products."""
    probes = settings.trace_method in SUMMED_TRACES and any(m in _TRACES for m in wanted)
    if not probes:
        return "products"
    return "probes" if all(m in _TRACES for m in wanted) else "both"


def _better_apart(point: Point) -> bool:
    """Whether traces and products each get graphs of their own, one after the other.

    Graphs that serve both are the largest. Where they do not fit into memory, but those of traces alone do, no round of
    traces has to build any anew; that costs one gradient more. Where neither fits, both share what is built anew.
    Products by torch.func keep no graph, and may be asked for because none can be built.
    """
    memory = point.settings.memory
    if memory is None or point.settings.products != "graph":
        return False
    names = list(dict.fromkeys(n for block in point.blocks.values() for n in block))

    def fit(use: Use) -> bool:
        plan = plan_memory(point.rough, point.theta, names, memory, use)[1]
        return plan.kept == plan.batches

    return not fit("both") and fit("probes")


def _without(reasons: Mapping[str, str], point: Point, wanted: list[str], table: MeasureTable) -> None:
    """Rows of the layers that have a second derivative; the others, and the whole, fail with their ``reasons``."""
    good = tuple(x for x in point.layers if x.name not in reasons)
    if good:
        whole = replace(
            point.layers[0], params=tuple(n for x in good for n in x.params), num_params=sum(x.num_params for x in good)
        )
        _take(replace(point, layers=(whole, *good)), list(wanted), table)
    for layer, reason in reasons.items():
        table.fail(wanted, reason, [layer])


def _trace_rows(
    table: MeasureTable,
    layer: str,
    kind: str,
    result: TraceEstimate,
    seed: int,
    note: str,
    wanted: Sequence[str],
    rtol: float,
    objective: Objective,
) -> None:
    """Add the row of a task "trace" or "weighted"; hutchinson adds both rows, because it takes both from one task."""
    measure = "weighted_trace" if kind == "weighted" else "hessian_trace"
    if measure in wanted:
        trace_row(table, layer, measure, result, seed, objective, note)
    if result.weighted is not None:
        value, stderr = result.weighted
        table.add(
            layer, "weighted_trace", value, seed=seed, converged=stderr <= rtol * abs(value), stderr=stderr,
            num_matvecs=result.num_matvecs,
        )  # fmt: skip


def _eigen_rows(
    table: MeasureTable,
    layer: str,
    result: ExtremeEigenvalues,
    seed: int,
    wanted: Sequence[str],
    point: Point,
    engine: HessianEngine,
) -> None:
    errors: dict[int, tuple[float, str]] = {}
    for measure, end in _ENDS.items():
        if measure in wanted:
            found = getattr(result, end)
            if id(found) not in errors:
                errors[id(found)] = _over_images(found, layer, point, engine)
            error, why = errors[id(found)]
            table.add(
                layer, measure, found.value, seed=seed, converged=found.converged, residual=found.residual,
                num_matvecs=found.num_matvecs, stderr_images=error, untold=why,
            )  # fmt: skip


def _over_images(found: EigenEstimate, layer: str, point: Point, engine: HessianEngine) -> tuple[float, str]:
    """The error of an eigenvalue over draws of images, from v'H_j v of every image; and why it is NaN.

    To first order an eigenvalue moves with v'Hv at its own eigenvector v. Where the neighbouring eigenvalues are no
    farther than this error, another eigenvector takes the outermost place on other images, so that the eigenvalue
    varies less than v'Hv of the one v: in simulations without a spectral gap the error was 1.6 to 1.9 times the
    spread, hence too careful. A resampling of the projected H_j would not mend it: it takes k (k + 1) evaluations for k
    neighbours instead of 2, and the bootstrap of an eigenvalue is inconsistent exactly where eigenvalues coincide.

    Source: Beran and Srivastava 1985, Annals of Statistics 13 (the bootstrap of eigenvalues).
    """
    if found.vector is None:
        return math.nan, ""
    spec = engine.blocks[layer]
    v = found.vector.to(engine.device)
    with second_order():  # differences of losses need full precision
        adds = point.image_losses.along(dict(zip(spec.names, spec.split(v), strict=True)), found.value)
    if adds is None:
        return math.nan, "the loss is no parabola along the eigenvector"
    return error_over_images(adds, point.objective.weights, batch_sizes(point.objective)), ONE_UNIT


def _summed_traces(engine: HessianEngine, measures: Sequence[str], point: Point) -> dict[str, Estimator[TraceEstimate]]:
    """The estimators of all layers' traces and weighted traces, whose sums are the whole model's."""
    settings = point.settings
    traces = {
        f"{kind} {x.name}": Sampled(
            x.name, point.seed(kind, x.name), engine.weights(x.name).abs() if kind == "weighted" else None
        )
        for measure, kind in (("hessian_trace", "trace"), ("weighted_trace", "weighted"))
        if measure in measures
        for x in point.layers
        if x.name != ALL
    }
    return sampled_tasks(
        engine, traces, rtol=settings.rtol, atol_share=settings.atol_share, max_matvecs=settings.max_matvecs
    )


def _trace_tasks(
    engine: HessianEngine, layer: str, measures: Sequence[str], point: Point, common: Mapping[str, Any]
) -> dict[str, Estimator[TraceEstimate]]:
    """The estimators of one layer's trace and weighted trace."""
    method, size = point.settings.trace_method, engine.blocks[layer].size
    plain, weighted = "hessian_trace" in measures, "weighted_trace" in measures
    if not (plain or weighted):
        return {}
    seed = point.seed("trace", layer)
    if method == "hutchinson":
        scale = engine.weights(layer).abs() if weighted else None
        return {f"trace {layer}": hutchinson_steps(size, seed=seed, scale=scale, **common)}
    steps = _METHODS[method]
    tasks = {f"trace {layer}": steps(size, seed=seed, **common)} if plain else {}
    if weighted:
        unscaled = steps(size, seed=point.seed("weighted", layer), **common)
        tasks[f"weighted {layer}"] = scaled(unscaled, engine.weights(layer).abs())
    return tasks


def _add_up(results: dict[str, Any], rtol: float) -> None:
    """Add the whole model's traces, as sums of the layers' independent traces; this costs no further product."""
    for kind in ("trace", "weighted"):
        parts = [r for task, r in results.items() if task.split(" ", 1)[0] == kind]
        if parts:
            value = math.fsum(r.estimate for r in parts)
            stderr = math.sqrt(math.fsum(r.stderr**2 for r in parts))
            spent = max(r.num_matvecs for r in parts)
            adds, blur = added([r.contributions for r in parts]), math.fsum(r.blur for r in parts)
            within = stderr <= rtol * abs(value)
            results[f"{kind} {ALL}"] = TraceEstimate(value, stderr, within, spent, contributions=adds, blur=blur)


def _along(g: Tensor, hg: Tensor) -> Tensor:
    """(g'Hg, g'g, ||Hg||)."""
    return torch.stack([g @ hg, g @ g, hg.norm()])


def _along_gradient(engine: HessianEngine, wanted: Sequence[str], table: MeasureTable) -> None:
    """Add g'Hg / g'g and cos(g, Hg) of every layer; undefined where the gradient g is zero.

    Each layer costs one Hessian-vector product, and one pass over the data serves all layers.
    """
    gradients = {layer: engine.gradient(layer) for layer in engine.blocks}
    products = engine.products({layer: g[:, None] for layer, g in gradients.items()})
    found_of = [_along(g.double(), products[layer][:, 0].double()) for layer, g in gradients.items()]
    for layer, (bend, size, length) in zip(gradients, torch.stack(found_of).tolist(), strict=True):
        row: dict[str, Any] = {"seed": 0, "converged": True, "stderr": 0.0, "num_matvecs": 1}
        row["untold"] = "a ratio of products is no mean over images"
        if size == 0:
            row |= {"stderr": math.nan, "status": "undefined", "note": "the gradient is zero"}
        cosine = bend / (math.sqrt(size) * length) if size and length else 0.0 if size else math.nan
        found = {"gradient_curvature": bend / size if size else math.nan, "gradient_alignment": cosine}
        for measure in _GRADIENT:
            if measure in wanted:
                table.add(layer, measure, found[measure], **row)
