"""Ranges of numbers that a study, or a call from Python, may set; a number outside is one ConfigError with its key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sharpscope.errors import ConfigError

__all__ = ["check_products", "check_ranges"]


def check_ranges(settings: Any, *, least: Mapping[str, int], positive: Iterable[str]) -> None:
    """Raise ConfigError for a field of the dataclass instance ``settings`` that is outside its range.

    Args:
        settings: an instance whose fields have the right types (``config.fields``); None is never outside.
        least: a field with one number -> the smallest value that is allowed.
        positive: fields that hold a positive, finite number or several. A relative tolerance, ``rtol``, is also below
            1: with 1 or more, an estimate would count as converged whose error is as large as itself.
    """
    for name, low in least.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            what = "a number" if isinstance(value, float) else "a whole number"
            raise ConfigError(f"{name}: needs {what} of at least {low}, got {value}.")
    for name in positive:
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else [] if value is None else [value]:
            if not (math.isfinite(number) and number > 0):
                raise ConfigError(f"{name}: needs a positive number, got {number}.")
            if name == "rtol" and number >= 1:
                raise ConfigError(
                    f"rtol: {number:g} would accept estimates that are as wrong as they are large; it is a fraction "
                    f"below 1.\nRemedy: rtol {number / 100:g} for {number:g} %, or leave it out for "
                    f"{type(settings).rtol:g}."
                )


def check_products(settings: Any) -> None:
    """Raise ConfigError where ``trace_method`` needs a gradient graph and ``products`` keeps none."""
    if settings.products == "func" and settings.trace_method == "controlled":
        raise ConfigError(
            "trace_method: controlled needs kept gradient graphs for its Gauss-Newton part, and products func keeps "
            "none; take trace_method per_example or hutchinson, or products graph."
        )
