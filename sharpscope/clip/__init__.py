"""CLIP and images: a model as a function of named tensors, its heads, data sets, the probe's loss, accuracy.

What a notebook needs of it has its name in ``sharpscope``: ``load_pair``, ``load_dataset``, ``Probe``, ``evaluate``,
``convert``, ``interpolate``, ``sparsify``, ``inspect``, and what they return.
"""

from __future__ import annotations

__all__: list[str] = []
