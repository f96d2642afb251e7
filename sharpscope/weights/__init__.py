"""Named tensors: reading them, naming them, interpolating and sparsifying them.

No images and no forward pass here. The order of reading: ``checkpoint`` (file -> tensors), ``naming`` (whose names),
``pair`` (do two sets of weights fit each other), ``path`` (theta(alpha)), ``sparsify`` (theta with fewer changes).
"""

from __future__ import annotations

from sharpscope.weights.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sharpscope.weights.compare import describe
from sharpscope.weights.pair import Pair, check_pair
from sharpscope.weights.path import InterpolationPath
from sharpscope.weights.sparsify import sparsify

__all__ = [
    "Checkpoint",
    "InterpolationPath",
    "Pair",
    "check_pair",
    "describe",
    "read_checkpoint",
    "sparsify",
    "write_checkpoint",
]
