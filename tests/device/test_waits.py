"""How often the host waits for the device inside loops, counted on the emulated one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpscope.curvature.ascent import auto_pgd
from sharpscope.curvature.density import spectral_density
from sharpscope.curvature.eigen import lanczos
from sharpscope.curvature.operator import DenseOperator
from sharpscope.curvature.power import power_iteration
from sharpscope.curvature.trace import hutchinson, per_example_steps
from sharpscope.curvature.tracking import tracked
from sharpscope.errors import NumericalError
from sharpscope.finetuning.losslog import READ_EVERY
from sharpscope.finetuning.trainer import Recipe, State, train

SIZE = 60


def matrix() -> Tensor:
    a = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a + a.mT


def waits(emulated: Any, run: Callable[[DenseOperator], object]) -> int:
    """Synchronisations and blocking copies of a run with an operator on the device."""
    with emulated.Emulated(strict=True) as device:
        operator = DenseOperator(matrix().to("cuda"))
        before = sum(device.copies.values())
        run(operator)
    return sum(device.synchronisations.values()) + sum(device.copies.values()) - before


def followed(operator: DenseOperator, *, max_matvecs: int) -> None:
    tracked(operator, lanczos(operator, seed=0, max_matvecs=8).space, seed=1, rtol=1e-12, max_matvecs=max_matvecs)


def uphill(operator: DenseOperator, *, steps: int) -> None:
    def loss_and_gradient(delta: Tensor) -> tuple[Tensor, Tensor]:
        return delta @ operator.matvec(delta) + delta.sum(), 2 * operator.matvec(delta) + 1

    c = torch.ones(SIZE, dtype=torch.float64, device="cuda")
    auto_pgd(loss_and_gradient, c, rho=0.1, norm="l2", steps=steps, generator=torch.Generator())


@pytest.mark.parametrize(
    ("run", "allowed"),
    [
        (lambda o, n: lanczos(o, seed=0, rtol=1e-12, max_matvecs=n), 1),
        (lambda o, n: followed(o, max_matvecs=n), 3),
        (lambda o, n: power_iteration(o, seed=0, rtol=1e-12, max_matvecs=n), 1),
        (lambda o, n: spectral_density(o, seed=0, steps=n, runs=1), 1),
        (lambda o, n: uphill(o, steps=n), 1),
    ],
    ids=["lanczos", "tracked", "power", "density", "auto_pgd"],
)
def test_a_step_waits_once(emulated: Any, run: Callable[[DenseOperator, int], object], allowed: int) -> None:
    """Twelve products wait for six steps longer than six; a followed eigenvector decides three times in a step."""
    short, long = (waits(emulated, partial(lambda o, n: run(o, n), n=n)) for n in (6, 12))
    assert 0 < long - short <= 6 * allowed


def test_hutchinson_waits_once_a_stage(emulated: Any) -> None:
    scale = torch.ones(SIZE, dtype=torch.float64)
    run = partial(hutchinson, seed=0, rtol=1e-6, max_matvecs=20, scale=scale)  # a pilot, then all others
    assert waits(emulated, lambda o: run(o)) == 2 + 1  # and the scale travels


def test_a_look_at_a_trace_waits_once(emulated: Any) -> None:
    """Every look at what the examples' forms say of the error costs one copy, whatever the number of examples."""
    with emulated.Emulated(strict=True) as device:
        steps = per_example_steps(
            10**6, dtype=torch.float32, device=torch.device("cuda"), seed=0, rtol=0.01, max_matvecs=40
        )
        request, looks = next(steps), 0
        while True:
            generator = torch.Generator().manual_seed(looks)
            answer = torch.randn(30, getattr(request, "count"), generator=generator).to("cuda")  # noqa: B009
            looks += 1
            try:
                request = steps.send(answer)
            except StopIteration as stop:
                assert stop.value.num_matvecs == 40
                break
    assert sum(device.synchronisations.values()) == looks >= 2


# ------------------------------------------------------------------ training
def trained(
    steps: int, loss: Callable[[dict[str, Tensor], int], Tensor], after: Callable[[State], None] | None = None
) -> tuple[float, ...]:
    theta = {"w": torch.ones(5).to("cuda"), "b": torch.ones(()).to("cuda")}
    return train(theta, ["w", "b"], loss, Recipe(lr=0.1, steps=steps), after=after).losses


def square(theta: dict[str, Tensor], step: int) -> Tensor:
    return theta["w"].square().sum() + theta["b"]


def test_training_waits_for_many_steps_at_once_and_keeps_every_loss(emulated: Any) -> None:
    counts = []
    for steps in (READ_EVERY, 3 * READ_EVERY):
        with emulated.Emulated(strict=True) as device:
            losses = trained(steps, square)
        counts.append(sum(device.synchronisations.values()))
    assert counts[1] - counts[0] == 2
    here = train({"w": torch.ones(5), "b": torch.ones(())}, ["w", "b"], square, Recipe(lr=0.1, steps=steps)).losses
    assert losses == here and len(losses) == steps


def test_a_divergence_is_told_with_its_step_and_nothing_is_kept_of_it(emulated: Any) -> None:
    asked: list[int] = []

    def bursts(theta: dict[str, Tensor], step: int) -> Tensor:
        asked.append(step)
        return square(theta, step) * (math.inf if step >= 3 else 1)

    with emulated.Emulated(strict=True), pytest.raises(NumericalError, match="loss is inf at step 3 of 90"):
        trained(90, bursts)
    assert len(asked) <= 3 + READ_EVERY
    kept: list[int] = []

    def after(state: State) -> None:
        if state.step == 5:
            state.settle()
            kept.append(state.step)

    asked.clear()
    with emulated.Emulated(strict=True), pytest.raises(NumericalError, match="loss is inf at step 3 of 90"):
        trained(90, bursts, after)
    assert not kept and len(asked) == 5


def test_weights_that_are_not_finite_are_an_error_although_every_loss_was(emulated: Any) -> None:
    def root(theta: dict[str, Tensor], step: int) -> Tensor:
        return (theta["w"] - 1).sqrt().sum() + theta["b"]

    match = "weights are not finite after step 1 of 1; lower lr"
    with pytest.raises(NumericalError, match=match), emulated.Emulated(strict=True):
        trained(1, root)
    with pytest.raises(NumericalError, match=match):
        train({"w": torch.ones(5), "b": torch.ones(())}, ["w"], root, Recipe(lr=0.1, steps=1))


# ------------------------------------------------------------------ where vectors wait
@pytest.mark.parametrize(("free", "home"), [(2**30, "device"), (2**12, "host")])
def test_ritz_vectors_stay_on_the_device_while_they_fit_and_the_numbers_are_the_same(
    emulated: Any, free: int, home: str
) -> None:
    def along(operator: DenseOperator) -> tuple[Any, Any]:
        first = lanczos(operator, seed=0, max_matvecs=30)
        return first, tracked(operator, first.space, seed=1, max_matvecs=10)  # type: ignore[arg-type]

    with emulated.Emulated(strict=True, free=free) as device:
        there = along(DenseOperator(matrix().to("cuda")))
        for found in there:
            space = found.space
            assert len(space.vectors) and {device.kind(space.ends), device.kind(space.vectors)} == {home}
        assert {device.kind(there[1].space.before)} == {home}
    copied = sum(n for (_, _, what), n in device.synchronisations.items() if what == "copy to the host")
    assert bool(copied) == (home == "host")
    for found, here in zip(there, along(DenseOperator(matrix())), strict=True):
        assert (found.largest, found.smallest) == (here.largest, here.smallest)
        assert torch.equal(found.space.vectors, here.space.vectors) and torch.equal(found.space.ends, here.space.ends)
        assert (found.space.values == here.space.values).all()
