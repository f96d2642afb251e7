"""Random signs: fair, pairwise independent, the same on every device, whole words at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpscope.curvature import draws, perturbation
from sharpscope.curvature.draws import SignStream, gaussian, rademacher, uniform


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_signs_are_fair_and_pairwise_independent() -> None:
    """Sums over n signs, and over n products of two signs, are within five standard errors sqrt(n) of 0.

    The pairs are all places of a word and of the next one, so that no two of the 128 signs go together.
    """
    n = 40_000
    signs = rademacher((n, 128), generator(), dtype=torch.float64)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    moments = signs.mT @ signs
    assert (moments.diagonal() == n).all()
    assert float(signs.sum(0).abs().max()) < 5 * n**0.5
    assert float(moments.fill_diagonal_(0).abs().max()) < 5 * n**0.5
    thirds = (signs[:, :62] * signs[:, 1:63] * signs[:, 2:64]).sum(0)  # shifted copies of one register would show
    assert float(thirds.abs().max()) < 5 * n**0.5


def test_signs_are_the_bits_of_the_words_that_the_generator_draws() -> None:
    words = torch.empty(3, dtype=torch.int64).random_(-(2**63), None, generator=generator(7))
    bits = [(int(word) >> i) & 1 for word in words for i in range(64)]
    expected = torch.tensor([2 * bit - 1 for bit in bits])
    for count in (0, 1, 63, 64, 65, 192):
        assert torch.equal(rademacher((count,), generator(7)), expected[:count].to(torch.int8))
    assert torch.equal(rademacher((4, 5, 2), generator(7)), expected[:40].to(torch.int8).view(4, 5, 2))


@pytest.mark.parametrize("count", [1, 63, 64, 100, 128])
def test_every_request_takes_whole_words(count: int) -> None:
    """What follows does not depend on how many signs of the last word were used, and whole words join without a gap."""
    one, other = generator(3), generator(3)
    first = rademacher((count,), one)
    filled = rademacher((-(-count // 64) * 64,), other)
    assert torch.equal(first, filled[:count])
    assert torch.equal(one.get_state(), other.get_state())
    assert torch.equal(torch.cat([filled, rademacher((10,), other)]), rademacher((len(filled) + 10,), generator(3)))


def test_requests_that_are_announced_get_the_same_signs_by_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [(3, 5), (64,), (1,), (2, 1, 100), (0,), (7,)]
    ahead = [math.prod(s) for s in shapes]
    one, other = generator(3), generator(3)
    expected = [rademacher(s, one, dtype=torch.float32) for s in shapes]
    drawn: list[int] = []
    words = draws._words
    monkeypatch.setattr(draws, "_words", lambda count, g: drawn.append(count) or words(count, g))
    for known, calls in (([], 6), (ahead, 1)):
        other.manual_seed(3)
        drawn.clear()
        signs = SignStream(other, torch.device("cpu"), torch.float32, known)
        found = [signs(*s) for s in shapes]
        assert all(map(torch.equal, found, expected)) and torch.equal(one.get_state(), other.get_state())
        assert signs.taken == ahead and len([n for n in drawn if n]) == (calls if known else calls - 1)
    with pytest.raises(ValueError, match="announced"):
        SignStream(other, torch.device("cpu"), torch.float32, ahead)(4, 4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32, torch.float64])
def test_signs_do_not_depend_on_the_type(dtype: torch.dtype) -> None:
    signs = rademacher((70,), generator(), dtype=dtype)
    assert signs.dtype == dtype
    assert torch.equal(signs.to(torch.int8), rademacher((70,), generator()))


def test_another_device_draws_the_same_and_does_not_wait(emulated: Any) -> None:
    """Only an eighth of a byte travels for each sign, by a copy that nothing waits for."""

    def drawn(device: str) -> tuple[Tensor, ...]:
        g = generator(5)
        how = {"device": device, "dtype": torch.float32}
        return rademacher((9, 11), g, **how), gaussian((33,), g, **how), uniform((3, 7), g, **how)

    here, device = drawn("cpu"), emulated.Emulated(strict=True)
    with device:
        there = drawn("cuda")
        assert all(device.kind(t) == emulated.DEVICE for t in there)
    assert not device.synchronisations and not device.copies, device.report()
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_normal_numbers_are_drawn_in_float64_only_for_float64() -> None:
    single, double = (gaussian((50,), generator(), device="cpu", dtype=d) for d in (torch.float32, torch.float64))
    assert torch.equal(single, torch.randn(50, generator=generator()))
    assert torch.equal(double, torch.randn(50, generator=generator(), dtype=torch.float64))
    assert torch.equal(gaussian((50,), generator(), device="cpu", dtype=torch.bfloat16), single.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_have_the_moments_of_a_box(dtype: torch.dtype) -> None:
    """Mean 0, variance 1/3, fourth moment 1/5, each within five standard errors; neighbours go not together."""
    n = 100_001
    x = uniform((n,), generator(), device="cpu", dtype=dtype).double()
    assert float(x.abs().max()) <= 1 and x.unique().numel() > 0.98 * n
    for found, mean, variance in ((x, 0, 1 / 3), (x**2, 1 / 3, 4 / 45), (x**4, 1 / 5, 16 / 225)):
        assert abs(float(found.mean()) - mean) < 5 * (variance / n) ** 0.5
    assert abs(float((x[1:] * x[:-1]).mean())) < 5 / 3 / n**0.5


class Bowls:
    """The mean over three batches of a fourth power of the distance from a centre of the batch's own."""

    weights = (0.5, 0.3, 0.2)

    def batch_loss(self, i: int, theta: dict[str, Tensor]) -> Tensor:
        return (theta["w"] - i).square().sum() ** 2


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_every_noise_is_drawn_once_and_the_memory_for_it_changes_no_bit(
    noise: perturbation.Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, ...]] = []

    def counted(shape: Any, *args: Any, **how: Any) -> Tensor:
        drawn.append(tuple(shape))
        return (uniform if noise == "uniform" else gaussian)(shape, *args, **how)

    monkeypatch.setattr(perturbation, noise, counted)
    found = []
    for share in (perturbation.NOISE_SHARE, 0):  # batches outside, samples outside
        monkeypatch.setattr(perturbation, "NOISE_SHARE", share)
        theta = {"w": torch.linspace(-1, 1, 6).view(2, 3)}
        found.append(perturbation.sharpness_avg(Bowls(), theta, ["w"], rho=0.1, seed=0, samples=5, noise=noise))
        assert drawn == [(2, 3)] * 5
        drawn.clear()
    assert found[0] == found[1] and found[0].estimate > 0
