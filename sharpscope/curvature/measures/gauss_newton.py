"""Traces of the Gauss-Newton and Fisher blocks, and the Hessian's trace as Gauss-Newton trace plus a remainder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sharpscope.curvature import ggn
from sharpscope.curvature.arithmetic import second_order
from sharpscope.curvature.graphs import plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.images import added
from sharpscope.curvature.measures.rows import MeasureTable, Point, trace_row
from sharpscope.curvature.measures.solving import check, facts_of, solved, with_images
from sharpscope.curvature.operator import Estimator, Objective
from sharpscope.curvature.trace import TraceEstimate, per_example_steps
from sharpscope.vocabulary import ALL

__all__ = ["CONTROL_SHARE", "controlled_traces", "no_control", "take"]

_ESTIMATORS: dict[str, Callable[..., dict[str, TraceEstimate]]] = {
    "ggn_trace": ggn.ggn_trace,
    "fisher_trace": ggn.fisher_trace,
}
CONTROL_SHARE = 1 / 3
"""The share of the error tolerance that tr G may use up. The backward passes for G serve all layers at once, so that a
small share is cheap; tr(H - G) is left with sqrt(1 - 1/9) = 94 % of the tolerance. A larger share saves backward passes
for G and costs Hessian-vector products."""


def no_control(objective: Objective, theta: Mapping[str, Tensor]) -> str:
    """The reason why the Hessian of ``objective`` has no Gauss-Newton part to separate; empty where it has one."""
    if not (hasattr(objective, "batch_logits") and hasattr(objective, "batch_labels")):
        return "trace method per_example was used, because the loss provides no logits"
    cross_entropy = ggn.is_cross_entropy(objective, theta)  # type: ignore[arg-type]
    why = "trace method per_example was used, because the loss is not the cross-entropy of its logits"
    return "" if cross_entropy else why


def controlled_traces(point: Point, table: MeasureTable) -> None:
    """Add the rows of tr H_ll = tr G_ll + tr R_ll, with R = H - G, for every layer and for their sum.

    tr G comes from first derivatives (``ggn.ggn_trace``) and is estimated to ``CONTROL_SHARE`` of the tolerance. tr R
    comes from Hessian-vector products with an independent direction for every example, until the error of the sum is
    within the tolerance. R is the contribution of the logits' own curvature and is mostly small. It is zero for a head
    in which the logits are linear; two products suffice to see that. Where tr G and tr R cancel, the error of tr G
    alone may exceed the tolerance of the sum; such a row has the status ``not_converged``.

    ``num_matvecs`` of a row: products with R, plus the backward passes for G, which all layers share. The engine of R
    respects the memory budget and is released before the engine of H is built.
    """
    settings, blocks, theta = point.settings, point.blocks, point.theta
    objective: Any = point.rough
    if settings.memory is not None:
        objective, _ = plan_memory(objective, theta, blocks[ALL], settings.memory)
    control = ggn.ggn_trace(
        objective, theta, blocks, seed=point.seed("control"), rtol=CONTROL_SHARE * settings.rtol,
        max_probes=settings.max_matvecs,
    )  # fmt: skip
    engine = HessianEngine(ggn.Residual(objective), theta, blocks, memory=settings.memory, use="probes")
    check(engine, point)
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
    # The layers' tr R are independent, so that their variances add up. Their tr G are not, because they come from the
    # same backward passes; the error of their sum is therefore the one that ggn_trace states for the whole model.
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
    """Add the rows of the Gauss-Newton and Fisher traces; all layers share the same backward passes."""
    for measure in measures:
        if not hasattr(point.rough, "batch_logits"):
            table.fail([measure], "the loss provides no logits, which this measure needs")
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
