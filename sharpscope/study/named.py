"""What the manifest of a run directory says of its pairs, read without opening the run; no torch, no figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["manifest_of", "pairs_of", "told_pairs"]


def manifest_of(root: Path) -> dict[str, Any]:
    """The manifest of the run directory ``root``, or an empty dictionary where it is missing or cannot be read."""
    try:
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def pairs_of(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the pairs in the order of the run's config; none where the manifest does not tell."""
    return [str(pair["name"]) for pair in told_pairs(manifest)]


def told_pairs(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the run's config says of each of its pairs, in its order; none where the manifest does not tell."""
    config = manifest.get("config")
    told = config.get("pairs") if isinstance(config, dict) else None
    return [pair for pair in (told if isinstance(told, list) else ()) if isinstance(pair, dict) and "name" in pair]
