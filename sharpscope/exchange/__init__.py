"""Accuracies measured elsewhere: reads other systems' result files into accuracy tables, and writes such files.

``read_results`` makes an accuracy table from one file. ``read_measured`` and ``join_accuracy`` match its models to the
pairs of runs by the names of their checkpoints. ``written`` converts in the other direction. ``FORMATS`` lists the
formats that can be read, ``WRITERS`` those that can be written.
"""

from __future__ import annotations

from sharpscope.exchange.join import RunPair, join_accuracy
from sharpscope.exchange.measured import Measured
from sharpscope.exchange.reading import FORMATS, accuracy_table, read_measured, read_results
from sharpscope.exchange.writing import WRITERS, written

__all__ = [
    "FORMATS",
    "WRITERS",
    "Measured",
    "RunPair",
    "accuracy_table",
    "join_accuracy",
    "read_measured",
    "read_results",
    "written",
]
