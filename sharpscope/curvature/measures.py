"""Every sharpness measure of every layer at one point of the path: the registry between probes and estimators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sharpscope.clip.model import second_order
from sharpscope.curvature import adaptive, ggn
from sharpscope.curvature.eigen import End, ExtremeEigenvalues, RitzSpace, lanczos_steps
from sharpscope.curvature.graphs import plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import Estimator, Objective, check_symmetric, solve, solve_together
from sharpscope.curvature.precision import ASYMMETRY, in_precision
from sharpscope.curvature.trace import (
    TraceEstimate,
    hutchinson_steps,
    hutchpp_steps,
    per_example_steps,
    scaled,
    xtrace_steps,
)
from sharpscope.curvature.tracking import tracked_steps
from sharpscope.errors import ConfigError, NumericalError
from sharpscope.schema import ALL, MEASURES
from sharpscope.seeds import derive
from sharpscope.weights.layers import Layer

__all__ = ["MeasureResult", "MeasureSettings", "measure_layers"]

_TRACES = ("hessian_trace", "weighted_trace")
_EIGENVALUES: dict[str, End] = {"lambda_max": "largest", "lambda_min": "smallest", "lambda_abs": "dominant"}
_GRADIENT = ("gradient_curvature", "gradient_alignment")
_OUTER: dict[str, Callable[..., dict[str, TraceEstimate]]] = {
    "ggn_trace": ggn.ggn_trace,
    "fisher_trace": ggn.fisher_trace,
}
_TRACE_METHODS: dict[str, Callable[..., Estimator[TraceEstimate]]] = {
    "per_example": per_example_steps,
    "controlled": per_example_steps,
    "xtrace": xtrace_steps,
    "hutchpp": hutchpp_steps,
}
_SUMMED = ("per_example", "controlled")
"""Methods by which the whole model's trace is the sum of its layers'."""
CONTROL_SHARE = 1 / 3
"""Of the tolerance goes to tr G, whose passes serve all layers: leaves sqrt(8/9), 6 % less, to tr(H - G)."""


@dataclass(frozen=True)
class MeasureSettings:
    """What the estimators may spend and how precise they must be; see ``config.StudyConfig`` for each field."""

    seed: int = 0
    rtol: float = 0.05
    max_matvecs: int = 100
    noise_samples: int = 8
    pgd_steps: int = 20
    rho_avg: float = 0.1
    rho_linf: float = 0.002
    rho_l2: float = 0.5
    memory: int | None = None
    trace_method: str = "per_example"
    precision: str = "full"
    density_steps: int = 20
    density_runs: int = 8


@dataclass(frozen=True)
class MeasureResult:
    """Rows for the sharpness table (without pair, alpha and granularity) and what the next alpha starts from."""

    rows: list[dict[str, Any]]
    warm: dict[str, RitzSpace] = field(default_factory=dict, repr=False)
    facts: dict[str, Any] = field(default_factory=dict)


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
    """
    settings = settings or MeasureSettings()
    unknown = [m for m in measures if m not in MEASURES]
    if unknown:
        raise ConfigError(f"measures: unknown measure '{unknown[0]}'. Known: {', '.join(MEASURES)}.")
    if settings.trace_method not in ("hutchinson", *_TRACE_METHODS):
        known = ", ".join(("hutchinson", *_TRACE_METHODS))
        raise ConfigError(f"trace_method: '{settings.trace_method}' is none of {known}.")
    if not layers:
        raise ConfigError("layers: the loss depends on no parameter, so that there is no curvature to measure.")
    names = tuple(n for x in layers for n in x.params)
    whole = Layer(ALL, names, ALL, -1, ALL, sum(x.num_params for x in layers))  # type: ignore[arg-type]
    everything = (whole, *layers)
    rough = in_precision(objective, settings.precision, theta)
    with second_order(tf32=settings.precision == "tf32"):
        table = _Table(everything, partial(derive, settings.seed, *key), settings)
        facts: dict[str, Any] = {}
        spaces: dict[str, RitzSpace] = {}
        if any(m in measures for m in (*_TRACES, *_EIGENVALUES, *_GRADIENT)):
            spaces, facts = _second_order(rough, theta, everything, measures, table, warm or {})
            progress("Hessian")
        for measure in (m for m in _OUTER if m in measures):
            _outer(rough, theta, everything, measure, table)
            progress(measure)
    with second_order():  # differences of losses: always in full precision
        for measure in measures:
            if measure.startswith("sharpness_"):
                _finite_radius(objective, theta, everything, measure, table)
                progress(measure)
    order = {m: i for i, m in enumerate(MEASURES)}
    rows = sorted(table.rows(), key=lambda r: (order[r["measure"]], table.order[r["layer"]]))
    return MeasureResult([r for r in rows if r["measure"] in measures], spaces, facts)


class _Table:
    """Collects rows; adds what every row has, and the layer's share of the whole once all are there."""

    def __init__(self, layers: Sequence[Layer], seed: Callable[..., int], settings: MeasureSettings) -> None:
        self.layers = {x.name: x for x in layers}
        self.order = {x.name: i for i, x in enumerate(layers)}
        self.seed, self.settings = seed, settings
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, layer: str, measure: str, estimate: float, *, seed: int, converged: bool, **more: Any) -> None:
        x = self.layers[layer]
        finite = math.isfinite(estimate)
        per_param = estimate / x.num_params if measure not in (*_EIGENVALUES, *_GRADIENT) and finite else math.nan
        row = {
            "layer": layer, "tower": x.tower, "depth": x.depth, "kind": x.kind, "num_params": x.num_params,
            "measure": measure, "estimate": estimate if finite else math.nan, "stderr": math.nan, "residual": math.nan,
            "converged": bool(converged and finite), "num_matvecs": 0, "seed": seed,
            "status": "failed" if not finite else "ok" if converged else "not_converged",
            "per_param": per_param, "share": math.nan, "rho": math.nan, "note": "" if finite else "not finite",
        }  # fmt: skip
        self._rows[layer, measure] = row | more

    def fail(self, measures: Iterable[str], reason: str, layers: Iterable[str] | None = None) -> None:
        for layer in self.layers if layers is None else layers:
            for measure in measures:
                self.add(layer, measure, math.nan, seed=0, converged=False, note=reason)

    def rows(self) -> list[dict[str, Any]]:
        for (_, measure), row in self._rows.items():
            whole = self._rows.get((ALL, measure))
            if measure not in _GRADIENT and whole is not None and whole["estimate"] not in (0.0, None):
                row["share"] = row["estimate"] / whole["estimate"]
        return list(self._rows.values())


def _second_order(
    objective: Objective,
    theta: Mapping[str, Tensor],
    layers: Sequence[Layer],
    measures: Sequence[str],
    table: _Table,
    warm: Mapping[str, RitzSpace],
) -> tuple[dict[str, RitzSpace], dict[str, Any]]:
    """Traces and eigenvalues: layer by layer on kept graphs, or all layers in lock step when graphs are rebuilt."""
    wanted = [m for m in (*_TRACES, *_EIGENVALUES, *_GRADIENT) if m in measures]
    settings = table.settings
    note = _no_control(objective, theta) if settings.trace_method == "controlled" else ""
    try:
        if settings.trace_method == "controlled" and "hessian_trace" in wanted and not note:
            facts = _controlled_traces(objective, theta, layers, table)
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
    if any(m in measures for m in _GRADIENT):
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
        if ends := [end for measure, end in _EIGENVALUES.items() if measure in measures]:
            how = common | {"seed": table.seed("eigen", x.name), "ends": ends}
            work[f"eigen {x.name}"] = (
                tracked_steps(size, warm[x.name], **how)
                if x.name in warm
                else lanczos_steps(size, start=engine.gradient(x.name), **how)
            )
    results = _solved(engine, work)
    if settings.trace_method in _SUMMED:
        _add_up(results, settings.rtol)
    spaces = {}
    for task, result in results.items():
        kind, layer = task.split(" ", 1)
        seed = table.seed(kind, layer)
        if isinstance(result, TraceEstimate) and kind == "weighted":
            _trace_row(table, layer, "weighted_trace", result, seed, note)
        elif isinstance(result, TraceEstimate):
            _trace_rows(table, layer, result, seed, note)
        else:
            _eigen_rows(table, layer, result, seed)
            if result.space is not None:
                spaces[layer] = result.space
    return spaces, _facts(engine)


def _solved(engine: HessianEngine, work: dict[str, Estimator[Any]]) -> dict[str, Any]:
    """Every task, "<kind> <layer>", on its layer's operator; tasks are let go of as they end."""
    if engine.kept:
        return {task: solve(work.pop(task), engine.operator(task.split(" ", 1)[1])) for task in list(work)}
    return solve_together(
        work, lambda requests: engine.answer({t: (t.split(" ", 1)[1], r) for t, r in requests.items()})
    )


def _no_control(objective: Objective, theta: Mapping[str, Tensor]) -> str:
    """Why the Hessian has no Gauss-Newton part that could be taken off; empty where it has."""
    if not (hasattr(objective, "batch_logits") and hasattr(objective, "batch_labels")):
        return "per_example: the loss gives no logits"
    cross_entropy = ggn.is_cross_entropy(objective, theta)  # type: ignore[arg-type]
    return "" if cross_entropy else "per_example: the loss is not the cross-entropy of its logits"


def _controlled_traces(
    objective: Any, theta: Mapping[str, Tensor], layers: Sequence[Layer], table: _Table
) -> dict[str, Any]:
    """Rows of tr H_ll = tr G_ll + tr R_ll, R = H - G, for every layer and their sum; returns the facts.

    tr G from first derivatives (``ggn.ggn_trace``), to ``CONTROL_SHARE`` of the tolerance; tr R by directions of each
    example's own, until the error of both is within the tolerance of the sum. R is what the logits' own curvature adds,
    mostly small; for a head that the logits are linear in it is zero, and two products see that. Where the parts
    cancel, a tolerance of tr G may not do for the sum: such a row says that it has not converged.

    ``num_matvecs``: products with R plus backward passes for G, which are the same ones for all layers. The engine of R
    lives in here only, before that of H is built, and keeps the memory budget.
    """
    settings, blocks = table.settings, {x.name: x.params for x in layers}
    if settings.memory is not None:
        objective, _ = plan_memory(objective, theta, blocks[ALL], settings.memory)
    control = ggn.ggn_trace(
        objective, theta, blocks, seed=table.seed("control"), rtol=CONTROL_SHARE * settings.rtol,
        max_probes=settings.max_matvecs,
    )  # fmt: skip
    engine = HessianEngine(ggn.Residual(objective), theta, blocks, memory=settings.memory)
    generator = torch.Generator().manual_seed(table.seed("symmetry"))
    check_symmetric(engine.operator(ALL), generator, rtol=ASYMMETRY[settings.precision])
    tasks: dict[str, Estimator[TraceEstimate]] = {
        f"trace {layer}": per_example_steps(
            engine.blocks[layer].size, seed=table.seed("trace", layer), dtype=engine.dtype, device=engine.device,
            rtol=settings.rtol, max_matvecs=settings.max_matvecs, offset=(g.estimate, g.stderr),
        )
        for layer, g in control.items() if layer != ALL
    }  # fmt: skip
    found: dict[str, TraceEstimate] = {t.split(" ", 1)[1]: r for t, r in _solved(engine, tasks).items()}
    # The layers' tr R are independent; their tr G are not, being read off the same passes, so that G's sum is its own.
    whole = control[ALL]
    value = whole.estimate + math.fsum(r.estimate - control[x].estimate for x, r in found.items())
    rest = math.fsum(max(r.stderr**2 - control[x].stderr ** 2, 0.0) for x, r in found.items())
    stderr = math.sqrt(whole.stderr**2 + rest)
    most = max(r.num_matvecs for r in found.values())
    found[ALL] = TraceEstimate(value, stderr, stderr <= settings.rtol * abs(value), most)
    for layer, r in found.items():
        result = replace(r, num_matvecs=r.num_matvecs + whole.num_matvecs)
        _trace_row(table, layer, "hessian_trace", result, table.seed("trace", layer))
    return _facts(engine)


def _facts(engine: HessianEngine) -> dict[str, Any]:
    plan = engine.plan
    return {
        "batch_size": plan.batch_size, "batches": plan.batches, "graphs_kept": plan.kept,
        "graph_bytes": plan.graph_bytes, "unused": len(engine.unused),
    }  # fmt: skip


def _trace_tasks(
    engine: HessianEngine, layer: str, measures: Sequence[str], table: _Table, common: Mapping[str, Any]
) -> dict[str, Estimator[TraceEstimate]]:
    """The estimators of one layer's trace and weighted trace; what is added up from the layers needs none."""
    method, size = table.settings.trace_method, engine.blocks[layer].size
    plain, weighted = (m in measures for m in _TRACES)
    if not (plain or weighted) or (method in _SUMMED and layer == ALL):
        return {}
    seed = table.seed("trace", layer)
    if method == "hutchinson":
        scale = engine.weights(layer).abs() if weighted else None
        return {f"trace {layer}": hutchinson_steps(size, seed=seed, scale=scale, **common)}
    steps = _TRACE_METHODS[method]
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


def _trace_row(table: _Table, layer: str, measure: str, result: TraceEstimate, seed: int, note: str = "") -> None:
    said = {"note": note} if note and math.isfinite(result.estimate) else {}
    table.add(
        layer, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
        num_matvecs=result.num_matvecs, **said,
    )  # fmt: skip


def _trace_rows(table: _Table, layer: str, result: TraceEstimate, seed: int, note: str) -> None:
    _trace_row(table, layer, "hessian_trace", result, seed, note)
    if result.weighted is not None:
        value, stderr = result.weighted
        converged = stderr <= table.settings.rtol * abs(value)
        table.add(
            layer, "weighted_trace", value, seed=seed, converged=converged, stderr=stderr,
            num_matvecs=result.num_matvecs,
        )  # fmt: skip


def _eigen_rows(table: _Table, layer: str, result: ExtremeEigenvalues, seed: int) -> None:
    for measure, end in zip(_EIGENVALUES, (result.largest, result.smallest, result.dominant), strict=True):
        table.add(
            layer, measure, end.value, seed=seed, converged=end.converged, residual=end.residual,
            num_matvecs=end.num_matvecs,
        )  # fmt: skip


def _along_gradient(engine: HessianEngine, table: _Table) -> None:
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


def _outer(
    objective: Objective, theta: Mapping[str, Tensor], layers: Sequence[Layer], measure: str, table: _Table
) -> None:
    """Traces of mean outer products of the logits' gradients, all layers from the same backward passes."""
    if not hasattr(objective, "batch_logits"):
        table.fail([measure], "the loss gives no logits")
        return
    seed = table.seed(measure.removesuffix("_trace"))
    estimates = _OUTER[measure](
        objective,
        theta,
        {x.name: x.params for x in layers},
        seed=seed,
        rtol=table.settings.rtol,
        max_probes=table.settings.max_matvecs,
    )
    for layer, result in estimates.items():
        table.add(
            layer, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
            num_matvecs=result.num_matvecs,
        )  # fmt: skip


def _finite_radius(
    objective: Objective, theta: Mapping[str, Tensor], layers: Sequence[Layer], measure: str, table: _Table
) -> None:
    settings = table.settings
    is_adaptive = not measure.endswith("_absolute")
    with torch.no_grad():
        base = [float(objective.batch_loss(i, theta)) for i in range(len(objective.weights))]
    for x in layers:
        seed = table.seed(measure, x.name)
        if measure.startswith("sharpness_avg"):
            rho = settings.rho_avg
            result = adaptive.sharpness_avg(
                objective, theta, x.params, rho=rho, seed=seed, adaptive=is_adaptive, samples=settings.noise_samples,
                rtol=settings.rtol, base=base,
            )  # fmt: skip
        else:
            l2 = "_l2" in measure
            rho = settings.rho_l2 if l2 else settings.rho_linf
            result = adaptive.sharpness_max(
                objective, theta, x.params, rho=rho, norm="l2" if l2 else "linf", adaptive=is_adaptive,
                steps=settings.pgd_steps,
            )  # fmt: skip
        table.add(
            x.name, measure, result.estimate, seed=seed, converged=result.converged, stderr=result.stderr,
            num_matvecs=result.num_evaluations, rho=rho,
        )  # fmt: skip
