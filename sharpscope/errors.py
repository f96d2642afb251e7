"""Every error that sharpscope raises on purpose: one tree, each kind with its exit code.

A message names the file (or flag), the key, and the remedy, in at most three lines; the command line prints it as it
is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

__all__ = [
    "MAX_NAMES",
    "CheckpointError",
    "ConfigError",
    "CorruptCheckpoint",
    "DatasetError",
    "IdenticalPair",
    "NoData",
    "NonDeterministicProbe",
    "NonFiniteWeights",
    "NumericalError",
    "PairMismatch",
    "ResultsError",
    "RunDirectoryError",
    "SharpscopeError",
    "UnsafeCheckpoint",
    "did_you_mean",
    "listing",
    "shown",
]


class SharpscopeError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 2


class ConfigError(SharpscopeError):
    """An unknown or invalid flag, YAML key or argument; the message names the nearest valid one."""


class NoData(ConfigError):
    """A figure was asked for, and its table lacks the rows that the figure shows."""


class CheckpointError(SharpscopeError):
    """A checkpoint file that cannot be used: missing, of an unknown format, or without weights."""


class CorruptCheckpoint(CheckpointError):
    """A checkpoint file whose bytes are damaged (truncated, failed checksum, impossible sizes)."""


class UnsafeCheckpoint(CheckpointError):
    """A checkpoint file that would run code when opened; refused, the names of that code listed."""

    exit_code = 3


class PairMismatch(SharpscopeError):
    """Two checkpoints (or a checkpoint and a model) whose keys, shapes or dtypes do not fit each other."""


class IdenticalPair(PairMismatch):
    """Two checkpoints with equal weights: there is nothing to interpolate."""


class NonFiniteWeights(SharpscopeError):
    """NaN or infinite values among the weights; names the key and the count."""


class DatasetError(SharpscopeError):
    """A data set that is missing, empty, or whose labels do not fit the class names."""


class NonDeterministicProbe(SharpscopeError):
    """Two evaluations of the same loss on the same batch differ (dropout, augmentation, races)."""


class NumericalError(SharpscopeError):
    """A unit of work whose numbers are not finite or whose operator is not symmetric; the run goes on, exit 1."""

    exit_code = 1


class ResultsError(SharpscopeError):
    """A file of results measured elsewhere that cannot be read, or does not fit the runs; names line and key."""


class RunDirectoryError(SharpscopeError):
    """A run directory that belongs to another experiment, is locked, or cannot be written."""


def shown(text: object, limit: int = 120) -> str:
    """``text`` safe for one terminal line: control characters (newlines, ANSI escapes) escaped, long text cut.

    >>> shown("a\\nb")
    'a\\\\nb'
    """
    start = str(text)[: limit + 1]  # the texts of a file may have megabytes
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in start)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest of ``known``, or an empty string.

    >>> did_you_mean("lambda_mx", ["lambda_max", "hessian_trace"])
    " Did you mean 'lambda_max'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


MAX_NAMES: Final = 10
"""The most names that one message lists; the rest is counted."""


def listing(names: Iterable[str], limit: int = MAX_NAMES) -> str:
    """``names`` for a message: at most ``limit`` of them, made safe for the terminal, then how many more there are."""
    every = list(names)
    text = ", ".join(shown(n, 90) for n in every[:limit])
    return text if len(every) <= limit else f"{text} and {len(every) - limit} more"
