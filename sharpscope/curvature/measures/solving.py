"""Runs estimators on an engine's blocks, and describes how the engine laid out its graphs in memory."""

from __future__ import annotations

from typing import Any

from sharpscope.curvature.hvp import HessianEngine
from sharpscope.curvature.operator import Estimator, solve, solve_together

__all__ = ["facts_of", "solved"]


def solved(engine: HessianEngine, work: dict[str, Estimator[Any]]) -> dict[str, Any]:
    """Run every task, named "<kind> <layer>", on its layer's operator; each is removed from ``work`` once it ends."""
    if engine.kept:
        return {task: solve(work.pop(task), engine.operator(task.split(" ", 1)[1])) for task in list(work)}
    return solve_together(
        work, lambda requests: engine.answer({t: (t.split(" ", 1)[1], r) for t, r in requests.items()})
    )


def facts_of(engine: HessianEngine) -> dict[str, Any]:
    plan = engine.plan
    return {
        "batch_size": plan.batch_size, "batches": plan.batches, "graphs_kept": plan.kept,
        "graph_bytes": plan.graph_bytes, "unused": len(engine.unused),
    }  # fmt: skip
