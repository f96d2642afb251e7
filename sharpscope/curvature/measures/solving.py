"""Runs estimators on an engine's blocks, checks its products, and describes how it laid out its graphs in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.images import batch_sizes, by_batch
from sharpscope.curvature.operator import Estimator, Probes, check_symmetric, solve, solve_together
from sharpscope.curvature.trace import FIRST, TraceEstimate
from sharpscope.vocabulary import ALL

__all__ = ["check", "facts_of", "solved", "with_images"]


def check(engine: HessianEngine, seed: Callable[..., int], asymmetry: float | None) -> None:
    """Raise NumericalError unless products with the whole Hessian are symmetric up to ``asymmetry``.

    There is nothing to check where no product is taken, because tangents answer everything.
    """
    if engine.twice:
        generator = torch.Generator().manual_seed(seed("symmetry"))
        check_symmetric(engine.operator(ALL), generator, rtol=asymmetry)


def solved(engine: HessianEngine, work: dict[str, Estimator[Any]]) -> dict[str, Any]:
    """Run every task, named "<kind> <layer>", on its layer's operator; each is removed from ``work`` once it ends."""
    if engine.kept:
        return {task: solve(work.pop(task), engine.operator(task.split(" ", 1)[1])) for task in list(work)}
    return solve_together(
        work, lambda requests: engine.answer({t: (t.split(" ", 1)[1], r) for t, r in requests.items()})
    )


def with_images(engine: HessianEngine, results: dict[str, Any], *, seed: int) -> dict[str, Any]:
    """The traces "<kind> <layer>" of ``per_example_steps`` with their contributions cut into the engine's batches.

    A layer so small that its trace was taken exactly at once is probed for what its images add; ``seed``: of that.
    """
    generator = torch.Generator().manual_seed(seed)
    traces = {task: r for task, r in results.items() if isinstance(r, TraceEstimate)}
    small = {task: task.split(" ", 1) for task, r in traces.items() if r.contributions is None}
    requests = {task: (layer, Probes(FIRST, generator, kind == "weighted")) for task, (kind, layer) in small.items()}
    probes = engine.answer(requests) if requests else {}
    sizes = batch_sizes(engine.objective)
    for task, result in traces.items():
        if task in small:
            parts = probes[task].double().cpu()
            result = replace(result, contributions=(parts.mean(1),), blur=float(parts.var(1).sum()) / FIRST)
        assert result.contributions is not None
        rows = engine.units[task.split(" ", 1)[1]]
        results[task] = replace(result, contributions=by_batch(result.contributions[0], rows, sizes))
    return results


def facts_of(engine: HessianEngine) -> dict[str, Any]:
    plan = engine.plan
    return {
        "batch_size": plan.batch_size, "batches": plan.batches, "graphs_kept": plan.kept,
        "graph_bytes": plan.graph_bytes, "unused": len(engine.unused),
    }  # fmt: skip
