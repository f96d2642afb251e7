"""Runs estimators on an engine's blocks, checks its products, and describes how it laid out its graphs in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sharpscope.curvature.hvp import HessianEngine, LayerHessian
from sharpscope.curvature.imageerrors import batch_sizes, by_batch
from sharpscope.curvature.operator import Estimator, Probes, check_symmetric, solve, solve_together
from sharpscope.curvature.trace import FIRST, Pilot, TraceEstimate, per_example_steps
from sharpscope.vocabulary import ALL

__all__ = ["Sampled", "check", "facts_of", "sampled_tasks", "solved", "with_images"]


def check(engine: HessianEngine, seed: Callable[..., int], asymmetry: float | None) -> None:
    """Raise NumericalError unless products with the whole Hessian are symmetric up to ``asymmetry``.

    The Hessian is that of one batch: what could be wrong is an operation's formula, which all batches share. There is
    nothing to check where no product is taken, because tangents answer everything.
    """
    if engine.twice:
        generator = torch.Generator().manual_seed(seed("symmetry"))
        check_one = partial(check_symmetric, _OneBatch(engine, ALL), generator, rtol=asymmetry)
        engine.team.gather("the symmetry of products", check_one)


class _OneBatch(LayerHessian):
    """The Hessian block of one batch's loss."""

    def matmat(self, vs: Tensor) -> Tensor:
        return self.engine.of_one_batch(self.layer, vs)


def solved(engine: HessianEngine, work: dict[str, Estimator[Any]]) -> dict[str, Any]:
    """Run every task, named "<kind> <layer>", on its layer's operator; each is removed from ``work`` once it ends."""
    if engine.kept:
        return {task: solve(work.pop(task), engine.operator(task.split(" ", 1)[1])) for task in list(work)}
    return solve_together(
        work, lambda requests: engine.answer({t: (t.split(" ", 1)[1], r) for t, r in requests.items()})
    )


@dataclass(frozen=True)
class Sampled:
    """A trace that is to be sampled: of which layer, weighted or not, and what of it is known beside the samples."""

    layer: str
    seed: int
    scale: Tensor | None = None
    known: tuple[float, float] = (0.0, 0.0)
    """A part of the trace from elsewhere, and its standard error."""
    before_head: bool = False

    @property
    def weighted(self) -> bool:
        return self.scale is not None


def sampled_tasks(
    engine: HessianEngine, traces: Mapping[str, Sampled], *, rtol: float, atol_share: float, max_matvecs: int
) -> dict[str, Estimator[TraceEstimate]]:
    """``per_example_steps`` for the ``traces`` of all layers, whose sum is the whole model's; weighted ones apart.

    A layer's tolerance is ``rtol`` times the larger of its own trace and ``atol_share`` times the whole model's, as far
    as the first products of all layers tell that. With a share of 0 a layer whose trace is nearly 0 takes all products.
    """
    found: dict[str, Estimator[TraceEstimate]] = {}
    pilots = {
        task: Pilot(torch.Generator().manual_seed(x.seed))
        for task, x in traces.items()
        if atol_share and engine.blocks[x.layer].size > FIRST
    }
    asked = {t: (traces[t].layer, p.request(traces[t].weighted, traces[t].before_head)) for t, p in pilots.items()}
    for task, parts in (engine.answer(asked) if asked else {}).items():
        pilots[task].parts = parts
    sums = {
        weighted: math.fsum(traces[t].known[0] + p.mean for t, p in pilots.items() if traces[t].weighted == weighted)
        for weighted in (False, True)
    }
    atol = {weighted: rtol * atol_share * abs(x) if math.isfinite(x) else 0.0 for weighted, x in sums.items()}
    for task, x in traces.items():
        found[task] = per_example_steps(
            engine.blocks[x.layer].size, dtype=engine.dtype, device=engine.device, seed=x.seed, rtol=rtol,
            max_matvecs=max_matvecs, scale=x.scale, offset=x.known, before_head=x.before_head,
            atol=atol[x.weighted], pilot=pilots.get(task),
        )  # fmt: skip
    return found


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
