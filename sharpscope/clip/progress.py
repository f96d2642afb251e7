"""How long-running work reports its progress: on a bar that the caller provides, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Bar", "MakeBar", "duration", "silent"]


class Bar(Protocol):
    """A progress bar with the methods of tqdm's."""

    def update(self, n: float = 1) -> Any: ...
    def set_postfix_str(self, s: str = "") -> Any: ...
    def close(self) -> Any: ...


MakeBar = Callable[..., Bar]
"""A function that makes a bar from ``total`` (number of steps) and ``desc`` (description), e.g. ``tqdm``."""


class _Silent:
    def update(self, n: float = 1) -> None: ...
    def set_postfix_str(self, s: str = "") -> None: ...
    def close(self) -> None: ...


def silent(**_: object) -> Bar:
    """A bar that shows nothing: the default wherever a caller may pass a ``MakeBar``."""
    return _Silent()


def duration(seconds: float) -> str:
    """``seconds`` in the largest unit of which they are one at least.

    >>> duration(5400)
    '1.5 h'
    """
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
