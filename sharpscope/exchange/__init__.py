"""Accuracies measured elsewhere: result files of other systems read into accuracy tables, and written for them.

``read_results`` makes an accuracy table of a file by itself; ``read_measured`` and ``join_accuracy`` put its models to
the pairs of runs by the names of their checkpoints; ``written`` is the way back. ``FORMATS`` says what can be read,
``WRITERS`` what can be written.
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
