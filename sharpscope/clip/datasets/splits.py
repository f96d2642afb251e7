"""Which part of a data set is read: the one place that decides what a split's name means."""

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
"""Split -> what folders and libraries call it."""


def split_of(word: str) -> str | None:
    """The split that ``word`` stands for (``valid``: val), None where it is no word for a split."""
    return next((split for split, words in WORDS.items() if word.casefold() in words), None)


def chosen_split(spec: str, wanted: str, there: Sequence[str], *, named: bool) -> str | None:
    """Which of the splits ``there`` is meant by ``wanted``; None for a set without splits, all of which is read.

    ``named``: the spec itself names the split (``@train``), so that nothing else may be read. Otherwise ``wanted`` is
    what a command reads by itself: of a set without test images ``test`` is then its val, which facts and notes tell.
    ``val`` is never test: weights would be chosen by the images that judge them.

    Raises ConfigError, the splits that there are named.
    """
    if wanted in there:
        return wanted
    if not there:
        if named:
            raise ConfigError(
                f"data set {shown(spec)}: has no splits, so that there is no '{shown(wanted)}'.\nRemedy: leave out "
                f"@{shown(wanted)}; all images are read then."
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
        f"data set {shown(spec)}: has no {shown(wanted)} split; it has {', '.join(there)}.\n"
        f"Remedy: name the one to read: SPEC@{shown(there[-1])}, or folder:PATH/{shown(there[-1])} of class folders."
    )
