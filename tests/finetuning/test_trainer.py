"""Laws of the training loop: what moves, how fast, and that nothing is left to chance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sharpscope.errors import ConfigError, NumericalError
from sharpscope.finetuning.schedule import learning_rate
from sharpscope.finetuning.trainer import Recipe, epochs, train


def quadratic(theta: dict[str, torch.Tensor], step: int) -> torch.Tensor:
    return torch.stack([((v - 1) ** 2).sum() for v in theta.values() if v.is_floating_point()]).sum()


def start() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "w": torch.randn(3, 2, generator=g),
        "b": torch.randn(3, generator=g),
        "scale": torch.randn((), generator=g),
        "still": torch.randn(4, generator=g),
        "count": torch.tensor(7),
    }


def test_only_the_named_tensors_move_and_the_input_is_left_alone() -> None:
    theta = start()
    before = {k: v.clone() for k, v in theta.items()}
    result = train(theta, ["w", "scale"], quadratic, Recipe(lr=0.1, steps=3)).theta
    assert list(result) == list(theta)
    for name in theta:
        assert torch.equal(theta[name], before[name])
        assert not theta[name].requires_grad and not result[name].requires_grad
    assert not torch.equal(result["w"], before["w"]) and not torch.equal(result["scale"], before["scale"])
    for name in ("b", "still", "count"):
        assert result[name] is theta[name]


def test_zero_steps_change_nothing() -> None:
    theta = start()
    result = train(theta, ["w", "b"], quadratic, Recipe(lr=0.1, steps=0))
    assert result.losses == () and all(torch.equal(result.theta[k], theta[k]) for k in theta)


def test_learns_the_minimum() -> None:
    result = train(start(), ["w", "b", "scale"], quadratic, Recipe(lr=0.1, steps=300, weight_decay=0.0, clip_norm=None))
    for name in ("w", "b", "scale"):
        torch.testing.assert_close(result.theta[name], torch.ones_like(result.theta[name]), atol=1e-3, rtol=0)
    assert result.losses[-1] < result.losses[0]


def test_the_schedule_of_the_embedded_world_is_the_formula() -> None:
    recipe = Recipe(lr=0.4, steps=10, warmup=4, schedule="product")
    cosine = [(1 + math.cos(math.pi * s / 10)) / 2 for s in range(10)]
    expected = [0.4 * min(1, (s + 1) / 4) * c for s, c in enumerate(cosine)]
    assert [learning_rate(recipe, s) for s in range(10)] == pytest.approx(expected, rel=1e-12)
    assert learning_rate(recipe, 0) == pytest.approx(0.1)
    assert learning_rate(Recipe(lr=0.4, steps=10), 0) == pytest.approx(0.4)
    assert learning_rate(Recipe(lr=0.4, steps=10, warmup=0.3), 0) == pytest.approx(0.4)
    assert 0 < learning_rate(recipe, 9) < 0.02
    # a fraction of a step counts: 9.6 steps of warm-up are neither 9 nor 10
    assert learning_rate(Recipe(lr=1, steps=640, warmup=9.6, schedule="product"), 0) == pytest.approx(1 / 9.6)


def test_each_step_is_adamw_by_hand() -> None:
    """Two steps of a linear loss, whose Adam update is lr * sign of the gradient, and decay where it belongs."""
    theta = {"w": torch.full((2, 2), 2.0), "b": torch.full((2,), 2.0)}
    recipe = Recipe(lr=0.1, steps=2, weight_decay=0.5, clip_norm=None, decay="matrices")
    result = train(theta, ["w", "b"], lambda t, s: t["w"].sum() - t["b"].sum(), recipe).theta
    w, b = 2.0, 2.0
    for lr in (0.1, 0.05):
        w, b = w * (1 - lr * 0.5) - lr, b + lr
    torch.testing.assert_close(result["w"], torch.full((2, 2), w), rtol=1e-6, atol=0)
    torch.testing.assert_close(result["b"], torch.full((2,), b), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("decay", "fixed"), [("matrices", {"v", "s"}), ("all", set())])
def test_decay_touches_the_tensors_that_it_names(decay: Any, fixed: set[str]) -> None:
    """With no gradient all that moves is what decays."""
    theta = {"m": torch.ones(2, 2), "k": torch.ones(2, 1, 1), "v": torch.ones(3), "s": torch.tensor(1.0)}
    recipe = Recipe(lr=0.5, steps=1, weight_decay=0.2, decay=decay)
    result = train(theta, list(theta), lambda t, s: 0 * quadratic(t, s), recipe).theta
    for name in theta:
        torch.testing.assert_close(result[name], torch.full_like(theta[name], 1.0 if name in fixed else 0.9))


def test_the_gradient_norm_is_clipped_as_a_whole() -> None:
    seen: list[torch.Tensor] = []

    def loss(theta: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        theta["a"].register_hook(lambda g: seen.append(g))
        return 30 * theta["a"].sum() + 40 * theta["b"].sum()

    theta = {"a": torch.zeros(1), "b": torch.zeros(1)}
    small = Recipe(lr=1.0, steps=1, weight_decay=0.0, clip_norm=1e-7)
    clipped = train(theta, ["a", "b"], loss, small).theta
    assert seen[0] == 30
    # |g| = 1e-7 in all: (0.6, 0.8) * 1e-7, against Adam's eps of 1e-8
    torch.testing.assert_close(-clipped["a"], torch.tensor([6 / 7]), rtol=1e-3, atol=0)
    torch.testing.assert_close(-clipped["b"], torch.tensor([8 / 9]), rtol=1e-3, atol=0)


def test_terms_of_a_loss_are_its_sum_and_are_differentiated_one_after_the_other() -> None:
    def terms(theta: dict[str, torch.Tensor], step: int) -> Iterator[torch.Tensor]:
        assert theta["b"].grad is None
        yield 0.25 * quadratic(theta, step)
        torch.testing.assert_close(theta["b"].grad, 0.5 * (theta["b"].detach() - 1))
        yield 0.75 * quadratic(theta, step)

    whole, summed = (train(start(), ["w", "b"], loss, Recipe(lr=0.1, steps=3)) for loss in (quadratic, terms))
    assert summed.losses == pytest.approx(whole.losses, rel=1e-6)
    for name in ("w", "b"):
        torch.testing.assert_close(summed.theta[name], whole.theta[name])


def test_constraints_hold_after_every_step() -> None:
    values: list[float] = []

    def loss(theta: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        values.append(float(theta["s"].detach()))
        return -theta["s"]

    def clamp(theta: dict[str, torch.Tensor]) -> None:
        theta["s"].clamp_(0, 0.5)

    recipe = Recipe(lr=1.0, steps=5)
    result = train({"s": torch.tensor(0.0)}, ["s"], loss, recipe, constrain=clamp)
    assert values == [0.0, 0.5, 0.5, 0.5, 0.5] and float(result.theta["s"]) == 0.5


@pytest.mark.parametrize("debias", [False, True])
def test_the_moving_average_is_its_formula_and_without_bias_has_nothing_of_the_start(debias: bool) -> None:
    """WiSE-FT's two averages: from theta_0 on, and from 0 divided by 1 - d^t, as Adam's moments are."""
    seen: list[torch.Tensor] = []

    def loss(theta: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        seen.append(theta["w"].detach().clone())
        return quadratic({"w": theta["w"]}, step)

    theta, recipe, d = start(), Recipe(lr=0.3, steps=5), 0.8
    averaged = train(theta, ["w"], loss, recipe, ema=d, ema_debias=debias).theta["w"]
    last = train(theta, ["w"], quadratic, recipe).theta["w"]
    visited = [*seen[1:], last]
    shares = [(1 - d) * d ** (4 - i) for i in range(5)]
    expected = sum(s * w for s, w in zip(shares, visited, strict=True))
    expected = expected / (1 - d**5) if debias else expected + d**5 * theta["w"]
    torch.testing.assert_close(averaged, expected, rtol=1e-5, atol=1e-6)


def test_same_seed_same_bits() -> None:
    data = torch.randn(20, 2, generator=torch.Generator().manual_seed(5))

    def run(seed: int) -> torch.Tensor:
        batches = epochs(20, 8, 3, seed)
        fit = train(
            {"w": torch.zeros(2, 1)},
            ["w"],
            lambda t, s: ((data[next(batches)] @ t["w"] - 1) ** 2).mean(),
            Recipe(0.1, 6),
        )
        return fit.theta["w"]

    torch.manual_seed(1)
    first = run(3)
    torch.manual_seed(2)
    assert torch.equal(run(3), first)
    assert not torch.equal(run(4), first)


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    list(epochs(10, 5, 2, 0))
    train(start(), ["w"], quadratic, Recipe(lr=0.1, steps=2), description="x")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_epoch_visits_every_example_at_most_once() -> None:
    batches = list(epochs(10, 3, 2, 0))
    assert [len(b) for b in batches] == [3] * 6
    first, second = torch.cat(batches[:3]).tolist(), torch.cat(batches[3:]).tolist()
    for seen in (first, second):
        assert len(set(seen)) == 9 and set(seen) <= set(range(10))
    assert first != second
    assert sorted(torch.cat(list(epochs(6, 3, 1, 0))).tolist()) == list(range(6))


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_that_does_not_fit_is_named(size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch size {size} does not fit 10"):
        next(epochs(10, size, 1, 0))


def test_divergence_is_an_error_and_not_a_checkpoint() -> None:
    recipe = Recipe(1.0, 4, weight_decay=0.0)
    with pytest.raises(NumericalError, match="loss is inf at step 1 of 4; lower lr"):
        train({"w": torch.ones(1)}, ["w"], lambda t, s: t["w"].sum() * (math.inf if s else 1), recipe)


def test_names_that_theta_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="nope"):
        train(start(), ["w", "nope"], quadratic, Recipe(0.1, 1))
    with pytest.raises(ConfigError, match=r"\(no name\)"):
        train(start(), [], quadratic, Recipe(0.1, 1))


@pytest.mark.parametrize(
    "bad", [{"lr": 0.0}, {"lr": math.nan}, {"steps": -1}, {"warmup": -1.0}, {"weight_decay": -0.1}]
)
def test_recipes_without_meaning_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Recipe(**{"lr": 0.1, "steps": 1, **bad})  # type: ignore[arg-type]


def test_the_bar_is_silent_when_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    train(start(), ["w"], quadratic, Recipe(lr=0.1, steps=2), description="pretraining")
    assert capfd.readouterr() == ("", "")
