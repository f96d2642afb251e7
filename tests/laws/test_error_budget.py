"""A layer's tolerance is relative to the larger of its own trace and a share of the whole model's."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sharpscope
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.draws import rademacher
from sharpscope.curvature.measures.rows import MeasureSettings
from sharpscope.curvature.measures.solving import Sampled, sampled_tasks
from sharpscope.curvature.operator import Probes, solve
from sharpscope.curvature.trace import Pilot, TraceEstimate, per_example_steps
from sharpscope.errors import ConfigError

RTOL, SHARE = 0.05, 0.01


@dataclass
class Block:
    """The Hessian of a mean over examples: one symmetric matrix [p, p] each, [n, p, p]."""

    examples: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.examples.shape[1], self.examples.shape[1]

    dtype = torch.float64
    device = torch.device("cpu")

    def matmat(self, v: Tensor) -> Tensor:
        return self.examples.mean(0) @ v

    def answer(self, request: Probes) -> Tensor:
        n, p, _ = self.examples.shape
        v = rademacher((n, p, request.count), request.generator).double()
        return torch.einsum("npk,npq,nqk->nk", v, self.examples, v) / n

    @property
    def trace(self) -> float:
        return float(self.examples.mean(0).trace())


class Engine:
    """The blocks of two layers, as ``sampled_tasks`` sees an engine; counts the probes that it answers."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, operators: dict[str, Block]) -> None:
        self.operators = operators
        self.blocks = {n: SimpleNamespace(size=b.shape[0]) for n, b in operators.items()}

    def answer(self, requests: dict[str, tuple[str, Probes]]) -> dict[str, Tensor]:
        return {task: self.operators[layer].answer(probes) for task, (layer, probes) in requests.items()}


def symmetric(seed: int, trace: float, noise: float, n: int = 16, p: int = 200) -> Block:
    """Matrices with a mean trace of about ``trace``, whose probes vary by ``noise``."""
    m = torch.randn(n, p, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * noise
    return Block((m + m.transpose(1, 2)) / 2 + torch.eye(p, dtype=torch.float64) * trace / p)


def engine(seed: int = 0) -> Engine:
    """A layer that holds nearly all of the curvature, and one whose trace is next to nothing beside its noise."""
    return Engine({"large": symmetric(seed, 100.0, 0.02), "small": symmetric(seed + 1, 0.01, 0.002)})


def measured(made: Engine, share: float, seed: int = 0, most: int = 60) -> dict[str, TraceEstimate]:
    traces = {n: Sampled(n, seed + i) for i, n in enumerate(made.blocks)}
    tasks = sampled_tasks(made, traces, rtol=RTOL, atol_share=share, max_matvecs=most)  # type: ignore[arg-type]
    return {n: solve(steps, made.operators[n]) for n, steps in tasks.items()}


def test_a_layer_with_next_to_no_trace_no_longer_takes_all_products() -> None:
    own, shared = measured(engine(), 0.0), measured(engine(), SHARE)
    assert own["small"].num_matvecs == 60 and not own["small"].converged
    assert shared["small"].num_matvecs < 10 and shared["small"].converged
    assert shared["large"] == own["large"]  # its own trace is the larger: not a bit changes
    tolerance = RTOL * SHARE * abs(shared["large"].estimate + shared["small"].estimate)
    assert RTOL * abs(shared["small"].estimate) < shared["small"].stderr <= 1.1 * tolerance  # stated, and small enough


def test_the_stated_error_still_covers_the_trace_in_19_of_20_draws() -> None:
    made = engine(5)
    found = [measured(made, SHARE, seed=10 * i)["small"] for i in range(100)]
    inside = sum(abs(r.estimate - made.operators["small"].trace) <= 1.96 * r.stderr for r in found)
    assert 90 <= inside <= 100 and len({r.estimate for r in found}) == 100


def test_first_products_that_were_taken_before_are_those_of_the_estimator_itself() -> None:
    block = symmetric(3, 5.0, 0.01)
    how: dict[str, Any] = {"dtype": block.dtype, "device": block.device, "rtol": 0.02, "max_matvecs": 40}
    alone = solve(per_example_steps(200, seed=7, **how), block)
    pilot = Pilot(torch.Generator().manual_seed(7))
    pilot.parts = block.answer(pilot.request(weighted=False, before_head=False))
    assert solve(per_example_steps(200, seed=7, pilot=pilot, **how), block) == alone
    assert alone.num_matvecs > 2 and pilot.mean == pytest.approx(block.trace, rel=0.5)


def test_the_share_is_of_the_whole_trace_with_what_is_known_of_it_elsewhere() -> None:
    made = engine()
    traces = {n: Sampled(n, i, known=(900.0, 0.0) if n == "large" else (0.0, 0.0)) for i, n in enumerate(made.blocks)}
    tasks = sampled_tasks(made, traces, rtol=RTOL, atol_share=0.001, max_matvecs=60)  # type: ignore[arg-type]
    found = {n: solve(steps, made.operators[n]) for n, steps in tasks.items()}
    assert found["small"].converged and found["small"].stderr <= 1.1 * RTOL * 0.001 * 1000
    assert not measured(made, 0.0001)["small"].converged  # without the known part the same tolerance is far smaller


def test_a_larger_share_never_takes_more_products() -> None:
    taken = [[r.num_matvecs for r in measured(engine(), share).values()] for share in (0.0, SHARE / 10, SHARE, 1.0)]
    assert all(more >= less for one, other in pairwise(taken) for more, less in zip(one, other, strict=True))
    assert sum(taken[0]) > sum(taken[2]) > sum(taken[3])


def test_the_default_stands_once_for_studies_settings_and_the_notebook() -> None:
    shown = signature(sharpscope.layer_curvature).parameters["atol_share"].default
    assert MeasureSettings().atol_share == StudyConfig().atol_share == shown == 0.001


def test_a_share_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="atol_share"):
        StudyConfig(atol_share=-0.1)
