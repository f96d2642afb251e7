"""What a command says when it is done, and how tables, runs and progress look in a terminal."""

from __future__ import annotations

import functools
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpscope.errors import shown
from sharpscope.machine.ranks import ranks

if TYPE_CHECKING:
    import pandas as pd

    from sharpscope.study.report import Run as FinishedRun
    from sharpscope.study.shard import Unfinished

__all__ = ["Outcome", "ended", "finished", "fitted", "progress_bar", "progress_of_units", "shown_table"]


@dataclass(frozen=True)
class Outcome:
    """What a command has to say on stdout, what it complains of on stderr, and its exit code."""

    text: str
    complaint: str = ""
    code: int = 0


def shown_table(table: pd.DataFrame, csv: bool) -> Outcome:
    return Outcome(table.to_csv(index=False).rstrip("\n") if csv else table.to_string(index=False))


def ended(run: FinishedRun | Unfinished) -> Outcome:
    """What a study's process says at its end. Of several ranks only rank 0 tells of failed units, also by its code."""
    from sharpscope.study.shard import Unfinished

    if not ranks().leads:
        return Outcome("")
    if not isinstance(run, Unfinished):
        return finished(run)
    what = "repairs" if run.chosen else "units"
    then = "" if run.chosen else " When these are finished, the same array once more computes the repairs."
    return Outcome(f"shard {run.shard} is done; {run.missing} {what} of other shards are not there yet.{then}")


def finished(run: FinishedRun) -> Outcome:
    text = f"{fitted(run.summary())}\nreport: {shown(Path(run.root) / 'report.html', 500)}"
    failed = tuple(run.failed_units)
    if not failed:
        return Outcome(text)
    names = ", ".join(failed[:3]) + (" ..." if len(failed) > 3 else "")
    complaint = f"{len(failed)} units failed: {shown(names, 200)}\nThe columns status and note of the tables say why."
    return Outcome(text, complaint, 1)


def fitted(text: str) -> str:
    """Sentences as wide as the terminal, each going on further to the right; unchanged where stdout is no terminal."""
    if not sys.stdout.isatty():
        return text
    width = max(40, shutil.get_terminal_size().columns)
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        fill = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        lines += fill or [""]
    return "\n".join(lines)


def progress_bar() -> Callable[..., Any]:
    """tqdm as sharpscope shows it: on stderr, silent if stderr is not a terminal, removed when done."""
    from tqdm import tqdm

    return functools.partial(tqdm, file=sys.stderr, disable=None, dynamic_ncols=True, leave=False)


def progress_of_units() -> Callable[..., Any]:
    """``progress_bar`` on a terminal, elsewhere (a log file, a scheduler) a line on stderr for each finished unit."""
    return progress_bar() if sys.stderr.isatty() else _Lines


class _Lines:
    """A bar of which each step that has something to say is one line of text."""

    def __init__(self, total: int, desc: str) -> None:
        self._total, self._what = total, desc
        self._steps, self._said = 0, ""

    def update(self, n: int = 1) -> None:
        self._steps += n
        if self._said:
            sys.stderr.write(f"{self._what} {self._steps}/{self._total}: {self._said}\n")
            sys.stderr.flush()
        self._said = ""

    def set_postfix_str(self, s: str = "") -> None:
        self._said = s

    def close(self) -> None: ...
