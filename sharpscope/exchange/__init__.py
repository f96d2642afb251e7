"""Accuracies measured elsewhere: result files of other systems read into accuracy tables, and written for them."""

from __future__ import annotations

from sharpscope.exchange.join import join_accuracy
from sharpscope.exchange.reading import FORMATS, read_results
from sharpscope.exchange.writing import WRITERS, written

__all__ = ["FORMATS", "WRITERS", "join_accuracy", "read_results", "written"]
