"""Anchor frames of videos and their neighbours, as positions in a data set's order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Frames"]

_NONE = -1


@dataclass(frozen=True)
class Frames:
    """Which images are anchor frames of videos, which are their neighbours, and what else is right for each.

    ``numbers`` int64 [n]: 2v for the anchor of video set v and 2v + 1 for each of its neighbours. ``also`` int64
    [n, m]: further right targets of each image beside its label, filled up with -1; m may be 0.
    """

    numbers: Tensor
    also: Tensor

    def at(self, rows: Tensor) -> Frames:
        """The same for the images at ``rows``."""
        return Frames(self.numbers[rows], self.also[rows])

    def renumbered(self, to: Tensor) -> Frames:
        """With ``to[t]`` in place of target t."""
        return Frames(self.numbers, torch.where(self.also == _NONE, self.also, to[self.also.clamp(min=0)]))

    def whole_sets(self, anchors: list[int], limit: int) -> Tensor:
        """The positions, ascending, of the first of ``anchors`` and their neighbours that are at most ``limit`` images.

        ``anchors``: positions of anchor frames, the most wanted first. Empty where the first set alone is larger.
        """
        videos, sizes = torch.div(self.numbers, 2, rounding_mode="floor").unique(return_counts=True)
        size_of = dict(zip(videos.tolist(), sizes.tolist(), strict=True))
        wanted = [int(self.numbers[a]) // 2 for a in anchors]
        taken = torch.tensor([size_of[v] for v in wanted]).cumsum(0) <= limit
        chosen = torch.tensor(wanted)[taken]
        return torch.isin(torch.div(self.numbers, 2, rounding_mode="floor"), chosen).nonzero().flatten()

    @property
    def anchors(self) -> Tensor:
        """The positions of the anchor frames."""
        return (self.numbers % 2 == 0).nonzero().flatten()
