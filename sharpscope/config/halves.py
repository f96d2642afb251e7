"""Base and new classes: the two halves of a data set's classes, ``SPEC#base`` and ``SPEC#new``."""

from __future__ import annotations

import re
from typing import Final

from sharpscope.errors import ConfigError, DatasetError, did_you_mean, shown

__all__ = ["HALVES", "half_of", "split_half", "with_split"]

HALVES: Final = ("base", "new")
"""The first half of a set's classes, on which a method is tuned, and the second one, which it has not seen."""

_ENDING: Final = re.compile(r"(?P<spec>.*)#(?P<half>[^#/]*)\Z", re.DOTALL)


def split_half(spec: str, *, path: bool) -> tuple[str, str | None]:
    """(spec without its half, base | new | None) of ``SPEC#base`` or ``SPEC#new``.

    ``path``: whether the spec ends in a path, which may contain other ``#``; where there is none, a word that is not a
    half is an error. Raises ConfigError.
    """
    found = _ENDING.match(spec)
    if found is None:
        return spec, None
    if found["half"] in HALVES:
        return found["spec"], found["half"]
    if path:
        return spec, None
    near = did_you_mean(found["half"], HALVES)
    raise ConfigError(
        f"data set {shown(spec)}: unknown half '{shown(found['half'], 40)}' of the classes.{near} "
        f"Known: {', '.join(HALVES)}."
    )


def with_split(spec: str, split: str) -> str:
    """``spec``, a set of the embedded world, with another split: ``mini:photo@train#base`` -> ``mini:photo@val#base``.

    >>> with_split("mini:photo#base", "val")
    'mini:photo@val#base'
    """
    whole, half = split_half(spec, path=False)
    return f"{whole.partition('@')[0]}@{split}" + (f"#{half}" if half else "")


def half_of(count: int, half: str, spec: str) -> range:
    """The numbers of the classes of ``half`` among ``count`` classes: base has the first ceil(count / 2) of them.

    Raises DatasetError where the half would be empty. Source: Zhou et al. 2022 (CoCoOp, arXiv 2203.05557), whose code
    divides the labels of each set in this way (CoOp, datasets/oxford_pets.py, subsample_classes).
    """
    middle = -(-count // 2)
    chosen = range(middle) if half == "base" else range(middle, count)
    if not chosen:
        raise DatasetError(f"data set {shown(spec)}: the set has {count} classes, so it has no {half} classes.")
    return chosen
