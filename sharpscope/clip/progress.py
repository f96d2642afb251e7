"""How long-running work reports its progress: on a bar that the caller provides, or not at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Bar", "MakeBar", "Shown", "bars_for", "duration", "silent"]


class Bar(Protocol):
    """A progress bar with the methods of tqdm's."""

    def update(self, n: float = 1) -> Any: ...
    def set_postfix_str(self, s: str = "") -> Any: ...
    def close(self) -> Any: ...


MakeBar = Callable[..., Bar]
"""A function that makes a bar from ``total`` (number of steps) and ``desc`` (description), e.g. ``tqdm``."""


Shown = MakeBar | bool
"""What a caller asks for: True for tqdm's bar (in a notebook a widget), False for none, or a maker of bars."""


class _Silent:
    disable = True

    def update(self, n: float = 1) -> None: ...
    def set_postfix_str(self, s: str = "") -> None: ...
    def close(self) -> None: ...


def silent(**_: object) -> Bar:
    """A bar that shows nothing: the default wherever a caller may pass a ``MakeBar``."""
    return _Silent()


def bars_for(progress: Shown) -> MakeBar:
    """The maker of bars that ``progress`` asks for."""
    if progress is True:
        from tqdm.auto import tqdm  # a widget in a notebook, else a line on stderr

        return functools.partial(tqdm, disable=None)  # a log file gets no line
    return progress or silent


def duration(seconds: float) -> str:
    """``seconds`` in the largest unit of which they are one at least.

    >>> duration(5400)
    '1.5 h'
    """
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
