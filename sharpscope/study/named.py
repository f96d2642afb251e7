"""What the manifest of a run directory says of its pairs, read without opening the run; no torch, no figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["manifest_of", "pairs_of"]


def manifest_of(root: Path) -> dict[str, Any]:
    """The manifest of the run directory ``root``, or an empty dictionary where it is missing or cannot be read."""
    try:
        manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def pairs_of(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the pairs in the order of the run's config; none where the manifest does not tell."""
    config = manifest.get("config")
    told = config.get("pairs") if isinstance(config, dict) else None
    return [str(p["name"]) for p in (told if isinstance(told, list) else ()) if isinstance(p, dict) and "name" in p]
