"""Where the drawings come from: styles, their npm packages with checksums and licences, and who plays which part.

styles.csv is the table. Its column role: ``known``, every base was pretrained on the style; ``id``, pairs are
fine-tuned on it; ``clean``, no model was trained on it. Restylings of one design are one family, and a family has one
role. The known styles are Apache-2.0 or MIT, so that the bases derive from free drawings alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd


@dataclass(frozen=True)
class Package:
    """An npm package at one version; ``sha256`` is that of the archive that ``npm pack`` writes."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """One style: how a vendor draws things."""

    style: str
    family: str
    role: str
    package: Package
    licence: str


def _sources() -> tuple[Source, ...]:
    with Path(__file__).with_name("styles.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Source(r["style"], r["family"], r["role"], Package(r["package"], r["version"], r["sha256"]), r["licence"])
            for r in csv.DictReader(file)
        )


SOURCES: Final = _sources()
WORDS: Final = Package("emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303")
"""Names and keywords of the things (MIT)."""
UNICODE: Final = next(s.package for s in SOURCES if s.style == "apple")
"""The package that holds Unicode's emoji list too (``emoji.json``, MIT)."""


def csv_of(table: pd.DataFrame) -> bytes:
    """A table of this study as the bytes of a CSV file: six digits, the same bytes for the same rows."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()


def styles_of(role: str) -> tuple[str, ...]:
    return tuple(s.style for s in SOURCES if s.role == role)
