"""CLIP and images: a model as a function of named tensors, its heads, data sets, the probe's loss, accuracy.

The names for use in notebooks are in ``sharpscope`` itself: ``load_pair``, ``load_dataset``, ``Probe``, ``evaluate``,
``convert``, ``interpolate``, ``sparsify``, ``inspect``, and the classes that they return.
"""

from __future__ import annotations

__all__: list[str] = []
