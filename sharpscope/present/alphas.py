"""How alpha is shown: as the weight of the model that the reader chose. Everything stored has it on the fine-tuned one.

All figures and sections compute with the stored alpha. What a reader sees of it, a number, a symbol, an axis or a
sentence of the findings, goes through this file, which shows alpha' = 1 - alpha inside
``showing_alpha_on("zeroshot")``.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Final

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from sharpscope.vocabulary import ALPHA_SIDES, AlphaSide, weight_on

__all__ = [
    "alpha_axis",
    "alpha_convention",
    "alpha_is",
    "alpha_label",
    "alpha_number",
    "alpha_path",
    "alpha_sentence",
    "in_order_of_alpha",
    "said",
    "showing_alpha_on",
    "with_symbol",
]

_SIDE: Final[ContextVar[AlphaSide]] = ContextVar("showing_alpha_on", default="finetuned")
_NUMBER: Final = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_IN_SENTENCES: Final = re.compile(
    rf"(?<![-\w])alpha(?P<sign> = | )(?P<ones>{_NUMBER}(?: and {_NUMBER})*)(?![\w.]*\w)"
    rf"|(?<=\(alphas: )(?P<listed>{_NUMBER}(?: {_NUMBER})*)(?=\))"
    rf"|(?<=alphas in \[)(?P<low>{_NUMBER}), (?P<high>{_NUMBER})(?=\])"
)
"""The spellings by which values of alpha are recognised in the sentences that findings write."""
_MINUS: Final = re.compile(r"(?<=[ \[(])-(?=\d)")


@contextlib.contextmanager
def showing_alpha_on(side: AlphaSide) -> Iterator[None]:
    """Inside, alpha is shown as the weight of the ``side`` model."""
    token = _SIDE.set(side)
    try:
        yield
    finally:
        _SIDE.reset(token)


def alpha_number(alpha: float) -> str:
    """A stored ``alpha`` as the reader's number, such as 0, 0.5 or 1."""
    return f"{weight_on(float(alpha), _SIDE.get()):g}"


def alpha_is(alpha: float) -> str:
    """``α = 0.3``; on the zero-shot side ``α′ = 0.7``."""
    return f"{ALPHA_SIDES[_SIDE.get()].symbol} = {alpha_number(alpha)}"


def with_symbol(text: str) -> str:
    """A sentence of our own about α with the reader's symbol; it names no number."""
    return text.replace("α", ALPHA_SIDES[_SIDE.get()].symbol)


def alpha_sentence() -> str:
    """Whose weight alpha is, and what is at its ends."""
    return f"{ALPHA_SIDES[_SIDE.get()].text} ({alpha_number(0)}: zero-shot, {alpha_number(1)}: fine-tuned)"


def alpha_convention() -> str:
    """Whose weight alpha is in this report, and that nothing stored changes with it."""
    facts = ALPHA_SIDES[_SIDE.get()]
    told = f"{facts.text}: {facts.path} with θ₀ zero-shot and θ₁ fine-tuned (as {facts.source} write it)."
    kept = " The table files, the configuration and all flags keep α, the weight of the fine-tuned model."
    return told + (kept if _SIDE.get() == "zeroshot" else "")


def alpha_path() -> str:
    """The path as a formula, with its ends."""
    path = ALPHA_SIDES[_SIDE.get()].path
    return f"{path}: {alpha_number(0)} is the zero-shot model, {alpha_number(1)} the fine-tuned one."


def in_order_of_alpha(alphas: Iterable[float]) -> list[float]:
    """Stored ``alphas``, each once, in ascending order of what is shown; NaN is left out."""
    side = _SIDE.get()
    return sorted({float(a) for a in alphas if not math.isnan(a)}, key=lambda a: weight_on(a, side))


def alpha_label(*, ends: bool = False) -> str:
    """The name of an axis along alpha; ``ends``: with the model at each end."""
    return with_symbol("α") + (f" ({alpha_number(0)} zero-shot, {alpha_number(1)} fine-tuned)" if ends else "")


def alpha_axis(ax: Axes, *, ends: bool = False) -> None:
    """Name the x axis, along which stored alphas are drawn, and let it show and ascend in the reader's weight."""
    ax.set_xlabel(alpha_label(ends=ends))
    side = _SIDE.get()
    if side == "zeroshot":
        ax.xaxis.set_inverted(True)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda alpha, _: f"{weight_on(alpha, side):g}"))


def said(text: str) -> str:
    """A sentence of a table (a note, a verdict's evidence), with the alphas in it as the reader's numbers.

    Flags such as --alphas keep their stored meaning. Negative numbers have the true minus sign, as in all tables.

    >>> said("differ by -0.6 points [-4.4, +3.2] at 1e-5")
    'differ by −0.6 points [−4.4, +3.2] at 1e-5'
    """
    told = text if _SIDE.get() == "finetuned" else _IN_SENTENCES.sub(_shown, text)
    return _MINUS.sub("−", told)


def _shown(found: re.Match[str]) -> str:
    if found["ones"]:
        numbers = " and ".join(alpha_number(float(a)) for a in found["ones"].split(" and "))
        return with_symbol("α") + found["sign"] + numbers
    if found["listed"]:
        return " ".join(map(alpha_number, in_order_of_alpha(map(float, found["listed"].split()))))
    return ", ".join(map(alpha_number, in_order_of_alpha(map(float, (found["low"], found["high"])))))
