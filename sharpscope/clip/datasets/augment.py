"""The augmentation of training images: random crop, mirror image, colours; a function of a seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional as TF  # type: ignore[import-untyped]  # noqa: N812

from sharpscope.clip.datasets.crops import crop_box
from sharpscope.errors import ConfigError

__all__ = ["OPEN_CLIP", "Augmentation"]

_COLOURS: Final = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image, in this order: crop, mirror image, colours.

    The operations are torchvision's (``transforms.v2``). Their parameters are drawn with the distributions of its
    RandomResizedCrop, RandomHorizontalFlip and ColorJitter, but from a stream of the image's own seed: a picture does
    not depend on other images, on the order of batches, or on the number of threads. Raises ConfigError for shares,
    probabilities or strengths that cannot be.
    """

    crop: tuple[float, ...] | None = (0.9, 1.0)
    """Smallest and largest share of the image's area that the crop takes, in (0, 1]; None: the model's own geometry."""
    flip: float = 0.0
    """Probability that the image is mirrored left to right."""
    jitter: tuple[float, ...] | None = None
    """Strengths b, c, s, h >= 0: brightness, contrast and saturation are multiplied by factors from 1 - strength (at
    least 0) to 1 + strength, and the hue is turned by -h to h, h <= 0.5, in random order. None: colours stay."""

    def __post_init__(self) -> None:
        crop, jitter = self.crop, self.jitter
        if crop is not None and not (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1):
            raise ConfigError(f"crop: needs two shares of the area, 0 < smallest <= largest <= 1; got {list(crop)}.")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip: needs a probability, got {self.flip}.")
        if jitter is not None and not (
            len(jitter) == 4 and all(math.isfinite(s) and s >= 0 for s in jitter) and jitter[3] <= 0.5
        ):
            raise ConfigError(
                "jitter: needs four strengths that are not negative (brightness, contrast, saturation, hue), the last "
                f"at most 0.5; got {list(jitter)}."
            )

    @property
    def changes(self) -> bool:
        """Whether any image can be changed."""
        return self.crop is not None or self.flip > 0 or any(self.jitter or ())

    def __call__(
        self, image: Image.Image, size: tuple[int, int], geometry: Sequence[Callable[[Any], Any]], seed: int
    ) -> Image.Image:
        """``image`` in ``size`` (height, width), augmented as ``seed`` says; ``geometry``: what replaces no crop."""
        generator = torch.Generator().manual_seed(seed)
        if self.crop is None:
            for transform in geometry:
                image = transform(image)
        else:
            left, top, right, bottom = crop_box(image.size, generator, self.crop)
            image = TF.resized_crop(
                image, top, left, bottom - top, right - left, list(size), InterpolationMode.BICUBIC
            )  # fmt: skip
        if self.flip and float(torch.rand((), generator=generator)) < self.flip:
            image = TF.horizontal_flip(image)
        return self._coloured(image, generator) if self.jitter else image

    def _coloured(self, image: Image.Image, generator: torch.Generator) -> Image.Image:
        strengths = self.jitter or ()
        order = torch.randperm(len(_COLOURS), generator=generator).tolist()
        drawn = torch.rand(len(_COLOURS), generator=generator, dtype=torch.float64).tolist()
        for i in order:
            low, high = (-strengths[i], strengths[i]) if i == 3 else (max(0.0, 1 - strengths[i]), 1 + strengths[i])
            if strengths[i]:
                image = _COLOURS[i](image, low + (high - low) * drawn[i])
        return image


OPEN_CLIP: Final = Augmentation()
"""open_clip's own: a crop of 90 to 100 % of the area."""
