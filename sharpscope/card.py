"""What an object shows of itself in a notebook: its name, and one row per fact."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from sharpscope.errors import shown

__all__ = ["card"]


def card(title: str, facts: Mapping[str, Any]) -> str:
    """An HTML table of the facts that are known, under ``title``; control characters and markup come out as text.

    A float is written with four significant digits, a large count with thousands separated. None is left out.
    """
    left = 'style="text-align: left"'
    rows = "".join(
        f'<tr><th scope="row" {left}>{_text(name)}</th><td {left}>{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    return f"<table><caption>{_text(title)}</caption><tbody>{rows}</tbody></table>"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, int):
        value = f"{value:,}"
    elif isinstance(value, float):
        value = f"{value:.4g}"
    return html.escape(shown(value, 300))
