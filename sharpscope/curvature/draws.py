"""Random numbers of the estimators: drawn on the host by a seeded generator, the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sharpscope.machine.devices import onto

__all__ = ["DRAWS", "SignStream", "gaussian", "rademacher", "skip_words", "uniform", "words_for"]

DRAWS = 4
"""The version of the random streams. It is raised with every change after which the same seed gives different numbers,
so that one run directory never mixes two streams."""

_SKIPPED = 2**20
"""The number of 64-bit words (8 MiB) that are drawn and discarded at a time when a generator is moved ahead."""
_SIGNS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).mul(2).sub(1).to(torch.int8)
"""A table [256, 8]: row j holds the signs that the eight bits of the byte j encode, the lowest bit first."""


def rademacher(
    shape: Sequence[int],
    generator: torch.Generator,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.int8,
) -> Tensor:
    """Independent signs of the given shape, +1 or -1 with probability 1/2 each, in row-major order.

    ``generator`` draws one word of 64 bits for every 64 signs, and each call takes whole words: a request in two parts
    draws other signs than the request as a whole, unless the first part fills its words. Only the words travel to the
    ``device``, an eighth of a byte for each sign, and nothing waits for them.
    """
    count = prod(shape)
    words = _words(words_for(count), generator)
    numbers = onto(words.view(torch.uint8), torch.device(device)).int()
    signs = _SIGNS.to(device, dtype, non_blocking=True).index_select(0, numbers)
    return signs.view(-1)[:count].view(tuple(shape))


class SignStream:
    """Random signs, asked for by one shape after the other: what ``rademacher`` gives for each, bit for bit.

    ``ahead``: the number of signs of each request to come, where they are known. The words of all of them are then
    drawn, moved to the device and unpacked together: a dozen requests in a row cost a GPU as much as one.
    ``taken``: the number of signs of each request so far.
    """

    def __init__(
        self, generator: torch.Generator, device: torch.device, dtype: torch.dtype, ahead: Sequence[int] = ()
    ) -> None:
        self.taken: list[int] = []
        self._generator, self._device, self._dtype = generator, device, dtype
        self._ahead, self._at = list(ahead), 0
        words = sum(map(words_for, ahead))
        self._drawn = rademacher((64 * words,), generator, device=device, dtype=dtype)

    def __call__(self, *shape: int) -> Tensor:
        """Signs of this shape.

        Raises ValueError where another number of signs was announced.
        """
        count = prod(shape)
        self.taken.append(count)
        if not self._ahead:
            return rademacher(shape, self._generator, device=self._device, dtype=self._dtype)
        if self._ahead[: len(self.taken)] != self.taken:
            raise ValueError(f"signs: {self._ahead} were announced, {self.taken} are asked for.")
        start = self._at
        self._at += 64 * words_for(count)
        return self._drawn[start : start + count].view(shape)


def words_for(count: int) -> int:
    """The number of words that ``rademacher`` draws for ``count`` signs."""
    return -(-count // 64)


def skip_words(count: int, generator: torch.Generator) -> None:
    """Advance the generator as if ``count`` words had been drawn from it."""
    for start in range(0, count, _SKIPPED):
        _words(min(_SKIPPED, count - start), generator)


def _words(count: int, generator: torch.Generator) -> Tensor:
    """Words of 64 fair bits, int64 [count], on the host."""
    return torch.empty(count, dtype=torch.int64).random_(-(2**63), None, generator=generator)


def uniform(
    shape: Sequence[int], generator: torch.Generator, *, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Independent numbers of the given shape, uniform in [-1, 1], from 64 bits each for float64 and from 32 else."""
    count, wide = prod(shape), dtype == torch.float64
    whole = _words(count, generator) if wide else _words(-(-count // 2), generator).view(torch.int32)[:count]
    numbers = onto(whole, torch.device(device)).to(torch.float64 if wide else torch.float32)
    return numbers.mul_(2.0**-63 if wide else 2.0**-31).to(dtype).view(tuple(shape))


def gaussian(
    shape: Sequence[int], generator: torch.Generator, *, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """Independent standard normal numbers of the given shape; drawn in float64 for that ``dtype``, else in float32."""
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = torch.randn(tuple(shape), generator=generator, dtype=drawn)
    return onto(numbers, torch.device(device)).to(dtype)
