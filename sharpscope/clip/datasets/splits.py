"""The splits of data sets: the one place that decides which split a name means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sharpscope.errors import ConfigError, did_you_mean, shown

__all__ = ["WORDS", "chosen_split", "split_of"]

WORDS: Final[dict[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Split -> the names that folders and libraries give it."""


def split_of(word: str) -> str | None:
    """The split that ``word`` names (val for ``valid``), or None where it does not name a split."""
    return next((split for split, words in WORDS.items() if word.casefold() in words), None)


def chosen_split(spec: str, wanted: str, there: Sequence[str], *, named: bool) -> str | None:
    """The one of the splits ``there`` that ``wanted`` means; None for a set without splits, which is read as a whole.

    ``named``: whether the spec itself names the split (``@train``), so that no other split may be read. Otherwise
    ``wanted`` is the split that a command reads by default, and for a set without test images ``test`` means its
    validation split; facts and notes then say so. ``val`` never means the test split, because weights would be chosen
    by the same images that evaluate them.

    Raises ConfigError for a split that does not exist, listing those that do.
    """
    if wanted in there:
        return wanted
    if not there:
        if named:
            raise ConfigError(
                f"data set {shown(spec)}: the set has no splits, so there is no split '{shown(wanted)}'.\n"
                f"Remedy: leave out @{shown(wanted)} to read all images."
            )
        return None
    same = [s for s in there if split_of(s) is not None and split_of(s) == split_of(wanted)]
    if not same and not named and wanted == "test":
        same = [s for s in there if split_of(s) == "val"]
    if len(same) == 1:
        return same[0]
    if named:
        near = did_you_mean(wanted, there)
        raise ConfigError(f"data set {shown(spec)}: unknown split '{shown(wanted)}'.{near} Known: {', '.join(there)}.")
    raise ConfigError(
        f"data set {shown(spec)}: the set has no {shown(wanted)} split; its splits are {', '.join(there)}.\n"
        f"Remedy: name the split to read: SPEC@{shown(there[-1])}, or folder:PATH/{shown(there[-1])} for class folders."
    )
