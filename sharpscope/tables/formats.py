"""Numbers rounded to their significant digits, and tables as Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

from sharpscope.errors import shown

__all__ = [
    "MISSING",
    "interval",
    "is_missing",
    "latex",
    "markdown",
    "number",
    "number_of",
    "p_text",
    "percent",
    "points",
    "with_error",
]


def number_of(count: float, what: str) -> str:
    """A number of things in words: ``1 pair``, ``3 pairs``, ``12,000 images``."""
    return f"{int(count):,} {what}{'' if int(count) == 1 else 's'}"


def is_missing(value: Any) -> bool:
    """Whether ``value`` is None, NaN, NA or NaT."""
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


# -------------------------------------------------------------------------------------------- numbers for human readers
MISSING = "—"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _fixed(value: float, place: int, scale: int = 0) -> str:
    """``value`` / 10**scale rounded to 10**place, with a true minus sign and no negative zero."""
    exact = Decimal(repr(float(value))).scaleb(-scale)
    rounded = (
        exact.quantize(Decimal(1).scaleb(place))
        if place <= 0
        else exact.scaleb(-place).quantize(Decimal(1)).scaleb(place)
    )
    text = f"{abs(rounded):f}"
    return ("−" if rounded < 0 else "") + text


def _not_finite(value: float) -> str | None:
    if math.isnan(value):
        return MISSING
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else None


def number(value: float, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits, below 1e-3 and from 1e6 on with a power of ten; NaN is a dash.

    >>> number(1234.6), number(0.5), number(-2.5e-7)
    ('1235', '0.500', '−2.50×10⁻⁷')
    """
    value = float(value)
    special = _not_finite(value)
    if special is not None or value == 0:
        return special or "0"
    exponent = int(f"{abs(value):.{digits - 1}e}".split("e")[1])  # after rounding: 9.999 counts as 10.0
    if -3 <= exponent < 6:
        return _fixed(value, min(0, exponent - digits + 1))
    return f"{_fixed(value, 1 - digits, exponent)}×10{str(exponent).translate(_SUPERSCRIPT)}"


def p_text(p: float, permutations: int) -> str:
    """A permutation p-value as far as ``permutations`` of them can tell it: "p = 0.12", or "p < 1/500" at their end.

    >>> p_text(0.1234, 500), p_text(1 / 501, 500), p_text(float("nan"), 500)
    ('p = 0.12', 'p < 1/500', 'p unknown')
    """
    if math.isnan(p):
        return "p unknown"
    if p <= 1 / (1 + permutations) + 1e-12:
        return f"p < 1/{permutations}"
    return f"p = {p:.2g}"


def with_error(estimate: float, stderr: float) -> str:
    """``"12.3 ± 0.4"``: the error with one or two significant digits, and the estimate rounded to the same place.

    By the Particle Data Group's rule the error keeps two digits if its three leading digits are 100-354, one digit if
    they are 355-949, and is rounded up to 1000 with two digits if they are 950-999.

    >>> with_error(12.345, 0.41), with_error(1521.3, 48.0), with_error(1.2345e-5, 4e-7)
    ('12.3 ± 0.4', '1520 ± 50', '(1.23 ± 0.04)×10⁻⁵')
    """
    estimate, stderr = float(estimate), float(stderr)
    if math.isnan(estimate):
        return MISSING
    if not math.isfinite(estimate) or not math.isfinite(stderr) or stderr <= 0:
        return number(estimate) + ("" if math.isnan(stderr) else f" ± {number(stderr)}")
    largest = max(abs(estimate), stderr)
    exponent = math.floor(math.log10(largest))
    scale = 0 if -3 <= exponent < 6 else exponent
    digits, power = f"{stderr:.2e}".split("e")
    place = int(power) - scale - (float(digits) < 3.55)
    text = f"{_fixed(estimate, place, scale)} ± {_fixed(stderr, place, scale)}"
    return f"({text})×10{str(scale).translate(_SUPERSCRIPT)}" if scale else text


def percent(value: float, digits: int = 1) -> str:
    """A share in [0, 1] as ``"52.5 %"``."""
    return _not_finite(float(value)) or f"{_fixed(100 * float(value), -digits)} %"


def points(value: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, signed: ``"+6.5"``."""
    text = _not_finite(float(value)) or _fixed(100 * float(value), -digits)
    return text if text[0] in "−∞" + MISSING or not text.strip("0.") else f"+{text}"


def interval(estimate: float, low: float, high: float, style: Callable[[float], str] = number) -> str:
    """``"52.5 % [51.4, 53.6]"``: an estimate with its interval, each in the given style (number, percent, points)."""
    if math.isnan(float(low)) and math.isnan(float(high)):
        return style(estimate)
    return f"{style(estimate)} [{style(low).removesuffix(' %')}, {style(high).removesuffix(' %')}]"


# ------------------------------------------------------------------------------------------------- Markdown and LaTeX
def _shown_cell(value: Any) -> str:
    if is_missing(value):
        return MISSING
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return number(float(value), 3) if isinstance(value, (float, np.floating)) else shown(value, 1000)


def _grid(frame: pd.DataFrame, right: Collection[str]) -> tuple[list[str], list[list[str]], list[bool]]:
    body = [[_shown_cell(v) for v in frame[c].astype(object).tolist()] for c in frame.columns]
    numeric = [
        c in right or (pd.api.types.is_numeric_dtype(frame[c]) and not pd.api.types.is_bool_dtype(frame[c]))
        for c in frame.columns
    ]
    return [shown(c, 1000) for c in frame.columns], [list(row) for row in zip(*body, strict=True)], numeric


def markdown(df: pd.DataFrame, right: Collection[str] = ()) -> str:
    """``df`` as a GitHub pipe table; numbers with three significant digits; markup in names stays text.

    ``right``: columns of text that are aligned to the right, as numbers are.
    """
    head, rows, numeric = _grid(df, right)
    lines = [head, ["---:" if right else "---" for right in numeric]]
    cells = [[_markdown_escape(c) for c in row] for row in [head, *rows]]
    lines = [cells[0], lines[1], *cells[1:]]
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def _markdown_escape(text: str) -> str:
    text = re.sub(r"([\\`*\[\]<>|#~$])", r"\\\1", text.replace("&", "&amp;"))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)


_LATEX = (
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "$": r"\$",
        "&": r"\&",
        "#": r"\#",
        "_": r"\_",
        "%": r"\%",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "∞": r"$\infty$",
        "—": "--",
        "…": r"\ldots{}",
        "α": r"$\alpha$",
        "′": "$'$",
    }
    | {sup: rf"\textsuperscript{{{plain}}}" for plain, sup in zip("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}
    | {"⁻": r"\textsuperscript{$-$}"}
)


def latex(df: pd.DataFrame, right: Collection[str] = ()) -> str:
    """``df`` as a booktabs ``tabular`` (``\\usepackage{booktabs}``); special characters escaped.

    ``right``: columns of text that are aligned to the right, as numbers are.
    """
    head, rows, numeric = _grid(df, right)
    body = [" & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in row) + r" \\" for row in [head, *rows]]
    align = "".join("r" if right else "l" for right in numeric)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )
