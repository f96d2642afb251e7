"""Traces of the Gauss-Newton and Fisher blocks, and the Hessian's trace with the Gauss-Newton part taken off."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature import ggn
from sharpscope.curvature.arithmetic import ASYMMETRY, second_order
from sharpscope.curvature.graphs import plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.images import added
from sharpscope.curvature.measures.rows import MeasureTable, Point, trace_row
from sharpscope.curvature.measures.solving import facts_of, solved, with_images
from sharpscope.curvature.operator import Estimator, Objective, check_symmetric
from sharpscope.curvature.trace import TraceEstimate, per_example_steps
from sharpscope.vocabulary import ALL

__all__ = ["CONTROL_SHARE", "controlled_traces", "no_control", "take"]

_ESTIMATORS: dict[str, Callable[..., dict[str, TraceEstimate]]] = {
    "ggn_trace": ggn.ggn_trace,
    "fisher_trace": ggn.fisher_trace,
}
CONTROL_SHARE = 1 / 3
"""Of the tolerance goes to tr G, whose passes serve all layers: leaves sqrt(8/9), 6 % less, to tr(H - G)."""


def no_control(objective: Objective, theta: Mapping[str, Tensor]) -> str:
    """Why the Hessian has no Gauss-Newton part that could be taken off; empty where it has."""
    if not (hasattr(objective, "batch_logits") and hasattr(objective, "batch_labels")):
        return "per_example: the loss gives no logits"
    cross_entropy = ggn.is_cross_entropy(objective, theta)  # type: ignore[arg-type]
    return "" if cross_entropy else "per_example: the loss is not the cross-entropy of its logits"


def controlled_traces(point: Point, table: MeasureTable) -> None:
    """Rows of tr H_ll = tr G_ll + tr R_ll, R = H - G, for every layer and their sum.

    tr G from first derivatives (``ggn.ggn_trace``), to ``CONTROL_SHARE`` of the tolerance; tr R by directions of each
    example's own, until the error of both is within the tolerance of the sum. R is what the logits' own curvature adds,
    mostly small; for a head that the logits are linear in it is zero, and two products see that. Where the parts
    cancel, a tolerance of tr G may not do for the sum: such a row says that it has not converged.

    ``num_matvecs``: products with R plus backward passes for G, which are the same ones for all layers. The engine of R
    lives in here only, before that of H is built, and keeps the memory budget.
    """
    settings, blocks, theta = point.settings, point.blocks, point.theta
    objective: Any = point.rough
    if settings.memory is not None:
        objective, _ = plan_memory(objective, theta, blocks[ALL], settings.memory)
    control = ggn.ggn_trace(
        objective, theta, blocks, seed=point.seed("control"), rtol=CONTROL_SHARE * settings.rtol,
        max_probes=settings.max_matvecs,
    )  # fmt: skip
    engine = HessianEngine(ggn.Residual(objective), theta, blocks, memory=settings.memory)
    generator = torch.Generator().manual_seed(point.seed("symmetry"))
    check_symmetric(engine.operator(ALL), generator, rtol=ASYMMETRY[settings.precision])
    tasks: dict[str, Estimator[TraceEstimate]] = {
        f"trace {layer}": per_example_steps(
            engine.blocks[layer].size, seed=point.seed("trace", layer), dtype=engine.dtype, device=engine.device,
            rtol=settings.rtol, max_matvecs=settings.max_matvecs, offset=(g.estimate, g.stderr),
        )
        for layer, g in control.items() if layer != ALL
    }  # fmt: skip
    rest = with_images(engine, solved(engine, tasks), seed=point.seed("images", "control"))
    found: dict[str, TraceEstimate] = {}
    for task, r in rest.items():
        layer = task.split(" ", 1)[1]
        found[layer] = replace(r, contributions=added([control[layer].contributions or (), r.contributions]))
    # The layers' tr R are independent; their tr G are not, being read off the same passes, so that G's sum is its own.
    whole = control[ALL]
    value = whole.estimate + math.fsum(r.estimate - control[x].estimate for x, r in found.items())
    beside = math.fsum(max(r.stderr**2 - control[x].stderr ** 2, 0.0) for x, r in found.items())
    stderr = math.sqrt(whole.stderr**2 + beside)
    most = max(r.num_matvecs for r in found.values())
    blur, adds = math.fsum(r.blur for r in found.values()), added([r.contributions or () for r in found.values()])
    within = stderr <= settings.rtol * abs(value)
    found[ALL] = TraceEstimate(value, stderr, within, most, contributions=adds, blur=blur)
    for layer, r in found.items():
        result = replace(r, num_matvecs=r.num_matvecs + whole.num_matvecs)
        trace_row(table, layer, "hessian_trace", result, point.seed("trace", layer), engine.objective)
    table.facts = facts_of(engine)


def take(point: Point, measures: Sequence[str], table: MeasureTable) -> None:
    """Traces of mean outer products of the logits' gradients, all layers from the same backward passes."""
    for measure in measures:
        if not hasattr(point.rough, "batch_logits"):
            table.fail([measure], "the loss gives no logits")
            continue
        seed = point.seed(measure.removesuffix("_trace"))
        with second_order(tf32=point.settings.precision == "tf32"):
            estimates = _ESTIMATORS[measure](
                point.rough, point.theta, point.blocks, seed=seed, rtol=point.settings.rtol,
                max_probes=point.settings.max_matvecs,
            )  # fmt: skip
        for layer, result in estimates.items():
            trace_row(table, layer, measure, result, seed, point.rough)
        point.progress(measure)
