"""What ``plan`` rests on: a small part of the real job, chosen by what it takes, and scaled to the whole."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sharpscope
from sharpscope.clip.model import ClipModel
from sharpscope.config.study import StudyConfig
from sharpscope.curvature.graphs import MemoryPlan
from sharpscope.curvature.measures.registry import measure_layers
from sharpscope.machine.ranks import Ranks
from sharpscope.study import timing
from sharpscope.study.context import Context, load_study_pair
from sharpscope.study.plan import plan


@pytest.fixture(scope="module")
def config(smallest: StudyConfig) -> StudyConfig:
    return replace(
        smallest, measures=("hessian_trace", "lambda_max"), probe_size=24, batch_size=8, rtol=0.15, max_matvecs=40
    )


@pytest.fixture(scope="module")
def context(config: StudyConfig) -> Context:
    return Context.load(config, config.pairs[0])


def layout(context: Context, kept: int = 3) -> MemoryPlan:
    return MemoryPlan(None, 1, 8, len(context.probe.batches), kept)


def test_a_part_of_a_probe_is_spread_over_all_its_batches(context: Context) -> None:
    probe, theta = context.probe, context.theta(0.5)
    losses = probe.sample_losses(theta)
    for n in (1, 2, 7, probe.n):
        part = probe.part(n)
        assert (part.n, part.batch_sizes, part.weights) == (n, (n,), (1.0,))
        places = torch.linspace(0, probe.n - 1, n).round().long()
        torch.testing.assert_close(part.sample_losses(theta), losses[places], rtol=1e-4, atol=1e-5)
    assert probe.part(3).rebatched(2).weights == pytest.approx((2 / 3, 1 / 3))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_thinned_probe_keeps_its_share_of_every_batch(context: Context, n: int) -> None:
    probe, theta = context.probe, context.theta(0.5)
    thin = probe.thinned(n)
    kept = [math.ceil(size * n / probe.n) for size in probe.batch_sizes]
    assert thin.batch_sizes == tuple(kept) and thin.n == sum(kept) and sum(thin.weights) == pytest.approx(1)
    losses, first = probe.sample_losses(theta), 0
    for size, few, part in zip(probe.batch_sizes, kept, thin.sample_losses(theta).split(kept), strict=True):
        places = torch.linspace(0, size - 1, few).round().long()
        torch.testing.assert_close(part, losses[first : first + size][places], rtol=1e-4, atol=1e-5)
        first += size
    assert probe.thinned(probe.n) is probe


def test_as_much_is_tried_as_the_time_allows(context: Context) -> None:
    """Images first, then layers; the trial of half the images may take twice the time an image."""
    every, plan = len(context.layers), layout(context)
    seen = []
    for gradient in (1e-6, 0.3, 1.0, 3.0, 10.0, 30.0, 1e6):
        found = timing._affordable(context, gradient, plan)
        seen.append((0, 0) if found is None else (found[0], len(found[1])))
    assert seen[0] == (8, every) and seen[-1] == (0, 0)
    assert [n for n, _ in seen] == sorted((n for n, _ in seen), reverse=True) and len(set(seen)) >= 4
    few = next(timing._affordable(context, g, plan) for g in (1.0, 3.0, 10.0, 30.0))
    assert few is not None and few[1][0] == context.layers[0] and few[1][-1] == context.layers[-1]


def test_what_is_tried_is_scaled_to_the_whole(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """By images and by layers, with a round of rebuilt graphs for every product where they do not fit."""

    @contextmanager
    def clock(context: Context) -> Iterator[Any]:
        yield timing._Clock(2.0)

    monkeypatch.setattr(timing, "_clock", clock)
    monkeypatch.setattr(timing, "_affordable", lambda c, g, layout: (6, c.layers[:3]))
    monkeypatch.setattr(timing, "_SECONDS", 4.5)  # enough for two of the three alphas
    trial, seconds = timing._tried(context, 0.0, layout(context))
    assert trial is not None and (trial.alphas, trial.images, trial.layers) == (2, 6, 3)
    assert seconds == pytest.approx(2.0 * 4 * len(context.layers) / 3)
    _, again = timing._tried(context, 0.5, layout(context, kept=1))
    assert again - seconds >= trial.products["eigenvalues"] * 2 * 0.5 * 2 / 3 - 1e-9


def test_a_part_with_a_wider_tolerance_takes_about_the_products_of_the_whole(context: Context) -> None:
    theta, layers = context.theta(0.5), context.layers
    rows = measure_layers(context.probe, theta, layers, ["hessian_trace"], context.settings).rows
    whole = statistics.median(r["num_matvecs"] for r in rows)
    _, tried, _ = timing._measured(context, context.probe.part(6), layers, ["hessian_trace"], 0.5, {})
    assert whole / 2 <= statistics.median(r["num_matvecs"] for r in tried) <= 2 * whole
    assert whole > 2  # it does depend on what is found


def test_without_time_to_try_the_plan_says_that_it_guesses(
    config: StudyConfig, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "_SECONDS", 1e9)  # a busy machine must not shrink the trial
    told = sharpscope.plan(config)
    assert f"of the 24 probe images and {len(context.layers)} of the {len(context.layers)} layers" in told
    assert "for traces" in told and "for eigenvalues" in told and "GUESS" not in told
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    assert "a GUESS for the curvature" in sharpscope.plan(config)
    none = replace(config, measures=("gradient_norm",))
    assert "nothing had to be tried" in sharpscope.plan(none)


def test_work_that_follows_from_the_settings_is_counted(config: StudyConfig, context: Context) -> None:
    """Each measure at the alphas at which it is taken, for every layer and the whole model."""
    layers = len(context.layers) / 2 + 1  # half of the network lies behind a layer, on the average

    def counted(**changes: Any) -> float:
        own = replace(context, config=replace(config, **changes))
        return timing._counted(own, gradient=1000.0, loss=1.0)

    assert counted() == 0.0
    assert counted(measures=("gradient_norm",)) == 3 * (1000 + 2 * layers)
    worst = {"measures": ("sharpness_max",), "pgd_steps": 7}
    assert math.isclose(counted(**worst, perturbation_alphas=(0.5,)), 7 * layers * 1000)
    assert math.isclose(counted(**worst, perturbation_alphas=None), 3 * 7 * layers * 1000)
    assert counted(measures=("sharpness_avg",), noise_samples=5, perturbation_alphas=(0.5,)) == 10 * layers
    few = context.probe.thinned(2).n / context.probe.n
    thin = replace(context, config=replace(config, **worst, perturbation_size=2))
    assert math.isclose(timing._counted(thin, 1000.0, 1.0), few * 3 * 7 * layers * 1000)


def test_the_time_is_divided_by_jobs_and_ranks_down_to_the_longest_unit(
    config: StudyConfig, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = replace(timing.costs(context), curvature=0.0, evaluate=0.0, decode=0.0, head=0.0, loss=1.0)
    monkeypatch.setattr("sharpscope.study.plan.costs", lambda _: known)
    monkeypatch.setattr("sharpscope.study.plan.duration", repr)

    def told(jobs: int) -> tuple[float, str]:
        line = re.search(r"estimated time: (\S+) with (\d+ process\w*),", sharpscope.plan(replace(config, jobs=jobs)))
        assert line is not None
        return float(line[1]), line[2]

    alone, said = told(1)
    assert said == "1 process" and told(2) == (pytest.approx(alone / 2), "2 processes")
    monkeypatch.setattr("sharpscope.study.plan.ranks", lambda: Ranks(world=3))
    assert told(1) == (pytest.approx(alone / 3), "3 processes")
    monkeypatch.setattr("sharpscope.study.plan.ranks", lambda: Ranks())
    layers = alone - 3  # four units: two bases, at both of which layers move, and the noise
    assert told(1000) == (pytest.approx(layers / 4), "1000 processes")


@pytest.mark.parametrize(("asked", "count"), [({"threads": 2}, 2), ({"threads": 1}, 1), ({"threads": 3, "jobs": 2}, 3)])
def test_the_work_is_tried_with_the_threads_that_a_run_has(
    config: StudyConfig, context: Context, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], count: int
) -> None:
    """With more threads than a worker has, the plan of a study on two processes said less than half its time."""
    known, seen = timing.costs(context), list[int]()

    def watched(_: Context) -> timing.Costs:
        seen.append(torch.get_num_threads())
        return known

    monkeypatch.setattr("sharpscope.study.plan.costs", watched)
    before = torch.get_num_threads()
    sharpscope.plan(replace(config, **asked))  # type: ignore[arg-type]
    assert seen == [count] and torch.get_num_threads() == before


def test_a_plan_encodes_few_prompts_and_says_how_long_all_of_them_take(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch, untimed: None, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"drawing {i} of a {{}}.\n" for i in range(40)))
    asked = replace(config, head="zeroshot", templates=str(prompts))
    counted: list[int] = []
    encode = ClipModel.encode_text

    def counting(self: ClipModel, theta: Any, tokens: Tensor, normalize: bool = True) -> Tensor:
        counted.append(len(tokens))
        return encode(self, theta, tokens, normalize)

    monkeypatch.setattr(ClipModel, "encode_text", counting)
    pair = load_study_pair(asked, asked.pairs[0], rough_head=True)
    assert sum(counted) == 16 and pair.head_made
    counted.clear()
    whole = load_study_pair(asked, asked.pairs[0])
    assert sum(counted) == 16 * 40  # once for both ends
    assert not torch.equal(whole.theta_0["head.weight"], pair.theta_0["head.weight"])
    assert torch.equal(whole.theta_0["head.weight"], whole.theta_1["head.weight"])
    assert "head: 640 prompts are encoded once for each pair, in every process: " in plan(asked)
    assert "head:" not in plan(replace(config, head="text"))
