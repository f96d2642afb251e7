"""Accuracies measured elsewhere: result files of other systems read into accuracy tables, and written for them."""

from sharpscope.findings.foreign.join import join_accuracy
from sharpscope.findings.foreign.reading import FORMATS, read_results
from sharpscope.findings.foreign.writing import WRITERS, written

__all__ = ["FORMATS", "WRITERS", "join_accuracy", "read_results", "written"]
