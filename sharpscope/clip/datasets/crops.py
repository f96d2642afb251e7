"""The box of a random resized crop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["crop_box"]

_RATIO = (3 / 4, 4 / 3)


def crop_box(
    size: tuple[int, int], generator: torch.Generator, scale: Sequence[float] = (0.9, 1.0)
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random box inside an image of ``size`` (width, height).

    Area uniform between the shares ``scale`` of the image's, log aspect ratio uniform between 3:4 and 4:3, ten tries;
    then the largest centred box of an allowed shape. Source: Szegedy et al. 2015 (1409.4842), as torchvision's
    RandomResizedCrop.
    """
    width, height = size
    for _ in range(10):
        area, ratio, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        target = width * height * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(math.log(_RATIO[0]) + (math.log(_RATIO[1]) - math.log(_RATIO[0])) * ratio)
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
