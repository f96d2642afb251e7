"""Named tensors: reading them, naming them, grouping them into layers, interpolating and sparsifying them.

No images and no forward pass here. The order of reading: ``checkpoint`` (file -> tensors), ``naming`` (whose names),
``layers`` (which belong together), ``path`` (theta(alpha)), ``sparsify`` (theta with fewer changes).
"""

from __future__ import annotations

from sharpscope.layers import Layer, split_layers
from sharpscope.weights.checkpoint import Checkpoint, checkpoint_of, read_checkpoint, write_checkpoint
from sharpscope.weights.compare import check_finite, check_model, describe
from sharpscope.weights.pair import Pair, check_pair
from sharpscope.weights.path import FisherPath, InterpolationPath, fisher_path, lines_path
from sharpscope.weights.sparsify import kept_entries, sparsify

__all__ = [
    "Checkpoint",
    "FisherPath",
    "InterpolationPath",
    "Layer",
    "Pair",
    "check_finite",
    "check_model",
    "check_pair",
    "checkpoint_of",
    "describe",
    "fisher_path",
    "kept_entries",
    "lines_path",
    "read_checkpoint",
    "sparsify",
    "split_layers",
    "write_checkpoint",
]
