"""CLIP and images: a model as a function of named tensors, its heads, data sets, the probe's loss, accuracy."""

from __future__ import annotations

__all__: list[str] = []
