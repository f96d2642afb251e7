"""What a citation says is what the package says of itself."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import yaml

from sharpscope.vocabulary import __version__

ROOT = Path(__file__).parents[1]


def test_citation_and_changelog_name_this_version_and_licence() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    about = metadata.metadata("sharpscope")
    assert told["cff-version"] == "1.2.0" and told["type"] == "software"
    assert told["version"] == __version__ and told["license"] in (about["License"], about["License-Expression"])
    assert {"message", "title", "authors"} <= told.keys() and all("name" in a for a in told["authors"])
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
