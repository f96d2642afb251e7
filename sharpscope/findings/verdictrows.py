"""Rows of the table ``verdicts``, and how their numbers read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sharpscope.findings.doubts import Doubt
from sharpscope.vocabulary import CANNOT, CLAIMS, PAIRS

__all__ = ["no_verdict", "span", "unless_doubted", "verdict_row"]


def verdict_row(
    pair: str,
    claim: str,
    group: str,
    source: str,
    verdict: str,
    numbers: Sequence[float],
    n: int,
    evidence: str,
    n_effective: float = math.nan,
) -> dict[str, Any]:
    """A row of the table; ``claim`` is a key of ``CLAIMS``, ``numbers`` are (estimate, ci_low, ci_high)."""
    estimate, low, high = (float(v) for v in numbers)
    head = {"pair": pair, "claim": CLAIMS[claim], "group": group, "source": source, "verdict": verdict}
    values = {"estimate": estimate, "ci_low": low, "ci_high": high, "n": n, "n_effective": n_effective}
    return {**head, **values, "evidence": evidence}


def no_verdict(pair: str, claim: str, group: str, source: str, why: str) -> dict[str, Any]:
    """The row of a claim of which nothing is known, for the reason ``why``."""
    return verdict_row(pair, claim, group, source, CANNOT, (math.nan,) * 3, 0, why)


def unless_doubted(row: dict[str, Any], doubts: Sequence[Doubt]) -> dict[str, Any]:
    """The row; or, where a doubt is about it, one that gives no verdict. Claims across pairs rest on every pair."""
    about = [d for d in doubts if d.pair in (PAIRS, row["pair"]) or row["pair"] == PAIRS]
    if not about:
        return row
    of_pair = "" if row["pair"] == about[0].pair or about[0].pair == PAIRS else f"in pair {about[0].pair} "
    nothing = dict.fromkeys(("estimate", "ci_low", "ci_high", "n_effective"), math.nan)
    evidence = f"No verdict is given: {of_pair}{about[0].reason}."
    return {**row, **nothing, "verdict": CANNOT, "n": 0, "evidence": evidence}


def span(low: float, high: float, digits: int = 2) -> str:
    """``[low, high]`` with signs, or "(no interval)".

    >>> span(-0.5, 0.25), span(float("nan"), 1.0)
    ('[-0.50, +0.25]', '(no interval)')
    """
    low, high = float(low), float(high)
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]" if math.isfinite(low) and math.isfinite(high) else "(no interval)"
