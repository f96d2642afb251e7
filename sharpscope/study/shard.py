"""The share of a study's units that one task of a scheduler's array computes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sharpscope.errors import ConfigError, shown

if TYPE_CHECKING:  # a mistake in a command line is told before numpy is imported
    from sharpscope.study.tasks import Task

__all__ = ["Shard", "Unfinished"]


@dataclass(frozen=True)
class Shard:
    """Share ``number`` of ``count``, counted from 1. The shares are disjoint, and together they are everything."""

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str | None) -> Shard:
        """The share called ``text`` (``2/4``), everything for None. Raises ConfigError."""
        if text is None:
            return cls()
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ConfigError(
                f"shard: '{shown(text, 40)}' is no share: the first of four is 1/4, the last one 4/4.\n"
                "Remedy: let the array count from 1, or give --shard as its number plus 1."
            )
        return cls(number, count)

    def of(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """Every ``count``-th task, so that each share has as many long ones and as many short ones."""
        return tasks[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


@dataclass(frozen=True)
class Unfinished:
    """A run of which one share is done and units of other shares are missing. ``chosen``: whether these are repairs."""

    root: Path
    shard: Shard
    missing: int
    chosen: bool
