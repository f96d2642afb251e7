"""A tiny CLIP and a handful of images for it: enough for every law of a fine-tuning method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sharpscope.finetuning.examples import TensorExamples
from sharpscope.finetuning.method import Task

CLASSNAMES = ("circle", "square", "star")
TEMPLATES = ("a photo of a {}", "a {}")
N = 12


@pytest.fixture
def task(tiny_model: Any, tiny_theta: dict[str, Any]) -> Task:
    """Three classes, twelve images, the tiny ViT with random weights."""
    return Task(tiny_model, tiny_theta, CLASSNAMES, TEMPLATES, N, seed=3)


@pytest.fixture
def examples(tiny_model: Any) -> TensorExamples:
    """Twelve images of noise with balanced labels."""
    g = torch.Generator().manual_seed(1)
    return TensorExamples(torch.randn(N, 3, *tiny_model.image_size, generator=g), torch.arange(N) % len(CLASSNAMES))
