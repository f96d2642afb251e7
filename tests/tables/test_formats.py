"""Numbers for readers: never more digits than the uncertainty allows, never wrong by more than the last one."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpscope.tables.formats import interval, latex, markdown, number, percent, points, with_error

SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
HOSTILE = (
    "a|b",
    "x_y",
    "_z_",
    "50%",
    "$m$",
    "<b>",
    "back\\slash",
    "new\nline",
    "{x}",
    "~^&#",
    "`code`",
    "[a](b)",
    "*s*",
)


def value_of(text: str) -> float:
    head, _, power = text.partition("×10")
    return float(head.strip("()").translate(SUPERSCRIPTS)) * 10.0 ** int(power.translate(SUPERSCRIPTS) or 0)


@pytest.mark.parametrize(
    ("estimate", "stderr", "want"),
    [
        (12.345, 0.41, "12.3 ± 0.4"),
        (12.346, 0.15, "12.35 ± 0.15"),
        (0.97, 0.97, "1.0 ± 1.0"),
        (1521.3, 48, "1520 ± 50"),
        (1.2345e-5, 4e-7, "(1.23 ± 0.04)×10⁻⁵"),
        (-2e9, 3e7, "(−2.000 ± 0.030)×10⁹"),
        (-0.0004, 0.1, "0.00 ± 0.10"),
        (0.0, 3.0, "0.0 ± 3.0"),
        (5.0, math.nan, "5.00"),
        (5.0, 0.0, "5.00 ± 0"),
        (math.nan, 1.0, "—"),
        (5.0, math.inf, "5.00 ± ∞"),
    ],
)
def test_with_error(estimate: float, stderr: float, want: str) -> None:
    assert with_error(estimate, stderr) == want


@settings(max_examples=150, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-7, 1e9))
def test_with_error_is_right_to_a_tenth_of_the_error(estimate: float, stderr: float) -> None:
    text = with_error(estimate, stderr)
    inner, _, power = text.partition(")×10")
    a, b = (float(v.strip("()").translate(SUPERSCRIPTS)) for v in inner.split(" ± "))
    scale = 10.0 ** int(power.translate(SUPERSCRIPTS) or 0)
    assert abs(a * scale - estimate) <= 0.15 * stderr + 1e-9
    assert abs(b * scale - stderr) <= 0.15 * stderr
    digits = re.sub(r"[^0-9]", "", inner.split(" ± ")[1]).lstrip("0")
    assert 1 <= len(digits.rstrip("0") or "0") <= 2


@settings(max_examples=150, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_number_keeps_three_digits(value: float) -> None:
    if abs(value) < 1e-300:
        return
    assert value_of(number(value)) == pytest.approx(value, rel=0.0051)


def test_special_numbers() -> None:
    assert [number(v) for v in (0.0, -0.0, math.nan, math.inf, -math.inf)] == ["0", "0", "—", "∞", "−∞"]
    assert (number(999_999.9), number(0.0009996), number(-1234.5)) == ("1.00×10⁶", "0.00100", "−1234")
    assert (percent(0.525), percent(math.nan), points(0.065), points(-0.001), points(-1e-5)) == (
        "52.5 %",
        "—",
        "+6.5",
        "−0.1",
        "0.0",
    )
    assert interval(0.525, 0.514, 0.536, percent) == "52.5 % [51.4, 53.6]"
    assert interval(0.065, math.nan, math.nan, points) == "+6.5"


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {"name": HOSTILE, "value": [1.5] * len(HOSTILE), "n": range(len(HOSTILE)), "ok": [True] * len(HOSTILE)}
    )


def test_markdown_keeps_its_columns_whatever_the_names() -> None:
    lines = markdown(frame()).splitlines()
    assert len(lines) == len(HOSTILE) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in lines)
    assert lines[1] == "| --- | ---: | ---: | --- |"
    assert "| x_y | 1.50 | 1 | yes |" in lines
    assert not any(re.search(r"(?<!\\)[<`*$]", line) for line in lines[2:])


def test_latex_escapes_what_latex_would_read() -> None:
    text = latex(frame().assign(value=-0.5))
    assert text.startswith("\\begin{tabular}{lrrl}\n\\toprule\nname & value & n & ok \\\\\n\\midrule\n")
    assert text.endswith("\\bottomrule\n\\end{tabular}\n")
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(body) == len(HOSTILE)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 3
        bare = re.sub(r"\\[{}$&#_%]|\\text\w+\{(\$-\$|\d)?\}|\$(-|\\pm|\\times|\\infty)\$|\\\\$", "", line)
        assert not re.search(r"[{}$#_%~^\\<>]", bare), bare
    assert "$-$0.500" in text
    assert latex(pd.DataFrame({"x": [1e-7]})).count("\\textsuperscript{$-$}\\textsuperscript{7}") == 1
