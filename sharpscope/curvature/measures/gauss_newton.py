"""Traces of the Gauss-Newton and Fisher blocks, and the Hessian's trace as a known part plus a sampled rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from sharpscope.curvature import ggn
from sharpscope.curvature.arithmetic import ASYMMETRY, second_order
from sharpscope.curvature.embedding import embedding_trace
from sharpscope.curvature.graphs import plan_memory
from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.imageerrors import added
from sharpscope.curvature.measures.rows import MeasureTable, Point, trace_row
from sharpscope.curvature.measures.solving import Sampled, check, facts_of, sampled_tasks, solved, with_images
from sharpscope.curvature.operator import Objective
from sharpscope.curvature.trace import TraceEstimate
from sharpscope.vocabulary import ALL

__all__ = ["CONTROL_SHARE", "EMBEDDING_SHARE", "controlled", "controlled_traces", "no_control", "take"]

_ESTIMATORS: dict[str, Callable[..., dict[str, TraceEstimate]]] = {
    "ggn_trace": ggn.ggn_trace,
    "fisher_trace": ggn.fisher_trace,
}
CONTROL_SHARE = 1 / 3
"""The share of the error tolerance that tr G may use up. The backward passes for G serve all layers at once, so that a
small share is cheap; tr(H - G) is left with sqrt(1 - 1/9) = 94 % of the tolerance. A larger share saves backward passes
for G and costs Hessian-vector products."""
EMBEDDING_SHARE = 1 / 2
"""The same share for the part of the trace that comes through the embeddings. It is larger, because sampling
the rest is cheaper there."""


def no_control(objective: Objective, theta: Mapping[str, Tensor]) -> str:
    """The reason why the Hessian of ``objective`` has no Gauss-Newton part to separate; empty where it has one."""
    if not (hasattr(objective, "batch_logits") and hasattr(objective, "batch_labels")):
        return "trace method per_example was used, because the loss provides no logits"
    cross_entropy = ggn.is_cross_entropy(objective, theta)  # type: ignore[arg-type]
    why = "trace method per_example was used, because the loss is not the cross-entropy of its logits"
    return "" if cross_entropy else why


def controlled_traces(point: Point, table: MeasureTable) -> None:
    """Add the rows of tr H_ll of every layer and of their sum, from a known part and a sampled rest (``controlled``).

    Where tr H_ll is small because both parts cancel, the error of the known part alone may exceed the tolerance; such a
    row has the status ``not_converged``.
    """
    settings = point.settings
    found, engine = controlled(
        point.rough, point.theta, point.blocks, seed=point.seed, rtol=settings.rtol, max_matvecs=settings.max_matvecs,
        atol_share=settings.atol_share, memory=settings.memory, asymmetry=ASYMMETRY[settings.precision],
    )  # fmt: skip
    for layer, result in found.items():
        trace_row(table, layer, "hessian_trace", result, point.seed("trace", layer), engine.objective)
    table.facts = facts_of(engine)


def controlled(
    objective: Objective,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    *,
    seed: Callable[..., int],
    rtol: float,
    max_matvecs: int,
    atol_share: float,
    memory: int | None = None,
    asymmetry: float | None = None,
) -> tuple[dict[str, TraceEstimate], HessianEngine]:
    """tr H_ll of every block and, under ``ALL``, of their sum: a part known from first derivatives, and a sampled rest.

    The loss is a function of the network's embeddings, whose curvature M is small and known. tr J'MJ comes from
    backward passes that serve all layers at once (``curvature.embedding``). The rest, which comes from the curvature
    of the embeddings themselves, is sampled with an independent direction for every example, until the error of the sum
    is within the tolerance; it mostly is small. A layer of the head itself has no embedding behind it and is sampled
    as by ``per_example``.

    Where the embeddings cannot be told (an operation without a rule behind any layer) or are too large for the network
    (``embedding.SMALL``), the logits take their place: tr H = tr G + tr(H - G) with the Gauss-Newton part G
    (``ggn.ggn_trace``).

    Args:
        objective: a mean cross-entropy with logits and labels.
        theta, memory: as for ``HessianEngine``, whose graphs are released before another is built.
        blocks: layer name -> parameter names; may have the whole model under ``ALL``.
        seed: a function of words that gives a seed for each.
        rtol, max_matvecs: as for ``per_example_trace``.
        atol_share: as for ``solving.sampled_tasks``.
        asymmetry: as for ``solving.check``.

    ``num_matvecs`` of a result: probes, plus the backward passes for the known part, which all layers share. Also
    returns the engine that was used.

    Raises:
        NumericalError: the loss, its gradient or its curvature is not finite, or products are not symmetric.
    """
    if memory is not None:
        names = list(dict.fromkeys(n for block in blocks.values() for n in block))
        objective, _ = plan_memory(objective, theta, names, memory, "probes")
    common: dict[str, Any] = {"rtol": rtol, "max_matvecs": max_matvecs}
    known, engine, split = _known_part(objective, theta, blocks, seed, memory, common)
    check(engine, seed, asymmetry)
    traces = {}
    for layer in blocks:
        if layer != ALL:
            g = known.get(layer)
            elsewhere = (0.0, 0.0) if g is None else (g.estimate, g.stderr)
            traces[f"trace {layer}"] = Sampled(
                layer, seed("trace", layer), known=elsewhere, before_head=split and g is not None
            )
    results = solved(engine, sampled_tasks(engine, traces, atol_share=atol_share, **common))
    whole_already = {t for t, r in results.items() if split and r.contributions is None}  # by unit vectors, see steps
    found: dict[str, TraceEstimate] = {}
    for task, r in with_images(engine, results, seed=seed("images", "control")).items():
        layer = task.split(" ", 1)[1]
        beside = known[layer].contributions if layer in known and task not in whole_already else None
        adds = r.contributions if beside is None else added([beside, r.contributions])
        found[layer] = replace(r, contributions=adds)
    # The layers' sampled rests are independent, so that their variances add up. Their known parts are not, because they
    # come from the same backward passes; the error of their sum is therefore the one that is stated with the sum.
    whole, nothing = known[ALL], TraceEstimate(0.0, 0.0, True, 0)
    value = whole.estimate + math.fsum(r.estimate - known.get(x, nothing).estimate for x, r in found.items())
    rest = math.fsum(max(r.stderr**2 - known.get(x, nothing).stderr ** 2, 0.0) for x, r in found.items())
    stderr = math.sqrt(whole.stderr**2 + rest)
    most = max(r.num_matvecs for r in found.values())
    blur, adds = math.fsum(r.blur for r in found.values()), added([r.contributions or () for r in found.values()])
    found[ALL] = TraceEstimate(value, stderr, stderr <= rtol * abs(value), most, contributions=adds, blur=blur)
    return {x: replace(r, num_matvecs=r.num_matvecs + whole.num_matvecs) for x, r in found.items()}, engine


def _known_part(
    objective: Any,
    theta: Mapping[str, Tensor],
    blocks: Mapping[str, Sequence[str]],
    seed: Callable[..., int],
    memory: int | None,
    how: Mapping[str, Any],
) -> tuple[dict[str, TraceEstimate], HessianEngine, bool]:
    """The known part by layers and under ``ALL``, the engine of the rest, whether the split is at the embeddings."""
    most, whole = how["max_matvecs"], {ALL: tuple(dict.fromkeys(n for block in blocks.values() for n in block))}
    rtol = EMBEDDING_SHARE * how["rtol"]
    known = embedding_trace(objective, theta, blocks, seed=seed("control"), rtol=rtol, max_probes=most, memory=memory)
    if known is not None:
        engine = HessianEngine(objective, theta, {**whole, **blocks}, memory=memory, use="probes")
        before = frozenset() if engine.twice else engine.before_head()
        if all(before.issuperset(blocks[x]) for x in known if x != ALL):
            return known, engine, True
        del engine
    known = ggn.ggn_trace(
        objective, theta, {**whole, **blocks}, seed=seed("control"), rtol=CONTROL_SHARE * how["rtol"], max_probes=most
    )
    engine = HessianEngine(ggn.Residual(objective), theta, {**whole, **blocks}, memory=memory, use="probes")
    return known, engine, False


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
