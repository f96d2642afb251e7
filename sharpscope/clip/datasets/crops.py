"""Random resized crops, the augmentation of training images, with open_clip's parameters."""

from __future__ import annotations

import math

import torch
from PIL import Image

__all__ = ["crop_box", "random_crop"]

_SCALE = (0.9, 1.0)  # open_clip's image_transform(is_train=True), which WiSE-FT and FLYP train with
_RATIO = (3 / 4, 4 / 3)


def random_crop(image: Image.Image, size: tuple[int, int], seed: int) -> Image.Image:
    """A random box of ``image`` (see :func:`crop_box`) resized to ``size`` (height, width), bicubic."""
    box = crop_box(image.size, torch.Generator().manual_seed(seed))
    return image.crop(box).resize((size[1], size[0]), Image.Resampling.BICUBIC)


def crop_box(size: tuple[int, int], generator: torch.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random box inside an image of ``size`` (width, height).

    Area uniform in 90 to 100 % of the image, log aspect ratio uniform between 3:4 and 4:3, ten tries; then the largest
    centred box of an allowed shape. Source: Szegedy et al. 2015 (1409.4842), as torchvision's RandomResizedCrop.
    """
    width, height = size
    for _ in range(10):
        area, ratio, x, y = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        target = width * height * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * area)
        shape = math.exp(math.log(_RATIO[0]) + (math.log(_RATIO[1]) - math.log(_RATIO[0])) * ratio)
        w, h = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
