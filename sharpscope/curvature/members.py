"""Sums over the parameters of each of several blocks, which may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sharpscope.machine.devices import onto

__all__ = ["Members"]


class Members:
    """Which ``blocks`` hold which parameters: ``matrix`` [blocks, names] of 0 and 1, float64, on the host.

    What ``sums`` needs of it is on the ``device`` from the first call with the same names on.
    """

    def __init__(self, blocks: Iterable[Iterable[str]], names: Sequence[str], device: torch.device) -> None:
        rows = [[float(n in block) for n in names] for block in map(set, blocks)]
        self.matrix = torch.tensor(rows, dtype=torch.float64)
        self._places = {n: i for i, n in enumerate(names)}
        self._device, self._there = device, dict[tuple[str, ...], Tensor]()

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.matrix)

    def holds(self, block: int, name: str) -> bool:
        """Whether the block holds the parameter."""
        return bool(self.matrix[block, self._places[name]])

    def sums(self, values: Mapping[str, Tensor]) -> Tensor:
        """{parameter: float64 of a shape [...]} -> the sum over each block's parameters, [blocks, ...]."""
        names = tuple(values)
        if names not in self._there:
            self._there[names] = onto(self.matrix[:, [self._places[n] for n in names]], self._device)
        return self._there[names] @ torch.stack(list(values.values()))
